//! What holds on every database.

use sea_orm_migration::MigratorTrait;
use sea_orm_migration::sea_orm::prelude::DateTimeUtc;
use sea_orm_migration::sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement,
};
use task_retry_migrations::{Migrator, State, down, status, up};

use crate::database::TestDatabase;
use crate::schema;

pub(crate) async fn up_down_up_leaves_no_trace(database: TestDatabase) {
    let nothing = schema::everything(&database).await;
    up(&database.db).await.unwrap();
    let first = schema::everything(&database).await;
    down(&database.db, None).await.unwrap();
    assert_eq!(schema::everything(&database).await, nothing);
    up(&database.db).await.unwrap();
    assert_eq!(schema::everything(&database).await, first);
}

pub(crate) async fn up_twice_changes_nothing(database: TestDatabase) {
    up(&database.db).await.unwrap();
    insert(&database, 1).await;
    let (schema, rows) = (schema::everything(&database).await, rows(&database).await);
    up(&database.db).await.unwrap();
    Migrator::up(&database.db, None).await.unwrap();
    assert_eq!(schema::everything(&database).await, schema);
    assert_eq!(self::rows(&database).await, rows);
}

/// A process may die between any two statements, on MySQL also between a change and its record.
pub(crate) async fn a_half_done_migration_is_finished(database: TestDatabase) {
    up(&database.db).await.unwrap();
    let whole = schema::everything(&database).await;
    for lost in ["idx_task_retry_claim", "uk_task_retry_unique_key"] {
        let on = match database.db.get_database_backend() {
            DbBackend::MySql => " on t_sys_mq_resend_log",
            _ => "",
        };
        database.execute(&format!("drop index {lost}{on}")).await;
    }
    database.execute("alter table t_sys_mq_resend_log drop column trace_context").await;
    database.execute("drop table t_task_retry_attempt").await;
    database.execute("delete from t_sys_mq_resend_log_migrations").await;
    up(&database.db).await.unwrap();
    assert_eq!(schema::everything(&database).await, whole);
}

pub(crate) async fn down_goes_step_by_step(database: TestDatabase) {
    Migrator::up(&database.db, Some(1)).await.unwrap();
    let base = schema::everything(&database).await;
    Migrator::up(&database.db, Some(1)).await.unwrap();
    let columns = schema::everything(&database).await;
    up(&database.db).await.unwrap();
    let whole = schema::everything(&database).await;
    insert(&database, 1).await;

    down(&database.db, Some(1)).await.unwrap();
    assert_eq!(schema::everything(&database).await, columns);
    down(&database.db, Some(1)).await.unwrap();
    assert_eq!(schema::everything(&database).await, base);
    assert_eq!(rows(&database).await.len(), 1);
    up(&database.db).await.unwrap();
    assert_eq!(schema::everything(&database).await, whole);
    assert_eq!(rows(&database).await.len(), 1);

    down(&database.db, Some(3)).await.unwrap();
    assert!(schema::of_the_task_table(&database).await.is_empty());
    up(&database.db).await.unwrap();
    assert_eq!(schema::everything(&database).await, whole);
}

pub(crate) async fn many_processes_start_at_once(database: TestDatabase) {
    let mut processes = Vec::new();
    for _ in 0..8 {
        processes.push(database.another_process().await);
    }
    all_up(processes.clone()).await;
    insert(&database, 1).await;
    down(&database.db, Some(1)).await.unwrap();
    all_up(processes).await;
    assert_eq!(rows(&database).await.len(), 1);
    assert_is_complete(&database).await;
}

pub(crate) async fn one_pool_starts_many_times_at_once(database: TestDatabase) {
    all_up(vec![database.db.clone(); 8]).await;
    assert_is_complete(&database).await;
}

pub(crate) async fn status_tells_and_changes_nothing(database: TestDatabase) {
    let nothing = schema::everything(&database).await;
    assert_eq!(states(&database.db).await, [State::Pending; 3]);
    assert_eq!(schema::everything(&database).await, nothing);

    up(&database.db).await.unwrap();
    assert_eq!(states(&database.db).await, [State::Applied; 3]);
    down(&database.db, Some(1)).await.unwrap();
    assert_eq!(states(&database.db).await, [State::Applied, State::Applied, State::Pending]);
}

/// An old process must start beside a new one, and after the new one was taken back.
pub(crate) async fn a_newer_release_may_have_gone_further(database: TestDatabase) {
    up(&database.db).await.unwrap();
    database
        .execute(
            "insert into t_sys_mq_resend_log_migrations (version, applied_at) \
             values ('m20991231_000001_what_is_to_come', 4102358400)",
        )
        .await;
    up(&database.db).await.unwrap();
    assert_eq!(
        states(&database.db).await,
        [State::Applied, State::Applied, State::Applied, State::Unknown]
    );
    let error = down(&database.db, Some(1)).await.unwrap_err();
    assert!(error.to_string().contains("what_is_to_come"), "{error}");
    assert_is_complete(&database).await;
}

pub(crate) async fn a_lost_table_is_reported(database: TestDatabase) {
    up(&database.db).await.unwrap();
    database.execute("drop table t_sys_mq_resend_log").await;
    assert_refused(up(&database.db).await, "lacks: the table itself");
}

pub(crate) async fn a_lost_table_beside_it_is_reported(database: TestDatabase) {
    up(&database.db).await.unwrap();
    database.execute("drop table t_task_retry_result").await;
    assert_refused(up(&database.db).await, "lacks: t_task_retry_result");
}

/// What is not ours is neither used nor dropped.
pub(crate) async fn another_table_of_a_name_of_ours_is_kept(database: TestDatabase) {
    database.execute("create table t_task_retry_pause (note int)").await;
    assert_refused(up(&database.db).await, "it lacks project_name, source");
    down(&database.db, None).await.unwrap();
    let left = schema::everything(&database).await.join("\n");
    assert!(left.contains("t_task_retry_pause"), "{left}");
}

pub(crate) async fn a_table_of_another_shape_is_reported(database: TestDatabase) {
    database.execute("create table t_sys_mq_resend_log (id bigint primary key, note text)").await;
    let before = schema::of_the_task_table(&database).await;
    assert_refused(up(&database.db).await, "it lacks project_name, source");
    assert_eq!(schema::of_the_task_table(&database).await, before);
}

pub(crate) async fn a_table_that_we_did_not_make_is_kept(database: TestDatabase) {
    database
        .execute(
            "create table t_sys_mq_resend_log (id bigint not null primary key, \
             project_name varchar(100) not null default '', source int not null, \
             msg_key varchar(50) not null default '', status smallint not null default 0, \
             send_count int not null default 0, topic varchar(255) not null default '', \
             context text, next_send_time timestamp null, \
             create_time timestamp not null default current_timestamp, \
             update_time timestamp not null default current_timestamp)",
        )
        .await;
    insert(&database, 1).await;
    let (found, rows) = (schema::of_the_task_table(&database).await, rows(&database).await);

    up(&database.db).await.unwrap();
    assert_is_complete(&database).await;
    assert_eq!(self::rows(&database).await, rows);
    down(&database.db, None).await.unwrap();
    assert_eq!(schema::of_the_task_table(&database).await, found);
    assert_eq!(self::rows(&database).await, rows);
    up(&database.db).await.unwrap();
    down(&database.db, Some(3)).await.unwrap();
    assert_eq!(self::rows(&database).await, rows);
}

pub(crate) async fn fresh_is_refused(database: TestDatabase) {
    database.execute("create table the_applications_own (id int)").await;
    up(&database.db).await.unwrap();
    let before = schema::everything(&database).await;
    assert_refused(Migrator::fresh(&database.db).await, "drop every table");
    assert_eq!(schema::everything(&database).await, before);
}

pub(crate) async fn the_starters_insert_gets_defaults(database: TestDatabase) {
    up(&database.db).await.unwrap();
    let before = now(&database).await;
    insert(&database, 2_120_000_000_000_000_001).await;
    let after = now(&database).await;

    let row = database
        .query(
            "select create_time, update_time, next_send_time, expire_time, status, send_count, \
             msg_key, topic, context, fence, locked_by, crash_count, unique_key, task_name, \
             max_retry, last_error, trace_context from t_sys_mq_resend_log",
        )
        .await
        .remove(0);
    for column in ["create_time", "update_time"] {
        let time: DateTimeUtc = row.try_get("", column).unwrap();
        assert!(before <= time && time <= after, "{column}: {before} <= {time} <= {after}");
        assert_eq!(time.timestamp_subsec_micros() % 1000, 0, "{column} has milliseconds");
    }
    for column in ["next_send_time", "expire_time"] {
        assert_eq!(row.try_get::<Option<DateTimeUtc>>("", column).unwrap(), None, "{column}");
    }
    for column in ["send_count", "crash_count"] {
        assert_eq!(row.try_get::<i32>("", column).unwrap(), 0, "{column}");
    }
    assert_eq!(row.try_get::<i64>("", "fence").unwrap(), 0);
    assert_eq!(row.try_get::<Option<i32>>("", "max_retry").unwrap(), None);
    assert_eq!(row.try_get::<String>("", "msg_key").unwrap(), "");
    assert_eq!(row.try_get::<String>("", "topic").unwrap(), "");
    let nullable =
        ["context", "locked_by", "unique_key", "task_name", "last_error", "trace_context"];
    for column in nullable {
        assert_eq!(row.try_get::<Option<String>>("", column).unwrap(), None, "{column}");
    }
    let status = database.query("select 1 from t_sys_mq_resend_log where status = 0").await;
    assert_eq!(status.len(), 1);
}

pub(crate) async fn a_unique_key_is_compared_byte_by_byte(database: TestDatabase) {
    up(&database.db).await.unwrap();
    let insert = |id: i64, source: i32, key: &str| {
        let sql = format!(
            "insert into t_sys_mq_resend_log (id, project_name, source, unique_key) \
             values ({id}, 'shop', {source}, '{key}')"
        );
        let db = database.db.clone();
        async move { db.execute_unprepared(&sql).await }
    };
    for (id, key) in ["Straße", "STRASSE", "strasse", "straße"].into_iter().enumerate() {
        insert(id as i64, 30, key).await.unwrap();
    }
    insert(10, 31, "strasse").await.unwrap();
    assert!(insert(11, 30, "strasse").await.is_err());
    self::insert(&database, 12).await;
    self::insert(&database, 13).await;
}

pub(crate) async fn the_table_has_the_columns_and_indexes_of_the_design(database: TestDatabase) {
    up(&database.db).await.unwrap();
    let lines = schema::of_the_task_table(&database).await.join("\n");
    let expected: &[&str] = match database.db.get_database_backend() {
        DbBackend::MySql => &[
            "InnoDB | Dynamic | utf8mb4_bin | tasks and their retries (created by task-retry-mi",
            "| msg_key | varchar(191) | NO |",
            "| context | longtext | YES |",
            "| next_send_time | datetime(3) | YES |",
            "| expire_time | datetime(3) | YES |",
            "| unique_key | varchar(191) | YES | NULL |  | utf8mb4_bin |",
            "| trace_context | varchar(128) | YES |",
            "index | t_sys_mq_resend_log | uk_task_retry_unique_key | 0 | 3 | unique_key",
        ],
        DbBackend::Postgres => &[
            "| id | bigint | true | NULL",
            "| msg_key | character varying(191) | true |",
            "| status | smallint | true | 0",
            "| create_time | timestamp(3) with time zone | true | now()",
            "| expire_time | timestamp(3) with time zone | false | NULL",
            "(project_name, source, next_send_time) WHERE (status = ANY (ARRAY[0, 1, 5]))",
            "(project_name, source, unique_key) WHERE (unique_key IS NOT NULL)",
            "(msg_key) WHERE ((msg_key)::text <> ''::text)",
        ],
        _ => &[
            "| id | INTEGER | 1 | NULL | 1",
            "| expire_time | datetime_text | 0 | NULL | 0",
            "(project_name, source, next_send_time) where status in (0, 1, 5)",
            "(project_name, source, unique_key) where unique_key is not null",
            "(msg_key) where msg_key <> ''",
        ],
    };
    for part in expected {
        assert!(lines.contains(part), "no `{part}` in\n{lines}");
    }
    assert_is_complete(&database).await;
}

pub(crate) async fn all_up(processes: Vec<DatabaseConnection>) {
    let tasks: Vec<_> =
        processes.into_iter().map(|db| tokio::spawn(async move { up(&db).await })).collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
}

/// An insert as the starter writes it: without a word of what we added.
pub(crate) async fn insert(database: &TestDatabase, id: i64) {
    database
        .execute(&format!(
            "insert into t_sys_mq_resend_log (id, project_name, source) values ({id}, 'shop', 30)"
        ))
        .await;
}

pub(crate) async fn assert_is_complete(database: &TestDatabase) {
    let names = schema::names(database).await;
    let has = |what: &str| names.iter().any(|name| name == what);
    for column in [
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
    ] {
        assert!(has(&format!("column {column}")), "{column}: {names:?}");
    }
    for index in ["idx_task_retry_claim", "uk_task_retry_unique_key"] {
        assert!(has(&format!("index {index}")), "{index}: {names:?}");
    }
    assert!(has("index idx_task_retry_msg_key") || has("index idx_msg_key"), "{names:?}");
}

/// The starter's columns of all rows, byte for byte.
pub(crate) async fn rows(database: &TestDatabase) -> Vec<String> {
    let text = match database.db.get_database_backend() {
        DbBackend::MySql => "char",
        _ => "text",
    };
    let columns = [
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
    ];
    let columns = columns.map(|column| format!("cast({column} as {text})")).join(", ");
    database.texts(&format!("select {columns} from t_sys_mq_resend_log order by id")).await
}

async fn states(db: &DatabaseConnection) -> Vec<State> {
    status(db).await.unwrap().into_iter().map(|it| it.state).collect()
}

async fn now(database: &TestDatabase) -> DateTimeUtc {
    let sql = match database.db.get_database_backend() {
        DbBackend::MySql => "select current_timestamp(3)",
        DbBackend::Postgres => "select clock_timestamp()::timestamptz(3)",
        _ => "select strftime('%Y-%m-%d %H:%M:%f', 'now')",
    };
    let statement = Statement::from_string(database.db.get_database_backend(), sql);
    let row = database.db.query_one_raw(statement).await.unwrap().unwrap();
    row.try_get_by_index(0).unwrap()
}

fn assert_refused(result: Result<(), DbErr>, because: &str) {
    match result.unwrap_err() {
        DbErr::Migration(text) if text.contains(because) => {}
        other => panic!("expected a refusal with `{because}`, got {other:?}"),
    }
}
