//! What the table at hand can hold: one that we made, or one of the starter's.

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr};

use super::fault::Fault;
use super::row::get;
use super::sql::{Sql, TABLE};
use crate::registry::MAX_CONTEXT;
use crate::{Error, ErrorKind, Result};

/// The widths of the table's columns, and whose table it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layout {
    /// Not made by us: its times are in a configured zone, and `update_time` is the server's.
    pub(crate) starter: bool,
    /// Its times are whole seconds.
    pub(crate) seconds: bool,
    /// Characters.
    pub(crate) msg_key: usize,
    /// Characters.
    pub(crate) topic: usize,
    /// Characters.
    pub(crate) project_name: usize,
    /// Bytes.
    pub(crate) context: usize,
    /// Bytes, in the table of results.
    pub(crate) result: usize,
    /// On PostgreSQL: a row can be named by its place.
    pub(crate) one_heap: bool,
}

/// A column as the catalogue has it.
struct Column {
    name: String,
    /// Characters, or bytes where the column has no other bound.
    width: Option<i64>,
    /// Digits of the fraction of seconds.
    precision: Option<i64>,
}

impl Layout {
    /// Of a table of ours.
    pub(crate) fn widest() -> Self {
        Self {
            starter: false,
            seconds: false,
            msg_key: 191,
            topic: 255,
            project_name: 100,
            context: MAX_CONTEXT,
            result: MAX_CONTEXT,
            one_heap: false,
        }
    }

    /// Reads the layout; an error where the table or one of our columns is missing.
    pub(crate) async fn read(db: &DatabaseConnection) -> Result<Self> {
        let columns = columns(db).await?;
        let missing: Vec<&str> = super::row::COLUMNS
            .into_iter()
            .filter(|name| !columns.iter().any(|column| column.name == *name))
            .collect();
        if !missing.is_empty() {
            let what = if columns.is_empty() {
                format!("there is no table `{TABLE}`")
            } else {
                format!("the table `{TABLE}` has no column {}", missing.join(", "))
            };
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "{what}: run the migrations, or do not switch them off with `.migrate(false)`"
                ),
            ));
        }
        tables_beside(db).await?;
        let find = |name: &str| columns.iter().find(|column| column.name == name);
        let width = |name: &str, most: usize| {
            let width = find(name).and_then(|column| column.width);
            width.map_or(most, |width| usize::try_from(width).unwrap_or(most).min(most))
        };
        let is_mysql = db.get_database_backend() == DbBackend::MySql;
        let starter = is_mysql && !is_ours(db).await?;
        let precision = find("next_send_time").and_then(|column| column.precision);
        let widest = Self::widest();
        let packet = if is_mysql { max_packet(db).await? } else { MAX_CONTEXT };
        Ok(Self {
            starter,
            seconds: is_mysql && precision == Some(0),
            msg_key: width("msg_key", widest.msg_key),
            topic: width("topic", widest.topic),
            project_name: width("project_name", widest.project_name),
            context: width("context", MAX_CONTEXT).min(packet),
            result: MAX_CONTEXT.min(packet),
            one_heap: db.get_database_backend() == DbBackend::Postgres
                && super::postgres::is_one_heap(db).await?,
        })
    }
}

/// An error that names the table where one of those beside the tasks cannot be read.
async fn tables_beside(db: &DatabaseConnection) -> Result<()> {
    let text = "select (select count(*) from t_task_retry_result where task_id = 0) \
                + (select count(*) from t_task_retry_attempt where task_id = 0) \
                + (select count(*) from t_task_retry_pause where source = 0 and project_name = '')";
    let sql = Sql::new(db.get_database_backend(), text);
    match db.query_one_raw(sql.build()).await {
        Ok(_) => Ok(()),
        Err(error) if Fault::of(&error) == Fault::Refused => Err(Error::new(
            ErrorKind::Config,
            "a table that task-retry needs is not there, or may not be read: run the migrations, or do \
             not switch them off with `.migrate(false)`",
        )
        .with_source(error)),
        Err(error) => Err(error.into()),
    }
}

async fn columns(db: &DatabaseConnection) -> Result<Vec<Column>, DbErr> {
    let backend = db.get_database_backend();
    let text = match backend {
        DbBackend::Postgres => {
            "select cast(column_name as text), cast(data_type as text), \
             cast(character_maximum_length as bigint), cast(datetime_precision as bigint) \
             from information_schema.columns \
             where table_name = 't_sys_mq_resend_log' and table_schema = current_schema()"
        }
        DbBackend::Sqlite => {
            "select name, lower(type), null, null from pragma_table_info('t_sys_mq_resend_log')"
        }
        _ => {
            "select cast(column_name as char), cast(data_type as char), \
             cast(character_maximum_length as signed), cast(datetime_precision as signed) \
             from information_schema.columns \
             where table_name = 't_sys_mq_resend_log' and table_schema = database()"
        }
    };
    let rows = db.query_all_raw(Sql::new(backend, text).build()).await?;
    rows.iter()
        .map(|row| {
            let name: String = get(row, 0)?;
            let kind: String = get(row, 1)?;
            let (width, precision) = match backend {
                DbBackend::Sqlite => (declared_width(&kind), None),
                _ => (get(row, 2)?, get(row, 3)?),
            };
            Ok(Column { name: name.to_lowercase(), width, precision })
        })
        .collect()
}

/// SQLite does not enforce `varchar(191)`; we do, so that every database behaves alike.
fn declared_width(kind: &str) -> Option<i64> {
    kind.split_once('(')?.1.trim_end_matches(')').parse().ok()
}

/// Whether our migrations or scripts made the table: its comment says so. The precision of its times
/// does not tell, for it can be changed.
async fn is_ours(db: &DatabaseConnection) -> Result<bool, DbErr> {
    let text = "select cast(table_comment as char) from information_schema.tables \
                where table_name = 't_sys_mq_resend_log' and table_schema = database()";
    let row = db.query_one_raw(Sql::new(DbBackend::MySql, text).build()).await?;
    let comment: Option<String> = row.as_ref().map(|row| get(row, 0)).transpose()?.flatten();
    Ok(comment.is_some_and(|comment| comment.contains("created by task-retry-migrations")))
}

/// What one statement may carry, with room for its other parts.
async fn max_packet(db: &DatabaseConnection) -> Result<usize, DbErr> {
    let sql = Sql::new(DbBackend::MySql, "select cast(@@max_allowed_packet as signed)");
    let row = db.query_one_raw(sql.build()).await?;
    let packet: i64 = row.as_ref().map(|row| get(row, 0)).transpose()?.unwrap_or(1 << 24);
    Ok(usize::try_from(packet).unwrap_or(1 << 24).saturating_sub(64 << 10))
}
