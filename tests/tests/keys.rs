//! Unique keys: while its row exists, a key names one task of a project and source.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, TransactionTrait};
use serde::{Deserialize, Serialize};
use task_retry::{CallError, ErrorKind, Filter, Status, Task, TaskId, TaskRetry, retryable};
use task_retry_tests::{Gate, Kind, TestDb, becomes, contract, only_task, task};

#[retryable(source = 100)]
async fn greet(name: &str) -> Result<String, String> {
    match name {
        "nobody" => Err("nobody is there".into()),
        name => Ok(format!("hello {name}")),
    }
}

#[retryable(source = 101)]
async fn other(_name: &str) -> Result<(), String> {
    Ok(())
}

#[retryable(source = 102)]
async fn waits(#[state] gate: &Gate) -> Result<(), String> {
    gate.pass().await;
    Ok(())
}

/// Panics when it is dropped, after it has come back from JSON.
#[derive(Serialize, Deserialize)]
struct Bomb {
    #[serde(skip, default = "armed")]
    armed: bool,
}

fn armed() -> bool {
    true
}

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.armed, "an argument was dropped");
    }
}

#[retryable(source = 103)]
async fn disarms(mut bomb: Bomb) -> Result<(), String> {
    bomb.armed = false;
    Ok(())
}

async fn start(db: &TestDb) -> (TaskRetry, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    (db.builder().shared_state(gate.clone()).start().await.unwrap(), gate)
}

fn duplicate<T, E>(result: Result<T, CallError<E>>) -> (TaskId, Status) {
    match result {
        Err(CallError::Duplicate { id, status }) => (id, status),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it ran"),
    }
}

async fn a_key_is_taken_once(db: Arc<TestDb>) {
    let (retry, _) = start(&db).await;
    let second = db.builder().state(Gate::default()).start().await.unwrap();
    let calls = (0..51).map(|n| {
        let retry = if n % 2 == 0 { &retry } else { &second };
        greet("you").key("k").on(retry).enqueue()
    });
    let stored: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(stored.iter().filter(|stored| stored.is_new()).count(), 1);
    let ids: HashSet<_> = stored.iter().map(|stored| stored.id()).collect();
    assert_eq!(ids, HashSet::from([only_task(&retry).await.id]));
    second.shutdown().await.unwrap();
    retry.shutdown().await.unwrap();
}

async fn of_many_awaited_calls_one_runs(db: Arc<TestDb>) {
    let (retry, gate) = start(&db).await;
    let calls = (0..51).map(|_| waits().key("k").on(&retry).into_future());
    let calls = tokio::spawn(join_all(calls));
    gate.wait_for(1).await;
    gate.open(51);
    let results = calls.await.unwrap();
    let row = only_task(&retry).await;
    let (ran, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!((ran.len(), gate.came()), (1, 1));
    for result in refused {
        let (id, status) = duplicate(result);
        assert_eq!(id, row.id);
        assert!([Status::Executing, Status::Succeeded].contains(&status));
    }
    retry.shutdown().await.unwrap();
}

async fn good_keys_beside_taken_ones_are_stored(db: Arc<TestDb>) {
    let (retry, _) = start(&db).await;
    let first = greet("you").key("key 7").on(&retry).enqueue().await.unwrap();
    let calls = (0..100).map(|n| greet("you").key(format!("key {}", n % 50)).on(&retry).enqueue());
    let stored: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(stored.iter().filter(|stored| stored.is_new()).count(), 49);
    for (n, stored) in stored.iter().enumerate() {
        let key = task(&retry, stored.id()).await.unique_key;
        assert_eq!(key, Some(format!("key {}", n % 50)));
        assert_eq!(stored.id() == first.id(), n % 50 == 7);
    }
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 50);
    retry.shutdown().await.unwrap();
}

/// The arguments of a duplicate are dropped by the lane that stores the others of its batch.
async fn an_argument_that_panics_when_it_is_dropped_keeps_no_other_task(db: Arc<TestDb>) {
    let (retry, _) = start(&db).await;
    let call = |key: u32| disarms(Bomb { armed: false }).key(key.to_string()).on(&retry).enqueue();
    let first = call(0).await.unwrap();
    becomes(&retry, first.id(), Status::Succeeded).await;
    let stored = join_all((1..=10).chain([0]).chain(11..=20).map(call)).await;
    for (index, stored) in stored.into_iter().enumerate() {
        let stored = stored.unwrap();
        assert_eq!(stored.is_new(), index != 10);
        becomes(&retry, stored.id(), Status::Succeeded).await;
    }
    retry.shutdown().await.unwrap();
}

async fn keys_that_look_alike_are_different(db: Arc<TestDb>) {
    let (retry, _) = start(&db).await;
    // As the loosest collation of all would have it, these were few.
    let long = "x".repeat(191);
    let keys = [
        "key",
        "KEY",
        "Key",
        "kéy",
        "ke\u{301}y",
        " key",
        "ｋｅｙ",
        "key\u{200d}",
        "ß",
        "ss",
        "😀",
        "😁",
        "1",
        "01",
        "1.0",
        "'",
        "''",
        "\\",
        "%",
        "_",
        &long,
        &long[1..],
    ];
    for key in keys {
        let stored = greet("you").key(key).on(&retry).enqueue().await.unwrap();
        assert!(stored.is_new(), "{key}");
        assert_eq!(task(&retry, stored.id()).await.unique_key.as_deref(), Some(key));
    }
    for key in keys {
        let stored = greet("you").key(key).on(&retry).enqueue().await.unwrap();
        assert!(!stored.is_new(), "{key}");
        let filter = Filter::all().unique_key(key);
        let [found] = &retry.tasks().list(filter).await.unwrap()[..] else { panic!("one: {key}") };
        assert_eq!(found.id, stored.id());
    }
    // Another source and another project have keys of their own, and no key is none.
    assert!(other("you").key("key").on(&retry).enqueue().await.unwrap().is_new());
    for _ in 0..2 {
        assert!(greet("you").on(&retry).enqueue().await.unwrap().is_new());
    }
    let elsewhere = db.builder().project("else").state(Gate::default()).start().await.unwrap();
    assert!(greet("you").key("key").on(&elsewhere).enqueue().await.unwrap().is_new());
    elsewhere.shutdown().await.unwrap();
    retry.shutdown().await.unwrap();
}

async fn bad_keys_are_refused(db: Arc<TestDb>) {
    let (retry, _) = start(&db).await;
    let connection = db.connect().await;
    let long = "中".repeat(192);
    for key in ["", " ", "key ", "key\n", "key\u{3000}", "a\0b", &long] {
        let Err(CallError::Rejected(error)) = greet("you").key(key).on(&retry).await else {
            panic!("{key:?} was taken")
        };
        assert_eq!(error.kind(), ErrorKind::Context, "{key:?}");
        let error = greet("you").key(key).on(&retry).enqueue().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Context, "{key:?}");
        let error = greet("you").key(key).on(&retry).enqueue_in(&connection).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Context, "{key:?}");
        let task = Task::new(100).unique_key(key).context(r#"{"name":"you"}"#);
        assert_eq!(retry.submit(task).await.unwrap_err().kind(), ErrorKind::Context, "{key:?}");
    }
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 0);
    // 191 characters of four bytes each are a good key.
    let widest = "😀".repeat(191);
    assert!(greet("you").key(&widest).on(&retry).enqueue().await.unwrap().is_new());
    assert_eq!(only_task(&retry).await.unique_key, Some(widest));
    retry.shutdown().await.unwrap();
}

async fn a_key_is_kept_by_success_and_failure_and_freed_by_cancelling(db: Arc<TestDb>) {
    let (retry, gate) = start(&db).await;
    greet("you").key("done").on(&retry).await.unwrap();
    let (id, status) = duplicate(greet("you").key("done").on(&retry).await);
    assert_eq!(
        (task(&retry, id).await.unique_key.as_deref(), status),
        (Some("done"), Status::Succeeded)
    );

    let call = greet("nobody").max_retry(0).key("failed").on(&retry);
    let failed = call.await.unwrap_err().id().unwrap();
    let call = greet("nobody").key("failed").on(&retry);
    assert_eq!(duplicate(call.await), (failed, Status::Failed));

    let deferred = greet("nobody").key("retrying").on(&retry).await.unwrap_err().id().unwrap();
    let call = greet("nobody").key("retrying").on(&retry);
    assert_eq!(duplicate(call.await), (deferred, Status::Retrying));

    let running = tokio::spawn(waits().key("running").on(&retry).into_future());
    gate.wait_for(1).await;
    let (held, status) = duplicate(waits().key("running").on(&retry).await);
    assert_eq!(status, Status::Executing);
    retry.tasks().cancel(Filter::ids([held])).await.unwrap();
    gate.open(2);
    waits().key("running").on(&retry).await.unwrap();
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Superseded { id } if id == held), "{error}");

    // So does removing the row.
    retry.tasks().purge(Filter::ids([failed])).await.unwrap();
    assert_eq!(greet("you").key("failed").on(&retry).await.unwrap(), "hello you");
    retry.shutdown().await.unwrap();
}

async fn a_duplicate_does_not_abort_the_callers_transaction(db: Arc<TestDb>) {
    let (retry, _) = start(&db).await;
    let connection = db.connect().await;
    let taken = greet("you").key("a").on(&retry).enqueue().await.unwrap().id();
    becomes(&retry, taken, Status::Succeeded).await;
    let transaction = connection.begin().await.unwrap();
    let first = greet("me").key("b").on(&retry).enqueue_in(&transaction).await.unwrap();
    let twice = greet("me").key("a").on(&retry).enqueue_in(&transaction).await.unwrap();
    assert_eq!((twice.id(), twice.is_new()), (taken, false));
    let again = greet("me").key("b").on(&retry).enqueue_in(&transaction).await.unwrap();
    assert_eq!((again.id(), again.is_new()), (first.id(), false));
    let last = greet("me").key("c").on(&retry).enqueue_in(&transaction).await.unwrap();
    transaction.commit().await.unwrap();
    retry.kick();
    for id in [first.id(), last.id()] {
        becomes(&retry, id, Status::Succeeded).await;
    }
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 3);
    retry.shutdown().await.unwrap();
}

async fn a_key_that_was_taken_after_the_snapshot_is_a_duplicate(db: Arc<TestDb>) {
    // SQLite refuses to write from an old snapshot, whatever is written.
    if db.kind == Kind::Sqlite {
        return;
    }
    let (retry, _) = start(&db).await;
    let connection = db.connect().await;
    let transaction = connection.begin().await.unwrap();
    let count = "select count(*) from t_sys_mq_resend_log";
    transaction.execute_unprepared(count).await.unwrap();
    let taken = greet("you").key("a").on(&retry).enqueue().await.unwrap().id();
    becomes(&retry, taken, Status::Succeeded).await;
    let twice = greet("you").key("a").on(&retry).enqueue_in(&transaction).await.unwrap();
    assert_eq!((twice.id(), twice.is_new()), (taken, false));
    transaction.commit().await.unwrap();
    retry.shutdown().await.unwrap();
}

contract!(
    a_key_is_taken_once,
    of_many_awaited_calls_one_runs,
    good_keys_beside_taken_ones_are_stored,
    an_argument_that_panics_when_it_is_dropped_keeps_no_other_task,
    keys_that_look_alike_are_different,
    bad_keys_are_refused,
    a_key_is_kept_by_success_and_failure_and_freed_by_cancelling,
    a_duplicate_does_not_abort_the_callers_transaction,
    a_key_that_was_taken_after_the_snapshot_is_a_duplicate,
);
