//! Many calls at once, and functions that limit how many of them run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use sea_orm::TransactionTrait;
use task_retry::{
    Builder, CallError, CauseKind, ErrorKind, Filter, Status, TaskRetry, enqueue_all,
    enqueue_all_in, retryable,
};
use task_retry_tests::{Gate, TestDb, becomes, contract, task, until};

#[retryable(source = 100)]
async fn add(number: f64, #[state] runs: &AtomicU32) -> Result<(), String> {
    runs.fetch_add(1, Ordering::SeqCst);
    assert!(number.is_finite());
    Ok(())
}

/// How many run, and how many did so at the most.
#[derive(Default)]
struct Most {
    now: AtomicU32,
    most: AtomicU32,
}

#[retryable(source = 101, concurrency = 2)]
async fn limited(#[state] gate: &Gate, #[state] most: &Most) -> Result<(), String> {
    let now = most.now.fetch_add(1, Ordering::SeqCst) + 1;
    most.most.fetch_max(now, Ordering::SeqCst);
    gate.pass().await;
    most.now.fetch_sub(1, Ordering::SeqCst);
    Ok(())
}

/// Calls itself, and others that call it.
#[retryable(source = 102, concurrency = 1)]
async fn countdown(number: u32) -> Result<u32, String> {
    match number {
        0 => Ok(0),
        _ => Ok(1 + by_way_of(number - 1).await.map_err(|error| error.to_string())?),
    }
}

#[retryable(source = 103)]
async fn by_way_of(number: u32) -> Result<u32, String> {
    countdown(number).await.map_err(|error| error.to_string())
}

fn builder(db: &TestDb) -> (Builder, Arc<AtomicU32>, Arc<Gate>, Arc<Most>) {
    let (runs, gate, most) = (Arc::default(), Arc::default(), Arc::default());
    let builder = db.builder().shared_state(Arc::clone(&runs)).shared_state(Arc::clone(&gate));
    (builder.shared_state(Arc::clone(&most)), runs, gate, most)
}

async fn count(retry: &TaskRetry, status: Status) -> u64 {
    retry.tasks().count(Filter::all().status(status)).await.unwrap()
}

async fn many_calls_are_stored_in_their_order(db: Arc<TestDb>) {
    let (builder, runs, ..) = builder(&db);
    let retry = builder.start().await.unwrap();
    let calls = (0..2500).map(|number| add(f64::from(number)).on(&retry));
    let stored = enqueue_all(calls).await.unwrap();
    assert_eq!(stored.len(), 2500);
    assert!(stored.iter().all(|stored| stored.is_new()));
    assert!(stored.windows(2).all(|pair| pair[0].id() < pair[1].id()), "the ids tell the order");
    for (number, stored) in stored.iter().enumerate().step_by(500) {
        let context = task(&retry, stored.id()).await.context;
        assert_eq!(context, Some(format!(r#"{{"number":{number}.0}}"#)));
    }
    until("all run", async || count(&retry, Status::Succeeded).await == 2500).await;
    assert_eq!(runs.load(Ordering::SeqCst), 2500);
    assert_eq!(enqueue_all(Vec::<task_retry::Call<add>>::new()).await.unwrap().len(), 0);
    // In a task of its own, and from what it borrows; of unknown number.
    let runtime = retry.clone();
    let stored = tokio::spawn(async move {
        let numbers: Vec<u32> = (0..4000).collect();
        let even = numbers.iter().filter(|number| *number % 2 == 0);
        enqueue_all(even.map(|number| add(f64::from(*number)).on(&runtime))).await
    });
    assert_eq!(stored.await.unwrap().unwrap().len(), 2000);
    until("all run", async || count(&retry, Status::Succeeded).await == 4500).await;
    retry.shutdown().await.unwrap();
}

async fn all_are_stored_or_none(db: Arc<TestDb>) {
    let (builder, runs, ..) = builder(&db);
    let retry = builder.start().await.unwrap();
    let numbers = (0..1500).map(|n| if n == 1400 { f64::NAN } else { f64::from(n) });
    let error = enqueue_all(numbers.map(|number| add(number).on(&retry))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Context);
    let keys = (0..1500).map(|n| if n == 1400 { " ".into() } else { n.to_string() });
    let error = enqueue_all(keys.map(|key| add(1.0).key(key).on(&retry))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Context);
    let (builder, ..) = self::builder(&db);
    let other = builder.project("other").start().await.unwrap();
    let error = enqueue_all([add(1.0).on(&retry), add(2.0).on(&other)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 0);
    assert_eq!(other.tasks().count(Filter::all()).await.unwrap(), 0);
    other.shutdown().await.unwrap();
    retry.shutdown().await.unwrap();
    let error = enqueue_all([add(1.0).on(&retry)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(runs.load(Ordering::SeqCst), 0);
}

async fn taken_keys_are_answered_one_by_one(db: Arc<TestDb>) {
    let (builder, ..) = builder(&db);
    let retry = builder.job(false).start().await.unwrap();
    let taken = add(0.0).key("7").on(&retry).enqueue().await.unwrap().id();
    let calls = (0..200).map(|n| add(1.0).key((n % 100).to_string()).on(&retry));
    let stored = enqueue_all(calls).await.unwrap();
    for n in 0..100 {
        let (first, second) = (stored[n], stored[n + 100]);
        assert_eq!((first.is_new(), second.is_new()), (n != 7, false), "{n}");
        assert_eq!(first.id(), second.id());
        assert_eq!(task(&retry, first.id()).await.unique_key, Some(n.to_string()));
    }
    assert_eq!(stored[7].id(), taken);
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 100);
    retry.shutdown().await.unwrap();
}

async fn scheduled_calls_go_together_too(db: Arc<TestDb>) {
    let (builder, ..) = builder(&db);
    let clock = task_retry_tests::manual_clock();
    let retry = builder.clock(clock.clone()).job(false).start().await.unwrap();
    let calls = (1..=3).map(|n| add(1.0).delay(Duration::from_secs(n)).topic("t").on(&retry));
    let stored = enqueue_all(calls).await.unwrap();
    for stored in stored {
        let row = task(&retry, stored.id()).await;
        assert_eq!((row.topic.as_str(), row.fence, row.locked_by), ("t", 0, None));
        clock.advance(Duration::from_secs(1));
        assert_eq!(row.next_send_time, Some(clock.now()));
        assert_eq!(retry.run_due(None).await.unwrap().succeeded, 1);
    }
    retry.shutdown().await.unwrap();
}

/// Rows without keys are stored by statements that fail as a whole for a taken id.
async fn a_taken_id_spoils_no_batch(db: Arc<TestDb>) {
    let (builder, ..) = builder(&db);
    // Ids count on while it stands still.
    let clock = task_retry_tests::manual_clock();
    let retry = builder.clock(clock).job(false).start().await.unwrap();
    let last = add(0.0).on(&retry).enqueue().await.unwrap().id().get();
    // In two of the statements that it takes.
    let taken = [last + 2, last + 1500];
    for id in taken {
        let sql = "insert into t_sys_mq_resend_log (id, project_name, source) values";
        db.execute(&format!("{sql} ({id}, 'other', 100)")).await;
    }
    let stored = enqueue_all((0..2500).map(|n| add(f64::from(n)).on(&retry))).await.unwrap();
    for number in [0, 1, 2, 999, 1000, 1498, 1499, 1500, 2499] {
        let context = task(&retry, stored[number].id()).await.context;
        assert_eq!(context, Some(format!(r#"{{"number":{number}.0}}"#)));
    }
    let mut ids: Vec<_> = stored.iter().map(|stored| stored.id().get()).collect();
    assert!(stored.iter().all(|stored| stored.is_new()));
    assert!(ids.contains(&(last + 1)) && taken.iter().all(|id| !ids.contains(id)), "{ids:?}");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 2500);
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 2501);
    retry.shutdown().await.unwrap();
}

async fn the_callers_transaction_decides(db: Arc<TestDb>) {
    let (builder, ..) = builder(&db);
    let retry = builder.start().await.unwrap();
    let connection = db.connect().await;
    let calls = || (0..50).map(|n| add(1.0).key((n % 30).to_string()).on(&retry));
    let transaction = connection.begin().await.unwrap();
    assert_eq!(enqueue_all_in(&transaction, calls()).await.unwrap().len(), 50);
    transaction.rollback().await.unwrap();
    // Nothing of a refused batch is left in a transaction that goes on.
    let bad = (0..1500).map(|n| add(if n == 1400 { f64::NAN } else { 1.0 }).on(&retry));
    let transaction = connection.begin().await.unwrap();
    let error = enqueue_all_in(&transaction, bad).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Context);
    transaction.commit().await.unwrap();
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 0);
    let taken = add(0.0).key("7").on(&retry).enqueue().await.unwrap().id();
    becomes(&retry, taken, Status::Succeeded).await;
    let transaction = connection.begin().await.unwrap();
    let stored = enqueue_all_in(&transaction, calls()).await.unwrap();
    transaction.commit().await.unwrap();
    retry.kick();
    assert_eq!(stored.iter().filter(|stored| stored.is_new()).count(), 29);
    assert_eq!((stored[7].id(), stored[37].id()), (taken, stored[7].id()));
    until("all run", async || count(&retry, Status::Succeeded).await == 30).await;
    retry.shutdown().await.unwrap();
}

async fn a_function_may_limit_its_attempts(db: Arc<TestDb>) {
    let (builder, _, gate, most) = builder(&db);
    let retry = builder.start().await.unwrap();
    let awaited = (0..10).map(|_| tokio::spawn(limited().on(&retry).into_future()));
    let awaited: Vec<_> = awaited.collect();
    join_all((0..10).map(|_| limited().on(&retry).enqueue())).await;
    for done in 1..=20 {
        gate.wait_for(done).await;
        gate.open(1);
    }
    for call in awaited {
        call.await.unwrap().unwrap();
    }
    until("all run", async || count(&retry, Status::Succeeded).await == 20).await;
    assert_eq!(most.most.load(Ordering::SeqCst), 2);
    retry.shutdown().await.unwrap();
}

async fn a_limit_lets_its_own_calls_through(db: Arc<TestDb>) {
    let (builder, ..) = builder(&db);
    let retry = builder.start().await.unwrap();
    assert_eq!(countdown(5).on(&retry).await.unwrap(), 5);
    let id = countdown(5).on(&retry).enqueue().await.unwrap().id();
    becomes(&retry, id, Status::Succeeded).await;
    let calls = (0..10).map(|n| countdown(n % 3).on(&retry).into_future());
    for (n, result) in join_all(calls).await.into_iter().enumerate() {
        assert_eq!(result.unwrap() as usize, n % 3);
    }
    retry.shutdown().await.unwrap();
}

async fn what_waits_for_its_limit_can_be_ended(db: Arc<TestDb>) {
    let (builder, _, gate, _) = builder(&db);
    let retry = builder.shutdown_grace_second(0).start().await.unwrap();
    let call = |retry: &TaskRetry| tokio::spawn(limited().on(retry).into_future());
    let running = [call(&retry), call(&retry)];
    gate.wait_for(2).await;
    let waiting = [call(&retry), call(&retry)];
    until("they are stored", async || retry.tasks().count(Filter::all()).await.unwrap() == 4).await;
    let rows = retry.tasks().list(Filter::all()).await.unwrap();
    // One that waits may start when one that runs was stopped first, and is stopped then.
    retry.tasks().cancel(Filter::all()).await.unwrap();
    for call in running.into_iter().chain(waiting) {
        let error = call.await.unwrap().unwrap_err();
        assert!(matches!(error, CallError::Superseded { .. }), "{error}");
    }
    for row in rows {
        assert_eq!(task(&retry, row.id).await.status, Status::Cancelled);
    }
    // The places are free again, and a shutdown puts back what waits.
    let came = gate.came();
    let calls = [call(&retry), call(&retry), call(&retry)];
    gate.wait_for(came + 2).await;
    until("they are stored", async || retry.tasks().count(Filter::all()).await.unwrap() == 7).await;
    retry.shutdown().await.unwrap();
    for call in calls {
        let error = call.await.unwrap().unwrap_err();
        let CallError::Deferred { id, cause, .. } = error else { panic!("{error}") };
        assert_eq!(cause.kind(), CauseKind::Interrupted);
        let row = task(&retry, id).await;
        assert_eq!((row.locked_by, row.send_count, row.crash_count), (None, 0, 0));
    }
}

contract!(
    many_calls_are_stored_in_their_order,
    all_are_stored_or_none,
    taken_keys_are_answered_one_by_one,
    a_taken_id_spoils_no_batch,
    scheduled_calls_go_together_too,
    the_callers_transaction_decides,
    a_function_may_limit_its_attempts,
    a_limit_lets_its_own_calls_through,
    what_waits_for_its_limit_can_be_ended,
);
