//! A large backlog: it delays no other work, and stays in the database.

use std::sync::Arc;
use std::time::Duration;

use task_retry_tests::worker::{BULK, Event, How, Scene, Settings, WORK, Worker, uptime};
use task_retry_tests::{TestDb, contract, within};

const ROWS: u64 = 100_000;
const POLL: Duration = Duration::from_millis(500);
/// For the statements; and for what a loaded machine may do to one in five.
const MARGIN: Duration = Duration::from_millis(500);
const HICCUP: Duration = Duration::from_secs(2);
/// Numbers that no row of the backlog has.
const FIRST: u64 = 1_000_000;

/// Stores rows of another source now and then, as a transaction of somebody else's would, and demands
/// that each starts within a poll.
async fn others_start_in_time(scene: &Scene) {
    let mut delays = Vec::new();
    for number in FIRST..FIRST + 5 {
        scene.store(WORK, number, &[How::Ok]).await;
        let stored = uptime();
        let start = scene.ledger.wait_for(number, Event::Start, 1).await;
        delays.push(start.at.saturating_sub(stored));
    }
    delays.sort();
    assert!(delays[3] <= POLL + MARGIN && delays[4] <= POLL + HICCUP, "{delays:?}");
}

async fn a_backlog_of_100_000_rows_delays_no_other_source(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    scene.fill(BULK, ROWS, &[How::Ok]).await;
    let settings = Settings { poll: POLL.as_millis() as u64, places: 10, ..scene.settings() };
    let worker = Worker::start(&settings).await;
    others_start_in_time(&scene).await;
    // It holds but a part of the backlog in memory, at any time.
    within(Duration::from_secs(60), "a good part of the backlog is done", async || {
        scene.ledger.len() > 40_000
    })
    .await;
    let peak = worker.peak_memory() / 1_000_000;
    assert!(peak < 100, "the worker has used {peak} MB");
    worker.kill().await;
    scene.end().await;
}

async fn a_slow_backlog_of_100_000_rows_delays_no_other_source(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    scene.fill(BULK, ROWS, &[How::Sleep(100)]).await;
    let settings = Settings { poll: POLL.as_millis() as u64, places: 10, ..scene.settings() };
    let worker = Worker::start(&settings).await;
    within(Duration::from_secs(10), "the backlog keeps its places busy", async || {
        scene.ledger.len() > 30
    })
    .await;
    others_start_in_time(&scene).await;
    let peak = worker.peak_memory() / 1_000_000;
    assert!(peak < 100, "the worker has used {peak} MB");
    worker.kill().await;
    scene.end().await;
}

/// It has killed two processes, so it is run after everything else that is due, but not never.
async fn a_slow_backlog_does_not_keep_a_suspect_for_ever(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    scene.store(BULK, FIRST, &[How::Ok]).await;
    db.execute("update t_sys_mq_resend_log set crash_count = 2").await;
    scene.fill(BULK, ROWS / 10, &[How::Sleep(50)]).await;
    let worker = Worker::start(&Settings { places: 10, ..scene.settings() }).await;
    scene.ledger.wait_for(FIRST, Event::Start, 1).await;
    // Whose places are still taken.
    assert!(scene.ledger.len() < ROWS / 10);
    worker.kill().await;
    scene.end().await;
}

contract!(
    a_slow_backlog_does_not_keep_a_suspect_for_ever,
    a_backlog_of_100_000_rows_delays_no_other_source,
    a_slow_backlog_of_100_000_rows_delays_no_other_source,
);
