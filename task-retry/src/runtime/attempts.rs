use std::time::Duration;

use chrono::{DateTime, Utc};

use tracing::debug;

use super::{Inner, Tasks};
use crate::clock::Millis;
use crate::store::{Attempted, Settlement, error_text, steadily};
use crate::transition::Transition;
use crate::{Result, TaskId, TaskLog};

/// Keeps the attempt that [`TaskRetry::fail`](crate::TaskRetry::fail) has ended. That it failed is
/// written already: if this cannot be, its history has a gap.
pub(super) async fn failed_from_outside(
    inner: &Inner,
    task: &TaskLog,
    next: &Transition,
    now: Millis,
) {
    let failed = Settlement {
        id: task.id.0,
        fence: task.fence + 1,
        to: next.to,
        send_count: next.send_count,
        next: next.next,
        error: next.error.as_deref().map(error_text),
        result: None,
        attempt: Some(Attempted { start: now, millis: 0 }),
    };
    let store = &inner.store;
    if let Err(error) = steadily(|| store.keep_attempts(&store.db, [&failed].into_iter())).await {
        debug!(%error, "a failed attempt cannot be kept");
    }
}

/// An attempt that failed, see [`Tasks::attempts`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// Which attempt of the task it was; 1 is the first. It starts again at 1 after
    /// [`Tasks::retry_now`].
    pub number: u32,
    /// When it started.
    pub start: DateTime<Utc>,
    /// How long it took, in whole milliseconds, with `on_exhausted` where that was run.
    pub duration: Duration,
    /// The process that ran it, as [`TaskRetry::worker_id`](crate::TaskRetry::worker_id) names it.
    pub worker: String,
    /// Why it failed, at most 4 KiB.
    pub error: String,
}

impl Tasks<'_> {
    /// The failed attempts of a task, oldest first: the last 20, and none for a task that this
    /// project does not have. A success leaves nothing here, nor does an attempt whose process died;
    /// one that [`TaskRetry::fail`](crate::TaskRetry::fail) ended is here, with no duration.
    ///
    /// They are kept as long as the task.
    ///
    /// ```standalone_crate
    /// # use task_retry::{CallError, TaskRetry, retryable};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// /// Charges a card.
    /// #[retryable(source = 31)]
    /// async fn charge(order: u64) -> Result<(), String> {
    ///     Err("the bank is closed".to_owned())
    /// }
    ///
    /// # let retry = TaskRetry::builder().project("docs").database("sqlite::memory:").start().await?;
    /// let error = charge(42).await.unwrap_err();
    /// let attempts = retry.tasks().attempts(error.id().unwrap()).await?;
    /// assert_eq!(attempts[0].number, 1);
    /// assert_eq!(attempts[0].error, "the bank is closed");
    /// # retry.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Store` if the database refuses.
    pub async fn attempts(&self, id: TaskId) -> Result<Vec<Attempt>> {
        let store = &self.0.inner().store;
        Ok(steadily(|| store.attempts(id)).await?)
    }
}
