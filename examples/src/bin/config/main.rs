//! Configuration: a file, the environment and the builder, each of which beats the one before.

use std::time::Duration;

use task_retry::{CallError, Config, TaskRetry, retryable};

/// The file beside this one, wherever the program is started.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin/config/task-retry.yaml");

/// Uses the configuration's policy, since neither it nor its source has one.
#[retryable(source = 30)]
async fn never_works() -> Result<(), String> {
    Err("no".into())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::from_file(FILE)?;
    println!(
        "from the file: {} retries, {:?} places",
        config.task_max_retry, config.thread_pool_param
    );
    assert_eq!((config.task_max_retry, config.data_kept_day), (2, 14));
    assert_eq!(config.thread_pool_param.max_pool_size, 20);
    assert_eq!(config.thread_pool_param.queue_capacity, 1000, "not in the file: the default");

    // What the delays come to, by the policy's own arithmetic.
    let policy = config.policy();
    let delays: Vec<_> = (1..).map_while(|failures| policy.next_delay(failures, 0.5)).collect();
    println!("delays: {delays:?}");
    assert_eq!(delays, [1, 6].map(Duration::from_secs));

    // Mistakes are told all at once, each with its key, its value and what is allowed.
    let error = Config::from_yaml("task-retry: { lease-second: 2, task-limt: 5 }").unwrap_err();
    println!("\n{error}\n");
    assert!(error.to_string().contains("task-retry.lease-second is 2: it must be at least 5"));
    assert!(error.to_string().contains("did you mean `task-limit`?"));

    // `start` reads TASK_RETRY__… variables over the file: TASK_RETRY__TASK_MAX_RETRY=7, for
    // instance, or TASK_RETRY__THREAD_POOL_PARAM__MAX_POOL_SIZE=8. The builder's methods beat both.
    let retry = TaskRetry::builder()
        .project("config")
        .database("sqlite::memory:")
        .config_file(FILE)
        .first_execute_second(3)
        .start()
        .await?;
    let before = retry.now();
    match never_works().await {
        Err(CallError::Deferred { retry_at, .. }) => {
            println!("due again in {} s", (retry_at - before).as_seconds_f64().round());
            assert!(retry_at - before >= chrono::TimeDelta::seconds(3), "the builder's 3, not 1");
        }
        other => panic!("it never works, and yet: {other:?}"),
    }
    retry.shutdown().await?;
    Ok(())
}
