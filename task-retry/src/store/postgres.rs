//! What PostgreSQL is asked in its own way: arrays of values.

use sea_orm::{ConnectionTrait, DbBackend, DbErr, Value};

use super::row::get;
use super::sql::{OPEN, Sql};
use super::{Alike, Claim, Conflict, NewRow, Settlement, Store};
use crate::Status;
use crate::clock::{Millis, to_datetime};

fn sql(text: &str) -> Sql {
    Sql::new(DbBackend::Postgres, text)
}

pub(super) fn now() -> Sql {
    sql("select cast(floor(extract(epoch from clock_timestamp()) * 1000) as bigint)")
}

/// Whether `ctid` names a row of the table: there is one heap, and not one for each part of the table.
pub(super) async fn is_one_heap(db: &impl ConnectionTrait) -> Result<bool, DbErr> {
    let sql =
        sql("select relkind = 'r' and not relhassubclass and amname = 'heap' from pg_class c \
         join pg_am m on m.oid = c.relam where c.oid = to_regclass('t_sys_mq_resend_log')");
    let row = db.query_one_raw(sql.build()).await?;
    Ok(row.as_ref().map(|row| get(row, 0)).transpose()?.unwrap_or(false))
}

/// One statement, whatever the number of rows; rows that meet a unique index are left out. The
/// impatient form does not wait long for a transaction that holds one of the keys.
pub(super) fn insert(store: &Store, rows: &[NewRow], now: Millis, conflict: Conflict) -> Sql {
    let impatient = conflict == Conflict::SkipSoon;
    let skip = match conflict {
        Conflict::Fail => "",
        _ => " on conflict do nothing returning id",
    };
    let mut sql = sql(if impatient {
        "with patience as materialized (select set_config('lock_timeout', '200', true) as set) "
    } else {
        ""
    });
    if let ([row], false) = (rows, impatient) {
        store.one(&mut sql, row, now);
        sql.push(skip);
        return sql;
    }
    sql.push(
        "insert into t_sys_mq_resend_log (id, context, project_name, create_time, update_time, \
         next_send_time, source, task_name, fence, locked_by, msg_key, topic, unique_key, max_retry, \
         expire_time, trace_context) select v.id, v.context, ",
    );
    sql.bind(store.project.as_str()).push(", ");
    sql.bind(to_datetime(now)).push(", ").bind(to_datetime(now));
    columns(store, &mut sql, rows);
    if impatient {
        sql.push(" where exists (select from patience where set <> '')");
    }
    sql.push(skip);
    sql
}

/// The other columns, and where they come from. What all rows have in common is bound once instead of
/// as an array; in groups, so that there are not too many statements to prepare.
fn columns(store: &Store, sql: &mut Sql, rows: &[NewRow]) {
    let text = |text: &Option<String>| Value::from(text.clone());
    let first = &rows[0];
    let Alike { due, function, held, trace, rest } = Alike::of(rows);
    let contexts: Option<Vec<String>> = rows.iter().map(|row| row.context.clone()).collect();
    let (context_as, contexts) = match contexts {
        Some(contexts) => ("", Value::from(contexts)),
        None => ("text::", texts(rows.iter().map(|row| row.context.as_deref())).into()),
    };
    let ids = bigints(rows.iter().map(|row| row.id)).into();
    let mut arrays = vec![("id", "", "bigint", ids), ("context", context_as, "text", contexts)];
    let mut put = |same: bool, name, kind, value: Value, array: &dyn Fn() -> String| {
        if same {
            sql.push(", ").bind(value).push("::").push(kind);
        } else {
            sql.push(", v.").push(name);
            arrays.push((name, "text::", kind, array().into()));
        }
    };
    put(due, "next_send_time", "timestamptz", to_datetime(first.next).into(), &|| {
        times(rows.iter().map(|row| Some(row.next)))
    });
    put(function, "source", "int", first.source.into(), &|| {
        ints(rows.iter().map(|row| Some(row.source)))
    });
    put(function, "task_name", "text", text(&first.task_name), &|| {
        texts(rows.iter().map(|row| row.task_name.as_deref()))
    });
    put(held, "fence", "bigint", first.fence().into(), &|| {
        ints(rows.iter().map(|row| Some(row.held.into())))
    });
    put(held, "locked_by", "text", first.locked_by(store).into(), &|| {
        texts(rows.iter().map(|row| row.held.then_some(store.worker.as_str())))
    });
    put(rest, "msg_key", "text", first.msg_key.as_str().into(), &|| {
        texts(rows.iter().map(|row| Some(row.msg_key.as_str())))
    });
    put(rest, "topic", "text", first.topic.as_str().into(), &|| {
        texts(rows.iter().map(|row| Some(row.topic.as_str())))
    });
    put(rest, "unique_key", "text", text(&first.unique_key), &|| {
        texts(rows.iter().map(|row| row.unique_key.as_deref()))
    });
    put(rest, "max_retry", "int", first.max_retry.into(), &|| {
        ints(rows.iter().map(|row| row.max_retry))
    });
    put(rest, "expire_time", "timestamptz", first.expire.map(to_datetime).into(), &|| {
        times(rows.iter().map(|row| row.expire))
    });
    put(trace, "trace_context", "text", text(&first.trace), &|| {
        texts(rows.iter().map(|row| row.trace.as_deref()))
    });
    let mut names = String::new();
    sql.push(" from unnest(");
    for (index, (name, by_way_of, kind, array)) in arrays.into_iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        sql.push(comma).bind(array).push("::").push(by_way_of).push(kind).push("[]");
        names.push_str(comma);
        names.push_str(name);
    }
    sql.push(") as v(").push(&names).push(")");
}

/// Successes, the common case, in a form of their own.
pub(super) fn succeed(store: &Store, rows: &[Settlement], now: Millis) -> Sql {
    let mut sql = sql(
        "update t_sys_mq_resend_log t set status = 3, crash_count = 0, next_send_time = null, \
         locked_by = null, update_time = ",
    );
    sql.bind(to_datetime(now));
    if let [row] = rows {
        sql.push(" where t.id = ").bind(row.id).push(" and ");
        guard(store, &mut sql, |sql| sql.bind(row.fence));
        return sql;
    }
    let fence = rows[0].fence;
    if rows.iter().all(|row| row.fence == fence) {
        // A first attempt has the fence 1, and a list of ids costs less than a join.
        sql.push(" where t.id = any(");
        hidden(&mut sql, rows.iter().map(|row| row.id)).push("::bigint[]) and ");
        guard(store, &mut sql, |sql| sql.bind(fence));
        return sql;
    }
    sql.push(" from unnest(");
    hidden(&mut sql, rows.iter().map(|row| row.id)).push(", ");
    hidden(&mut sql, rows.iter().map(|row| row.fence))
        .push(") as v(id, fence) where t.id = v.id and ");
    guard(store, &mut sql, |sql| sql.push("v.fence"));
    sql
}

pub(super) fn settle(store: &Store, rows: &[Settlement], now: Millis) -> Sql {
    let mut sql =
        sql("update t_sys_mq_resend_log t set status = v.status, send_count = v.send_count, \
         next_send_time = v.next, last_error = coalesce(v.error, t.last_error), \
         crash_count = case when v.status = 3 then 0 else t.crash_count end, locked_by = null, \
         update_time = ");
    sql.bind(to_datetime(now)).push(" from unnest(");
    hidden(&mut sql, rows.iter().map(|row| row.id)).push(", ");
    hidden(&mut sql, rows.iter().map(|row| row.fence)).push(", ");
    sql.bind(ints(rows.iter().map(|row| Some(row.to.number().into())))).push("::text::int[], ");
    sql.bind(ints(rows.iter().map(|row| Some(row.send_count as i32)))).push("::text::int[], ");
    sql.bind(times(rows.iter().map(|row| row.next))).push("::text::timestamptz[], ");
    sql.bind(texts(rows.iter().map(|row| row.error.as_deref())));
    sql.push(
        "::text::text[]) as v(id, fence, status, send_count, next, error) where t.id = v.id and ",
    );
    guard(store, &mut sql, |sql| sql.push("v.fence"));
    sql
}

/// Ends of attempts and what is kept of those that take effect: one statement, so one transaction.
pub(super) fn settle_and_keep(store: &Store, rows: &[Settlement], now: Millis) -> Sql {
    let mut sql = match rows.iter().all(|row| row.to == Status::Succeeded) {
        true => succeed(store, rows, now),
        false => settle(store, rows, now),
    };
    sql.start_with("with landed as (").push(" returning t.id)");
    let results = || rows.iter().filter_map(|row| Some((row, row.result.as_deref()?)));
    if results().next().is_some() {
        sql.push(
            ", results as (insert into t_task_retry_result (task_id, fence, result) \
             select v.* from unnest(",
        );
        sql.bind(bigints(results().map(|(row, _)| row.id))).push("::bigint[], ");
        sql.bind(bigints(results().map(|(row, _)| row.fence))).push("::bigint[], ");
        sql.bind(texts(results().map(|(_, result)| Some(result)))).push("::text::text[]");
        sql.push(
            ") as v(id, fence, result) join landed on landed.id = v.id on conflict (task_id) \
             do update set fence = excluded.fence, result = excluded.result)",
        );
    }
    let attempts = || rows.iter().filter_map(|row| Some((row, row.attempt?)));
    if attempts().next().is_some() {
        sql.push(
            ", attempts as (insert into t_task_retry_attempt \
             (task_id, fence, attempt, start_time, duration_ms, error, worker) select v.*, ",
        );
        sql.bind(store.worker.as_str()).push("::text from unnest(");
        sql.bind(bigints(attempts().map(|(row, _)| row.id))).push("::bigint[], ");
        sql.bind(bigints(attempts().map(|(row, _)| row.fence))).push("::bigint[], ");
        sql.bind(ints(attempts().map(|(row, _)| Some(row.send_count as i32))));
        sql.push("::text::int[], ");
        sql.bind(times(attempts().map(|(_, attempt)| Some(attempt.start))));
        sql.push("::text::timestamptz[], ");
        sql.bind(bigints(attempts().map(|(_, attempt)| attempt.millis)));
        sql.push("::bigint[], ");
        let error = |row: &Settlement| row.error.clone().unwrap_or_default();
        let errors: Vec<String> = attempts().map(|(row, _)| error(row)).collect();
        sql.bind(texts(errors.iter().map(|error| Some(error.as_str())))).push("::text::text[]");
        sql.push(
            ") as v(id, fence, attempt, start_time, duration_ms, error) \
             join landed on landed.id = v.id on conflict do nothing)",
        );
    }
    sql.push(" select id from landed");
    sql
}

/// The guard, in a form that the planner cannot take for selective: whatever the table's statistics
/// say, the rows are then found by their ids. As plain conditions, `locked_by = …` after an ANALYZE
/// that saw no locked row made it scan all open rows for each row of the batch.
fn guard(store: &Store, sql: &mut Sql, fence: impl FnOnce(&mut Sql) -> &mut Sql) {
    fence(sql.push("case when t.fence = ")).push(" and t.locked_by = ");
    sql.bind(store.worker.as_str()).push(" and t.").push(OPEN);
    sql.push(" then true else false end");
}

pub(super) fn renew(store: &Store, held: &[(i64, i64)], until: Millis) -> Sql {
    let mut sql = sql("with mine as (select t.id from t_sys_mq_resend_log t join unnest(");
    hidden(&mut sql, held.iter().map(|held| held.0)).push(", ");
    hidden(&mut sql, held.iter().map(|held| held.1)).push(") as v(id, fence) on t.id = v.id and ");
    guard(store, &mut sql, |sql| sql.push("v.fence"));
    sql.push(" order by t.id for update of t skip locked) ");
    // Never back: an earlier renewal whose connection was lost may arrive after a later one.
    sql.push("update t_sys_mq_resend_log t set next_send_time = case when t.next_send_time > ");
    sql.bind(to_datetime(until)).push(" then t.next_send_time else ");
    sql.bind(to_datetime(until)).push(" end");
    sql.push(" where t.id = any(array(select id from mine)) returning t.id");
    sql
}

/// Picks due rows and takes them, in one statement. The update asks once more whether a row is due,
/// so that safety does not rest on `skip locked`; see [`guard`] for its form. It finds them by their
/// places, which saves looking for each in the index of ids; a row that has moved meanwhile is left to
/// the next claim. Should the table be divided while this process runs, a place may name another
/// project's row, so the update asks for that, too.
pub(super) fn claim(store: &Store, claim: &Claim) -> Sql {
    let mut sql = sql("update t_sys_mq_resend_log t set fence = t.fence + 1, ");
    sql.push("crash_count = t.crash_count + case when t.locked_by is null then 0 else 1 end, ");
    if claim.ids.is_some() {
        sql.push("status = case when t.status in (0, 1) then t.status else 1 end, ");
    }
    sql.push("locked_by = ").bind(store.worker.as_str());
    sql.push(", next_send_time = ").bind(to_datetime(claim.until));
    sql.push(", update_time = ").bind(to_datetime(claim.now));
    let by = if store.layout.one_heap { "ctid" } else { "id" };
    sql.push(" where t.").push(by).push(" = any(array(select ").push(by);
    sql.push(" from t_sys_mq_resend_log where ");
    store.due(&mut sql, claim);
    if !store.optimistic {
        sql.push(" for update skip locked");
    }
    sql.push(")) and case when ");
    store.of_sources(&mut sql, claim).push(" and (");
    match claim.ids {
        Some(_) => sql.push("t.locked_by is null or t.next_send_time is null or "),
        None => sql.push("t.").push(OPEN).push(" and "),
    };
    sql.push("t.next_send_time <= ").bind(to_datetime(claim.now));
    sql.push(") then true else false end returning ").push(&claimed());
    sql
}

/// What a claim returns of a row. A column costs the server and the driver its time with every row, and most
/// columns say something about few rows: those come together, as texts, and only if one of them does. (A JSON
/// array of them takes the server longer.)
fn claimed() -> String {
    let (create, expire) = (finite("t.create_time"), finite("t.expire_time"));
    format!(
        "t.id, t.source, t.fence, t.task_name, t.context, {create}, case when t.status = 0 \
         and t.send_count = 0 and t.crash_count = 0 and t.msg_key = '' and t.topic = '' \
         and coalesce(t.unique_key, t.last_error, t.trace_context) is null \
         and t.max_retry is null and t.expire_time is null then null \
         else array[t.status::text, t.send_count::text, t.crash_count::text, t.msg_key, t.topic, \
         t.unique_key, t.max_retry::text, \
         cast(extract(epoch from {expire}) * 1000000 as bigint)::text, t.last_error, \
         t.trace_context]::text[] end"
    )
}

/// A time that every database and chrono can hold. PostgreSQL's calendar goes on to the year 294276, which
/// is too far for chrono, and for microseconds since 1970.
pub(super) fn finite(column: &str) -> String {
    format!(
        "case when {column} > '9999-12-31 23:59:59+00' then timestamptz '9999-12-31 23:59:59+00' \
         when {column} = '-infinity' then timestamptz 'epoch' else {column} end"
    )
}

/// An array whose length the planner does not know. Of a thousand rows that it sees it may think that they
/// are found quickest by a scan of the whole table.
fn hidden(sql: &mut Sql, values: impl Iterator<Item = i64>) -> &mut Sql {
    sql.push("(select ").bind(bigints(values)).push("::bigint[])")
}

fn bigints(values: impl Iterator<Item = i64>) -> Vec<i64> {
    values.collect()
}

fn ints(values: impl Iterator<Item = Option<i32>>) -> String {
    array(values, |out, value| out.push_str(&value.to_string()))
}

fn texts<'a>(values: impl Iterator<Item = Option<&'a str>>) -> String {
    array(values, quote)
}

fn times(values: impl Iterator<Item = Option<Millis>>) -> String {
    // Many rows of a batch have the same time.
    let mut last = (None, String::new());
    array(values, move |out, time| {
        if last.0 != Some(time) {
            last = (Some(time), to_datetime(time).format("\"%F %T%.3f+00\"").to_string());
        }
        out.push_str(&last.1);
    })
}

/// An array as PostgreSQL reads it from text, since those of the driver, which are quicker, hold no
/// nulls.
fn array<T>(
    values: impl Iterator<Item = Option<T>>,
    mut write: impl FnMut(&mut String, T),
) -> String {
    let mut out = String::from("{");
    for (index, value) in values.enumerate() {
        if index > 0 {
            out.push(',');
        }
        match value {
            Some(value) => write(&mut out, value),
            None => out.push_str("null"),
        }
    }
    out.push('}');
    out
}

fn quote(out: &mut String, text: &str) {
    out.reserve(text.len() + 2);
    out.push('"');
    for part in text.split_inclusive(['"', '\\']) {
        match part.char_indices().next_back() {
            Some((end, last @ ('"' | '\\'))) => {
                out.push_str(&part[..end]);
                out.push('\\');
                out.push(last);
            }
            _ => out.push_str(part),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::{ints, texts, times};

    #[test]
    fn arrays_are_quoted() {
        assert_eq!(ints([Some(1), None, Some(-2)].into_iter()), "{1,null,-2}");
        assert_eq!(ints([].into_iter()), "{}");
        let hard = [None, Some(""), Some("null"), Some(r#"a "b" \c, {d}"#), Some("\n中")];
        assert_eq!(
            texts(hard.into_iter()),
            "{null,\"\",\"null\",\"a \\\"b\\\" \\\\c, {d}\",\"\n中\"}"
        );
        assert_eq!(times([Some(0), None].into_iter()), "{\"1970-01-01 00:00:00.000+00\",null}");
    }
}
