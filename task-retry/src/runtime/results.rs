//! The values of functions with `store_result`, on their way into the table.

use super::{Inner, TaskRetry};
use crate::registry::{ValueOf, too_large};
use crate::store::steadily;
use crate::{Error, ErrorKind, Result, Retryable, TaskId};

impl Inner {
    /// A value as it is stored, or why the table cannot hold it.
    pub(crate) fn storable(
        &self,
        source: i32,
        result: Option<String>,
    ) -> Result<Option<String>, String> {
        let Some(result) = self
            .seal_result(source, result)
            .map_err(|error| format!("the result cannot be stored: {error}"))?
        else {
            return Ok(None);
        };
        let most = self.store.layout.result;
        if result.len() > most { Err(too_large(result.len(), most)) } else { Ok(Some(result)) }
    }
}

impl TaskRetry {
    /// Ends a task from outside as succeeded with the value that its function would have returned:
    /// [`complete`](Self::complete) for functions with `store_result`, those that return
    /// [`Outcome::Pending`](crate::Outcome::Pending) above all.
    ///
    /// ```standalone_crate
    /// # use std::time::Duration;
    /// # use task_retry::{Outcome, TaskRetry, retryable};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// /// Asks a bank, which will call back.
    /// #[retryable(source = 31, store_result)]
    /// async fn credit(customer: u64) -> Result<Outcome<u32>, String> {
    ///     Ok(Outcome::Pending { deadline: Duration::from_secs(3600) })
    /// }
    ///
    /// # let retry = TaskRetry::builder().project("docs").database("sqlite::memory:").start().await?;
    /// let asked = credit(7).enqueue().await?;
    /// retry.complete_with::<credit>(asked.id(), Outcome::Done(5_000)).await?; // it calls back
    /// assert_eq!(asked.wait().await?, Outcome::Done(5_000));
    /// # retry.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`complete`](Self::complete); `Config` if the function has no `store_result`, `Context`
    /// if the value cannot be stored.
    pub async fn complete_with<R: Retryable>(&self, id: TaskId, value: ValueOf<R>) -> Result<()> {
        let inner = self.open()?;
        let spec = R::spec();
        let Some(keep) = &spec.keep else {
            let what = format!("`{}` has no `store_result`: use `complete`", spec.name());
            return Err(Error::new(ErrorKind::Config, what));
        };
        let text = (keep.encode)(&value)
            .and_then(|text| inner.storable(spec.source(), Some(text)))
            .map_err(|error| Error::new(ErrorKind::Context, error))?
            .unwrap_or_default();
        // Not held while the database is asked: values need not be `Sync`.
        drop(value);
        let (source, now) = (spec.source(), inner.clock.now());
        if steadily(|| inner.store.complete_with(id, source, &text, now)).await? {
            inner.waits.ended(id);
            return Ok(());
        }
        match self.tasks().get(id).await? {
            Some(task) if task.source != source => Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "task {id} has the source {}, and is none of `{}`",
                    task.source,
                    spec.name()
                ),
            )),
            _ => Err(self.why_not(id).await?),
        }
    }
}
