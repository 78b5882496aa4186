//! graphile_worker, as its own speed test sets it up, and with its local queue in four parts. A job
//! that has succeeded is deleted, in batches of 5 ms; what is enqueued comes in batches of 1,000, its
//! fastest way in, and never more than a few thousand ahead of the worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, RawJobSpec, TaskHandler, Worker,
    WorkerContext, WorkerOptions, WorkerUtils,
};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinHandle;

use crate::tool::*;

static RUNS: AtomicU64 = AtomicU64::new(0);

#[derive(serde::Serialize, serde::Deserialize)]
struct Noop {
    number: u64,
    text: String,
}

impl TaskHandler for Noop {
    const IDENTIFIER: &'static str = "noop";

    async fn run(self, _: WorkerContext) -> impl IntoTaskHandlerResult {
        let _ = (self.number, self.text);
        RUNS.fetch_add(1, Relaxed);
        Ok::<(), String>(())
    }
}

async fn worker(pool: &PgPool) -> Arc<Worker> {
    let options = WorkerOptions::default()
        .pg_pool(pool.clone())
        .concurrency(500)
        .poll_interval(Duration::from_millis(5))
        .complete_job_batch_delay(Duration::from_millis(5))
        .local_queue(LocalQueueConfig::default().with_size(1250).with_queue_count(4))
        .listen_os_shutdown_signals(false)
        .define_job::<Noop>();
    Arc::new(options.init().await.unwrap())
}

fn run(worker: &Arc<Worker>) -> JoinHandle<()> {
    let worker = worker.clone();
    tokio::spawn(async move { worker.run().await.unwrap() })
}

async fn end(worker: &Worker, running: JoinHandle<()>) {
    worker.request_shutdown();
    running.await.unwrap();
}

async fn add(pool: &PgPool, count: u64) {
    let jobs: Vec<RawJobSpec> = (0..count)
        .map(|number| RawJobSpec {
            identifier: Noop::IDENTIFIER.to_owned(),
            payload: serde_json::to_value(Noop { number, text: TEXT.to_owned() }).unwrap(),
            spec: JobSpec::default(),
        })
        .collect();
    WorkerUtils::new(pool.clone(), "graphile_worker").add_raw_jobs(&jobs).await.unwrap();
}

async fn store(pool: &PgPool, count: u64) {
    for start in (0..count).step_by(BATCH as usize) {
        add(pool, BATCH.min(count - start)).await;
    }
}

async fn all_ended(pool: &PgPool) {
    let open = "select count(*) from graphile_worker._private_jobs";
    while sqlx::query_scalar::<_, i64>(open).fetch_one(pool).await.unwrap() > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub async fn child(url: &str, what: &str) {
    let (what, number) = what.split_once(':').unwrap_or((what, "0"));
    let number: u64 = number.parse().unwrap();
    let pool =
        PgPoolOptions::new().min_connections(10).max_connections(20).connect(url).await.unwrap();
    // Makes the tables and warms up.
    let first = worker(&pool).await;
    store(&pool, 2000).await;
    if what != "bulk" {
        let running = run(&first);
        all_ended(&pool).await;
        end(&first, running).await;
    }
    match what {
        "drain" => drain(url, &pool, number).await,
        "sustained" => sustained(url, &pool, number).await,
        "bulk" => bulk(url, &pool, number).await,
        _ => panic!("unknown work {what}"),
    }
}

async fn drain(url: &str, pool: &PgPool, count: u64) {
    store(pool, count).await;
    settle(url).await;
    RUNS.store(0, Relaxed);
    let worker = worker(pool).await;
    let start = Instant::now();
    let running = run(&worker);
    until(&RUNS, count).await;
    // Shutting down waits for what is still to be written; asking for it would take longer.
    end(&worker, running).await;
    metric("rate", count as f64 / start.elapsed().as_secs_f64());
    let open = "select count(*) from graphile_worker._private_jobs";
    assert_eq!(sqlx::query_scalar::<_, i64>(open).fetch_one(pool).await.unwrap(), 0);
}

async fn sustained(url: &str, pool: &PgPool, producers: u64) {
    // Analysed while there are rows: a job that has ended is gone, and an empty table teaches nothing.
    store(pool, 20_000).await;
    settle(url).await;
    let worker = worker(pool).await;
    let running = run(&worker);
    all_ended(pool).await;
    let enqueue = async |time| {
        RUNS.store(0, Relaxed);
        let pool = pool.clone();
        feed(producers, time, &RUNS, move |count| {
            let pool = pool.clone();
            async move { add(&pool, count).await }
        })
        .await
    };
    enqueue(Duration::from_secs(1)).await;
    all_ended(pool).await;
    let start = Instant::now();
    let count = enqueue(sustained_time()).await;
    until(&RUNS, count).await;
    all_ended(pool).await;
    metric("rate", count as f64 / start.elapsed().as_secs_f64());
    end(&worker, running).await;
}

async fn bulk(url: &str, pool: &PgPool, count: u64) {
    settle(url).await;
    let start = Instant::now();
    for start in (0..count).step_by(10_000) {
        add(pool, 10_000.min(count - start)).await;
    }
    metric("rate", count as f64 / start.elapsed().as_secs_f64());
}
