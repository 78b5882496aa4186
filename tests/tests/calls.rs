//! Calls: awaited, enqueued, keyed, in transactions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use sea_orm::TransactionTrait;
use task_retry::{CallError, Filter, Status, TaskRetry, retryable};
use task_retry_tests::{TestDb, contract, until};

/// How often it ran, and how often it fails first.
#[derive(Default)]
struct Flaky {
    failures: u32,
    runs: AtomicU32,
}

/// Fails a few times, then doubles.
#[retryable(source = 100)]
async fn double(number: u64, text: &str, #[state] flaky: &Flaky) -> Result<String, String> {
    if flaky.runs.fetch_add(1, Ordering::SeqCst) < flaky.failures {
        return Err(format!("{text} is not ready"));
    }
    Ok(format!("{text} {}", number * 2))
}

async fn start(db: &TestDb, failures: u32) -> TaskRetry {
    let flaky = Flaky { failures, ..Flaky::default() };
    db.builder().first_execute_second(0).only::<(double,)>().state(flaky).start().await.unwrap()
}

async fn an_awaited_call_gives_its_value(db: Arc<TestDb>) {
    let retry = start(&db, 0).await;
    assert_eq!(double(21, "it is").on(&retry).await.unwrap(), "it is 42");
    let [task] = &retry.tasks().list(Filter::all()).await.unwrap()[..] else { panic!("one row") };
    assert_eq!((task.status, task.send_count, task.fence), (Status::Succeeded, 0, 1));
    assert_eq!((task.next_send_time, task.locked_by.as_deref()), (None, None));
    assert_eq!(task.context.as_deref(), Some(r#"{"number":21,"text":"it is"}"#));
    retry.shutdown().await.unwrap();
}

async fn a_failed_call_is_retried_until_it_succeeds(db: Arc<TestDb>) {
    let retry = start(&db, 1).await;
    let error = double(1, "tea").on(&retry).await.unwrap_err();
    let CallError::Deferred { id, cause, .. } = error else { panic!("{error}") };
    assert_eq!(cause.error().unwrap(), "tea is not ready");
    until("it succeeds", async || {
        retry.tasks().get(id).await.unwrap().unwrap().status == Status::Succeeded
    })
    .await;
    let task = retry.tasks().get(id).await.unwrap().unwrap();
    assert_eq!((task.send_count, task.last_error.as_deref()), (1, Some("tea is not ready")));
    retry.shutdown().await.unwrap();
}

async fn a_key_is_taken_once(db: Arc<TestDb>) {
    let retry = start(&db, 0).await;
    let calls = (0..51).map(|_| double(1, "x").key("k").on(&retry).enqueue());
    let stored = futures_util::future::join_all(calls).await;
    let new = stored.iter().filter(|stored| stored.as_ref().unwrap().is_new()).count();
    assert_eq!(new, 1);
    assert!(double(1, "x").key("K").on(&retry).enqueue().await.unwrap().is_new());
    let error = double(1, "x").key("k").on(&retry).await.unwrap_err();
    assert!(matches!(error, CallError::Duplicate { .. }), "{error}");
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 2);
    retry.shutdown().await.unwrap();
}

async fn a_transaction_decides(db: Arc<TestDb>) {
    let retry = start(&db, 0).await;
    let connection = db.connect().await;
    let transaction = connection.begin().await.unwrap();
    double(1, "x").on(&retry).enqueue_in(&transaction).await.unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 0);
    let transaction = connection.begin().await.unwrap();
    let id = double(1, "x").key("a").on(&retry).enqueue_in(&transaction).await.unwrap().id();
    let twice = double(1, "x").key("a").on(&retry).enqueue_in(&transaction).await.unwrap();
    assert_eq!((twice.id(), twice.is_new()), (id, false));
    transaction.commit().await.unwrap();
    until("it runs", async || {
        retry.tasks().get(id).await.unwrap().unwrap().status == Status::Succeeded
    })
    .await;
    retry.shutdown().await.unwrap();
}

contract!(
    an_awaited_call_gives_its_value,
    a_failed_call_is_retried_until_it_succeeds,
    a_key_is_taken_once,
    a_transaction_decides,
);
