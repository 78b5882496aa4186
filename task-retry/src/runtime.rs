//! The runtime: what is started once in a process and runs its tasks.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use sea_orm::ConnectionTrait;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

mod attempts;
mod builder;
mod claim;
pub(crate) mod execute;
pub(crate) mod held;
mod jobs;
mod lease;
#[cfg(feature = "postgres")]
mod listen;
pub(crate) mod pauses;
pub(crate) mod pool;
mod results;
#[cfg(feature = "testing")]
mod step;
mod tasks;
pub(crate) mod waits;
pub(crate) mod write;

pub use self::attempts::Attempt;
pub use self::builder::{Builder, Functions};
use self::execute::Ready;
#[cfg(feature = "xxl-job")]
pub(crate) use self::execute::Told;
use self::held::Hold;
pub use self::jobs::RunReport;
#[cfg(feature = "xxl-job")]
pub(crate) use self::jobs::{Pass, remove_history};
pub use self::pauses::Sources;
pub use self::tasks::{Changed, Tasks};
use crate::call::{self, Insertion};
use crate::clock::{Clock, ceil_millis, to_datetime};
use crate::context::States;
use crate::registry::{Handler, Registry};
use crate::store::{Store, steadily};
use crate::trace::Trace;
use crate::transition::after;
use crate::{
    ContextCodec, Enqueued, Error, ErrorKind, Result, RetryPolicy, Status, Task, TaskId, Verdict,
};

/// A started runtime; cheap to clone.
///
/// The first one that is started becomes the default of the process, which plain calls use.
/// Call [`shutdown`](Self::shutdown) before the process ends; without it, tasks that run are picked
/// up by other processes when their leases have run out.
#[derive(Clone)]
pub struct TaskRetry(Arc<Owner>);

/// What the user's handles share; background loops do not, so that they end when the last is gone.
pub(crate) struct Owner {
    inner: Arc<Inner>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.inner.closing.cancel();
        self.inner.ended.cancel();
        self.inner.writer.give_up();
        self.inner.pool.dismiss();
        RUNTIMES.write().unwrap_or_else(PoisonError::into_inner).remove(&self.inner.number);
    }
}

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) registry: Registry,
    pub(crate) states: Arc<States>,
    /// What contexts go through on their way into the table and back.
    pub(crate) codec: Option<Arc<dyn ContextCodec>>,
    pub(crate) trace: Trace,
    #[cfg(feature = "testing")]
    pub(crate) plan: crate::testing::Plan,
    pub(crate) writer: write::Writer,
    pub(crate) pool: pool::Pool,
    pub(crate) held: held::Held,
    pub(crate) waits: waits::Waits,
    pub(crate) pauses: pauses::Pauses,
    /// How far each of the tables beside the tasks was looked through for orphans.
    pub(crate) swept: [AtomicI64; 2],
    /// Names this runtime within the process.
    pub(crate) number: u32,
    pub(crate) wake: claim::Wake,
    pub(crate) others: claim::Others,
    pub(crate) policy: RetryPolicy,
    pub(crate) lease: Duration,
    pub(crate) poll_interval: Duration,
    pub(crate) grace: Duration,
    pub(crate) task_limit: u32,
    pub(crate) queue_capacity: usize,
    pub(crate) max_crash: u32,
    pub(crate) data_kept: Option<Duration>,
    pub(crate) failed_kept: Option<Duration>,
    /// Functions are stored; otherwise they run bare.
    pub(crate) enabled: bool,
    /// Workers run here.
    pub(crate) job: bool,
    /// They look for due tasks by themselves; otherwise somebody else says when.
    pub(crate) polls: bool,
    pub(crate) write_behind: bool,
    /// An awaited call answers only when its end is committed.
    pub(crate) await_commit: bool,
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(crate) notify: bool,
    pub(crate) handle: Handle,
    /// Nothing new is accepted or claimed.
    pub(crate) closing: CancellationToken,
    /// Nothing is renewed or written any more.
    pub(crate) ended: CancellationToken,
    /// Until then, expired locks are left to their holders.
    pub(crate) take_over_from: AtomicI64,
    pub(crate) owner: OnceLock<Weak<Owner>>,
    /// Cancelled when xxl-job's executor has ended.
    #[cfg(feature = "xxl-job")]
    pub(crate) executor: OnceLock<CancellationToken>,
}

/// How long strategies may take to close what they hold.
const STRATEGIES: Duration = Duration::from_secs(5);

static DEFAULT: RwLock<Option<TaskRetry>> = RwLock::new(None);

/// The runtimes of this process by number, so that what names one can be copied.
static RUNTIMES: RwLock<BTreeMap<u32, Weak<Owner>>> = RwLock::new(BTreeMap::new());

fn next_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

tokio::task_local! {
    static CURRENT: TaskRetry;
}

impl TaskRetry {
    /// Starts to describe a runtime.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The runtime that code here uses: of the scope or of the attempt that runs, else the default of
    /// the process.
    ///
    /// # Errors
    /// `NotStarted` if there is none.
    pub fn current() -> Result<Self> {
        if let Ok(current) = CURRENT.try_with(Clone::clone) {
            return Ok(current);
        }
        let default = DEFAULT.read().unwrap_or_else(PoisonError::into_inner);
        default.clone().ok_or_else(|| {
            Error::new(
                ErrorKind::NotStarted,
                "no task-retry runtime was started in this process: call \
                 `TaskRetry::builder()….start().await` first, or name one with `.on(&retry)`",
            )
        })
    }

    /// Runs a future in which [`current`](Self::current), and so every plain call, is this runtime.
    /// Tasks that it spawns are outside.
    pub fn scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self.clone(), future)
    }

    /// Stores a task for the strategy or function of its source; a worker runs it, here straight
    /// away if one is free. The starter's `handlerTask`.
    ///
    /// # Errors
    /// `Registry` if nothing here has that source; `Context` if a value does not fit; `Store` if the
    /// database refuses; `Uncertain` if the connection died in the commit and the database cannot be
    /// asked; `Closed` while shutting down. Dropping the future leaves the task stored or not.
    pub async fn submit(&self, task: Task) -> Result<Enqueued> {
        let inner = self.open()?;
        let insertion = self.prepare(inner, task)?;
        call::enqueue(inner, Box::new(insertion)).await
    }

    /// Stores a task, as [`submit`](Self::submit) does, by a transaction of the caller's in the same
    /// database: it exists only if the transaction is committed. A poll finds it then, or
    /// [`kick`](Self::kick) at once.
    ///
    /// # Errors
    /// As for [`submit`](Self::submit); `Config` if the connection is to another kind of database.
    pub async fn submit_in<C: ConnectionTrait>(
        &self,
        transaction: &C,
        task: Task,
    ) -> Result<Enqueued> {
        let inner = self.open()?;
        let insertion = self.prepare(inner, task)?;
        call::enqueue_in(inner, transaction, insertion).await
    }

    pub(crate) fn prepare(&self, inner: &Inner, task: Task) -> Result<Insertion> {
        let Some(handler) = inner.registry.by_source(task.source) else {
            return Err(Error::new(
                ErrorKind::Registry,
                format!(
                    "no strategy or function here has the source {}: add `.strategy(…)` to the builder",
                    task.source
                ),
            ));
        };
        if let Err(error) = handler.check(task.context.as_deref()) {
            return Err(Error::new(ErrorKind::Context, error));
        }
        Insertion::new(inner, handler, &task.options, task.context, None)
    }

    /// Ends a task from outside as succeeded, whoever holds it: one that waits
    /// ([`Outcome::Pending`](crate::Outcome::Pending)), or is due, or runs. What its attempt writes
    /// later is void.
    ///
    /// # Errors
    /// `NotFound` if this project has no such task, `Conflict` if it has ended already, `Store`.
    pub async fn complete(&self, id: TaskId) -> Result<()> {
        let inner = self.open()?;
        let now = inner.clock.now();
        if steadily(|| inner.store.complete(id, now)).await? {
            inner.waits.ended(id);
            return Ok(());
        }
        Err(self.why_not(id).await?)
    }

    /// Ends an attempt from outside as failed, as [`complete`](Self::complete) does; the retry policy
    /// decides what follows. If that is the end, the function's `on_exhausted` is run here first, under
    /// a lease of this process.
    ///
    /// Dropping the future leaves the task failed or not.
    ///
    /// # Errors
    /// As for [`complete`](Self::complete).
    pub async fn fail(&self, id: TaskId, reason: impl Into<String>) -> Result<()> {
        let inner = self.open()?;
        let reason = reason.into();
        loop {
            let Some(task) = self.tasks().get(id).await? else { return Err(not_found(id)) };
            if task.status.is_final() {
                return Err(ended(id, task.status));
            }
            let policy = match inner.registry.by_source(task.source) {
                Some(handler) => inner.policy_of(handler, &task),
                None => inner.policy,
            };
            let ending =
                crate::registry::Ending::Failed { error: reason.clone(), verdict: Verdict::Retry };
            let now = inner.clock.now();
            let next = after(&ending, task.send_count, &policy, now, fastrand::f64());
            let store = &inner.store;
            if let Some(handler) = inner.registry.by_source(task.source)
                && next.to == Status::Failed
                && handler.has_hook()
            {
                if self.give_up(handler, task, &reason).await? {
                    return Ok(());
                }
                continue;
            }
            if steadily(|| store.fail(&task, next.to, next.next, &reason, now)).await? {
                match next.next {
                    Some(next) => inner.wake.due_at(next),
                    None => inner.waits.ended(id),
                }
                attempts::failed_from_outside(inner, &task, &next, now).await;
                return Ok(());
            }
            // Its fence has moved on: look again.
        }
    }

    /// Takes a task, runs its `on_exhausted`, and gives it up; `false` if somebody else changed it.
    async fn give_up(
        &self,
        handler: &Arc<dyn Handler>,
        mut task: crate::TaskLog,
        reason: &str,
    ) -> Result<bool> {
        let inner = &self.0.inner;
        let now = inner.clock.now();
        let until = now + ceil_millis(inner.lease);
        if !steadily(|| inner.store.seize(&task, until, now)).await? {
            return Ok(false);
        }
        task.fence += 1;
        let ready = Ready {
            hold: Hold::new(task.id.0, task.fence, until),
            task: Arc::new(task),
            handler: handler.clone(),
            args: None,
            tell: None,
            by_id: true,
            failed: Some(reason.to_owned()),
        };
        // In a task of its own: a caller that goes away does not leave it half done.
        let ended = inner.handle.spawn(claim::give_up(inner.clone(), ready)).await;
        ended.map_err(|_| write::closed())
    }

    async fn why_not(&self, id: TaskId) -> Result<Error> {
        Ok(match self.tasks().get(id).await? {
            Some(task) => ended(id, task.status),
            None => not_found(id),
        })
    }

    /// Tells the workers to look for due tasks now, for instance after the commit of a transaction
    /// that enqueued some.
    pub fn kick(&self) {
        self.0.inner.wake.kick();
        self.0.inner.others.look();
    }

    /// The tasks of the project: to list, count, retry, cancel, edit and delete.
    pub fn tasks(&self) -> Tasks<'_> {
        Tasks::new(self)
    }

    /// The time by which tasks are due: the database's, or a test's.
    pub fn now(&self) -> DateTime<Utc> {
        to_datetime(self.0.inner.clock.now())
    }

    /// The id of this start of the process, as `locked_by` holds it.
    pub fn worker_id(&self) -> &str {
        &self.0.inner.store.worker
    }

    /// Stops: accepts and claims nothing more, lets running attempts end for `shutdown-grace`, then
    /// stops them and puts them back, due at once and with nothing counted. Returns when everything
    /// is written. Calling it again does no harm.
    ///
    /// # Errors
    /// None today; what could not be written is logged, and runs again elsewhere.
    pub async fn shutdown(&self) -> Result<()> {
        let inner = &self.0.inner;
        inner.closing.cancel();
        self.resign();
        if !inner.enabled {
            self.close_strategies().await;
            return Ok(());
        }
        inner.writer.close();
        let waiting = inner.pool.close();
        execute::hand_back(inner, waiting).await;
        if !self.idle(inner.grace, |_| {}).await {
            let tasks = inner.held.all().len();
            info!(tasks, "the grace is over: what still runs is stopped and put back");
            // Also what is stored, and so started, only now.
            let stop = |inner: &Inner| {
                inner.held.all().iter().for_each(|hold| hold.stop(held::Stop::Shutdown));
            };
            if !self.idle(Duration::from_secs(2), stop).await {
                let tasks = inner.held.all().len();
                info!(tasks, "what cannot be stopped keeps its lease");
            }
        }
        inner.writer.drain(Duration::from_secs(5)).await;
        failpoint!("hand-back.after");
        #[cfg(feature = "xxl-job")]
        if let Some(executor) = inner.executor.get() {
            executor.cancelled().await;
        }
        inner.ended.cancel();
        self.close_strategies().await;
        Ok(())
    }

    async fn close_strategies(&self) {
        let closing = self.0.inner.registry.shutdown();
        if tokio::time::timeout(STRATEGIES, closing).await.is_err() {
            info!(
                "strategies that take longer than {STRATEGIES:?} to close are left to themselves"
            );
        }
    }

    /// Waits until nothing is held any more and nothing is being stored, at most this long.
    async fn idle(&self, most: Duration, meanwhile: impl Fn(&Inner)) -> bool {
        let inner = &self.0.inner;
        let until = Instant::now() + most;
        let mut pause = Duration::from_millis(1);
        loop {
            meanwhile(inner);
            // In this order: what has been stored is held.
            if inner.writer.is_idle() && inner.held.is_empty() && inner.pool.running() == 0 {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// No longer the default of the process.
    fn resign(&self) {
        let mut default = DEFAULT.write().unwrap_or_else(PoisonError::into_inner);
        if default.as_ref().is_some_and(|default| Arc::ptr_eq(&default.0, &self.0)) {
            *default = None;
        }
    }

    /// Whether both are handles of one runtime.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0.inner
    }

    fn enlist(&self) {
        let mut runtimes = RUNTIMES.write().unwrap_or_else(PoisonError::into_inner);
        runtimes.insert(self.0.inner.number, Arc::downgrade(&self.0));
    }

    /// The runtime of this number, if it is still there.
    pub(crate) fn by_number(number: u32) -> Option<Self> {
        let runtimes = RUNTIMES.read().unwrap_or_else(PoisonError::into_inner);
        runtimes.get(&number)?.upgrade().map(Self)
    }

    /// The inside, if anything may still be stored.
    pub(crate) fn open(&self) -> Result<&Arc<Inner>> {
        let inner = &self.0.inner;
        if !inner.enabled {
            return Err(Error::new(
                ErrorKind::Config,
                "task-retry is switched off (`enable: false`): nothing is stored, and only awaited calls \
                 run",
            ));
        }
        if inner.closing.is_cancelled() {
            return Err(write::closed());
        }
        Ok(inner)
    }

    pub(crate) fn from_weak(owner: &OnceLock<Weak<Owner>>) -> Option<Self> {
        owner.get()?.upgrade().map(Self)
    }
}

impl std::fmt::Debug for TaskRetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskRetry")
            .field("project", &self.0.inner.store.project)
            .field("worker_id", &self.0.inner.store.worker)
            .finish_non_exhaustive()
    }
}

fn not_found(id: TaskId) -> Error {
    Error::new(ErrorKind::NotFound, format!("this project has no task {id}"))
}

fn ended(id: TaskId, status: Status) -> Error {
    Error::new(ErrorKind::Conflict, format!("task {id} has ended already: its status is {status}"))
}

/// Starts a loop that no panic ends.
fn supervised<F, Fut>(inner: &Arc<Inner>, name: &'static str, run: F)
where
    F: Fn(Arc<Inner>) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let inner = inner.clone();
    inner.handle.clone().spawn(async move {
        while AssertUnwindSafe(run(inner.clone())).catch_unwind().await.is_err() {
            error!(name, "a loop of the runtime panicked; it starts again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
}
