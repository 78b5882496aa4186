//! Processes that are killed, paused, blocked and shut down in the middle of attempts.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use task_retry::{Filter, Status, TaskId, TaskLog};
use task_retry_tests::worker::{
    Command, Entry, Event, How, Reply, Scene, Settings, WORK, Worker, uptime,
};
use task_retry_tests::{Kind, TestDb, at_once, becomes, task, until, within};

/// The workers' lease and poll interval, and what a loaded machine may add.
const LEASE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);
const MARGIN: Duration = Duration::from_secs(1);

async fn enqueue(worker: &mut Worker, number: u64, plan: &[How]) -> TaskId {
    let command = Command::Enqueue { numbers: number..number + 1, plan: plan.to_vec(), key: None };
    let Reply::Enqueued(stored) = worker.ask(command).await else { panic!("not enqueued") };
    stored[0].0.into()
}

/// Waits until a lease was renewed this very moment, so that what follows meets no open statement.
async fn renewed(scene: &Scene, id: TaskId) -> TaskLog {
    let before = task(&scene.retry, id).await;
    until("the lease is renewed", async || {
        task(&scene.retry, id).await.next_send_time > before.next_send_time
    })
    .await;
    task(&scene.retry, id).await
}

async fn a_killed_attempt_runs_again_elsewhere(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let mut first = scene.worker().await;
    let second = scene.worker().await;
    let id = enqueue(&mut first, 1, &[How::Hang, How::Ok]).await;
    let started = scene.ledger.wait_for(1, Event::Start, 1).await;
    assert_eq!((started.pid, started.fence, started.crashes), (first.pid(), 1, 0));
    first.kill().await;
    let (killed, row) = (uptime(), task(&scene.retry, id).await);
    let lease = row.next_send_time.unwrap() - scene.retry.now();
    let again = scene.ledger.wait_for(1, Event::Start, 2).await;
    assert_eq!((again.pid, again.fence, again.crashes), (second.pid(), 2, 1));
    let after = again.at - killed;
    assert!(after < LEASE + POLL + MARGIN, "it started again after {after:?}");
    // Not before the lease has run out, by the database's clock.
    let lease = lease.to_std().unwrap();
    assert!(after + Duration::from_millis(50) > lease, "{after:?} after, and {lease:?} were left");
    let row = becomes(&scene.retry, id, Status::Succeeded).await;
    assert_eq!((row.fence, row.send_count, row.crash_count), (2, 0, 0));
    assert_eq!(scene.ledger.of(1).len(), 3, "two starts, one end");
    second.shut_down().await;
    scene.end().await;
}

async fn a_paused_process_that_wakes_up_changes_nothing(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let mut first = scene.worker().await;
    let second = scene.worker().await;
    // It cannot be cancelled, so it will end, and try to write that.
    let gate = scene.gate("late");
    let plan = vec![How::BlockingGate(gate.clone()), How::Ok];
    first.tell(Command::Await { number: 1, plan }).await;
    let started = scene.ledger.wait_for(1, Event::Start, 1).await;
    assert_eq!((started.pid, started.fence), (first.pid(), 1));
    let id = started.id.into();
    renewed(&scene, id).await;
    first.signal(Signal::SIGSTOP);
    let stopped = uptime();
    let again = scene.ledger.wait_for(1, Event::Start, 2).await;
    assert_eq!((again.pid, again.fence, again.crashes), (second.pid(), 2, 1));
    let after = again.at - stopped;
    assert!(after < LEASE + POLL + MARGIN, "it was taken over after {after:?}");
    let row = becomes(&scene.retry, id, Status::Succeeded).await;

    scene.open(&gate);
    first.signal(Signal::SIGCONT);
    let Reply::Ended(Err(error)) = first.reply().await else { panic!("it was superseded") };
    assert!(error.contains("ended elsewhere or taken over meanwhile"), "{error}");
    // It ends when it has nothing more to write.
    first.shut_down().await;
    assert_eq!(task(&scene.retry, id).await, row, "the late write changed nothing");
    let seen: Vec<_> = scene.ledger.of(1).iter().map(|seen| (seen.event, seen.fence)).collect();
    assert_eq!(seen, [(Event::Start, 1), (Event::Start, 2), (Event::End, 2), (Event::End, 1)]);
    second.shut_down().await;
    scene.end().await;
}

async fn a_paused_process_gives_up_what_it_lost(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let mut first = scene.worker().await;
    let second = scene.worker().await;
    let gate = scene.gate("second");
    let id = enqueue(&mut first, 1, &[How::Hang, How::Gate(gate.clone())]).await;
    scene.ledger.wait_for(1, Event::Start, 1).await;
    renewed(&scene, id).await;
    first.signal(Signal::SIGSTOP);
    scene.ledger.wait_for(1, Event::Start, 2).await;
    first.signal(Signal::SIGCONT);
    // Its attempt is cancelled, while the other's goes on.
    let dropped = scene.ledger.wait_for(1, Event::Dropped, 1).await;
    assert_eq!((dropped.pid, dropped.fence), (first.pid(), 1));
    scene.open(&gate);
    let row = becomes(&scene.retry, id, Status::Succeeded).await;
    assert_eq!((row.fence, row.send_count), (2, 0));
    first.shut_down().await;
    assert_eq!(task(&scene.retry, id).await, row);
    second.shut_down().await;
    scene.end().await;
}

/// Nobody is there to take its work over but itself.
async fn a_process_that_was_paused_alone_does_not_run_its_tasks_twice(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let mut worker = scene.worker().await;
    let gate = scene.gate("only");
    let id = enqueue(&mut worker, 1, &[How::Gate(gate.clone()), How::Hang]).await;
    scene.ledger.wait_for(1, Event::Start, 1).await;
    let row = renewed(&scene, id).await;
    worker.signal(Signal::SIGSTOP);
    until("the lease is over", async || Some(scene.retry.now()) > row.next_send_time).await;
    worker.signal(Signal::SIGCONT);
    let renewed = renewed(&scene, id).await;
    assert_eq!((renewed.fence, renewed.crash_count), (1, 0));
    scene.open(&gate);
    let row = becomes(&scene.retry, id, Status::Succeeded).await;
    assert_eq!((row.fence, row.send_count), (1, 0));
    worker.shut_down().await;
    assert_eq!(scene.ledger.of(1).len(), 2, "one start, one end");
    scene.end().await;
}

async fn a_task_that_kills_its_process_is_given_up_and_spares_the_others(db: Arc<TestDb>) {
    const POISON: u64 = 7;
    const INNOCENT: u64 = 20;
    let scene = Scene::new(&db).await;
    // In a random order, all of them due at once.
    let plan = [How::Sleep(100)];
    scene.fill(WORK, INNOCENT + 1, &plan).await;
    let poison = scene.retry.tasks().list(Filter::all()).await.unwrap()[POISON as usize].id;
    let context = format!(r#"{{"number":{POISON},"plan":["abort"]}}"#);
    scene
        .db
        .execute(&format!(
            "update t_sys_mq_resend_log set context = '{context}' where id = {poison}"
        ))
        .await;

    let supervisor = tokio::spawn(supervise(scene.settings()));
    within(Duration::from_secs(60), "the poison is given up, and all others succeed", async || {
        let failed = scene.count(Filter::all().status(Status::Failed)).await;
        let succeeded = scene.count(Filter::all().status(Status::Succeeded)).await;
        (failed, succeeded) == (1, INNOCENT)
    })
    .await;
    supervisor.abort();
    let row = task(&scene.retry, poison).await;
    let error = row.last_error.clone().unwrap_or_default();
    assert!(error.contains("`work`") && error.contains("max-crash (3)"), "{error}");
    assert_eq!((row.status, row.crash_count, row.locked_by.as_deref()), (Status::Failed, 4, None));
    let starts = |number| {
        let starts = scene.ledger.of(number).into_iter().filter(|seen| seen.event == Event::Start);
        starts.collect::<Vec<Entry>>()
    };
    let crashes: Vec<_> = starts(POISON).iter().map(|start| start.crashes).collect();
    assert_eq!(crashes, [0, 1, 2, 3]);
    for number in (0..=INNOCENT).filter(|number| *number != POISON) {
        let most = starts(number).iter().map(|start| start.crashes).max();
        assert!(most <= Some(2), "the innocent {number} has been blamed: {most:?}");
    }
    scene.end().await;
}

/// Starts a worker process again whenever it has died.
async fn supervise(settings: Settings) {
    loop {
        let mut worker = Worker::start(&settings).await;
        assert!(!worker.died().await.success());
    }
}

async fn code_that_blocks_loses_no_lease(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let settings = Settings { threads: 0, ..scene.settings() };
    let mut blocked = Worker::start(&settings).await;
    let idle = scene.worker().await;
    let twice = 2 * LEASE + Duration::from_millis(500);
    let id = enqueue(&mut blocked, 1, &[How::Block(twice.as_millis() as u64), How::Hang]).await;
    let end = scene.ledger.wait_for(1, Event::End, 1).await;
    assert_eq!((end.pid, end.fence), (blocked.pid(), 1));
    let row = becomes(&scene.retry, id, Status::Succeeded).await;
    assert_eq!((row.fence, row.send_count, row.crash_count), (1, 0, 0));
    blocked.shut_down().await;
    idle.shut_down().await;
    assert_eq!(scene.ledger.of(1).len(), 2, "one start, one end");
    scene.end().await;
}

async fn a_graceful_stop_hands_its_tasks_over_at_once(db: Arc<TestDb>) {
    const TASKS: u64 = 20;
    let scene = Scene::new(&db).await;
    let settings = Settings { grace: 0, places: 1, ..scene.settings() };
    let mut first = Worker::start(&settings).await;
    // One that runs, and others that wait for its place.
    let plan = vec![How::Hang, How::Ok];
    enqueue(&mut first, 0, &plan).await;
    scene.ledger.wait_for(0, Event::Start, 1).await;
    first.ask(Command::Enqueue { numbers: 1..TASKS, plan, key: None }).await;
    let second = scene.worker().await;
    first.signal(Signal::SIGTERM);
    let dropped = scene.ledger.wait_for(0, Event::Dropped, 1).await;
    within(Duration::from_secs(10), "all succeed", async || {
        scene.count(Filter::all().status(Status::Succeeded)).await == TASKS
    })
    .await;
    for number in 0..TASKS {
        let entries = scene.ledger.of(number);
        let start = entries[entries.len() - 2];
        assert_eq!((start.pid, start.fence, start.crashes), (second.pid(), 2, 0));
        let after = start.at.saturating_sub(dropped.at);
        assert!(after <= Duration::from_secs(1), "task {number} started again after {after:?}");
        assert_eq!(entries.len(), if number == 0 { 4 } else { 2 }, "{entries:?}");
    }
    for row in scene.retry.tasks().list(Filter::all()).await.unwrap() {
        assert_eq!((row.send_count, row.crash_count), (0, 0));
    }
    assert_eq!(first.reply().await, Reply::Bye);
    assert!(first.died().await.success());
    second.shut_down().await;
    scene.end().await;
}

macro_rules! at_once {
    ($($name:ident),* $(,)?) => {
        mod at_once {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::at_once(&super::Kind::ALL, super::$name).await;
            })*
        }
    };
}

at_once!(
    a_killed_attempt_runs_again_elsewhere,
    a_paused_process_that_wakes_up_changes_nothing,
    a_paused_process_gives_up_what_it_lost,
    a_process_that_was_paused_alone_does_not_run_its_tasks_twice,
    a_task_that_kills_its_process_is_given_up_and_spares_the_others,
    code_that_blocks_loses_no_lease,
    a_graceful_stop_hands_its_tasks_over_at_once,
);
