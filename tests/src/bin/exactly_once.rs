//! A process that commits an effect and the success of its task in one transaction, and is killed right
//! before or right after that commit: `exactly_once URL before|after|drain`.

use nix::sys::signal::{Signal, raise};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, TransactionTrait};
use task_retry::{Filter, Status, TaskContext, TaskRetry, retryable};
use task_retry_tests::until;

/// Where the process is killed.
struct Die(String);

impl Die {
    fn at(&self, place: &str) {
        if self.0 == place {
            raise(Signal::SIGKILL).expect("a process can kill itself");
        }
    }
}

#[retryable(source = 1100, first_execute = "0s")]
async fn effect(
    #[context] context: &TaskContext,
    #[state] database: &DatabaseConnection,
    #[state] die: &Die,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let transaction = database.begin().await?;
    let insert = format!("insert into effects values ({})", context.id());
    transaction.execute_unprepared(&insert).await?;
    context.complete_in(&transaction).await?;
    die.at("before");
    transaction.commit().await?;
    die.at("after");
    Ok(())
}

#[tokio::main]
async fn main() {
    let [url, place] = &std::env::args().skip(1).collect::<Vec<_>>()[..] else {
        panic!("two arguments: the database's URL and `before`, `after` or `drain`");
    };
    let database = Database::connect(url).await.expect("the database answers");
    let retry = TaskRetry::builder()
        .project("test")
        .database(url)
        .job(place == "drain")
        .lease_second(5)
        .poll_interval_ms(50)
        .state(database)
        .state(Die(place.clone()))
        .start()
        .await
        .expect("the runtime starts");
    if place != "drain" {
        let result = effect().await;
        panic!("it was to be killed in its attempt: {result:?}");
    }
    let tasks = retry.tasks();
    until("everything has ended", async || {
        let ended = tasks.count(Filter::all().status(Status::Succeeded)).await;
        tasks.count(Filter::all()).await.expect("tasks can be counted")
            == ended.expect("tasks can be counted")
    })
    .await;
    retry.shutdown().await.expect("the runtime ends");
}
