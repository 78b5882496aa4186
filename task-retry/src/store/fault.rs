//! What a database error means for the protocol.

use std::time::{Duration, Instant};

use sea_orm::DbErr;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
use sea_orm::{RuntimeErr, sqlx};

use crate::{Error, ErrorKind};

/// The kinds of database errors that the protocol tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A deadlock, a lock time-out, a serialization failure: repeat the whole transaction.
    Repeat,
    /// The statement never reached the database.
    Unsent,
    /// The connection was lost: the statement may have been carried out or not.
    Lost,
    /// A unique index was violated.
    Duplicate,
    /// A value does not fit; another row of the batch may.
    Data,
    /// Anything else: wrong privileges, a missing table, a full disk.
    Refused,
}

impl Fault {
    pub(crate) fn of(error: &DbErr) -> Self {
        match error {
            DbErr::ConnectionAcquire(_) => Self::Unsent,
            error if is_timeout(error) => Self::Lost,
            #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
            DbErr::Conn(RuntimeErr::SqlxError(error)) => match Self::of_sqlx(error) {
                Self::Lost => Self::Unsent,
                fault => fault,
            },
            #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
            DbErr::Exec(RuntimeErr::SqlxError(error))
            | DbErr::Query(RuntimeErr::SqlxError(error)) => Self::of_sqlx(error),
            _ => Self::Refused,
        }
    }

    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
    fn of_sqlx(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed => Self::Lost,
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => Self::Unsent,
            sqlx::Error::Encode(_) => Self::Data,
            sqlx::Error::Database(error) => {
                #[cfg(feature = "mysql")]
                if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
                    return Self::of_mysql(error.number());
                }
                if error.is_unique_violation() {
                    return Self::Duplicate;
                }
                let code = error.code().unwrap_or_default();
                #[cfg(feature = "postgres")]
                if error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some() {
                    return Self::of_postgres(&code);
                }
                Self::of_sqlite(code.parse().unwrap_or(0))
            }
            _ => Self::Refused,
        }
    }

    #[cfg(feature = "mysql")]
    fn of_mysql(number: u16) -> Self {
        match number {
            // Deadlock, lock wait time-out, record changed since read, NOWAIT.
            1213 | 1205 | 1020 | 3572 => Self::Repeat,
            1062 => Self::Duplicate,
            // Out of range, wrong value, too long, too large a packet, column null, bad characters.
            1264 | 1265 | 1292 | 1366 | 1406 | 1153 | 1048 | 1300 | 1301 => Self::Data,
            // Shutdown, interrupted, killed, no Galera quorum, too many connections: answered, so
            // nothing was done.
            1053 | 1317 | 1927 | 1047 | 1040 | 1290 | 1836 => Self::Unsent,
            _ => Self::Refused,
        }
    }

    #[cfg(feature = "postgres")]
    fn of_postgres(state: &str) -> Self {
        match state {
            "40001" | "40P01" | "55P03" => Self::Repeat,
            // Starting up, too many connections, read only after a fail-over.
            "57P03" | "53300" | "25006" => Self::Unsent,
            // Shut down or crashed in between: perhaps after the commit.
            "57P01" | "57P02" | "57P05" => Self::Lost,
            _ if state.starts_with("08") => Self::Lost,
            _ if state.starts_with("22") || state == "54000" || state == "23502" => Self::Data,
            _ => Self::Refused,
        }
    }

    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
    fn of_sqlite(code: i32) -> Self {
        // The low byte is the primary result code.
        match code & 0xff {
            5 | 6 => Self::Repeat,
            18 | 20 => Self::Data,
            _ => Self::Refused,
        }
    }
}

/// How long the runtime waits for the answer to a statement of its own.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);

const NO_ANSWER: &str = "the database did not answer in time";

/// Gives a statement up that is not answered in time: the database is frozen, its host is gone and
/// nobody says so, or somebody keeps a lock. It may be carried out all the same.
pub(crate) async fn in_time<T>(
    limit: Duration,
    statement: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, DbErr> {
    let answer = tokio::time::timeout(limit, statement).await;
    answer.unwrap_or_else(|_| Err(DbErr::Custom(NO_ANSWER.to_owned())))
}

/// Whether a statement was given up by [`in_time`].
pub(crate) fn is_timeout(error: &DbErr) -> bool {
    matches!(error, DbErr::Custom(what) if what == NO_ANSWER)
}

/// Repeats what failed with a deadlock or its like, a bounded number of times, and not for long: what
/// waited for a lock each time, as for the one writer of SQLite, may wait for its own caller.
pub(crate) async fn steadily<T, F, Fut>(mut run: F) -> Result<T, DbErr>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, DbErr>>,
{
    const LONG: Duration = Duration::from_secs(10);
    let start = Instant::now();
    let mut tries = 0;
    loop {
        match run().await {
            Err(error)
                if tries < 20 && start.elapsed() < LONG && Fault::of(&error) == Fault::Repeat =>
            {
                tries += 1;
                let most = 2_u64 << tries.min(6);
                tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=most))).await;
            }
            result => return result,
        }
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        let (kind, what) = match Fault::of(&error) {
            Fault::Unsent => (ErrorKind::Store, "the database cannot be reached"),
            Fault::Lost => (ErrorKind::Store, "the connection to the database was lost"),
            Fault::Data => (ErrorKind::Context, "the database cannot hold a value"),
            Fault::Repeat => {
                (ErrorKind::Store, "a transaction of somebody else's holds what this needs")
            }
            _ => (ErrorKind::Store, "the database refused a statement"),
        };
        Error::new(kind, what).with_source(error)
    }
}
