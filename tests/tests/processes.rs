//! Two worker processes at work on one table.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use task_retry::{Filter, Status};
use task_retry_tests::worker::{BULK, Command, Event, How, Reply, Scene, WORK};
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

async fn one_key_in_fifty_one_concurrent_calls_is_one_row(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let (mut first, mut second) = (scene.worker().await, scene.worker().await);
    let calls = |numbers| Command::Enqueue {
        numbers,
        plan: vec![How::Ok],
        key: Some("order-7".to_owned()),
    };
    let (some, others) = tokio::join!(first.ask(calls(0..25)), second.ask(calls(25..50)));
    let last = first.ask(calls(50..51)).await;
    let mut stored = Vec::new();
    for reply in [some, others, last] {
        let Reply::Enqueued(reply) = reply else { panic!("not enqueued: {reply:?}") };
        stored.extend(reply);
    }
    let row = only_task(&scene.retry).await;
    assert_eq!(stored.len(), 51);
    assert!(stored.iter().all(|(id, _)| *id == row.id.get()), "all are told one id: {stored:?}");
    assert_eq!(stored.iter().filter(|(_, is_new)| *is_new).count(), 1, "one has stored it");
    within(Duration::from_secs(10), "it is run", async || {
        only_task(&scene.retry).await.status == Status::Succeeded
    })
    .await;
    first.shut_down().await;
    second.shut_down().await;
    assert_eq!(scene.ledger.read().len(), 2, "one start, one end");
    scene.end().await;
}

contract!(
    two_processes_run_each_of_10_000_rows_once,
    one_key_in_fifty_one_concurrent_calls_is_one_row,
);
