//! Reads ledger and table against each other.

use std::collections::HashMap;
use std::time::Duration;

use sea_orm::{ConnectionTrait, Statement};

use super::ledger::{Attempt, Seen};
use super::{APART, LEASE, RETRY, Report, Trouble};
use crate::TestDb;

/// A task that so many processes died with is suspected of killing them.
const SUSPECT: u32 = 2;

/// A row at the end.
pub(super) struct Row {
    pub(super) status: i64,
    pub(super) fence: i64,
    pub(super) send_count: i64,
}

pub(super) async fn rows(db: &TestDb) -> HashMap<i64, Row> {
    let connection = db.connect().await;
    let int = if db.kind.is_mysql() { "signed" } else { "bigint" };
    let sql = format!(
        "select cast(id as {int}), cast(status as {int}), cast(fence as {int}), cast(send_count as {int}) \
         from t_sys_mq_resend_log"
    );
    let sql = Statement::from_string(connection.get_database_backend(), sql);
    let rows = connection.query_all_raw(sql).await.expect("the database answers");
    let number = |row: &sea_orm::QueryResult, index| -> i64 {
        row.try_get_by_index(index).expect("a number")
    };
    let rows = rows.iter().map(|row| {
        let (status, fence, send_count) = (number(row, 1), number(row, 2), number(row, 3));
        (number(row, 0), Row { status, fence, send_count })
    });
    rows.collect()
}

/// Reads ledger and table against each other.
pub(super) async fn check(db: &TestDb, seen: &Seen, troubles: &[Trouble], report: &mut Report) {
    let rows = rows(db).await;
    report.accepted = seen.accepted.len() as u64;
    report.rows = rows.len() as u64;
    report.at_points = seen.hits.clone();
    report.clocks_moved = seen.moved;
    report.attempts = seen.attempts.values().map(|attempts| attempts.len() as u64).sum();
    let mut violations = Vec::new();
    for id in &seen.accepted {
        if !rows.contains_key(id) {
            violations.push(format!("lost: task {id} was accepted, and is not in the table"));
        }
        if !seen.attempts.contains_key(id) {
            violations.push(format!("lost: task {id} was accepted, and never started"));
        }
    }
    for (id, row) in &rows {
        if row.status != 3 {
            violations.push(format!("task {id} has status {}, not 3", row.status));
        }
    }
    for (id, attempts) in &seen.attempts {
        let mut attempts = attempts.clone();
        attempts.sort_by_key(|attempt| (attempt.fence, attempt.start));
        let Some(row) = rows.get(id) else {
            violations.push(format!("task {id} ran, and is not in the table"));
            continue;
        };
        one_task(*id, row, &attempts, troubles, report, &mut violations);
    }
    recovery(seen, troubles, report);
    report.violations.append(&mut violations);
}

pub(super) fn one_task(
    id: i64,
    row: &Row,
    attempts: &[Attempt],
    troubles: &[Trouble],
    report: &mut Report,
    violations: &mut Vec<String>,
) {
    let succeeded = |attempt: &&Attempt| attempt.end.is_some_and(|end| end.ok == Some(true));
    // What counts is what the attempt with the row's fence did: nobody else's write took effect.
    let winner = attempts.iter().find(|attempt| attempt.fence == row.fence);
    if row.status == 3 && winner.filter(succeeded).is_none() {
        violations.push(format!(
            "stale write: task {id} succeeded under fence {}, and the attempt of it is {winner:?}",
            row.fence
        ));
    }
    for (index, attempt) in attempts.iter().enumerate() {
        let Some(next) = attempts.get(index + 1) else { continue };
        if attempt.fence == next.fence {
            violations.push(format!("task {id}: two attempts under fence {}", next.fence));
        }
        if let Some(end) = attempt.end {
            if end.held && end.at > next.start {
                violations.push(format!(
                    "task {id}: fence {} still held it {} µs after {} had started",
                    attempt.fence,
                    end.at - next.start,
                    next.fence
                ));
            }
            // Counted as failed, it waits for its time.
            let counted = end.ok == Some(false) && next.number > attempt.number;
            let waited = next.start.saturating_sub(end.at);
            if counted && waited < (RETRY - APART).as_micros() as u64 {
                violations.push(format!("task {id}: retried after {waited} µs"));
            }
        }
        if next.number < attempt.number || next.number > attempt.number + 1 {
            violations
                .push(format!("task {id}: attempt {} came after {}", next.number, attempt.number));
        }
        if succeeded(&attempt) {
            match why(attempt, next, troubles) {
                Some(cause) => *report.duplicates.entry(cause).or_default() += 1,
                None => violations.push(format!(
                    "task {id} succeeded under fence {}, and ran again for no reason: {attempt:?} {next:?}",
                    attempt.fence
                )),
            }
        }
    }
    let failed = attempts.iter().filter(|one| one.end.is_some_and(|end| end.ok == Some(false)));
    if row.send_count as usize > failed.count() {
        violations.push(format!("task {id}: more failures are counted than there were"));
    }
}

/// What kept the end of an attempt from being written before the next started.
pub(super) fn why(attempt: &Attempt, next: &Attempt, troubles: &[Trouble]) -> Option<&'static str> {
    // A process that is stopped between its last look at the lease and the start starts late.
    let (from, until) = (attempt.start.min(next.start), attempt.start.max(next.start));
    let concerned = troubles.iter().filter(|trouble| {
        trouble.pid.is_none_or(|pid| pid == attempt.pid)
            && trouble.from <= until
            && trouble.until >= from
    });
    // What struck the process itself explains it best.
    concerned.max_by_key(|trouble| trouble.pid.is_some()).map(|trouble| trouble.what)
}

/// How long tasks waited whose worker was killed, and whose next worker was not.
pub(super) fn recovery(seen: &Seen, troubles: &[Trouble], report: &mut Report) {
    let mut deaths: HashMap<u32, Vec<u64>> = HashMap::new();
    let noticed = troubles.iter().filter(|trouble| trouble.what == "killed");
    let noticed = noticed.filter_map(|trouble| Some((trouble.pid?, trouble.from)));
    // Noticed a little later than they came; those of its own a process told of itself.
    for (pid, at) in seen.by_itself.iter().copied().chain(noticed) {
        deaths.entry(pid).or_default().push(at);
    }
    let faults: Vec<&Trouble> = troubles.iter().filter(|trouble| trouble.pid.is_none()).collect();
    for attempts in seen.attempts.values() {
        for attempt in attempts.iter().filter(|attempt| attempt.end.is_none()) {
            // Numbers of processes come again.
            let deaths = deaths.get(&attempt.pid).into_iter().flatten();
            let death = deaths.filter(|death| **death >= attempt.start).min();
            let next = attempts.iter().find(|next| next.fence == attempt.fence + 1);
            let (Some(&death), Some(next)) = (death, next) else { continue };
            // After a fault all leases are left alone for the length of one.
            let quiet = LEASE.as_micros() as u64;
            let well = !faults
                .iter()
                .any(|fault| fault.from <= next.start && fault.until + quiet >= attempt.start);
            if well {
                let time = Duration::from_micros(next.start.saturating_sub(death));
                report.recovery.0.push(time);
                if next.crashes >= SUSPECT {
                    report.suspects.0.push(time);
                }
            }
        }
    }
    report.recovery.0.sort_unstable();
    report.suspects.0.sort_unstable();
}
