//! Waiting for somebody: an attempt that has only asked, and is answered later by a call.
//!
//! The function returns `Outcome::Pending`. Its task then waits (status 5) until `complete` or `fail`
//! is called with its id, by any process of the project, for instance by the handler of a web hook.
//! When nobody calls before the deadline, that counts as a failed attempt.

use std::convert::Infallible;
use std::time::Duration;

use task_retry::{Filter, Outcome, Source, Status, TaskContext, TaskId, TaskRetry, retryable};

#[derive(Source, Clone, Copy, Debug)]
enum Sources {
    #[source(30, max_retry = 1, first_execute = "50ms")]
    Pay,
}

/// Asks the bank, which calls back with the number that it is given here.
#[retryable(source = Sources::Pay)]
async fn pay(
    cents: u32,
    deadline: Duration,
    #[context] ctx: &TaskContext,
) -> Result<Outcome<u32>, Infallible> {
    if cents == 0 {
        return Ok(Outcome::Done(0)); // nothing to ask for
    }
    println!("pay {cents}: asked the bank, reference {}, attempt {}", ctx.id(), ctx.attempt());
    Ok(Outcome::Pending { deadline })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let retry = TaskRetry::builder().project("waiting").database("sqlite::memory:").start().await?;
    let minute = Duration::from_secs(60);

    // The caller is told whether it is done or pending.
    assert_eq!(pay(0, minute).await?, Outcome::Done(0));
    assert_eq!(pay(100, minute).await?, Outcome::Pending { deadline: minute });
    let hundred = last(&retry).await?;
    assert_eq!(status(&retry, hundred).await?, Status::Waiting);

    // The bank calls back: done.
    retry.complete(hundred).await?;
    println!("100: {}", status(&retry, hundred).await?);
    assert_eq!(status(&retry, hundred).await?, Status::Succeeded);
    let again = retry.complete(hundred).await.unwrap_err();
    println!("100, once more: {again}");

    // Or it did not work: the retry policy decides what follows. Here it is one more attempt.
    let _ = pay(200, minute).await?;
    let two_hundred = last(&retry).await?;
    retry.fail(two_hundred, "no money").await?;
    becomes(&retry, two_hundred, Status::Waiting).await?;
    retry.fail(two_hundred, "still no money").await?;
    println!("200: {}", status(&retry, two_hundred).await?);
    assert_eq!(status(&retry, two_hundred).await?, Status::Failed);

    // Or nobody calls at all, twice.
    let _ = pay(300, Duration::from_millis(100)).await?;
    let three_hundred = last(&retry).await?;
    becomes(&retry, three_hundred, Status::Failed).await?;
    let task = retry.tasks().get(three_hundred).await?.ok_or("the task is gone")?;
    println!("300: {}, {}", task.status, task.last_error.unwrap_or_default());
    assert_eq!(task.send_count, 2);
    retry.shutdown().await?;
    Ok(())
}

/// The task that was stored last: ids are ordered by time.
async fn last(retry: &TaskRetry) -> Result<TaskId, Box<dyn std::error::Error>> {
    let tasks = retry.tasks().list(Filter::all()).await?;
    Ok(tasks.last().ok_or("no task was stored")?.id)
}

async fn status(retry: &TaskRetry, id: TaskId) -> Result<Status, Box<dyn std::error::Error>> {
    Ok(retry.tasks().get(id).await?.ok_or("the task is gone")?.status)
}

async fn becomes(
    retry: &TaskRetry,
    id: TaskId,
    wanted: Status,
) -> Result<(), Box<dyn std::error::Error>> {
    while status(retry, id).await? != wanted {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
