//! Speed against hand-written SQL and against peers, interleaved in one run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, Database, Statement};
use sqlx::PgPool;
use task_retry::{TaskRetry, ThreadPoolParam, enqueue_all, retryable};

static RUNS: AtomicU64 = AtomicU64::new(0);

#[retryable(source = 100)]
async fn noop(number: u64, text: &str) -> Result<(), String> {
    let _ = (number, text);
    RUNS.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

async fn fresh(admin: &str, name: &str) -> String {
    let db = Database::connect(admin).await.unwrap();
    let force = if admin.starts_with("postgres") { " with (force)" } else { "" };
    let _ = db.execute_unprepared(&format!("drop database if exists {name}{force}")).await;
    db.execute_unprepared(&format!("create database {name}")).await.unwrap();
    format!("{}/{name}", admin.rsplit_once('/').unwrap().0)
}

async fn ours(url: &str, job: bool) -> TaskRetry {
    let mut pool = ThreadPoolParam::default();
    pool.max_pool_size = 500;
    pool.queue_capacity = 8000;
    pool.core_pool_size = 8;
    TaskRetry::builder()
        .project("bench")
        .database(url)
        .thread_pool_param(pool)
        .task_limit(1000)
        .job(job)
        .detached()
        .start()
        .await
        .unwrap()
}

fn percentile(times: &mut [Duration], p: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * p) as usize]
}

async fn lone(url: &str) {
    let retry = ours(url, true).await;
    let mut times = Vec::new();
    for i in 0..1000 {
        let start = Instant::now();
        noop(i, "hello world").on(&retry).await.unwrap();
        times.push(start.elapsed());
    }
    println!("ours lone await p50 {:?} p99 {:?}", percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    let mut times = Vec::new();
    RUNS.store(0, Ordering::SeqCst);
    for i in 0..1000 {
        let start = Instant::now();
        noop(i, "hello world").on(&retry).enqueue().await.unwrap();
        times.push(start.elapsed());
        while RUNS.load(Ordering::SeqCst) <= i { tokio::task::yield_now().await; }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    println!("ours lone enqueue p50 {:?} p99 {:?}", percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    retry.shutdown().await.unwrap();
}

async fn lone_by_hand(url: &str) {
    let pool = PgPool::connect(url).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let mut times = Vec::new();
    let mut inserts: Vec<Duration> = Vec::new();
    for i in 0..1000_i64 {
        let start = Instant::now();
        sqlx::query("insert into t_sys_mq_resend_log (id, project_name, source, context, fence, locked_by, next_send_time) values ($1, 'bench', 101, $2, 1, 'me', now())")
            .bind(i + 1).bind(r#"{"number":1,"text":"hello world"}"#).execute(&mut *conn).await.unwrap();
        inserts.push(start.elapsed());
        sqlx::query("update t_sys_mq_resend_log set status = 3, locked_by = null, next_send_time = null where id = $1 and fence = 1 and locked_by = 'me'")
            .bind(i + 1).execute(&mut *conn).await.unwrap();
        times.push(start.elapsed());
    }
    let mut alone = Vec::new();
    for i in 0..1000_i64 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let start = Instant::now();
        sqlx::query("insert into t_sys_mq_resend_log (id, project_name, source, context, fence, locked_by, next_send_time, status) values ($1, 'bench', 101, $2, 1, 'me', now(), 3)")
            .bind(i + 10_001).bind(r#"{"number":1,"text":"hello world"}"#).execute(&mut *conn).await.unwrap();
        alone.push(start.elapsed());
    }
    println!("hand lone insert with pauses p50 {:?}", percentile(&mut alone, 0.5));
    println!("hand lone insert+update p50 {:?}, insert p50 {:?}", percentile(&mut times, 0.5), percentile(&mut inserts, 0.5));
}

async fn many(url: &str, callers: u64) {
    let retry = ours(url, true).await;
    let start = Instant::now();
    let until = start + Duration::from_secs(3);
    let done = AtomicU64::new(0);
    join_all((0..callers).map(|_| async {
        while Instant::now() < until {
            noop(1, "hello world").on(&retry).await.unwrap();
            done.fetch_add(1, Ordering::Relaxed);
        }
    }))
    .await;
    println!("ours {callers} callers: {:.0}/s", done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64());
    retry.shutdown().await.unwrap();
}

async fn drain(url: &str) {
    let retry = ours(url, false).await;
    let start = Instant::now();
    let calls: Vec<_> = (0..50_000).map(|i| noop(i, "hello world").on(&retry)).collect();
    println!("  prepare 50000: {:?}", start.elapsed());
    let start = Instant::now();
    enqueue_all(calls).await.unwrap();
    println!("ours enqueue_all 50000: {:.0}/s", 50_000.0 / start.elapsed().as_secs_f64());
    retry.shutdown().await.unwrap();
    let db = Database::connect(url).await.unwrap();
    let _ = db.execute_unprepared("analyze").await;
    RUNS.store(0, Ordering::SeqCst);
    let start = Instant::now();
    let retry = ours(url, true).await;
    loop {
        let open: i64 = if RUNS.load(Ordering::SeqCst) < 50_000 { 1 } else {
            db.query_one_raw(Statement::from_string(db.get_database_backend(), "select count(*) from t_sys_mq_resend_log where status in (0,1,5)")).await.unwrap().unwrap().try_get_by_index(0).unwrap()
        };
        if open == 0 { break; }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    println!("ours drain 50000: {:.0}/s", 50_000.0 / start.elapsed().as_secs_f64());
    retry.shutdown().await.unwrap();
}

async fn sustained(url: &str) {
    let retry = ours(url, true).await;
    RUNS.store(0, Ordering::SeqCst);
    let start = Instant::now();
    let until = start + Duration::from_secs(5);
    join_all((0..512).map(|_| async {
        while Instant::now() < until {
            noop(1, "hello world").on(&retry).enqueue().await.unwrap();
        }
    }))
    .await;
    retry.shutdown().await.unwrap();
    println!("ours sustained: {:.0}/s", RUNS.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64());
}

#[tokio::main]
async fn main() {
    let which = std::env::args().nth(1).unwrap_or_default();
    let server = std::env::args().nth(2).unwrap_or("POSTGRES".into());
    let admin = std::env::var(format!("TASK_RETRY_TEST_{server}")).unwrap_or_default();
    for round in 0..2 {
        println!("round {round}");
        let url = if admin.is_empty() {
            for end in ["", "-wal", "-shm"] { let _ = std::fs::remove_file(format!("/tmp/bench.db{end}")); }
            "sqlite:///tmp/bench.db?mode=rwc".to_owned()
        } else { fresh(&admin, "bench").await };
        if which.is_empty() || which == "lone" {
            let (a, b) = (url.clone(), url.clone());
            tokio::spawn(async move { lone(&a).await }).await.unwrap();
            if server == "POSTGRES" { tokio::spawn(async move { lone_by_hand(&b).await }).await.unwrap(); }
        }
        if which.is_empty() || which == "many" {
            many(&url, 256).await;
        }
        if which.is_empty() || which == "drain" {
            drain(&url).await;
        }
        if which.is_empty() || which == "sustained" {
            sustained(&url).await;
        }
    }
}
