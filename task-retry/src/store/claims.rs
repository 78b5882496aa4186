//! Claims: which rows are due, and taking them.

use std::borrow::Cow;

use sea_orm::{DbBackend, DbErr, QueryResult};

use super::row::{get, id};
use super::sql::{OPEN, Sql};
use super::{Store, mysql, postgres, row, sqlite};
use crate::TaskLog;
use crate::clock::{Millis, to_datetime};

/// From this count on a task is suspected of killing its process.
pub(crate) const SUSPECT: u32 = 2;

/// Suspects are looked for among so many rows.
const AMONG: i64 = 1000;
/// How many processes have died that held a row, the one included whose lease has run out.
const CRASHES: &str = "crash_count + case when locked_by is null then 0 else 1 end";

/// Which due rows to take.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) sources: Vec<i32>,
    /// These rows, whatever their status, unless they are under lease.
    pub(crate) ids: Option<Vec<i64>>,
    pub(crate) limit: u32,
    /// Of all rows only those of this share.
    pub(crate) shard: Option<Shard>,
    /// What has this time or an earlier one is due.
    pub(crate) now: Millis,
    /// The end of the lease.
    pub(crate) until: Millis,
    /// No row before this time is due; the index need not be read from its beginning.
    pub(crate) floor: Option<Millis>,
    pub(crate) which: Which,
    /// Where suspects are claimed, those that were found.
    pub(crate) suspects: Vec<i64>,
    /// Also rows whose holder let its lease run out, ...
    pub(crate) take_over: bool,
    /// Leases that ended up to then have ended for certain.
    pub(crate) expired: Millis,
    /// ... but for these, which this process holds itself.
    pub(crate) except: Vec<i64>,
}

/// A share of the rows: those whose id leaves `index` when divided by `total`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shard {
    pub(crate) index: u32,
    pub(crate) total: u32,
}

impl Shard {
    pub(crate) fn has(self, id: i64) -> bool {
        id.rem_euclid(i64::from(self.total)) == i64::from(self.index)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Which {
    /// Rows that are not suspected of killing their process.
    Innocent,
    Suspect,
}

/// What a claim has taken.
pub(crate) enum Claimed {
    Rows(std::vec::IntoIter<QueryResult>),
    /// Where a claim has to decode its rows itself.
    Tasks(std::vec::IntoIter<TaskLog>),
}

impl Claimed {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.len(),
            Self::Tasks(tasks) => tasks.len(),
        }
    }

    /// Decodes the next ones, at most so many.
    pub(crate) fn take(&mut self, most: usize, store: &Store, claim: &Claim) -> Vec<TaskLog> {
        let rows = match self {
            Self::Tasks(tasks) => return tasks.take(most).collect(),
            Self::Rows(rows) => rows,
        };
        let known = row::Known {
            project: &store.project,
            worker: &store.worker,
            until: to_datetime(claim.until),
            now: to_datetime(claim.now),
        };
        let rows = rows.take(most);
        match store.backend() {
            #[cfg(feature = "postgres")]
            DbBackend::Postgres => store.decode(rows, |row| row::decode_claimed(row, &known)),
            _ => store.decode(rows, |row| row::decode(row, &store.times, Some(&known))),
        }
    }
}

impl Store {
    /// Takes due rows; they come back as they are now, but for the status, which is the one before
    /// where that matters (an overdue `Waiting` row).
    pub(crate) async fn claim(&self, claim: &Claim) -> Result<Vec<TaskLog>, DbErr> {
        Ok(self.claim_rows(claim).await?.take(usize::MAX, self, claim))
    }

    /// The same, for whoever has no time to decode them.
    pub(crate) async fn claim_rows(&self, claim: &Claim) -> Result<Claimed, DbErr> {
        let mut claim = Cow::Borrowed(claim);
        if claim.which == Which::Suspect && claim.ids.is_none() {
            let suspects = self.suspects(&claim).await?;
            if suspects.is_empty() {
                return Ok(Claimed::Rows(Vec::new().into_iter()));
            }
            claim.to_mut().suspects = suspects;
        }
        let claim = &*claim;
        let sql = match self.backend() {
            DbBackend::MySql => {
                let tasks = mysql::claim(self, self.db.pool(), claim).await?;
                return Ok(Claimed::Tasks(tasks.into_iter()));
            }
            DbBackend::Postgres => postgres::claim(self, claim),
            _ => sqlite::claim(self, claim),
        };
        Ok(Claimed::Rows(self.query(sql.build()).await?.into_iter()))
    }

    /// Whether there is anything to claim, locked or not.
    pub(crate) async fn is_due(&self, claim: &Claim) -> Result<bool, DbErr> {
        if claim.which == Which::Suspect {
            return Ok(!self.suspects(claim).await?.is_empty());
        }
        let claim = Claim { limit: 1, ..claim.clone() };
        let mut sql = self.sql("select 1 from t_sys_mq_resend_log where ");
        self.due(&mut sql, &claim);
        Ok(!self.query(sql.build()).await?.is_empty())
    }

    /// The condition, order and limit of a claim.
    pub(super) fn due(&self, sql: &mut Sql, claim: &Claim) {
        if let Some(ids) = &claim.ids {
            self.of_sources(sql, claim).push(" and id in ").list(self.ids(ids));
            sql.push(" and (locked_by is null or next_send_time is null or next_send_time <= ");
            sql.bind(self.times.down(claim.expired)).push(") order by id limit ");
            sql.bind(i64::from(claim.limit));
            return;
        }
        self.open_and_due(sql, claim).push(" and ").push(CRASHES);
        match claim.which {
            Which::Innocent => sql.push(" < 2"),
            Which::Suspect => sql.push(" >= 2 and id in ").list(self.ids(&claim.suspects)),
        };
        sql.push(" order by next_send_time limit ").bind(i64::from(claim.limit));
    }

    /// The suspects among the first rows that are due, locked or not. However long the backlog is, it is
    /// not read for them: as it gets shorter they come to its head.
    async fn suspects(&self, claim: &Claim) -> Result<Vec<i64>, DbErr> {
        let mut sql = self.sql("select id from (select id, ");
        sql.push(CRASHES).push(" as crashes, next_send_time from t_sys_mq_resend_log where ");
        self.open_and_due(&mut sql, claim).push(" order by next_send_time limit ").bind(AMONG);
        sql.push(") due where crashes >= 2 order by next_send_time limit ").bind(AMONG / 10);
        let backend = self.backend();
        self.query(sql.build()).await?.iter().map(|row| id(row, 0, backend)).collect()
    }

    pub(super) fn of_sources<'a>(&self, sql: &'a mut Sql, claim: &Claim) -> &'a mut Sql {
        sql.push("project_name = ").bind(self.project.as_str());
        match claim.sources[..] {
            [source] => sql.push(" and source = ").bind(source),
            _ => sql.push(" and source in ").list(claim.sources.iter().copied()),
        }
    }

    fn open_and_due<'a>(&self, sql: &'a mut Sql, claim: &Claim) -> &'a mut Sql {
        self.of_sources(sql, claim).push(" and ").push(OPEN).push(" and next_send_time <= ");
        sql.bind(self.times.down(claim.now));
        if let Some(floor) = claim.floor {
            sql.push(" and next_send_time >= ").bind(self.times.down(floor));
        }
        if let Some(Shard { index, total }) = claim.shard {
            sql.push(" and id % ").bind(i64::from(total));
            sql.push(" = ").bind(i64::from(index));
        }
        if !claim.take_over {
            return sql.push(" and locked_by is null");
        }
        if claim.expired < claim.now {
            sql.push(" and (locked_by is null or next_send_time <= ");
            sql.bind(self.times.down(claim.expired)).push(")");
        }
        if !claim.except.is_empty() {
            sql.push(" and id not in ").list(self.ids(&claim.except));
        }
        sql
    }

    /// The first due time of each of these sources, if it has open rows: one small statement.
    pub(crate) async fn first_due(
        &self,
        sources: &[(i32, Option<Millis>)],
    ) -> Result<Vec<(i32, Millis)>, DbErr> {
        let mut found = Vec::new();
        for sources in sources.chunks(100) {
            found.extend(self.first_due_of(sources).await?);
        }
        Ok(found)
    }

    async fn first_due_of(
        &self,
        sources: &[(i32, Option<Millis>)],
    ) -> Result<Vec<(i32, Millis)>, DbErr> {
        let mut sql = self.sql("");
        for (index, (source, floor)) in sources.iter().enumerate() {
            sql.push(if index == 0 { "" } else { " union all " });
            // A sub-select of its own, since not every dialect takes `limit` inside a union.
            let time = match self.backend() {
                DbBackend::Postgres => postgres::finite("next_send_time"),
                _ => "next_send_time".to_owned(),
            };
            sql.push("select * from (select source, ").push(&time);
            sql.push(" as first_due from t_sys_mq_resend_log where ");
            sql.push("project_name = ").bind(self.project.as_str()).push(" and source = ");
            sql.bind(*source).push(" and ").push(OPEN);
            match floor {
                Some(floor) => {
                    sql.push(" and next_send_time >= ").bind(self.times.down(*floor));
                }
                None => {
                    sql.push(" and next_send_time is not null");
                }
            }
            sql.push(" order by next_send_time limit 1) s").push(&index.to_string());
        }
        let rows = self.query(sql.build()).await?;
        rows.iter()
            .map(|row| {
                let time = row::time(row, 1, &self.times)?.unwrap_or_default();
                Ok((get(row, 0)?, time.timestamp_millis()))
            })
            .collect()
    }
}
