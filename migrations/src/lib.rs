//! Creates and upgrades `t_sys_mq_resend_log`, the table of [task-retry](https://docs.rs/task-retry).
//!
//! `task-retry` calls [`up`] when it starts, so most programs never name this crate. It stands on
//! its own for those who migrate from a pipeline:
//!
//! - the command line `task-retry-migrations up | down | status`,
//! - [`up`], [`down`] and [`status`] on a SeaORM connection,
//! - [`Migrator`], for programs that drive SeaORM migrations themselves,
//! - plain SQL for database administrators in `sql/`: one script a database, and
//!   `mysql-from-starter.sql` for a table of the Java starter. They record the migrations as done,
//!   so that a program without DDL rights starts on what they made.
//!
//! ```no_run
//! # async fn example() -> Result<(), sea_orm_migration::DbErr> {
//! use sea_orm_migration::sea_orm::Database;
//!
//! let db = Database::connect("postgres://shop@localhost/shop").await?;
//! task_retry_migrations::up(&db).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is done to a database
//! The task table; three small tables of what is kept beside tasks; and
//! `t_sys_mq_resend_log_migrations`, where the applied migrations are recorded apart from the
//! application's own `seaql_migrations`.
//!
//! | migration | up | down |
//! | --- | --- | --- |
//! | `m20261125_000001_create_task_log` | the table with the starter's columns, if there is none | drops the table, if this crate made it |
//! | `m20261125_000002_add_retry_columns` | nine columns and up to three indexes, each if absent | drops those columns and indexes |
//! | `m20261125_000003_create_results_attempts_pauses` | `t_task_retry_result`, `t_task_retry_attempt` and `t_task_retry_pause`, each if absent | drops those of them that this crate made |
//!
//! A table that the starter made keeps all that it has: its rows, column types and indexes. It is
//! never dropped either: a table is ours only if it says so itself, by the words `created by
//! task-retry-migrations` in its comment (on SQLite, which has no table comments, in its stored
//! `create table` statement). The mark is written by the statement that makes the table (on
//! PostgreSQL in its transaction), so no crash separates the two, and it travels with dumps.
//! A table whose mark is lost is kept.
//!
//! On MySQL and MariaDB the new columns come in one `alter table` and the indexes in another, so
//! that the server can add the columns instantly and build the indexes online. Either waits for
//! transactions that are open on the table, and statements behind it wait too.

mod m20261125_000001_create_task_log;
mod m20261125_000002_add_retry_columns;
mod m20261125_000003_create_results_attempts_pauses;
mod migrate;
mod table;

pub use migrate::{MigrationState, State, down, status, up};

use sea_orm_migration::prelude::*;

/// The task table.
pub const TABLE: &str = "t_sys_mq_resend_log";

/// Where the applied migrations are recorded.
pub const MIGRATION_TABLE: &str = "t_sys_mq_resend_log_migrations";

/// The migrations of the task table, for programs that drive SeaORM migrations themselves.
///
/// [`up`] and [`down`] do the same and are safe when many processes start at once.
#[derive(Clone, Copy, Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261125_000001_create_task_log::Migration),
            Box::new(m20261125_000002_add_retry_columns::Migration),
            Box::new(m20261125_000003_create_results_attempts_pauses::Migration),
        ]
    }

    fn migration_table_name() -> DynIden {
        Alias::new(MIGRATION_TABLE).into_iden()
    }

    /// Refuses: SeaORM's `fresh` drops every table of the database, and this one is shared with
    /// the application's own.
    async fn fresh<'c, C>(_db: C) -> Result<(), DbErr>
    where
        C: IntoSchemaManagerConnection<'c>,
    {
        Err(DbErr::Migration(
            "`fresh` would drop every table of the database, also those of the application; \
             use `refresh`, which drops only what these migrations made"
                .to_owned(),
        ))
    }
}
