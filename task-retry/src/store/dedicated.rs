//! A connection that is kept, for loops that send statement after statement.
//!
//! A pool pings each connection when it is given back, which doubles the round trips of a small
//! statement. Only the writing lanes and the claims keep one, and only of pools that can spare it.
//!
//! SQLite's statements go to its pool without sea-orm in between, whose future for a statement has room
//! for making a connection to any database: more than 200 KB, which are copied twice.

use sea_orm::prelude::async_trait::async_trait;
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
use sea_orm::{ConnAcquireErr, DatabaseConnectionType, RuntimeErr, Values, sqlx};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, ExecResult, QueryResult, Statement,
};
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
use sea_query_sqlx::SqlxValues;

/// Connections that have to be left to others.
#[cfg(any(feature = "postgres", feature = "mysql"))]
const SPARE: u32 = 4;

/// The runtime's access to its database.
#[derive(Debug)]
pub(crate) struct Db {
    pool: DatabaseConnection,
    kept: Kept,
}

#[derive(Debug, Default)]
enum Kept {
    /// Every statement takes a connection out of the pool.
    #[default]
    None,
    #[cfg(feature = "postgres")]
    Postgres(tokio::sync::Mutex<Option<sqlx::pool::PoolConnection<sqlx::Postgres>>>),
    #[cfg(feature = "mysql")]
    MySql(tokio::sync::Mutex<Option<sqlx::pool::PoolConnection<sqlx::MySql>>>),
}

/// A clone shares the pool and keeps nothing.
impl Clone for Db {
    fn clone(&self) -> Self {
        self.pool.clone().into()
    }
}

impl From<DatabaseConnection> for Db {
    fn from(pool: DatabaseConnection) -> Self {
        Self { pool, kept: Kept::None }
    }
}

impl Db {
    pub(crate) fn pool(&self) -> &DatabaseConnection {
        &self.pool
    }

    /// The same database through a connection of its own, taken at the first statement and let go
    /// after an error.
    pub(crate) fn kept(&self) -> Self {
        let pool = self.pool.clone();
        let kept = match pool.inner {
            #[cfg(feature = "postgres")]
            DatabaseConnectionType::SqlxPostgresPoolConnection(_)
                if spares(pool.get_postgres_connection_pool().options()) =>
            {
                Kept::Postgres(Default::default())
            }
            #[cfg(feature = "mysql")]
            DatabaseConnectionType::SqlxMySqlPoolConnection(_)
                if spares(pool.get_mysql_connection_pool().options()) =>
            {
                Kept::MySql(Default::default())
            }
            _ => Kept::None,
        };
        Self { pool, kept }
    }
}

#[cfg(any(feature = "postgres", feature = "mysql"))]
fn spares<D: sqlx::Database>(options: &sqlx::pool::PoolOptions<D>) -> bool {
    options.get_max_connections() > SPARE + 3
}

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
macro_rules! query {
    ($statement:ident) => {{
        let values = SqlxValues($statement.values.unwrap_or(Values(Vec::new())));
        sqlx::query_with(sqlx::AssertSqlSafe($statement.sql), values)
    }};
}

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
fn failed(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

/// Runs a query on a connection of SQLite's pool. They do not break, and so need no test.
#[cfg(feature = "sqlite")]
macro_rules! on_pool {
    ($pool:expr, $statement:ident, $method:ident, $wrap:expr) => {{
        let mut connection = match $pool.try_acquire() {
            Some(connection) => connection,
            None => Box::pin($pool.acquire()).await.map_err(not_acquired)?,
        };
        query!($statement).$method(&mut *connection).await.map($wrap).map_err(failed)
    }};
}

/// Runs a query on the kept connection, and lets the connection go if that fails.
#[cfg(any(feature = "postgres", feature = "mysql"))]
macro_rules! on_kept {
    ($kept:ident, $pool:expr, $statement:ident, $method:ident, $wrap:expr) => {{
        let mut kept = $kept.lock().await;
        let mut connection = match kept.take() {
            Some(connection) => connection,
            // In a box: whoever has a connection does not carry about the room that it takes to make one.
            None => Box::pin($pool.acquire()).await.map_err(not_acquired)?,
        };
        // Not put back before it has answered: whoever is dropped in between has broken it.
        let result = query!($statement).$method(&mut *connection).await;
        match result {
            Ok(answer) => {
                *kept = Some(connection);
                Ok($wrap(answer))
            }
            Err(error) => {
                if error.as_database_error().is_some() {
                    *kept = Some(connection);
                } else {
                    connection.close_on_drop();
                }
                Err(failed(error))
            }
        }
    }};
}

#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
fn not_acquired(error: sqlx::Error) -> DbErr {
    match error {
        sqlx::Error::PoolTimedOut => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout),
        sqlx::Error::PoolClosed => DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed),
        error => DbErr::Conn(RuntimeErr::SqlxError(error.into())),
    }
}

#[async_trait]
impl ConnectionTrait for Db {
    fn get_database_backend(&self) -> DbBackend {
        self.pool.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match &self.kept {
            Kept::None => match &self.pool.inner {
                #[cfg(feature = "sqlite")]
                DatabaseConnectionType::SqlxSqlitePoolConnection(_) => {
                    let pool = self.pool.get_sqlite_connection_pool();
                    on_pool!(pool, statement, execute, ExecResult::from)
                }
                _ => self.pool.execute_raw(statement).await,
            },
            #[cfg(feature = "postgres")]
            Kept::Postgres(kept) => {
                let pool = self.pool.get_postgres_connection_pool();
                on_kept!(kept, pool, statement, execute, ExecResult::from)
            }
            #[cfg(feature = "mysql")]
            Kept::MySql(kept) => {
                let pool = self.pool.get_mysql_connection_pool();
                on_kept!(kept, pool, statement, execute, ExecResult::from)
            }
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.pool.execute_unprepared(sql).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        Ok(self.query_all_raw(statement).await?.into_iter().next())
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match &self.kept {
            Kept::None => match &self.pool.inner {
                #[cfg(feature = "sqlite")]
                DatabaseConnectionType::SqlxSqlitePoolConnection(_) => {
                    let pool = self.pool.get_sqlite_connection_pool();
                    let wrap = |rows: Vec<_>| rows.into_iter().map(QueryResult::from).collect();
                    on_pool!(pool, statement, fetch_all, wrap)
                }
                _ => self.pool.query_all_raw(statement).await,
            },
            #[cfg(feature = "postgres")]
            Kept::Postgres(kept) => {
                let pool = self.pool.get_postgres_connection_pool();
                let wrap = |rows: Vec<_>| rows.into_iter().map(QueryResult::from).collect();
                on_kept!(kept, pool, statement, fetch_all, wrap)
            }
            #[cfg(feature = "mysql")]
            Kept::MySql(kept) => {
                let pool = self.pool.get_mysql_connection_pool();
                let wrap = |rows: Vec<_>| rows.into_iter().map(QueryResult::from).collect();
                on_kept!(kept, pool, statement, fetch_all, wrap)
            }
        }
    }
}

#[cfg(all(test, feature = "postgres", feature = "mysql", feature = "sqlite"))]
mod tests {
    use sea_orm::sqlx::{mysql, postgres, sqlite};
    use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
    use sea_orm::{SqlxMySqlConnector, SqlxPostgresConnector, SqlxSqliteConnector};

    use super::Db;

    /// As long as a statement's future holds the making of a connection, it has more than 200 KB.
    #[tokio::test]
    async fn a_statement_carries_about_no_room_for_a_new_connection() {
        let postgres = postgres::PgPoolOptions::new().connect_lazy("postgres://127.0.0.1:1/none");
        let mysql = mysql::MySqlPoolOptions::new().connect_lazy("mysql://127.0.0.1:1/none");
        let sqlite = sqlite::SqlitePoolOptions::new().connect_lazy("sqlite::memory:");
        let pools: [DatabaseConnection; 3] = [
            SqlxPostgresConnector::from_sqlx_postgres_pool(postgres.unwrap()),
            SqlxMySqlConnector::from_sqlx_mysql_pool(mysql.unwrap()),
            SqlxSqliteConnector::from_sqlx_sqlite_pool(sqlite.unwrap()),
        ];
        for pool in pools {
            let backend = pool.get_database_backend();
            let db = Db::from(pool).kept();
            let statement = || Statement::from_string(backend, "select 1");
            let sizes = [
                size_of_val(&*db.execute_raw(statement())),
                size_of_val(&*db.query_all_raw(statement())),
            ];
            assert!(sizes.iter().all(|size| *size < 8192), "{backend:?}: {sizes:?}");
        }
    }
}
