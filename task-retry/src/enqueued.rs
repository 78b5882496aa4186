//! Tasks that were stored: what a caller is given to know them by, and to wait for them.

use std::any::{Any, TypeId};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;

use crate::call::Cause;
use crate::registry::{ErrorOf, ValueOf};
use crate::runtime::Inner;
use crate::runtime::waits::{self, How};
use crate::store::Stand;
use crate::{CallError, CauseKind, Error, ErrorKind, Result, Retryable, Status, TaskId, TaskRetry};

/// A task that was stored: small, to be copied and kept.
///
/// [`Call::enqueue`](crate::Call::enqueue) gives one that knows its function `R`, so that
/// [`wait`](Self::wait) gives its value; of [`TaskRetry::submit`] comes one that does not, and that
/// only tells how the task [ended](Self::ended).
///
/// ```standalone_crate
/// # use task_retry::{Status, TaskRetry, retryable};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// /// Makes a report, and keeps where it is.
/// #[retryable(source = 30, store_result)]
/// async fn report(month: u32) -> Result<String, String> {
///     Ok(format!("reports/{month}.pdf"))
/// }
///
/// # let retry = TaskRetry::builder().project("docs").database("sqlite::memory:").start().await?;
/// let enqueued = report(7).key("2026-07").enqueue().await?;
/// assert_eq!(enqueued.wait().await?, "reports/7.pdf");
/// assert_eq!(enqueued.ended().await?, Status::Succeeded);
///
/// // The key is taken by a task that has succeeded: nothing runs, and its value is given.
/// assert_eq!(report(7).key("2026-07").await?, "reports/7.pdf");
/// # retry.shutdown().await?;
/// # Ok(())
/// # }
/// ```
pub struct Enqueued<R = ()> {
    id: TaskId,
    is_new: bool,
    /// The number of its runtime.
    runtime: u32,
    function: PhantomData<fn() -> R>,
}

impl Enqueued {
    pub(crate) fn new(inner: &Inner, id: TaskId, is_new: bool) -> Self {
        Self { id, is_new, runtime: inner.number, function: PhantomData }
    }

    pub(crate) fn typed<R>(self) -> Enqueued<R> {
        let Self { id, is_new, runtime, .. } = self;
        Enqueued { id, is_new, runtime, function: PhantomData }
    }
}

impl<R> Enqueued<R> {
    /// The task's id; for a key that was taken, the id of the task that has it.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Whether this call stored it. `false`: a task with this key was there, and nothing was stored.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The same without its function.
    pub fn untyped(self) -> Enqueued {
        let Self { id, is_new, runtime, .. } = self;
        Enqueued { id, is_new, runtime, function: PhantomData }
    }

    /// The runtime to wait with, instead of the one that stored it: one of the same project and table.
    #[must_use]
    pub fn on(mut self, retry: &TaskRetry) -> Self {
        self.runtime = retry.inner().number;
        self
    }

    /// Waits until the task has ended, in whatever process, and tells how: `Succeeded`, `Failed` or
    /// `Cancelled`. It works for every function and strategy, and gives no value.
    ///
    /// It waits as [`wait`](Enqueued::wait) does.
    ///
    /// # Errors
    /// `NotFound` if there is no such task: it was purged, its history was removed, or the
    /// transaction that stores it is not committed. `Closed` if the runtime ends.
    pub async fn ended(self) -> Result<Status> {
        match waits::wait(&self.inner()?, self.id, How::End).await? {
            Some(stand) => Ok(stand.status),
            None => Err(gone(self.id)),
        }
    }

    /// Not the handle itself: who waits does not keep a runtime alive.
    fn inner(&self) -> Result<Arc<Inner>> {
        let retry = TaskRetry::by_number(self.runtime).ok_or_else(crate::runtime::write::closed)?;
        retry.open().cloned()
    }
}

impl<R: Retryable> Enqueued<R> {
    /// Waits until the task has ended, in whatever process, and gives the value that it returned. The
    /// function needs `store_result` for that, unless it returns `()`.
    ///
    /// An end in this process wakes it at once, and so does one elsewhere on PostgreSQL; on other
    /// databases the task is looked for, with pauses that grow from 5 ms to the poll interval. There
    /// is no limit of time: put `tokio::time::timeout` around it. While the database is away it goes
    /// on trying. Dropping the future ends the waiting, and changes nothing else; the value can be
    /// asked for any number of times, as long as the task is kept.
    ///
    /// A worker's attempt that waits for other tasks keeps its place meanwhile: when every place waits
    /// for tasks that wait for a place, none goes on. Await such calls instead of enqueueing them.
    ///
    /// # Errors
    /// - [`Failed`](CallError::Failed) if it was given up; the cause is its `last_error`, as text, and
    ///   of the kind `Error`.
    /// - [`Superseded`](CallError::Superseded) if it was cancelled.
    /// - [`NoValue`](CallError::NoValue) if there is no value to give: without `store_result`
    ///   (`Config`); if it succeeded and left none that fits, since it was completed from outside or
    ///   ran in a version that stored none or another (`Context`); if there is no such task: it was
    ///   purged, its history was removed, or the transaction that stores it is not committed
    ///   (`NotFound`); if the runtime ends (`Closed`).
    pub async fn wait(self) -> Result<ValueOf<R>, CallError<ErrorOf<R>>> {
        let no_value = |error| CallError::NoValue { id: self.id, error };
        let inner = self.inner().map_err(no_value)?;
        let spec = R::spec();
        if spec.keep.is_none() && unit::<ValueOf<R>>().is_none() {
            let what = format!(
                "`{}` does not keep what it returns: add `store_result` to its `#[retryable(…)]`, or \
                 ask only how it `ended`",
                spec.name()
            );
            return Err(no_value(Error::new(ErrorKind::Config, what)));
        }
        match waits::wait(&inner, self.id, How::Value).await.map_err(no_value)? {
            Some(stand) => value::<R>(&inner, self.id, stand),
            None => Err(no_value(gone(self.id))),
        }
    }
}

impl TaskRetry {
    /// A task of a function by its id, to [wait](Enqueued::wait) for, for instance in another process
    /// than the one that stored it. It is not looked for before that.
    pub fn task<R: Retryable>(&self, id: TaskId) -> Enqueued<R> {
        Enqueued::new(self.inner(), id, false).typed()
    }
}

/// What the end of a task gives to those who waited for it.
fn value<R: Retryable>(
    inner: &Inner,
    id: TaskId,
    stand: Stand,
) -> Result<ValueOf<R>, CallError<ErrorOf<R>>> {
    match stand.status {
        Status::Succeeded => {}
        Status::Failed => {
            let cause = Cause::told(CauseKind::Error, stand.error.unwrap_or_default());
            return Err(CallError::Failed { id, cause });
        }
        _ => return Err(CallError::Superseded { id }),
    }
    let no_value = |what: String| {
        let error = Error::new(ErrorKind::Context, format!("it succeeded, but {what}"));
        CallError::NoValue { id, error }
    };
    let spec = R::spec();
    let (Some(keep), Some(stored)) = (&spec.keep, stand.result) else {
        return unit().ok_or_else(|| {
            no_value(
                "left no value: it was completed from outside, or by a version without `store_result`"
                    .into(),
            )
        });
    };
    let text = inner.unseal_result(spec.source(), &stored).map_err(no_value)?;
    (keep.decode)(&text)
        .map_err(|error| no_value(format!("its value does not fit what is returned now: {error}")))
}

/// The value of a function whose task has succeeded already; `None` if there is none to give.
pub(crate) async fn value_of_earlier<R: Retryable>(
    inner: &Arc<Inner>,
    id: TaskId,
) -> Option<ValueOf<R>> {
    R::spec().keep.as_ref()?;
    let stand = match waits::wait(inner, id, How::Now).await {
        Ok(stand) => stand?,
        Err(error) => {
            tracing::warn!(task.id = id.0, %error, "the value of an earlier task cannot be read");
            return None;
        }
    };
    if stand.status != Status::Succeeded {
        return None;
    }
    match value::<R>(inner, id, stand) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!(task.id = id.0, %error, "an earlier task has no value to give");
            None
        }
    }
}

/// The one value of a type that has only one, which need not be stored.
fn unit<T: 'static>() -> Option<T> {
    if TypeId::of::<T>() != TypeId::of::<()>() {
        return None;
    }
    let unit: Box<dyn Any> = Box::new(());
    unit.downcast().ok().map(|unit| *unit)
}

fn gone(id: TaskId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("this project has no task {id}, or no longer: its history may have been removed"),
    )
}

impl<R> Clone for Enqueued<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Enqueued<R> {}

impl<R, S> PartialEq<Enqueued<S>> for Enqueued<R> {
    fn eq(&self, other: &Enqueued<S>) -> bool {
        (self.id, self.is_new) == (other.id, other.is_new)
    }
}

impl<R> Eq for Enqueued<R> {}

impl<R> Hash for Enqueued<R> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.id, self.is_new).hash(state);
    }
}

impl<R: Retryable> From<Enqueued<R>> for Enqueued {
    fn from(enqueued: Enqueued<R>) -> Self {
        enqueued.untyped()
    }
}

impl<R> fmt::Debug for Enqueued<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enqueued")
            .field("id", &self.id)
            .field("is_new", &self.is_new)
            .finish_non_exhaustive()
    }
}
