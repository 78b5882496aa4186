//! A process that is an executor of an xxl-job admin, for tests that kill it: its arguments are the
//! database, the admin's address and the log path.

use task_retry::xxl_job::XxlJobConfig;
use task_retry::{TaskRetry, retryable};

/// Never ends.
#[retryable(source = 1100)]
async fn hangs() -> Result<(), String> {
    std::future::pending().await
}

/// Ends at once.
#[retryable(source = 1101)]
async fn ends() -> Result<(), String> {
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    tracing_subscriber::fmt()
        .with_env_filter("task_retry=info,warn")
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = std::env::args().collect();
    let [_, database, admin, log_path] = &arguments[..] else { panic!("three arguments") };
    let mut xxl_job = XxlJobConfig::new(admin);
    xxl_job.port = 0;
    xxl_job.timeout_second = 30;
    xxl_job.log_path = Some(log_path.into());
    xxl_job.access_token = Some("default_token".to_owned());
    let retry = TaskRetry::builder()
        .project("test")
        .database(database)
        .lease_second(5)
        .shutdown_grace_second(1)
        .xxl_job(xxl_job)
        .start()
        .await
        .expect("the runtime starts");
    // Until the test lets go of it.
    let closed = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    let _ = closed.await;
    retry.shutdown().await.expect("the runtime ends");
}
