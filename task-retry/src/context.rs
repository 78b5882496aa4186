use std::any::{Any, TypeId, type_name};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sea_orm::ConnectionTrait;

use crate::runtime::Inner;
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
    completed: Arc<AtomicBool>,
}

impl TaskContext {
    pub(crate) fn attached(
        task: Arc<TaskLog>,
        runtime: TaskRetry,
        completed: Arc<AtomicBool>,
    ) -> Self {
        Self { task, runtime: Some(Attached { runtime, completed }) }
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

    /// Marks the task as succeeded inside a transaction of the caller's, in the same database: what
    /// the transaction writes and the task's success are committed together or not at all.
    ///
    /// After the commit, return `Ok`. If the transaction was rolled back, the attempt counts as
    /// failed, also when it returns `Ok`.
    ///
    /// # Errors
    /// `Conflict` if this attempt no longer holds its task (its lease was lost, or the task was
    /// cancelled or completed elsewhere): roll the transaction back. `Store` if the database refused.
    pub async fn complete_in<C: ConnectionTrait>(&self, transaction: &C) -> Result<()> {
        let Some(attached) = &self.runtime else {
            return Err(Error::new(
                ErrorKind::NotStarted,
                "this context was made by `TaskContext::detached`: it has no runtime to complete in",
            ));
        };
        let inner: &Inner = attached.runtime.inner();
        let task = &self.task;
        // Set before the statement: once it is sent, the transaction may be committed.
        attached.completed.store(true, Ordering::SeqCst);
        if inner.store.complete_in(transaction, task.id, task.fence, inner.clock.now()).await? {
            Ok(())
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

    /// A state by `Arc`.
    pub fn shared<T: Send + Sync + 'static>(&self) -> Arc<T> {
        let state = self.states.0.get(&TypeId::of::<T>()).cloned();
        state.and_then(|state| state.downcast().ok()).expect("checked when the runtime started")
    }
}
