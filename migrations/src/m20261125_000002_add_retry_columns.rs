//! What this project adds to the starter's table: columns that the starter's inserts need not
//! name, and the indexes of our queries.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::TABLE;
use crate::table::Table;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[expect(elided_lifetimes_in_paths, reason = "async_trait must see the words of SeaORM's trait")]
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        let backend = db.get_database_backend();
        let table = Table::read(db).await?.ok_or_else(|| {
            DbErr::Migration(format!("there is no table `{TABLE}` to add columns to"))
        })?;

        let columns = COLUMNS
            .iter()
            .filter(|column| !table.has_column(column.name))
            .map(|column| format!("add column {}", column.definition(backend, &table)));
        alter(db, columns.collect()).await?;

        let indexes = INDEXES.iter().filter(|index| index.is_wanted(&table));
        if backend == DbBackend::MySql {
            alter(db, indexes.map(Index::mysql).collect()).await?;
        } else {
            for index in indexes {
                db.execute_unprepared(&index.partial()).await?;
            }
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        let Some(table) = Table::read(db).await? else { return Ok(()) };
        let indexes = INDEXES.iter().filter(|index| table.has_index(index.name));
        let columns = COLUMNS
            .iter()
            .filter(|column| table.has_column(column.name))
            .map(|column| format!("drop column {}", column.name));

        if db.get_database_backend() == DbBackend::MySql {
            let indexes = indexes.map(|index| format!("drop index {}", index.name));
            alter(db, indexes.chain(columns).collect()).await
        } else {
            for index in indexes {
                db.execute_unprepared(&format!("drop index if exists {}", index.name)).await?;
            }
            alter(db, columns.collect()).await
        }
    }
}

/// One statement for all changes, so that a live table is locked once, or rewritten once, and not
/// nine times; SQLite takes one change at a time and rewrites nothing.
async fn alter(db: &impl ConnectionTrait, changes: Vec<String>) -> Result<(), DbErr> {
    let statements = match db.get_database_backend() {
        DbBackend::Sqlite => changes,
        _ if changes.is_empty() => return Ok(()),
        _ => vec![changes.join(", ")],
    };
    for changes in statements {
        db.execute_unprepared(&format!("alter table {TABLE} {changes}")).await?;
    }
    Ok(())
}

pub(crate) struct Column {
    pub(crate) name: &'static str,
    kind: Kind,
    comment: &'static str,
}

enum Kind {
    /// The same words in every database.
    Plain(&'static str),
    /// A text that is compared byte by byte, whatever the table's collation.
    Binary(&'static str),
    /// The type of the table's other times.
    Time,
}

impl Column {
    const fn new(name: &'static str, kind: Kind, comment: &'static str) -> Column {
        Column { name, kind, comment }
    }

    fn definition(&self, backend: DbBackend, table: &Table) -> String {
        let mysql = backend == DbBackend::MySql;
        let kind = match self.kind {
            Kind::Plain(kind) => kind.to_owned(),
            Kind::Binary(kind) if mysql => {
                format!("{kind} character set utf8mb4 collate utf8mb4_bin null")
            }
            Kind::Binary(kind) => format!("{kind} null"),
            Kind::Time => format!("{} null", table.kind_of("next_send_time").unwrap_or("datetime")),
        };
        let comment = if mysql { format!(" comment '{}'", self.comment) } else { String::new() };
        format!("{} {kind}{comment}", self.name)
    }
}

#[rustfmt::skip]
pub(crate) const COLUMNS: [Column; 9] = [
    Column::new("fence", Kind::Plain("bigint not null default 0"), "goes up at every claim; a write of an older claim is void"),
    Column::new("locked_by", Kind::Plain("varchar(64) null"), "the process that holds it until next_send_time"),
    Column::new("crash_count", Kind::Plain("integer not null default 0"), "attempts whose process died"),
    Column::new("unique_key", Kind::Binary("varchar(191)"), "at most one task of a project and source has it"),
    Column::new("task_name", Kind::Plain("varchar(191) null"), "name of the function"),
    Column::new("max_retry", Kind::Plain("integer null"), "retries of this task, if not the default"),
    Column::new("expire_time", Kind::Time, "no attempt starts after this"),
    Column::new("last_error", Kind::Plain("text null"), "why the last attempt failed"),
    Column::new("trace_context", Kind::Plain("varchar(128) null"), "W3C traceparent of the caller"),
];

struct Index {
    name: &'static str,
    unique: bool,
    columns: &'static str,
    /// The rows that it is for, where the database can leave out the others.
    only: &'static str,
}

const INDEXES: [Index; 3] = [
    Index {
        name: "idx_task_retry_claim",
        unique: false,
        columns: "project_name, source, next_send_time",
        only: "status in (0, 1, 5)",
    },
    Index {
        name: "uk_task_retry_unique_key",
        unique: true,
        columns: "project_name, source, unique_key",
        only: "unique_key is not null",
    },
    Index { name: MSG_KEY, unique: false, columns: "msg_key", only: "msg_key <> ''" },
];

const MSG_KEY: &str = "idx_task_retry_msg_key";

impl Index {
    /// The starter's table has an index on `msg_key`; a second one would only cost.
    fn is_wanted(&self, table: &Table) -> bool {
        let served = self.name == MSG_KEY && table.has_index_led_by("msg_key");
        !served && !table.has_index(self.name)
    }

    fn mysql(&self) -> String {
        let kind = if self.unique { "unique index" } else { "index" };
        format!("add {kind} {} ({})", self.name, self.columns)
    }

    fn partial(&self) -> String {
        let kind = if self.unique { "unique index" } else { "index" };
        format!(
            "create {kind} if not exists {} on {TABLE} ({}) where {}",
            self.name, self.columns, self.only
        )
    }
}
