//! What is kept beside the tasks, in tables of its own: the value of a success and the attempts that
//! failed. Both are written by the transaction that ends the attempt, and deleted by the one that
//! deletes the task, so none is ever seen, or left, without the row that it belongs to.

use std::collections::{HashMap, HashSet};

use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, IsolationLevel, SqliteTransactionMode,
    TransactionOptions, TransactionTrait,
};
use tracing::debug;

use super::row::{get, id, status, time};
use super::sql::{Sql, Times};
use super::{Settlement, Store, postgres};
use crate::clock::Millis;
use crate::{Attempt, Status, TaskId};

/// Failed attempts that are kept of a task: the last ones.
pub(crate) const ATTEMPTS: i64 = 20;

/// The tables whose rows belong to a task.
pub(crate) const DEPENDENTS: [&str; 2] = ["t_task_retry_result", "t_task_retry_attempt"];

/// The part of a failed attempt that its settlement does not say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Attempted {
    pub(crate) start: Millis,
    /// How long it took, in milliseconds.
    pub(crate) millis: i64,
}

/// How a task stands, for those who wait for its end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stand {
    pub(crate) status: Status,
    /// Of a task that was given up.
    pub(crate) error: Option<String>,
    /// The value that the success of the row's own fence has left.
    pub(crate) result: Option<String>,
}

impl Settlement {
    /// Whether more is written than the task's row.
    pub(super) fn has_more(&self) -> bool {
        self.result.is_some() || self.attempt.is_some()
    }
}

impl Store {
    /// Times in tables that only we write: UTC with milliseconds.
    pub(super) fn own_times(&self) -> Times {
        Times { backend: self.backend(), offset: 0, seconds: false }
    }

    /// Writes the ends of attempts and what is kept of them, all in one transaction.
    pub(super) async fn settle_and_keep(
        &self,
        rows: &[Settlement],
        now: Millis,
    ) -> Result<HashSet<i64>, DbErr> {
        let landed = if self.backend() == DbBackend::Postgres {
            let written = self.query(postgres::settle_and_keep(self, rows, now).build()).await?;
            written.iter().map(|row| id(row, 0, DbBackend::Postgres)).collect::<Result<_, _>>()?
        } else {
            let transaction = self.begin().await?;
            let landed = self.land(&transaction, rows, now).await?;
            let kept = |row: &&Settlement| landed.contains(&row.id);
            self.keep(&transaction, rows.iter().filter(kept)).await?;
            transaction.commit().await?;
            landed
        };
        self.forget_attempts(rows).await;
        Ok(landed)
    }

    async fn land(
        &self,
        transaction: &DatabaseTransaction,
        rows: &[Settlement],
        now: Millis,
    ) -> Result<HashSet<i64>, DbErr> {
        let sql = self.ends(rows, now);
        let written = transaction.execute_raw(sql.build()).await?.rows_affected();
        if written == rows.len() as u64 {
            return Ok(rows.iter().map(|row| row.id).collect());
        }
        self.written(transaction, rows.iter()).await
    }

    async fn keep<'a>(
        &self,
        transaction: &DatabaseTransaction,
        rows: impl Iterator<Item = &'a Settlement> + Clone,
    ) -> Result<(), DbErr> {
        let results =
            rows.clone().filter_map(|row| Some((row.id, row.fence, &**row.result.as_ref()?)));
        self.keep_results(transaction, results).await?;
        self.keep_attempts(transaction, rows).await
    }

    /// Stores values of successes: (task, fence, JSON).
    pub(crate) async fn keep_results<'a, C: ConnectionTrait>(
        &self,
        db: &C,
        results: impl Iterator<Item = (i64, i64, &'a str)>,
    ) -> Result<(), DbErr> {
        let mut sql = self.sql(match self.backend() {
            DbBackend::Postgres => {
                "insert into t_task_retry_result (task_id, fence, result) values "
            }
            _ => "replace into t_task_retry_result (task_id, fence, result) values ",
        });
        let mut empty = true;
        for (task, fence, result) in results {
            sql.push(if empty { "(" } else { ", (" }).bind(self.id(task)).push(", ");
            sql.bind(fence).push(", ").bind(result).push(")");
            empty = false;
        }
        if empty {
            return Ok(());
        }
        if self.backend() == DbBackend::Postgres {
            sql.push(
                " on conflict (task_id) do update set fence = excluded.fence, \
                 result = excluded.result",
            );
        }
        db.execute_raw(sql.build()).await.map(drop)
    }

    /// Ends an open task of this source as succeeded with a value, from outside; `false` if there is
    /// no such open task.
    pub(crate) async fn complete_with(
        &self,
        task: TaskId,
        source: i32,
        result: &str,
        now: Millis,
    ) -> Result<bool, DbErr> {
        let transaction = self.begin().await?;
        let mut sql = self.completion(task, now);
        sql.push(" and source = ").bind(source);
        if transaction.execute_raw(sql.build()).await?.rows_affected() != 1 {
            transaction.rollback().await?;
            return Ok(false);
        }
        // The row is locked now, so its fence is what the update has made it.
        let holders = self.holders_on(&transaction, &[task.0]).await?;
        let results = holders.get(&task.0).map(|holder| (task.0, holder.fence, result));
        self.keep_results(&transaction, results.into_iter()).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Stores failed attempts.
    pub(crate) async fn keep_attempts<'a, C: ConnectionTrait>(
        &self,
        db: &C,
        rows: impl Iterator<Item = &'a Settlement>,
    ) -> Result<(), DbErr> {
        let columns = "t_task_retry_attempt \
                       (task_id, fence, attempt, start_time, duration_ms, worker, error) values ";
        let mut sql = self.sql(match self.backend() {
            DbBackend::Postgres => "insert into ",
            _ => "replace into ",
        });
        sql.push(columns);
        let times = self.own_times();
        let mut empty = true;
        for (row, attempt) in rows.filter_map(|row| Some((row, row.attempt?))) {
            sql.push(if empty { "(" } else { ", (" }).bind(self.id(row.id)).push(", ");
            sql.bind(row.fence).push(", ").bind(row.send_count as i32).push(", ");
            sql.bind(times.down(attempt.start)).push(", ").bind(attempt.millis).push(", ");
            sql.bind(self.worker.as_str()).push(", ");
            sql.bind(row.error.clone().unwrap_or_default()).push(")");
            empty = false;
        }
        if empty {
            return Ok(());
        }
        if self.backend() == DbBackend::Postgres {
            sql.push(" on conflict do nothing");
        }
        db.execute_raw(sql.build()).await.map(drop)
    }

    /// Deletes all but the last attempts of these tasks. A task that was claimed less often than so
    /// many attempts are kept, as nearly all are, costs nothing; what is not deleted now is at the
    /// next attempt.
    async fn forget_attempts(&self, rows: &[Settlement]) {
        let many = |row: &&Settlement| row.attempt.is_some() && row.fence > ATTEMPTS;
        let ids: Vec<i64> = rows.iter().filter(many).map(|row| row.id).collect();
        if !ids.is_empty()
            && let Err(error) = self.forget_attempts_of(&ids).await
        {
            debug!(%error, "old attempts cannot be deleted now");
        }
    }

    async fn forget_attempts_of(&self, ids: &[i64]) -> Result<(), DbErr> {
        let mut sql = self.sql(
            "select task_id, max(fence) from (select task_id, fence, row_number() over \
             (partition by task_id order by fence desc) as number from t_task_retry_attempt \
             where task_id in ",
        );
        sql.list(self.ids(ids)).push(") numbered where number > ").bind(ATTEMPTS);
        sql.push(" group by task_id");
        let old = self.query(sql.build()).await?;
        if old.is_empty() {
            return Ok(());
        }
        let mut sql = self.sql("delete from t_task_retry_attempt where ");
        for (index, row) in old.iter().enumerate() {
            sql.push(if index == 0 { "(task_id = " } else { " or (task_id = " });
            sql.bind(self.id(id(row, 0, self.backend())?)).push(" and fence <= ");
            sql.bind(get::<i64>(row, 1)?).push(")");
        }
        self.execute(sql.build()).await.map(drop)
    }

    /// The failed attempts of a task of this project, the first first.
    pub(crate) async fn attempts(&self, task: TaskId) -> Result<Vec<Attempt>, DbErr> {
        let mut sql = self.sql(
            "select a.attempt, a.start_time, a.duration_ms, a.worker, a.error \
             from t_task_retry_attempt a join t_sys_mq_resend_log t on t.id = a.task_id \
             where a.task_id = ",
        );
        sql.bind(self.id(task.0)).push(" and t.project_name = ").bind(self.project.as_str());
        sql.push(" order by a.fence");
        let times = self.own_times();
        let mut attempts = Vec::new();
        for row in &self.query(sql.build()).await? {
            attempts.push(Attempt {
                number: get::<i32>(row, 0)?.max(0) as u32,
                start: time(row, 1, &times)?.unwrap_or_default(),
                duration: std::time::Duration::from_millis(get::<i64>(row, 2)?.max(0) as u64),
                worker: get(row, 3)?,
                error: get(row, 4)?,
            });
        }
        // They may be a few more until the next failure.
        let old = attempts.len().saturating_sub(ATTEMPTS as usize);
        Ok(attempts.split_off(old))
    }

    /// How these tasks of the project stand; those that are not there are left out.
    pub(crate) async fn stands(
        &self,
        ids: &[i64],
        values: bool,
    ) -> Result<HashMap<i64, Stand>, DbErr> {
        let mut sql = self
            .sql("select t.id, t.status, case when t.status = 2 then t.last_error else null end");
        if values {
            sql.push(", r.result from t_sys_mq_resend_log t left join t_task_retry_result r ");
            sql.push("on r.task_id = t.id and r.fence = t.fence");
        } else {
            sql.push(" from t_sys_mq_resend_log t");
        }
        sql.push(" where t.id in ").list(self.ids(ids)).push(" and t.project_name = ");
        sql.bind(self.project.as_str());
        let rows = self.query(sql.build()).await?;
        rows.iter()
            .map(|row| {
                let number = status(row, 1, self.backend())?;
                let stand = Stand {
                    // One that a newer version knows is not an end for this one.
                    status: Status::from_number(number).unwrap_or(Status::Executing),
                    error: get(row, 2)?,
                    result: if values { get(row, 3)? } else { None },
                };
                Ok((id(row, 0, self.backend())?, stand))
            })
            .collect()
    }

    /// Deletes tasks by this statement, and what is kept beside those of `ids` that it deleted; one
    /// transaction, so that no crash parts them.
    pub(super) async fn delete(&self, tasks: Sql, ids: &[i64]) -> Result<u64, DbErr> {
        let transaction = self.begin().await?;
        let deleted = transaction.execute_raw(tasks.build()).await?.rows_affected();
        if deleted > 0 {
            for table in DEPENDENTS {
                transaction.execute_raw(self.orphans(table, ids).build()).await?;
            }
        }
        transaction.commit().await?;
        Ok(deleted)
    }

    /// Looks through what is kept beside tasks for what belongs to none, since somebody else (the
    /// starter's history job, a person) deleted the task. Returns how far it looked; `None`: to the end.
    pub(crate) async fn sweep(
        &self,
        table: &str,
        after: i64,
        most: u32,
    ) -> Result<Option<i64>, DbErr> {
        let mut sql = self.sql("select k.task_id, case when t.id is null then 1 else 0 end from (select distinct task_id from ");
        sql.push(table).push(" where task_id > ").bind(self.id(after));
        sql.push(" order by task_id limit ").bind(i64::from(most));
        sql.push(") k left join t_sys_mq_resend_log t on t.id = k.task_id order by k.task_id");
        let rows = self.query(sql.build()).await?;
        let mut orphans = Vec::new();
        let mut last = None;
        for row in &rows {
            let task = id(row, 0, self.backend())?;
            if get::<i32>(row, 1)? == 1 {
                orphans.push(task);
            }
            last = Some(task);
        }
        if !orphans.is_empty() {
            let transaction = self.begin().await?;
            transaction.execute_raw(self.orphans(table, &orphans).build()).await?;
            transaction.commit().await?;
        }
        Ok(last.filter(|_| rows.len() as u64 == u64::from(most)))
    }

    /// Deletes what is kept beside those of these tasks that are not there.
    fn orphans(&self, table: &str, ids: &[i64]) -> Sql {
        let mut sql = self.sql("delete from ");
        sql.push(table).push(" where task_id in ").list(self.ids(ids));
        sql.push(" and not exists (select 1 from t_sys_mq_resend_log t where t.id = ");
        sql.push(table).push(".task_id)");
        sql
    }

    /// A short transaction: READ COMMITTED, since MySQL's REPEATABLE READ locks gaps; on SQLite the
    /// one writer from the start.
    async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        let sqlite = self.backend() == DbBackend::Sqlite;
        self.db
            .pool()
            .begin_with_options(TransactionOptions {
                isolation_level: (!sqlite).then_some(IsolationLevel::ReadCommitted),
                access_mode: None,
                sqlite_transaction_mode: sqlite.then_some(SqliteTransactionMode::Immediate),
            })
            .await
    }
}
