//! Transactions: a task that exists only if the order does, and an effect that is there only if the
//! task counts as done. Both need the table in the database that the program's own data is in.

use std::path::PathBuf;
use std::time::Duration;

use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbErr, TransactionTrait};
use task_retry::{Filter, Status, TaskContext, TaskId, TaskRetry, retryable};

/// Adds points to an account, exactly once: the points and the task's success are committed together
/// by `complete_in`. If this process dies before the commit, neither is there, and the task runs
/// again; if it dies after, both are.
#[retryable(source = 30, first_execute = "50ms")]
async fn add_points(
    points: u32,
    #[state] db: &DatabaseConnection,
    #[context] ctx: &TaskContext,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let transaction = db.begin().await?;
    transaction
        .execute_unprepared(&format!("update account set points = points + {points}"))
        .await?;
    ctx.complete_in(&transaction).await?;
    if ctx.attempt() == 1 {
        println!("add_points: rolls back, and is retried");
        transaction.rollback().await?;
    } else {
        transaction.commit().await?;
        println!("add_points: committed, with its own success");
    }
    Ok(()) // after a rollback, this `Ok` does not count
}

/// An order and what follows from it. `enqueue_in` stores the task by the caller's transaction; it
/// tells the task's id, and whether it is new.
async fn place_order(
    db: &DatabaseConnection,
    number: u32,
    key: &str,
) -> Result<(TaskId, bool), Error> {
    let transaction = db.begin().await?;
    transaction.execute_unprepared(&format!("insert into orders values ({number})")).await?;
    let task = add_points(10).key(key).enqueue_in(&transaction).await?;
    if number == 1 {
        transaction.rollback().await?; // the customer left
    } else {
        transaction.commit().await?;
    }
    Ok((task.id(), task.is_new()))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let file = Temporary::new();
    let db = Database::connect(format!("sqlite://{}?mode=rwc", file.0.display())).await?;
    db.execute_unprepared("create table orders (number integer)").await?;
    db.execute_unprepared("create table account (points integer)").await?;
    db.execute_unprepared("insert into account values (0)").await?;

    // A connection of the program's own, so that all of this is one database.
    let retry = TaskRetry::builder()
        .project("transaction")
        .connection(db.clone())
        .state(db.clone())
        .start()
        .await?;

    let (task, _) = place_order(&db, 1, "order-1").await?;
    assert!(retry.tasks().get(task).await?.is_none());
    println!("order 1: rolled back, and its task with it");

    let (task, is_new) = place_order(&db, 2, "order-2").await?;
    assert!(is_new);
    retry.kick(); // it is committed: look at once, instead of at the next poll
    println!("order 2: committed, and so is task {task}");

    // A key that is taken stores nothing, and does not abort the transaction either.
    let again = place_order(&db, 3, "order-2").await?;
    assert_eq!(again, (task, false));
    println!("order 3: committed; the key was taken by task {task}");

    while retry.tasks().count(Filter::all().status(Status::Succeeded)).await? < 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(number(&db, "select points from account").await?, 10);
    assert_eq!(number(&db, "select count(*) from orders").await?, 2);
    let done = retry.tasks().get(task).await?.ok_or("the task is gone")?;
    println!("points: 10; task {}: {}, {:?}", done.id, done.status, done.last_error);
    assert_eq!((done.status, done.send_count), (Status::Succeeded, 1));
    retry.shutdown().await?;
    db.close().await?;
    Ok(())
}

async fn number(db: &DatabaseConnection, sql: &str) -> Result<i64, DbErr> {
    let statement = sea_orm::Statement::from_string(db.get_database_backend(), sql);
    let row = db.query_one_raw(statement).await?.expect("one row");
    row.try_get_by_index(0)
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A file that is removed in the end.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Self {
        let name = format!("task-retry-transaction-{}.db", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", self.0.display()));
        }
    }
}
