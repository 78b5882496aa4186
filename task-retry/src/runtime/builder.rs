use std::any::TypeId;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, OnceLock, PoisonError};

use sea_orm::{DatabaseConnection, DbBackend};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::pool::{Limits, Pool};
use super::{
    DEFAULT, Inner, Owner, TaskRetry, claim, jobs, lease, pauses, supervised, waits, write,
};
use crate::clock::{Clock, ManualClock, UNSURE};
use crate::config::Overlay;
use crate::context::States;
use crate::registry::{Gather, Retryable};
use crate::store::{Layout, Store, connect};
use crate::trace::Trace;
#[cfg(feature = "xxl-job")]
use crate::xxl_job;
use crate::{
    Config, ContextCodec, Error, ErrorKind, Policy, Propagator, Result, Strategy, ThreadPoolParam,
};

/// Describes a runtime; [`start`](Self::start) starts it.
///
/// Settings come in layers, later ones win: defaults, the configuration, the environment
/// (`TASK_RETRY__…`), these methods.
#[derive(Default)]
#[must_use = "nothing happens before `start`"]
pub struct Builder {
    project: Option<String>,
    database: Option<Source>,
    config: Option<Result<Config>>,
    overlay: Overlay,
    mistakes: Vec<String>,
    states: States,
    codec: Option<Arc<dyn ContextCodec>>,
    trace: Trace,
    gather: Gather,
    clock: Option<ManualClock>,
    no_migration: bool,
    detached: bool,
    optimistic: bool,
    silent: bool,
    settle_at_once: bool,
    answer_early: bool,
    no_env: bool,
    #[cfg(feature = "xxl-job")]
    xxl_job: Option<crate::xxl_job::XxlJobConfig>,
}

enum Source {
    Url(String),
    Connection(DatabaseConnection),
}

/// Tuples of functions, for [`Builder::only`].
pub trait Functions {
    #[doc(hidden)]
    fn ids() -> Vec<TypeId>;
}

macro_rules! functions {
    ($($name:ident)*) => {
        impl<$($name: Retryable),*> Functions for ($($name,)*) {
            fn ids() -> Vec<TypeId> {
                vec![$(TypeId::of::<$name>()),*]
            }
        }
    };
}

functions!();
functions!(A);
functions!(A B);
functions!(A B C);
functions!(A B C D);
functions!(A B C D E);
functions!(A B C D E F);
functions!(A B C D E F G);
functions!(A B C D E F G H);

macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        impl Builder {
            $($(#[$doc])* pub fn $name(mut self, $name: $type) -> Self {
                self.overlay.$name = Some($name);
                self
            })*
        }
    };
}

settings! {
    /// `false`: functions run bare, nothing is stored, `enqueue` refuses.
    enable: bool,
    /// `false`: no workers here; somebody else runs the retries.
    job: bool,
    /// Rows per claim and source at the least; more when more places are free. Default 50.
    task_limit: u32,
    /// Retries after the first attempt. Default 4.
    task_max_retry: u32,
    /// Delay of the first retry, in seconds. Default 5.
    first_execute_second: u64,
    /// Base of the later retries' delays, in seconds. Default 10.
    delay_base_second: u64,
    /// Factor of the later retries' delays. Default 10.
    delay_multiplier: f64,
    /// How long successes are kept, in days; 0: for ever. Default 7.
    data_kept_day: u32,
    /// How long failed and cancelled tasks are kept, in days; 0: for ever. Default 0.
    failed_kept_day: u32,
    /// The longest delay, in seconds. Default 86,400.
    max_delay_second: u64,
    /// Spread of delays, 0.0 to 1.0. Default 0.
    jitter: f64,
    /// How long a process may be silent before its tasks are taken over, in seconds, at least 5.
    /// Default 30.
    lease_second: u64,
    /// Time between two looks for due tasks, in milliseconds. Default 1,000.
    poll_interval_ms: u64,
    /// How many processes a task may kill before it is given up. Default 3.
    max_crash: u32,
    /// How long `shutdown` lets running attempts end, in seconds. Default 30.
    shutdown_grace_second: u64,
}

impl Builder {
    /// The project: tasks of other projects in the same table are never touched. Required; at most
    /// 100 characters.
    pub fn project(mut self, project: impl Into<String>) -> Self {
        self.project = Some(project.into());
        self
    }

    /// The database by URL: `sqlite://…`, `postgres://…` or `mysql://…` (for MariaDB too).
    pub fn database(mut self, url: impl Into<String>) -> Self {
        self.database = Some(Source::Url(url.into()));
        self
    }

    /// The database by a connection of the program's own.
    pub fn connection(mut self, connection: DatabaseConnection) -> Self {
        self.database = Some(Source::Connection(connection));
        self
    }

    /// The configuration below the environment and below this builder's methods.
    pub fn config(mut self, config: Config) -> Self {
        self.config = Some(Ok(config));
        self
    }

    /// The configuration from a `.yaml`, `.yml` or `.toml` file.
    #[cfg(feature = "config")]
    pub fn config_file(mut self, path: impl AsRef<std::path::Path>) -> Self {
        self.config = Some(Config::from_file(path));
        self
    }

    /// The sizes of the worker pool and of the database pool.
    pub fn thread_pool_param(mut self, pool: ThreadPoolParam) -> Self {
        self.overlay.core_pool_size = Some(pool.core_pool_size);
        self.overlay.max_pool_size = Some(pool.max_pool_size);
        self.overlay.keep_alive_seconds = Some(pool.keep_alive_seconds);
        self.overlay.queue_capacity = Some(pool.queue_capacity);
        self
    }

    /// The zone of `create_time` and `next_send_time` in a starter's table, such as `+08:00`.
    pub fn time_zone(mut self, zone: &str) -> Self {
        match zone.parse() {
            Ok(zone) => self.overlay.time_zone = Some(zone),
            Err(error) => self.mistakes.push(format!("time-zone is {zone:?}: {error}")),
        }
        self
    }

    /// Has an xxl-job admin trigger the retries and the removal of history; see
    /// [`xxl_job`](crate::xxl_job). It takes the place of the section `xxl-job`.
    #[cfg(feature = "xxl-job")]
    pub fn xxl_job(mut self, xxl_job: crate::xxl_job::XxlJobConfig) -> Self {
        self.xxl_job = Some(xxl_job);
        self
    }

    /// A value for the functions' `#[state]` parameters of its type; one per type.
    pub fn state<T: Send + Sync + 'static>(mut self, state: T) -> Self {
        self.states.insert(state);
        self
    }

    /// A value for `#[state]` parameters that the program shares.
    pub fn shared_state<T: Send + Sync + 'static>(mut self, state: Arc<T>) -> Self {
        self.states.insert_shared(state);
        self
    }

    /// What contexts, the arguments of tasks, go through on their way into the table and back, for
    /// instance to be encrypted.
    pub fn codec<C: ContextCodec>(mut self, codec: C) -> Self {
        self.codec = Some(Arc::new(codec));
        self
    }

    /// What carries the trace of a caller to the attempts of its task.
    pub fn propagator<P: Propagator>(mut self, propagator: P) -> Self {
        self.trace = Trace::new(propagator);
        self
    }

    /// A hand-written strategy.
    pub fn strategy<S: Strategy>(mut self, strategy: S) -> Self {
        self.gather.strategy(strategy, Policy::new());
        self
    }

    /// A hand-written strategy with a retry policy or a time-out of its own.
    pub fn strategy_with<S: Strategy>(mut self, strategy: S, policy: Policy) -> Self {
        self.gather.strategy(strategy, policy);
        self
    }

    /// A function that `inventory` may not find, since the linker dropped its crate.
    pub fn register<R: Retryable>(mut self) -> Self {
        self.gather.register::<R>();
        self
    }

    /// Only these functions, as a tuple: `.only::<(send_sms, charge_card)>()`. Calls add up.
    pub fn only<F: Functions>(mut self) -> Self {
        self.gather.only(F::ids());
        self
    }

    /// The clock by which tasks are due, for tests.
    pub fn clock(mut self, clock: ManualClock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// `false`: `start` does not create or upgrade the table.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.no_migration = !migrate;
        self
    }

    /// Does not become the default of the process.
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// Claims without `skip locked`, for engines that do not have it or are blind to it. Recognised
    /// by itself for old versions of MySQL and MariaDB.
    pub fn optimistic_claims(mut self) -> Self {
        self.optimistic = true;
        self
    }

    /// `false`: no LISTEN and NOTIFY on PostgreSQL. Through a pooler like PgBouncer nobody listens in any
    /// case.
    pub fn notify(mut self, notify: bool) -> Self {
        self.silent = !notify;
        self
    }

    /// `false`: a worker's place stays taken until the end of its attempt is committed. Default
    /// `true`: it is written within milliseconds, and a crash in between runs the task once more.
    pub fn write_behind(mut self, write_behind: bool) -> Self {
        self.settle_at_once = !write_behind;
        self
    }

    /// `false`: an awaited call answers as soon as its attempt has ended, before that is committed;
    /// `Superseded` is then never told. Default `true`.
    pub fn await_commit(mut self, await_commit: bool) -> Self {
        self.answer_early = !await_commit;
        self
    }

    /// Leaves `TASK_RETRY__…` variables alone.
    #[cfg(feature = "testing")]
    pub(crate) fn without_env(mut self) -> Self {
        self.no_env = true;
        self
    }

    /// Connects, creates or upgrades the table, checks the registry, starts the workers and becomes
    /// the default of the process.
    ///
    /// # Errors
    /// `Config` for a bad setting or a table that is not ours, `Registry` with every mistake of the
    /// functions, sources and states, `Store` if the database cannot be reached, `Conflict` if the
    /// process has a default already.
    pub async fn start(self) -> Result<TaskRetry> {
        if !self.detached && has_default() {
            return Err(second_default());
        }
        let handle = Handle::try_current().map_err(|error| {
            Error::new(ErrorKind::Config, "`start` has to run inside of a tokio runtime")
                .with_source(error)
        })?;
        let mut config = self.config.unwrap_or_else(|| Ok(Config::default()))?;
        if !self.no_env {
            config = config.with_env()?;
        }
        self.overlay.apply(&mut config);
        #[cfg(feature = "xxl-job")]
        if let Some(xxl_job) = self.xxl_job {
            config.xxl_job = Some(xxl_job);
        }
        config.validate()?;
        if !self.mistakes.is_empty() {
            return Err(Error::new(ErrorKind::Config, self.mistakes.join("; ")));
        }
        let project = self.project.unwrap_or_default();
        if project.trim().is_empty() {
            return Err(Error::new(
                ErrorKind::Config,
                "the project is missing: `.project(\"…\")` names the rows that are this program's",
            ));
        }
        // MySQL compares without the spaces at the end, and would find another project's rows.
        if project.ends_with(char::is_whitespace) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("the project {project:?} ends with white space"),
            ));
        }
        let registry = self.gather.finish(&self.states)?;
        let clock = self.clock.map_or_else(Clock::new, Clock::Manual);
        let store = match config.enable {
            true => {
                let open = Open { config: &config, migrate: !self.no_migration, clock: &clock };
                open.store(self.database, project, self.optimistic).await?
            }
            false => bare(project),
        };
        let pool = &config.thread_pool_param;
        let limits = Limits::new(
            pool.max_pool_size.max(1) as usize,
            pool.queue_capacity as usize,
            registry.sources().len(),
        );
        #[cfg(feature = "xxl-job")]
        let executor = match config.xxl_job.take().filter(|_| config.enable && config.job) {
            Some(xxl_job) => Some(xxl_job::Prepared::new(xxl_job, &store.project).await?),
            None => None,
        };
        #[cfg(feature = "xxl-job")]
        let polls = config.job && executor.as_ref().is_none_or(|executor| executor.with_workers());
        #[cfg(not(feature = "xxl-job"))]
        let polls = config.job;
        let inner = Arc::new(Inner {
            store,
            clock,
            registry,
            states: Arc::new(self.states),
            // What is not stored needs none.
            codec: self.codec.filter(|_| config.enable),
            trace: self.trace,
            #[cfg(feature = "testing")]
            plan: Default::default(),
            writer: write::Writer::new(),
            pool: Pool::new(limits),
            held: Default::default(),
            waits: waits::Waits::new(),
            pauses: Default::default(),
            swept: Default::default(),
            number: super::next_number(),
            wake: claim::Wake::new(),
            others: claim::Others::default(),
            policy: config.policy(),
            lease: config.lease(),
            poll_interval: config.poll_interval(),
            grace: config.shutdown_grace(),
            task_limit: config.task_limit,
            queue_capacity: limits.queue,
            max_crash: config.max_crash,
            data_kept: config.data_kept(),
            failed_kept: config.failed_kept(),
            enabled: config.enable,
            job: config.job,
            polls,
            write_behind: !self.settle_at_once,
            await_commit: !self.answer_early,
            notify: !self.silent,
            handle,
            closing: CancellationToken::new(),
            ended: CancellationToken::new(),
            take_over_from: AtomicI64::new(i64::MIN),
            owner: OnceLock::new(),
            #[cfg(feature = "xxl-job")]
            executor: OnceLock::new(),
        });
        if config.enable {
            pauses::read(&inner).await?;
        }
        let owner = Arc::new(Owner { inner: inner.clone() });
        let _ = inner.owner.set(Arc::downgrade(&owner));
        let retry = TaskRetry(owner);
        retry.enlist();
        if !self.detached {
            let mut default = DEFAULT.write().unwrap_or_else(PoisonError::into_inner);
            if default.is_some() {
                return Err(second_default());
            }
            *default = Some(retry.clone());
        }
        if config.enable {
            run(&inner)?;
            #[cfg(feature = "xxl-job")]
            if let Some(executor) = executor {
                executor.start(&inner);
            }
        } else {
            warn!(
                "task-retry is switched off (`enable: false`): functions run bare, nothing is stored"
            );
        }
        Ok(retry)
    }
}

fn has_default() -> bool {
    DEFAULT.read().unwrap_or_else(PoisonError::into_inner).is_some()
}

fn second_default() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "a task-retry runtime is the default of this process already: shut it down first, or start this \
         one with `.detached()`",
    )
}

/// Starts what runs in the background.
fn run(inner: &Arc<Inner>) -> Result<()> {
    // SQLite has one writer; others take two batches side by side.
    let lanes = if inner.store.times.backend == DbBackend::Sqlite { 1 } else { 2 };
    supervised(inner, "keyed writer", write::keyed);
    for _ in 0..lanes {
        supervised(inner, "writer", write::lane);
    }
    supervised(inner, "late ends", write::late);
    lease::spawn(inner.clone()).map_err(|error| {
        Error::new(ErrorKind::Config, "the lease thread cannot be started").with_source(error)
    })?;
    #[cfg(feature = "postgres")]
    if super::listen::applies(inner) {
        supervised(inner, "notifier", super::listen::send);
        if inner.job {
            super::listen::start(inner);
        }
    }
    if inner.job {
        supervised(inner, "pauses", pauses::run);
        supervised(inner, "strangers", jobs::strangers);
    }
    if inner.polls {
        supervised(inner, "claims", claim::run);
        supervised(inner, "history", jobs::history);
    }
    info!(
        project = inner.store.project,
        worker = inner.store.worker,
        sources = ?inner.registry.sources(),
        job = inner.job,
        polls = inner.polls,
        starter_table = inner.store.layout.starter,
        "task-retry has started"
    );
    Ok(())
}

struct Open<'a> {
    config: &'a Config,
    migrate: bool,
    clock: &'a Clock,
}

impl Open<'_> {
    /// Connects, migrates and reads the table's layout.
    async fn store(
        &self,
        database: Option<Source>,
        project: String,
        optimistic: bool,
    ) -> Result<Store> {
        let db = match database {
            Some(Source::Connection(connection)) => connection,
            Some(Source::Url(url)) => connect(&url, self.config).await?,
            None => {
                return Err(Error::new(
                    ErrorKind::Config,
                    "the database is missing: give the builder `.database(\"sqlite://…\")` or \
                     `.connection(…)`",
                ));
            }
        };
        if self.migrate {
            migrate(&db).await?;
        }
        let layout = Layout::read(&db).await?;
        if project.chars().count() > layout.project_name {
            return Err(Error::new(
                ErrorKind::Config,
                format!("the project {project:?} has more than {} characters", layout.project_name),
            ));
        }
        let offset = if layout.starter { self.config.time_zone.seconds() } else { 0 };
        let store = Store::new(db, project, worker_id(), layout, offset, optimistic).await?;
        for _ in 0..3 {
            store.sync(self.clock).await?;
            if self.clock.error() <= UNSURE {
                break;
            }
        }
        Ok(store)
    }
}

#[cfg(feature = "migrate")]
async fn migrate(db: &DatabaseConnection) -> Result<()> {
    task_retry_migrations::up(db).await.map_err(|error| {
        Error::new(ErrorKind::Store, "the table cannot be created or upgraded").with_source(error)
    })
}

#[cfg(not(feature = "migrate"))]
async fn migrate(_db: &DatabaseConnection) -> Result<()> {
    Ok(())
}

/// A store that is never asked.
fn bare(project: String) -> Store {
    Store::disconnected(project, worker_id())
}

/// Random for each start, with the process id for people.
fn worker_id() -> String {
    let mut bytes = [0_u8; 12];
    if getrandom::fill(&mut bytes).is_err() {
        bytes.fill_with(|| fastrand::u8(..));
    }
    let random: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{random}", std::process::id())
}
