//! A database for each test, dropped after it.

use std::env;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use sea_orm_migration::sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, QueryResult, Statement,
};

/// A kind of database, and where to get one.
#[derive(Clone, Copy)]
pub(crate) enum Server {
    SqliteMemory,
    SqliteFile,
    /// The environment variable with an administrator's URL.
    Url(&'static str),
}

#[allow(non_upper_case_globals, reason = "named as the test modules are")]
mod servers {
    use super::Server;
    pub(crate) const sqlite_memory: Server = Server::SqliteMemory;
    pub(crate) const sqlite_file: Server = Server::SqliteFile;
    pub(crate) const postgres: Server = Server::Url("TASK_RETRY_TEST_POSTGRES");
    pub(crate) const mariadb: Server = Server::Url("TASK_RETRY_TEST_MARIADB");
    pub(crate) const mysql: Server = Server::Url("TASK_RETRY_TEST_MYSQL");
}
pub(crate) use servers::*;

/// Runs a test in a new database of that server, and drops the database also if the test fails.
pub(crate) async fn on<T>(server: Server, test: impl FnOnce(TestDatabase) -> T)
where
    T: Future<Output = ()> + Send + 'static,
{
    let Some(database) = TestDatabase::create(server).await else { return };
    let result = tokio::spawn(test(database.clone())).await;
    database.remove().await;
    if let Err(error) = result {
        std::panic::resume_unwind(error.into_panic());
    }
}

#[derive(Clone)]
pub(crate) struct TestDatabase {
    pub(crate) db: DatabaseConnection,
    pub(crate) url: String,
    place: Place,
}

#[derive(Clone)]
enum Place {
    Memory,
    File(PathBuf),
    Server { admin: String, name: String },
}

impl TestDatabase {
    async fn create(server: Server) -> Option<TestDatabase> {
        let name = random_name();
        let (url, place) = match server {
            Server::SqliteMemory => ("sqlite::memory:".to_owned(), Place::Memory),
            Server::SqliteFile => {
                let path = env::temp_dir().join(format!("{name}.db"));
                (format!("sqlite://{}?mode=rwc", path.display()), Place::File(path))
            }
            Server::Url(variable) => {
                let admin = admin_url(variable)?;
                run_once(&admin, &format!("create database {name}")).await;
                let (server, _) = admin.rsplit_once('/').expect("a URL with a path");
                (format!("{server}/{name}"), Place::Server { admin, name })
            }
        };
        // Each connection of a pool has a memory of its own.
        let connections = if matches!(place, Place::Memory) { 1 } else { 4 };
        let db = connect(&url, connections).await;
        Some(TestDatabase { db, url, place })
    }

    /// A connection pool as another process would have it; for a database in memory the same one.
    pub(crate) async fn another_process(&self) -> DatabaseConnection {
        match self.place {
            Place::Memory => self.db.clone(),
            _ => connect(&self.url, 4).await,
        }
    }

    /// A pool of one connection that has run this statement.
    pub(crate) async fn another_session(&self, setup: &str) -> DatabaseConnection {
        let db = match self.place {
            Place::Memory => self.db.clone(),
            _ => connect(&self.url, 1).await,
        };
        db.execute_unprepared(setup).await.expect("the setup");
        db
    }

    pub(crate) async fn execute(&self, sql: &str) {
        self.db.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{error}\n{sql}"));
    }

    pub(crate) async fn query(&self, sql: &str) -> Vec<QueryResult> {
        let backend = self.db.get_database_backend();
        self.db
            .query_all_raw(Statement::from_string(backend, sql))
            .await
            .unwrap_or_else(|error| panic!("{error}\n{sql}"))
    }

    /// Rows of texts, one line a row.
    pub(crate) async fn texts(&self, sql: &str) -> Vec<String> {
        let line = |row: &QueryResult| {
            let texts = (0..row.column_names().len()).map(|n| {
                let text: Option<String> = row.try_get_by_index(n).expect("a text");
                text.unwrap_or_else(|| "NULL".to_owned())
            });
            texts.collect::<Vec<_>>().join(" | ")
        };
        self.query(sql).await.iter().map(line).collect()
    }

    async fn remove(self) {
        self.db.close().await.expect("to close the pool");
        match self.place {
            Place::Memory => {}
            Place::File(path) => std::fs::remove_file(path).expect("to remove the file"),
            Place::Server { admin, name } => {
                let force = if admin.starts_with("postgres") { " with (force)" } else { "" };
                run_once(&admin, &format!("drop database {name}{force}")).await;
            }
        }
    }
}

fn admin_url(variable: &str) -> Option<String> {
    match env::var(variable) {
        Ok(url) if !url.is_empty() => Some(url),
        _ if env::var("TASK_RETRY_TEST_REQUIRE_ALL").is_ok_and(|it| it == "1") => {
            panic!("{variable} is not set")
        }
        _ => {
            eprintln!("skipped: {variable} is not set");
            None
        }
    }
}

async fn connect(url: &str, connections: u32) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(connections).sqlx_logging(false);
    Database::connect(options).await.expect("to connect")
}

async fn run_once(url: &str, sql: &str) {
    let db = connect(url, 1).await;
    db.execute_unprepared(sql).await.expect("the administrator's statement");
    db.close().await.expect("to close the pool");
}

fn random_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").subsec_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("task_retry_{}_{nanos}_{count}", std::process::id())
}
