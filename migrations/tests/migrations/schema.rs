//! A schema as text, so that two can be compared and a difference can be read.

use sea_orm_migration::sea_orm::DbBackend;

use crate::database::TestDatabase;

/// All tables of the database with columns, indexes, options and comments, and the names of the
/// recorded migrations. The order of columns counts.
pub(crate) async fn everything(database: &TestDatabase) -> Vec<String> {
    let mut lines = match database.db.get_database_backend() {
        DbBackend::MySql => mysql(database).await,
        DbBackend::Postgres => postgres(database).await,
        _ => sqlite(database).await,
    };
    if lines.iter().any(|line| line.contains("t_sys_mq_resend_log_migrations")) {
        let applied = "select version from t_sys_mq_resend_log_migrations order by version";
        lines.extend(database.texts(applied).await);
    }
    lines
}

/// The same of the task table alone.
pub(crate) async fn of_the_task_table(database: &TestDatabase) -> Vec<String> {
    let mut lines = everything(database).await;
    lines.retain(|line| line.contains("t_sys_mq_resend_log |"));
    lines
}

/// Its columns' and indexes' names in order, as `kind name`.
pub(crate) async fn names(database: &TestDatabase) -> Vec<String> {
    let name = |line: &String| {
        let mut parts = line.split(" | ");
        let (kind, _table, name) = (parts.next()?, parts.next()?, parts.next()?);
        (kind != "table").then(|| format!("{kind} {name}"))
    };
    of_the_task_table(database).await.iter().filter_map(name).collect()
}

async fn mysql(database: &TestDatabase) -> Vec<String> {
    let mut lines = Vec::new();
    for sql in [
        "select 'table', cast(table_name as char), cast(engine as char), cast(row_format as char),
                cast(table_collation as char), cast(table_comment as char)
         from information_schema.tables where table_schema = database() order by 2",
        "select 'column', cast(table_name as char), cast(column_name as char),
                cast(column_type as char), cast(is_nullable as char),
                cast(column_default as char), cast(extra as char),
                cast(collation_name as char), cast(column_comment as char)
         from information_schema.columns where table_schema = database()
         order by table_name, ordinal_position",
        "select 'index', cast(table_name as char), cast(index_name as char),
                cast(non_unique as char), cast(seq_in_index as char),
                cast(column_name as char), cast(sub_part as char)
         from information_schema.statistics where table_schema = database()
         order by table_name, index_name, seq_in_index",
    ] {
        lines.extend(database.texts(sql).await);
    }
    lines
}

async fn postgres(database: &TestDatabase) -> Vec<String> {
    let mut lines = Vec::new();
    for sql in [
        "select 'table', relname::text, obj_description(oid, 'pg_class')
         from pg_class where relnamespace = current_schema()::regnamespace and relkind = 'r' order by 2",
        "select 'column', c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod),
                a.attnotnull::text, pg_get_expr(d.adbin, d.adrelid)
         from pg_attribute a
         join pg_class c on c.oid = a.attrelid
         left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
         where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r'
           and a.attnum > 0 and not a.attisdropped
         order by c.relname, a.attnum",
        "select 'index', tablename::text, indexname::text,
                replace(indexdef, schemaname || '.', '')
         from pg_indexes where schemaname = current_schema() order by 2, 3",
    ] {
        lines.extend(database.texts(sql).await);
    }
    lines
}

async fn sqlite(database: &TestDatabase) -> Vec<String> {
    let mut lines = Vec::new();
    for sql in [
        "select 'table', name, cast(instr(sql, 'created by task-retry-migrations') > 0 as text)
         from sqlite_master where type = 'table' order by 2",
        "select 'column', m.name, c.name, c.type, cast(c.\"notnull\" as text), c.dflt_value, cast(c.pk as text)
         from sqlite_master m, pragma_table_info(m.name) c
         where m.type = 'table' order by m.name, c.cid",
        "select 'index', tbl_name, name, sql from sqlite_master where type = 'index' order by 2, 3",
    ] {
        lines.extend(database.texts(sql).await);
    }
    lines
}
