//! What is kept beside the tasks, in tables of its own: values that functions returned, attempts
//! that failed, and sources that are paused.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::table;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[expect(elided_lifetimes_in_paths, reason = "async_trait must see the words of SeaORM's trait")]
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        for table in &TABLES {
            if table.is_there(db).await? {
                continue;
            }
            match db.get_database_backend() {
                DbBackend::MySql => db.execute_unprepared(table.mysql).await?,
                DbBackend::Postgres => {
                    db.execute_unprepared(table.postgres).await?;
                    db.execute_unprepared(table.postgres_comment).await?
                }
                _ => db.execute_unprepared(table.sqlite).await?,
            };
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        for table in &TABLES {
            if table::is_ours(db, table.name).await? {
                db.execute_unprepared(&format!("drop table if exists {}", table.name)).await?;
            }
        }
        Ok(())
    }
}

/// A table and what makes it.
pub(crate) struct Dependent {
    pub(crate) name: &'static str,
    columns: &'static [&'static str],
    mysql: &'static str,
    postgres: &'static str,
    postgres_comment: &'static str,
    sqlite: &'static str,
}

impl Dependent {
    /// Whether it is there; an error if there is something else of its name.
    async fn is_there(&self, db: &impl ConnectionTrait) -> Result<bool, DbErr> {
        let columns = table::columns(db, self.name).await?;
        if columns.is_empty() {
            return Ok(false);
        }
        let has = |name: &str| columns.iter().any(|column| column.name == name);
        let missing: Vec<&str> = self.columns.iter().copied().filter(|name| !has(name)).collect();
        if missing.is_empty() {
            return Ok(true);
        }
        Err(DbErr::Migration(format!(
            "there is a table `{}` already, but it is not task-retry's: it lacks {}; rename that table",
            self.name,
            missing.join(", ")
        )))
    }
}

pub(crate) const TABLES: [Dependent; 3] = [RESULT, ATTEMPT, PAUSE];

const RESULT: Dependent = Dependent {
    name: "t_task_retry_result",
    columns: &["task_id", "fence", "result"],
    mysql: "\
create table if not exists t_task_retry_result (
  task_id bigint unsigned not null comment 'the task',
  fence bigint not null comment 'fence of the task when it succeeded; with another one this is void',
  result longtext not null comment 'what the function returned, as JSON',
  primary key (task_id)
) engine = InnoDB default charset = utf8mb4 collate = utf8mb4_bin row_format = dynamic
  comment = 'results of tasks (created by task-retry-migrations)'",
    postgres: "\
create table if not exists t_task_retry_result (
  task_id bigint primary key,
  fence bigint not null,
  result text not null
)",
    postgres_comment: "\
comment on table t_task_retry_result is 'results of tasks (created by task-retry-migrations)'",
    sqlite: "\
create table if not exists t_task_retry_result (
  -- results of tasks (created by task-retry-migrations)
  task_id integer not null primary key,
  fence bigint not null,
  result text not null
)",
};

const ATTEMPT: Dependent = Dependent {
    name: "t_task_retry_attempt",
    columns: &["task_id", "fence", "attempt", "start_time", "duration_ms", "worker", "error"],
    mysql: "\
create table if not exists t_task_retry_attempt (
  task_id bigint unsigned not null comment 'the task',
  fence bigint not null comment 'fence of the attempt',
  attempt int not null comment 'number of the attempt, from 1',
  start_time datetime(3) not null comment 'when it started',
  duration_ms bigint not null comment 'how long it ran, in milliseconds',
  worker varchar(64) not null comment 'the process that ran it',
  error text not null comment 'why it failed',
  primary key (task_id, fence)
) engine = InnoDB default charset = utf8mb4 collate = utf8mb4_bin row_format = dynamic
  comment = 'failed attempts of tasks (created by task-retry-migrations)'",
    postgres: "\
create table if not exists t_task_retry_attempt (
  task_id bigint not null,
  fence bigint not null,
  attempt integer not null,
  start_time timestamptz(3) not null,
  duration_ms bigint not null,
  worker varchar(64) not null,
  error text not null,
  primary key (task_id, fence)
)",
    postgres_comment: "\
comment on table t_task_retry_attempt is 'failed attempts of tasks (created by task-retry-migrations)'",
    sqlite: "\
create table if not exists t_task_retry_attempt (
  -- failed attempts of tasks (created by task-retry-migrations)
  task_id bigint not null,
  fence bigint not null,
  attempt integer not null,
  start_time datetime_text not null,
  duration_ms bigint not null,
  worker varchar(64) not null,
  error text not null,
  primary key (task_id, fence)
) without rowid",
};

const PAUSE: Dependent = Dependent {
    name: "t_task_retry_pause",
    columns: &["project_name", "source", "create_time"],
    mysql: "\
create table if not exists t_task_retry_pause (
  project_name varchar(100) not null comment 'project',
  source int not null comment 'source of which nothing is run',
  create_time datetime(3) not null default current_timestamp(3) comment 'since when',
  primary key (project_name, source)
) engine = InnoDB default charset = utf8mb4 collate = utf8mb4_bin row_format = dynamic
  comment = 'paused sources (created by task-retry-migrations)'",
    postgres: "\
create table if not exists t_task_retry_pause (
  project_name varchar(100) not null,
  source integer not null,
  create_time timestamptz(3) not null default now(),
  primary key (project_name, source)
)",
    postgres_comment: "\
comment on table t_task_retry_pause is 'paused sources (created by task-retry-migrations)'",
    sqlite: "\
create table if not exists t_task_retry_pause (
  -- paused sources (created by task-retry-migrations)
  project_name varchar(100) not null,
  source integer not null,
  create_time datetime_text not null default (strftime('%Y-%m-%d %H:%M:%f', 'now')),
  primary key (project_name, source)
) without rowid",
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::MARK;

    #[test]
    fn every_table_carries_the_mark() {
        for table in &TABLES {
            for sql in [table.mysql, table.postgres_comment, table.sqlite] {
                assert!(sql.contains(MARK) && sql.contains(table.name), "{sql}");
            }
        }
    }
}
