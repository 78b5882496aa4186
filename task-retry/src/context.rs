use std::any::{Any, TypeId, type_name};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sea_orm::ConnectionTrait;
use serde::Serialize;

use crate::runtime::Inner;
use crate::runtime::held::{Hold, Stop};
use crate::{Error, ErrorKind, Result, TaskId, TaskLog, TaskRetry};

/// What an attempt knows of its task; a parameter `#[context] ctx: &TaskContext` receives it.
#[derive(Clone)]
pub struct TaskContext {
    task: Arc<TaskLog>,
    runtime: Option<Attached>,
}

/// How the attempt is tied to the runtime; absent in `TaskContext::detached`.
#[derive(Clone)]
struct Attached {
    runtime: TaskRetry,
    hold: Arc<Hold>,
}

impl TaskContext {
    pub(crate) fn attached(task: Arc<TaskLog>, runtime: TaskRetry, hold: Arc<Hold>) -> Self {
        Self { task, runtime: Some(Attached { runtime, hold }) }
    }

    /// A context without a runtime, for calling `direct` in unit tests.
    pub fn detached(task: TaskLog) -> Self {
        Self { task: Arc::new(task), runtime: None }
    }

    /// The id of the task.
    pub fn id(&self) -> TaskId {
        self.task.id
    }

    /// The number of this attempt; 1 is the first.
    pub fn attempt(&self) -> u32 {
        self.task.attempt()
    }

    /// The row, as it was when this attempt was claimed.
    pub fn task(&self) -> &TaskLog {
        &self.task
    }

    /// Whether this attempt still holds its task: its lease runs by this process's monotonic clock,
    /// and it has not heard of another holder or of an end from outside.
    ///
    /// While it is `true`, no other attempt of the task has started. Ask before an effect that must
    /// not happen beside a later attempt: a process that was stopped for longer than its lease finds
    /// `false` here. [`task().fence`](TaskLog::fence) is for receivers that can check it themselves.
    /// A context that no lease stands behind, as with `enable: false`, says `true`.
    pub fn holds(&self) -> bool {
        self.runtime.as_ref().is_none_or(|Attached { runtime, hold }| {
            hold.why_stopped() != Some(Stop::Lost) && hold.is_valid(runtime.inner().clock.latest())
        })
    }

    #[cfg(feature = "testing")]
    pub(crate) fn runtime(&self) -> Option<&TaskRetry> {
        self.runtime.as_ref().map(|attached| &attached.runtime)
    }

    /// Marks the task as succeeded inside a transaction of the caller's, in the same database: what
    /// the transaction writes and the task's success are committed together or not at all.
    ///
    /// After the commit, return `Ok`. If the transaction was rolled back, the attempt counts as
    /// failed, also when it returns `Ok`.
    ///
    /// # Errors
    /// `Conflict` if this attempt no longer holds its task (its lease was lost, or the task was
    /// cancelled or completed elsewhere), or if the function has `store_result` and so needs
    /// [`complete_in_with`](Self::complete_in_with): roll the transaction back. `Store` if the
    /// database refused.
    pub async fn complete_in<C: ConnectionTrait>(&self, transaction: &C) -> Result<()> {
        let stores = |attached: &Attached| {
            let handler = attached.runtime.inner().registry.by_source(self.task.source);
            handler.is_some_and(|handler| handler.meta().store_result)
        };
        if self.runtime.as_ref().is_some_and(stores) {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the function keeps what it returns (`store_result`), and a success cannot be written \
                 without its value: use `complete_in_with(&transaction, &value)`",
            ));
        }
        self.complete(transaction, None).await
    }

    /// As [`complete_in`](Self::complete_in), for functions with `store_result`: the value is
    /// committed with the success. After the commit, return `Ok` with this value.
    ///
    /// # Errors
    /// As there; `Context` if the value cannot be stored.
    pub async fn complete_in_with<C: ConnectionTrait, T: Serialize>(
        &self,
        transaction: &C,
        value: &T,
    ) -> Result<()> {
        let text = serde_json::to_string(value).map_err(|error| {
            Error::new(ErrorKind::Context, "the value cannot be stored as JSON").with_source(error)
        })?;
        self.complete(transaction, Some(text)).await
    }

    async fn complete<C: ConnectionTrait>(
        &self,
        transaction: &C,
        value: Option<String>,
    ) -> Result<()> {
        let Some(attached) = &self.runtime else {
            return Err(Error::new(
                ErrorKind::NotStarted,
                "this context was made by `TaskContext::detached`: it has no runtime to complete in",
            ));
        };
        let inner: &Inner = attached.runtime.inner();
        let task = &self.task;
        let value = inner
            .storable(task.source, value)
            .map_err(|error| Error::new(ErrorKind::Context, error))?;
        // Set before the statement: once it is sent, the transaction may be committed.
        attached.hold.completed.store(true, Ordering::SeqCst);
        if inner.store.complete_in(transaction, task.id, task.fence, inner.clock.now()).await? {
            // Of the fence that the task has now.
            let result = value.as_deref().map(|value| (task.id.0, task.fence + 1, value));
            Ok(inner.store.keep_results(transaction, result.into_iter()).await?)
        } else {
            Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "task {} is no longer held by this attempt, so its success cannot be written: \
                     roll the transaction back",
                    task.id
                ),
            ))
        }
    }
}

impl std::fmt::Debug for TaskContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskContext").field("task", &self.task).finish_non_exhaustive()
    }
}

/// The values that the builder's `state` was given, by type.
#[derive(Default)]
pub(crate) struct States(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl States {
    pub(crate) fn insert<T: Send + Sync + 'static>(&mut self, state: T) {
        self.0.insert(TypeId::of::<T>(), Arc::new(state));
    }

    pub(crate) fn insert_shared<T: Send + Sync + 'static>(&mut self, state: Arc<T>) {
        self.0.insert(TypeId::of::<T>(), state);
    }

    pub(crate) fn has(&self, id: TypeId) -> bool {
        self.0.contains_key(&id)
    }
}

/// A type of state that a function needs.
#[derive(Clone, Copy)]
pub(crate) struct Need {
    pub(crate) id: TypeId,
    pub(crate) name: &'static str,
}

impl Need {
    pub(crate) fn of<T: 'static>() -> Self {
        Self { id: TypeId::of::<T>(), name: type_name::<T>() }
    }
}

/// What an expansion takes its `#[state]` and `#[context]` parameters from.
pub struct Env {
    pub(crate) context: TaskContext,
    pub(crate) states: Arc<States>,
}

impl Env {
    /// The context of the attempt.
    pub fn context(&self) -> &TaskContext {
        &self.context
    }

    /// A state by reference. `start()` has checked that it is there.
    pub fn state<T: Send + Sync + 'static>(&self) -> &T {
        let state = self.states.0.get(&TypeId::of::<T>());
        state.and_then(|state| state.downcast_ref()).expect("checked when the runtime started")
    }

    /// Never, without the feature `testing`.
    #[cfg(not(feature = "testing"))]
    pub(crate) fn planned_failure<E>(&self) -> Option<Result<E, String>> {
        None
    }

    /// A state by `Arc`.
    pub fn shared<T: Send + Sync + 'static>(&self) -> Arc<T> {
        let state = self.states.0.get(&TypeId::of::<T>()).cloned();
        state.and_then(|state| state.downcast().ok()).expect("checked when the runtime started")
    }
}
