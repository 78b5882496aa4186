//! The history of failed attempts.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use task_retry::{Attempt, CallError, Filter, Status, TaskId, TaskRetry, retryable};
use task_retry_tests::{Gate, TestDb, becomes, contract, manual_clock, only_task, task};

/// Fails so often, each time with another word, then succeeds.
#[retryable(source = 230, first_execute = "0s", delay_base = "0s", max_retry = 100)]
async fn stumble(
    failures: u32,
    #[context] context: &task_retry::TaskContext,
) -> Result<(), String> {
    match context.attempt() {
        attempt if attempt <= failures => Err(format!("stumbled {attempt}")),
        _ => Ok(()),
    }
}

#[retryable(source = 231, max_retry = 0)]
async fn break_down(how: String) -> Result<(), String> {
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(how != "panic", "the floor gave way");
    Err(how)
}

#[retryable(source = 232, max_retry = 0, timeout = "50ms")]
async fn sleep_in() -> Result<(), String> {
    tokio::time::sleep(Duration::from_secs(60)).await;
    Ok(())
}

#[retryable(source = 233, first_execute = "0s", max_retry = 1)]
async fn stand_at(#[state] gate: &Gate) -> Result<(), String> {
    gate.pass().await;
    Err("the gate is open".into())
}

async fn start(db: &TestDb, gate: Arc<Gate>) -> TaskRetry {
    builder(db, gate).start().await.unwrap()
}

fn builder(db: &TestDb, gate: Arc<Gate>) -> task_retry::Builder {
    db.builder().only::<(stumble, break_down, sleep_in, stand_at)>().shared_state(gate)
}

async fn attempts(retry: &TaskRetry, id: TaskId) -> Vec<Attempt> {
    retry.tasks().attempts(id).await.unwrap()
}

async fn each_failure_leaves_one(db: Arc<TestDb>) {
    let retry = start(&db, Arc::default()).await;
    let before = retry.now();
    let id = stumble(3).on(&retry).enqueue().await.unwrap().id();
    becomes(&retry, id, Status::Succeeded).await;
    let kept = attempts(&retry, id).await;
    assert_eq!(kept.iter().map(|it| it.number).collect::<Vec<_>>(), [1, 2, 3]);
    let mut last = before - Duration::from_millis(1);
    for attempt in &kept {
        assert_eq!(attempt.error, format!("stumbled {}", attempt.number));
        assert_eq!(attempt.worker, retry.worker_id());
        assert!(attempt.start >= last && attempt.start <= retry.now(), "{attempt:?}");
        assert!(attempt.duration < Duration::from_secs(5), "{attempt:?}");
        last = attempt.start;
    }
    stumble(0).on(&retry).await.unwrap();
    let tasks = retry.tasks().list(Filter::all().after(id)).await.unwrap();
    assert_eq!(attempts(&retry, tasks[0].id).await, []);
    assert_eq!(attempts(&retry, TaskId::from(1)).await, []);
    retry.shutdown().await.unwrap();
}

async fn it_says_how_and_how_long(db: Arc<TestDb>) {
    let retry = start(&db, Arc::default()).await;
    let long = "é\0".repeat(3000);
    for (how, says) in [("no", "no"), ("panic", "panicked: the floor gave way"), (&long, "é�é�")]
    {
        let error = break_down(how.to_owned()).on(&retry).await.unwrap_err();
        let [attempt] = &attempts(&retry, error.id().unwrap()).await[..] else { panic!() };
        assert!(attempt.error.starts_with(says), "{attempt:?}");
        assert!(attempt.error.len() <= 4096);
        assert!(attempt.duration >= Duration::from_millis(30), "{attempt:?}");
    }
    let error = sleep_in().on(&retry).await.unwrap_err();
    let [attempt] = &attempts(&retry, error.id().unwrap()).await[..] else { panic!() };
    assert_eq!(attempt.error, "timed out after 50ms");
    assert!(attempt.duration >= Duration::from_millis(50), "{attempt:?}");
    retry.shutdown().await.unwrap();
}

async fn the_last_twenty_are_kept(db: Arc<TestDb>) {
    let retry = start(&db, Arc::default()).await;
    let few = stumble(20).on(&retry).enqueue().await.unwrap().id();
    let many = stumble(47).on(&retry).enqueue().await.unwrap().id();
    for (id, first) in [(few, 1), (many, 28)] {
        becomes(&retry, id, Status::Succeeded).await;
        let numbers: Vec<u32> = attempts(&retry, id).await.iter().map(|it| it.number).collect();
        assert_eq!(numbers, (first..first + 20).collect::<Vec<_>>());
    }
    // What is too old is deleted, and not only left out.
    use sea_orm::ConnectionTrait;
    let connection = db.connect().await;
    let sql = "select task_id from t_task_retry_attempt";
    let rows = sea_orm::Statement::from_string(connection.get_database_backend(), sql);
    assert_eq!(connection.query_all_raw(rows).await.unwrap().len(), 40);
    retry.shutdown().await.unwrap();
}

async fn a_batch_keeps_each(db: Arc<TestDb>) {
    let retry = start(&db, Arc::default()).await;
    let calls = (0..300).map(|order| break_down(format!("no {order}")).on(&retry).enqueue());
    let stored = join_all(calls).await;
    for (order, enqueued) in stored.into_iter().enumerate() {
        let enqueued = enqueued.unwrap();
        assert_eq!(enqueued.ended().await.unwrap(), Status::Failed);
        let [attempt] = &attempts(&retry, enqueued.id()).await[..] else { panic!() };
        assert_eq!((attempt.number, &*attempt.error), (1, &*format!("no {order}")));
    }
    retry.shutdown().await.unwrap();
}

async fn processes_add_to_one_history(db: Arc<TestDb>) {
    let gate = Arc::new(Gate::default());
    let first = builder(&db, gate.clone()).job(false).start().await.unwrap();
    gate.open(2);
    let error = stand_at().on(&first).await.unwrap_err();
    let CallError::Deferred { id, .. } = error else { panic!("{error}") };
    let second = start(&db, gate).await;
    becomes(&second, id, Status::Failed).await;
    let workers = [first.worker_id(), second.worker_id()];
    for retry in [&first, &second] {
        let kept = attempts(retry, id).await;
        assert_eq!(kept.iter().map(|it| &*it.worker).collect::<Vec<_>>(), workers);
    }
    let other = builder(&db, Arc::default()).project("other").start().await.unwrap();
    assert_eq!(attempts(&other, id).await, []);
    for retry in [first, second, other] {
        retry.shutdown().await.unwrap();
    }
}

async fn only_what_counts_is_kept(db: Arc<TestDb>) {
    let gate = Arc::new(Gate::default());
    let retry = builder(&db, gate.clone()).job(false).start().await.unwrap();
    // An attempt that had lost its task.
    let call = tokio::spawn(stand_at().on(&retry).into_future());
    gate.wait_for(1).await;
    db.execute("update t_sys_mq_resend_log set fence = fence + 1, locked_by = 'dead'").await;
    gate.open(1);
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Superseded { .. }), "{error}");
    let id = only_task(&retry).await.id;
    assert_eq!(attempts(&retry, id).await, []);

    // One that somebody ended from outside, and what it says afterwards.
    retry.tasks().purge(Filter::all()).await.unwrap();
    db.execute("delete from t_sys_mq_resend_log").await;
    let call = tokio::spawn(stand_at().on(&retry).into_future());
    gate.wait_for(2).await;
    let id = only_task(&retry).await.id;
    retry.fail(id, "the line went dead").await.unwrap();
    gate.open(1);
    let _ = call.await.unwrap().unwrap_err();
    let [attempt] = &attempts(&retry, id).await[..] else { panic!() };
    assert_eq!((attempt.number, &*attempt.error), (1, "the line went dead"));
    assert_eq!(attempt.duration, Duration::ZERO);

    // One that a shutdown put back.
    let other = builder(&db, gate.clone()).shutdown_grace_second(0).start().await.unwrap();
    gate.wait_for(3).await;
    other.shutdown().await.unwrap();
    assert_eq!(task(&retry, id).await.locked_by, None);
    assert_eq!(attempts(&retry, id).await.len(), 1);
    retry.shutdown().await.unwrap();
}

async fn a_new_round_adds_to_the_history(db: Arc<TestDb>) {
    let clock = manual_clock();
    let retry = builder(&db, Arc::default()).clock(clock.clone()).start().await.unwrap();
    let error = break_down("no".into()).on(&retry).await.unwrap_err();
    let id = error.id().unwrap();
    clock.advance(Duration::from_secs(60));
    retry.tasks().retry_now(Filter::ids([id])).await.unwrap();
    becomes(&retry, id, Status::Failed).await;
    let kept = attempts(&retry, id).await;
    assert_eq!(kept.iter().map(|it| it.number).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(kept[1].start - kept[0].start, chrono::TimeDelta::seconds(60));
    retry.shutdown().await.unwrap();
}

async fn an_end_is_written_although_its_history_cannot_be(db: Arc<TestDb>) {
    let retry = start(&db, Arc::default()).await;
    db.execute("drop table t_task_retry_attempt").await;
    let error = break_down("no".into()).on(&retry).await.unwrap_err();
    let CallError::Failed { id, cause } = error else { panic!("{error}") };
    assert_eq!(cause.error().unwrap(), "no");
    assert_eq!(task(&retry, id).await.status, Status::Failed);
    assert!(retry.tasks().attempts(id).await.is_err());
    let error = db.builder().migrate(false).only::<()>().start().await.unwrap_err();
    assert!(error.to_string().contains("t_task_retry_attempt"), "{error}");
    retry.shutdown().await.unwrap();
}

contract!(
    each_failure_leaves_one,
    it_says_how_and_how_long,
    the_last_twenty_are_kept,
    a_batch_keeps_each,
    processes_add_to_one_history,
    only_what_counts_is_kept,
    a_new_round_adds_to_the_history,
    an_end_is_written_although_its_history_cannot_be,
);
