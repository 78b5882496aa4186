//! smoke
use std::sync::atomic::{AtomicU32, Ordering};
use task_retry::{Filter, TaskRetry, retryable};

struct Gateway(AtomicU32);

/// Sends.
#[retryable(source = 30, first_execute = "100ms")]
async fn send(order: u64, phone: &str, #[state] gateway: &Gateway) -> Result<String, String> {
    if gateway.0.fetch_add(1, Ordering::SeqCst) < 2 {
        return Err("busy".into());
    }
    Ok(format!("{order} to {phone}"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_env_filter("info").init();
    let url = std::env::args().nth(1).unwrap_or("sqlite::memory:".into());
    let retry = TaskRetry::builder()
        .project("p")
        .database(url)
        .delay_base_second(1)
        .delay_multiplier(1.0)
        .state(Gateway(AtomicU32::new(0)))
        .start()
        .await?;
    println!("{:?}", send(1, "a").await);
    println!("{:?}", send(2, "b").enqueue().await);
    println!("{:?}", send(3, "b").key("k").await);
    println!("{:?}", send(3, "b").key("k").await);
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    for t in retry.tasks().list(Filter::all()).await? {
        println!("{t:?}");
    }
    retry.shutdown().await?;
    Ok(())
}
