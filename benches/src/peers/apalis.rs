//! apalis-postgres, with four workers that fetch 1,000 tasks at once and look for them every 5 ms; fed
//! by `push_bulk` of 1,000. Without `lock_tasks`, which costs a second update of some rows and only
//! tells tasks that run from those that are fetched: nobody waits for it, recovery treats both alike,
//! and a success is stored only while the row is still that worker's, either way. A task that has
//! succeeded is kept, as with task-retry.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::apalis::prelude::*;
use apalis_postgres::{Config, PostgresStorage};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};

use crate::tool::*;

static RUNS: AtomicU64 = AtomicU64::new(0);

#[derive(serde::Serialize, serde::Deserialize)]
struct Noop {
    number: u64,
    text: String,
}

async fn noop(job: Noop) -> Result<(), BoxDynError> {
    let _ = (job.number, job.text);
    RUNS.fetch_add(1, Relaxed);
    Ok(())
}

fn storage(pool: &PgPool) -> PostgresStorage<Noop> {
    let config =
        Config::default().queue("noop").batch_size(1000).lock_tasks(false).persist_results(true);
    PostgresStorage::new(pool).with_config(config)
}

/// apalis's own interval would stand still until the next heartbeat, 30 s later, whenever a fetch that
/// finds nothing takes longer than the interval: its next delay is then never polled.
struct Every(Interval);

impl PollStrategy for Every {
    fn poll_drive(&mut self, cx: &mut Context<'_>, _: &PollSnapshot) -> Poll<Option<()>> {
        let due = self.0.poll_tick(cx).is_ready();
        while self.0.poll_tick(cx).is_ready() {}
        if due { Poll::Ready(Some(())) } else { Poll::Pending }
    }
}

struct Running(Vec<(WorkerContext, JoinHandle<()>)>);

impl Running {
    fn start(pool: &PgPool) -> Self {
        // No name may come twice.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let workers = (0..4).map(|_| {
            let context = WorkerContext::new(&format!("worker-{}", NUMBER.fetch_add(1, Relaxed)));
            let mut poll = tokio::time::interval(Duration::from_millis(5));
            poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let worker = WorkerBuilder::new(&context)
                .backend(PollWith::new(storage(pool), Every(poll)))
                .build(noop);
            (context, tokio::spawn(async move { worker.run().await.unwrap() }))
        });
        Self(workers.collect())
    }

    async fn end(self) {
        for (context, running) in self.0 {
            context.stop().unwrap();
            running.await.unwrap();
        }
    }
}

async fn add(pool: &PgPool, count: u64) {
    let jobs = (0..count).map(|number| Noop { number, text: TEXT.to_owned() }).collect();
    storage(pool).push_bulk(jobs).await.unwrap();
}

async fn store(pool: &PgPool, count: u64) {
    for start in (0..count).step_by(BATCH as usize) {
        add(pool, BATCH.min(count - start)).await;
    }
}

async fn all_ended(pool: &PgPool) {
    let open = "select count(*) from apalis.jobs where status <> 'Done'";
    while sqlx::query_scalar::<_, i64>(open).fetch_one(pool).await.unwrap() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn child(url: &str, what: &str) {
    let (what, number) = what.split_once(':').unwrap();
    let number: u64 = number.parse().unwrap();
    let pool =
        PgPoolOptions::new().min_connections(10).max_connections(20).connect(url).await.unwrap();
    PostgresStorage::setup(&pool).await.unwrap();
    store(&pool, 2000).await;
    if what == "bulk" {
        settle(url).await;
        let start = Instant::now();
        for start in (0..number).step_by(10_000) {
            add(&pool, 10_000.min(number - start)).await;
        }
        return metric("rate", number as f64 / start.elapsed().as_secs_f64());
    }
    let mut running = Running::start(&pool);
    all_ended(&pool).await;
    match what {
        "drain" => {
            running.end().await;
            store(&pool, number).await;
            settle(url).await;
            RUNS.store(0, Relaxed);
            let start = Instant::now();
            running = Running::start(&pool);
            until(&RUNS, number).await;
            all_ended(&pool).await;
            metric("rate", number as f64 / start.elapsed().as_secs_f64());
        }
        "sustained" => {
            let enqueue = async |time| {
                RUNS.store(0, Relaxed);
                let pool = pool.clone();
                feed(number, time, &RUNS, move |count| {
                    let pool = pool.clone();
                    async move { add(&pool, count).await }
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
    running.end().await;
}
