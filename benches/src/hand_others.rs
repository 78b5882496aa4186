//! By hand on MariaDB, MySQL and SQLite: group commit of awaited calls, on task-retry's table and
//! indices. MariaDB and MySQL have two lanes, SQLite one: it has one writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use sqlx::mysql::MySqlConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, MySql, MySqlConnection, QueryBuilder, Sqlite, SqliteConnection};

use crate::group::Group;
use crate::hand_postgres::{context, noop};
use crate::tool::*;

static ID: AtomicI64 = AtomicI64::new(1_000_000_000_000);

macro_rules! lane {
    ($name:ident, $db:ty, $connection:ty, $begin:expr, $commit:expr, $later:literal, $now:literal) => {
        async fn $name(group: Arc<Group>, mut connection: $connection) {
            loop {
                let (inserts, done, tell) = group.next($begin.is_some()).await;
                if let Some(begin) = $begin {
                    sqlx::raw_sql(begin).execute(&mut connection).await.unwrap();
                }
                if !inserts.is_empty() {
                    let mut query = QueryBuilder::<$db>::new(
                        "insert into t_sys_mq_resend_log \
                         (id, project_name, source, context, fence, locked_by, next_send_time) ",
                    );
                    query.push_values(inserts, |mut row, (id, context)| {
                        row.push_bind(id).push("'bench', 100").push_bind(context).push(concat!("1, 'me', ", $later));
                    });
                    query.build().execute(&mut connection).await.unwrap();
                }
                if !done.is_empty() {
                    let mut query = QueryBuilder::<$db>::new(concat!(
                        "update t_sys_mq_resend_log set status = 3, locked_by = null, next_send_time = null, \
                         update_time = ",
                        $now,
                        " where fence = 1 and locked_by = 'me' and id in ("
                    ));
                    let mut ids = query.separated(", ");
                    done.into_iter().for_each(|id| _ = ids.push_bind(id));
                    query.push(")");
                    query.build().execute(&mut connection).await.unwrap();
                }
                if let Some(commit) = $commit {
                    sqlx::raw_sql(commit).execute(&mut connection).await.unwrap();
                }
                tell.into_iter().for_each(|tell| tell.send(()).unwrap());
            }
        }
    };
}

lane!(
    mysql,
    MySql,
    MySqlConnection,
    None::<&str>,
    None::<&str>,
    "now(3) + interval 30 second",
    "now(3)"
);
lane!(
    sqlite,
    Sqlite,
    SqliteConnection,
    Some("begin immediate"),
    Some("commit"),
    "strftime('%Y-%m-%d %H:%M:%f', 'now', '+30 seconds')",
    "strftime('%Y-%m-%d %H:%M:%f', 'now')"
);

pub async fn child(url: &str, what: &str) {
    let callers = what.strip_prefix("awaited:").unwrap().parse().unwrap();
    let group = Arc::new(Group::default());
    if url.starts_with("mysql") {
        let options: MySqlConnectOptions = url.parse().unwrap();
        // A statement for each size of a group. One that is closed to make room costs 40 ms: sqlx sends
        // the closing and the next request one after another, and leaves Nagle's algorithm on.
        let options = options.statement_cache_capacity(2500);
        let mut connection = options.connect().await.unwrap();
        sqlx::raw_sql(include_str!("../../migrations/sql/mysql.sql"))
            .execute(&mut connection)
            .await
            .unwrap();
        for _ in 0..2 {
            tokio::spawn(mysql(group.clone(), options.connect().await.unwrap()));
        }
    } else {
        let options: SqliteConnectOptions = url.parse().unwrap();
        // As task-retry has it.
        let options =
            options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
        let mut connection = options.connect().await.unwrap();
        sqlx::raw_sql(include_str!("../../migrations/sql/sqlite.sql"))
            .execute(&mut connection)
            .await
            .unwrap();
        tokio::spawn(sqlite(group.clone(), connection));
    }
    measure_callers(url, callers, move |i| {
        let group = group.clone();
        async move {
            let id = ID.fetch_add(1, Relaxed);
            let context = context(i);
            group.insert(id, context.clone()).await;
            noop(&context).await.unwrap();
            group.done(id).await;
        }
    })
    .await;
}
