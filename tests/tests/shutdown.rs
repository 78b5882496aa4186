//! The pool of workers, its limits, and the end of a process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use task_retry::{
    Builder, CallError, CauseKind, Config, ErrorKind, Filter, Status, TaskRetry, retryable,
};
use task_retry_tests::{Gate, TestDb, becomes, contract, manual_clock, only_task, task, until};

#[retryable(source = 100)]
async fn waits(number: u32, #[state] gate: &Gate, #[state] most: &Most) -> Result<u32, String> {
    let _running = most.enter();
    gate.pass().await;
    Ok(number)
}

#[retryable(source = 101)]
async fn quick(#[state] most: &Most) -> Result<(), String> {
    let _running = most.enter();
    tokio::task::yield_now().await;
    Ok(())
}

#[retryable(source = 102)]
async fn last_words(#[state] gate: &Gate, #[state] heard: &AtomicBool) -> Result<(), String> {
    let _words = LastWords(heard);
    gate.pass().await;
    Ok(())
}

struct LastWords<'a>(&'a AtomicBool);

impl Drop for LastWords<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// How many run, and how many did so at the most.
#[derive(Default)]
struct Most {
    now: AtomicU32,
    most: AtomicU32,
}

struct Running<'a>(&'a Most);

impl Most {
    fn enter(&self) -> Running<'_> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        Running(self)
    }

    fn most(&self) -> u32 {
        self.most.load(Ordering::SeqCst)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Test {
    gate: Arc<Gate>,
    most: Arc<Most>,
    heard: Arc<AtomicBool>,
}

impl Test {
    fn new() -> Self {
        Self { gate: Arc::default(), most: Arc::default(), heard: Arc::default() }
    }

    fn builder(&self, db: &TestDb) -> Builder {
        let builder = db.builder().shared_state(self.gate.clone());
        builder.shared_state(self.most.clone()).shared_state(self.heard.clone())
    }
}

/// So many attempts at once, and so many waiting in memory.
fn pool(builder: Builder, places: u32, queue: u32) -> Builder {
    let mut pool = Config::default().thread_pool_param;
    (pool.max_pool_size, pool.queue_capacity) = (places, queue);
    builder.thread_pool_param(pool)
}

async fn count(retry: &TaskRetry, status: Status) -> u64 {
    retry.tasks().count(Filter::all().status(status)).await.unwrap()
}

async fn a_full_pool_refuses_nothing(db: Arc<TestDb>) {
    let test = Test::new();
    let retry = pool(test.builder(&db), 1, 1).start().await.unwrap();
    waits(0).on(&retry).enqueue().await.unwrap();
    test.gate.wait_for(1).await;
    let stored = join_all((0..50).map(|_| quick().on(&retry).enqueue())).await;
    assert!(stored.into_iter().all(|stored| stored.unwrap().is_new()));
    let held = retry.tasks().list(Filter::all().status(Status::Executing)).await.unwrap();
    let held = held.iter().filter(|task| task.locked_by.is_some()).count();
    assert!(held <= 2 + 1, "what waits in memory is bounded: {held}");
    test.gate.open(1);
    until("all run", async || count(&retry, Status::Succeeded).await == 51).await;
    assert_eq!(test.most.most(), 1, "one at a time");
    retry.shutdown().await.unwrap();
}

async fn no_more_attempts_run_at_once_than_there_are_places(db: Arc<TestDb>) {
    let test = Test::new();
    let retry = pool(test.builder(&db), 4, 1000).start().await.unwrap();
    let stored = join_all((0..200).map(|_| quick().on(&retry).enqueue())).await;
    assert!(stored.into_iter().all(|stored| stored.unwrap().is_new()));
    until("all run", async || count(&retry, Status::Succeeded).await == 200).await;
    assert!((1..=4).contains(&test.most.most()), "{}", test.most.most());
    for task in retry.tasks().list(Filter::all()).await.unwrap() {
        assert_eq!((task.send_count, task.crash_count), (0, 0));
    }
    retry.shutdown().await.unwrap();
}

async fn one_source_does_not_take_every_place(db: Arc<TestDb>) {
    let test = Test::new();
    let retry = pool(test.builder(&db), 4, 100).start().await.unwrap();
    join_all((0..20).map(|_| waits(0).on(&retry).enqueue())).await;
    test.gate.wait_for(3).await;
    let id = quick().on(&retry).enqueue().await.unwrap().id();
    becomes(&retry, id, Status::Succeeded).await;
    test.gate.open(20);
    until("all run", async || count(&retry, Status::Succeeded).await == 21).await;
    retry.shutdown().await.unwrap();
}

async fn two_processes_share_the_work(db: Arc<TestDb>) {
    let test = Test::new();
    let first = test.builder(&db).job(false).start().await.unwrap();
    let calls = (0..300).map(|n| quick().key(n.to_string()).on(&first).enqueue());
    join_all(calls).await;
    let second = pool(test.builder(&db), 8, 16).start().await.unwrap();
    let third = pool(test.builder(&db), 8, 16).start().await.unwrap();
    until("all run", async || count(&first, Status::Succeeded).await == 300).await;
    for task in first.tasks().list(Filter::all()).await.unwrap() {
        assert_eq!((task.fence, task.send_count, task.crash_count), (1, 0, 0), "each ran once");
    }
    for retry in [first, second, third] {
        retry.shutdown().await.unwrap();
    }
}

async fn an_attempt_goes_on_past_its_lease(db: Arc<TestDb>) {
    let (test, clock) = (Test::new(), manual_clock());
    let retry = test.builder(&db).clock(clock.clone()).start().await.unwrap();
    let call = tokio::spawn(waits(7).on(&retry).into_future());
    let enqueued = waits(8).on(&retry).enqueue().await.unwrap().id();
    test.gate.wait_for(2).await;
    // As after a sleep of the machine: the workers look before anything was renewed.
    clock.advance(Duration::from_secs(6));
    retry.kick();
    assert_eq!(retry.run_due(None).await.unwrap().claimed, 0, "it does not take its own");
    let connection = db.connect().await;
    let other = quick().on(&retry).enqueue_in(&connection).await.unwrap().id();
    retry.kick();
    becomes(&retry, other, Status::Succeeded).await;
    test.gate.open(2);
    assert_eq!(call.await.unwrap().unwrap(), 7);
    becomes(&retry, enqueued, Status::Succeeded).await;
    for task in retry.tasks().list(Filter::all()).await.unwrap() {
        assert_eq!((task.fence, task.crash_count, task.send_count), (1, 0, 0), "{task:?}");
    }
    retry.shutdown().await.unwrap();
}

async fn running_attempts_may_end_before_a_shutdown_does(db: Arc<TestDb>) {
    let test = Test::new();
    let retry = test.builder(&db).start().await.unwrap();
    let call = tokio::spawn(waits(7).on(&retry).into_future());
    waits(8).on(&retry).enqueue().await.unwrap();
    test.gate.wait_for(2).await;
    let closing = tokio::spawn({
        let retry = retry.clone();
        async move { retry.shutdown().await }
    });
    until("it is closed for new calls", async || {
        quick().on(&retry).enqueue().await.is_err_and(|error| error.kind() == ErrorKind::Closed)
    })
    .await;
    assert!(!closing.is_finished());
    test.gate.open(2);
    assert_eq!(call.await.unwrap().unwrap(), 7);
    closing.await.unwrap().unwrap();
    let ran = retry.tasks().count(Filter::all().source(100).status(Status::Succeeded)).await;
    assert_eq!(ran.unwrap(), 2, "their ends are written");
}

async fn after_the_grace_what_still_runs_is_put_back(db: Arc<TestDb>) {
    let test = Test::new();
    let builder = pool(test.builder(&db), 1, 10).first_execute_second(0);
    let retry = builder.shutdown_grace_second(0).start().await.unwrap();
    // One that is awaited, one that a worker runs for the second time, and three that wait in memory.
    let call = tokio::spawn(waits(7).on(&retry).into_future());
    let later = waits(9).delay(Duration::from_secs(3600)).on(&retry).enqueue().await.unwrap().id();
    retry.fail(later, "once").await.unwrap();
    test.gate.wait_for(2).await;
    join_all((0..3).map(|_| waits(8).on(&retry).enqueue())).await;
    let before = retry.now();
    retry.shutdown().await.unwrap();
    let error = call.await.unwrap().unwrap_err();
    let CallError::Deferred { id, cause, retry_at } = error else { panic!("{error}") };
    assert_eq!((cause.kind(), cause.error()), (CauseKind::Interrupted, None));
    assert_eq!(task(&retry, id).await.next_send_time, Some(retry_at));
    let rows = retry.tasks().list(Filter::all()).await.unwrap();
    assert_eq!(rows.len(), 5);
    for row in &rows {
        let (status, send_count, error) = match row.id == later {
            true => (Status::Retrying, 1, Some("once")),
            false => (Status::Executing, 0, None),
        };
        assert_eq!((row.status, row.send_count, row.crash_count), (status, send_count, 0));
        assert_eq!((row.locked_by.as_deref(), row.last_error.as_deref()), (None, error));
        let due = row.next_send_time.unwrap();
        assert!(due >= before && due <= retry.now(), "due at once: {due}, {before}");
    }
    // Another process goes on at once.
    let next = test.builder(&db).start().await.unwrap();
    test.gate.open(5);
    for before in rows {
        let row = becomes(&next, before.id, Status::Succeeded).await;
        assert_eq!((row.send_count, row.crash_count), (before.send_count, 0));
        assert_eq!(row.fence, before.fence + 1);
    }
    next.shutdown().await.unwrap();
}

async fn what_is_stopped_is_dropped(db: Arc<TestDb>) {
    let test = Test::new();
    let retry = test.builder(&db).shutdown_grace_second(0).start().await.unwrap();
    let id = last_words().on(&retry).enqueue().await.unwrap().id();
    test.gate.wait_for(1).await;
    retry.shutdown().await.unwrap();
    assert!(test.heard.load(Ordering::SeqCst), "its future was dropped before shutdown returned");
    assert_eq!(task(&retry, id).await.locked_by, None);
}

async fn a_runtime_that_has_shut_down_accepts_nothing(db: Arc<TestDb>) {
    let test = Test::new();
    let retry = test.builder(&db).start().await.unwrap();
    quick().on(&retry).await.unwrap();
    let id = only_task(&retry).await.id;
    retry.shutdown().await.unwrap();
    retry.shutdown().await.unwrap();
    let clone = retry.clone();
    let (a, b) = tokio::join!(retry.shutdown(), clone.shutdown());
    assert!(a.is_ok() && b.is_ok());
    let connection = db.connect().await;
    let error = quick().on(&retry).await.unwrap_err();
    let CallError::Rejected(error) = error else { panic!("{error}") };
    for error in [
        error,
        quick().on(&retry).enqueue().await.unwrap_err(),
        quick().on(&retry).enqueue_in(&connection).await.unwrap_err(),
        retry.submit(task_retry::Task::new(101).context("{}")).await.unwrap_err(),
        retry.run_due(None).await.unwrap_err(),
        retry.run_due(Some(vec![id])).await.unwrap_err(),
        retry.remove_history().await.unwrap_err(),
        retry.complete(id).await.unwrap_err(),
        retry.tasks().cancel(Filter::all()).await.unwrap_err(),
        retry.tasks().retry_now(Filter::all()).await.unwrap_err(),
        retry.tasks().purge(Filter::all()).await.unwrap_err(),
        retry.tasks().edit_context(id, "{}").await.unwrap_err(),
        retry.scope(quick().enqueue()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    }
    // Reading is still allowed.
    assert_eq!(only_task(&retry).await.status, Status::Succeeded);
}

async fn what_is_over_leaves_nothing_behind(db: Arc<TestDb>) {
    for shut_down in [true, false] {
        let test = Test::new();
        let retry = test.builder(&db).start().await.unwrap();
        quick().on(&retry).await.unwrap();
        let id = quick().on(&retry).enqueue().await.unwrap().id();
        becomes(&retry, id, Status::Succeeded).await;
        if shut_down {
            retry.shutdown().await.unwrap();
        }
        drop(retry);
        // Its loops are gone, and with them its connections.
        until("its states are free", async || Arc::strong_count(&test.most) == 1).await;
    }
}

async fn calls_that_race_a_shutdown_are_answered(db: Arc<TestDb>) {
    let test = Test::new();
    let retry = test.builder(&db).start().await.unwrap();
    let callers = (0..8).map(|_| {
        let retry = retry.clone();
        tokio::spawn(async move {
            let mut ran = 0;
            loop {
                match quick().on(&retry).await {
                    Ok(()) => ran += 1,
                    Err(CallError::Rejected(error)) if error.kind() == ErrorKind::Closed => {
                        return ran;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    until("they call", async || retry.tasks().count(Filter::all()).await.unwrap() > 50).await;
    retry.shutdown().await.unwrap();
    let mut ran = 0;
    for caller in callers {
        ran += caller.await.unwrap();
    }
    assert_eq!(count(&retry, Status::Succeeded).await, ran);
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), ran, "all or nothing");
}

contract!(
    a_full_pool_refuses_nothing,
    no_more_attempts_run_at_once_than_there_are_places,
    one_source_does_not_take_every_place,
    two_processes_share_the_work,
    an_attempt_goes_on_past_its_lease,
    running_attempts_may_end_before_a_shutdown_does,
    after_the_grace_what_still_runs_is_put_back,
    what_is_stopped_is_dropped,
    a_runtime_that_has_shut_down_accepts_nothing,
    what_is_over_leaves_nothing_behind,
    calls_that_race_a_shutdown_are_answered,
);
