//! What people and history jobs ask: lists, counts and changes from outside of an attempt.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::DbErr;

use super::row::{self, get, id};
use super::sql::{OPEN, Sql};
use super::{Store, error_text, id_at};
use crate::clock::{Millis, floor_millis, to_millis};
use crate::{Source, Status, TaskId, TaskLog};

/// Which tasks of the project; conditions are joined by "and".
///
/// ```
/// use task_retry::{Filter, Status};
///
/// let filter = Filter::all().source(30).status(Status::Failed).limit(50);
/// # let _ = filter;
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct Filter {
    ids: Option<Vec<i64>>,
    sources: Vec<i32>,
    statuses: Vec<Status>,
    name: Option<String>,
    msg_key: Option<String>,
    unique_key: Option<String>,
    topic: Option<String>,
    created_before: Option<Millis>,
    created_after: Option<Millis>,
    stranded: Option<Millis>,
    after: Option<i64>,
    limit: Option<u64>,
}

impl Filter {
    /// Every task of the project.
    pub fn all() -> Self {
        Self::default()
    }

    /// These tasks.
    pub fn ids(ids: impl IntoIterator<Item = TaskId>) -> Self {
        Self { ids: Some(ids.into_iter().map(|id| id.0).collect()), ..Self::default() }
    }

    /// Rows of the starter that nothing picks up: accepted (status 0), never due (`next_send_time`
    /// null), held by nobody, and accepted longer ago than this.
    ///
    /// They may be running in the starter's process, or wait there for a call: adopt them with
    /// [`Tasks::retry_now`](crate::Tasks::retry_now) once it is down.
    pub fn stranded(older_than: Duration) -> Self {
        Self { stranded: Some(floor_millis(older_than)), ..Self::default() }
    }

    /// Of this source; more than one: of any of them.
    pub fn source(mut self, source: impl Source) -> Self {
        self.sources.push(source.number());
        self
    }

    /// In this status; more than one: in any of them.
    pub fn status(mut self, status: Status) -> Self {
        self.statuses.push(status);
        self
    }

    /// Of the function of this name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// With this `msg_key`.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.msg_key = Some(key.into());
        self
    }

    /// With this unique key.
    pub fn unique_key(mut self, key: impl Into<String>) -> Self {
        self.unique_key = Some(key.into());
        self
    }

    /// With this topic.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// Accepted before this time.
    pub fn created_before(mut self, time: DateTime<Utc>) -> Self {
        self.created_before = Some(to_millis(time));
        self
    }

    /// Accepted at this time or later.
    pub fn created_after(mut self, time: DateTime<Utc>) -> Self {
        self.created_after = Some(to_millis(time));
        self
    }

    /// With a greater id than this: the next page after the last id of a page.
    pub fn after(mut self, id: TaskId) -> Self {
        self.after = Some(id.0);
        self
    }

    /// At most so many, the smallest ids first.
    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The limit, of changes.
    pub(crate) fn most(&self) -> u64 {
        self.limit.unwrap_or(u64::MAX)
    }

    fn conditions(&self, store: &Store, sql: &mut Sql, now: Millis) {
        sql.push(" where project_name = ").bind(store.project.as_str());
        if let Some(ids) = &self.ids {
            sql.push(" and id in ").list(store.ids(ids));
        }
        if !self.sources.is_empty() {
            sql.push(" and source in ").list(self.sources.iter().copied());
        }
        if !self.statuses.is_empty() {
            sql.push(" and status in ").list(self.statuses.iter().map(|status| status.number()));
        }
        for (column, value) in [
            ("task_name", &self.name),
            ("msg_key", &self.msg_key),
            ("unique_key", &self.unique_key),
            ("topic", &self.topic),
        ] {
            if let Some(value) = value {
                sql.push(" and ").push(column).push(" = ").bind(value.as_str());
            }
        }
        if let Some(time) = self.created_before {
            sql.push(" and create_time < ").bind(store.times.down(time));
        }
        if let Some(time) = self.created_after {
            sql.push(" and create_time >= ").bind(store.times.down(time));
        }
        if let Some(age) = self.stranded {
            sql.push(" and ").push(STRANDED).push(" and create_time <= ");
            sql.bind(store.times.down(now.saturating_sub(age)));
        }
        if let Some(after) = self.after {
            sql.push(" and id > ").bind(store.id(after));
        }
    }
}

const STRANDED: &str = "status = 0 and next_send_time is null and locked_by is null";

/// What a change from outside does to a row; each adds 1 to the fence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Change {
    RetryNow,
    Cancel,
    Purge,
}

/// How far a change got.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) changed: u64,
    pub(crate) leased: Vec<TaskId>,
    /// Where to go on; `None` at the end.
    pub(crate) last: Option<i64>,
    pub(crate) seen: u64,
}

impl Change {
    fn eligible(self) -> &'static str {
        match self {
            Self::RetryNow => {
                "(status in (1, 2, 4) or (status = 0 and next_send_time is null and locked_by is null))"
            }
            Self::Cancel => OPEN,
            Self::Purge => "1 = 1",
        }
    }
}

impl Store {
    pub(crate) async fn list(&self, filter: &Filter, now: Millis) -> Result<Vec<TaskLog>, DbErr> {
        let mut sql = self.sql("select ");
        sql.push(&self.columns("")).push(" from t_sys_mq_resend_log");
        filter.conditions(self, &mut sql, now);
        sql.push(" order by id limit ").bind(filter.limit.unwrap_or(1000).min(100_000) as i64);
        let rows = self.query(sql.build()).await?.into_iter();
        Ok(self.decode(rows, |row| row::decode(row, &self.times, None)))
    }

    pub(crate) async fn count(&self, filter: &Filter, now: Millis) -> Result<u64, DbErr> {
        let mut sql = self.sql("select count(*) from t_sys_mq_resend_log");
        filter.conditions(self, &mut sql, now);
        let rows = self.query(sql.build()).await?;
        Ok(rows.first().map(|row| get::<i64>(row, 0)).transpose()?.unwrap_or(0).max(0) as u64)
    }

    /// Changes up to `most` rows with an id greater than `after`.
    pub(crate) async fn change(
        &self,
        change: Change,
        filter: &Filter,
        after: Option<i64>,
        most: u64,
        now: Millis,
    ) -> Result<Page, DbErr> {
        let mut sql = self.sql("select id, locked_by, next_send_time from t_sys_mq_resend_log");
        filter.conditions(self, &mut sql, now);
        sql.push(" and ").push(change.eligible());
        if let Some(after) = after {
            sql.push(" and id > ").bind(self.id(after));
        }
        sql.push(" order by id limit ").bind(most as i64);
        let rows = self.query(sql.build()).await?;
        let mut page = Page::default();
        let mut free = Vec::new();
        for row in &rows {
            let id = id(row, 0, self.backend())?;
            let locked: Option<String> = get(row, 1)?;
            let until = super::row::time(row, 2, &self.times)?;
            let leased = locked.is_some() && until.is_some_and(|until| to_millis(until) > now);
            if leased && change != Change::Cancel {
                page.leased.push(TaskId(id));
            } else {
                free.push(id);
            }
            page.last = Some(id);
        }
        page.seen = rows.len() as u64;
        if !free.is_empty() {
            page.changed = self.change_ids(change, &free, now).await?;
        }
        Ok(page)
    }

    async fn change_ids(&self, change: Change, ids: &[i64], now: Millis) -> Result<u64, DbErr> {
        let mut sql = self.sql(match change {
            Change::Purge => "delete from t_sys_mq_resend_log",
            _ => "update t_sys_mq_resend_log set fence = fence + 1, ",
        });
        match change {
            Change::RetryNow => {
                sql.push("status = 0, send_count = 0, crash_count = 0, next_send_time = ");
                sql.bind(self.times.down(now)).push(", locked_by = null");
            }
            Change::Cancel => {
                sql.push("status = 4, next_send_time = null, locked_by = null, unique_key = null");
            }
            Change::Purge => {}
        }
        if change != Change::Purge {
            self.touch(&mut sql, "update_time", now);
        }
        sql.push(" where id in ").list(self.ids(ids)).push(" and project_name = ");
        sql.bind(self.project.as_str()).push(" and ").push(change.eligible());
        if change != Change::Cancel {
            sql.push(" and (locked_by is null or next_send_time <= ");
            sql.bind(self.times.down(now)).push(")");
        }
        match change {
            Change::Purge => self.delete(sql, ids).await,
            _ => Ok(self.execute(sql.build()).await?.rows_affected()),
        }
    }

    /// Ends an open task as succeeded, from outside; `false` if there is no such open task.
    pub(crate) async fn complete(&self, task: TaskId, now: Millis) -> Result<bool, DbErr> {
        Ok(self.execute(self.completion(task, now).build()).await?.rows_affected() == 1)
    }

    pub(super) fn completion(&self, task: TaskId, now: Millis) -> Sql {
        let mut sql = self.sql(
            "update t_sys_mq_resend_log set status = 3, crash_count = 0, next_send_time = null, \
             locked_by = null, fence = fence + 1",
        );
        self.touch(&mut sql, "update_time", now).push(" where id = ").bind(self.id(task.0));
        sql.push(" and project_name = ").bind(self.project.as_str()).push(" and ").push(OPEN);
        sql
    }

    /// Fails an open task from outside, if its fence is still this one.
    pub(crate) async fn fail(
        &self,
        task: &TaskLog,
        to: Status,
        next: Option<Millis>,
        reason: &str,
        now: Millis,
    ) -> Result<bool, DbErr> {
        let mut sql = self
            .sql("update t_sys_mq_resend_log set fence = fence + 1, locked_by = null, status = ");
        sql.bind(to.number()).push(", send_count = ");
        sql.bind(i32::try_from(task.send_count.saturating_add(1)).unwrap_or(i32::MAX));
        sql.push(", next_send_time = ").bind(self.times.maybe(next));
        sql.push(", last_error = ").bind(error_text(reason));
        self.touch(&mut sql, "update_time", now).push(" where id = ").bind(self.id(task.id.0));
        sql.push(" and fence = ").bind(task.fence).push(" and ").push(OPEN);
        Ok(self.execute(sql.build()).await?.rows_affected() == 1)
    }

    /// Takes an open task, whoever holds it, if its fence is still this one.
    pub(crate) async fn seize(
        &self,
        task: &TaskLog,
        until: Millis,
        now: Millis,
    ) -> Result<bool, DbErr> {
        let mut sql = self.sql("update t_sys_mq_resend_log set fence = fence + 1, locked_by = ");
        sql.bind(self.worker.as_str()).push(", next_send_time = ").bind(self.times.up(until));
        self.touch(&mut sql, "update_time", now).push(" where id = ").bind(self.id(task.id.0));
        sql.push(" and fence = ").bind(task.fence).push(" and ").push(OPEN);
        Ok(self.execute(sql.build()).await?.rows_affected() == 1)
    }

    /// Replaces the context of a row that nobody holds.
    pub(crate) async fn edit_context(
        &self,
        task: TaskId,
        context: &str,
        now: Millis,
    ) -> Result<bool, DbErr> {
        let mut sql = self.sql("update t_sys_mq_resend_log set fence = fence + 1, context = ");
        sql.bind(context);
        self.touch(&mut sql, "update_time", now).push(" where id = ").bind(self.id(task.0));
        sql.push(" and project_name = ").bind(self.project.as_str());
        sql.push(" and locked_by is null");
        Ok(self.execute(sql.build()).await?.rows_affected() == 1)
    }

    /// The first source above `after` that has open rows, with the name in one of them. Asked again
    /// and again, this jumps along the index instead of reading it.
    pub(crate) async fn next_source(
        &self,
        after: i32,
    ) -> Result<Option<(i32, Option<String>)>, DbErr> {
        let mut sql = self.sql("select source, task_name from t_sys_mq_resend_log where ");
        sql.push("project_name = ").bind(self.project.as_str()).push(" and source > ").bind(after);
        sql.push(" and next_send_time is not null and ").push(OPEN);
        sql.push(" order by source limit 1");
        let rows = self.query(sql.build()).await?;
        rows.first().map(|row| Ok((get(row, 0)?, get(row, 1)?))).transpose()
    }

    /// Deletes up to `most` ended rows that were accepted before `before`.
    ///
    /// Along the time-ordered primary key in tables of ours, along `idx_create_time` in a starter's.
    pub(crate) async fn remove_history(
        &self,
        statuses: &[Status],
        before: Millis,
        most: u32,
    ) -> Result<u64, DbErr> {
        let mut sql = self.sql("select id from t_sys_mq_resend_log where project_name = ");
        sql.bind(self.project.as_str()).push(" and status in ");
        sql.list(statuses.iter().map(|status| status.number()));
        sql.push(" and create_time < ").bind(self.times.down(before));
        if self.layout.starter {
            sql.push(" order by create_time");
        } else {
            sql.push(" and id < ").bind(self.id(id_at(before))).push(" order by id");
        }
        sql.push(" limit ").bind(i64::from(most));
        let rows = self.query(sql.build()).await?;
        let found: Vec<i64> =
            rows.iter().map(|row| id(row, 0, self.backend())).collect::<Result<_, _>>()?;
        if found.is_empty() {
            return Ok(0);
        }
        let mut sql = self.sql("delete from t_sys_mq_resend_log where id in ");
        sql.list(self.ids(&found)).push(" and status in ");
        sql.list(statuses.iter().map(|status| status.number()));
        self.delete(sql, &found).await
    }
}
