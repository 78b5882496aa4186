//! What SQLite is asked in its own way: one JSON value in, `returning` out. It has one writer at a
//! time, so every statement here is a short transaction of its own, and nothing is skipped.

use sea_orm::{DbBackend, Value};
use serde::ser::{Serialize, SerializeSeq, Serializer};

use super::sql::{OPEN, Sql};
use super::{Alike, Claim, Conflict, NewRow, Settlement, Store, row};
use crate::clock::Millis;

fn sql(text: &str) -> Sql {
    Sql::new(DbBackend::Sqlite, text)
}

/// The rows are an object of contexts, or of arrays with what not all rows have in common, by their ids:
/// what is bound once is not read from JSON, and a plain value is read without being parsed again.
pub(super) fn insert(store: &Store, rows: &[NewRow], now: Millis, conflict: Conflict) -> Sql {
    if let [row] = rows {
        let mut sql = sql("");
        store.one(&mut sql, row, now);
        if conflict != Conflict::Fail {
            sql.push(" on conflict do nothing returning id");
        }
        return sql;
    }
    let now = store.times.down(now);
    let (alike, first) = (Alike::of(rows), &rows[0]);
    let mut sql = sql(
        "insert into t_sys_mq_resend_log (project_name, create_time, update_time, id, context, \
         next_send_time, source, task_name, fence, locked_by, msg_key, topic, unique_key, max_retry, \
         expire_time, trace_context) select ",
    );
    sql.bind(store.project.as_str()).push(", ").bind(now.clone()).push(", ").bind(now);
    sql.push(", key, value");
    if !alike.all() {
        sql.push(" ->> 0");
    }
    let mut index = 0;
    let mut put = |same: bool, values: &[Value]| {
        for value in values {
            sql.push(", ");
            if same {
                sql.bind(value.clone());
            } else {
                index += 1;
                sql.push("value ->> ").push(&index.to_string());
            }
        }
    };
    let time = |time: Option<Millis>| Value::from(store.times.sqlite(time));
    put(alike.due, &[time(Some(first.next))]);
    put(alike.function, &[first.source.into(), first.task_name.clone().into()]);
    put(alike.held, &[first.fence().into(), first.locked_by(store).into()]);
    put(
        alike.rest,
        &[
            first.msg_key.as_str().into(),
            first.topic.as_str().into(),
            first.unique_key.clone().into(),
            first.max_retry.into(),
            time(first.expire),
        ],
    );
    put(alike.trace, &[first.trace.clone().into()]);
    sql.push(" from json_each(");
    let mut object = serde_json::Serializer::new(Vec::new());
    let rows = rows.iter().map(|row| (row.id, Varying { store, row, alike }));
    object.collect_map(rows).expect("rows of strings and numbers are JSON");
    let object = String::from_utf8(object.into_inner()).expect("JSON is UTF-8");
    // `where true` keeps the parser from taking `on` for a join's.
    sql.bind(object).push(match conflict {
        Conflict::Fail => ")",
        _ => ") where true on conflict do nothing returning id",
    });
    sql
}

/// What a row has for itself.
struct Varying<'a> {
    store: &'a Store,
    row: &'a NewRow,
    alike: Alike,
}

impl Serialize for Varying<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { store, row, alike } = self;
        if alike.all() {
            return row.context.serialize(serializer);
        }
        let mut values = serializer.serialize_seq(None)?;
        values.serialize_element(&row.context)?;
        if !alike.due {
            values.serialize_element(&store.times.sqlite(Some(row.next)))?;
        }
        if !alike.function {
            values.serialize_element(&row.source)?;
            values.serialize_element(&row.task_name)?;
        }
        if !alike.held {
            values.serialize_element(&row.fence())?;
            values.serialize_element(&row.locked_by(store))?;
        }
        if !alike.rest {
            values.serialize_element(&row.msg_key)?;
            values.serialize_element(&row.topic)?;
            values.serialize_element(&row.unique_key)?;
            values.serialize_element(&row.max_retry)?;
            values.serialize_element(&store.times.sqlite(row.expire))?;
        }
        if !alike.trace {
            values.serialize_element(&row.trace)?;
        }
        values.end()
    }
}

pub(super) fn succeed(store: &Store, rows: &[Settlement], now: Millis) -> Sql {
    let mut sql = sql(
        "update t_sys_mq_resend_log as t set status = 3, crash_count = 0, next_send_time = null, \
         locked_by = null, update_time = ",
    );
    sql.bind(store.times.down(now));
    sql.push(" from (select ");
    let fence = rows[0].fence;
    if rows.iter().all(|row| row.fence == fence) {
        // Nearly all succeed at the first attempt, and a plain number is read without being parsed again.
        sql.push("value as id, ").bind(fence).push(" as fence from json_each(");
        sql.bind(json(rows.iter().map(|row| row.id)));
    } else {
        sql.push("value ->> 0 as id, value ->> 1 as fence from json_each(");
        sql.bind(json(rows.iter().map(|row| (row.id, row.fence))));
    }
    sql.push(")) as v where ");
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
    sql.push(") returning ").push(&row::CLAIMED.join(", "));
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
