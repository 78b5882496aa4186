//! Two worker processes at work on one table.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use task_retry::{Filter, Status};
use task_retry_tests::worker::{BULK, Command, Event, How, Reply, Scene, WORK, Worker};
use task_retry_tests::{TestDb, contract, only_task, within};

async fn two_processes_run_each_of_10_000_rows_once(db: Arc<TestDb>) {
    const ROWS: u64 = 10_000;
    let scene = Scene::new(&db).await;
    // Long enough for both to be there.
    scene.fill(WORK, ROWS / 2, &[How::Sleep(1)]).await;
    scene.fill(BULK, ROWS / 2, &[How::Sleep(1)]).await;
    let (first, second) = tokio::join!(scene.worker(), scene.worker());
    within(Duration::from_secs(60), "all rows are run", async || {
        scene.count(Filter::all().status(Status::Succeeded)).await == ROWS
    })
    .await;
    let workers = [first.pid(), second.pid()];
    first.shut_down().await;
    second.shut_down().await;

    let mut runs: HashMap<i64, u32> = HashMap::new();
    let mut shares: HashMap<u32, u32> = HashMap::new();
    for entry in scene.ledger.read() {
        assert_eq!((entry.fence, entry.crashes), (1, 0), "claimed once: {entry:?}");
        if entry.event == Event::Start {
            *runs.entry(entry.id).or_default() += 1;
            *shares.entry(entry.pid).or_default() += 1;
        }
    }
    assert_eq!(runs.len() as u64, ROWS, "every row ran");
    let twice: Vec<_> = runs.iter().filter(|(_, runs)| **runs > 1).collect();
    assert!(twice.is_empty(), "these ran more than once: {twice:?}");
    assert!(workers.iter().all(|pid| shares.contains_key(pid)), "both took part: {shares:?}");
    scene.end().await;
}

/// A hundred calls with one key, made at once in two processes: what each was told.
async fn race(first: &mut Worker, second: &mut Worker, key: &str) -> Vec<(i64, bool)> {
    let calls =
        |numbers| Command::Enqueue { numbers, plan: vec![How::Ok], key: Some(key.to_owned()) };
    let (some, others) = tokio::join!(first.ask(calls(0..50)), second.ask(calls(50..100)));
    let mut told = Vec::new();
    for reply in [some, others] {
        let Reply::Enqueued(reply) = reply else { panic!("not enqueued: {reply:?}") };
        told.extend(reply);
    }
    assert_eq!(told.len(), 100);
    told
}

async fn one_key_in_a_hundred_concurrent_calls_is_one_row(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let (mut first, mut second) = (scene.worker().await, scene.worker().await);
    let told = race(&mut first, &mut second, "order-7").await;
    let row = only_task(&scene.retry).await;
    assert!(told.iter().all(|(id, _)| *id == row.id.get()), "all are told one id: {told:?}");
    assert_eq!(told.iter().filter(|(_, is_new)| *is_new).count(), 1, "one has stored it");
    within(Duration::from_secs(10), "it is run", async || {
        only_task(&scene.retry).await.status == Status::Succeeded
    })
    .await;
    let again = race(&mut first, &mut second, "order-7").await;
    assert!(again.iter().all(|told| *told == (row.id.get(), false)), "it has ended: {again:?}");
    first.shut_down().await;
    second.shut_down().await;
    assert_eq!(scene.ledger.read().len(), 2, "one start, one end");
    scene.end().await;
}

async fn a_key_is_kept_in_every_state_but_cancelled(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let (mut first, mut second) = (scene.worker().await, scene.worker().await);
    for status in Status::ALL {
        let (id, key) = (1 + i64::from(status.number()), format!("{status}"));
        let due = if status.is_final() { "null" } else { "'2999-01-01 00:00:00'" };
        db.execute(&format!(
            "insert into t_sys_mq_resend_log (id, project_name, source, task_name, unique_key, \
             status, next_send_time) values ({id}, 'test', {WORK}, 'work', '{key}', 0, {due})",
        ))
        .await;
        if status == Status::Cancelled {
            let cancelled = scene.retry.tasks().cancel(Filter::ids([id.into()])).await.unwrap();
            assert_eq!(cancelled.changed, 1);
        } else {
            let number = status.number();
            db.execute(&format!(
                "update t_sys_mq_resend_log set status = {number} where id = {id}"
            ))
            .await;
        }
        let told = race(&mut first, &mut second, &key).await;
        let new = told.iter().filter(|(_, is_new)| *is_new).count();
        if status == Status::Cancelled {
            assert_eq!(new, 1, "the key was free again");
            assert!(told.iter().all(|(other, _)| *other == told[0].0 && *other != id), "{told:?}");
        } else {
            assert!(told.iter().all(|told| *told == (id, false)), "{status}: {told:?}");
        }
    }
    first.shut_down().await;
    second.shut_down().await;
    scene.end().await;
}

contract!(
    two_processes_run_each_of_10_000_rows_once,
    one_key_in_a_hundred_concurrent_calls_is_one_row,
    a_key_is_kept_in_every_state_but_cancelled,
);
