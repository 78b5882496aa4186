//! What SQLite is asked in its own way: one JSON value in, `returning` out. It has one writer at a
//! time, so every statement here is a short transaction of its own, and nothing is skipped.

use sea_orm::DbBackend;
use serde::Serialize;

use super::sql::{OPEN, Sql};
use super::{Claim, Conflict, NewRow, Settlement, Store};
use crate::clock::Millis;

fn sql(text: &str) -> Sql {
    Sql::new(DbBackend::Sqlite, text)
}

pub(super) fn insert(store: &Store, rows: &[NewRow], now: Millis, conflict: Conflict) -> Sql {
    let now = store.times.down(now);
    let mut sql = sql(
        "insert into t_sys_mq_resend_log (id, source, msg_key, topic, context, next_send_time, fence, \
         locked_by, unique_key, task_name, max_retry, expire_time, trace_context, project_name, \
         create_time, update_time) \
         select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, \
         value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12, ",
    );
    sql.bind(store.project.as_str()).push(", ").bind(now.clone()).push(", ").bind(now);
    sql.push(" from json_each(");
    sql.bind(json(rows.iter().map(|row| {
        (
            row.id,
            row.source,
            &row.msg_key,
            &row.topic,
            &row.context,
            store.times.sqlite(Some(row.next)),
            row.fence(),
            row.held.then_some(&store.worker),
            &row.unique_key,
            &row.task_name,
            row.max_retry,
            store.times.sqlite(row.expire),
            &row.trace,
        )
    })));
    // `where true` keeps the parser from taking `on` for a join's.
    sql.push(match conflict {
        Conflict::Fail => ")",
        _ => ") where true on conflict do nothing returning id",
    });
    sql
}

pub(super) fn succeed(store: &Store, rows: &[Settlement], now: Millis) -> Sql {
    let mut sql = sql(
        "update t_sys_mq_resend_log as t set status = 3, crash_count = 0, next_send_time = null, \
         locked_by = null, update_time = ",
    );
    sql.bind(store.times.down(now));
    sql.push(" from (select value ->> 0 as id, value ->> 1 as fence from json_each(");
    sql.bind(json(rows.iter().map(|row| (row.id, row.fence)))).push(")) as v where ");
    guard(store, &mut sql);
    sql
}

pub(super) fn settle(store: &Store, rows: &[Settlement], now: Millis) -> Sql {
    let mut sql =
        sql("update t_sys_mq_resend_log as t set status = v.status, send_count = v.send_count, \
         next_send_time = v.next, last_error = coalesce(v.error, t.last_error), \
         crash_count = case when v.status = 3 then 0 else t.crash_count end, locked_by = null, \
         update_time = ");
    sql.bind(store.times.down(now));
    sql.push(
        " from (select value ->> 0 as id, value ->> 1 as fence, value ->> 2 as status, \
         value ->> 3 as send_count, value ->> 4 as next, value ->> 5 as error from json_each(",
    );
    sql.bind(json(rows.iter().map(|row| {
        let next = store.times.sqlite(row.next);
        (row.id, row.fence, row.to.number(), row.send_count, next, &row.error)
    })));
    sql.push(")) as v where ");
    guard(store, &mut sql);
    sql
}

/// With a sign before the status, so that no index but the primary key will do: with statistics of a
/// table without open rows, SQLite would look through the index of claims instead.
fn guard(store: &Store, sql: &mut Sql) {
    sql.push("t.id = v.id and t.fence = v.fence and t.locked_by = ");
    sql.bind(store.worker.as_str()).push(" and +t.").push(OPEN);
}

pub(super) fn renew(store: &Store, held: &[(i64, i64)], until: Millis) -> Sql {
    // Never back, as in the other databases.
    let mut sql =
        sql("update t_sys_mq_resend_log as t set next_send_time = case when t.next_send_time > ");
    sql.bind(store.times.up(until)).push(" then t.next_send_time else ");
    sql.bind(store.times.up(until))
        .push(" end from (select value ->> 0 as id, value ->> 1 as fence from json_each(");
    sql.bind(json(held.iter())).push(")) as v where ");
    guard(store, &mut sql);
    sql.push(" returning id");
    sql
}

pub(super) fn claim(store: &Store, claim: &Claim) -> Sql {
    let mut sql =
        sql("update t_sys_mq_resend_log set fence = fence + 1, crash_count = crash_count + \
         case when locked_by is null then 0 else 1 end, ");
    if claim.ids.is_some() {
        sql.push("status = case when status in (0, 1) then status else 1 end, ");
    }
    sql.push("locked_by = ").bind(store.worker.as_str());
    sql.push(", next_send_time = ").bind(store.times.up(claim.until));
    sql.push(", update_time = ").bind(store.times.down(claim.now));
    sql.push(" where id in (select id from t_sys_mq_resend_log where ");
    store.due(&mut sql, claim);
    sql.push(") returning ").push(&store.columns(""));
    sql
}

fn json<T: Serialize>(rows: impl Iterator<Item = T>) -> String {
    let rows: Vec<T> = rows.collect();
    serde_json::to_string(&rows).expect("rows of strings and numbers are JSON")
}

#[cfg(all(test, feature = "migrate"))]
mod tests {
    use sea_orm::{ConnectOptions, ConnectionTrait, Database, Statement};

    use super::*;
    use crate::Status;

    #[tokio::test]
    async fn ends_and_renewals_find_their_rows_by_the_primary_key() {
        let mut options = ConnectOptions::new("sqlite::memory:");
        options.max_connections(1);
        let db = Database::connect(options).await.unwrap();
        task_retry_migrations::up(&db).await.unwrap();
        // Statistics as they are when everything has ended.
        for sql in [
            "with recursive n(n) as (select 1 union all select n + 1 from n where n < 5000) \
             insert into t_sys_mq_resend_log (id, project_name, source, status) \
             select n, 'test', 100, 3 from n",
            "analyze",
        ] {
            db.execute_unprepared(sql).await.unwrap();
        }
        let store = Store::disconnected("test".into(), "worker".into());
        let end = |id| Settlement {
            id,
            fence: 1,
            to: Status::Succeeded,
            send_count: 0,
            next: None,
            error: None,
            result: None,
            attempt: None,
        };
        let ends: Vec<Settlement> = (1..=100).map(end).collect();
        for sql in [
            succeed(&store, &ends, 0),
            settle(&store, &ends, 0),
            renew(&store, &[(1, 1), (2, 1)], 0),
        ] {
            let Statement { sql, values, .. } = sql.build();
            let sql = format!("explain query plan {sql}");
            let explain = Statement::from_sql_and_values(DbBackend::Sqlite, sql, values.unwrap().0);
            let plan: Vec<String> = db
                .query_all_raw(explain)
                .await
                .unwrap()
                .iter()
                .map(|row| row.try_get("", "detail").unwrap())
                .collect();
            assert!(
                plan.iter().any(|step| step.contains("SEARCH t USING INTEGER PRIMARY KEY")),
                "{plan:#?}"
            );
        }
    }
}
