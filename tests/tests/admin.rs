//! `retry.tasks()`: what people see of tasks, and do to them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use task_retry::{
    Builder, CallError, ErrorKind, Filter, ManualClock, Outcome, Status, Task, TaskId, TaskRetry,
    retryable,
};
use task_retry_tests::{Gate, TestDb, becomes, contract, manual_clock, only_task, task, until};

#[retryable(source = 100)]
async fn echo(text: &str, #[state] gate: &Gate) -> Result<String, String> {
    match text {
        "gate" => gate.pass().await,
        "fail" => return Err("it failed".into()),
        _ => {}
    }
    Ok(text.to_owned())
}

#[retryable(source = 101, name = "wait-for-it")]
async fn waits() -> Result<Outcome<()>, String> {
    Ok(Outcome::Pending { deadline: HOUR })
}

const HOUR: Duration = Duration::from_secs(3600);

fn builder(db: &TestDb) -> (Builder, ManualClock, Arc<Gate>) {
    let (clock, gate) = (manual_clock(), Arc::new(Gate::default()));
    (db.builder().clock(clock.clone()).shared_state(gate.clone()), clock, gate)
}

/// A task of each status that nobody holds.
struct Each {
    scheduled: TaskId,
    retrying: TaskId,
    failed: TaskId,
    succeeded: TaskId,
    cancelled: TaskId,
    waiting: TaskId,
}

impl Each {
    async fn make(retry: &TaskRetry) -> Self {
        let scheduled = echo("x").delay(HOUR).on(retry).enqueue().await.unwrap().id();
        let retrying = echo("fail").on(retry).await.unwrap_err().id().unwrap();
        let failed = echo("fail").max_retry(0).on(retry).await.unwrap_err().id().unwrap();
        let cancelled = echo("x").delay(HOUR).on(retry).enqueue().await.unwrap().id();
        retry.tasks().cancel(Filter::ids([cancelled])).await.unwrap();
        echo("done").topic("done").on(retry).await.unwrap();
        waits().topic("waiting").on(retry).await.unwrap();
        let named =
            async |topic: &str| retry.tasks().list(Filter::all().topic(topic)).await.unwrap()[0].id;
        let (succeeded, waiting) = (named("done").await, named("waiting").await);
        Self { scheduled, retrying, failed, succeeded, cancelled, waiting }
    }

    fn all(&self) -> [TaskId; 6] {
        let Self { scheduled, retrying, failed, succeeded, cancelled, waiting } = *self;
        [scheduled, retrying, failed, succeeded, cancelled, waiting]
    }
}

async fn statuses(retry: &TaskRetry, each: &Each) -> Vec<Status> {
    let mut statuses = Vec::new();
    for id in each.all() {
        statuses.push(task(retry, id).await.status);
    }
    statuses
}

async fn fences(retry: &TaskRetry, each: &Each) -> Vec<i64> {
    let mut fences = Vec::new();
    for id in each.all() {
        fences.push(task(retry, id).await.fence);
    }
    fences
}

async fn tasks_are_found_by_what_is_known_of_them(db: Arc<TestDb>) {
    let (builder, clock, _) = builder(&db);
    let retry = builder.job(false).start().await.unwrap();
    let each = Each::make(&retry).await;
    let submitted = Task::new(100).key("order-7").unique_key("only").topic("t-1");
    let submitted = submitted.context(r#"{"text":"x"}"#).delay(HOUR);
    let submitted = retry.submit(submitted).await.unwrap().id();
    clock.advance(HOUR);
    let late = echo("late").delay(HOUR).on(&retry).enqueue().await.unwrap().id();
    let now = clock.now();
    let ago = |time: Duration| now - time;
    for (what, filter, found) in [
        ("ids", Filter::ids([each.failed, late, TaskId::from(1)]), vec![each.failed, late]),
        ("no ids", Filter::ids([]), vec![]),
        ("source", Filter::all().source(101), vec![each.waiting]),
        ("no source", Filter::all().source(7), vec![]),
        ("status", Filter::all().status(Status::Cancelled), vec![each.cancelled]),
        (
            "statuses",
            Filter::all().status(Status::Failed).status(Status::Retrying),
            vec![each.failed, each.retrying],
        ),
        ("name", Filter::all().name("wait-for-it"), vec![each.waiting]),
        ("key", Filter::all().key("order-7"), vec![submitted]),
        ("unique key", Filter::all().unique_key("only"), vec![submitted]),
        ("topic", Filter::all().topic("t-1"), vec![submitted]),
        ("another topic", Filter::all().topic("T-1"), vec![]),
        ("created after", Filter::all().created_after(now), vec![late]),
        ("created before", Filter::all().created_before(ago(HOUR)), vec![]),
        ("both", Filter::all().source(100).topic("waiting"), vec![]),
    ] {
        assert_eq!(
            retry.tasks().count(filter.clone()).await.unwrap(),
            found.len() as u64,
            "{what}"
        );
        let listed = retry.tasks().list(filter).await.unwrap();
        let listed: BTreeSet<_> = listed.into_iter().map(|task| task.id).collect();
        assert_eq!(listed, found.into_iter().collect(), "{what}");
    }
    assert_eq!(retry.tasks().count(Filter::all().created_before(now)).await.unwrap(), 7);
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 8);
    assert_eq!(retry.tasks().get(TaskId::from(1)).await.unwrap(), None);
    retry.shutdown().await.unwrap();
}

async fn lists_come_in_pages(db: Arc<TestDb>) {
    let (builder, ..) = builder(&db);
    let retry = builder.job(false).start().await.unwrap();
    let calls = (0..25).map(|n| echo("x").key(n.to_string()).on(&retry).enqueue());
    let stored: BTreeSet<_> =
        join_all(calls).await.into_iter().map(|stored| stored.unwrap().id()).collect();
    let mut listed = Vec::new();
    let mut filter = Filter::all().limit(10);
    for length in [10, 10, 5, 0] {
        let page = retry.tasks().list(filter.clone()).await.unwrap();
        assert_eq!(page.len(), length);
        listed.extend(page.into_iter().map(|task| task.id));
        filter = filter.after(*listed.last().unwrap());
    }
    assert_eq!(listed, stored.into_iter().collect::<Vec<_>>(), "each once, the smallest id first");
    assert_eq!(retry.tasks().count(Filter::all().limit(10)).await.unwrap(), 25);
    assert_eq!(retry.tasks().list(Filter::all().limit(0)).await.unwrap().len(), 0);
    retry.shutdown().await.unwrap();
}

async fn retry_now_starts_what_has_failed_anew(db: Arc<TestDb>) {
    let (builder, clock, _) = builder(&db);
    let retry = builder.job(false).start().await.unwrap();
    let each = Each::make(&retry).await;
    let before = fences(&retry, &each).await;
    clock.advance(Duration::from_secs(1));
    let changed = retry.tasks().retry_now(Filter::all()).await.unwrap();
    assert_eq!((changed.changed, changed.leased), (3, vec![]));
    for id in [each.retrying, each.failed, each.cancelled] {
        let row = task(&retry, id).await;
        assert_eq!((row.status, row.send_count, row.crash_count), (Status::Executing, 0, 0));
        assert_eq!((row.next_send_time, row.locked_by), (Some(clock.now()), None));
    }
    let grown: Vec<_> =
        fences(&retry, &each).await.iter().zip(&before).map(|(new, old)| new - old).collect();
    assert_eq!(grown, [0, 1, 1, 0, 1, 0]);
    let report = retry.run_due(None).await.unwrap();
    assert_eq!((report.claimed, report.succeeded), (3, 1));
    assert_eq!((report.retrying, report.failed), (1, 1), "each with its own retries");
    retry.shutdown().await.unwrap();
}

async fn workers_take_up_what_is_retried_now(db: Arc<TestDb>) {
    let (builder, _, gate) = builder(&db);
    let retry = builder.poll_interval_ms(3_600_000).start().await.unwrap();
    let id = echo("gate").delay(HOUR).on(&retry).enqueue().await.unwrap().id();
    retry.tasks().cancel(Filter::ids([id])).await.unwrap();
    retry.tasks().retry_now(Filter::ids([id])).await.unwrap();
    gate.open(1);
    becomes(&retry, id, Status::Succeeded).await;
    retry.shutdown().await.unwrap();
}

async fn cancelling_ends_what_is_open(db: Arc<TestDb>) {
    let (builder, clock, _) = builder(&db);
    let retry = builder.job(false).start().await.unwrap();
    let each = Each::make(&retry).await;
    let before = fences(&retry, &each).await;
    let changed = retry.tasks().cancel(Filter::all()).await.unwrap();
    assert_eq!((changed.changed, changed.leased), (3, vec![]));
    let (failed, succeeded, cancelled) = (Status::Failed, Status::Succeeded, Status::Cancelled);
    assert_eq!(
        statuses(&retry, &each).await,
        [cancelled, cancelled, failed, succeeded, cancelled, cancelled]
    );
    let grown: Vec<_> =
        fences(&retry, &each).await.iter().zip(&before).map(|(new, old)| new - old).collect();
    assert_eq!(grown, [1, 1, 0, 0, 0, 1]);
    for id in [each.scheduled, each.retrying, each.waiting] {
        let row = task(&retry, id).await;
        assert_eq!((row.next_send_time, row.locked_by), (None, None));
    }
    clock.advance(HOUR * 2);
    assert_eq!(retry.run_due(None).await.unwrap().claimed, 0);
    retry.shutdown().await.unwrap();
}

async fn a_cancelled_attempt_writes_nothing(db: Arc<TestDb>) {
    let (builder, _, gate) = builder(&db);
    let retry = builder.lease_second(3600).start().await.unwrap();
    let call = tokio::spawn(echo("gate").key("k").on(&retry).into_future());
    gate.wait_for(1).await;
    let id = only_task(&retry).await.id;
    assert_eq!(retry.tasks().cancel(Filter::all()).await.unwrap().changed, 1);
    assert_eq!(retry.tasks().cancel(Filter::all()).await.unwrap().changed, 0);
    // Its key is free, also while the attempt still runs.
    assert!(echo("x").key("k").on(&retry).enqueue().await.unwrap().is_new());
    gate.open(1);
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Superseded { id: it } if it == id), "{error}");
    let row = task(&retry, id).await;
    assert_eq!((row.status, row.fence, row.unique_key), (Status::Cancelled, 2, None));
    retry.shutdown().await.unwrap();
}

async fn a_cancelled_attempt_is_stopped(db: Arc<TestDb>) {
    let (builder, _, gate) = builder(&db);
    let retry = builder.start().await.unwrap();
    let awaited = tokio::spawn(echo("gate").on(&retry).into_future());
    echo("gate").on(&retry).enqueue().await.unwrap();
    gate.wait_for(2).await;
    assert_eq!(retry.tasks().cancel(Filter::all()).await.unwrap().changed, 2);
    // Nobody opens the gate.
    let error = awaited.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Superseded { .. }), "{error}");
    let cancelled = Filter::all().status(Status::Cancelled);
    assert_eq!(retry.tasks().count(cancelled).await.unwrap(), 2);
    retry.shutdown().await.unwrap();
}

async fn live_leases_are_skipped_and_reported(db: Arc<TestDb>) {
    let (builder, clock, gate) = builder(&db);
    let retry = builder.lease_second(3600).start().await.unwrap();
    // One that runs its first attempt, one that runs a retry, and one whose process has died.
    let first = echo("gate").on(&retry).enqueue().await.unwrap().id();
    let second = echo("gate").delay(HOUR).on(&retry).enqueue().await.unwrap().id();
    retry.fail(second, "once").await.unwrap();
    clock.advance(Duration::from_secs(5));
    gate.wait_for(2).await;
    let dead = echo("x").delay(HOUR).on(&retry).enqueue().await.unwrap().id();
    retry.fail(dead, "once").await.unwrap();
    db.execute(&format!(
        "update t_sys_mq_resend_log set locked_by = 'dead', next_send_time = '2026-03-01 11:00:00' \
         where id = {dead}"
    ))
    .await;
    let before = task(&retry, second).await;
    let changed = retry.tasks().retry_now(Filter::ids([first, second])).await.unwrap();
    assert_eq!((changed.changed, changed.leased), (0, vec![second]));
    let changed = retry.tasks().purge(Filter::ids([first, second])).await.unwrap();
    let leased: BTreeSet<_> = changed.leased.into_iter().collect();
    assert_eq!((changed.changed, leased), (0, BTreeSet::from([first, second])));
    assert_eq!(task(&retry, second).await, before);
    for id in [first, second] {
        let error = retry.tasks().edit_context(id, r#"{"text":"y"}"#).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
    gate.open(2);
    for id in [first, second, dead] {
        becomes(&retry, id, Status::Succeeded).await;
    }
    retry.shutdown().await.unwrap();
}

async fn purging_deletes_in_any_status(db: Arc<TestDb>) {
    let (builder, ..) = builder(&db);
    let retry = builder.job(false).start().await.unwrap();
    let each = Each::make(&retry).await;
    let changed = retry.tasks().purge(Filter::ids([each.failed])).await.unwrap();
    assert_eq!((changed.changed, changed.leased), (1, vec![]));
    assert_eq!(retry.tasks().get(each.failed).await.unwrap(), None);
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 5);
    assert_eq!(retry.tasks().purge(Filter::all()).await.unwrap().changed, 5);
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 0);
    retry.shutdown().await.unwrap();
}

async fn a_context_can_be_mended(db: Arc<TestDb>) {
    let (builder, clock, gate) = builder(&db);
    let retry = builder.job(false).start().await.unwrap();
    let each = Each::make(&retry).await;
    for bad in
        ["", "garbage", "{}", r#"{"text":1}"#, &format!(r#"{{"text":"{}"}}"#, "x".repeat(16 << 20))]
    {
        let error = retry.tasks().edit_context(each.retrying, bad).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Context);
    }
    let before = task(&retry, each.retrying).await;
    retry.tasks().edit_context(each.retrying, r#"{"text":"mended"}"#).await.unwrap();
    let row = task(&retry, each.retrying).await;
    assert_eq!(row.context.as_deref(), Some(r#"{"text":"mended"}"#));
    assert_eq!((row.fence, row.status), (before.fence + 1, before.status));
    assert_eq!(row.next_send_time, before.next_send_time);
    clock.advance(Duration::from_secs(5));
    assert_eq!(retry.run_due(None).await.unwrap().succeeded, 1);
    let unknown = retry.tasks().edit_context(TaskId::from(1), "{}").await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    db.execute(
        "insert into t_sys_mq_resend_log (id, project_name, source) values (2, 'test', 999)",
    )
    .await;
    let stranger = retry.tasks().edit_context(TaskId::from(2), "{}").await.unwrap_err();
    assert_eq!(stranger.kind(), ErrorKind::Registry);
    assert_eq!(gate.came(), 0);
    retry.shutdown().await.unwrap();
}

async fn changes_reach_as_many_as_the_filter_says(db: Arc<TestDb>) {
    let (builder, ..) = builder(&db);
    let retry = builder.job(false).start().await.unwrap();
    let calls = (0..1203).map(|_| echo("x").delay(HOUR).on(&retry).enqueue());
    let stored: BTreeSet<_> =
        join_all(calls).await.into_iter().map(|stored| stored.unwrap().id()).collect();
    assert_eq!(
        retry.tasks().list(Filter::all()).await.unwrap().len(),
        1000,
        "unless told otherwise"
    );
    let some = Filter::all().limit(701);
    assert_eq!(retry.tasks().cancel(some.clone()).await.unwrap().changed, 701);
    let cancelled = Filter::all().status(Status::Cancelled);
    let rows = retry.tasks().list(cancelled.clone()).await.unwrap();
    assert!(rows.iter().map(|task| task.id).eq(stored.iter().take(701).copied()));
    assert_eq!(retry.tasks().cancel(Filter::all()).await.unwrap().changed, 502);
    assert_eq!(retry.tasks().retry_now(cancelled).await.unwrap().changed, 1203);
    assert_eq!(retry.tasks().purge(some).await.unwrap().changed, 701);
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 502);
    retry.shutdown().await.unwrap();
}

async fn stranded_rows_run_when_they_are_adopted(db: Arc<TestDb>) {
    let (builder, clock, _) = builder(&db);
    let retry = builder.start().await.unwrap();
    for (id, created) in [(1, "2026-03-01 10:00:00"), (2, "2026-03-01 11:59:59")] {
        db.execute(&format!(
            "insert into t_sys_mq_resend_log (id, project_name, source, context, create_time) \
             values ({id}, 'test', 100, '{{\"text\":\"x\"}}', '{created}')"
        ))
        .await;
    }
    retry.kick();
    clock.advance(HOUR);
    assert_eq!(retry.run_due(None).await.unwrap().claimed, 0, "they are never claimed");
    let old = Filter::stranded(HOUR * 2);
    assert_eq!(retry.tasks().count(old.clone()).await.unwrap(), 1);
    assert_eq!(retry.tasks().retry_now(old).await.unwrap().changed, 1);
    becomes(&retry, 1.into(), Status::Succeeded).await;
    let young = task(&retry, 2.into()).await;
    assert_eq!((young.status, young.fence), (Status::Executing, 0));
    assert_eq!(retry.tasks().retry_now(Filter::all()).await.unwrap().changed, 1);
    until("both ran", async || {
        retry.tasks().count(Filter::all().status(Status::Succeeded)).await.unwrap() == 2
    })
    .await;
    retry.shutdown().await.unwrap();
    assert_eq!(retry.tasks().cancel(Filter::all()).await.unwrap_err().kind(), ErrorKind::Closed);
}

contract!(
    tasks_are_found_by_what_is_known_of_them,
    lists_come_in_pages,
    retry_now_starts_what_has_failed_anew,
    workers_take_up_what_is_retried_now,
    cancelling_ends_what_is_open,
    a_cancelled_attempt_writes_nothing,
    a_cancelled_attempt_is_stopped,
    live_leases_are_skipped_and_reported,
    purging_deletes_in_any_status,
    a_context_can_be_mended,
    changes_reach_as_many_as_the_filter_says,
    stranded_rows_run_when_they_are_adopted,
);
