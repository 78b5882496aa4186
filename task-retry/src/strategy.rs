use std::future::Future;
use std::time::Duration;

use crate::TaskLog;

/// A hand-written strategy: what runs the tasks of one source, from their rows.
///
/// The starter's `AbstractTaskRetryStrategy`. Register it with
/// [`Builder::strategy`](crate::Builder::strategy), give it tasks with
/// [`TaskRetry::submit`](crate::TaskRetry::submit).
///
/// ```
/// use task_retry::{HandleResult, Strategy, TaskLog};
///
/// struct Notify;
///
/// impl Strategy for Notify {
///     fn source(&self) -> i32 {
///         40
///     }
///
///     fn name(&self) -> &str {
///         "notify"
///     }
///
///     async fn handle(&self, task: &TaskLog) -> HandleResult {
///         match task.context.as_deref() {
///             Some(text) if !text.is_empty() => HandleResult::Success,
///             _ => HandleResult::Fail { reason: "nothing to say".into(), retry: false },
///         }
///     }
/// }
/// ```
pub trait Strategy: Send + Sync + 'static {
    /// The source whose tasks it runs.
    fn source(&self) -> i32;

    /// The name in table, logs and metrics.
    fn name(&self) -> &str;

    /// Runs one attempt. A panic counts as a failure; so does a time-out of the source's policy.
    fn handle(&self, task: &TaskLog) -> impl Future<Output = HandleResult> + Send;

    /// Closes what it holds, once the runtime that it was given to has stopped. It may be called again.
    fn shutdown(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// What a [`Strategy`] says of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandleResult {
    /// Done.
    Success,
    /// Failed.
    Fail {
        /// Stored as `last_error`.
        reason: String,
        /// Whether to retry.
        retry: bool,
    },
    /// Somebody will call `complete` or `fail`, see [`Outcome::Pending`](crate::Outcome::Pending).
    Pending {
        /// How long to wait for that.
        deadline: Duration,
    },
}
