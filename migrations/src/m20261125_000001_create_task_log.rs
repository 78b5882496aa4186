//! The starter's table, unless there is one.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::TABLE;
use crate::table::Table;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[expect(elided_lifetimes_in_paths, reason = "async_trait must see the words of SeaORM's trait")]
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        if let Some(table) = Table::read(db).await? {
            return check(&table);
        }
        match db.get_database_backend() {
            DbBackend::MySql => db.execute_unprepared(MYSQL).await?,
            DbBackend::Postgres => {
                db.execute_unprepared(POSTGRES).await?;
                db.execute_unprepared(POSTGRES_COMMENT).await?
            }
            _ => db.execute_unprepared(SQLITE).await?,
        };
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        if Table::read(db).await?.is_some_and(|table| table.is_ours()) {
            db.execute_unprepared("drop table if exists t_sys_mq_resend_log").await?;
        }
        Ok(())
    }
}

/// A table of this name and another shape is someone else's: better said now than at every insert.
fn check(table: &Table) -> Result<(), DbErr> {
    let missing: Vec<&str> =
        COLUMNS.into_iter().filter(|column| !table.has_column(column)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(DbErr::Migration(format!(
        "there is a table `{TABLE}` already, but it is not the starter's: it lacks {}; \
         add what is missing, or rename that table",
        missing.join(", ")
    )))
}

const COLUMNS: [&str; 11] = [
    "id",
    "project_name",
    "source",
    "msg_key",
    "status",
    "send_count",
    "topic",
    "context",
    "next_send_time",
    "create_time",
    "update_time",
];

/// The binary collation makes MySQL compare as the other databases do.
const MYSQL: &str = "\
create table if not exists t_sys_mq_resend_log (
  id bigint unsigned not null comment 'primary key, ordered by time',
  project_name varchar(100) not null default '' comment 'project; with the source it names the kind of task',
  source int not null comment 'source of the task',
  msg_key varchar(191) not null default '' comment 'key of the task',
  status tinyint not null default 0 comment 'state: 0 executing, 1 retrying, 2 failed, 3 succeeded, 4 cancelled, 5 waiting',
  send_count int not null default 0 comment 'retries: attempts that failed',
  topic varchar(255) not null default '' comment 'topic of the message',
  context longtext null comment 'body of the message or arguments of the task',
  next_send_time datetime(3) null comment 'when it is due, or the end of its lease',
  create_time datetime(3) not null default current_timestamp(3) comment 'when it was created',
  update_time datetime(3) not null default current_timestamp(3) on update current_timestamp(3) comment 'when it was last changed',
  primary key (id)
) engine = InnoDB default charset = utf8mb4 collate = utf8mb4_bin row_format = dynamic
  comment = 'tasks and their retries (created by task-retry-migrations)'";

/// A row is written twice more, by a claim and by its end. Each puts an entry of its own beside the row's
/// first one, and in a page without room PostgreSQL looks for dead ones among all its rows, in vain mostly.
const POSTGRES: &str = "\
create table if not exists t_sys_mq_resend_log (
  id bigint primary key with (fillfactor = 45),
  project_name varchar(100) not null default '',
  source integer not null,
  msg_key varchar(191) not null default '',
  status smallint not null default 0,
  send_count integer not null default 0,
  topic varchar(255) not null default '',
  context text null,
  next_send_time timestamptz(3) null,
  create_time timestamptz(3) not null default now(),
  update_time timestamptz(3) not null default now()
)";

const POSTGRES_COMMENT: &str = "\
comment on table t_sys_mq_resend_log is 'tasks and their retries (created by task-retry-migrations)'";

/// `datetime_text` is SeaORM's word for a text column of times.
const SQLITE: &str = "\
create table if not exists t_sys_mq_resend_log (
  -- tasks and their retries (created by task-retry-migrations)
  id integer not null primary key,
  project_name varchar(100) not null default '',
  source integer not null,
  msg_key varchar(191) not null default '',
  status integer not null default 0,
  send_count integer not null default 0,
  topic varchar(255) not null default '',
  context text null,
  next_send_time datetime_text null,
  create_time datetime_text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  update_time datetime_text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now'))
)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::MARK;

    #[test]
    fn every_table_we_create_carries_the_mark() {
        for sql in [MYSQL, POSTGRES_COMMENT, SQLITE] {
            assert!(sql.contains(MARK), "{sql}");
        }
    }
}
