//! Connections: the runtime's pool, one of its own for the lease thread, and how much fits into one
//! statement.

use std::net::IpAddr;
use std::time::Duration;

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend};

use super::fault::steadily;
use super::row::get;
use super::sql::Sql;
use crate::{Config, Error, ErrorKind, Result};

/// Most bytes of a statement with many rows.
const BYTES: usize = 4 << 20;
/// What goes into one record of TLS, of 16 KiB.
const RECORD: usize = 15_000;

/// Opens a pool for a URL.
pub(crate) async fn connect(url: &str, config: &Config) -> Result<DatabaseConnection> {
    let Some(known) = driver(url) else {
        return Err(Error::new(ErrorKind::Config, unknown(url)));
    };
    let pool = &config.thread_pool_param;
    // SeaORM knows one spelling of each.
    let url = url.replacen("postgresql://", "postgres://", 1).replacen("mariadb://", "mysql://", 1);
    let mut options = ConnectOptions::new(url.clone());
    options
        .sqlx_logging(false)
        .acquire_timeout(Duration::from_secs(5))
        .connect_timeout(Duration::from_secs(5))
        .idle_timeout(Duration::from_secs(pool.keep_alive_seconds.max(1)))
        .test_before_acquire_if_idle_for(Duration::from_secs(10));
    match known {
        // One connection, or each would see a database of its own.
        DbBackend::Sqlite if is_memory(&url) => {
            options.min_connections(1).max_connections(1).idle_timeout(None).max_lifetime(None);
        }
        DbBackend::Sqlite => {
            options.min_connections(1).max_connections(4);
        }
        _ => {
            options
                .min_connections(pool.core_pool_size)
                .max_connections(pool.core_pool_size.max(10));
        }
    }
    #[cfg(feature = "sqlite")]
    options.map_sqlx_sqlite_opts(|options| {
        use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
        // A commit that was acknowledged survives a power cut.
        options
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
    });
    // The server's zone stays what it is: `update_time` of a starter's table is written by it.
    #[cfg(feature = "mysql")]
    options.map_sqlx_mysql_opts(|options| options.timezone(None));
    #[cfg(feature = "postgres")]
    options.map_sqlx_postgres_pool_opts(|options| options.after_release(alive));
    #[cfg(feature = "mysql")]
    options.map_sqlx_mysql_pool_opts(|options| options.after_release(alive));
    let missing = known == DbBackend::Sqlite && !is_memory(&url) && !url.contains("mode=");
    // SQLite does not wait for its lock while another process makes the log of a new file.
    steadily(|| Database::connect(options.clone())).await.map_err(|error| {
        let what = match missing {
            true => {
                "the database cannot be opened (with `?mode=rwc` behind its name, the file is made)"
            }
            false => "the database cannot be reached",
        };
        Error::new(ErrorKind::Store, what).with_source(error)
    })
}

/// Why a URL is none of ours; without quoting what may be a password.
fn unknown(url: &str) -> String {
    let scheme = match url.split_once(':') {
        Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric()) => scheme,
        _ => {
            return "the database URL has no scheme: it starts with sqlite://, postgres:// or mysql:// (for \
                    MariaDB too)"
                .to_owned();
        }
    };
    match scheme {
        "postgres" | "postgresql" => feature(scheme, "postgres"),
        "mysql" | "mariadb" => feature(scheme, "mysql"),
        "sqlite" => feature(scheme, "sqlite"),
        _ => format!(
            "the database URL starts with `{scheme}:`: use sqlite://, postgres:// or mysql:// (for MariaDB \
             too)"
        ),
    }
}

fn feature(scheme: &str, feature: &str) -> String {
    format!(
        "the database URL starts with `{scheme}:`, and this program was built without that driver: add the \
         feature `{feature}` to the dependency on task-retry"
    )
}

/// Closes a connection that comes back from a statement which was given up and does not answer
/// either. The pool's own test would wait for it for ever, and keep its place.
#[cfg(any(feature = "postgres", feature = "mysql"))]
fn alive<C: sea_orm::sqlx::Connection>(
    connection: &mut C,
    _: sea_orm::sqlx::pool::PoolConnectionMetadata,
) -> futures_util::future::BoxFuture<'_, Result<bool, sea_orm::sqlx::Error>> {
    Box::pin(async {
        let ping = tokio::time::timeout(Duration::from_secs(2), connection.ping());
        ping.await.unwrap_or(Err(sea_orm::sqlx::Error::PoolTimedOut)).map(|()| true)
    })
}

fn driver(url: &str) -> Option<DbBackend> {
    match url.split_once(':')?.0 {
        "sqlite" if cfg!(feature = "sqlite") => Some(DbBackend::Sqlite),
        "postgres" | "postgresql" if cfg!(feature = "postgres") => Some(DbBackend::Postgres),
        "mysql" | "mariadb" if cfg!(feature = "mysql") => Some(DbBackend::MySql),
        _ => None,
    }
}

fn is_memory(url: &str) -> bool {
    url.contains(":memory:")
        || url.contains("mode=memory")
        || url == "sqlite:"
        || url == "sqlite://"
}

/// How many bytes a statement with many rows may have.
///
/// sqlx 0.9.0 writes each record of TLS by itself and leaves Nagle's algorithm on. A connection to this
/// machine has segments that are larger than a record, so that the second record waits until the server
/// acknowledges the first, which it does after 40 ms. Over a network it waits for a round trip, and
/// statements of many rows are worth that.
pub(super) async fn statement_bytes(db: &DatabaseConnection) -> usize {
    if is_here(db) && is_encrypted(db).await { RECORD } else { BYTES }
}

/// Whether the server is reached by the loopback interface.
fn is_here(db: &DatabaseConnection) -> bool {
    let host: Option<String> = match db.inner {
        #[cfg(feature = "postgres")]
        sea_orm::DatabaseConnectionType::SqlxPostgresPoolConnection(_) => {
            let options = db.get_postgres_connection_pool().connect_options();
            options.get_socket().is_none().then(|| options.get_host().to_owned())
        }
        #[cfg(feature = "mysql")]
        sea_orm::DatabaseConnectionType::SqlxMySqlPoolConnection(_) => {
            let options = db.get_mysql_connection_pool().connect_options();
            options.get_socket().is_none().then(|| options.get_host().to_owned())
        }
        _ => None,
    };
    host.is_some_and(|host| is_loopback(&host))
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    address.map_or(host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
}

/// As the server has it; no, where it does not tell.
async fn is_encrypted(db: &DatabaseConnection) -> bool {
    let backend = db.get_database_backend();
    let sql = match backend {
        DbBackend::MySql => "show session status like 'Ssl_cipher'",
        _ => "select 'cipher', coalesce(cipher, '') from pg_stat_ssl where pid = pg_backend_pid()",
    };
    let row = db.query_one_raw(Sql::new(backend, sql).build()).await;
    let cipher = row.ok().flatten().and_then(|row| get::<String>(&row, 1).ok());
    cipher.is_some_and(|cipher| !cipher.is_empty())
}

/// A connection beside the pool, with the pool's own settings, so that a busy pool cannot delay it.
/// It belongs to the tokio runtime that calls this. SQLite in memory has just the one.
pub(crate) fn sibling(db: &DatabaseConnection) -> DatabaseConnection {
    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
    macro_rules! sibling {
        ($connector:ident, $from:ident, $pool:ident) => {{
            let options = db.$pool().connect_options();
            let pool = sea_orm::sqlx::pool::PoolOptions::new()
                .max_connections(1)
                .acquire_timeout(Duration::from_secs(5))
                .connect_lazy_with((*options).clone());
            sea_orm::$connector::$from(pool)
        }};
    }
    match db.inner {
        #[cfg(feature = "postgres")]
        sea_orm::DatabaseConnectionType::SqlxPostgresPoolConnection(_) => {
            sibling!(SqlxPostgresConnector, from_sqlx_postgres_pool, get_postgres_connection_pool)
        }
        #[cfg(feature = "mysql")]
        sea_orm::DatabaseConnectionType::SqlxMySqlPoolConnection(_) => {
            sibling!(SqlxMySqlConnector, from_sqlx_mysql_pool, get_mysql_connection_pool)
        }
        #[cfg(feature = "sqlite")]
        sea_orm::DatabaseConnectionType::SqlxSqlitePoolConnection(_) => {
            let options = db.get_sqlite_connection_pool().connect_options();
            let name = options.get_filename();
            // A name that no file has: in memory, or shared under a name.
            if !name.is_file() {
                return db.clone();
            }
            sibling!(SqlxSqliteConnector, from_sqlx_sqlite_pool, get_sqlite_connection_pool)
        }
        _ => db.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn this_machine_is_known_by_its_names() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "::1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["db", "db.localhost.example", "10.0.0.1", "0.0.0.0", "[fe80::1]", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
