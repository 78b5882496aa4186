use super::TaskRetry;
use crate::store::{Change, Filter, steadily};
use crate::{Error, ErrorKind, Result, TaskId, TaskLog};

/// Rows changed by one statement.
const ROWS: u64 = 500;

/// The administration of a project's tasks, see [`TaskRetry::tasks`].
///
/// Every change adds 1 to the task's fence, so that a late write of an attempt is void. Changes go in
/// batches of 500 rows, each of them one statement: dropping the future stops between two.
#[derive(Clone, Copy, Debug)]
pub struct Tasks<'a>(pub(super) &'a TaskRetry);

/// What a change did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changed {
    /// Rows that were changed.
    pub changed: u64,
    /// Tasks that were left alone, since a process runs them under a live lease.
    pub leased: Vec<TaskId>,
}

impl<'a> Tasks<'a> {
    pub(super) fn new(retry: &'a TaskRetry) -> Self {
        Self(retry)
    }

    /// One task, if this project has it.
    ///
    /// # Errors
    /// `Store` if the database refuses.
    pub async fn get(&self, id: TaskId) -> Result<Option<TaskLog>> {
        Ok(self.list(Filter::ids([id])).await?.pop())
    }

    /// Tasks by id, the smallest first: 1,000 unless the filter has a limit, never more than 100,000.
    /// For the next page, [`Filter::after`] the last id.
    ///
    /// Contexts are decoded where this runtime's codec can, and as they are stored where it cannot.
    ///
    /// # Errors
    /// `Store` if the database refuses.
    pub async fn list(&self, filter: Filter) -> Result<Vec<TaskLog>> {
        let inner = self.0.inner();
        let now = inner.clock.now();
        let tasks = steadily(|| inner.store.list(&filter, now)).await?;
        Ok(tasks.into_iter().map(|task| inner.shown(task)).collect())
    }

    /// How many tasks a filter matches; its limit is not used.
    ///
    /// # Errors
    /// `Store` if the database refuses.
    pub async fn count(&self, filter: Filter) -> Result<u64> {
        let inner = self.0.inner();
        let now = inner.clock.now();
        Ok(steadily(|| inner.store.count(&filter, now)).await?)
    }

    /// Makes tasks due now with their counters reset: failed, cancelled and retrying ones, and rows
    /// that the starter stranded (see [`Filter::stranded`]). Other tasks that match are not touched.
    ///
    /// # Errors
    /// `Closed` while shutting down, `Store` if the database refuses: batches before that are changed.
    pub async fn retry_now(&self, filter: Filter) -> Result<Changed> {
        let changed = self.change(Change::RetryNow, filter).await?;
        self.0.kick();
        Ok(changed)
    }

    /// Cancels tasks that have not ended, also such as run: their attempts are stopped within a third
    /// of a lease, and may have taken effect. A cancelled task's unique key is free again.
    ///
    /// # Errors
    /// As for [`retry_now`](Self::retry_now).
    pub async fn cancel(&self, filter: Filter) -> Result<Changed> {
        self.change(Change::Cancel, filter).await
    }

    /// Deletes tasks, in whatever status, except those under a live lease, with their results and
    /// attempts.
    ///
    /// # Errors
    /// As for [`retry_now`](Self::retry_now).
    pub async fn purge(&self, filter: Filter) -> Result<Changed> {
        self.change(Change::Purge, filter).await
    }

    /// Replaces the context of a task that nobody holds, checked against its function's arguments.
    ///
    /// # Errors
    /// `Context` if the function could not be called with it, `NotFound`, `Conflict` if a process
    /// holds the task, `Registry` if nothing here has its source, `Store`.
    pub async fn edit_context(&self, id: TaskId, context: impl Into<String>) -> Result<()> {
        let inner = self.0.open()?;
        let context = context.into();
        let Some(task) = self.get(id).await? else { return Err(super::not_found(id)) };
        let Some(handler) = inner.registry.by_source(task.source) else {
            let what = format!("nothing here has the source {} of task {id}", task.source);
            return Err(Error::new(ErrorKind::Registry, what));
        };
        handler.check(Some(&context)).map_err(|error| Error::new(ErrorKind::Context, error))?;
        let context = inner.seal(task.source, Some(context))?.unwrap_or_default();
        inner.store.row(id.0, task.source, &Default::default(), Some(context.clone()))?;
        let now = inner.clock.now();
        if steadily(|| inner.store.edit_context(id, &context, now)).await? {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!("task {id} is held by a process: its context cannot be edited now"),
        ))
    }

    async fn change(&self, change: Change, filter: Filter) -> Result<Changed> {
        let inner = self.0.open()?;
        let mut changed = Changed::default();
        let mut after = None;
        let mut left = filter.most();
        while left > 0 {
            let most = left.min(ROWS);
            let now = inner.clock.now();
            let store = &inner.store;
            let page = steadily(|| store.change(change, &filter, after, most, now)).await?;
            changed.changed += page.changed;
            changed.leased.extend(page.leased);
            left -= page.seen.min(left);
            after = page.last;
            if page.seen < most {
                break;
            }
        }
        if changed.changed > 0 && change != Change::RetryNow {
            inner.waits.some_ended();
        }
        Ok(changed)
    }
}
