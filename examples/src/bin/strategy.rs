//! A strategy by hand: for tasks that are not calls of a function, such as rows that another
//! program writes, or contexts that are not JSON.
//!
//! It is told the row and says how the attempt went. It runs as functions do: stored first, retried
//! with growing delays, given up at the end.

use std::sync::Mutex;
use std::time::Duration;

use task_retry::{Filter, HandleResult, Policy, Status, Strategy, Task, TaskLog, TaskRetry};

const NOTICE: i32 = 40;

/// Sends what the context says to the address in the topic.
#[derive(Default)]
struct Notice {
    seen: Mutex<Vec<(String, u32)>>,
}

impl Strategy for Notice {
    fn source(&self) -> i32 {
        NOTICE
    }

    fn name(&self) -> &str {
        "notice"
    }

    async fn handle(&self, task: &TaskLog) -> HandleResult {
        self.seen.lock().unwrap().push((task.msg_key.clone(), task.attempt()));
        println!("{} attempt {}: {:?}", task.msg_key, task.attempt(), task.context);
        match task.context.as_deref() {
            None => HandleResult::Fail { reason: "nothing to say".into(), retry: false },
            Some(_) if task.topic.is_empty() && task.attempt() == 1 => {
                HandleResult::Fail { reason: "nobody answers".into(), retry: true }
            }
            Some(_) => HandleResult::Success,
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let soon =
        Policy::new().first_execute(Duration::from_millis(50)).timeout(Duration::from_secs(5));
    let retry = TaskRetry::builder()
        .project("strategy")
        .database("sqlite::memory:")
        .strategy_with(Notice::default(), soon) // `.strategy(…)` with the configuration's policy
        .start()
        .await?;

    // `key` is the starter's `msg_key`: for people and messages, and not unique.
    let good =
        Task::new(NOTICE).key("order-1").topic("ada@example.org").context("it is on its way");
    let good = retry.submit(good).await?.id();
    let slow = retry.submit(Task::new(NOTICE).key("order-2").context("hello?")).await?.id();
    let empty = retry.submit(Task::new(NOTICE).key("order-3")).await?.id();

    // A source that nobody registered is refused before anything is stored.
    let error = retry.submit(Task::new(41)).await.unwrap_err();
    println!("source 41: {error}");

    let open = Filter::all().status(Status::Executing).status(Status::Retrying);
    while retry.tasks().count(open.clone()).await? > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for (id, status, failures, error) in [
        (good, Status::Succeeded, 0, None),
        (slow, Status::Succeeded, 1, Some("nobody answers")),
        (empty, Status::Failed, 1, Some("nothing to say")),
    ] {
        let task = retry.tasks().get(id).await?.ok_or("the task is gone")?;
        println!("{}: {}, {:?}", task.msg_key, task.status, task.last_error);
        assert_eq!((task.status, task.send_count), (status, failures));
        assert_eq!(task.last_error.as_deref(), error);
    }
    assert_eq!(retry.tasks().count(Filter::all()).await?, 3);
    retry.shutdown().await?;
    Ok(())
}
