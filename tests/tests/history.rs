//! The jobs that may be scheduled from outside, and projects that share a table.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use task_retry::{Builder, ErrorKind, Filter, ManualClock, Status, TaskId, TaskRetry, retryable};
use task_retry_tests::{Gate, TestDb, becomes, contract, manual_clock, only_task, task};

/// Fails as often as it is told, then succeeds.
#[derive(Default)]
struct Flaky {
    failures: AtomicU32,
    runs: AtomicU32,
}

#[retryable(source = 100, first_execute = "1ms", max_retry = 2)]
async fn flaky(#[state] flaky: &Flaky) -> Result<(), String> {
    flaky.runs.fetch_add(1, Ordering::SeqCst);
    let left = flaky.failures.load(Ordering::SeqCst);
    if left == 0 {
        return Ok(());
    }
    flaky.failures.fetch_sub(1, Ordering::SeqCst);
    Err("not yet".into())
}

#[retryable(source = 101)]
async fn waits(#[state] gate: &Gate) -> Result<(), String> {
    gate.pass().await;
    Ok(())
}

const DAY: Duration = Duration::from_secs(86_400);

struct Test {
    clock: ManualClock,
    flaky: Arc<Flaky>,
    gate: Arc<Gate>,
}

impl Test {
    fn new() -> Self {
        Self { clock: manual_clock(), flaky: Arc::default(), gate: Arc::default() }
    }

    fn builder(&self, db: &TestDb) -> Builder {
        let builder = db.builder().clock(self.clock.clone()).shared_state(self.flaky.clone());
        builder.shared_state(self.gate.clone())
    }

    fn fail(&self, times: u32) {
        self.flaky.failures.store(times, Ordering::SeqCst);
    }

    fn runs(&self) -> u32 {
        self.flaky.runs.load(Ordering::SeqCst)
    }
}

async fn without_a_job_nothing_runs_by_itself(db: Arc<TestDb>) {
    let test = Test::new();
    let retry = test.builder(&db).job(false).start().await.unwrap();
    for _ in 0..3 {
        flaky().on(&retry).enqueue().await.unwrap();
    }
    retry.kick();
    test.clock.advance(DAY);
    // An awaited call does run, and its retry waits for a pass.
    test.fail(1);
    assert!(flaky().on(&retry).await.unwrap_err().is_deferred());
    assert_eq!(test.runs(), 1);
    test.clock.advance(Duration::from_millis(1));
    for task in retry.tasks().list(Filter::all().status(Status::Executing)).await.unwrap() {
        assert_eq!((task.fence, task.locked_by), (0, None));
    }
    let report = retry.run_due(None).await.unwrap();
    assert_eq!((report.claimed, report.succeeded), (4, 4));
    assert_eq!(test.runs(), 5);
    assert_eq!(retry.run_due(None).await.unwrap(), Default::default());
    retry.shutdown().await.unwrap();
    assert_eq!(retry.run_due(None).await.unwrap_err().kind(), ErrorKind::Closed);
}

async fn a_pass_tells_what_became_of_each(db: Arc<TestDb>) {
    let test = Test::new();
    let retry = test.builder(&db).job(false).task_limit(2).start().await.unwrap();
    for n in 0..7 {
        flaky().max_retry(n % 2).on(&retry).enqueue().await.unwrap();
    }
    db.execute(
        "insert into t_sys_mq_resend_log (id, project_name, source, task_name, next_send_time) \
         values (1, 'test', 100, 'another', '2026-03-01 11:00:00')",
    )
    .await;
    test.fail(u32::MAX);
    let report = retry.run_due(None).await.unwrap();
    assert_eq!((report.claimed, report.retrying, report.failed), (8, 3, 4));
    assert_eq!((report.undecodable, report.succeeded, report.other), (1, 0, 0));
    test.fail(0);
    test.clock.advance(Duration::from_millis(1));
    let report = retry.run_due(None).await.unwrap();
    assert_eq!((report.claimed, report.succeeded), (3, 3));
    retry.shutdown().await.unwrap();
}

async fn tasks_run_by_id_whatever_their_status(db: Arc<TestDb>) {
    let test = Test::new();
    let retry = test.builder(&db).job(false).start().await.unwrap();
    flaky().key("done").on(&retry).await.unwrap();
    let succeeded = only_task(&retry).await.id;
    test.fail(1);
    let failed = flaky().max_retry(0).on(&retry).await.unwrap_err().id().unwrap();
    let later = flaky().delay(DAY).on(&retry).enqueue().await.unwrap().id();
    let cancelled = flaky().delay(DAY).on(&retry).enqueue().await.unwrap().id();
    retry.tasks().cancel(Filter::ids([cancelled])).await.unwrap();
    let other = flaky().delay(DAY).on(&retry).enqueue().await.unwrap().id();
    db.execute(
        "insert into t_sys_mq_resend_log (id, project_name, source, status) \
         values (1, 'test', 999, 2)",
    )
    .await;
    let asked = vec![succeeded, failed, later, cancelled, 1.into(), 77.into()];
    let runs = test.runs();
    let report = retry.run_due(Some(asked.clone())).await.unwrap();
    assert_eq!((report.claimed, report.succeeded), (4, 4));
    assert_eq!(test.runs() - runs, 4);
    for id in [succeeded, failed, later, cancelled] {
        let row = task(&retry, id).await;
        assert_eq!(
            (row.status, row.locked_by, row.next_send_time),
            (Status::Succeeded, None, None)
        );
    }
    assert_eq!(task(&retry, failed).await.send_count, 1, "what it has failed is not forgotten");
    assert_eq!(task(&retry, succeeded).await.fence, 2);
    let stranger = task(&retry, 1.into()).await;
    assert_eq!((stranger.status, stranger.fence), (Status::Failed, 0));
    assert_eq!(task(&retry, other).await.fence, 0);
    assert_eq!(retry.run_due(Some(vec![])).await.unwrap(), Default::default());
    // One that fails again follows its policy from where it was.
    test.fail(u32::MAX);
    let report = retry.run_due(Some(vec![succeeded, failed])).await.unwrap();
    assert_eq!((report.claimed, report.retrying, report.failed), (2, 1, 1));
    let row = task(&retry, failed).await;
    assert_eq!((row.status, row.send_count), (Status::Failed, 2));
    retry.shutdown().await.unwrap();
}

async fn live_leases_are_respected(db: Arc<TestDb>) {
    let test = Test::new();
    // The leases of one must not end while the clock stands: it renews them.
    let retry = test.builder(&db).start().await.unwrap();
    let second = test.builder(&db).job(false).start().await.unwrap();
    let call = tokio::spawn(waits().on(&retry).into_future());
    test.gate.wait_for(1).await;
    let id = only_task(&retry).await.id;
    for runtime in [&retry, &second] {
        assert_eq!(runtime.run_due(Some(vec![id])).await.unwrap().claimed, 0);
        assert_eq!(runtime.run_due(None).await.unwrap().claimed, 0);
    }
    test.gate.open(1);
    call.await.unwrap().unwrap();
    assert_eq!(task(&retry, id).await.fence, 1);
    // Of a process that died, the lease has an end.
    db.execute(&format!(
        "update t_sys_mq_resend_log set status = 1, locked_by = 'dead', \
         next_send_time = '2026-03-01 12:00:01' where id = {id}"
    ))
    .await;
    assert_eq!(second.run_due(Some(vec![id])).await.unwrap().claimed, 0);
    test.clock.advance(Duration::from_secs(1));
    test.gate.open(1);
    let row = becomes(&retry, id, Status::Succeeded).await;
    assert_eq!((row.crash_count, row.send_count, row.fence), (0, 0, 2));
    second.shutdown().await.unwrap();
    retry.shutdown().await.unwrap();
}

async fn many_ids_run_in_one_pass(db: Arc<TestDb>) {
    let test = Test::new();
    let retry = test.builder(&db).job(false).start().await.unwrap();
    let calls = (0..620).map(|_| flaky().delay(DAY).on(&retry).enqueue());
    let stored = futures_util::future::join_all(calls).await;
    let ids: Vec<TaskId> = stored.into_iter().map(|stored| stored.unwrap().id()).collect();
    let report = retry.run_due(Some(ids)).await.unwrap();
    assert_eq!((report.claimed, report.succeeded), (620, 620));
    assert_eq!(test.runs(), 620);
    retry.shutdown().await.unwrap();
}

/// A failed, a succeeded, a cancelled and two open tasks.
async fn some_of_each(retry: &TaskRetry, test: &Test) -> [TaskId; 5] {
    let before: BTreeSet<_> = all(retry).await;
    flaky().on(retry).await.unwrap();
    let succeeded = *all(retry).await.difference(&before).next().unwrap();
    test.fail(1);
    let failed = flaky().max_retry(0).on(retry).await.unwrap_err().id().unwrap();
    let cancelled = flaky().delay(DAY).on(retry).enqueue().await.unwrap().id();
    retry.tasks().cancel(Filter::ids([cancelled])).await.unwrap();
    let open = flaky().delay(DAY * 1000).on(retry).enqueue().await.unwrap().id();
    test.fail(1);
    let retrying = flaky().on(retry).await.unwrap_err().id().unwrap();
    [succeeded, failed, cancelled, open, retrying]
}

async fn all(retry: &TaskRetry) -> BTreeSet<TaskId> {
    retry.tasks().list(Filter::all()).await.unwrap().into_iter().map(|task| task.id).collect()
}

async fn history_is_removed_when_its_time_has_come(db: Arc<TestDb>) {
    let test = Test::new();
    let retry = test.builder(&db).job(false).start().await.unwrap();
    let old = some_of_each(&retry, &test).await;
    test.clock.advance(DAY * 7);
    let new = some_of_each(&retry, &test).await;
    assert_eq!(retry.remove_history().await.unwrap(), 0, "not before seven days are over");
    // Ids may run ahead of the clock by a second.
    test.clock.advance(Duration::from_secs(2));
    assert_eq!(retry.remove_history().await.unwrap(), 1);
    assert_eq!(retry.tasks().get(old[0]).await.unwrap(), None);
    let rest: BTreeSet<_> = old[1..].iter().chain(&new).copied().collect();
    assert_eq!(all(&retry).await, rest);
    test.clock.advance(DAY * 900);
    assert_eq!(retry.remove_history().await.unwrap(), 1);
    assert_eq!(all(&retry).await.len(), 8, "failures and open tasks are kept for ever");
    retry.shutdown().await.unwrap();
}

async fn failures_have_a_time_of_their_own(db: Arc<TestDb>) {
    let test = Test::new();
    let builder = test.builder(&db).job(false).data_kept_day(0).failed_kept_day(30);
    let retry = builder.start().await.unwrap();
    let [succeeded, _, _, open, retrying] = some_of_each(&retry, &test).await;
    test.clock.advance(DAY * 30);
    assert_eq!(retry.remove_history().await.unwrap(), 0);
    test.clock.advance(Duration::from_secs(2));
    assert_eq!(retry.remove_history().await.unwrap(), 2, "the failed and the cancelled one");
    assert_eq!(all(&retry).await, BTreeSet::from([succeeded, open, retrying]));
    retry.shutdown().await.unwrap();
}

async fn much_history_is_removed_in_one_call(db: Arc<TestDb>) {
    let test = Test::new();
    let retry = test.builder(&db).job(false).start().await.unwrap();
    let calls = (0..2345).map(|_| flaky().on(&retry).enqueue());
    futures_util::future::join_all(calls).await;
    assert_eq!(retry.run_due(None).await.unwrap().succeeded, 2345);
    test.clock.advance(DAY * 8);
    flaky().on(&retry).await.unwrap();
    assert_eq!(retry.remove_history().await.unwrap(), 2345);
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 1);
    retry.shutdown().await.unwrap();
}

async fn projects_never_touch_each_others_tasks(db: Arc<TestDb>) {
    let (test, other) = (Test::new(), Test::new());
    let ours = test.builder(&db).job(false).failed_kept_day(1).start().await.unwrap();
    // A name that is the same to a careless comparison.
    let builder = other.builder(&db).project("TEST").failed_kept_day(1);
    let theirs = builder.start().await.unwrap();
    let tasks = some_of_each(&ours, &test).await;
    let before = ours.tasks().list(Filter::all()).await.unwrap();
    assert_eq!(before.len(), 5);

    assert_eq!(theirs.tasks().list(Filter::all()).await.unwrap(), []);
    assert_eq!(theirs.tasks().list(Filter::ids(tasks)).await.unwrap(), []);
    assert_eq!(theirs.tasks().count(Filter::all()).await.unwrap(), 0);
    other.clock.advance(DAY * 500);
    theirs.kick();
    assert_eq!(theirs.run_due(None).await.unwrap().claimed, 0);
    assert_eq!(theirs.run_due(Some(tasks.to_vec())).await.unwrap().claimed, 0);
    assert_eq!(theirs.remove_history().await.unwrap(), 0);
    for filter in [Filter::all(), Filter::ids(tasks)] {
        assert_eq!(theirs.tasks().cancel(filter.clone()).await.unwrap().changed, 0);
        assert_eq!(theirs.tasks().retry_now(filter.clone()).await.unwrap().changed, 0);
        assert_eq!(theirs.tasks().purge(filter).await.unwrap().changed, 0);
    }
    for id in tasks {
        assert_eq!(theirs.tasks().get(id).await.unwrap(), None);
        assert_eq!(theirs.complete(id).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(theirs.fail(id, "x").await.unwrap_err().kind(), ErrorKind::NotFound);
        let error = theirs.tasks().edit_context(id, "{}").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    // Theirs run beside, ours did not.
    let id = flaky().on(&theirs).enqueue().await.unwrap().id();
    becomes(&theirs, id, Status::Succeeded).await;
    assert_eq!(ours.tasks().list(Filter::all()).await.unwrap(), before);
    assert_eq!((test.runs(), other.runs()), (3, 1));
    theirs.shutdown().await.unwrap();
    ours.shutdown().await.unwrap();
}

contract!(
    without_a_job_nothing_runs_by_itself,
    a_pass_tells_what_became_of_each,
    tasks_run_by_id_whatever_their_status,
    live_leases_are_respected,
    many_ids_run_in_one_pass,
    history_is_removed_when_its_time_has_come,
    failures_have_a_time_of_their_own,
    much_history_is_removed_in_one_call,
    projects_never_touch_each_others_tasks,
);
