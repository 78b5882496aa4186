//! Awaited calls: what comes back, when they run, and in which runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use task_retry::{
    Builder, CallError, CauseKind, ErrorKind, Filter, Status, TaskContext, TaskRetry, retryable,
};
use task_retry_tests::{
    Gate, TestDb, becomes, contract, manual_clock, only_task, poll_once, task, until,
};

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

/// Waits at the gate.
#[retryable(source = 101)]
async fn waits(number: u64, #[state] gate: &Gate) -> Result<u64, String> {
    gate.pass().await;
    Ok(number)
}

/// Calls others, by whatever runtime runs it.
#[retryable(source = 102)]
async fn sum(numbers: &[u64]) -> Result<u64, CallError<String>> {
    let parts = join_all(numbers.iter().map(|number| half(*number))).await;
    parts.into_iter().sum()
}

/// Called by others.
#[retryable(source = 103)]
async fn half(number: u64) -> Result<u64, String> {
    Ok(number / 2)
}

/// Tells whether it holds its task, before and behind the gate.
#[retryable(source = 105)]
async fn holds(#[context] ctx: &TaskContext, #[state] gate: &Gate) -> Result<(bool, bool), String> {
    let before = ctx.holds();
    gate.pass().await;
    Ok((before, ctx.holds()))
}

/// Tells what an attempt sees of itself.
#[retryable(source = 104)]
async fn look(#[context] ctx: &TaskContext) -> Result<(i64, u32, String), String> {
    let project = ctx.task().project_name.clone();
    match ctx.attempt() {
        1 => Err(format!("{} in {project}", ctx.id())),
        attempt => Ok((ctx.id().get(), attempt, project)),
    }
}

fn builder(db: &TestDb, failures: u32) -> Builder {
    db.builder().state(Flaky { failures, ..Flaky::default() }).state(Gate::default())
}

async fn start(db: &TestDb, failures: u32) -> TaskRetry {
    builder(db, failures).first_execute_second(0).start().await.unwrap()
}

async fn an_awaited_call_gives_its_value(db: Arc<TestDb>) {
    let retry = start(&db, 0).await;
    assert_eq!(double(21, "it is").on(&retry).await.unwrap(), "it is 42");
    let task = only_task(&retry).await;
    assert_eq!((task.status, task.send_count, task.fence), (Status::Succeeded, 0, 1));
    assert_eq!((task.next_send_time, task.locked_by.as_deref()), (None, None));
    assert_eq!((task.project_name.as_str(), task.source), ("test", 100));
    assert_eq!((task.task_name.as_deref(), task.last_error.as_deref()), (Some("double"), None));
    assert_eq!(task.context.as_deref(), Some(r#"{"number":21,"text":"it is"}"#));
    retry.shutdown().await.unwrap();
}

async fn a_failed_call_is_retried_until_it_succeeds(db: Arc<TestDb>) {
    let retry = start(&db, 1).await;
    let error = double(1, "tea").on(&retry).await.unwrap_err();
    let CallError::Deferred { id, cause, .. } = error else { panic!("{error}") };
    assert_eq!(cause.error().unwrap(), "tea is not ready");
    let task = becomes(&retry, id, Status::Succeeded).await;
    assert_eq!((task.send_count, task.last_error.as_deref()), (1, Some("tea is not ready")));
    retry.shutdown().await.unwrap();
}

async fn a_deferred_call_tells_id_cause_and_time(db: Arc<TestDb>) {
    let clock = manual_clock();
    let retry = builder(&db, 1).clock(clock.clone()).start().await.unwrap();
    let error = double(1, "tea").on(&retry).await.unwrap_err();
    assert!(error.is_deferred());
    let task = only_task(&retry).await;
    assert_eq!(error.id(), Some(task.id));
    assert_eq!((task.status, task.send_count), (Status::Retrying, 1));
    assert_eq!((task.create_time, task.update_time), (clock.now(), clock.now()));
    assert_eq!((task.locked_by.as_deref(), task.fence, task.crash_count), (None, 1, 0));
    assert_eq!(
        error.to_string(),
        format!(
            "task {} failed and will be retried at 2026-03-01 12:00:05 UTC: tea is not ready",
            task.id
        )
    );
    let CallError::Deferred { id, cause, retry_at } = error else { panic!("{error}") };
    assert_eq!((id, cause.kind()), (task.id, CauseKind::Error));
    assert_eq!(retry_at, clock.now() + Duration::from_secs(5));
    assert_eq!(task.next_send_time, Some(retry_at));
    assert_eq!(cause.into_error().as_deref(), Some("tea is not ready"));
    retry.shutdown().await.unwrap();
}

async fn a_call_fails_for_good_when_its_retries_are_used_up(db: Arc<TestDb>) {
    let retry = start(&db, 2).await;
    let error = double(1, "tea").max_retry(0).on(&retry).await.unwrap_err();
    let CallError::Failed { id, cause } = error else { panic!("{error}") };
    assert_eq!(
        (cause.kind(), cause.error().unwrap().as_str()),
        (CauseKind::Error, "tea is not ready")
    );
    let row = task(&retry, id).await;
    assert_eq!((row.status, row.send_count, row.max_retry), (Status::Failed, 1, Some(0)));
    assert_eq!((row.next_send_time, row.locked_by.as_deref()), (None, None));
    assert_eq!(row.last_error.as_deref(), Some("tea is not ready"));
    let error = double(1, "tea").max_retry(0).on(&retry).accepted().await.unwrap_err();
    assert!(matches!(error, CallError::Failed { .. }), "{error}");
    retry.shutdown().await.unwrap();
}

async fn accepted_takes_a_retry_for_an_answer(db: Arc<TestDb>) {
    let retry = start(&db, 1).await;
    assert_eq!(double(1, "tea").on(&retry).accepted().await.unwrap(), None);
    becomes(&retry, only_task(&retry).await.id, Status::Succeeded).await;
    let value = double(1, "tea").on(&retry).accepted().await.unwrap();
    assert_eq!(value.as_deref(), Some("tea 2"));
    retry.shutdown().await.unwrap();
}

async fn question_marks_go_into_boxed_errors(db: Arc<TestDb>) {
    async fn order(retry: &TaskRetry) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        double(1, "tea").max_retry(0).on(retry).enqueue().await?;
        Ok(double(1, "tea").max_retry(0).on(retry).await?)
    }
    let retry = start(&db, u32::MAX).await;
    let error = order(&retry).await.unwrap_err();
    assert!(error.is::<CallError<String>>());
    assert!(error.to_string().ends_with("failed for good: tea is not ready"), "{error}");
    retry.shutdown().await.unwrap();
}

async fn a_call_that_is_not_polled_leaves_nothing(db: Arc<TestDb>) {
    let flaky = Arc::new(Flaky::default());
    let retry =
        db.builder().shared_state(flaky.clone()).state(Gate::default()).start().await.unwrap();
    drop(double(1, "a").on(&retry));
    drop(double(1, "a").on(&retry).enqueue());
    drop(double(1, "a").on(&retry).accepted());
    assert_eq!(double(2, "b").on(&retry).await.unwrap(), "b 4");
    assert_eq!(only_task(&retry).await.context.as_deref(), Some(r#"{"number":2,"text":"b"}"#));
    retry.shutdown().await.unwrap();
    assert_eq!(flaky.runs.load(Ordering::SeqCst), 1);
}

async fn a_caller_that_goes_away_does_not_stop_the_attempt(db: Arc<TestDb>) {
    let gate = Arc::new(Gate::default());
    let retry =
        db.builder().state(Flaky::default()).shared_state(gate.clone()).start().await.unwrap();
    // Away while it is being stored, ...
    let mut call = waits(1).on(&retry);
    poll_once(&mut call).await;
    drop(call);
    gate.wait_for(1).await;
    // ... while it runs, ...
    let call = tokio::spawn(waits(2).on(&retry).into_future());
    gate.wait_for(2).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    // ... and while it waits to be enqueued.
    let mut enqueued = Box::pin(waits(3).on(&retry).enqueue());
    poll_once(&mut enqueued).await;
    drop(enqueued);
    gate.wait_for(3).await;
    gate.open(3);
    until("all succeed", async || {
        let succeeded = Filter::all().status(Status::Succeeded);
        retry.tasks().count(succeeded).await.unwrap() == 3
    })
    .await;
    for task in retry.tasks().list(Filter::all()).await.unwrap() {
        assert_eq!((task.fence, task.send_count, task.crash_count), (1, 0, 0), "one attempt");
    }
    assert_eq!(gate.came(), 3);
    retry.shutdown().await.unwrap();
}

async fn a_task_runs_whose_caller_never_looks_at_its_answer(db: Arc<TestDb>) {
    let retry = start(&db, 0).await;
    // By the lanes of rows with keys and of others.
    let mut calls =
        [half(2).on(&retry), half(4).on(&retry).key("four")].map(|call| Box::pin(call.enqueue()));
    for (call, runs) in calls.iter_mut().zip(1..) {
        poll_once(call).await;
        until("it runs", async || {
            retry.tasks().count(Filter::all().status(Status::Succeeded)).await.unwrap() == runs
        })
        .await;
    }
    for call in calls {
        assert!(call.await.unwrap().is_new());
    }
    retry.shutdown().await.unwrap();
}

async fn a_call_that_was_polled_cannot_be_enqueued_as_well(db: Arc<TestDb>) {
    let retry = start(&db, 0).await;
    let mut call = half(2).on(&retry);
    poll_once(&mut call).await;
    assert_eq!(call.enqueue().await.unwrap_err().kind(), ErrorKind::Conflict);
    until("it runs once", async || {
        retry.tasks().count(Filter::all().status(Status::Succeeded)).await.unwrap() == 1
    })
    .await;
    only_task(&retry).await;
    retry.shutdown().await.unwrap();
}

async fn calls_join_race_and_move_into_tasks(db: Arc<TestDb>) {
    let retry = start(&db, 0).await;
    let (a, b) = tokio::join!(double(1, "a").on(&retry), half(8).on(&retry));
    assert_eq!((a.unwrap().as_str(), b.unwrap()), ("a 2", 4));
    let spawned = tokio::spawn(half(6).on(&retry).into_future());
    assert_eq!(spawned.await.unwrap().unwrap(), 3);
    let raced = tokio::select! {
        number = waits(1).on(&retry) => number.unwrap(),
        number = half(10).on(&retry) => number.unwrap(),
    };
    assert_eq!(raced, 5);
    // The loser of the race was polled, so it is stored, and goes on.
    until("both are there", async || retry.tasks().count(Filter::all()).await.unwrap() == 5).await;
    retry.tasks().cancel(Filter::all().source(101)).await.unwrap();
    retry.shutdown().await.unwrap();
}

async fn nested_calls_need_no_places(db: Arc<TestDb>) {
    let mut pool = task_retry::Config::default().thread_pool_param;
    (pool.max_pool_size, pool.queue_capacity) = (1, 1);
    let retry = builder(&db, 0).thread_pool_param(pool).start().await.unwrap();
    let sums = join_all((0..200).map(|n| async move { sum(&[n * 2, 2, 4]).await }));
    let sums = retry.scope(sums).await;
    for (n, sum) in (0..).zip(sums) {
        assert_eq!(sum.unwrap(), n + 3);
    }
    // From a worker's only place too.
    for n in 0..5 {
        sum(&[n, n]).on(&retry).enqueue().await.unwrap();
    }
    let succeeded = Filter::all().status(Status::Succeeded);
    until("all succeed", async || retry.tasks().count(succeeded.clone()).await.unwrap() == 815)
        .await;
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 815);
    retry.shutdown().await.unwrap();
}

async fn a_body_sees_its_task_and_its_runtime(db: Arc<TestDb>) {
    let retry = start(&db, 0).await;
    let other = builder(&db, 0).project("other").start().await.unwrap();
    // A scope chooses a runtime, `on` beats it, and a body's own calls go where it runs.
    other.scope(async { half(2).await.unwrap() }).await;
    assert_eq!(other.tasks().count(Filter::all()).await.unwrap(), 1);
    other.scope(async { sum(&[4, 6]).on(&retry).await.unwrap() }).await;
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 3);
    assert_eq!(other.tasks().count(Filter::all()).await.unwrap(), 1);
    assert_eq!(
        other.scope(async { TaskRetry::current().unwrap().worker_id().to_owned() }).await,
        other.worker_id()
    );
    let error = other.scope(look()).await.unwrap_err();
    let CallError::Deferred { id, cause, .. } = error else { panic!("{error}") };
    assert_eq!(cause.error().unwrap(), &format!("{id} in other"));
    other.shutdown().await.unwrap();
    retry.shutdown().await.unwrap();
}

async fn without_a_runtime_nothing_is_stored(db: Arc<TestDb>) {
    let error = half(1).await.unwrap_err();
    assert_eq!(error.id(), None);
    let CallError::Rejected(error) = error else { panic!("{error}") };
    assert_eq!(error.kind(), ErrorKind::NotStarted);
    assert_eq!(half(1).enqueue().await.unwrap_err().kind(), ErrorKind::NotStarted);
    assert_eq!(TaskRetry::current().unwrap_err().kind(), ErrorKind::NotStarted);
    // Outside of the scope, and in tasks that it spawned, there is none either.
    let retry = start(&db, 0).await;
    let spawned = retry.scope(async { tokio::spawn(half(1).into_future()).await.unwrap() }).await;
    let CallError::Rejected(error) = spawned.unwrap_err() else { panic!("not rejected") };
    assert_eq!(error.kind(), ErrorKind::NotStarted);
    // One that has shut down is closed.
    retry.shutdown().await.unwrap();
    let CallError::Rejected(error) = half(1).on(&retry).await.unwrap_err() else {
        panic!("not rejected")
    };
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(half(1).on(&retry).enqueue().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 0);
}

async fn a_function_that_was_left_out_is_refused(db: Arc<TestDb>) {
    let retry = db.builder().only::<(half,)>().only::<(sum,)>().start().await.unwrap();
    assert_eq!(sum(&[2, 2]).on(&retry).await.unwrap(), 2);
    let error = waits(1).on(&retry).enqueue().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.to_string().contains("`waits`"), "{error}");
    assert!(error.to_string().contains("calls.rs:"), "{error}");
    retry.shutdown().await.unwrap();
}

#[tokio::test]
async fn direct_is_the_body_alone() {
    assert_eq!(half::direct(8).await, Ok(4));
    let flaky = Flaky { failures: 1, ..Flaky::default() };
    assert_eq!(double::direct(1, "a", &flaky).await, Err("a is not ready".to_owned()));
    assert_eq!(double::direct(1, "a", &flaky).await, Ok("a 2".to_owned()));
}

async fn an_attempt_knows_whether_it_holds_its_task(db: Arc<TestDb>) {
    let clock = manual_clock();
    let gate = Arc::new(Gate::default());
    // Long, so that no renewal comes between.
    let builder = db.builder().clock(clock.clone()).lease_second(120).shared_state(gate.clone());
    let retry = builder.only::<(holds,)>().start().await.unwrap();
    gate.open(1);
    assert_eq!(holds().on(&retry).await.unwrap(), (true, true));
    let call = tokio::spawn(holds().on(&retry).into_future());
    gate.wait_for(2).await;
    clock.advance(Duration::from_secs(120));
    gate.open(1);
    // Nobody has taken it over, so its end counts all the same.
    assert_eq!(call.await.unwrap().unwrap(), (true, false));
    retry.shutdown().await.unwrap();

    let builder = db.builder().enable(false).shared_state(gate.clone()).only::<(holds,)>();
    let retry = builder.start().await.unwrap();
    gate.open(1);
    assert_eq!(holds().on(&retry).await.unwrap(), (true, true), "there is no lease to lose");
    retry.shutdown().await.unwrap();
}

contract!(
    an_attempt_knows_whether_it_holds_its_task,
    an_awaited_call_gives_its_value,
    a_failed_call_is_retried_until_it_succeeds,
    a_deferred_call_tells_id_cause_and_time,
    a_call_fails_for_good_when_its_retries_are_used_up,
    accepted_takes_a_retry_for_an_answer,
    question_marks_go_into_boxed_errors,
    a_call_that_is_not_polled_leaves_nothing,
    a_caller_that_goes_away_does_not_stop_the_attempt,
    a_task_runs_whose_caller_never_looks_at_its_answer,
    a_call_that_was_polled_cannot_be_enqueued_as_well,
    calls_join_race_and_move_into_tasks,
    nested_calls_need_no_places,
    a_body_sees_its_task_and_its_runtime,
    without_a_runtime_nothing_is_stored,
    a_function_that_was_left_out_is_refused,
);
