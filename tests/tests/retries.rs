//! When a task is tried again, and when it is given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use task_retry::{
    Builder, CallError, CauseKind, Classify, ManualClock, Source, Status, TaskLog, TaskRetry,
    Verdict, retryable,
};
use task_retry_tests::{Gate, TestDb, becomes, contract, manual_clock, only_task, task, until};

#[derive(Source, Clone, Copy, Debug)]
enum Sources {
    #[source(100)]
    Fails,
    #[source(101, max_retry = 1, first_execute = "1m", timeout = "10s")]
    Strict,
    #[source(102, max_retry = 1, first_execute = "1m")]
    Stricter,
}

#[derive(Default)]
struct Runs(AtomicU32);

impl Runs {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

#[retryable(source = Sources::Fails)]
async fn fails(times: u32, #[state] runs: &Runs) -> Result<u32, String> {
    runs.add();
    if runs.count() <= times { Err(format!("failure {}", runs.count())) } else { Ok(times) }
}

#[retryable(source = Sources::Strict)]
async fn strict() -> Result<(), String> {
    Err("never".into())
}

#[retryable(
    source = Sources::Stricter,
    max_retry = 3,
    first_execute = "2s",
    delay_base = "1s",
    delay_multiplier = 3,
    max_delay = "20s"
)]
async fn stricter() -> Result<(), String> {
    Err("never".into())
}

#[retryable(source = 103, jitter = 0.2, first_execute = "100s", delay_base = "10s", max_retry = 40)]
async fn jittery() -> Result<(), String> {
    Err("never".into())
}

#[allow(clippy::ptr_arg, reason = "the error is a `String`")]
fn is_temporary(error: &String) -> bool {
    error.contains("temporary")
}

#[retryable(source = 104, retry_if = is_temporary)]
async fn choosy(error: &str) -> Result<(), String> {
    Err(error.to_owned())
}

#[derive(Debug)]
struct Http(u16);

impl std::fmt::Display for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {}", self.0)
    }
}

impl Classify for Http {
    fn classify(&self) -> Verdict {
        match self.0 {
            429 => Verdict::RetryAfter(Duration::from_millis(61_001)),
            400..=499 => Verdict::Abort,
            _ => Verdict::Retry,
        }
    }
}

#[retryable(source = 105, max_retry = 1)]
async fn fetch(status: u16) -> Result<(), Http> {
    Err(Http(status))
}

/// What `on_exhausted` was told, and a gate that it waits at.
#[derive(Default)]
struct Support {
    gate: Gate,
    told: std::sync::Mutex<Vec<(TaskLog, String)>>,
}

/// For hooks have no `#[state]`.
static SUPPORT: std::sync::Mutex<Vec<(String, Arc<Support>)>> = std::sync::Mutex::new(Vec::new());

async fn tell_support(task: TaskLog, error: String) {
    let support = {
        let all = SUPPORT.lock().unwrap();
        all.iter().find(|(project, _)| *project == task.project_name).unwrap().1.clone()
    };
    support.told.lock().unwrap().push((task, error.clone()));
    support.gate.pass().await;
    assert!(!error.contains("panic"), "the hook panics");
}

#[retryable(source = 106, max_retry = 1, on_exhausted = tell_support)]
async fn supported(error: &str) -> Result<(), String> {
    Err(error.to_owned())
}

fn builder(db: &TestDb) -> (Builder, ManualClock, Arc<Runs>) {
    let (clock, runs) = (manual_clock(), Arc::new(Runs::default()));
    (db.builder().clock(clock.clone()).shared_state(runs.clone()), clock, runs)
}

const MS: Duration = Duration::from_millis(1);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

async fn retries_are_due_at_the_starters_times(db: Arc<TestDb>) {
    let (builder, clock, runs) = builder(&db);
    let retry = builder.job(false).start().await.unwrap();
    let error = fails(u32::MAX).on(&retry).await.unwrap_err();
    let CallError::Deferred { id, retry_at, .. } = error else { panic!("{error}") };
    assert_eq!(retry_at, clock.now() + seconds(5));
    for (count, delay) in [(1, 5), (2, 100), (3, 1000), (4, 10_000)] {
        let row = task(&retry, id).await;
        assert_eq!((row.status, row.send_count), (Status::Retrying, count));
        assert_eq!(row.next_send_time, Some(clock.now() + seconds(delay)));
        assert_eq!(row.last_error, Some(format!("failure {count}")));
        clock.advance(seconds(delay) - MS);
        assert_eq!(retry.run_due(None).await.unwrap().claimed, 0, "1 ms before it is due");
        clock.advance(MS);
        let report = retry.run_due(None).await.unwrap();
        let last = u64::from(count == 4);
        assert_eq!((report.claimed, report.retrying, report.failed), (1, 1 - last, last));
    }
    let row = task(&retry, id).await;
    assert_eq!((row.status, row.send_count, row.next_send_time), (Status::Failed, 5, None));
    assert_eq!(row.last_error.as_deref(), Some("failure 5"));
    clock.advance(seconds(1_000_000));
    assert_eq!(retry.run_due(None).await.unwrap().claimed, 0, "it is given up");
    assert_eq!(runs.count(), 5);
    retry.shutdown().await.unwrap();
}

async fn workers_keep_to_due_times(db: Arc<TestDb>) {
    let (builder, clock, runs) = builder(&db);
    let retry = builder.start().await.unwrap();
    let connection = db.connect().await;
    let first = fails(1).on(&retry).await.unwrap_err().id().unwrap();
    clock.advance(seconds(5) - MS);
    // A claim that found this one would have found the other, if it had been due.
    let second = fails(1).on(&retry).enqueue_in(&connection).await.unwrap().id();
    retry.kick();
    becomes(&retry, second, Status::Succeeded).await;
    assert_eq!((task(&retry, first).await.status, runs.count()), (Status::Retrying, 2));
    clock.advance(MS);
    let row = becomes(&retry, first, Status::Succeeded).await;
    assert_eq!((row.send_count, row.fence, runs.count()), (1, 2, 3));
    retry.shutdown().await.unwrap();
}

async fn scheduled_calls_run_when_they_are_due(db: Arc<TestDb>) {
    let (builder, clock, runs) = builder(&db);
    let retry = builder.job(false).start().await.unwrap();
    let delayed = fails(0).delay(seconds(60)).key("a").topic("t").max_retry(9).on(&retry);
    let delayed = delayed.enqueue().await.unwrap().id();
    let row = task(&retry, delayed).await;
    assert_eq!(row.next_send_time, Some(clock.now() + seconds(60)));
    assert_eq!((row.fence, row.locked_by), (0, None));
    assert_eq!((row.unique_key.as_deref(), row.topic.as_str()), (Some("a"), "t"));
    assert_eq!(row.max_retry, Some(9));
    let at = clock.now() + seconds(90);
    let planned = fails(0).at(at).on(&retry).enqueue().await.unwrap().id();
    assert_eq!(task(&retry, planned).await.next_send_time, Some(at));
    let connection = db.connect().await;
    fails(0).at(at).on(&retry).enqueue_in(&connection).await.unwrap();
    let past = clock.now() - seconds(1_000_000);
    fails(0).at(past).on(&retry).enqueue().await.unwrap();
    for (advance, claimed) in [(0, 1), (59_999, 0), (1, 1), (29_999, 0), (1, 2)] {
        clock.advance(Duration::from_millis(advance));
        assert_eq!(retry.run_due(None).await.unwrap().succeeded, claimed, "after {advance} ms");
    }
    assert_eq!(runs.count(), 4);
    retry.shutdown().await.unwrap();
}

async fn any_time_can_be_stored(db: Arc<TestDb>) {
    let (builder, clock, _) = builder(&db);
    let retry = builder.start().await.unwrap();
    let ever = Duration::MAX;
    fails(0).delay(ever).expires_in(ever).max_retry(u32::MAX).on(&retry).enqueue().await.unwrap();
    fails(0).at(chrono::DateTime::<chrono::Utc>::MAX_UTC).on(&retry).enqueue().await.unwrap();
    let rows = retry.tasks().list(task_retry::Filter::all()).await.unwrap();
    let long = clock.now() + seconds(1000 * 365 * 86_400);
    assert!(rows.iter().all(|row| row.next_send_time.unwrap() > long), "{rows:?}");
    assert!(rows[0].expire_time.unwrap() > long);
    fails(0).at(chrono::DateTime::<chrono::Utc>::MIN_UTC).on(&retry).enqueue().await.unwrap();
    fails(0).expires_in(ever).on(&retry).await.unwrap();
    clock.advance(seconds(100 * 365 * 86_400));
    assert_eq!(retry.run_due(None).await.unwrap().claimed, 0);
    retry.shutdown().await.unwrap();
}

async fn a_worker_wakes_for_a_delay_of_its_own(db: Arc<TestDb>) {
    let runs = Arc::new(Runs::default());
    let builder = db.builder().shared_state(runs.clone()).poll_interval_ms(3_600_000);
    let retry = builder.start().await.unwrap();
    let delay = Duration::from_millis(300);
    let before = retry.now();
    let id = fails(0).delay(delay).on(&retry).enqueue().await.unwrap().id();
    let row = becomes(&retry, id, Status::Succeeded).await;
    assert!(row.update_time - before >= chrono::TimeDelta::milliseconds(299), "{row:?}");
    retry.shutdown().await.unwrap();
}

async fn the_strongest_policy_wins(db: Arc<TestDb>) {
    let (builder, clock, _) = builder(&db);
    let retry = builder.job(false).first_execute_second(7).max_delay_second(50).start().await;
    let retry = retry.unwrap();
    // The configuration's, ...
    let error = fails(9).on(&retry).await.unwrap_err();
    let CallError::Deferred { id, retry_at, .. } = error else { panic!("{error}") };
    assert_eq!(retry_at - clock.now(), chrono::TimeDelta::seconds(7));
    clock.advance(seconds(7));
    retry.run_due(None).await.unwrap();
    assert_eq!(task(&retry, id).await.next_send_time, Some(clock.now() + seconds(50)), "capped");
    // ... the source's, ...
    let error = strict().on(&retry).await.unwrap_err();
    let CallError::Deferred { retry_at, .. } = error else { panic!("{error}") };
    assert_eq!(retry_at - clock.now(), chrono::TimeDelta::seconds(50), "capped, too");
    // ... the function's, ...
    let id = stricter().on(&retry).await.unwrap_err().id().unwrap();
    for delay in [2, 3, 9] {
        assert_eq!(task(&retry, id).await.next_send_time, Some(clock.now() + seconds(delay)));
        clock.advance(seconds(delay));
        retry.run_due(Some(vec![id])).await.unwrap();
    }
    assert_eq!(task(&retry, id).await.status, Status::Failed);
    // ... and the call's own.
    let id = stricter().max_retry(5).on(&retry).await.unwrap_err().id().unwrap();
    for delay in [2, 3, 9, 20, 20] {
        assert_eq!(task(&retry, id).await.next_send_time, Some(clock.now() + seconds(delay)));
        clock.advance(seconds(delay));
        retry.run_due(Some(vec![id])).await.unwrap();
    }
    assert_eq!(task(&retry, id).await.status, Status::Failed);
    retry.shutdown().await.unwrap();
}

async fn jitter_spreads_retries_within_its_bounds(db: Arc<TestDb>) {
    let (builder, clock, _) = builder(&db);
    let retry = builder.job(false).start().await.unwrap();
    let calls = (0..40).map(|_| jittery().on(&retry).into_future());
    let mut delays = Vec::new();
    for error in futures_util::future::join_all(calls).await {
        let Err(CallError::Deferred { retry_at, .. }) = error else { panic!("not deferred") };
        delays.push((retry_at - clock.now()).num_milliseconds());
    }
    delays.sort_unstable();
    assert!(delays[0] >= 80_000 && delays[39] <= 120_000, "{delays:?}");
    delays.dedup();
    assert!(delays.len() > 20, "they are spread: {delays:?}");
    assert!(delays[0] < 95_000 && delays[delays.len() - 1] > 105_000, "widely: {delays:?}");
    retry.shutdown().await.unwrap();
}

async fn retry_if_tells_which_errors_are_worth_it(db: Arc<TestDb>) {
    let (builder, _, _) = builder(&db);
    let retry = builder.start().await.unwrap();
    let error = choosy("temporary trouble").on(&retry).await.unwrap_err();
    assert!(error.is_deferred(), "{error}");
    let error = choosy("wrong number").on(&retry).await.unwrap_err();
    let CallError::Failed { id, cause } = error else { panic!("{error}") };
    assert_eq!(cause.kind(), CauseKind::Error);
    let row = task(&retry, id).await;
    assert_eq!((row.status, row.send_count, row.next_send_time), (Status::Failed, 1, None));
    retry.shutdown().await.unwrap();
}

async fn errors_classify_themselves(db: Arc<TestDb>) {
    let (builder, clock, _) = builder(&db);
    let retry = builder.job(false).start().await.unwrap();
    for (status, delay) in [(500, 5000), (429, 61_001)] {
        let error = fetch(status).on(&retry).await.unwrap_err();
        let CallError::Deferred { id, retry_at, cause } = error else { panic!("{error}") };
        assert_eq!(cause.error().unwrap().0, status);
        assert_eq!((retry_at - clock.now()).num_milliseconds(), delay);
        // `RetryAfter` moves the time, and not the budget.
        clock.advance(Duration::from_millis(delay as u64));
        retry.run_due(None).await.unwrap();
        let row = task(&retry, id).await;
        assert_eq!((row.status, row.send_count), (Status::Failed, 2));
    }
    let error = fetch(404).on(&retry).await.unwrap_err();
    let CallError::Failed { id, cause } = error else { panic!("{error}") };
    assert_eq!(cause.into_error().unwrap().0, 404);
    assert_eq!(task(&retry, id).await.last_error.as_deref(), Some("status 404"));
    retry.shutdown().await.unwrap();
}

/// A project of its own, by which the hook finds its test.
async fn start_supported(db: &TestDb) -> (TaskRetry, ManualClock, Arc<Support>) {
    let project = format!("supported {}", fastrand::u64(..));
    let support = Arc::new(Support::default());
    SUPPORT.lock().unwrap().push((project.clone(), support.clone()));
    let (builder, clock, _) = builder(db);
    let retry = builder.project(project).first_execute_second(0).start().await.unwrap();
    (retry, clock, support)
}

async fn on_exhausted_runs_before_a_task_is_given_up(db: Arc<TestDb>) {
    let (retry, _, support) = start_supported(&db).await;
    let id = supported("no money").on(&retry).await.unwrap_err().id().unwrap();
    support.gate.wait_for(1).await;
    let row = task(&retry, id).await;
    assert_eq!(row.status, Status::Retrying, "not yet given up");
    assert_eq!(row.locked_by.as_deref(), Some(retry.worker_id()), "under the lease");
    support.gate.open(1);
    let row = becomes(&retry, id, Status::Failed).await;
    assert_eq!((row.send_count, row.last_error.as_deref()), (2, Some("no money")));
    retry.shutdown().await.unwrap();
    let told = support.told.lock().unwrap();
    let [(task, error)] = &told[..] else { panic!("it is told once") };
    assert_eq!((task.id, task.send_count, error.as_str()), (id, 1, "no money"));
    assert_eq!(task.context.as_deref(), Some(r#"{"error":"no money"}"#));
}

async fn on_exhausted_runs_when_a_task_is_failed_from_outside(db: Arc<TestDb>) {
    let (retry, _, support) = start_supported(&db).await;
    let later = supported("x").max_retry(0).delay(seconds(60)).on(&retry).enqueue().await.unwrap();
    let failing = tokio::spawn({
        let retry = retry.clone();
        async move { retry.fail(later.id(), "no use").await }
    });
    support.gate.wait_for(1).await;
    let row = task(&retry, later.id()).await;
    assert_eq!((row.status, row.fence), (Status::Executing, 1), "not yet given up");
    assert_eq!(row.locked_by.as_deref(), Some(retry.worker_id()), "under the lease");
    support.gate.open(1);
    failing.await.unwrap().unwrap();
    let row = task(&retry, later.id()).await;
    assert_eq!((row.status, row.send_count), (Status::Failed, 1));
    assert_eq!(row.last_error.as_deref(), Some("no use"));
    retry.shutdown().await.unwrap();
    assert_eq!(support.told.lock().unwrap().len(), 1, "it is told once");
}

async fn a_panic_of_on_exhausted_changes_nothing(db: Arc<TestDb>) {
    let (retry, _, support) = start_supported(&db).await;
    support.gate.open(1);
    let error = supported("panic").max_retry(0).on(&retry).await.unwrap_err();
    assert!(matches!(error, CallError::Failed { .. }), "{error}");
    assert_eq!(only_task(&retry).await.status, Status::Failed);
    assert_eq!(support.gate.came(), 1);
    retry.shutdown().await.unwrap();
}

async fn what_has_expired_is_given_up_without_a_run(db: Arc<TestDb>) {
    let (retry, clock, support) = start_supported(&db).await;
    support.gate.open(9);
    let late = supported("x").expires_in(seconds(59)).delay(seconds(60)).on(&retry);
    let late = late.enqueue().await.unwrap().id();
    let early = supported("y").delay(seconds(60)).expires_in(seconds(61)).on(&retry);
    let early = early.enqueue().await.unwrap().id();
    let row = task(&retry, late).await;
    assert_eq!(row.expire_time, Some(clock.now() + seconds(59)));
    clock.advance(seconds(60));
    let row = becomes(&retry, late, Status::Failed).await;
    assert!(row.last_error.as_deref().unwrap().contains("`supported` expired"), "{row:?}");
    becomes(&retry, early, Status::Failed).await;
    until("both were told", async || support.gate.came() == 2).await;
    let told = support.told.lock().unwrap().clone();
    let expired: Vec<_> = told.iter().filter(|(task, _)| task.id == late).collect();
    assert!(matches!(&expired[..], [(_, error)] if error.contains("expired")), "{expired:?}");
    assert!(told.iter().any(|(task, error)| task.id == early && error == "y"));
    retry.shutdown().await.unwrap();
}

contract!(
    retries_are_due_at_the_starters_times,
    workers_keep_to_due_times,
    scheduled_calls_run_when_they_are_due,
    any_time_can_be_stored,
    a_worker_wakes_for_a_delay_of_its_own,
    the_strongest_policy_wins,
    jitter_spreads_retries_within_its_bounds,
    retry_if_tells_which_errors_are_worth_it,
    errors_classify_themselves,
    on_exhausted_runs_before_a_task_is_given_up,
    on_exhausted_runs_when_a_task_is_failed_from_outside,
    a_panic_of_on_exhausted_changes_nothing,
    what_has_expired_is_given_up_without_a_run,
);
