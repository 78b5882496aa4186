//! What the runtime asks of a database. One table, one project, one worker; the statements that
//! differ between databases live in one file each.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, ExecResult, QueryResult, Statement,
};

mod admin;
mod beside;
mod claims;
mod connect;
mod dedicated;
mod fault;
mod layout;
mod mysql;
mod pauses;
mod postgres;
mod row;
mod sql;
mod sqlite;

pub(crate) use self::admin::Change;
pub use self::admin::Filter;
pub(crate) use self::beside::{Attempted, DEPENDENTS, Stand};
pub(crate) use self::claims::{Claim, Claimed, SUSPECT, Shard, Which};
pub(crate) use self::connect::{connect, sibling};
use self::dedicated::Db;
pub(crate) use self::fault::{ANSWER, Fault, in_time, is_timeout, steadily};
pub(crate) use self::layout::Layout;
use self::row::{get, id, status};
pub(crate) use self::sql::Sql;
use self::sql::{OPEN, TABLE, Times};
use crate::clock::{Clock, Millis, to_datetime};
use crate::task::Options;
use crate::{Error, ErrorKind, Result, Status, TaskId, TaskLog};

/// A table, seen by one worker of one project.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) db: Db,
    pub(crate) project: String,
    pub(crate) worker: String,
    pub(crate) layout: Layout,
    pub(crate) times: Times,
    /// Claims without `skip locked`.
    pub(crate) optimistic: bool,
    /// Most bytes of a statement that has many rows.
    pub(crate) bytes: usize,
}

/// A task to store.
#[derive(Clone, Debug)]
pub(crate) struct NewRow {
    pub(crate) id: i64,
    pub(crate) source: i32,
    pub(crate) msg_key: String,
    pub(crate) topic: String,
    pub(crate) context: Option<String>,
    pub(crate) unique_key: Option<String>,
    pub(crate) task_name: Option<String>,
    pub(crate) max_retry: Option<i32>,
    pub(crate) expire: Option<Millis>,
    pub(crate) trace: Option<String>,
    /// Stored already claimed by this process.
    pub(crate) held: bool,
    /// When it is due, or the end of the lease.
    pub(crate) next: Millis,
}

/// What all rows of a batch have in common, in groups: it is bound once.
#[derive(Clone, Copy, Debug)]
struct Alike {
    due: bool,
    /// A source is one function, which has one name.
    function: bool,
    held: bool,
    trace: bool,
    rest: bool,
}

impl Alike {
    fn of(rows: &[NewRow]) -> Self {
        let alike =
            |alike: fn(&NewRow, &NewRow) -> bool| rows.iter().all(|row| alike(row, &rows[0]));
        Self {
            due: alike(|a, b| a.next == b.next),
            function: alike(|a, b| a.source == b.source),
            held: alike(|a, b| a.held == b.held),
            trace: alike(|a, b| a.trace == b.trace),
            rest: alike(|a, b| a.is_simple() && b.is_simple() || a.has_rest_of(b)),
        }
    }

    /// Nothing but ids and contexts differs.
    fn all(self) -> bool {
        self.due && self.function && self.held && self.trace && self.rest
    }
}

impl NewRow {
    fn locked_by(&self, store: &Store) -> Option<String> {
        self.held.then(|| store.worker.clone())
    }

    fn fence(&self) -> i64 {
        i64::from(self.held)
    }

    /// It has none of the columns that mostly are empty.
    fn is_simple(&self) -> bool {
        let texts = self.msg_key.is_empty() && self.topic.is_empty();
        let keys = self.unique_key.is_none() && self.trace.is_none();
        texts && keys && self.max_retry.is_none() && self.expire.is_none()
    }

    fn has_rest_of(&self, other: &Self) -> bool {
        self.max_retry == other.max_retry
            && self.expire == other.expire
            && self.msg_key == other.msg_key
            && self.topic == other.topic
            && self.unique_key == other.unique_key
    }

    /// How long its texts are.
    fn texts(&self) -> usize {
        let texts = [&self.context, &self.unique_key, &self.trace];
        let texts = texts.into_iter().flatten().map(String::len).sum::<usize>();
        texts + self.topic.len() + self.msg_key.len()
    }

    /// The row as a claim would return it.
    pub(crate) fn into_log(self, project: &str, worker: &str, now: Millis) -> TaskLog {
        let time = to_datetime;
        TaskLog {
            id: TaskId(self.id),
            project_name: project.to_owned(),
            source: self.source,
            msg_key: self.msg_key,
            status: Status::Executing,
            send_count: 0,
            topic: self.topic,
            context: self.context,
            next_send_time: Some(time(self.next)),
            create_time: time(now),
            update_time: time(now),
            fence: i64::from(self.held),
            locked_by: self.held.then(|| worker.to_owned()),
            crash_count: 0,
            unique_key: self.unique_key,
            task_name: self.task_name,
            max_retry: self.max_retry.map(|retries| retries.max(0) as u32),
            expire_time: self.expire.map(time),
            last_error: None,
            trace_context: self.trace,
            unreadable: None,
        }
    }
}

/// What became of a row that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Inserted {
    Stored,
    /// A task with this unique key exists.
    Duplicate(TaskId, Status),
    /// The id is in use: by this very row if its answer was lost before.
    IdTaken,
}

/// What is written at the end of an attempt, guarded by id, fence, worker and an open status.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settlement {
    pub(crate) id: i64,
    pub(crate) fence: i64,
    pub(crate) to: Status,
    pub(crate) send_count: u32,
    pub(crate) next: Option<Millis>,
    pub(crate) error: Option<String>,
    /// The value of a success, as JSON, to be kept with it.
    pub(crate) result: Option<Arc<str>>,
    /// A failed attempt, for its history.
    pub(crate) attempt: Option<Attempted>,
}

impl Settlement {
    /// About what it takes in a statement. Other ends than successes repeat their error on PostgreSQL, for
    /// their history, and on MySQL where a list is filled up.
    pub(crate) fn bytes(&self) -> usize {
        let result = self.result.as_ref().map(|result| result.len());
        match (self.to, result) {
            (Status::Succeeded, None) => 32,
            (Status::Succeeded, Some(result)) => 64 + result,
            _ => 160 + 2 * self.error.as_ref().map_or(0, String::len),
        }
    }

    /// Whether a row is as this has left it: written by a try whose answer was lost.
    fn is_as_written(&self, holder: &Holder) -> bool {
        holder.fence == self.fence
            && holder.locked_by.is_none()
            && holder.status == self.to.number()
            && holder.send_count == self.send_count as i32
    }
}

/// How an insert meets rows that are there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Conflict {
    /// The statement fails.
    Fail,
    /// The new row is left out.
    Skip,
    /// The new row is left out, and nothing waits long to find that out.
    SkipSoon,
}

/// Who holds a row now.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) fence: i64,
    pub(crate) locked_by: Option<String>,
    pub(crate) status: i16,
    pub(crate) send_count: i32,
}

impl Store {
    pub(crate) async fn new(
        db: DatabaseConnection,
        project: String,
        worker: String,
        layout: Layout,
        offset: i32,
        optimistic: bool,
    ) -> Result<Self, DbErr> {
        let backend = db.get_database_backend();
        let blind = backend == DbBackend::MySql && !mysql::skips_locked(&db).await?;
        let optimistic = optimistic || blind;
        let times = Times { backend, offset, seconds: layout.seconds };
        let bytes = connect::statement_bytes(&db).await;
        Ok(Self { db: db.into(), project, worker, layout, times, optimistic, bytes })
    }

    /// A store without a database, which must not be asked.
    pub(crate) fn disconnected(project: String, worker: String) -> Self {
        let times = Times { backend: DbBackend::Sqlite, offset: 0, seconds: false };
        let db = DatabaseConnection::default().into();
        let layout = Layout::widest();
        Self { db, project, worker, layout, times, optimistic: false, bytes: usize::MAX }
    }

    /// The same store through a connection that it keeps.
    pub(crate) fn kept(&self) -> Self {
        Self { db: self.db.kept(), ..self.clone() }
    }

    fn backend(&self) -> DbBackend {
        self.times.backend
    }

    /// How many of so many rows that wait are best stored with one statement.
    pub(crate) fn batch(&self, rows: usize) -> usize {
        match self.backend() {
            DbBackend::MySql => mysql::batch(rows),
            _ => rows,
        }
    }

    /// About what a row takes in a statement: MySQL's repeats what others bind once.
    pub(crate) fn row_bytes(&self, row: &NewRow) -> usize {
        let more = if self.backend() == DbBackend::MySql { 200 } else { 80 };
        more + row.texts()
    }

    /// How many rows one claim may ask for.
    pub(crate) fn most_claimed(&self) -> usize {
        match self.backend() {
            DbBackend::MySql => mysql::most_claimed(self.bytes),
            _ => usize::MAX,
        }
    }

    fn sql(&self, text: &str) -> Sql {
        Sql::new(self.backend(), text)
    }

    fn id(&self, id: i64) -> sea_orm::Value {
        match self.backend() {
            DbBackend::MySql => (id as u64).into(),
            _ => id.into(),
        }
    }

    fn ids(&self, ids: &[i64]) -> Vec<sea_orm::Value> {
        ids.iter().map(|id| self.id(*id)).collect()
    }

    async fn execute(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.db.execute_raw(statement).await
    }

    async fn query(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.db.query_all_raw(statement).await
    }

    /// The tasks of rows. One that cannot be named is left out: it is not this version's.
    fn decode(
        &self,
        rows: impl Iterator<Item = QueryResult>,
        decode: impl Fn(&QueryResult) -> Result<TaskLog, DbErr>,
    ) -> Vec<TaskLog> {
        let decode = |row| match decode(&row) {
            Ok(task) => Some(task),
            Err(error) => {
                tracing::warn!(%error, "a row of the table is left out");
                None
            }
        };
        rows.filter_map(decode).collect()
    }

    /// The columns of a task.
    fn columns(&self, prefix: &str) -> String {
        row::COLUMNS.map(|column| self.column(prefix, column)).join(", ")
    }

    /// A column. PostgreSQL's infinite times are beyond what others can hold.
    fn column(&self, prefix: &str, column: &str) -> String {
        let name = format!("{prefix}{column}");
        match self.backend() {
            DbBackend::Postgres if column.ends_with("_time") => postgres::finite(&name),
            _ => name,
        }
    }

    /// `, update_time = …`, except where the server does that.
    fn touch<'a>(&self, sql: &'a mut Sql, column: &str, now: Millis) -> &'a mut Sql {
        if self.layout.starter {
            return sql;
        }
        sql.push(", ").push(column).push(" = ").bind(self.times.down(now))
    }

    /// Asks the database for its time. SQLite's is this machine's.
    pub(crate) async fn sync(&self, clock: &Clock) -> Result<(), DbErr> {
        let asked = Instant::now();
        let sql = match self.backend() {
            DbBackend::Postgres => postgres::now(),
            DbBackend::MySql => mysql::now(),
            _ => {
                clock.set(crate::clock::system_now(), asked);
                return Ok(());
            }
        };
        let rows = self.query(sql.build()).await?;
        if let Some(row) = rows.first() {
            clock.set(get(row, 0)?, asked);
        }
        Ok(())
    }

    /// Turns what a caller gave into a row, or says why the table cannot hold it.
    pub(crate) fn row(
        &self,
        id: i64,
        source: i32,
        options: &Options,
        context: Option<String>,
    ) -> Result<NewRow> {
        let layout = &self.layout;
        fits("msg_key", &options.msg_key, layout.msg_key)?;
        fits("topic", &options.topic, layout.topic)?;
        if let Some(key) = &options.unique_key {
            fits("unique_key", key, 191)?;
            if key.is_empty() || key.ends_with(char::is_whitespace) {
                return Err(Error::new(
                    ErrorKind::Context,
                    format!("the unique key {key:?} is empty or ends with white space"),
                ));
            }
        }
        if let Some(context) = &context {
            if context.len() > layout.context {
                return Err(Error::new(
                    ErrorKind::Context,
                    format!(
                        "the context has {} bytes, and this table's `context` column holds {}: store \
                         the data elsewhere and pass its id, or widen the column",
                        context.len(),
                        layout.context
                    ),
                ));
            }
            no_nul("context", context)?;
        }
        Ok(NewRow {
            id,
            source,
            msg_key: options.msg_key.clone(),
            topic: options.topic.clone(),
            context,
            unique_key: options.unique_key.clone(),
            task_name: None,
            max_retry: options.max_retry.map(|retries| i32::try_from(retries).unwrap_or(i32::MAX)),
            expire: None,
            trace: None,
            held: false,
            next: 0,
        })
    }

    /// Stores rows in one statement. On MySQL, a duplicate fails the whole statement.
    pub(crate) async fn insert<C: ConnectionTrait>(
        &self,
        db: &C,
        rows: &[NewRow],
        now: Millis,
    ) -> Result<Vec<Inserted>, DbErr> {
        self.insert_with(db, rows, now, Conflict::Skip).await
    }

    /// Stores rows that have no keys in a statement of their own, which is quicker. It fails as a whole
    /// if an id is taken.
    pub(crate) async fn insert_plain(
        &self,
        rows: &[NewRow],
        now: Millis,
    ) -> Result<Vec<Inserted>, DbErr> {
        self.insert_with(&self.db, rows, now, Conflict::Fail).await
    }

    /// Stores rows that have keys. It does not wait long for a transaction of somebody else's that
    /// holds one of them, but fails with [`Fault::Repeat`].
    pub(crate) async fn insert_keyed(
        &self,
        rows: &[NewRow],
        now: Millis,
    ) -> Result<Vec<Inserted>, DbErr> {
        if self.backend() == DbBackend::MySql && !self.optimistic {
            self.query(mysql::probe_keys(self, rows).build()).await?;
        }
        self.insert_with(&self.db, rows, now, Conflict::SkipSoon).await
    }

    async fn insert_with<C: ConnectionTrait>(
        &self,
        db: &C,
        rows: &[NewRow],
        now: Millis,
        conflict: Conflict,
    ) -> Result<Vec<Inserted>, DbErr> {
        self.carry_out(db, self.insertion(rows, now, conflict), rows, conflict).await
    }

    /// The statement that stores rows.
    pub(crate) fn insertion(&self, rows: &[NewRow], now: Millis, conflict: Conflict) -> Sql {
        match self.backend() {
            DbBackend::MySql => mysql::insert(self, rows, now),
            DbBackend::Postgres => postgres::insert(self, rows, now, conflict),
            _ => sqlite::insert(self, rows, now, conflict),
        }
    }

    /// Stores these rows by their statement.
    pub(crate) async fn carry_out<C: ConnectionTrait>(
        &self,
        db: &C,
        sql: Sql,
        rows: &[NewRow],
        conflict: Conflict,
    ) -> Result<Vec<Inserted>, DbErr> {
        let stored: HashSet<i64> = match self.backend() {
            backend if backend == DbBackend::MySql || conflict == Conflict::Fail => {
                match db.execute_raw(sql.build()).await {
                    Ok(_) => return Ok(vec![Inserted::Stored; rows.len()]),
                    Err(error) if rows.len() == 1 && Fault::of(&error) == Fault::Duplicate => {
                        HashSet::new()
                    }
                    Err(error) => return Err(error),
                }
            }
            backend => {
                let stored = db.query_all_raw(sql.build()).await?;
                stored.iter().map(|row| id(row, 0, backend)).collect::<Result<_, _>>()?
            }
        };
        if stored.len() == rows.len() {
            return Ok(vec![Inserted::Stored; rows.len()]);
        }
        let refused: Vec<&NewRow> = rows.iter().filter(|row| !stored.contains(&row.id)).collect();
        let found = self.obstacles(db, &refused).await?;
        Ok(rows
            .iter()
            .map(|row| match stored.contains(&row.id) {
                true => Inserted::Stored,
                false => found.get(&row.id).copied().unwrap_or(Inserted::IdTaken),
            })
            .collect())
    }

    /// What stood in the way of rows that were not stored. A row that nothing stands in the way of
    /// any more is left out, and told apart by a new try.
    pub(crate) async fn obstacles<C: ConnectionTrait>(
        &self,
        db: &C,
        refused: &[&NewRow],
    ) -> Result<HashMap<i64, Inserted>, DbErr> {
        let mut found = HashMap::new();
        let keyed: Vec<_> = refused
            .iter()
            .filter_map(|row| Some((row.id, row.source, row.unique_key.as_ref()?)))
            .collect();
        if keyed.is_empty() {
            return Ok(found);
        }
        let select = |status: &str| {
            let mut sql = self.sql("select id, ");
            sql.push(status).push(", source, unique_key from t_sys_mq_resend_log where ");
            sql.push("project_name = ").bind(self.project.as_str()).push(" and (");
            for (index, (_, source, key)) in keyed.iter().enumerate() {
                sql.push(if index == 0 { "" } else { " or " }).push("(source = ").bind(*source);
                sql.push(" and unique_key = ").bind(key.as_str()).push(")");
            }
            sql
        };
        let mut sql = select("status");
        sql.push(")");
        let mut rows = db.query_all_raw(sql.build()).await?;
        if self.backend() == DbBackend::MySql && rows.len() < keyed.len() {
            // A row that was committed after the snapshot of the caller's transaction. The insert
            // has locked its place in the index already, and this locks no more.
            let mut sql = select("cast(0 as signed)");
            sql.push(") lock in share mode");
            rows.extend(db.query_all_raw(sql.build()).await?);
        }
        for row in &rows {
            let (other, source): (_, i32) = (id(row, 0, self.backend())?, get(row, 2)?);
            let status = Status::from_number(status(row, 1, self.backend())?);
            let key: String = get(row, 3)?;
            for (id, ..) in keyed.iter().filter(|(_, s, k)| *s == source && **k == key) {
                let status = status.unwrap_or(Status::Executing);
                found.entry(*id).or_insert(Inserted::Duplicate(TaskId(other), status));
            }
        }
        Ok(found)
    }

    /// Writes the ends of attempts, and tells which of them took effect.
    pub(crate) async fn settle(
        &self,
        rows: &[Settlement],
        now: Millis,
    ) -> Result<Vec<bool>, DbErr> {
        if rows.iter().any(Settlement::has_more) {
            let landed = self.settle_and_keep(rows, now).await?;
            let lost = rows.iter().filter(|row| !landed.contains(&row.id));
            let written = self.written(&self.db, lost).await?;
            let took = |row: &Settlement| landed.contains(&row.id) || written.contains(&row.id);
            return Ok(rows.iter().map(took).collect());
        }
        let written = self.execute(self.ends(rows, now).build()).await?.rows_affected();
        if written == rows.len() as u64 {
            return Ok(vec![true; rows.len()]);
        }
        let written = self.written(&self.db, rows.iter()).await?;
        Ok(rows.iter().map(|row| written.contains(&row.id)).collect())
    }

    /// The statement that writes the ends of attempts.
    fn ends(&self, rows: &[Settlement], now: Millis) -> Sql {
        let success = rows.iter().all(|row| row.to == Status::Succeeded);
        match (self.backend(), success) {
            (DbBackend::MySql, true) => mysql::succeed(self, rows, now),
            (DbBackend::MySql, false) => mysql::settle(self, rows, now),
            (DbBackend::Postgres, true) => postgres::succeed(self, rows, now),
            (DbBackend::Postgres, false) => postgres::settle(self, rows, now),
            (_, true) => sqlite::succeed(self, rows, now),
            (_, false) => sqlite::settle(self, rows, now),
        }
    }

    /// Which rows are as their ends say: written now, or by a try whose answer was lost. The others
    /// are no longer ours.
    async fn written<'a, C: ConnectionTrait>(
        &self,
        db: &C,
        rows: impl Iterator<Item = &'a Settlement> + Clone,
    ) -> Result<HashSet<i64>, DbErr> {
        let ids: Vec<i64> = rows.clone().map(|row| row.id).collect();
        if ids.is_empty() {
            return Ok(HashSet::new());
        }
        let holders = self.holders_on(db, &ids).await?;
        let is_written = |row: &&Settlement| {
            holders.get(&row.id).is_some_and(|holder| row.is_as_written(holder))
        };
        Ok(rows.filter(is_written).map(|row| row.id).collect())
    }

    /// Who holds these rows, without waiting for any lock.
    pub(crate) async fn holders(&self, ids: &[i64]) -> Result<HashMap<i64, Holder>, DbErr> {
        self.holders_on(&self.db, ids).await
    }

    async fn holders_on<C: ConnectionTrait>(
        &self,
        db: &C,
        ids: &[i64],
    ) -> Result<HashMap<i64, Holder>, DbErr> {
        let mut sql = self.sql(
            "select id, fence, locked_by, status, send_count from t_sys_mq_resend_log where id in ",
        );
        sql.list(self.ids(ids));
        let rows = db.query_all_raw(sql.build()).await?;
        rows.iter()
            .map(|row| {
                let holder = Holder {
                    fence: get(row, 1)?,
                    locked_by: get(row, 2)?,
                    status: status(row, 3, self.backend())?,
                    send_count: get(row, 4)?,
                };
                Ok((id(row, 0, self.backend())?, holder))
            })
            .collect()
    }

    /// Extends the leases of these (id, fence); returns the ids for which that was done.
    pub(crate) async fn renew(
        &self,
        held: &[(i64, i64)],
        until: Millis,
    ) -> Result<HashSet<i64>, DbErr> {
        let backend = self.backend();
        let sql = match backend {
            DbBackend::MySql => {
                return Ok(mysql::renew(self, self.db.pool(), held, until)
                    .await?
                    .into_iter()
                    .collect());
            }
            DbBackend::Postgres => postgres::renew(self, held, until),
            _ => sqlite::renew(self, held, until),
        };
        let rows = self.query(sql.build()).await?;
        rows.iter().map(|row| id(row, 0, backend)).collect()
    }

    /// A single row: a lone call does not pay for arrays, nor for binding what mostly is empty.
    fn one(&self, sql: &mut Sql, row: &NewRow, now: Millis) {
        let now = self.times.down(now);
        let next = if row.held { self.times.up(row.next) } else { self.times.down(row.next) };
        sql.push(
            "insert into t_sys_mq_resend_log (id, project_name, source, task_name, context, \
             create_time, update_time, next_send_time, fence, locked_by, msg_key, topic, unique_key, \
             max_retry, expire_time, trace_context) values (",
        );
        sql.bind(row.id).push(", ").bind(self.project.as_str()).push(", ").bind(row.source);
        sql.push(", ").bind(row.task_name.clone()).push(", ").bind(row.context.clone());
        sql.push(", ").bind(now).push(", ").again().push(", ").bind(next);
        match row.locked_by(self) {
            Some(worker) => sql.push(", 1, ").bind(worker),
            None => sql.push(", 0, null"),
        };
        if row.is_simple() {
            sql.push(", '', '', null, null, null, null)");
            return;
        }
        sql.push(", ").bind(row.msg_key.as_str()).push(", ").bind(row.topic.as_str());
        sql.push(", ").bind(row.unique_key.clone()).push(", ").bind(row.max_retry);
        sql.push(", ").bind(self.times.maybe(row.expire)).push(", ").bind(row.trace.clone());
        sql.push(")");
    }

    /// The success of a task inside somebody's transaction; `false` if it is no longer held.
    pub(crate) async fn complete_in<C: ConnectionTrait>(
        &self,
        transaction: &C,
        task: TaskId,
        fence: i64,
        now: Millis,
    ) -> Result<bool> {
        self.same_backend(transaction)?;
        let mut sql = self.sql(
            "update t_sys_mq_resend_log set status = 3, crash_count = 0, next_send_time = null, \
             locked_by = null, fence = fence + 1",
        );
        self.touch(&mut sql, "update_time", now).push(" where id = ").bind(self.id(task.0));
        sql.push(" and fence = ").bind(fence).push(" and locked_by = ");
        sql.bind(self.worker.as_str()).push(" and ").push(OPEN);
        Ok(transaction.execute_raw(sql.build()).await?.rows_affected() == 1)
    }

    /// Refuses a connection to another kind of database before a statement is sent.
    pub(crate) fn same_backend<C: ConnectionTrait>(&self, db: &C) -> Result<()> {
        if db.get_database_backend() == self.backend() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Config,
            format!(
                "the transaction belongs to {:?}, and this runtime's table `{TABLE}` is in {:?}",
                db.get_database_backend(),
                self.backend()
            ),
        ))
    }
}

fn fits(column: &str, text: &str, most: usize) -> Result<()> {
    let length = text.chars().count();
    if length > most {
        return Err(Error::new(
            ErrorKind::Context,
            format!("the {column} has {length} characters, and this table's column holds {most}"),
        ));
    }
    no_nul(column, text)
}

fn no_nul(column: &str, text: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(Error::new(
            ErrorKind::Context,
            format!("the {column} holds a NUL character, which databases cannot store"),
        ));
    }
    Ok(())
}

/// An error text as `last_error` holds it: without NUL, at most 4 KiB.
pub(crate) fn error_text(error: &str) -> String {
    const MOST: usize = 4096;
    let mut text = error.replace('\0', "\u{fffd}");
    if text.len() > MOST {
        let mut end = MOST - 3;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A new id: time-ordered, 63 bits, of the shape of the starter's snowflakes, so that the ids of both
/// sort by time together. 41 bits of milliseconds since Twitter's epoch, then 22 bits that start at
/// random and count on.
pub(crate) fn next_id(last: &AtomicI64, now: Millis) -> i64 {
    let fresh = id_at(now) | fastrand::i64(0..1 << 21);
    let next = |last: i64| {
        // Within a millisecond count on; in a new one start anew.
        Some(if (last >> 22) >= (fresh >> 22) && last - fresh < 1 << 32 { last + 1 } else { fresh })
    };
    let last = last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
    next(last).unwrap_or(fresh)
}

/// The least id of a time.
pub(crate) fn id_at(time: Millis) -> i64 {
    const EPOCH: Millis = 1_288_834_974_657;
    (time - EPOCH).clamp(0, (1 << 41) - 1) << 22
}
