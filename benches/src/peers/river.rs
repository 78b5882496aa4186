//! riverqueue, with 1,000 workers and the shortest pauses that it allows; fed by `insert_many` of 1,000.
//! A job that has succeeded is kept, as with task-retry.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use riverqueue::migrate::PostgresMigrator;
use riverqueue::{
    BoxError, Client, InsertOpts, Job, JobArgs, QueueConfig, RunHandle, WorkContext, WorkOutcome,
    Workers,
};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::tool::*;

static RUNS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Debug, serde::Deserialize, JobArgs, serde::Serialize)]
#[river(kind = "noop")]
struct Noop {
    number: u64,
    text: String,
}

async fn noop(_: WorkContext, job: Job<Noop>) -> Result<WorkOutcome, BoxError> {
    let _ = (job.args.number, &job.args.text);
    RUNS.fetch_add(1, Relaxed);
    Ok(WorkOutcome::Complete)
}

fn client(pool: &PgPool) -> Client {
    let mut workers = Workers::new();
    workers.add_fn(noop).unwrap();
    let pause = Duration::from_millis(5);
    Client::builder(pool.clone())
        .workers(workers)
        .fetch_cooldown(pause)
        .queue("default", QueueConfig::new(1000).with_fetch_poll_interval(pause))
        .build()
        .unwrap()
}

async fn add(client: &Client, count: u64) {
    let jobs =
        (0..count).map(|number| (Noop { number, text: TEXT.to_owned() }, InsertOpts::default()));
    client.insert_many(jobs.collect::<Vec<_>>()).await.unwrap();
}

async fn store(client: &Client, count: u64) {
    for start in (0..count).step_by(BATCH as usize) {
        add(client, BATCH.min(count - start)).await;
    }
}

async fn all_ended(pool: &PgPool) {
    let open =
        "select count(*) from river_job where state in ('available', 'running', 'retryable')";
    while sqlx::query_scalar::<_, i64>(open).fetch_one(pool).await.unwrap() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn child(url: &str, what: &str) {
    let (what, number) = what.split_once(':').unwrap();
    let number: u64 = number.parse().unwrap();
    let pool =
        PgPoolOptions::new().min_connections(10).max_connections(20).connect(url).await.unwrap();
    PostgresMigrator::new(pool.clone()).migrate_up().await.unwrap();
    let client = client(&pool);
    store(&client, 2000).await;
    if what == "bulk" {
        settle(url).await;
        let start = Instant::now();
        for start in (0..number).step_by(5000) {
            add(&client, 5000.min(number - start)).await;
        }
        return metric("rate", number as f64 / start.elapsed().as_secs_f64());
    }
    let mut running: RunHandle = client.start().unwrap();
    all_ended(&pool).await;
    match what {
        "drain" => {
            running.stop().await.unwrap();
            store(&client, number).await;
            settle(url).await;
            RUNS.store(0, Relaxed);
            let start = Instant::now();
            running = client.start().unwrap();
            until(&RUNS, number).await;
            all_ended(&pool).await;
            metric("rate", number as f64 / start.elapsed().as_secs_f64());
        }
        "sustained" => {
            let enqueue = async |time| {
                RUNS.store(0, Relaxed);
                let client = client.clone();
                feed(number, time, &RUNS, move |count| {
                    let client = client.clone();
                    async move { add(&client, count).await }
                })
                .await
            };
            enqueue(Duration::from_secs(1)).await;
            all_ended(&pool).await;
            settle(url).await;
            let start = Instant::now();
            let count = enqueue(sustained_time()).await;
            until(&RUNS, count).await;
            all_ended(&pool).await;
            metric("rate", count as f64 / start.elapsed().as_secs_f64());
        }
        _ => panic!("unknown work {what}"),
    }
    running.stop().await.unwrap();
}
