//! What functions with `store_result` return: kept with the task, waited for, given to later calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};
use serde::{Deserialize, Serialize};
use task_retry::{
    CallError, CauseKind, ContextCodec, ContextPlace, Enqueued, ErrorKind, Filter, Outcome, Status,
    Task, TaskContext, TaskId, TaskRetry, enqueue_all, retryable,
};
use task_retry_tests::{Gate, Kind, TestDb, becomes, contract, manual_clock, only_task};

/// A value with everything that is easily lost on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Receipt {
    number: u128,
    place: String,
    parts: Vec<Option<f64>>,
}

impl Receipt {
    fn of(order: u64) -> Self {
        Self {
            number: u128::MAX - u128::from(order),
            place: "\0 \"quoted\" \\ 中 😀\n".to_owned(),
            parts: vec![Some(0.1), None],
        }
    }
}

/// What the functions here need.
#[derive(Default)]
struct World {
    /// Who this process is.
    name: &'static str,
    runs: AtomicU32,
    gate: Gate,
}

#[retryable(source = 200, store_result)]
async fn sell(order: u64, #[state] world: &World) -> Result<Receipt, String> {
    world.runs.fetch_add(1, Ordering::SeqCst);
    Ok(Receipt::of(order))
}

/// Waits at the gate, then says which process it ran in.
#[retryable(source = 201, store_result, max_retry = 1, first_execute = "0s")]
async fn who(#[state] world: &World) -> Result<String, String> {
    world.gate.pass().await;
    Ok(world.name.to_owned())
}

#[retryable(source = 202, store_result, max_retry = 0)]
async fn refuse(why: String) -> Result<u8, String> {
    Err(why)
}

/// Keeps nothing.
#[retryable(source = 203)]
async fn forget(number: u32) -> Result<u32, String> {
    Ok(number)
}

#[retryable(source = 204)]
async fn nothing() -> Result<(), String> {
    Ok(())
}

#[retryable(source = 205, store_result)]
async fn ask() -> Result<Outcome<u32>, String> {
    Ok(Outcome::Pending { deadline: Duration::from_secs(600) })
}

/// Returns so many bytes.
#[retryable(source = 206, store_result)]
async fn large(bytes: usize) -> Result<String, String> {
    Ok("x".repeat(bytes))
}

#[retryable(source = 207, store_result)]
async fn not_a_number() -> Result<f64, String> {
    Ok(f64::NAN)
}

/// Sells in a transaction that it rolls back the first time.
#[retryable(source = 208, store_result, first_execute = "0s")]
async fn sell_once(
    plainly: bool,
    #[state] db: &DatabaseConnection,
    #[context] context: &TaskContext,
) -> Result<u64, task_retry::Error> {
    let transaction = db.begin().await.unwrap();
    if plainly {
        context.complete_in(&transaction).await?;
    }
    context.complete_in_with(&transaction, &(40 + u64::from(context.attempt()))).await?;
    match context.attempt() {
        1 => transaction.rollback().await.unwrap(),
        _ => transaction.commit().await.unwrap(),
    }
    Ok(40 + u64::from(context.attempt()))
}

async fn builder(db: &TestDb, name: &'static str) -> task_retry::Builder {
    db.builder()
        .only::<(sell, who, refuse, forget, nothing, ask, large, not_a_number)>()
        .only::<(sell_once,)>()
        .state(World { name, ..World::default() })
        .state(db.connect().await)
}

async fn start(db: &TestDb, name: &'static str) -> (TaskRetry, Arc<World>) {
    let world = Arc::new(World { name, ..World::default() });
    let builder = db.builder().only::<(sell, who, refuse, forget, nothing, ask, large)>();
    let retry = builder
        .only::<(not_a_number, sell_once)>()
        .shared_state(world.clone())
        .state(db.connect().await)
        .start()
        .await
        .unwrap();
    (retry, world)
}

async fn count(db: &TestDb, sql: &str) -> i64 {
    let connection = db.connect().await;
    let statement = sea_orm::Statement::from_string(connection.get_database_backend(), sql);
    let row = connection.query_one_raw(statement).await.unwrap().unwrap();
    row.try_get_by_index(0).unwrap()
}

/// Successes of functions with `store_result` that have no value of their fence.
const WITHOUT: &str = "select count(*) from t_sys_mq_resend_log t where t.status = 3 and \
    t.source in (200, 201) and not exists (select 1 from t_task_retry_result r \
    where r.task_id = t.id and r.fence = t.fence)";
const RESULTS: &str = "select count(*) from t_task_retry_result";

async fn a_value_is_waited_for(db: Arc<TestDb>) {
    let (retry, world) = start(&db, "a").await;
    let enqueued = sell(7).on(&retry).enqueue().await.unwrap();
    assert_eq!(enqueued.wait().await.unwrap(), Receipt::of(7));
    assert_eq!(enqueued.wait().await.unwrap(), Receipt::of(7));
    assert_eq!(enqueued.ended().await.unwrap(), Status::Succeeded);
    assert_eq!(enqueued.untyped().ended().await.unwrap(), Status::Succeeded);
    assert_eq!(retry.task::<sell>(enqueued.id()).wait().await.unwrap(), Receipt::of(7));
    let later = sell(8).delay(Duration::from_millis(300)).on(&retry).enqueue().await.unwrap();
    assert_eq!(tokio::spawn(later.wait()).await.unwrap().unwrap(), Receipt::of(8));
    assert_eq!(sell(9).on(&retry).await.unwrap(), Receipt::of(9));
    assert_eq!(world.runs.load(Ordering::SeqCst), 3);
    assert_eq!((count(&db, RESULTS).await, count(&db, WITHOUT).await), (3, 0));
    retry.shutdown().await.unwrap();
}

async fn many_wait_at_once(db: Arc<TestDb>) {
    let (retry, _) = start(&db, "a").await;
    let stored = enqueue_all((0..300).map(|order| sell(order).on(&retry))).await.unwrap();
    // Some of those who wait go away, which changes nothing for the others.
    for enqueued in &stored {
        let _ = tokio::time::timeout(Duration::ZERO, enqueued.wait()).await;
    }
    let values = join_all(stored.iter().chain(&stored[..100]).map(|it| it.wait())).await;
    for (order, value) in values.into_iter().enumerate() {
        assert_eq!(value.unwrap(), Receipt::of(order as u64 % 300));
    }
    assert_eq!(count(&db, WITHOUT).await, 0);
    retry.shutdown().await.unwrap();
}

async fn a_taken_key_gives_the_earlier_value(db: Arc<TestDb>) {
    let (retry, world) = start(&db, "a").await;
    let calls = (0..40).map(|_| sell(5).key("order-5").on(&retry));
    let answers = join_all(calls).await;
    // One runs; who came while it ran is told so, who came later has its value.
    assert_eq!(world.runs.load(Ordering::SeqCst), 1);
    let mut values = 0;
    for answer in answers {
        match answer {
            Ok(receipt) => {
                assert_eq!(receipt, Receipt::of(5));
                values += 1;
            }
            Err(CallError::Duplicate { status: Status::Executing, .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert!(values >= 1);
    assert_eq!(sell(6).key("order-5").on(&retry).await.unwrap(), Receipt::of(5));
    let again = sell(5).key("order-5").on(&retry).enqueue().await.unwrap();
    assert!(!again.is_new());
    assert_eq!(again.wait().await.unwrap(), Receipt::of(5));
    let other = sell(5).key("order-5").on(&retry).accepted().await.unwrap();
    assert_eq!(other, Some(Receipt::of(5)));

    let (elsewhere, other) = start(&db, "b").await;
    assert_eq!(sell(5).key("order-5").on(&elsewhere).await.unwrap(), Receipt::of(5));
    assert_eq!(other.runs.load(Ordering::SeqCst), 0);

    assert_eq!(forget(1).key("k").on(&retry).await.unwrap(), 1);
    let error = forget(1).key("k").on(&retry).await.unwrap_err();
    assert!(matches!(error, CallError::Duplicate { status: Status::Succeeded, .. }), "{error}");
    let _ = refuse("no".into()).key("k").on(&retry).await.unwrap_err();
    let error = refuse("no".into()).key("k").on(&retry).await.unwrap_err();
    assert!(matches!(error, CallError::Duplicate { status: Status::Failed, .. }), "{error}");
    retry.shutdown().await.unwrap();
    elsewhere.shutdown().await.unwrap();
}

async fn an_end_in_another_process_wakes(db: Arc<TestDb>) {
    let (runs, world) = start(&db, "a").await;
    // It looks less and less often, so that on PostgreSQL only a message can be quick.
    let waits = builder(&db, "b").await.job(false).poll_interval_ms(60_000).start().await.unwrap();
    let enqueued = who().on(&runs).enqueue().await.unwrap();
    world.gate.wait_for(1).await;
    let waiting = tokio::spawn(enqueued.on(&waits).wait());
    let ended = tokio::spawn(enqueued.untyped().on(&waits).ended());
    // It looks after 2.6 s, and then after 5.1 s.
    let pause = if db.notifies() { 2900 } else { 300 };
    tokio::time::sleep(Duration::from_millis(pause)).await;
    assert!(!waiting.is_finished());
    let opened = Instant::now();
    world.gate.open(1);
    assert_eq!(waiting.await.unwrap().unwrap(), "a");
    let took = opened.elapsed();
    if db.notifies() {
        assert!(took < Duration::from_millis(1500), "{took:?}");
    }
    assert_eq!(ended.await.unwrap().unwrap(), Status::Succeeded);
    runs.shutdown().await.unwrap();
    waits.shutdown().await.unwrap();
}

async fn there_may_be_no_value(db: Arc<TestDb>) {
    let (retry, _) = start(&db, "a").await;
    let failed = refuse("not today".into()).on(&retry).enqueue().await.unwrap();
    let CallError::Failed { id, cause } = failed.wait().await.unwrap_err() else { panic!() };
    assert_eq!((id, cause.kind(), cause.error()), (failed.id(), CauseKind::Error, None));
    assert_eq!(cause.to_string(), "not today");
    assert_eq!(failed.ended().await.unwrap(), Status::Failed);

    let hour = Duration::from_secs(3600);
    let cancelled = sell(1).delay(hour).on(&retry).enqueue().await.unwrap();
    let waiting = tokio::spawn(cancelled.wait());
    tokio::time::sleep(Duration::from_millis(50)).await;
    retry.tasks().cancel(Filter::ids([cancelled.id()])).await.unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Superseded { .. }), "{error}");

    let purged = sell(1).delay(hour).on(&retry).enqueue().await.unwrap();
    let waiting = tokio::spawn(purged.wait());
    tokio::time::sleep(Duration::from_millis(50)).await;
    retry.tasks().purge(Filter::ids([purged.id()])).await.unwrap();
    no_value(waiting.await.unwrap(), ErrorKind::NotFound);
    assert_eq!(purged.ended().await.unwrap_err().kind(), ErrorKind::NotFound);

    let completed = sell(1).delay(hour).on(&retry).enqueue().await.unwrap();
    retry.complete(completed.id()).await.unwrap();
    no_value(completed.wait().await, ErrorKind::Context);
    assert_eq!(completed.ended().await.unwrap(), Status::Succeeded);

    let forgotten = forget(1).on(&retry).enqueue().await.unwrap();
    no_value(forgotten.wait().await, ErrorKind::Config);
    assert_eq!(forgotten.ended().await.unwrap(), Status::Succeeded);
    nothing().on(&retry).enqueue().await.unwrap().wait().await.unwrap();

    let sold = sell(3).on(&retry).enqueue().await.unwrap();
    sold.wait().await.unwrap();
    db.execute("update t_task_retry_result set result = '[1]'").await;
    no_value(sold.wait().await, ErrorKind::Context);

    let waiting = sell(1).delay(hour).on(&retry).enqueue().await.unwrap();
    let waits = tokio::spawn(waiting.wait());
    tokio::time::sleep(Duration::from_millis(50)).await;
    retry.shutdown().await.unwrap();
    no_value(waits.await.unwrap(), ErrorKind::Closed);
    no_value(waiting.wait().await, ErrorKind::Closed);
}

#[track_caller]
fn no_value<T: std::fmt::Debug>(result: Result<T, CallError<String>>, kind: ErrorKind) {
    match result.unwrap_err() {
        CallError::NoValue { error, .. } => assert_eq!(error.kind(), kind, "{error}"),
        other => panic!("{other}"),
    }
}

async fn somebody_may_call_back_with_it(db: Arc<TestDb>) {
    let (retry, _) = start(&db, "a").await;
    let asked = ask().on(&retry).enqueue().await.unwrap();
    becomes(&retry, asked.id(), Status::Waiting).await;
    let waiting = tokio::spawn(asked.wait());
    let error = retry.complete_with::<sell>(asked.id(), Receipt::of(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    retry.complete_with::<ask>(asked.id(), Outcome::Done(17)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), Outcome::Done(17));
    let error = retry.complete_with::<ask>(asked.id(), Outcome::Done(18)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let error = retry.complete_with::<ask>(TaskId::from(1), Outcome::Done(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = retry.complete_with::<forget>(asked.id(), 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(asked.wait().await.unwrap(), Outcome::Done(17));
    retry.shutdown().await.unwrap();
}

async fn a_stale_attempt_leaves_no_value(db: Arc<TestDb>) {
    let stale_world = Arc::new(World { name: "stale", ..World::default() });
    let stale = db.builder().only::<(who,)>().job(false).shared_state(stale_world.clone());
    let stale = stale.start().await.unwrap();
    let call = tokio::spawn(who().on(&stale).into_future());
    stale_world.gate.wait_for(1).await;
    let id = only_task(&stale).await.id;
    // Its process seemed dead, and another one has taken the task over.
    db.execute("update t_sys_mq_resend_log set fence = fence + 1, locked_by = 'dead'").await;
    stale_world.gate.open(1);
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Superseded { .. }), "{error}");
    assert_eq!(count(&db, RESULTS).await, 0);
    assert_eq!(only_task(&stale).await.status, Status::Executing);

    let waiting = tokio::spawn(stale.task::<who>(id).wait());
    let (winner, world) = start(&db, "winner").await;
    world.gate.open(1);
    assert_eq!(waiting.await.unwrap().unwrap(), "winner");
    assert_eq!((count(&db, RESULTS).await, count(&db, WITHOUT).await), (1, 0));
    stale.shutdown().await.unwrap();
    winner.shutdown().await.unwrap();
}

async fn the_value_of_an_earlier_success_is_void_while_it_runs_again(db: Arc<TestDb>) {
    let (retry, world) = start(&db, "a").await;
    world.gate.open(1);
    let enqueued = who().on(&retry).enqueue().await.unwrap();
    assert_eq!(enqueued.wait().await.unwrap(), "a");
    let (other, world) = start(&db, "b").await;
    let (again, ids) = (other.clone(), vec![enqueued.id()]);
    let again = tokio::spawn(async move { again.run_due(Some(ids)).await });
    world.gate.wait_for(1).await;
    let waiting = tokio::spawn(enqueued.wait());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    world.gate.open(1);
    assert_eq!(waiting.await.unwrap().unwrap(), "b");
    assert_eq!(again.await.unwrap().unwrap().succeeded, 1);
    assert_eq!(count(&db, RESULTS).await, 1);

    // Ended from outside while it runs again, it has no value, although one of an older fence is there.
    let (again, ids) = (other.clone(), vec![enqueued.id()]);
    let again = tokio::spawn(async move { again.run_due(Some(ids)).await });
    world.gate.wait_for(2).await;
    retry.complete(enqueued.id()).await.unwrap();
    no_value(enqueued.wait().await, ErrorKind::Context);
    world.gate.open(1);
    again.await.unwrap().unwrap();
    no_value(enqueued.wait().await, ErrorKind::Context);
    retry.shutdown().await.unwrap();
    other.shutdown().await.unwrap();
}

/// A process that ends between any two statements, or inside of a transaction.
async fn no_success_is_without_its_value(db: Arc<TestDb>) {
    let (survivor, _) = start(&db, "b").await;
    let mut stored: Vec<Enqueued<sell>> = Vec::new();
    for round in 0..4_u64 {
        let (tell, hear) = tokio::sync::oneshot::channel();
        let builder = builder(&db, "a").await;
        let killed = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let retry = builder.start().await.unwrap();
                let calls = (0..150).map(|order| sell(order).on(&retry).enqueue());
                let ids: Vec<TaskId> =
                    join_all(calls).await.into_iter().map(|it| it.unwrap().id()).collect();
                tell.send(ids).unwrap();
                tokio::time::sleep(Duration::from_millis(1 + 3 * round)).await;
                // Ends the thread that renews leases, which is not of this runtime.
                drop(retry);
            });
            // Everything is dropped at its next await.
            runtime.shutdown_timeout(Duration::ZERO);
        });
        stored.extend(hear.await.unwrap().into_iter().map(|id| survivor.task(id)));
        for _ in 0..5 {
            assert_eq!(count(&db, WITHOUT).await, 0);
        }
        killed.join().unwrap();
    }
    for (index, enqueued) in stored.iter().enumerate() {
        assert_eq!(enqueued.wait().await.unwrap(), Receipt::of(index as u64 % 150));
    }
    assert_eq!((count(&db, RESULTS).await, count(&db, WITHOUT).await), (600, 0));
    survivor.shutdown().await.unwrap();
}

async fn a_value_that_cannot_be_stored_fails_the_task(db: Arc<TestDb>) {
    let (retry, _) = start(&db, "a").await;
    let value = large(5 << 20).on(&retry).enqueue().await.unwrap().wait().await.unwrap();
    assert_eq!(value.len(), 5 << 20);

    let error = large(17 << 20).on(&retry).await.unwrap_err();
    let CallError::Failed { id, cause } = error else { panic!("{error}") };
    assert!(cause.to_string().contains("store the data elsewhere"), "{cause}");
    let task = retry.tasks().get(id).await.unwrap().unwrap();
    assert_eq!((task.status, task.send_count), (Status::Failed, 1));
    assert_eq!(task.last_error.unwrap(), cause.to_string());

    let error = not_a_number().on(&retry).await.unwrap_err();
    let CallError::Failed { cause, .. } = error else { panic!("{error}") };
    assert!(cause.to_string().contains("it holds a NaN"), "{cause}");
    assert_eq!(count(&db, RESULTS).await, 1);
    retry.shutdown().await.unwrap();
}

/// One that the table cannot hold although it should: its task fails, and no other one.
async fn a_value_that_the_database_refuses_fails_its_task_alone(db: Arc<TestDb>) {
    let narrow = match db.kind {
        Kind::Sqlite => return, // holds everything
        Kind::Postgres => "alter table t_task_retry_result alter column result type varchar(99)",
        _ => "alter table t_task_retry_result modify result varchar(99)",
    };
    let (retry, world) = start(&db, "a").await;
    db.execute(narrow).await;
    let calls = (0..20).map(|_| who().on(&retry).enqueue());
    let fits = join_all(calls).await;
    let too_wide = sell(1).on(&retry).into_future();
    world.gate.open(20);
    let error = too_wide.await.unwrap_err();
    let CallError::Superseded { id } = error else { panic!("{error}") };
    for enqueued in fits {
        assert_eq!(enqueued.unwrap().wait().await.unwrap(), "a");
    }
    let task = retry.tasks().get(id).await.unwrap().unwrap();
    assert_eq!((task.status, task.send_count, task.locked_by), (Status::Failed, 1, None));
    assert!(task.last_error.unwrap().contains("cannot hold the result"));
    assert_eq!(count(&db, WITHOUT).await, 0);
    retry.shutdown().await.unwrap();
}

async fn who_waits_keeps_no_runtime_alive(db: Arc<TestDb>) {
    let (retry, _) = start(&db, "a").await;
    let later = sell(1).delay(Duration::from_secs(3600)).on(&retry).enqueue().await.unwrap();
    let waiting = tokio::spawn(later.wait());
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(retry);
    no_value(waiting.await.unwrap(), ErrorKind::Closed);
    no_value(later.wait().await, ErrorKind::Closed);
}

async fn a_transaction_carries_it(db: Arc<TestDb>) {
    let (retry, _) = start(&db, "a").await;
    let error = sell_once(false).on(&retry).await.unwrap_err();
    let CallError::Deferred { id, .. } = error else { panic!("{error}") };
    assert_eq!(retry.task::<sell_once>(id).wait().await.unwrap(), 42);
    let task = retry.tasks().get(id).await.unwrap().unwrap();
    assert_eq!((task.status, task.send_count), (Status::Succeeded, 1));

    let error = sell_once(true).max_retry(0).on(&retry).await.unwrap_err();
    let CallError::Failed { cause, .. } = error else { panic!("{error}") };
    assert!(cause.to_string().contains("complete_in_with"), "{cause}");
    assert_eq!(count(&db, RESULTS).await, 1);
    retry.shutdown().await.unwrap();
}

async fn it_goes_with_its_task(db: Arc<TestDb>) {
    let clock = manual_clock();
    let builder = builder(&db, "a").await.clock(clock.clone()).data_kept_day(7).failed_kept_day(7);
    let retry = builder.start().await.unwrap();
    for order in 0..3 {
        sell(order).on(&retry).await.unwrap();
    }
    let _ = refuse("no".into()).on(&retry).await.unwrap_err();
    assert_eq!(count(&db, RESULTS).await, 3);
    assert_eq!(count(&db, "select count(*) from t_task_retry_attempt").await, 1);
    let first = retry.tasks().list(Filter::all().limit(1)).await.unwrap()[0].id;
    assert_eq!(retry.tasks().purge(Filter::ids([first])).await.unwrap().changed, 1);
    assert_eq!(count(&db, RESULTS).await, 2);

    // The starter's history job knows only the one table.
    let second = retry.tasks().list(Filter::all().limit(1)).await.unwrap()[0].id;
    db.execute(&format!("delete from t_sys_mq_resend_log where id = {second}")).await;
    assert_eq!(retry.remove_history().await.unwrap(), 0);
    assert_eq!(count(&db, RESULTS).await, 1);

    clock.advance(Duration::from_secs(8 * 86_400));
    assert_eq!(retry.remove_history().await.unwrap(), 2);
    assert_eq!(count(&db, RESULTS).await, 0);
    assert_eq!(count(&db, "select count(*) from t_task_retry_attempt").await, 0);
    retry.shutdown().await.unwrap();
}

async fn a_strategy_has_none(db: Arc<TestDb>) {
    struct Message;
    impl task_retry::Strategy for Message {
        fn source(&self) -> i32 {
            220
        }
        fn name(&self) -> &str {
            "message"
        }
        async fn handle(&self, _task: &task_retry::TaskLog) -> task_retry::HandleResult {
            task_retry::HandleResult::Success
        }
    }
    let retry = db.builder().only::<()>().strategy(Message).start().await.unwrap();
    let enqueued: Enqueued = retry.submit(Task::new(220)).await.unwrap();
    assert_eq!(enqueued.ended().await.unwrap(), Status::Succeeded);
    assert_eq!(count(&db, RESULTS).await, 0);
    retry.shutdown().await.unwrap();
}

/// Turns texts round.
struct Mirror;

impl ContextCodec for Mirror {
    fn encode(
        &self,
        context: &str,
        _place: ContextPlace<'_>,
    ) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        Ok(context.chars().rev().collect())
    }

    fn decode(
        &self,
        stored: &str,
        _place: ContextPlace<'_>,
    ) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        Ok(stored.chars().rev().collect())
    }
}

async fn it_goes_through_the_codec(db: Arc<TestDb>) {
    let retry = builder(&db, "a").await.codec(Mirror).start().await.unwrap();
    let enqueued = sell(7).key("k").on(&retry).enqueue().await.unwrap();
    assert_eq!(enqueued.wait().await.unwrap(), Receipt::of(7));
    assert_eq!(sell(7).key("k").on(&retry).await.unwrap(), Receipt::of(7));
    let plain = "select count(*) from t_task_retry_result where result like '{%'";
    assert_eq!((count(&db, RESULTS).await, count(&db, plain).await), (1, 0));
    retry.shutdown().await.unwrap();
}

contract!(
    a_value_is_waited_for,
    many_wait_at_once,
    a_taken_key_gives_the_earlier_value,
    an_end_in_another_process_wakes,
    there_may_be_no_value,
    somebody_may_call_back_with_it,
    a_stale_attempt_leaves_no_value,
    the_value_of_an_earlier_success_is_void_while_it_runs_again,
    no_success_is_without_its_value,
    a_value_that_cannot_be_stored_fails_the_task,
    a_value_that_the_database_refuses_fails_its_task_alone,
    who_waits_keeps_no_runtime_alive,
    a_transaction_carries_it,
    it_goes_with_its_task,
    a_strategy_has_none,
    it_goes_through_the_codec,
);
