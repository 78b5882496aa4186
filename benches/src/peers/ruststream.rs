//! ruststream-sqlx, in its two forms, with rows claimed and handled in batches. Rows locked: a
//! transaction stays open while handlers run, nothing is fenced, and a row that kills its process is
//! not counted. Leases: committed at the claim, fenced. A row that has succeeded is deleted. Rows are
//! inserted in batches of 1,000 by statements of its user's own, as it would have them, and never more
//! than a few thousand ahead; it looks for them every 5 ms.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use ruststream::runtime::RunningApp;
use ruststream_sqlx::prelude::*;
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement, Value};
use sqlx::mysql::MySqlPoolOptions;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;

use crate::tool::*;

static RUNS: AtomicU64 = AtomicU64::new(0);

#[derive(serde::Serialize, serde::Deserialize)]
struct Noop {
    number: u64,
    text: String,
}

#[derive(Inbox, sqlx::FromRow)]
#[inbox(table = "locked_jobs")]
struct Locked {
    #[field(id, generated)]
    id: i64,
    #[field(payload)]
    payload: Vec<u8>,
}

#[derive(Inbox, sqlx::FromRow)]
#[inbox(table = "leased_jobs")]
struct Leased {
    #[field(id, generated)]
    id: i64,
    #[field(locked_until)]
    locked_until: Option<DateTime<Utc>>,
    #[field(payload)]
    payload: Vec<u8>,
}

fn run(jobs: &[Noop]) -> Vec<HandlerOutcome> {
    RUNS.fetch_add(jobs.len() as u64, Relaxed);
    jobs.iter().map(|job| (job.number, &job.text)).map(|_| HandlerOutcome::ack()).collect()
}

#[subscriber(InboxQueue::<Locked>::new("jobs"))]
async fn locked(jobs: &[Noop]) -> Vec<HandlerOutcome> {
    run(jobs)
}

#[subscriber(InboxQueue::<Leased>::new("jobs"))]
async fn leased(jobs: &[Noop]) -> Vec<HandlerOutcome> {
    run(jobs)
}

macro_rules! start {
    ($url:expr, $pool:expr, $handler:ident, $batch:literal, $workers:literal) => {{
        let broker = SqlxBroker::from_url($url, $pool.max_connections(20))
            .poll_interval(Duration::from_millis(5));
        RustStream::new(AppInfo::new("bench", "0.1.0"))
            .with_broker(broker, |b| {
                b.include($handler.batch(nonzero!($batch)).workers(nonzero!($workers)));
            })
            .start()
            .await
            .unwrap()
    }};
}

async fn start(url: &str, lease: bool) -> RunningApp {
    match (url.split(':').next().unwrap(), lease) {
        ("postgres", false) => start!(url, PgPoolOptions::new(), locked, 1000, 2),
        ("postgres", true) => start!(url, PgPoolOptions::new(), leased, 500, 2),
        ("mysql", false) => start!(url, MySqlPoolOptions::new(), locked, 1000, 2),
        ("mysql", true) => start!(url, MySqlPoolOptions::new(), leased, 500, 2),
        (_, _) => start!(url, SqlitePoolOptions::new(), leased, 500, 1),
    }
}

fn table(lease: bool) -> &'static str {
    if lease { "leased_jobs" } else { "locked_jobs" }
}

async fn create(db: &DatabaseConnection, url: &str, lease: bool) {
    let (id, time, payload) = match url.split(':').next().unwrap() {
        "postgres" => ("bigserial primary key", "timestamptz", "bytea"),
        "mysql" => ("bigint auto_increment primary key", "datetime", "blob"),
        _ => ("integer primary key", "text", "blob"),
    };
    let column = if lease { format!("locked_until {time},") } else { String::new() };
    let sql =
        format!("create table {} (id {id}, {column} payload {payload} not null)", table(lease));
    db.execute_unprepared(&sql).await.unwrap();
    if url.starts_with("sqlite") {
        db.execute_unprepared("pragma journal_mode = wal").await.unwrap();
    }
}

async fn insert(db: &DatabaseConnection, lease: bool, count: u64) {
    let payloads = (0..count)
        .map(|number| serde_json::to_vec(&Noop { number, text: TEXT.to_owned() }).unwrap());
    if db.get_database_backend() == sea_orm::DbBackend::Postgres {
        let sql = format!("insert into {} (payload) select unnest($1)", table(lease));
        let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(payloads.collect::<Vec<_>>());
        query.execute(db.get_postgres_connection_pool()).await.unwrap();
        return;
    }
    let sql = format!(
        "insert into {} (payload) values (?){}",
        table(lease),
        ", (?)".repeat(count as usize - 1)
    );
    let values = payloads.map(|payload| Value::Bytes(Some(payload)));
    db.execute_raw(Statement::from_sql_and_values(db.get_database_backend(), sql, values))
        .await
        .unwrap();
}

async fn store(db: &DatabaseConnection, lease: bool, count: u64) {
    for start in (0..count).step_by(BATCH as usize) {
        insert(db, lease, BATCH.min(count - start)).await;
    }
}

async fn all_ended(db: &DatabaseConnection, lease: bool) {
    let sql = Statement::from_string(
        db.get_database_backend(),
        format!("select count(*) from {}", table(lease)),
    );
    loop {
        let row = db.query_one_raw(sql.clone()).await.unwrap().unwrap();
        if row.try_get_by_index::<i64>(0).unwrap() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub async fn child(url: &str, who: &str, what: &str) {
    let (what, number) = what.split_once(':').unwrap();
    let number: u64 = number.parse().unwrap();
    let lease = who == "ruststream-lease";
    let db = connect(url).await;
    create(&db, url, lease).await;
    store(&db, lease, 2000).await;
    let app = start(url, lease).await;
    all_ended(&db, lease).await;
    app.shutdown().await.unwrap();
    match what {
        "drain" => drain(url, &db, lease, number).await,
        "sustained" => sustained(url, &db, lease, number).await,
        _ => panic!("unknown work {what}"),
    }
}

async fn drain(url: &str, db: &DatabaseConnection, lease: bool, count: u64) {
    store(db, lease, count).await;
    settle(url).await;
    RUNS.store(0, Relaxed);
    let begin = Instant::now();
    let app = start(url, lease).await;
    until(&RUNS, count).await;
    all_ended(db, lease).await;
    metric("rate", count as f64 / begin.elapsed().as_secs_f64());
    app.shutdown().await.unwrap();
}

async fn sustained(url: &str, db: &DatabaseConnection, lease: bool, producers: u64) {
    // Analysed while there are rows: a job that has ended is gone, and an empty table teaches nothing.
    store(db, lease, 5000).await;
    settle(url).await;
    let app = start(url, lease).await;
    all_ended(db, lease).await;
    let enqueue = async |time| {
        RUNS.store(0, Relaxed);
        let db = db.clone();
        feed(producers, time, &RUNS, move |count| {
            let db = db.clone();
            async move { insert(&db, lease, count).await }
        })
        .await
    };
    enqueue(Duration::from_secs(1)).await;
    all_ended(db, lease).await;
    let begin = Instant::now();
    let count = enqueue(sustained_time()).await;
    until(&RUNS, count).await;
    all_ended(db, lease).await;
    metric("rate", count as f64 / begin.elapsed().as_secs_f64());
    app.shutdown().await.unwrap();
}
