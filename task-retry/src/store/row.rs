//! Rows out of the database.

use chrono::{DateTime, NaiveDateTime, Utc};
use sea_orm::{DbBackend, DbErr, QueryResult, TryGetable};

use super::sql::Times;
use crate::{Status, TaskId, TaskLog};

/// The columns of a [`TaskLog`], in the order in which [`decode`] reads them.
pub(crate) const COLUMNS: [&str; 20] = [
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
    "fence",
    "locked_by",
    "crash_count",
    "unique_key",
    "task_name",
    "max_retry",
    "expire_time",
    "last_error",
    "trace_context",
];

/// A row that was selected by these columns.
///
/// Other programs write to the table too, so a value may be of a kind that cannot be read, such as text
/// that is not UTF-8 or a zero date. The row is then told apart by [`TaskLog::unreadable`], and the
/// others of its batch are as good as ever. An error is a row that cannot even be named.
pub(crate) fn decode(row: &QueryResult, times: &Times) -> Result<TaskLog, DbErr> {
    let backend = times.backend;
    let number = status(row, 4, backend)?;
    let id = TaskId(id(row, 0, backend)?);
    let status = Status::from_number(number).ok_or_else(|| {
        DbErr::Type(format!("task {id} has the status {number}, which this version does not know"))
    })?;
    let mut unreadable = None;
    let mut doubt = Doubt { row, times, unreadable: &mut unreadable };
    Ok(TaskLog {
        id,
        status,
        project_name: doubt.get(1),
        source: get(row, 2)?,
        msg_key: doubt.get(3),
        send_count: doubt.get::<i32>(5).max(0) as u32,
        topic: doubt.get(6),
        context: doubt.maybe(7),
        next_send_time: doubt.time(8),
        create_time: doubt.time(9).unwrap_or_default(),
        update_time: Doubt { times: &Times { offset: 0, ..*times }, ..doubt.again() }
            .time(10)
            .unwrap_or_default(),
        fence: get(row, 11)?,
        locked_by: doubt.maybe(12),
        crash_count: doubt.get::<i32>(13).max(0) as u32,
        unique_key: doubt.maybe(14),
        task_name: doubt.maybe(15),
        max_retry: doubt.maybe::<i32>(16).map(|retries| retries.max(0) as u32),
        expire_time: doubt.time(17),
        last_error: doubt.maybe(18),
        trace_context: doubt.maybe(19),
        unreadable,
    })
}

/// Reads values, and remembers the first that cannot be read.
struct Doubt<'a> {
    row: &'a QueryResult,
    times: &'a Times,
    unreadable: &'a mut Option<String>,
}

impl Doubt<'_> {
    fn again(&mut self) -> Doubt<'_> {
        Doubt { row: self.row, times: self.times, unreadable: self.unreadable }
    }

    fn get<T: TryGetable + Default>(&mut self, index: usize) -> T {
        let value = get(self.row, index);
        self.unless_error(index, value)
    }

    fn maybe<T: TryGetable>(&mut self, index: usize) -> Option<T> {
        let value = maybe(self.row, index);
        self.unless_error(index, value)
    }

    fn time(&mut self, index: usize) -> Option<DateTime<Utc>> {
        let value = time(self.row, index, self.times);
        self.unless_error(index, value)
    }

    /// The driver's error may quote the value, so it is not kept.
    fn unless_error<T: Default>(&mut self, index: usize, value: Result<T, DbErr>) -> T {
        value.unwrap_or_else(|_| {
            let column = COLUMNS[index];
            self.unreadable.get_or_insert_with(|| format!("the column `{column}` cannot be read"));
            T::default()
        })
    }
}

pub(crate) fn get<T: TryGetable>(row: &QueryResult, index: usize) -> Result<T, DbErr> {
    row.try_get_by_index(index)
}

/// As `get` of an `Option`, which makes an error of each null on its way.
fn maybe<T: TryGetable>(row: &QueryResult, index: usize) -> Result<Option<T>, DbErr> {
    if is_null(row, index) { Ok(None) } else { get(row, index).map(Some) }
}

#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
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
    #[cfg(feature = "postgres")]
    of!(try_as_pg_row);
    #[cfg(feature = "mysql")]
    of!(try_as_mysql_row);
    false
}

/// Without a driver there are no rows.
#[cfg(not(any(feature = "sqlite", feature = "postgres", feature = "mysql")))]
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
