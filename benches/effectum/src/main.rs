//! effectum on SQLite, with at most 10,000 jobs at once and more fetched below 1,000; fed by `add_jobs`
//! of 1,000. A job that has succeeded is kept, as with task-retry. effectum sets `synchronous` to
//! `normal`, so that in a write-ahead log, which its user must set up (it means to itself, but names a
//! pragma that does not exist), no commit waits for the disk: one that it has answered outlives the
//! process, not a power failure. task-retry waits.

#[path = "../../src/feed.rs"]
mod feed;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use effectum::{Error, Job, JobRunner, Queue, RunningJob, Worker};
use feed::*;
use rusqlite::Connection;

static RUNS: AtomicU64 = AtomicU64::new(0);

#[derive(serde::Serialize, serde::Deserialize)]
struct Noop {
    number: u64,
    text: String,
}

async fn noop(job: RunningJob, (): ()) -> Result<(), Error> {
    let job: Noop = job.json_payload()?;
    let _ = (job.number, job.text);
    RUNS.fetch_add(1, Relaxed);
    Ok(())
}

async fn worker(queue: &Queue) -> Worker {
    Worker::builder(queue, ())
        .jobs([JobRunner::builder("noop", noop).build()])
        .max_concurrency(10_000)
        .min_concurrency(1000)
        .build()
        .await
        .unwrap()
}

async fn add(queue: &Queue, count: u64) {
    let jobs = (0..count).map(|number| {
        let noop = Noop { number, text: TEXT.to_owned() };
        Job::builder("noop").json_payload(&noop).unwrap().build()
    });
    queue.add_jobs(jobs.collect()).await.unwrap();
}

async fn store(queue: &Queue, count: u64) {
    for start in (0..count).step_by(BATCH as usize) {
        add(queue, BATCH.min(count - start)).await;
    }
}

/// A job that has ended is no longer active, in the transaction that stores its success.
async fn all_ended(queue: &Queue) {
    loop {
        let active = queue.num_active_jobs().await.unwrap();
        if active.pending + active.running == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn settle(db: &Connection) {
    db.execute_batch("analyze").unwrap();
    db.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(())).unwrap();
}

#[tokio::main]
async fn main() {
    let url = std::env::var("BENCH_URL").unwrap();
    let path = url.strip_prefix("sqlite://").unwrap().split('?').next().unwrap().to_owned();
    let what = std::env::args().nth(3).unwrap();
    // In a task of the runtime, as a program's own work would be.
    tokio::spawn(async move { child(Path::new(&path), &what).await }).await.unwrap();
}

async fn child(path: &Path, what: &str) {
    let (what, number) = what.split_once(':').unwrap();
    let number: u64 = number.parse().unwrap();
    let db = Connection::open(path).unwrap();
    db.query_row("pragma journal_mode = wal", [], |_| Ok(())).unwrap();
    let queue: &Queue = Box::leak(Box::new(Queue::new(path).await.unwrap()));
    store(queue, 2000).await;
    let mut running = worker(queue).await;
    all_ended(queue).await;
    match what {
        "drain" => {
            running.unregister(None).await.unwrap();
            store(queue, number).await;
            settle(&db);
            RUNS.store(0, Relaxed);
            let start = Instant::now();
            running = worker(queue).await;
            until(&RUNS, number).await;
            all_ended(queue).await;
            metric("rate", number as f64 / start.elapsed().as_secs_f64());
        }
        "sustained" => {
            let enqueue = async |time| {
                RUNS.store(0, Relaxed);
                feed(number, time, &RUNS, |count| add(queue, count)).await
            };
            // Analysed while there are active rows: an empty table teaches nothing.
            running.unregister(None).await.unwrap();
            store(queue, 5000).await;
            settle(&db);
            running = worker(queue).await;
            all_ended(queue).await;
            enqueue(Duration::from_secs(1)).await;
            all_ended(queue).await;
            let start = Instant::now();
            let count = enqueue(sustained_time()).await;
            until(&RUNS, count).await;
            all_ended(queue).await;
            metric("rate", count as f64 / start.elapsed().as_secs_f64());
        }
        _ => panic!("unknown work {what}"),
    }
    let failed = "select count(*) from jobs where status <> 'succeeded'";
    assert_eq!(db.query_row(failed, [], |row| row.get::<_, u64>(0)), Ok(0));
    running.unregister(None).await.unwrap();
    queue.close(Duration::from_secs(10)).await.unwrap();
}
