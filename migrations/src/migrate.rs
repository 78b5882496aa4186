//! Running the migrations: once, whoever else runs them at the same time.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{
    DatabaseConnection, DatabaseTransaction, DbBackend, IsolationLevel, SqliteTransactionMode,
    TransactionOptions, TransactionTrait,
};

use crate::m20261125_000002_add_retry_columns::COLUMNS;
use crate::m20261125_000003_create_results_attempts_pauses::TABLES;
use crate::table::{self, Table};
use crate::{MIGRATION_TABLE, Migrator, TABLE};

/// Brings the database up to date; does nothing, and needs no more than `SELECT`, if it is.
///
/// Any number of processes may call this at once. A database that a newer release has migrated
/// further is up to date too, so that old and new processes can run side by side.
///
/// # Errors
/// The database's own, and [`DbErr::Migration`] if there is a table of this name that is not the
/// starter's, or if the migrations are recorded but their table is gone.
pub async fn up(db: &DatabaseConnection) -> Result<(), DbErr> {
    run(db, Change::Up).await
}

/// Rolls back the last `steps` migrations, or, with `None`, all of them and their record.
///
/// The first migration's rollback drops a table that this crate made, with the tasks in it, and
/// keeps one that it found.
///
/// # Errors
/// The database's own, and [`DbErr::Custom`] if a newer release has migrated the database further.
pub async fn down(db: &DatabaseConnection, steps: Option<u32>) -> Result<(), DbErr> {
    run(db, Change::Down(steps)).await
}

/// Every migration with its state, oldest first. Changes nothing.
///
/// # Errors
/// The database's own.
pub async fn status(db: &DatabaseConnection) -> Result<Vec<MigrationState>, DbErr> {
    let applied = applied(db).await?;
    let known = Migrator::migrations();
    let known: Vec<&str> = known.iter().map(|migration| migration.name()).collect();
    let ours = known.iter().map(|name| MigrationState {
        name: (*name).to_owned(),
        state: if applied.iter().any(|it| it == name) { State::Applied } else { State::Pending },
    });
    let newer = applied
        .iter()
        .filter(|name| !known.contains(&name.as_str()))
        .map(|name| MigrationState { name: name.clone(), state: State::Unknown });
    Ok(ours.chain(newer).collect())
}

/// One migration, as [`status`] tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigrationState {
    /// The name that is recorded, e.g. `m20261125_000001_create_task_log`.
    pub name: String,
    /// Whether it was applied.
    pub state: State,
}

/// Whether a migration was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Recorded as done.
    Applied,
    /// Not done yet.
    Pending,
    /// Recorded as done by a newer release, which alone knows what it is.
    Unknown,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Applied => "applied",
            State::Pending => "pending",
            State::Unknown => "applied by a newer release",
        })
    }
}

#[derive(Clone, Copy)]
enum Change {
    Up,
    Down(Option<u32>),
}

const TRIES: u32 = 8;

/// Every step looks at what is there before it acts, so a change that lost a race is simply tried
/// again: on MySQL, whose DDL no transaction holds together, and wherever a lock was not granted.
async fn run(db: &DatabaseConnection, change: Change) -> Result<(), DbErr> {
    for lost in 0..TRIES - 1 {
        match attempt(db, change).await {
            Err(error) if refused_by_the_database(&error) => {}
            done => return done,
        }
        let wait = Duration::from_millis(10 << lost);
        let jitter = RandomState::new().hash_one(lost) % 1024;
        tokio::time::sleep(wait + wait.mul_f64(jitter as f64 / 1024.0)).await;
    }
    attempt(db, change).await
}

async fn attempt(db: &DatabaseConnection, change: Change) -> Result<(), DbErr> {
    if matches!(change, Change::Up) && is_current(db).await? {
        return Ok(());
    }
    if db.get_database_backend() == DbBackend::MySql {
        return apply(db, change).await;
    }
    let transaction = begin_alone(db).await?;
    match apply(&transaction, change).await {
        Ok(()) => transaction.commit().await,
        Err(error) => {
            // The error that is worth telling is the first one.
            let _ = transaction.rollback().await;
            Err(error)
        }
    }
}

async fn apply<'c>(db: impl IntoSchemaManagerConnection<'c>, change: Change) -> Result<(), DbErr> {
    match change {
        Change::Up => Migrator::up(db, None).await,
        Change::Down(None) => Migrator::reset(db).await,
        Change::Down(steps) => Migrator::down(db, steps).await,
    }
}

/// A transaction that no other migrating process holds: PostgreSQL and SQLite undo DDL with the
/// transaction, so there it all happens or nothing does. All work goes through this one
/// connection, which makes do with a pool of one and with PgBouncer.
async fn begin_alone(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let postgres = db.get_database_backend() == DbBackend::Postgres;
    let transaction = db
        .begin_with_options(TransactionOptions {
            // What waits for the lock must then see what its holder did.
            isolation_level: postgres.then_some(IsolationLevel::ReadCommitted),
            access_mode: None,
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        })
        .await?;
    if postgres {
        const LOCK: i64 = i64::from_be_bytes(*b"tskretry");
        transaction.execute_unprepared(&format!("select pg_advisory_xact_lock({LOCK})")).await?;
    }
    Ok(transaction)
}

/// Whether all that this release knows is recorded and there.
async fn is_current(db: &DatabaseConnection) -> Result<bool, DbErr> {
    let applied = applied(db).await?;
    if !Migrator::migrations().iter().all(|it| applied.iter().any(|name| name == it.name())) {
        return Ok(false);
    }
    let mut missing = match Table::read(db).await? {
        None => vec!["the table itself"],
        Some(table) => {
            COLUMNS.iter().map(|it| it.name).filter(|name| !table.has_column(name)).collect()
        }
    };
    for table in &TABLES {
        if table::columns(db, table.name).await?.is_empty() {
            missing.push(table.name);
        }
    }
    if missing.is_empty() {
        return Ok(true);
    }
    Err(DbErr::Migration(format!(
        "`{MIGRATION_TABLE}` records all migrations as applied, but `{TABLE}` lacks: {}; restore it, \
         or drop `{MIGRATION_TABLE}` and migrate again",
        missing.join(", ")
    )))
}

/// The names of the applied migrations. Unlike SeaORM's own reading of them, this creates nothing
/// and takes names that a newer release has recorded.
async fn applied(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    if table::columns(db, MIGRATION_TABLE).await?.is_empty() {
        return Ok(Vec::new());
    }
    let query = Query::select()
        .column("version")
        .from(MIGRATION_TABLE)
        .order_by("version", Order::Asc)
        .take();
    db.query_all(&query).await?.iter().map(|row| row.try_get_by_index(0)).collect()
}

/// Whether the database understood and said no, as it does to the loser of a race. (Which code it
/// says so with differs by database, version and cluster; a refusal for good costs a second.)
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
fn refused_by_the_database(error: &DbErr) -> bool {
    use sea_orm_migration::sea_orm::RuntimeErr::SqlxError;
    match error {
        DbErr::Conn(SqlxError(it)) | DbErr::Exec(SqlxError(it)) | DbErr::Query(SqlxError(it)) => {
            it.as_database_error().is_some()
        }
        _ => false,
    }
}

#[cfg(not(any(feature = "sqlite", feature = "postgres", feature = "mysql")))]
fn refused_by_the_database(_: &DbErr) -> bool {
    false
}
