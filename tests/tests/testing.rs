//! The test kit, tested: time moves only when it is told to, and each test is on its own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::Utc;
use sea_orm::{ConnectionTrait, TransactionTrait};
use task_retry::testing::TestRetry;
use task_retry::{
    Aes256GcmCodec, Builder, CallError, CauseKind, Classify, ErrorKind, Filter, HandleResult,
    Outcome, Status, Strategy, Task, TaskContext, TaskLog, TaskRetry, Verdict, enqueue_all,
    retryable,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// What ran, and when.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn read(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Writes a line, with the seconds since the start of the hour.
#[retryable(source = 140)]
async fn write(line: &str, number: u128, #[state] diary: &Diary) -> Result<u128, String> {
    let now = TaskRetry::current().unwrap().now();
    diary.note(format!("{} {line} {number}", now.format("%M:%S")));
    if line == "bad" { Err("no ink".into()) } else { Ok(number) }
}

/// Enqueues, awaits, and goes on.
#[retryable(source = 141)]
async fn chain(left: u32, #[state] diary: &Diary) -> Result<(), String> {
    diary.note(format!("chain {left}"));
    if left > 0 {
        write("link", left.into()).await.map_err(|error| error.to_string())?;
        chain(left - 1).enqueue().await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Enqueues itself for ever.
#[retryable(source = 142)]
async fn spin() -> Result<(), String> {
    spin().enqueue().await.map(drop).map_err(|error| error.to_string())
}

/// Asks, and waits for an answer.
#[retryable(source = 143)]
async fn ask() -> Result<Outcome<u32>, String> {
    Ok(Outcome::Pending { deadline: HOUR })
}

#[derive(Debug, PartialEq)]
enum Refused {
    Busy,
    Never,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Classify for Refused {
    fn classify(&self) -> Verdict {
        match self {
            Self::Busy => Verdict::RetryAfter(HOUR),
            Self::Never => Verdict::Abort,
        }
    }
}

/// Pays, if nobody objects.
#[retryable(source = 144)]
async fn pay(cents: u64, #[context] ctx: &TaskContext) -> Result<u32, Refused> {
    assert!(cents > 0);
    Ok(ctx.attempt())
}

struct Notify(Diary);

impl Strategy for Notify {
    fn source(&self) -> i32 {
        145
    }

    fn name(&self) -> &str {
        "notify"
    }

    async fn handle(&self, task: &TaskLog) -> HandleResult {
        self.0.note(format!("notified {}", task.msg_key));
        HandleResult::Success
    }
}

async fn start() -> (TestRetry, Diary) {
    start_with(|builder| builder).await
}

async fn start_with(more: impl FnOnce(Builder) -> Builder) -> (TestRetry, Diary) {
    let diary = Diary::default();
    let test = TestRetry::start(|builder| {
        more(builder.state(diary.clone()).strategy(Notify(diary.clone())))
    })
    .await
    .unwrap();
    test.clock().set("2026-01-01T00:00:00Z".parse().unwrap());
    (test, diary)
}

#[tokio::test]
async fn time_stands_still_until_it_is_moved() {
    let (test, diary) = start().await;
    test.run(async {
        assert_eq!(write("now", 1).await.unwrap(), 1);
        write("soon", 2).enqueue().await.unwrap();
        write("later", 3).delay(10 * SECOND).enqueue().await.unwrap();
        let time = "2026-01-01T00:00:20Z".parse().unwrap();
        write("at", 4).at(time).enqueue().await.unwrap();
    })
    .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(diary.read(), ["00:00 now 1"]);
    let report = test.drain().await;
    assert_eq!((report.claimed, report.succeeded), (1, 1));
    assert_eq!(test.drain().await, Default::default());
    let report = test.advance(Duration::from_millis(9_999)).await;
    assert_eq!(report, Default::default());
    let report = test.advance(HOUR).await;
    assert_eq!((report.claimed, report.succeeded), (2, 2));
    assert_eq!(diary.read()[1..], ["00:00 soon 2", "00:10 later 3", "00:20 at 4"]);
    assert_eq!(test.clock().now().to_rfc3339(), "2026-01-01T01:00:09.999+00:00");
    assert_eq!(test.retry().now(), test.clock().now());
}

#[tokio::test]
async fn retries_come_at_their_times() {
    let (test, diary) = start().await;
    let error = test.run(write("bad", 0)).await.unwrap_err();
    assert!(error.is_deferred());
    let other = test.run(write("good", 0).delay(50 * SECOND).enqueue()).await.unwrap();
    let report = test.advance(24 * HOUR).await;
    // 5 s, 100 s, 1000 s and 10000 s after the attempt before.
    assert_eq!((report.retrying, report.failed, report.succeeded), (3, 1, 1));
    assert_eq!(
        diary.read(),
        ["00:00 bad 0", "00:05 bad 0", "00:50 good 0", "01:45 bad 0", "18:25 bad 0", "05:05 bad 0"]
    );
    let task = test.retry().tasks().get(error.id().unwrap()).await.unwrap().unwrap();
    assert_eq!((task.status, task.send_count), (Status::Failed, 5));
    let other = test.retry().tasks().get(other.id()).await.unwrap().unwrap();
    assert_eq!((other.status, other.crash_count), (Status::Succeeded, 0));
}

#[tokio::test]
async fn what_is_enqueued_can_be_looked_at() {
    let (test, _) = start().await;
    assert!(test.enqueued::<write>().await.is_empty());
    test.run(async {
        write("second", u128::MAX).delay(SECOND).enqueue().await.unwrap();
        write("first", 1).enqueue().await.unwrap();
        write("bad", 2).await.unwrap_err();
        write("done", 3).await.unwrap();
        chain(0).enqueue().await.unwrap();
    })
    .await;
    let tasks = test.enqueued::<write>().await;
    let lines: Vec<String> = tasks.iter().map(|task| task.arg("line")).collect();
    assert_eq!(lines, ["first", "second", "bad"]);
    assert_eq!(tasks[1].arg::<u128>("number"), u128::MAX);
    assert_eq!(tasks[1].due(), test.clock().now() + SECOND);
    assert_eq!(tasks[0].json(), r#"{"line":"first","number":1}"#);
    assert_eq!((tasks[2].task().status, tasks[2].task().send_count), (Status::Retrying, 1));
    assert!(test.has_enqueued(write("first", 1)).await);
    assert!(!test.has_enqueued(write("first", 2)).await);
    assert!(!test.has_enqueued(write("done", 3)).await);
    assert_eq!(test.enqueued::<chain>().await.len(), 1);
    for (name, told) in [("nothing", "no argument `nothing` among"), ("line", "not of that type")] {
        let task = tasks[0].clone();
        let panic = std::panic::catch_unwind(|| task.arg::<u8>(name)).unwrap_err();
        let message = panic.downcast::<String>().unwrap();
        assert!(message.contains(told), "{message}");
    }
}

#[tokio::test]
async fn tasks_of_one_time_run_in_the_order_of_their_making() {
    // Beside clocks that stand elsewhere, and move.
    let (other, _) = start().await;
    let (test, diary) = start().await;
    for number in 0..50 {
        test.run(write("x", number)).await.unwrap();
        test.run(write("y", number).enqueue()).await.unwrap();
        other.advance(HOUR * (number as u32 % 3)).await;
        other.run(write("x", number)).await.unwrap();
    }
    test.run(enqueue_all((50..60).map(|number| write("y", number)))).await.unwrap();
    test.drain().await;
    let expected: Vec<_> = (0..60).map(|number| format!("00:00 y {number}")).collect();
    assert_eq!(diary.read()[50..], expected);
}

#[tokio::test]
async fn attempts_fail_as_planned_without_their_bodies() {
    let (test, diary) = start().await;
    test.fail_next::<write>(2, "no signal");
    let error = test.run(write("x", 1)).await.unwrap_err();
    let CallError::Deferred { id, cause, retry_at } = error else { panic!("{error}") };
    assert_eq!((cause.to_string(), cause.kind()), ("no signal".into(), CauseKind::Error));
    assert_eq!(cause.error(), None);
    assert_eq!(retry_at, test.clock().now() + 5 * SECOND);
    let report = test.advance(5 * SECOND).await;
    assert_eq!((report.retrying, report.succeeded), (1, 0));
    assert_eq!(diary.read(), [""; 0]);
    // Others are not concerned.
    test.run(chain(0)).await.unwrap();
    let report = test.advance(100 * SECOND).await;
    assert_eq!((report.retrying, report.succeeded), (0, 1));
    let task = test.retry().tasks().get(id).await.unwrap().unwrap();
    assert_eq!((task.send_count, task.last_error.as_deref()), (2, Some("no signal")));
}

#[tokio::test]
async fn planned_errors_are_the_functions_own() {
    let (test, _) = start().await;
    test.fail_next_with::<pay>(1, || Refused::Never);
    test.fail_next_with::<pay>(1, || Refused::Busy);
    test.fail_next::<pay>(1, "no signal");
    let error = test.run(pay(1)).await.unwrap_err();
    let CallError::Failed { cause, .. } = error else { panic!("{error}") };
    assert_eq!(cause.error(), Some(&Refused::Never));
    let error = test.run(pay(1)).await.unwrap_err();
    let CallError::Deferred { cause, retry_at, .. } = error else { panic!("{error}") };
    assert_eq!(cause.error(), Some(&Refused::Busy));
    assert_eq!(retry_at, test.clock().now() + HOUR);
    let error = test.run(pay(1)).await.unwrap_err();
    assert!(error.to_string().contains("no signal"));
    assert_eq!(test.run(pay(1)).await.unwrap(), 1);
    let report = test.advance(HOUR).await;
    assert_eq!(report.succeeded, 2);
}

#[tokio::test]
async fn what_tasks_enqueue_is_drained_too() {
    let (test, diary) = start().await;
    test.run(chain(2)).await.unwrap();
    assert_eq!(diary.read(), ["chain 2", "00:00 link 2"]);
    let report = test.drain().await;
    assert_eq!((report.claimed, report.succeeded), (2, 2));
    assert_eq!(diary.read()[2..], ["chain 1", "00:00 link 1", "chain 0"]);
}

#[tokio::test]
#[should_panic(expected = "5000 tasks ran and more are due now")]
async fn tasks_without_end_are_found_out() {
    let (test, _) = start().await;
    test.run(spin()).await.unwrap();
    test.drain().await;
}

#[tokio::test]
async fn waiting_tasks_are_completed_or_overdue() {
    let (test, _) = start().await;
    let retry = test.retry();
    let first = test.run(ask().enqueue()).await.unwrap();
    let second = test.run(ask().enqueue()).await.unwrap();
    assert_eq!(test.drain().await.waiting, 2);
    retry.complete(first.id()).await.unwrap();
    assert_eq!(test.advance(HOUR - SECOND).await, Default::default());
    // The deadline is a failed attempt; the next one, five seconds later, waits again.
    let report = test.advance(SECOND).await;
    assert_eq!((report.retrying, report.waiting), (1, 0));
    assert_eq!(test.advance(5 * SECOND).await.waiting, 1);
    let task = retry.tasks().get(second.id()).await.unwrap().unwrap();
    assert_eq!((task.status, task.send_count), (Status::Waiting, 1));
}

#[tokio::test]
async fn transactions_decide_in_tests_as_well() {
    let (test, diary) = start().await;
    test.connection().execute_unprepared("create table orders (id int)").await.unwrap();
    for commit in [false, true] {
        let transaction = test.connection().begin().await.unwrap();
        transaction.execute_unprepared("insert into orders values (1)").await.unwrap();
        test.run(write("order", 1).enqueue_in(&transaction)).await.unwrap();
        match commit {
            true => transaction.commit().await.unwrap(),
            false => transaction.rollback().await.unwrap(),
        }
        assert_eq!(test.enqueued::<write>().await.len(), usize::from(commit));
    }
    test.drain().await;
    assert_eq!(diary.read(), ["00:00 order 1"]);
}

#[tokio::test]
async fn strategies_and_paused_sources() {
    let (test, diary) = start().await;
    test.retry().submit(Task::new(145).key("m1")).await.unwrap();
    test.retry().sources().pause(145).await.unwrap();
    assert_eq!(test.advance(HOUR).await, Default::default());
    test.retry().sources().resume(145).await.unwrap();
    assert_eq!(test.drain().await.succeeded, 1);
    assert_eq!(diary.read(), ["notified m1"]);
}

#[tokio::test]
async fn undecodable_rows_are_put_back_and_end_no_test() {
    let (test, diary) = start().await;
    let id = test.run(write("x", 1).enqueue()).await.unwrap().id();
    let sql = "update t_sys_mq_resend_log set context = '{}'";
    test.connection().execute_unprepared(sql).await.unwrap();
    assert_eq!(test.drain().await.undecodable, 1);
    assert!(test.advance(24 * HOUR).await.undecodable > 10);
    let json = r#"{"line":"mended","number":1}"#;
    test.retry().tasks().edit_context(id, json).await.unwrap();
    assert_eq!(test.advance(HOUR).await.succeeded, 1);
    assert_eq!(diary.read().len(), 1);
}

#[tokio::test]
async fn codecs_work_as_ever() {
    let key = Aes256GcmCodec::new([("k", [1; 32])]).unwrap();
    let (test, diary) = start_with(|builder| builder.codec(key)).await;
    test.run(write("secret", 7).enqueue()).await.unwrap();
    let [task] = &test.enqueued::<write>().await[..] else { panic!("one task") };
    assert_eq!((task.arg::<String>("line"), task.arg::<u8>("number")), ("secret".into(), 7));
    assert!(test.has_enqueued(write("secret", 7)).await);
    test.drain().await;
    assert_eq!(diary.read(), ["00:00 secret 7"]);
}

#[tokio::test]
async fn each_test_is_on_its_own() {
    let (one, first) = start().await;
    let (two, second) = start().await;
    one.run(async {
        write("one", 1).await.unwrap();
        two.run(write("two", 2)).await.unwrap();
        write("one", 3).on(two.retry()).await.unwrap();
    })
    .await;
    assert_eq!(first.read(), ["00:00 one 1"]);
    assert_eq!(second.read(), ["00:00 two 2", "00:00 one 3"]);
    assert_eq!(one.retry().tasks().count(Filter::all()).await.unwrap(), 1);
    // Outside there is none.
    let error = write("x", 1).await.unwrap_err();
    let CallError::Rejected(error) = error else { panic!("{error}") };
    assert_eq!(error.kind(), ErrorKind::NotStarted);
}

#[tokio::test]
async fn a_part_of_the_functions_needs_no_other_states() {
    let test = TestRetry::start(|builder| builder.only::<(pay,)>()).await.unwrap();
    let before = Utc::now();
    assert!((before - test.clock().now()).num_seconds().abs() < 5, "it starts at the real time");
    assert_eq!(test.run(pay(5)).await.unwrap(), 1);
    let panic = tokio::spawn(async move { test.enqueued::<write>().await }).await.unwrap_err();
    let message = panic.into_panic().downcast::<String>().unwrap();
    assert!(message.contains("`write`") && message.contains("not registered"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_time_ends_no_lease() {
    let (test, _) = start().await;
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let slow = test.run(async {
        tokio::join!(hold_on(1), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(test.advance(24 * 365 * HOUR).await, Default::default());
            go.send(()).unwrap();
        })
    });
    *GATE.lock().unwrap() = Some(wait);
    assert_eq!(slow.await.0.unwrap(), 1);
}

static GATE: Mutex<Option<tokio::sync::oneshot::Receiver<()>>> = Mutex::new(None);

/// Runs until the test lets it end.
#[retryable(source = 146)]
async fn hold_on(number: u32) -> Result<u32, String> {
    let gate = GATE.lock().unwrap().take().ok_or("there is no gate")?;
    gate.await.map_err(|error| error.to_string())?;
    Ok(number)
}
