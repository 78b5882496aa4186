//! Rows out of the database.

use chrono::{DateTime, NaiveDateTime, Utc};
use sea_orm::{DbBackend, DbErr, QueryResult, TryGetable};
#[cfg(feature = "postgres")]
use sea_orm::{RuntimeErr, sqlx, sqlx::Postgres};

use super::sql::Times;
use crate::{Status, TaskId, TaskLog};

/// The columns of a [`TaskLog`], in the order in which [`decode`] reads them.
pub(crate) const COLUMNS: [&str; 20] = [
    "id",
    "source",
    "msg_key",
    "status",
    "send_count",
    "topic",
    "context",
    "create_time",
    "fence",
    "crash_count",
    "unique_key",
    "task_name",
    "max_retry",
    "expire_time",
    "last_error",
    "trace_context",
    "project_name",
    "next_send_time",
    "update_time",
    "locked_by",
];

/// Those of a row that was just claimed: the claim knows the others itself.
pub(super) const CLAIMED: [&str; 16] = *COLUMNS.first_chunk().unwrap();

/// What a claim has written, and is not asked for again.
pub(crate) struct Known<'a> {
    pub(crate) project: &'a str,
    pub(crate) worker: &'a str,
    pub(crate) until: DateTime<Utc>,
    pub(crate) now: DateTime<Utc>,
}

/// A row that was selected by [`COLUMNS`], or by [`CLAIMED`] where the others are known.
///
/// Other programs write to the table too, so a value may be of a kind that cannot be read, such as text
/// that is not UTF-8 or a zero date. The row is then told apart by [`TaskLog::unreadable`], and the
/// others of its batch are as good as ever. An error is a row that cannot even be named.
pub(crate) fn decode(
    row: &QueryResult,
    times: &Times,
    known: Option<&Known<'_>>,
) -> Result<TaskLog, DbErr> {
    let backend = times.backend;
    let id = TaskId(id(row, 0, backend)?);
    let status = known_status(id, status(row, 3, backend)?)?;
    let mut doubt = Doubt { row, columns: &COLUMNS, unreadable: None };
    let mut task = TaskLog {
        id,
        status,
        source: get(row, 1)?,
        msg_key: doubt.get(2),
        send_count: doubt.get::<i32>(4).max(0) as u32,
        topic: doubt.get(5),
        context: doubt.maybe(6),
        create_time: doubt.time(7, times).unwrap_or_default(),
        fence: get(row, 8)?,
        crash_count: doubt.get::<i32>(9).max(0) as u32,
        unique_key: doubt.maybe(10),
        task_name: doubt.maybe(11),
        max_retry: doubt.maybe::<i32>(12).map(|retries| retries.max(0) as u32),
        expire_time: doubt.time(13, times),
        last_error: doubt.maybe(14),
        trace_context: doubt.maybe(15),
        project_name: known.map_or_else(|| doubt.get(16), |known| known.project.to_owned()),
        next_send_time: known.map_or_else(|| doubt.time(17, times), |known| Some(known.until)),
        update_time: match known {
            Some(known) => known.now,
            None => doubt.time(18, &Times { offset: 0, ..*times }).unwrap_or_default(),
        },
        locked_by: known.map_or_else(|| doubt.maybe(19), |known| Some(known.worker.to_owned())),
        unreadable: None,
    };
    task.unreadable = doubt.unreadable;
    Ok(task)
}

fn known_status(id: TaskId, number: i16) -> Result<Status, DbErr> {
    Status::from_number(number).ok_or_else(|| {
        DbErr::Type(format!("task {id} has the status {number}, which this version does not know"))
    })
}

/// The columns that a claim of PostgreSQL returns by themselves. The others follow as one; `claimed` says why.
#[cfg(feature = "postgres")]
const OFTEN: [&str; 6] = ["id", "source", "fence", "task_name", "context", "create_time"];

/// The same as [`decode`] for a row that a claim of PostgreSQL has just taken.
#[cfg(feature = "postgres")]
pub(super) fn decode_claimed(row: &QueryResult, known: &Known<'_>) -> Result<TaskLog, DbErr> {
    let null = || DbErr::Type("null".into());
    let id = TaskId(maybe(row, 0)?.ok_or_else(null)?);
    let mut doubt = Doubt { row, columns: &OFTEN, unreadable: None };
    let mut task = TaskLog {
        id,
        source: maybe(row, 1)?.ok_or_else(null)?,
        fence: maybe(row, 2)?.ok_or_else(null)?,
        task_name: doubt.maybe(3),
        context: doubt.maybe(4),
        create_time: doubt.maybe(5).unwrap_or_default(),
        status: Status::Executing,
        send_count: 0,
        crash_count: 0,
        msg_key: String::new(),
        topic: String::new(),
        unique_key: None,
        max_retry: None,
        expire_time: None,
        last_error: None,
        trace_context: None,
        project_name: known.project.to_owned(),
        next_send_time: Some(known.until),
        update_time: known.now,
        locked_by: Some(known.worker.to_owned()),
        unreadable: None,
    };
    if let Some([status, sends, crashes, key, topic, unique, retries, expire, error, trace]) =
        seldom(row, 6)?
    {
        task.status = known_status(id, doubt.needed("status", number(status)))?;
        task.send_count = doubt.needed("send_count", number::<i32>(sends)).max(0) as u32;
        task.crash_count = doubt.needed("crash_count", number::<i32>(crashes)).max(0) as u32;
        task.msg_key = doubt.needed("msg_key", key);
        task.topic = doubt.needed("topic", topic);
        task.unique_key = unique;
        task.max_retry = number::<i32>(retries).map(|retries| retries.max(0) as u32);
        task.expire_time = number(expire).and_then(DateTime::from_timestamp_micros);
        task.last_error = error;
        task.trace_context = trace;
    }
    task.unreadable = doubt.unreadable;
    Ok(task)
}

/// The columns that come together, if one of them says something.
#[cfg(feature = "postgres")]
fn seldom(row: &QueryResult, index: usize) -> Result<Option<[Option<String>; 10]>, DbErr> {
    let Some(row) = row.try_as_pg_row() else { return Ok(None) };
    let texts: Option<Vec<_>> = sqlx::Row::try_get(row, index)
        .map_err(|error| DbErr::Query(RuntimeErr::SqlxError(error.into())))?;
    let texts = texts.map(|texts| texts.try_into()).transpose();
    texts.map_err(|_| DbErr::Type("a claim has brought other columns than it asked for".into()))
}

#[cfg(feature = "postgres")]
fn number<T: std::str::FromStr>(text: Option<String>) -> Option<T> {
    text?.parse().ok()
}

/// Reads values, and remembers the first that cannot be read.
struct Doubt<'a> {
    row: &'a QueryResult,
    columns: &'static [&'static str],
    unreadable: Option<String>,
}

impl Doubt<'_> {
    fn get<T: Column + Default>(&mut self, index: usize) -> T {
        let null = || DbErr::Type("null".into());
        let value = maybe(self.row, index).and_then(|value| value.ok_or_else(null));
        self.unless_error(index, value)
    }

    fn maybe<T: Column>(&mut self, index: usize) -> Option<T> {
        let value = maybe(self.row, index);
        self.unless_error(index, value)
    }

    #[cfg(feature = "postgres")]
    fn needed<T: Default>(&mut self, column: &str, value: Option<T>) -> T {
        value.unwrap_or_else(|| self.cannot_read(column))
    }

    fn time(&mut self, index: usize, times: &Times) -> Option<DateTime<Utc>> {
        let value = time(self.row, index, times);
        self.unless_error(index, value)
    }

    /// The driver's error may quote the value, so it is not kept.
    fn unless_error<T: Default>(&mut self, index: usize, value: Result<T, DbErr>) -> T {
        value.unwrap_or_else(|_| self.cannot_read(self.columns[index]))
    }

    fn cannot_read<T: Default>(&mut self, column: &str) -> T {
        self.unreadable.get_or_insert_with(|| format!("the column `{column}` cannot be read"));
        T::default()
    }
}

pub(crate) fn get<T: TryGetable>(row: &QueryResult, index: usize) -> Result<T, DbErr> {
    row.try_get_by_index(index)
}

/// What a column of a task can hold.
#[cfg(feature = "postgres")]
trait Column: TryGetable + sqlx::Type<Postgres> + for<'r> sqlx::Decode<'r, Postgres> {}
#[cfg(feature = "postgres")]
impl<T: TryGetable + sqlx::Type<Postgres> + for<'r> sqlx::Decode<'r, Postgres>> Column for T {}

#[cfg(not(feature = "postgres"))]
trait Column: TryGetable {}
#[cfg(not(feature = "postgres"))]
impl<T: TryGetable> Column for T {}

/// As `get` of an `Option`, which makes an error of each null on its way. PostgreSQL's driver is asked
/// without sea-orm in between: large claims spend much of their time here.
fn maybe<T: Column>(row: &QueryResult, index: usize) -> Result<Option<T>, DbErr> {
    #[cfg(feature = "postgres")]
    if let Some(row) = row.try_as_pg_row() {
        return sqlx::Row::try_get(row, index)
            .map_err(|error| DbErr::Query(RuntimeErr::SqlxError(error.into())));
    }
    if is_null(row, index) { Ok(None) } else { get(row, index).map(Some) }
}

#[cfg(any(feature = "sqlite", feature = "mysql"))]
fn is_null(row: &QueryResult, index: usize) -> bool {
    use sea_orm::sqlx::{Row, ValueRef};

    macro_rules! of {
        ($row:ident) => {
            if let Some(row) = row.$row() {
                return row.try_get_raw(index).is_ok_and(|value| value.is_null());
            }
        };
    }
    #[cfg(feature = "sqlite")]
    of!(try_as_sqlite_row);
    #[cfg(feature = "mysql")]
    of!(try_as_mysql_row);
    false
}

#[cfg(not(any(feature = "sqlite", feature = "mysql")))]
fn is_null(_: &QueryResult, _: usize) -> bool {
    false
}

/// MySQL's ids are unsigned.
pub(crate) fn id(row: &QueryResult, index: usize, backend: DbBackend) -> Result<i64, DbErr> {
    match backend {
        DbBackend::MySql => Ok(get::<u64>(row, index)? as i64),
        _ => get(row, index),
    }
}

pub(crate) fn status(row: &QueryResult, index: usize, backend: DbBackend) -> Result<i16, DbErr> {
    match backend {
        DbBackend::MySql => Ok(i16::from(get::<i8>(row, index)?)),
        DbBackend::Postgres => get(row, index),
        _ => Ok(get::<i32>(row, index)? as i16),
    }
}

pub(crate) fn time(
    row: &QueryResult,
    index: usize,
    times: &Times,
) -> Result<Option<DateTime<Utc>>, DbErr> {
    match times.backend {
        DbBackend::Postgres => maybe(row, index),
        DbBackend::Sqlite => maybe::<String>(row, index)?.map(|text| parse(&text)).transpose(),
        _ => {
            let local: Option<NaiveDateTime> = maybe(row, index)?;
            let offset = chrono::TimeDelta::seconds(i64::from(times.offset));
            Ok(local.map(|local| (local - offset).and_utc()))
        }
    }
}

fn parse(text: &str) -> Result<DateTime<Utc>, DbErr> {
    NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f")
        .map(|time| time.and_utc())
        .or_else(|_| text.parse())
        .map_err(|error| DbErr::Type(format!("`{text}` is not a time: {error}")))
}
