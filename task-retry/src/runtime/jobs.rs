//! What can be scheduled from outside as well: a pass over due rows, and the removal of history.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::claim::Tell;
use super::execute::Told;
use super::{Inner, TaskRetry, claim, pauses, waits};
use crate::clock::floor_millis;
use crate::store::{DEPENDENTS, Which, steadily};
use crate::{Result, Status, TaskId};

/// Rows removed by one statement.
const ROWS: u32 = 1000;
/// Pages of so many tasks that a pass looks through for orphans.
const PAGES: usize = 100;
/// How often history is removed.
const EVERY: Duration = Duration::from_secs(3600);

/// What a pass of [`TaskRetry::run_due`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunReport {
    /// Tasks that were claimed.
    pub claimed: u64,
    /// Tasks that have succeeded.
    pub succeeded: u64,
    /// Tasks that failed and will be retried.
    pub retrying: u64,
    /// Tasks that were given up.
    pub failed: u64,
    /// Tasks that wait for somebody to complete them.
    pub waiting: u64,
    /// Tasks that no code here can decode; they were put back.
    pub undecodable: u64,
    /// Tasks that were put back, or that were ended elsewhere meanwhile.
    pub other: u64,
}

impl RunReport {
    fn count(&mut self, told: Told) {
        let counter = match told {
            Told::Undecodable => &mut self.undecodable,
            Told::Nothing => &mut self.other,
            Told::Became(Status::Succeeded) => &mut self.succeeded,
            Told::Became(Status::Retrying) => &mut self.retrying,
            Told::Became(Status::Failed) => &mut self.failed,
            Told::Became(Status::Waiting) => &mut self.waiting,
            Told::Became(_) => &mut self.other,
        };
        *counter += 1;
    }
}

impl TaskRetry {
    /// One pass of the retry job: runs what is due now, and returns when it has ended. For those who
    /// schedule retries from outside, with `job: false`.
    ///
    /// With ids, it runs these tasks of this project whatever their status, also ended ones, and
    /// although their source is paused; only tasks under a live lease, and of sources that are not
    /// registered here, are left alone.
    ///
    /// Dropping the future leaves what was claimed to the workers.
    ///
    /// # Errors
    /// `Closed` while shutting down, `Store` if the database refuses; what was claimed before that
    /// still runs.
    pub async fn run_due(&self, ids: Option<Vec<TaskId>>) -> Result<RunReport> {
        let inner = self.open()?;
        waits::listen(inner);
        let mut report = RunReport::default();
        match ids {
            Some(ids) => {
                for ids in ids.chunks(500) {
                    let ids = ids.iter().map(|id| id.0).filter(|id| !inner.held.contains(*id));
                    run_ids(inner, ids.collect(), &mut report).await?;
                }
            }
            None => run_all(inner, &mut report).await?,
        }
        Ok(report)
    }

    /// One pass of the history job: deletes what was kept long enough (`data-kept-day`,
    /// `failed-kept-day`), in small batches, with results and attempts, and returns how many tasks
    /// that were.
    ///
    /// # Errors
    /// `Closed` while shutting down, `Store` if the database refuses; what was deleted stays deleted.
    pub async fn remove_history(&self) -> Result<u64> {
        remove_history(self.open()?).await
    }
}

async fn run_ids(inner: &Arc<Inner>, ids: Vec<i64>, report: &mut RunReport) -> Result<()> {
    let mut claim = inner.claim(inner.registry.sources(), ids.len() as u32);
    claim.ids = Some(ids);
    let tasks = steadily(|| inner.store.claim(&claim)).await?;
    let told = start(inner, tasks, claim.until, true, report);
    hear(told, report).await;
    Ok(())
}

async fn run_all(inner: &Arc<Inner>, report: &mut RunReport) -> Result<()> {
    // What fails now and is due again at once is the next pass's.
    let due = inner.clock.now();
    let limit = inner.task_limit.max(1);
    pauses::look(inner).await;
    for source in inner.registry.sources() {
        if inner.pauses.is_paused(source) {
            continue;
        }
        for which in [Which::Innocent, Which::Suspect] {
            loop {
                let mut claim = inner.claim(vec![source], limit);
                claim.now = due;
                claim.which = which;
                if which == Which::Suspect {
                    claim.limit = 1;
                }
                let tasks = steadily(|| inner.store.claim(&claim)).await?;
                let more = tasks.len() >= claim.limit as usize;
                let told = start(inner, tasks, claim.until, false, report);
                // Claims are as large as the pool, so that leases are not kept by what only waits.
                hear(told, report).await;
                if !more {
                    break;
                }
            }
        }
    }
    Ok(())
}

pub(super) fn start(
    inner: &Arc<Inner>,
    tasks: Vec<crate::TaskLog>,
    until: i64,
    by_id: bool,
    report: &mut RunReport,
) -> Vec<oneshot::Receiver<Told>> {
    report.claimed += tasks.len() as u64;
    let mut told = Vec::with_capacity(tasks.len());
    for task in tasks {
        let (to, hear) = oneshot::channel();
        claim::submit(inner, task, until, Some(Tell { to, by_id }));
        told.push(hear);
    }
    told
}

pub(super) async fn hear(told: Vec<oneshot::Receiver<Told>>, report: &mut RunReport) {
    for told in told {
        report.count(told.await.unwrap_or(Told::Nothing));
    }
}

/// Removes history every hour until the runtime closes; the first time within ten minutes.
pub(crate) async fn history(inner: Arc<Inner>) {
    let mut pause = Duration::from_secs(fastrand::u64(60..600));
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = inner.closing.cancelled() => return,
        }
        pause = EVERY.mul_f64(0.9 + 0.2 * fastrand::f64());
        match remove_history(&inner).await {
            Ok(0) => {}
            Ok(rows) => info!(rows, "removed history"),
            Err(error) => warn!(%error, "history cannot be removed now; trying again later"),
        }
    }
}

/// Warns of unfinished tasks that nothing here can run.
pub(crate) async fn strangers(inner: Arc<Inner>) {
    let mut after = i32::MIN;
    for _ in 0..100 {
        let (source, name) = match inner.store.next_source(after).await {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(error) => return debug!(%error, "sources cannot be looked through"),
        };
        if inner.registry.by_source(source).is_none() {
            warn!(
                source,
                name = name.unwrap_or_default(),
                "there are unfinished tasks of a source that nothing here knows: they wait for a \
                 program that does; if it is this one, its crate may have been left out by the linker \
                 (`use jobs as _;` or `.register::<…>()`)"
            );
        }
        after = source;
    }
}

/// Deletes what is kept beside tasks that somebody else deleted: so many pages a pass, going on where
/// the last one ended.
async fn sweep(inner: &Inner) -> Result<()> {
    for (table, swept) in DEPENDENTS.into_iter().zip(&inner.swept) {
        for _ in 0..PAGES {
            let after = swept.load(Ordering::Relaxed);
            let last = steadily(|| inner.store.sweep(table, after, ROWS)).await?;
            swept.store(last.unwrap_or(0), Ordering::Relaxed);
            if last.is_none() || inner.closing.is_cancelled() {
                break;
            }
        }
    }
    Ok(())
}

async fn remove_history(inner: &Inner) -> Result<u64> {
    let kept = [
        (&[Status::Succeeded][..], inner.data_kept),
        (&[Status::Failed, Status::Cancelled][..], inner.failed_kept),
    ];
    let mut removed = 0;
    for (statuses, kept) in kept {
        let Some(kept) = kept else { continue };
        let before = inner.clock.now().saturating_sub(floor_millis(kept));
        loop {
            let store = &inner.store;
            let rows = steadily(|| store.remove_history(statuses, before, ROWS)).await?;
            removed += rows;
            if rows < u64::from(ROWS) || inner.closing.is_cancelled() {
                break;
            }
        }
    }
    sweep(inner).await?;
    Ok(removed)
}
