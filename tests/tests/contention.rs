//! Transactions of others that hold keys.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sea_orm::TransactionTrait;
use task_retry::{ErrorKind, Filter, Status, retryable};
use task_retry_tests::{Kind, TestDb, becomes, contract, until};

/// Does nothing.
#[retryable(source = 100)]
async fn nothing(_number: u32) -> Result<(), String> {
    Ok(())
}

/// SQLite has one writer, so there everything waits for it; and an engine that cannot skip locked rows
/// cannot ask for one without waiting, either.
fn waits_for_all(db: &TestDb) -> bool {
    matches!(db.kind, Kind::Sqlite | Kind::Optimistic)
}

async fn an_open_transaction_delays_only_its_own_keys(db: Arc<TestDb>) {
    if waits_for_all(&db) {
        return;
    }
    let retry = db.builder().start().await.unwrap();
    let connection = db.connect().await;
    let transaction = connection.begin().await.unwrap();
    for key in ["k", "l"] {
        nothing(0).key(key).on(&retry).enqueue_in(&transaction).await.unwrap();
    }
    let start = Instant::now();
    let blocked: Vec<_> = ["k", "l"]
        .map(|key| tokio::spawn(nothing(1).key(key).on(&retry).enqueue()))
        .into_iter()
        .collect();
    let others = (0..200).map(|number| {
        let call = nothing(number).on(&retry);
        match number % 3 {
            0 => call.key(format!("other {number}")).enqueue(),
            _ => call.enqueue(),
        }
    });
    for stored in futures_util::future::join_all(others).await {
        assert!(stored.unwrap().is_new());
    }
    // No more do their ends, many of which are written at once.
    until("the others succeed", async || {
        retry.tasks().count(Filter::all().status(Status::Succeeded)).await.unwrap() == 200
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(blocked.iter().all(|blocked| !blocked.is_finished()), "they wait for the transaction");
    transaction.commit().await.unwrap();
    for blocked in blocked {
        let stored = blocked.await.unwrap().unwrap();
        assert!(!stored.is_new(), "the transaction's own task has the key");
        becomes(&retry, stored.id(), Status::Succeeded).await;
    }
    retry.shutdown().await.unwrap();
}

async fn a_key_that_stays_held_is_refused(db: Arc<TestDb>) {
    if waits_for_all(&db) {
        return;
    }
    let retry = db.builder().start().await.unwrap();
    let connection = db.connect().await;
    let transaction = connection.begin().await.unwrap();
    nothing(0).key("k").on(&retry).enqueue_in(&transaction).await.unwrap();
    let error = nothing(1).key("k").on(&retry).enqueue().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store, "{error}");
    transaction.rollback().await.unwrap();
    assert!(nothing(1).key("k").on(&retry).enqueue().await.is_ok());
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 1);
    retry.shutdown().await.unwrap();
}

contract!(an_open_transaction_delays_only_its_own_keys, a_key_that_stays_held_is_refused);
