//! Tasks that are stored, and completed, by transactions of the program's own.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sea_orm::{
    ConnectionTrait, Database, DatabaseConnection, QueryResult, Statement, TransactionTrait,
};
use task_retry::{
    Builder, CallError, CauseKind, Error, ErrorKind, Filter, Status, TaskContext, retryable,
};
use task_retry_tests::{Gate, Kind, TestDb, becomes, contract, only_task, task, until};

#[retryable(source = 100)]
async fn count(#[state] runs: &AtomicU32) -> Result<u32, String> {
    Ok(runs.fetch_add(1, Ordering::SeqCst))
}

/// What went wrong in a body.
#[derive(Debug)]
enum Trouble {
    Retry(Error),
    Database(sea_orm::DbErr),
    Other,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Retry(error) => error.fmt(f),
            Self::Database(error) => error.fmt(f),
            Self::Other => f.write_str("out of stock"),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Retry(error)
    }
}

impl From<sea_orm::DbErr> for Trouble {
    fn from(error: sea_orm::DbErr) -> Self {
        Self::Database(error)
    }
}

/// How a body behaves, and what it was told.
#[derive(Default)]
struct Shop {
    gate: Gate,
    refused: Mutex<Vec<ErrorKind>>,
    runs: AtomicU32,
}

/// Books an order, in one transaction with its own success; `how` only counts on the first attempt.
#[retryable(source = 101)]
async fn book(
    order: u32,
    how: &str,
    #[state] db: &DatabaseConnection,
    #[state] shop: &Shop,
    #[context] ctx: &TaskContext,
) -> Result<u32, Trouble> {
    shop.runs.fetch_add(1, Ordering::SeqCst);
    if how.starts_with("wait") {
        shop.gate.pass().await;
    }
    let how = if ctx.attempt() == 1 { how } else { "commit" };
    let transaction = db.begin().await?;
    transaction.execute_unprepared(&format!("insert into orders (id) values ({order})")).await?;
    let completed = ctx.complete_in(&transaction).await;
    if let Err(error) = &completed {
        shop.refused.lock().unwrap().push(error.kind());
    }
    match how {
        "rollback" | "wait and ignore" => transaction.rollback().await?,
        "fail" => return Err(Trouble::Other),
        "fail late" => {
            completed?;
            transaction.commit().await?;
            return Err(Trouble::Other);
        }
        "panic" => panic!("out of order"),
        _ => {
            completed?;
            transaction.commit().await?;
        }
    }
    Ok(order)
}

async fn builder(db: &TestDb) -> (Builder, DatabaseConnection, Arc<Shop>) {
    let connection = db.connect().await;
    connection.execute_unprepared("create table orders (id int primary key)").await.unwrap();
    let shop = Arc::new(Shop::default());
    let builder = db.builder().state(AtomicU32::new(0)).state(connection.clone());
    (builder.shared_state(shop.clone()).first_execute_second(0), connection, shop)
}

async fn orders(connection: &DatabaseConnection) -> Vec<i32> {
    let backend = connection.get_database_backend();
    let statement = Statement::from_string(backend, "select id from orders order by id");
    let rows: Vec<QueryResult> = connection.query_all_raw(statement).await.unwrap();
    rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
}

async fn a_rollback_leaves_nothing_and_a_commit_runs(db: Arc<TestDb>) {
    let (builder, connection, _) = builder(&db).await;
    let retry = builder.start().await.unwrap();
    let transaction = connection.begin().await.unwrap();
    let gone = count().on(&retry).enqueue_in(&transaction).await.unwrap();
    assert!(gone.is_new());
    transaction.rollback().await.unwrap();
    let transaction = connection.begin().await.unwrap();
    let stored = count().key("a").topic("t").on(&retry).enqueue_in(&transaction).await.unwrap();
    transaction.commit().await.unwrap();
    // No kick: a poll finds it.
    let row = becomes(&retry, stored.id(), Status::Succeeded).await;
    assert_eq!((row.fence, row.unique_key.as_deref(), row.topic.as_str()), (1, Some("a"), "t"));
    assert_eq!(only_task(&retry).await.id, row.id);
    retry.shutdown().await.unwrap();
}

async fn what_is_not_committed_is_seen_by_nobody(db: Arc<TestDb>) {
    let (builder, connection, _) = builder(&db).await;
    let retry = builder.job(false).start().await.unwrap();
    let transaction = connection.begin().await.unwrap();
    let stored = count().on(&retry).enqueue_in(&transaction).await.unwrap();
    if db.kind != Kind::Sqlite {
        // There, a claim would wait for the one writer.
        assert_eq!(retry.run_due(None).await.unwrap().claimed, 0);
    }
    assert_eq!(retry.tasks().get(stored.id()).await.unwrap(), None);
    transaction.commit().await.unwrap();
    let row = task(&retry, stored.id()).await;
    assert_eq!((row.status, row.fence, row.locked_by), (Status::Executing, 0, None));
    assert_eq!(retry.run_due(None).await.unwrap().succeeded, 1);
    retry.shutdown().await.unwrap();
}

async fn a_kick_makes_workers_look_at_once(db: Arc<TestDb>) {
    let (builder, ..) = builder(&db).await;
    let retry = builder.poll_interval_ms(3_600_000).start().await.unwrap();
    count().on(&retry).await.unwrap();
    for id in 1..=5 {
        db.execute(&format!(
            "insert into t_sys_mq_resend_log (id, project_name, source, context, next_send_time) \
             values ({id}, 'test', 100, '{{}}', '2026-03-01 11:00:00')"
        ))
        .await;
        retry.kick();
        becomes(&retry, id.into(), Status::Succeeded).await;
    }
    retry.shutdown().await.unwrap();
}

async fn a_late_commit_is_found_without_a_kick(db: Arc<TestDb>) {
    let (builder, connection, _) = builder(&db).await;
    let retry = builder.start().await.unwrap();
    // What is due now moves on where the workers look.
    let id = count().on(&retry).enqueue_in(&connection).await.unwrap().id();
    becomes(&retry, id, Status::Succeeded).await;
    db.execute(
        "insert into t_sys_mq_resend_log (id, project_name, source, context, next_send_time) \
         values (1, 'test', 100, '{}', '2026-03-01 11:00:00')",
    )
    .await;
    becomes(&retry, 1.into(), Status::Succeeded).await;
    retry.shutdown().await.unwrap();
}

async fn other_processes_hear_of_what_was_stored(db: Arc<TestDb>) {
    // Elsewhere they find it at their next poll.
    if !db.notifies() {
        return;
    }
    let (builder, ..) = builder(&db).await;
    let retry = builder.poll_interval_ms(3_600_000).start().await.unwrap();
    let teller = db.builder().state(AtomicU32::new(0)).state(db.connect().await);
    let teller = teller.state(Shop::default()).job(false).start().await.unwrap();
    count().on(&retry).await.unwrap();
    // What is told before somebody listens is lost.
    until("it hears", async || {
        count().on(&teller).enqueue().await.unwrap();
        retry.tasks().count(Filter::all().status(Status::Succeeded)).await.unwrap() > 3
    })
    .await;
    teller.shutdown().await.unwrap();
    retry.shutdown().await.unwrap();
}

/// A key that was held by somebody's transaction for a while: the row is stored long after it was due, and
/// behind the place in the index from which the workers read.
async fn other_processes_hear_of_what_was_stored_late(db: Arc<TestDb>) {
    if !db.notifies() {
        return;
    }
    let (builder, connection, _) = builder(&db).await;
    let retry = builder.poll_interval_ms(3_600_000).start().await.unwrap();
    let teller = db.builder().state(AtomicU32::new(0)).state(db.connect().await);
    let teller = teller.state(Shop::default()).job(false).start().await.unwrap();
    // With it, the workers know that nothing is due before now.
    count().delay(Duration::from_secs(3600)).on(&retry).enqueue().await.unwrap();
    until("it hears", async || {
        count().on(&teller).enqueue().await.unwrap();
        retry.tasks().count(Filter::all().status(Status::Succeeded)).await.unwrap() > 3
    })
    .await;
    let transaction = connection.begin().await.unwrap();
    count().key("k").on(&teller).enqueue_in(&transaction).await.unwrap();
    let late = tokio::spawn(count().key("k").on(&teller).enqueue());
    tokio::time::sleep(Duration::from_secs(3)).await;
    // The time goes on where they look.
    count().on(&teller).enqueue().await.unwrap();
    until("the others have succeeded", async || {
        let open = Filter::all().status(Status::Executing);
        retry.tasks().count(open).await.unwrap() == 1
    })
    .await;
    transaction.rollback().await.unwrap();
    let late = late.await.unwrap().unwrap();
    assert!(late.is_new());
    becomes(&retry, late.id(), Status::Succeeded).await;
    teller.shutdown().await.unwrap();
    retry.shutdown().await.unwrap();
}

async fn another_kind_of_database_is_refused(db: Arc<TestDb>) {
    let (builder, _, _) = builder(&db).await;
    let retry = builder.start().await.unwrap();
    let kind = if db.kind == Kind::Sqlite { Kind::Postgres } else { Kind::Sqlite };
    let Some(other) = TestDb::create(kind).await else { return };
    let connection = Database::connect(&other.url).await.unwrap();
    let transaction = connection.begin().await.unwrap();
    let error = count().on(&retry).enqueue_in(&transaction).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    // No statement was sent, so the transaction is as good as before.
    transaction.execute_unprepared("create table still_good (id int)").await.unwrap();
    transaction.commit().await.unwrap();
    connection.close().await.unwrap();
    other.drop().await;
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 0);
    retry.shutdown().await.unwrap();
}

async fn a_table_that_is_not_there_is_an_error_of_the_store(db: Arc<TestDb>) {
    let (builder, _, _) = builder(&db).await;
    let retry = builder.start().await.unwrap();
    let Some(other) = TestDb::create(db.kind).await else { return };
    let connection = Database::connect(&other.url).await.unwrap();
    let error = count().on(&retry).enqueue_in(&connection).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store, "{error}");
    connection.close().await.unwrap();
    other.drop().await;
    retry.shutdown().await.unwrap();
}

async fn a_success_is_committed_with_the_work(db: Arc<TestDb>) {
    let (builder, connection, shop) = builder(&db).await;
    let retry = builder.start().await.unwrap();
    assert_eq!(book(7, "commit").on(&retry).await.unwrap(), 7);
    let row = only_task(&retry).await;
    assert_eq!((row.status, row.fence, row.send_count), (Status::Succeeded, 2, 0));
    assert_eq!((row.locked_by, row.next_send_time, row.last_error), (None, None, None));
    assert_eq!(orders(&connection).await, [7]);
    // A worker's, too.
    let id = book(8, "commit").on(&retry).enqueue().await.unwrap().id();
    let row = becomes(&retry, id, Status::Succeeded).await;
    assert_eq!((row.fence, row.send_count), (2, 0));
    retry.shutdown().await.unwrap();
    assert_eq!(shop.runs.load(Ordering::SeqCst), 2);
}

async fn without_its_commit_an_ok_is_a_failure(db: Arc<TestDb>) {
    let (builder, connection, _) = builder(&db).await;
    let retry = builder.start().await.unwrap();
    let error = book(7, "rollback").on(&retry).await.unwrap_err();
    let CallError::Deferred { id, cause, .. } = error else { panic!("{error}") };
    assert_eq!(cause.kind(), CauseKind::Interrupted);
    assert!(cause.to_string().contains("rolled back"), "{cause}");
    let row = becomes(&retry, id, Status::Succeeded).await;
    assert_eq!((row.send_count, row.fence), (1, 3), "the retry committed");
    assert_eq!(orders(&connection).await, [7]);
    retry.shutdown().await.unwrap();
}

async fn a_failure_before_the_commit_is_a_failure(db: Arc<TestDb>) {
    let (builder, connection, _) = builder(&db).await;
    let retry = builder.start().await.unwrap();
    for (order, how, kind) in [(1, "fail", CauseKind::Error), (2, "panic", CauseKind::Panicked)] {
        let error = book(order, how).on(&retry).await.unwrap_err();
        let CallError::Deferred { id, cause, .. } = error else { panic!("{error}") };
        assert_eq!(cause.kind(), kind, "{how}");
        let row = becomes(&retry, id, Status::Succeeded).await;
        assert_eq!((row.send_count, row.fence), (1, 3), "{how}");
    }
    assert_eq!(orders(&connection).await, [1, 2]);
    retry.shutdown().await.unwrap();
}

async fn a_failure_after_the_commit_changes_nothing(db: Arc<TestDb>) {
    let (builder, connection, shop) = builder(&db).await;
    let retry = builder.start().await.unwrap();
    let error = book(7, "fail late").on(&retry).await.unwrap_err();
    assert!(matches!(error, CallError::Superseded { .. }), "{error}");
    let row = only_task(&retry).await;
    assert_eq!((row.status, row.send_count, row.last_error), (Status::Succeeded, 0, None));
    assert_eq!(orders(&connection).await, [7]);
    retry.shutdown().await.unwrap();
    assert_eq!(shop.runs.load(Ordering::SeqCst), 1);
}

async fn a_task_that_was_taken_away_cannot_be_completed(db: Arc<TestDb>) {
    let (builder, connection, shop) = builder(&db).await;
    // So long that no renewal notices first.
    let retry = builder.lease_second(3600).start().await.unwrap();
    for (order, how) in [(1, "wait"), (2, "wait and ignore")] {
        let call = tokio::spawn(book(order, how).on(&retry).into_future());
        shop.gate.wait_for(order).await;
        let open = Filter::all().status(Status::Executing);
        assert_eq!(retry.tasks().cancel(open).await.unwrap().changed, 1);
        shop.gate.open(1);
        let error = call.await.unwrap().unwrap_err();
        assert!(matches!(error, CallError::Superseded { .. }), "{error}");
        let row = task(&retry, error.id().unwrap()).await;
        assert_eq!((row.status, row.last_error), (Status::Cancelled, None));
    }
    assert_eq!(*shop.refused.lock().unwrap(), [ErrorKind::Conflict, ErrorKind::Conflict]);
    assert_eq!(orders(&connection).await, [0; 0]);
    retry.shutdown().await.unwrap();
}

contract!(
    a_rollback_leaves_nothing_and_a_commit_runs,
    what_is_not_committed_is_seen_by_nobody,
    a_kick_makes_workers_look_at_once,
    a_late_commit_is_found_without_a_kick,
    other_processes_hear_of_what_was_stored,
    other_processes_hear_of_what_was_stored_late,
    another_kind_of_database_is_refused,
    a_table_that_is_not_there_is_an_error_of_the_store,
    a_success_is_committed_with_the_work,
    without_its_commit_an_ok_is_a_failure,
    a_failure_before_the_commit_is_a_failure,
    a_failure_after_the_commit_changes_nothing,
    a_task_that_was_taken_away_cannot_be_completed,
);
