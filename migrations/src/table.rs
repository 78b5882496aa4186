//! The table as it stands in the database.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{DbBackend, QueryResult, Statement};

use crate::TABLE;

/// The words by which a table of ours is told from one that was there before.
pub(crate) const MARK: &str = "created by task-retry-migrations";

pub(crate) struct Table {
    columns: Vec<Column>,
    indexes: Vec<Index>,
    is_ours: bool,
}

pub(crate) struct Column {
    pub(crate) name: String,
    kind: String,
}

struct Index {
    name: String,
    /// `None`: an expression.
    first_column: Option<String>,
}

impl Table {
    /// Reads the task table; `None` if there is none.
    pub(crate) async fn read(db: &impl ConnectionTrait) -> Result<Option<Table>, DbErr> {
        let columns = columns(db, TABLE).await?;
        if columns.is_empty() {
            return Ok(None);
        }
        let indexes = indexes(db).await?;
        let is_ours = is_ours(db, TABLE).await?;
        Ok(Some(Table { columns, indexes, is_ours }))
    }

    pub(crate) fn has_column(&self, name: &str) -> bool {
        self.kind_of(name).is_some()
    }

    /// A column's type as the database writes it, e.g. `datetime(3)`.
    pub(crate) fn kind_of(&self, column: &str) -> Option<&str> {
        self.columns.iter().find(|it| it.name == column).map(|it| it.kind.as_str())
    }

    pub(crate) fn has_index(&self, name: &str) -> bool {
        self.indexes.iter().any(|it| it.name == name)
    }

    pub(crate) fn has_index_led_by(&self, column: &str) -> bool {
        self.indexes.iter().any(|it| it.first_column.as_deref() == Some(column))
    }

    /// Whether this crate's migrations or scripts created the table.
    pub(crate) fn is_ours(&self) -> bool {
        self.is_ours
    }
}

/// The columns of a table, in order; none if there is no such table.
///
/// PostgreSQL finds the table by its search path, as every later statement will.
pub(crate) async fn columns(db: &impl ConnectionTrait, table: &str) -> Result<Vec<Column>, DbErr> {
    let sql = match db.get_database_backend() {
        DbBackend::MySql => {
            "select cast(column_name as char), cast(column_type as char)
             from information_schema.columns
             where table_schema = database() and table_name = ?
             order by ordinal_position"
        }
        DbBackend::Postgres => {
            "select attname::text, format_type(atttypid, atttypmod)
             from pg_attribute
             where attrelid = to_regclass($1) and attnum > 0 and not attisdropped
             order by attnum"
        }
        _ => "select name, type from pragma_table_info(?)",
    };
    let rows = query(db, sql, table).await?;
    let column = |row: &QueryResult| {
        Ok(Column { name: row.try_get_by_index(0)?, kind: row.try_get_by_index(1)? })
    };
    rows.iter().map(column).collect()
}

async fn indexes(db: &impl ConnectionTrait) -> Result<Vec<Index>, DbErr> {
    let sql = match db.get_database_backend() {
        DbBackend::MySql => {
            "select cast(index_name as char), cast(column_name as char)
             from information_schema.statistics
             where table_schema = database() and table_name = ? and seq_in_index = 1"
        }
        DbBackend::Postgres => {
            "select c.relname::text, a.attname::text
             from pg_index i
             join pg_class c on c.oid = i.indexrelid
             left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
             where i.indrelid = to_regclass($1)"
        }
        _ => {
            "select l.name, c.name
             from pragma_index_list(?) l, pragma_index_info(l.name) c
             where c.seqno = 0"
        }
    };
    let rows = query(db, sql, TABLE).await?;
    let index = |row: &QueryResult| {
        Ok(Index { name: row.try_get_by_index(0)?, first_column: row.try_get_by_index(1)? })
    };
    rows.iter().map(index).collect()
}

/// Whether a table is there and says that this crate's migrations or scripts created it.
pub(crate) async fn is_ours(db: &impl ConnectionTrait, table: &str) -> Result<bool, DbErr> {
    let sql = match db.get_database_backend() {
        DbBackend::MySql => {
            "select cast(table_comment as char) from information_schema.tables
             where table_schema = database() and table_name = ?"
        }
        DbBackend::Postgres => "select obj_description(to_regclass($1), 'pg_class')",
        _ => "select sql from sqlite_master where type = 'table' and name = ?",
    };
    for row in query(db, sql, table).await? {
        let text: Option<String> = row.try_get_by_index(0)?;
        if text.is_some_and(|text| text.contains(MARK)) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn query(
    db: &impl ConnectionTrait,
    sql: &str,
    table: &str,
) -> Result<Vec<QueryResult>, DbErr> {
    db.query_all_raw(Statement::from_sql_and_values(db.get_database_backend(), sql, [table.into()]))
        .await
}
