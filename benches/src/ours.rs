//! task-retry. Whatever is awaited is answered when its success is committed; an `enqueue` when its
//! row is. Workers write successes behind, within milliseconds.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use sqlx::{Connection, PgConnection};
use task_retry::{TaskRetry, ThreadPoolParam, enqueue_all, retryable};

use crate::tool::*;

static RUNS: AtomicU64 = AtomicU64::new(0);
static TIMES: std::sync::Mutex<Vec<Duration>> = std::sync::Mutex::new(Vec::new());

#[retryable(source = 100)]
async fn noop(number: u64, text: &str) -> Result<(), String> {
    let _ = (number, text);
    RUNS.fetch_add(1, Relaxed);
    Ok(())
}

/// Notes how long ago it was enqueued.
#[retryable(source = 101)]
async fn timed(sent: u64) -> Result<(), String> {
    TIMES.lock().unwrap().push(Duration::from_nanos(nanos().saturating_sub(sent)));
    RUNS.fetch_add(1, Relaxed);
    Ok(())
}

async fn start(url: &str, job: bool) -> TaskRetry {
    let pool = ThreadPoolParam {
        max_pool_size: 500,
        queue_capacity: 4000,
        core_pool_size: 10,
        ..ThreadPoolParam::default()
    };
    TaskRetry::builder()
        .project("bench")
        .database(url)
        .thread_pool_param(pool)
        .task_limit(2000)
        .job(job)
        .detached()
        .start()
        .await
        .unwrap()
}

pub async fn child(url: &str, what: &str) {
    let (what, number) = what.split_once(':').unwrap_or((what, "0"));
    let number: u64 = number.parse().unwrap();
    match what {
        "lone" => lone(url).await,
        "lone-enqueue" => lone_enqueue(url).await,
        "awaited" => awaited(url, number).await,
        "drain" => drain(url, number).await,
        "sustained" => sustained(url, number).await,
        "two" => two(url, number).await,
        "producer" => producer(url, number, sustained_time()).await,
        "snapshot-producer" => producer(url, number, snapshot_times().0).await,
        "bulk" => bulk(url, number).await,
        "latency" => latency(url).await,
        "latency-other" => latency_other(url).await,
        "latency-sender" => latency_sender(url).await,
        "snapshot" => snapshot(url, number).await,
        "memory" => memory(url, number).await,
        "claim" => claim(url, number).await,
        "count-alone" => count_alone(url, number).await,
        "count-grouped" => count_grouped(url, number).await,
        _ => panic!("unknown work {what}"),
    }
}

async fn lone(url: &str) {
    let retry = start(url, true).await;
    let mut times = Vec::new();
    for i in 0..1400 {
        if i == 400 {
            settle(url).await;
            times.clear();
        }
        let start = Instant::now();
        noop(i, TEXT).on(&retry).await.unwrap();
        times.push(start.elapsed());
    }
    metric("p50_us", percentile(&mut times, 0.5));
    metric("p99_us", percentile(&mut times, 0.99));
    retry.shutdown().await.unwrap();
}

async fn lone_enqueue(url: &str) {
    let retry = start(url, true).await;
    let mut times = Vec::new();
    let mut pace = lone_pace();
    for i in 0..600 {
        if i == 200 {
            until(&RUNS, i).await;
            settle(url).await;
            times.clear();
        }
        pace.tick().await;
        let start = Instant::now();
        noop(i, TEXT).on(&retry).enqueue().await.unwrap();
        times.push(start.elapsed());
    }
    metric("p50_us", percentile(&mut times, 0.5));
    metric("p99_us", percentile(&mut times, 0.99));
    retry.shutdown().await.unwrap();
}

async fn awaited(url: &str, count: u64) {
    let retry = start(url, true).await;
    let runtime = retry.clone();
    measure_callers(url, count, move |i| {
        let call = noop(i, TEXT).on(&runtime);
        async move { call.await.unwrap() }
    })
    .await;
    retry.shutdown().await.unwrap();
}

/// Whether any row is open: a question that the index answers.
async fn is_open(db: &DatabaseConnection) -> bool {
    let sql = "select count(*) from (select 1 from t_sys_mq_resend_log where project_name = 'bench' \
               and source in (100, 101) and status in (0, 1, 5) and next_send_time is not null limit 1) t";
    let sql = Statement::from_string(db.get_database_backend(), sql);
    let row = db.query_one_raw(sql).await.unwrap().unwrap();
    row.try_get_by_index::<i64>(0).unwrap() > 0
}

async fn all_ended(db: &DatabaseConnection) {
    while is_open(db).await {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn store(retry: &TaskRetry, count: u64) {
    for start in (0..count).step_by(10_000) {
        let numbers = start..count.min(start + 10_000);
        enqueue_all(numbers.map(|i| noop(i, TEXT).on(retry))).await.unwrap();
    }
}

/// The rows are due, their source is paused; the time runs from its resumption to the last commit.
async fn drain(url: &str, count: u64) {
    let retry = start(url, true).await;
    let db = connect(url).await;
    store(&retry, 2000).await;
    all_ended(&db).await;
    let sources = retry.sources();
    sources.pause(100).await.unwrap();
    RUNS.store(0, Relaxed);
    store(&retry, count).await;
    settle(url).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let start = Instant::now();
    sources.resume(100).await.unwrap();
    until(&RUNS, count).await;
    // Shutting down waits for what is still to be written, and asks the database nothing.
    retry.shutdown().await.unwrap();
    metric("rate", count as f64 / start.elapsed().as_secs_f64());
    assert!(!is_open(&db).await);
}

/// Enqueues for a time, by this many callers; returns how many.
async fn enqueue(retry: &TaskRetry, count: u64, time: Duration) -> u64 {
    let retry = retry.clone();
    let call = move |i| {
        let call = noop(i, TEXT).on(&retry);
        async move {
            call.enqueue().await.unwrap();
        }
    };
    callers(count, Instant::now() + time, call).await.len() as u64
}

async fn sustained(url: &str, callers: u64) {
    let retry = start(url, true).await;
    let db = connect(url).await;
    enqueue(&retry, callers, Duration::from_secs(1)).await;
    all_ended(&db).await;
    settle(url).await;
    RUNS.store(0, Relaxed);
    let start = Instant::now();
    let count = enqueue(&retry, callers, sustained_time()).await;
    until(&RUNS, count).await;
    all_ended(&db).await;
    metric("rate", count as f64 / start.elapsed().as_secs_f64());
    retry.shutdown().await.unwrap();
}

/// This process works; another one enqueues.
async fn two(url: &str, callers: u64) {
    let retry = start(url, true).await;
    let db = connect(url).await;
    let (second, warm) = Second::start("ours", &format!("producer:{callers}")).number().await;
    until(&RUNS, warm as u64).await;
    all_ended(&db).await;
    settle(url).await;
    let (second, _) = second.go().number().await;
    let start = Instant::now();
    let (second, count) = second.number().await;
    let stored = start.elapsed();
    until(&RUNS, (warm + count) as u64).await;
    all_ended(&db).await;
    metric("rate", count / start.elapsed().as_secs_f64());
    metric("stored", count / stored.as_secs_f64());
    second.end();
    retry.shutdown().await.unwrap();
}

async fn producer(url: &str, callers: u64, time: Duration) {
    let retry = start(url, false).await;
    metric("warm", enqueue(&retry, callers, Duration::from_secs(1)).await as f64);
    wait_for_go();
    metric("start", 0.0);
    metric("count", enqueue(&retry, callers, time).await as f64);
    retry.shutdown().await.unwrap();
}

async fn bulk(url: &str, count: u64) {
    let retry = start(url, false).await;
    store(&retry, 2000).await;
    settle(url).await;
    let start = Instant::now();
    enqueue_all((0..count).map(|i| noop(i, TEXT).on(&retry))).await.unwrap();
    metric("rate", count as f64 / start.elapsed().as_secs_f64());
    retry.shutdown().await.unwrap();
}

/// How many single tasks a latency is taken of.
const SINGLE: u64 = 300;

/// Enqueues one after another, with pauses in which nothing happens.
async fn send_singly(retry: &TaskRetry) {
    for i in 0..SINGLE {
        timed(nanos()).on(retry).enqueue().await.unwrap();
        // Longer than notifications are held together for, and not in step with anything.
        tokio::time::sleep(Duration::from_micros(25_000 + i * 7919 % 16_000)).await;
    }
}

fn tell_times() {
    let mut times = std::mem::take(&mut *TIMES.lock().unwrap());
    times.drain(..20);
    metric("p50_us", percentile(&mut times, 0.5));
    metric("p99_us", percentile(&mut times, 0.99));
}

async fn latency(url: &str) {
    let retry = start(url, true).await;
    let db = connect(url).await;
    store(&retry, 2000).await;
    all_ended(&db).await;
    settle(url).await;
    RUNS.store(0, Relaxed);
    send_singly(&retry).await;
    until(&RUNS, SINGLE).await;
    tell_times();
    retry.shutdown().await.unwrap();
}

async fn latency_other(url: &str) {
    let retry = start(url, true).await;
    let db = connect(url).await;
    store(&retry, 2000).await;
    all_ended(&db).await;
    settle(url).await;
    RUNS.store(0, Relaxed);
    let second = Second::start("ours", "latency-sender");
    until(&RUNS, SINGLE).await;
    tell_times();
    second.end();
    retry.shutdown().await.unwrap();
}

async fn latency_sender(url: &str) {
    let retry = start(url, false).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    send_singly(&retry).await;
    retry.shutdown().await.unwrap();
}

/// Somebody's transaction with an old snapshot stays open while another process enqueues and this one
/// works.
async fn snapshot(url: &str, callers: u64) {
    let retry = start(url, true).await;
    let db = connect(url).await;
    let (second, warm) =
        Second::start("ours", &format!("snapshot-producer:{callers}")).number().await;
    until(&RUNS, warm as u64).await;
    all_ended(&db).await;
    settle(url).await;
    let mut old = PgConnection::connect(url).await.unwrap();
    for sql in ["begin isolation level repeatable read", "select count(*) from t_sys_mq_resend_log"]
    {
        sqlx::query(sql).execute(&mut old).await.unwrap();
    }
    let (second, _) = second.go().number().await;
    let (whole, part) = snapshot_times();
    let (start, before) = (Instant::now(), RUNS.load(Relaxed));
    tokio::time::sleep(part).await;
    let first = (RUNS.load(Relaxed) - before) as f64 / part.as_secs_f64();
    tokio::time::sleep((whole - part).saturating_sub(start.elapsed())).await;
    let (start, before) = (Instant::now(), RUNS.load(Relaxed));
    tokio::time::sleep(part).await;
    let last = (RUNS.load(Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
    metric("first", first);
    metric("last", last);
    old.close().await.unwrap();
    let (second, _) = second.number().await;
    second.end();
    retry.shutdown().await.unwrap();
}

fn snapshot_times() -> (Duration, Duration) {
    (seconds(60, 15), seconds(10, 5))
}

/// A backlog of this many due rows, worked on for a while.
async fn memory(url: &str, count: u64) {
    let retry = start(url, false).await;
    store(&retry, 1).await;
    let db = connect(url).await;
    let fill = format!(
        "insert into t_sys_mq_resend_log (id, project_name, source, context, next_send_time, task_name) \
         select g, 'bench', 100, (select context from t_sys_mq_resend_log limit 1), \
         now() - interval '1 hour', 'noop' from generate_series(1, {count}) g"
    );
    db.execute_unprepared(&fill).await.unwrap();
    settle(url).await;
    retry.shutdown().await.unwrap();
    let before = peak_memory();
    let retry = start(url, true).await;
    tokio::time::sleep(seconds(10, 5)).await;
    metric("peak_mb", peak_memory());
    metric("before_mb", before);
    metric("runs", RUNS.load(Relaxed) as f64);
    retry.shutdown().await.unwrap();
}

/// For `benches/instructions`: awaited calls one after another.
async fn count_alone(url: &str, count: u64) {
    let retry = start(url, true).await;
    for i in 0..count {
        noop(i, TEXT).on(&retry).await.unwrap();
    }
    retry.shutdown().await.unwrap();
}

/// The same by 64 callers side by side.
async fn count_grouped(url: &str, count: u64) {
    let retry = start(url, true).await;
    let callers = (0..64).map(|_| {
        let retry = retry.clone();
        tokio::spawn(async move {
            for i in 0..count / 64 {
                noop(i, TEXT).on(&retry).await.unwrap();
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    retry.shutdown().await.unwrap();
}

/// Claims of 50 rows, as the server itself times and counts them, beside this many thousand finished
/// and as many future rows.
async fn claim(url: &str, thousands: u64) {
    if !url.starts_with("postgres") {
        return claim_elsewhere(url, thousands).await;
    }
    let retry = start(url, false).await;
    store(&retry, 1).await;
    let db = connect(url).await;
    let rows = thousands * 1000;
    let fill = |from: u64, count: u64, status: u64, next: &str| {
        format!(
            "insert into t_sys_mq_resend_log \
             (id, project_name, source, context, status, next_send_time, task_name) \
             select g, 'bench', 100, (select context from t_sys_mq_resend_log limit 1), {status}, \
             {next}, 'noop' from generate_series({from}, {from} + {count} - 1) g"
        )
    };
    for sql in [
        fill(1, rows, 3, "null"),
        fill(10_000_001, rows, 1, "now() + interval '1 day' + g * interval '1 millisecond'"),
        fill(20_000_001, 5000, 0, "now() - interval '1 minute' + (g % 10000) * interval '1 ms'"),
        "vacuum analyze".to_owned(),
        "checkpoint".to_owned(),
        format!("alter database {} set session_preload_libraries = 'auto_explain'", name(url)),
    ] {
        db.execute_unprepared(&sql).await.unwrap();
    }
    for (setting, value) in [
        ("log_min_duration", "0"),
        ("log_level", "notice"),
        ("log_analyze", "on"),
        ("log_timing", "off"),
        ("log_buffers", "on"),
    ] {
        let set = format!("alter database {} set auto_explain.{setting} = '{value}'", name(url));
        db.execute_unprepared(&set).await.unwrap();
    }
    retry.shutdown().await.unwrap();
    let plans = crate::plans::listen();
    let retry =
        TaskRetry::builder().project("bench").database(url).job(false).detached().migrate(false);
    let retry = retry.start().await.unwrap();
    retry.run_due(None).await.unwrap();
    retry.shutdown().await.unwrap();
    let mut times: Vec<Duration> = Vec::new();
    let mut buffers = Vec::new();
    let mut shown = None;
    for plan in plans.lock().unwrap().drain(..) {
        if !plan.contains("set fence = t.fence + 1") || !plan.contains("rows=50 loops") {
            continue;
        }
        times.push(crate::plans::duration(&plan));
        let hits = plan.split("shared hit=").nth(1).unwrap_or("0");
        let hits: String = hits.chars().take_while(char::is_ascii_digit).collect();
        buffers.push(Duration::from_micros(hits.parse().unwrap()));
        shown = Some(plan);
    }
    metric("claims", times.len() as f64);
    metric("p50_us", percentile(&mut times, 0.5));
    metric("pages", percentile(&mut buffers, 0.5));
    // The plans of the small tables are no news.
    if let Some(plan) = shown.filter(|_| thousands >= 1000) {
        note(plan.split_once(" plan:").map_or(plan.as_str(), |(_, plan)| plan.trim()));
    }
}

/// The same on MariaDB and MySQL, where a claim is a select that locks its rows and an update, and on
/// SQLite.
async fn claim_elsewhere(url: &str, thousands: u64) {
    let retry = start(url, false).await;
    let mysql = url.starts_with("mysql");
    let db = connect(url).await;
    let rows = thousands * 1000;
    let time = |hours: i32, millis: &str| match mysql {
        true => format!("now(3) + interval {hours} hour + interval {millis} * 1000 microsecond"),
        false => format!(
            "strftime('%Y-%m-%d %H:%M:%f', 'now', '{hours} hours', (({millis}) / 1000.0) || ' seconds')"
        ),
    };
    let digits = (0..10).map(|digit| format!("select {digit} as n")).collect::<Vec<_>>();
    let million = format!(
        "with digit as ({}) select 1 + a.n + 10 * b.n + 100 * c.n + 1000 * d.n + 10000 * e.n + 100000 * f.n \
         as g from digit a, digit b, digit c, digit d, digit e, digit f",
        digits.join(" union all ")
    );
    let fill = |from: u64, count: u64, status: u64, next: String| {
        format!(
            "insert into t_sys_mq_resend_log \
             (id, project_name, source, context, status, next_send_time, task_name, msg_key, topic) \
             select {from} + g, 'bench', 100, '{{\"number\":1,\"text\":\"{TEXT}\"}}', {status}, {next}, \
             'noop', '', '' from ({million}) numbers where g <= {count} order by g"
        )
    };
    for sql in [
        fill(1, rows, 3, "null".to_owned()),
        fill(10_000_001, rows, 1, time(24, "g")),
        fill(20_000_001, 5000, 0, time(-1, "g % 10000")),
    ] {
        db.execute_unprepared(&sql).await.unwrap();
    }
    retry.shutdown().await.unwrap();
    settle(url).await;
    let told = crate::plans::listen();
    let log = if mysql { Some(crate::plans::SlowLog::start(db.clone()).await) } else { None };
    let mut options = sea_orm::ConnectOptions::new(url);
    options.sqlx_logging(!mysql).max_connections(8);
    let own = sea_orm::Database::connect(options).await.unwrap();
    let retry = TaskRetry::builder().project("bench").connection(own).job(false).detached();
    let retry = retry.migrate(false).start().await.unwrap();
    retry.run_due(None).await.unwrap();
    retry.shutdown().await.unwrap();
    let (mut times, mut statement, mut plan) = (Vec::new(), String::new(), String::new());
    match log {
        Some(log) => {
            let mut entries = log.end().await.into_iter();
            while let Some(select) = entries.next() {
                if select.rows == 50 && select.statement.contains("for update skip locked") {
                    // The update comes next on the same connection, and nobody else is there.
                    let update = entries.next().unwrap();
                    let text = update.statement;
                    assert!(text.starts_with("update t_sys_mq_resend_log"), "{text}");
                    times.push(select.time + update.time);
                    (statement, plan) = (select.statement, select.plan);
                }
            }
        }
        None => {
            for told in told.lock().unwrap().drain(..) {
                let flat = told.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
                if flat.contains("set fence = fence + 1") {
                    times.push(crate::plans::duration(&told));
                    statement = told.split_once(" ms ").unwrap().1.trim().to_owned();
                }
            }
        }
    }
    if plan.is_empty() {
        let how = if mysql { "explain format=tree" } else { "explain query plan" };
        let sql = Statement::from_string(db.get_database_backend(), format!("{how} {statement}"));
        let column = if mysql { "EXPLAIN" } else { "detail" };
        for step in db.query_all_raw(sql).await.unwrap() {
            plan += &format!("{}\n", step.try_get::<String>("", column).unwrap());
        }
    }
    // The last ones found nothing more.
    times.truncate(100);
    metric("claims", times.len() as f64);
    metric("p50_us", percentile(&mut times, 0.5));
    if thousands >= 1000 {
        note(&format!("{statement}\n{plan}"));
    }
}

fn name(url: &str) -> &str {
    url.rsplit_once('/').unwrap().1
}
