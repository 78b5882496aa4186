use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

/// What a function that may have to wait for somebody returns as its `Ok`.
///
/// With `Pending` the task waits (status 5) until [`TaskRetry::complete`] or [`TaskRetry::fail`] is
/// called with its id; when `deadline` has passed without either, that counts as a failed attempt.
///
/// [`TaskRetry::complete`]: crate::TaskRetry::complete
/// [`TaskRetry::fail`]: crate::TaskRetry::fail
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Outcome<T> {
    /// It is done.
    Done(T),
    /// Somebody will call back.
    Pending {
        /// How long to wait for that.
        deadline: Duration,
    },
}

/// What to do after an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Retry with the policy's delay.
    #[default]
    Retry,
    /// Retry after this time instead of the policy's delay; it counts as a retry.
    RetryAfter(Duration),
    /// Do not retry: the task has failed for good.
    Abort,
}

/// For errors that know what to do about them.
///
/// ```
/// use task_retry::{Classify, Verdict};
///
/// #[derive(Debug)]
/// struct HttpError(u16);
///
/// impl Classify for HttpError {
///     fn classify(&self) -> Verdict {
///         match self.0 {
///             429 => Verdict::RetryAfter(std::time::Duration::from_secs(60)),
///             400..=499 => Verdict::Abort,
///             _ => Verdict::Retry,
///         }
///     }
/// }
/// ```
pub trait Classify {
    /// What to do after this error.
    fn classify(&self) -> Verdict;
}

/// The return types that a `#[retryable]` function may have: `Result<T, E>`,
/// `Result<Outcome<T>, E>`, and none.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the return type of a `#[retryable]` function",
    label = "not a `Result<T, E>`",
    note = "return `Result<T, E>`, `Result<Outcome<T>, E>` or nothing",
    note = "`E` has to be `Display + Send + Sync + 'static`, so that it can be stored as `last_error`"
)]
pub trait Returned: Send + 'static {
    /// What a caller gets when the call succeeds.
    type Value: Send + 'static;
    /// What a caller gets when it fails.
    type Error: fmt::Display + Send + Sync + 'static;

    /// Both as a `Result`.
    fn into_result(self) -> Result<Self::Value, Self::Error>;
}

impl<T, E> Returned for Result<T, E>
where
    T: Send + 'static,
    E: fmt::Display + Send + Sync + 'static,
{
    type Value = T;
    type Error = E;

    fn into_result(self) -> Result<T, E> {
        self
    }
}

impl Returned for () {
    type Value = ();
    type Error = Infallible;

    fn into_result(self) -> Result<(), Infallible> {
        Ok(())
    }
}
