//! What MySQL and MariaDB are asked in their own way: no `returning` for updates, no arrays.

use std::collections::HashMap;

use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, IsolationLevel, TransactionSession, TransactionTrait,
};

use super::row::{self, get, id};
use super::sql::{OPEN, Sql};
use super::{Claim, NewRow, Settlement, Store};
use crate::clock::Millis;
use crate::{Status, TaskLog, clock};

fn sql(text: &str) -> Sql {
    Sql::new(DbBackend::MySql, text)
}

/// Independent of the session's time zone.
pub(super) fn now() -> Sql {
    sql("select cast(floor(unix_timestamp(current_timestamp(3)) * 1000) as signed)")
}

/// Whether locked rows can be skipped: MySQL from 8.0.1, MariaDB from 10.6.
pub(super) async fn skips_locked(db: &impl ConnectionTrait) -> Result<bool, DbErr> {
    let row = db.query_one_raw(sql("select cast(version() as char)").build()).await?;
    let version: String = row.as_ref().map(|row| get(row, 0)).transpose()?.unwrap_or_default();
    Ok(knows_skip_locked(&version))
}

fn knows_skip_locked(version: &str) -> bool {
    let lower = version.to_lowercase();
    let mut numbers = lower.trim_start_matches("5.5.5-").split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|part| part.parse::<u32>().ok()).unwrap_or(0);
    let version = (next(), next(), next());
    if lower.contains("mariadb") { version >= (10, 6, 0) } else { version >= (8, 0, 1) }
}

/// The server describes each placeholder of a statement when it is prepared, and the driver keeps a
/// hundred statements: lists have sizes that are powers of two. This one repeats its last item, which
/// changes nothing where it is used.
fn padded<T: Clone>(
    items: impl ExactSizeIterator<Item = T> + Clone,
) -> impl Iterator<Item = T> + Clone {
    let size = items.len().next_power_of_two();
    let last = items.clone().last().into_iter().cycle();
    items.chain(last).take(size)
}

/// How many of so many rows go into one statement that cannot be padded.
pub(super) fn batch(rows: usize) -> usize {
    match rows {
        0..=4 => rows,
        _ => 1 << rows.ilog2(),
    }
}

/// How many rows a claim may ask for: it names each in a list of a power of two, with 40 bytes and four of
/// the 65,535 placeholders that a statement may have.
pub(super) fn most_claimed(bytes: usize) -> usize {
    1 << (bytes / 40).clamp(1, 8192).ilog2()
}

/// Fails as a whole if one row meets a unique index: the caller then splits the batch.
pub(super) fn insert(store: &Store, rows: &[NewRow], now: Millis) -> Sql {
    // Most tasks have none of these, and each value of each row has its price.
    let more = rows.iter().any(|row| {
        !row.msg_key.is_empty()
            || !row.topic.is_empty()
            || row.unique_key.is_some()
            || row.max_retry.is_some()
            || row.expire.is_some()
            || row.trace.is_some()
    });
    let mut sql =
        sql("insert into t_sys_mq_resend_log (id, project_name, source, context, next_send_time, \
         create_time, fence, locked_by, task_name, msg_key, topic");
    if more {
        sql.push(", unique_key, max_retry, expire_time, trace_context");
    }
    sql.push(") values ");
    for (index, row) in rows.iter().enumerate() {
        sql.push(if index == 0 { "(" } else { ", (" });
        sql.bind(row.id as u64).push(", ").bind(store.project.as_str()).push(", ");
        sql.bind(row.source).push(", ").bind(row.context.clone()).push(", ");
        let due = if row.held { store.times.up(row.next) } else { store.times.down(row.next) };
        sql.bind(due).push(", ").bind(store.times.down(now)).push(", ");
        sql.bind(row.fence()).push(", ").bind(row.locked_by(store)).push(", ");
        sql.bind(row.task_name.clone());
        if more {
            sql.push(", ").bind(row.msg_key.as_str()).push(", ").bind(row.topic.as_str());
            sql.push(", ").bind(row.unique_key.clone()).push(", ").bind(row.max_retry);
            sql.push(", ").bind(store.times.maybe(row.expire)).push(", ").bind(row.trace.clone());
        } else {
            sql.push(", '', ''");
        }
        sql.push(")");
    }
    sql
}

/// Finds out whether a transaction of somebody else's holds one of these keys, without waiting for it:
/// an insert that waits would keep others from inserting beside it. Fails with a lock error then.
pub(super) fn probe_keys(store: &Store, rows: &[NewRow]) -> Sql {
    // By that index, or rows of others would be locked as well.
    let mut sql = sql("select id from t_sys_mq_resend_log force index (uk_task_retry_unique_key) \
         where project_name = ");
    sql.bind(store.project.as_str()).push(" and (");
    let keyed = rows.iter().filter_map(|row| Some((row.source, row.unique_key.as_deref()?)));
    for (index, (source, key)) in keyed.enumerate() {
        sql.push(if index == 0 { "(source = " } else { " or (source = " });
        sql.bind(source).push(" and unique_key = ").bind(key).push(")");
    }
    sql.push(") for update nowait");
    sql
}

pub(super) fn succeed(store: &Store, rows: &[Settlement], now: Millis) -> Sql {
    let mut sql =
        sql("update t_sys_mq_resend_log force index (primary) set status = 3, crash_count = 0, \
         next_send_time = null, locked_by = null");
    store.touch(&mut sql, "update_time", now).push(" where ");
    guard(store, &mut sql, rows.iter().map(|row| (row.id, row.fence)));
    sql
}

pub(super) fn settle(store: &Store, rows: &[Settlement], now: Millis) -> Sql {
    let mut sql = sql("update t_sys_mq_resend_log t force index (primary) join (");
    for (index, row) in padded(rows.iter()).enumerate() {
        let (id, fence, status) = (row.id as u64, row.fence, row.to.number());
        let (next, error) = (store.times.maybe(row.next), row.error.clone());
        if index == 0 {
            sql.push("select ").bind(id).push(" as id, ").bind(fence).push(" as fence, ");
            sql.bind(status).push(" as status, ").bind(row.send_count).push(" as send_count, ");
            // The first row sets the types: without the casts, an untyped null would.
            sql.push("cast(").bind(next).push(" as datetime(3)) as next, cast(").bind(error);
            sql.push(" as char(5000)) as error");
        } else {
            sql.push(" union all select ").bind(id).push(", ").bind(fence).push(", ");
            sql.bind(status).push(", ").bind(row.send_count).push(", ").bind(next);
            sql.push(", ").bind(error);
        }
    }
    sql.push(
        ") v on t.id = v.id and t.fence = v.fence set t.crash_count = \
         case when v.status = 3 then 0 else t.crash_count end, t.status = v.status, \
         t.send_count = v.send_count, t.next_send_time = v.next, \
         t.last_error = coalesce(v.error, t.last_error), t.locked_by = null",
    );
    store.touch(&mut sql, "t.update_time", now).push(" where t.locked_by = ");
    sql.bind(store.worker.as_str()).push(" and t.").push(OPEN);
    sql
}

/// The list of ids finds the rows, the list of pairs checks the fences. By `force index (primary)`, or
/// a long list would make the server scan a small table, and wait for rows that others have locked.
fn guard(store: &Store, sql: &mut Sql, held: impl ExactSizeIterator<Item = (i64, i64)> + Clone) {
    let held = padded(held);
    sql.push("id in ").list(held.clone().map(|held| held.0 as u64));
    sql.push(" and (id, fence) in (");
    for (index, (id, fence)) in held.enumerate() {
        sql.push(if index == 0 { "(" } else { ", (" });
        sql.bind(id as u64).push(", ").bind(fence).push(")");
    }
    sql.push(") and locked_by = ").bind(store.worker.as_str()).push(" and ").push(OPEN);
}

/// Locks what is ours and not locked by others, then renews it.
pub(super) async fn renew(
    store: &Store,
    db: &impl TransactionTrait,
    held: &[(i64, i64)],
    until: Millis,
) -> Result<Vec<i64>, DbErr> {
    let transaction = db.begin_with_config(Some(IsolationLevel::ReadCommitted), None).await?;
    let mut sql = sql("select id, fence from t_sys_mq_resend_log force index (primary) where ");
    guard(store, &mut sql, held.iter().copied());
    sql.push(" order by id");
    if store.optimistic {
        // Seconds: the caller then looks for the locked row.
        transaction.execute_unprepared("set innodb_lock_wait_timeout = 1").await?;
    } else {
        sql.push(" for update skip locked");
    }
    let mut mine = Vec::new();
    for row in transaction.query_all_raw(sql.build()).await? {
        mine.push((id(&row, 0, DbBackend::MySql)?, get::<i64>(&row, 1)?));
    }
    if !mine.is_empty() {
        // Never back: an earlier renewal whose connection was lost may arrive after a later one.
        let mut sql = self::sql(
            "update t_sys_mq_resend_log force index (primary) set next_send_time = case when \
             next_send_time > ",
        );
        sql.bind(store.times.up(until)).push(" then next_send_time else ");
        sql.bind(store.times.up(until)).push(" end where ");
        guard(store, &mut sql, mine.iter().copied());
        transaction.execute_raw(sql.build()).await?;
    }
    transaction.commit().await?;
    Ok(mine.into_iter().map(|held| held.0).collect())
}

/// Picks due rows and takes them in one short transaction. The update repeats what was read, so that
/// engines which do not know `skip locked`, or are blind to it, lose speed and never safety.
pub(super) async fn claim(
    store: &Store,
    db: &impl TransactionTrait,
    claim: &Claim,
) -> Result<Vec<TaskLog>, DbErr> {
    let transaction = db.begin_with_config(Some(IsolationLevel::ReadCommitted), None).await?;
    let mut sql = sql("select ");
    sql.push(&store.columns("")).push(" from t_sys_mq_resend_log where ");
    store.due(&mut sql, claim);
    if !store.optimistic {
        sql.push(" for update skip locked");
    }
    let rows = transaction.query_all_raw(sql.build()).await?;
    let mut due = store.decode(rows.into_iter(), |row| row::decode(row, &store.times, None));
    if due.is_empty() {
        transaction.rollback().await?;
        return Ok(due);
    }
    let mut sql = self::sql(
        "update t_sys_mq_resend_log force index (primary) set fence = fence + 1, crash_count = \
         crash_count + case when locked_by is null then 0 else 1 end, ",
    );
    if claim.ids.is_some() {
        sql.push("status = case when status in (0, 1) then status else 1 end, ");
    }
    sql.push("locked_by = ").bind(store.worker.as_str());
    sql.push(", next_send_time = ").bind(store.times.up(claim.until));
    store.touch(&mut sql, "update_time", claim.now);
    sql.push(" where id in ").list(padded(due.iter()).map(|task| task.id.0 as u64));
    sql.push(" and (id, fence, status) in (");
    for (index, task) in padded(due.iter()).enumerate() {
        sql.push(if index == 0 { "(" } else { ", (" });
        sql.bind(task.id.0 as u64).push(", ").bind(task.fence).push(", ");
        sql.bind(task.status.number()).push(")");
    }
    // Without a lock in between, a late holder may have renewed the lease that had run out.
    sql.push(match claim.ids {
        Some(_) => ") and (locked_by is null or next_send_time is null or next_send_time <= ",
        None => ") and (next_send_time <= ",
    });
    sql.bind(store.times.down(claim.now)).push(")");
    let taken = transaction.execute_raw(sql.build()).await?.rows_affected();
    if taken < due.len() as u64 {
        let fences = mine(store, &transaction, &due).await?;
        due.retain(|task| fences.get(&task.id.0) == Some(&(task.fence + 1)));
    }
    transaction.commit().await?;
    for task in &mut due {
        task.crash_count += u32::from(task.locked_by.is_some());
        task.fence += 1;
        task.locked_by = Some(store.worker.clone());
        task.next_send_time = Some(clock::to_datetime(claim.until));
        if claim.ids.is_some() && !matches!(task.status, Status::Executing | Status::Retrying) {
            task.status = Status::Retrying;
        }
    }
    Ok(due)
}

/// The fences of those rows that are held by this process now.
async fn mine(
    store: &Store,
    db: &impl ConnectionTrait,
    due: &[TaskLog],
) -> Result<HashMap<i64, i64>, DbErr> {
    let mut sql = sql("select id, fence from t_sys_mq_resend_log where locked_by = ");
    sql.bind(store.worker.as_str()).push(" and id in ");
    sql.list(due.iter().map(|task| task.id.0 as u64));
    let rows = db.query_all_raw(sql.build()).await?;
    rows.iter().map(|row| Ok((id(row, 0, DbBackend::MySql)?, get(row, 1)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::{knows_skip_locked, most_claimed};

    #[test]
    fn claims_fit_into_a_statement() {
        assert_eq!(most_claimed(15_000), 256);
        assert_eq!(most_claimed(4 << 20), 8192);
        assert_eq!([most_claimed(0), most_claimed(usize::MAX)], [1, 8192]);
    }

    #[test]
    fn versions_are_read() {
        for version in ["10.11.6-MariaDB-0+deb12u1", "8.0.36", "9.7.0", "5.5.5-10.6.3-MariaDB-log"]
        {
            assert!(knows_skip_locked(version), "{version}");
        }
        for version in ["10.5.9-MariaDB", "5.7.44-log", "8.0.0", ""] {
            assert!(!knows_skip_locked(version), "{version}");
        }
    }
}
