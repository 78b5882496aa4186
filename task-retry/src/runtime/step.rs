//! One due task at a time, for tests.

use super::{Inner, TaskRetry, jobs};
use crate::clock::Millis;
use crate::store::{Which, steadily};
use crate::{Result, RunReport};

impl TaskRetry {
    /// Runs the task that has been due for longest; `false` if none is due.
    pub(crate) async fn step(&self, report: &mut RunReport) -> Result<bool> {
        let inner = self.open()?;
        for which in [Which::Innocent, Which::Suspect] {
            let mut claim = inner.claim(sources(inner), 1);
            claim.which = which;
            let tasks = steadily(|| inner.store.claim(&claim)).await?;
            if !tasks.is_empty() {
                let told = jobs::start(inner, tasks, claim.until, false, report);
                jobs::hear(told, report).await;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// When the next task is due that is not due yet.
    pub(crate) async fn next_due(&self) -> Result<Option<Millis>> {
        let inner = self.open()?;
        let later = inner.clock.now() + 1;
        let asked: Vec<_> =
            sources(inner).into_iter().map(|source| (source, Some(later))).collect();
        let found = steadily(|| inner.store.first_due(&asked)).await?;
        Ok(found.into_iter().map(|(_, due)| due).min())
    }
}

/// The sources that are not paused.
fn sources(inner: &Inner) -> Vec<i32> {
    let mut sources = inner.registry.sources();
    sources.retain(|source| !inner.pauses.is_paused(*source));
    sources
}
