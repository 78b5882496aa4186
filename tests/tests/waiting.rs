//! Tasks that wait for somebody, and ends that come from outside.

use std::sync::Arc;
use std::time::Duration;

use task_retry::{
    Builder, CallError, ErrorKind, Filter, ManualClock, Outcome, Status, TaskContext, TaskId,
    TaskRetry, retryable,
};
use task_retry_tests::{Gate, TestDb, becomes, contract, manual_clock, only_task, task, until};

const DEADLINE: Duration = Duration::from_secs(600);

/// Waits for somebody on its first attempt, and is done on its second.
#[retryable(source = 100)]
async fn pay(
    order: u32,
    #[state] gate: &Gate,
    #[context] ctx: &TaskContext,
) -> Result<Outcome<u32>, String> {
    gate.pass().await;
    match ctx.attempt() {
        1 => Ok(Outcome::Pending { deadline: DEADLINE }),
        _ => Ok(Outcome::Done(order)),
    }
}

#[retryable(source = 101)]
async fn never(deadline: Duration) -> Result<Outcome<()>, String> {
    Ok(Outcome::Pending { deadline })
}

#[retryable(source = 102)]
async fn fails(#[state] gate: &Gate) -> Result<(), String> {
    gate.pass().await;
    Err("never".into())
}

fn builder(db: &TestDb) -> (Builder, ManualClock, Arc<Gate>) {
    let (clock, gate) = (manual_clock(), Arc::new(Gate::default()));
    (db.builder().clock(clock.clone()).shared_state(gate.clone()), clock, gate)
}

/// A task that waits for somebody.
async fn pending(retry: &TaskRetry, gate: &Gate) -> TaskId {
    let before = retry.tasks().list(Filter::all()).await.unwrap();
    gate.open(1);
    let outcome = pay(7).on(retry).await.unwrap();
    assert_eq!(outcome, Outcome::Pending { deadline: DEADLINE });
    let mut after = retry.tasks().list(Filter::all()).await.unwrap();
    after.retain(|task| before.iter().all(|old| old.id != task.id));
    assert_eq!(after.len(), 1);
    after[0].id
}

async fn a_task_waits_for_its_completion(db: Arc<TestDb>) {
    let (builder, clock, gate) = builder(&db);
    let retry = builder.start().await.unwrap();
    let id = pending(&retry, &gate).await;
    let row = task(&retry, id).await;
    assert_eq!((row.status, row.send_count, row.fence), (Status::Waiting, 0, 1));
    assert_eq!((row.next_send_time, row.locked_by), (Some(clock.now() + DEADLINE), None));
    assert_eq!(retry.run_due(None).await.unwrap().claimed, 0);
    retry.complete(id).await.unwrap();
    let row = task(&retry, id).await;
    assert_eq!((row.status, row.send_count, row.fence), (Status::Succeeded, 0, 2));
    assert_eq!((row.next_send_time, row.last_error), (None, None));
    assert_eq!(gate.came(), 1);
    retry.shutdown().await.unwrap();
}

async fn a_failure_from_outside_follows_the_policy(db: Arc<TestDb>) {
    let (builder, clock, gate) = builder(&db);
    let retry = builder.start().await.unwrap();
    let id = pending(&retry, &gate).await;
    retry.fail(id, "the bank\0 said no").await.unwrap();
    let row = task(&retry, id).await;
    assert_eq!((row.status, row.send_count, row.fence), (Status::Retrying, 1, 2));
    assert_eq!(row.next_send_time, Some(clock.now() + Duration::from_secs(5)));
    assert_eq!(row.last_error.as_deref(), Some("the bank\u{fffd} said no"));
    assert_eq!(row.locked_by, None);
    gate.open(1);
    clock.advance(Duration::from_secs(5));
    let row = becomes(&retry, id, Status::Succeeded).await;
    assert_eq!((row.send_count, row.fence), (1, 3));

    let id = pending(&retry, &gate).await;
    for count in 1..=4 {
        retry.fail(id, format!("no {count}")).await.unwrap();
        assert_eq!(task(&retry, id).await.status, Status::Retrying);
    }
    retry.fail(id, "no, no").await.unwrap();
    let row = task(&retry, id).await;
    assert_eq!((row.status, row.send_count, row.next_send_time), (Status::Failed, 5, None));
    assert_eq!(row.last_error.as_deref(), Some("no, no"));
    retry.shutdown().await.unwrap();
}

async fn nobody_came_in_time(db: Arc<TestDb>) {
    let (builder, clock, gate) = builder(&db);
    let retry = builder.job(false).start().await.unwrap();
    let id = pending(&retry, &gate).await;
    clock.advance(DEADLINE - Duration::from_millis(1));
    assert_eq!(retry.run_due(None).await.unwrap().claimed, 0);
    clock.advance(Duration::from_millis(1));
    let report = retry.run_due(None).await.unwrap();
    assert_eq!((report.claimed, report.retrying), (1, 1));
    let row = task(&retry, id).await;
    assert_eq!((row.status, row.send_count, row.crash_count), (Status::Retrying, 1, 0));
    assert_eq!(row.next_send_time, Some(clock.now() + Duration::from_secs(5)));
    assert!(row.last_error.unwrap().contains("before the deadline"));
    assert_eq!(gate.came(), 1, "it was not run for that");
    gate.open(1);
    clock.advance(Duration::from_secs(5));
    assert_eq!(retry.run_due(None).await.unwrap().succeeded, 1);
    assert_eq!((task(&retry, id).await.status, gate.came()), (Status::Succeeded, 2));

    // Without retries it is given up.
    never(DEADLINE).max_retry(0).on(&retry).await.unwrap();
    clock.advance(DEADLINE);
    assert_eq!(retry.run_due(None).await.unwrap().failed, 1);
    let [row] = &retry.tasks().list(Filter::all().source(101)).await.unwrap()[..] else {
        panic!("one")
    };
    assert_eq!((row.status, row.send_count, row.next_send_time), (Status::Failed, 1, None));
    retry.shutdown().await.unwrap();
}

async fn workers_find_what_waited_too_long(db: Arc<TestDb>) {
    let (builder, clock, gate) = builder(&db);
    let retry = builder.start().await.unwrap();
    let id = pending(&retry, &gate).await;
    clock.advance(DEADLINE);
    let row = becomes(&retry, id, Status::Retrying).await;
    assert_eq!((row.send_count, gate.came()), (1, 1));
    retry.shutdown().await.unwrap();
}

async fn any_deadline_can_be_stored(db: Arc<TestDb>) {
    let (builder, clock, _) = builder(&db);
    let retry = builder.job(false).start().await.unwrap();
    never(Duration::MAX).on(&retry).await.unwrap();
    let row = only_task(&retry).await;
    assert_eq!(row.status, Status::Waiting);
    assert!(row.next_send_time.unwrap() > clock.now() + Duration::from_secs(365 * 86_400));
    retry.tasks().purge(Filter::all()).await.unwrap();
    never(Duration::ZERO).on(&retry).await.unwrap();
    assert_eq!(retry.run_due(None).await.unwrap().retrying, 1);
    retry.shutdown().await.unwrap();
}

async fn what_has_ended_stays_as_it_is(db: Arc<TestDb>) {
    let (builder, _, gate) = builder(&db);
    let retry = builder.start().await.unwrap();
    let succeeded = pending(&retry, &gate).await;
    retry.complete(succeeded).await.unwrap();
    gate.open(1);
    let failed = fails().max_retry(0).on(&retry).await.unwrap_err().id().unwrap();
    let cancelled = pending(&retry, &gate).await;
    retry.tasks().cancel(Filter::ids([cancelled])).await.unwrap();
    for (id, status) in
        [(succeeded, Status::Succeeded), (failed, Status::Failed), (cancelled, Status::Cancelled)]
    {
        let before = task(&retry, id).await;
        assert_eq!(before.status, status);
        assert_eq!(retry.complete(id).await.unwrap_err().kind(), ErrorKind::Conflict);
        let error = retry.fail(id, "x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains(&status.to_string()), "{error}");
        assert_eq!(task(&retry, id).await, before);
    }
    let unknown = TaskId::from(1);
    assert_eq!(retry.complete(unknown).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(retry.fail(unknown, "x").await.unwrap_err().kind(), ErrorKind::NotFound);
    retry.shutdown().await.unwrap();
}

/// A call that stands at the gate.
async fn running(
    retry: &TaskRetry,
    gate: &Gate,
) -> (TaskId, tokio::task::JoinHandle<Result<(), CallError<String>>>) {
    let came = gate.came();
    let call = tokio::spawn(fails().on(retry).into_future());
    gate.wait_for(came + 1).await;
    let held = Filter::all().source(102).status(Status::Executing);
    let [task] = &retry.tasks().list(held).await.unwrap()[..] else { panic!("one runs") };
    (task.id, call)
}

async fn an_end_from_outside_beats_the_attempt(db: Arc<TestDb>) {
    let (builder, clock, gate) = builder(&db);
    // So long that no renewal notices before the attempt has ended.
    let retry = builder.lease_second(3600).start().await.unwrap();
    let (id, call) = running(&retry, &gate).await;
    retry.complete(id).await.unwrap();
    gate.open(1);
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Superseded { id: it } if it == id), "{error}");
    let row = task(&retry, id).await;
    assert_eq!((row.status, row.send_count, row.fence), (Status::Succeeded, 0, 2));
    assert_eq!((row.last_error, row.next_send_time, row.locked_by), (None, None, None));

    let (id, call) = running(&retry, &gate).await;
    retry.fail(id, "from outside").await.unwrap();
    gate.open(1);
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Superseded { .. }), "{error}");
    let row = task(&retry, id).await;
    assert_eq!((row.status, row.send_count, row.fence), (Status::Retrying, 1, 2));
    assert_eq!(row.last_error.as_deref(), Some("from outside"));
    assert_eq!(row.next_send_time, Some(clock.now() + Duration::from_secs(5)));
    retry.shutdown().await.unwrap();
}

async fn an_attempt_that_was_ended_from_outside_is_stopped(db: Arc<TestDb>) {
    let (builder, _, gate) = builder(&db);
    let retry = builder.start().await.unwrap();
    let (id, call) = running(&retry, &gate).await;
    retry.complete(id).await.unwrap();
    // Nobody opens the gate: its lease tells, and its future is dropped.
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Superseded { .. }), "{error}");
    assert_eq!(task(&retry, id).await.status, Status::Succeeded);
    retry.shutdown().await.unwrap();
}

async fn a_retry_replaces_the_attempt_that_still_runs(db: Arc<TestDb>) {
    let (builder, _, gate) = builder(&db);
    // No renewal tells the old attempt; the new one does.
    let retry = builder.lease_second(3600).first_execute_second(0).start().await.unwrap();
    let (id, call) = running(&retry, &gate).await;
    retry.fail(id, "from outside").await.unwrap();
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Superseded { .. }), "{error}");
    gate.wait_for(2).await;
    let row = task(&retry, id).await;
    assert_eq!((row.status, row.send_count, row.crash_count), (Status::Retrying, 1, 0));
    assert_eq!((row.fence, row.locked_by.as_deref()), (3, Some(retry.worker_id())));
    gate.open(1);
    until("it is put back", async || task(&retry, id).await.locked_by.is_none()).await;
    let row = task(&retry, id).await;
    assert_eq!((row.status, row.send_count, row.crash_count), (Status::Retrying, 2, 0));
    assert_eq!(row.last_error.as_deref(), Some("never"));
    retry.shutdown().await.unwrap();
}

async fn what_has_not_run_yet_can_be_ended(db: Arc<TestDb>) {
    let (builder, clock, gate) = builder(&db);
    let retry = builder.start().await.unwrap();
    let hour = Duration::from_secs(3600);
    let scheduled = pay(1).delay(hour).on(&retry).enqueue().await.unwrap().id();
    gate.open(1);
    let retrying = fails().on(&retry).await.unwrap_err().id().unwrap();
    for id in [scheduled, retrying] {
        let before = task(&retry, id).await;
        retry.complete(id).await.unwrap();
        let row = task(&retry, id).await;
        assert_eq!((row.status, row.fence), (Status::Succeeded, before.fence + 1));
        assert_eq!((row.send_count, row.next_send_time), (before.send_count, None));
    }
    let scheduled = pay(1).delay(hour).max_retry(0).on(&retry).enqueue().await.unwrap().id();
    retry.fail(scheduled, "not wanted").await.unwrap();
    assert_eq!(task(&retry, scheduled).await.status, Status::Failed);
    clock.advance(hour * 2);
    assert_eq!(retry.run_due(None).await.unwrap().claimed, 0);
    assert_eq!(gate.came(), 1);
    retry.shutdown().await.unwrap();
}

async fn many_ends_from_outside_are_one(db: Arc<TestDb>) {
    let (builder, _, gate) = builder(&db);
    let retry = builder.start().await.unwrap();
    let id = pending(&retry, &gate).await;
    let ends = (0..20).map(|n| {
        let retry = retry.clone();
        async move {
            if n % 2 == 0 { retry.complete(id).await } else { retry.fail(id, "no").await }
        }
    });
    let ends = futures_util::future::join_all(ends).await;
    // Failures may come first, each of them once; then at most one success, and it is the last.
    let completed = ends.iter().step_by(2).filter(|end| end.is_ok()).count();
    let failed = ends.iter().skip(1).step_by(2).filter(|end| end.is_ok()).count();
    let row = task(&retry, id).await;
    assert_eq!(row.send_count as usize, failed);
    assert_eq!(row.fence as usize, 1 + failed + completed);
    assert_eq!(completed, usize::from(row.status == Status::Succeeded));
    for error in ends.into_iter().filter_map(Result::err) {
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    }
    until("it has ended", async || task(&retry, id).await.status.is_final()).await;
    retry.shutdown().await.unwrap();
}

contract!(
    a_task_waits_for_its_completion,
    a_failure_from_outside_follows_the_policy,
    nobody_came_in_time,
    workers_find_what_waited_too_long,
    any_deadline_can_be_stored,
    what_has_ended_stays_as_it_is,
    an_end_from_outside_beats_the_attempt,
    an_attempt_that_was_ended_from_outside_is_stopped,
    a_retry_replaces_the_attempt_that_still_runs,
    what_has_not_run_yet_can_be_ended,
    many_ends_from_outside_are_one,
);
