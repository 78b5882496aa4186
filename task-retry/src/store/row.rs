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

/// The columns as a list, each with this prefix.
pub(crate) fn columns(prefix: &str) -> String {
    COLUMNS.map(|column| format!("{prefix}{column}")).join(", ")
}

/// A row that was selected by [`columns`].
pub(crate) fn decode(row: &QueryResult, times: &Times) -> Result<TaskLog, DbErr> {
    let backend = times.backend;
    let number = status(row, 4, backend)?;
    Ok(TaskLog {
        id: TaskId(id(row, 0, backend)?),
        project_name: get(row, 1)?,
        source: get(row, 2)?,
        msg_key: get(row, 3)?,
        status: Status::from_number(number).ok_or_else(|| {
            DbErr::Type(format!("a row has the status {number}, which this version does not know"))
        })?,
        send_count: get::<i32>(row, 5)?.max(0) as u32,
        topic: get(row, 6)?,
        context: get(row, 7)?,
        next_send_time: time(row, 8, times)?,
        create_time: time(row, 9, times)?.unwrap_or_default(),
        update_time: time(row, 10, &Times { offset: 0, ..*times })?.unwrap_or_default(),
        fence: get(row, 11)?,
        locked_by: get(row, 12)?,
        crash_count: get::<i32>(row, 13)?.max(0) as u32,
        unique_key: get(row, 14)?,
        task_name: get(row, 15)?,
        max_retry: get::<Option<i32>>(row, 16)?.map(|retries| retries.max(0) as u32),
        expire_time: time(row, 17, times)?,
        last_error: get(row, 18)?,
        trace_context: get(row, 19)?,
    })
}

pub(crate) fn get<T: TryGetable>(row: &QueryResult, index: usize) -> Result<T, DbErr> {
    row.try_get_by_index(index)
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
        DbBackend::Postgres => get(row, index),
        DbBackend::Sqlite => {
            get::<Option<String>>(row, index)?.map(|text| parse(&text)).transpose()
        }
        _ => {
            let local: Option<NaiveDateTime> = get(row, index)?;
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
