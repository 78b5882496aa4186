//! What the tests share: databases of their own, and waiting for conditions.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection};
use task_retry::{Builder, Filter, ManualClock, Status, TaskId, TaskLog, TaskRetry};
use tokio::sync::Semaphore;

pub mod campaign;
pub mod disk;
pub mod heard;
pub mod proxy;
pub mod server;
pub mod worker;
pub mod xxl_job;

/// The databases that the contract is tested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file in a temporary folder.
    Sqlite,
    /// The server at `TASK_RETRY_TEST_POSTGRES`.
    Postgres,
    /// The server at `TASK_RETRY_TEST_MARIADB`.
    MariaDb,
    /// The server at `TASK_RETRY_TEST_MYSQL`.
    MySql,
    /// MySQL, as if it did not know `skip locked`.
    Optimistic,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Sqlite, Self::Postgres, Self::MariaDb, Self::MySql, Self::Optimistic];
    /// Those with a server.
    pub const SERVERS: [Self; 3] = [Self::Postgres, Self::MariaDb, Self::MySql];

    fn server(self) -> Option<&'static str> {
        match self {
            Self::Sqlite => None,
            Self::Postgres => Some("TASK_RETRY_TEST_POSTGRES"),
            Self::MariaDb => Some("TASK_RETRY_TEST_MARIADB"),
            Self::MySql | Self::Optimistic => Some("TASK_RETRY_TEST_MYSQL"),
        }
    }

    /// Whether it is MySQL or MariaDB.
    pub fn is_mysql(self) -> bool {
        matches!(self, Self::MariaDb | Self::MySql | Self::Optimistic)
    }
}

/// For a database that no other test has.
fn new_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("t{}_{count}_{}", std::process::id(), fastrand::u32(..))
}

/// Whether a server that is not there is a failure.
fn requires_all() -> bool {
    std::env::var("TASK_RETRY_TEST_REQUIRE_ALL").as_deref() == Ok("1")
}

/// The address of a broker of `tests/run`, or another thing that `--quick` leaves out. `None` where it is not there, which is an error with
/// `TASK_RETRY_TEST_REQUIRE_ALL=1`, but not after `tests/run --quick`.
pub fn broker(variable: &str) -> Option<String> {
    let address = std::env::var(variable).ok();
    if address.is_none() {
        let quick = std::env::var("TASK_RETRY_TEST_QUICK").as_deref() == Ok("1");
        assert!(quick || !requires_all(), "{variable} is not set: run the tests with `tests/run`");
        eprintln!("skipped: {variable} is not set");
    }
    address
}

/// A database of one test, removed when it ends.
#[derive(Debug)]
pub struct TestDb {
    /// Which kind it is.
    pub kind: Kind,
    /// How to connect to it.
    pub url: String,
    name: String,
    admin: Option<String>,
}

impl TestDb {
    /// Makes an empty one; `None` where its server is not there, which is an error with
    /// `TASK_RETRY_TEST_REQUIRE_ALL=1`.
    pub async fn create(kind: Kind) -> Option<Self> {
        let Some(variable) = kind.server() else {
            return Some(Self::sqlite_in(&std::env::temp_dir()));
        };
        let Ok(admin) = std::env::var(variable) else {
            assert!(!requires_all(), "{variable} is not set: run the tests with `tests/run`");
            eprintln!("skipped: {variable} is not set");
            return None;
        };
        Some(Self::create_at(kind, &admin).await)
    }

    /// A file in this folder, which is made when it is first opened.
    pub fn sqlite_in(folder: &Path) -> Self {
        let path = folder.join(format!("task-retry-{}.db", new_name()));
        let url = format!("sqlite://{}?mode=rwc", path.display());
        Self { kind: Kind::Sqlite, url, name: path.display().to_string(), admin: None }
    }

    /// Makes an empty one at the server with this URL.
    pub async fn create_at(kind: Kind, admin: &str) -> Self {
        let name = new_name();
        let connection = Database::connect(admin).await.expect("the server answers");
        let create = format!("create database {name}");
        connection.execute_unprepared(&create).await.expect("a database can be made");
        let base = admin.rsplit_once('/').expect("an admin URL ends with a database").0;
        Self { kind, url: format!("{base}/{name}"), name, admin: Some(admin.to_owned()) }
    }

    /// Whether processes hear each other through it: on PostgreSQL, but not through PgBouncer in
    /// transaction mode, where nobody can listen.
    pub fn notifies(&self) -> bool {
        let pooler = std::env::var("TASK_RETRY_TEST_PGBOUNCER").ok();
        self.kind == Kind::Postgres && (self.admin.is_none() || self.admin != pooler)
    }

    /// A connection beside the runtime's.
    pub async fn connect(&self) -> DatabaseConnection {
        let mut options = sea_orm::ConnectOptions::new(&self.url);
        options.max_connections(3).sqlx_logging(false);
        Database::connect(options).await.expect("the database answers")
    }

    /// A runtime for it: detached, of project `test`, with short times.
    pub fn builder(&self) -> Builder {
        let builder = TaskRetry::builder()
            .project("test")
            .database(&self.url)
            .detached()
            .lease_second(5)
            .poll_interval_ms(100)
            .shutdown_grace_second(5);
        match self.kind {
            Kind::Optimistic => builder.optimistic_claims(),
            _ => builder,
        }
    }

    /// Runs one statement beside the runtime, in words that every database understands.
    pub async fn execute(&self, sql: &str) {
        let connection = Database::connect(&self.url).await.expect("the database answers");
        connection.execute_unprepared(sql).await.expect("the statement runs");
        connection.close().await.expect("the connection closes");
    }

    /// Removes it.
    pub async fn drop(self) {
        match &self.admin {
            None => {
                for end in ["", "-wal", "-shm"] {
                    let _ = std::fs::remove_file(format!("{}{end}", self.name));
                }
            }
            Some(admin) => {
                let force = if self.kind == Kind::Postgres { " with (force)" } else { "" };
                let drop = format!("drop database {}{force}", self.name);
                if let Ok(connection) = Database::connect(admin).await {
                    let _ = connection.execute_unprepared(&drop).await;
                }
            }
        }
    }
}

/// Runs a test body on a database of its own.
pub async fn on<F, Fut>(kind: Kind, body: F)
where
    F: FnOnce(std::sync::Arc<TestDb>) -> Fut,
    Fut: Future<Output = ()>,
{
    let Some(db) = TestDb::create(kind).await else { return };
    let db = std::sync::Arc::new(db);
    // What hangs is to fail as well; the slowest body takes a fraction of that.
    let body = tokio::time::timeout(Duration::from_secs(300), body(db.clone()));
    body.await.expect("the test ends within five minutes");
    if let Ok(db) = std::sync::Arc::try_unwrap(db) {
        db.drop().await;
    }
}

/// Waits until a condition holds, at most half a minute.
pub async fn until<F, Fut>(what: &str, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < Duration::from_secs(30), "waited 30 s in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs a test body on these databases at the same time, each on a database of its own: for bodies
/// that wait more than they work. `TASK_RETRY_TEST_ONLY=Postgres` leaves the others out.
pub async fn at_once<F, Fut>(kinds: &[Kind], body: F)
where
    F: Fn(std::sync::Arc<TestDb>) -> Fut,
    Fut: Future<Output = ()>,
{
    each_at_once(kinds, async |kind| on(kind, &body).await).await;
}

/// Like [`at_once`], for bodies that make their databases themselves.
pub async fn each_at_once(kinds: &[Kind], body: impl AsyncFn(Kind)) {
    let only = std::env::var("TASK_RETRY_TEST_ONLY").unwrap_or_default();
    let named = |kind: &Kind| only == format!("{kind:?}");
    assert!(only.is_empty() || Kind::ALL.iter().any(named), "TASK_RETRY_TEST_ONLY={only}");
    let wanted = |kind: &&Kind| only.is_empty() || named(kind);
    let tests = kinds.iter().filter(wanted).map(async |kind| {
        let test = AssertUnwindSafe(body(*kind)).catch_unwind().await;
        test.is_err().then_some(*kind)
    });
    let failed: Vec<Kind> = join_all(tests).await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "failed on {failed:?}: see the panics above");
}

/// Waits until a condition holds, and tells how long that took; fails after the limit.
pub async fn within(
    limit: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> bool,
) -> Duration {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

/// A task that is there.
pub async fn task(retry: &TaskRetry, id: TaskId) -> TaskLog {
    retry.tasks().get(id).await.expect("the database answers").expect("the task is there")
}

/// The one task of the project.
pub async fn only_task(retry: &TaskRetry) -> TaskLog {
    let mut tasks = retry.tasks().list(Filter::all()).await.expect("the database answers");
    assert_eq!(tasks.len(), 1, "one task: {tasks:?}");
    tasks.remove(0)
}

/// Waits until a task has this status.
pub async fn becomes(retry: &TaskRetry, id: TaskId, status: Status) -> TaskLog {
    until(&format!("task {id} becomes {status}"), async || task(retry, id).await.status == status)
        .await;
    task(retry, id).await
}

/// Polls a future once, which does not end it.
pub async fn poll_once(future: &mut (impl Future + Unpin)) {
    std::future::poll_fn(|context| {
        assert!(std::pin::Pin::new(&mut *future).poll(context).is_pending(), "it has more to do");
        std::task::Poll::Ready(())
    })
    .await;
}

/// A clock that stands still until it is moved, at a time that is no whole second.
pub fn manual_clock() -> ManualClock {
    ManualClock::new("2026-03-01T12:00:00.250Z".parse().expect("a time"))
}

/// A place in the body of a function where it waits until the test lets it go on.
#[derive(Debug)]
pub struct Gate {
    came: AtomicU32,
    places: Semaphore,
}

impl Default for Gate {
    fn default() -> Self {
        Self { came: AtomicU32::new(0), places: Semaphore::new(0) }
    }
}

impl Gate {
    /// Waits until the gate is opened for one more.
    pub async fn pass(&self) {
        self.came.fetch_add(1, Ordering::SeqCst);
        self.places.acquire().await.expect("it is never closed").forget();
    }

    /// How many have come so far.
    pub fn came(&self) -> u32 {
        self.came.load(Ordering::SeqCst)
    }

    /// Waits until so many have come.
    pub async fn wait_for(&self, count: u32) {
        until(&format!("{count} come to the gate"), async || self.came() >= count).await;
    }

    /// Lets so many pass.
    pub fn open(&self, count: usize) {
        self.places.add_permits(count);
    }
}

/// Makes each of these bodies, `async fn(Arc<TestDb>)`, a test on every database.
#[macro_export]
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        $crate::contract!(@ sqlite Sqlite: $($name),*);
        $crate::contract!(@ postgres Postgres: $($name),*);
        $crate::contract!(@ mariadb MariaDb: $($name),*);
        $crate::contract!(@ mysql MySql: $($name),*);
        $crate::contract!(@ optimistic Optimistic: $($name),*);
    };
    (@ $module:ident $kind:ident: $($name:ident),*) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::on($crate::Kind::$kind, super::$name).await;
            })*
        }
    };
}
