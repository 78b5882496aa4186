//! What every peer needs: numbers out, and rows in. `effectum/` has it too.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The text that every task carries.
pub const TEXT: &str = "hello world";

/// Tells the run one number.
pub fn metric(name: &str, value: f64) {
    println!("@ {name} {value}");
    let _ = std::io::stdout().flush();
}

/// Shortens what takes long, for `--quick`.
pub fn quick() -> bool {
    std::env::var_os("BENCH_QUICK").is_some()
}

pub fn seconds(full: u64, quick_: u64) -> Duration {
    Duration::from_secs(if quick() { quick_ } else { full })
}

/// How long tasks are enqueued and run at the same time: for 20 s on PostgreSQL.
pub fn sustained_time() -> Duration {
    let postgres = std::env::var("BENCH_URL").is_ok_and(|url| url.starts_with("postgres"));
    seconds(if postgres { 20 } else { 5 }, 5)
}

/// Waits until a counter has reached a number.
pub async fn until(counter: &AtomicU64, number: u64) {
    while counter.load(Relaxed) < number {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// How many rows a peer is fed at once.
pub const BATCH: u64 = 1000;

/// Feeds batches for a time, by producers side by side that never get more than ten batches ahead of
/// the work. Returns the number of rows.
pub async fn feed<F, R>(producers: u64, time: Duration, runs: &'static AtomicU64, batch: F) -> u64
where
    F: Fn(u64) -> R + Clone + Send + 'static,
    R: Future<Output = ()> + Send,
{
    let until = Instant::now() + time;
    let sent = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..producers {
        let (batch, sent) = (batch.clone(), sent.clone());
        tasks.spawn(async move {
            while Instant::now() < until {
                if sent.load(Relaxed) > runs.load(Relaxed) + 10 * BATCH {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                sent.fetch_add(BATCH, Relaxed);
                batch(BATCH).await;
            }
        });
    }
    tasks.join_all().await;
    sent.load(Relaxed)
}
