//! What the tests share: databases of their own, and waiting for conditions.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, Database, DatabaseConnection};
use task_retry::{Builder, TaskRetry};

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
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}_{count}_{}", std::process::id(), fastrand::u32(..));
        let Some(variable) = kind.server() else {
            let path = std::env::temp_dir().join(format!("task-retry-{name}.db"));
            let url = format!("sqlite://{}?mode=rwc", path.display());
            return Some(Self { kind, url, name: path.display().to_string(), admin: None });
        };
        let Ok(admin) = std::env::var(variable) else {
            assert!(
                std::env::var("TASK_RETRY_TEST_REQUIRE_ALL").as_deref() != Ok("1"),
                "{variable} is not set: run the tests with `tests/run`"
            );
            eprintln!("skipped: {variable} is not set");
            return None;
        };
        let connection = Database::connect(&admin).await.expect("the server answers");
        let create = format!("create database {name}");
        connection.execute_unprepared(&create).await.expect("a database can be made");
        let base = admin.rsplit_once('/').expect("an admin URL ends with a database").0;
        Some(Self { kind, url: format!("{base}/{name}"), name, admin: Some(admin) })
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
    body(db.clone()).await;
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
