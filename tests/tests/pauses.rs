//! Sources that are paused, seen by every process of the project.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sea_orm::TransactionTrait;
use task_retry::{
    Call, CallError, CauseKind, Filter, Source, Status, TaskId, TaskRetry, enqueue_all, retryable,
};
use task_retry_tests::{Gate, TestDb, becomes, contract, only_task, task, until, within};

#[derive(Source, Clone, Copy, Debug)]
enum Sources {
    #[source(240)]
    Mail,
    #[source(241)]
    Print,
}

#[derive(Default)]
struct World {
    mails: AtomicU32,
    gate: Gate,
}

#[retryable(source = Sources::Mail)]
async fn mail(number: u32, #[state] world: &World) -> Result<u32, String> {
    world.mails.fetch_add(1, Ordering::SeqCst);
    Ok(number)
}

/// Fails the first time, after it has passed the gate.
#[retryable(source = Sources::Print, first_execute = "0s")]
async fn print(
    #[state] world: &World,
    #[context] context: &task_retry::TaskContext,
) -> Result<(), String> {
    world.gate.pass().await;
    if context.attempt() == 1 { Err("no paper".into()) } else { Ok(()) }
}

fn builder(db: &TestDb) -> (task_retry::Builder, Arc<World>) {
    let world = Arc::new(World::default());
    (db.builder().only::<(mail, print)>().shared_state(world.clone()), world)
}

async fn start(db: &TestDb) -> (TaskRetry, Arc<World>) {
    let (builder, world) = builder(db);
    (builder.start().await.unwrap(), world)
}

/// Long enough for a poll or two.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(400)).await;
}

/// Awaits a call of a paused source, and tells which task waits for it now.
async fn is_left_alone(call: Call<mail>) -> TaskId {
    let error = call.await.unwrap_err();
    assert!(error.is_deferred());
    let CallError::Deferred { id, cause, .. } = error else { panic!("{error}") };
    assert_eq!((cause.kind(), cause.error()), (CauseKind::Interrupted, None));
    assert_eq!(cause.to_string(), "source 240 (`mail`) is paused");
    id
}

async fn nothing_of_a_paused_source_starts(db: Arc<TestDb>) {
    let (retry, world) = start(&db).await;
    retry.sources().pause(Sources::Mail).await.unwrap();
    retry.sources().pause(Sources::Mail).await.unwrap();
    retry.sources().pause(30).await.unwrap();
    assert_eq!(retry.sources().paused().await.unwrap(), [30, 240]);

    let mut ids = vec![is_left_alone(mail(1).on(&retry)).await];
    assert_eq!(mail(2).on(&retry).accepted().await.unwrap(), None);
    ids.push(mail(3).on(&retry).enqueue().await.unwrap().id());
    ids.push(mail(4).key("k").on(&retry).enqueue().await.unwrap().id());
    let calls = (5..8).map(|number| mail(number).on(&retry));
    ids.extend(enqueue_all(calls).await.unwrap().iter().map(|stored| stored.id()));
    let transaction = db.connect().await.begin().await.unwrap();
    ids.push(mail(9).on(&retry).enqueue_in(&transaction).await.unwrap().id());
    transaction.commit().await.unwrap();
    retry.kick();
    world.gate.open(2);
    let printed = print().on(&retry).enqueue().await.unwrap();
    assert_eq!(printed.ended().await.unwrap(), Status::Succeeded);
    a_while().await;
    assert_eq!(world.mails.load(Ordering::SeqCst), 0);
    for id in &ids {
        let task = task(&retry, *id).await;
        assert_eq!((task.status, task.fence), (Status::Executing, 0));
        assert_eq!((task.send_count, task.locked_by), (0, None));
    }
    // A key of a task that waits is taken as ever.
    let error = mail(4).key("k").on(&retry).await.unwrap_err();
    assert!(matches!(error, CallError::Duplicate { status: Status::Executing, .. }), "{error}");

    let resumed = Instant::now();
    retry.sources().resume(Sources::Mail).await.unwrap();
    retry.sources().resume(Sources::Mail).await.unwrap();
    assert_eq!(retry.sources().paused().await.unwrap(), [30]);
    for id in ids {
        let task = becomes(&retry, id, Status::Succeeded).await;
        assert_eq!((task.fence, task.send_count, task.crash_count), (1, 0, 0));
    }
    assert!(resumed.elapsed() < Duration::from_secs(5));
    assert_eq!(world.mails.load(Ordering::SeqCst), 8);
    retry.shutdown().await.unwrap();
}

async fn every_process_sees_it_and_no_other_project(db: Arc<TestDb>) {
    let (first, _) = start(&db).await;
    let (second, world) = start(&db).await;
    let (other, others) = builder(&db);
    let other = other.project("other").start().await.unwrap();
    first.sources().pause(Sources::Mail).await.unwrap();
    let mut left = Vec::new();
    within(Duration::from_secs(6), "the other process sees the pause", async || {
        match mail(1).on(&second).await {
            Ok(_) => false,
            Err(error) => {
                left.push(error.id().unwrap());
                error.is_deferred()
            }
        }
    })
    .await;
    let before = world.mails.load(Ordering::SeqCst);
    left.push(is_left_alone(mail(2).on(&second)).await);
    left.push(mail(3).on(&second).enqueue().await.unwrap().id());
    a_while().await;
    assert_eq!(world.mails.load(Ordering::SeqCst), before);
    assert_eq!(mail(4).on(&other).await.unwrap(), 4);
    assert!(other.sources().paused().await.unwrap().is_empty());
    assert_eq!(others.mails.load(Ordering::SeqCst), 1);

    // A pause outlives its process, and one that starts later knows it from the start.
    first.shutdown().await.unwrap();
    let (third, started) = start(&db).await;
    a_while().await;
    assert_eq!(started.mails.load(Ordering::SeqCst), 0);
    is_left_alone(mail(5).on(&third)).await;
    third.sources().resume(Sources::Mail).await.unwrap();
    for id in left {
        becomes(&third, id, Status::Succeeded).await;
    }
    within(Duration::from_secs(6), "the other process sees the end of the pause", async || {
        mail(6).on(&second).await.is_ok()
    })
    .await;
    for retry in [second, third, other] {
        retry.shutdown().await.unwrap();
    }
}

async fn what_waits_in_memory_is_handed_back(db: Arc<TestDb>) {
    let (builder, world) = builder(&db);
    let pool = task_retry::ThreadPoolParam { max_pool_size: 2, ..Default::default() };
    let retry = builder.thread_pool_param(pool).start().await.unwrap();
    let calls = (0..40).map(|_| print().on(&retry).enqueue());
    let ids: Vec<TaskId> = join_all(calls).await.into_iter().map(|it| it.unwrap().id()).collect();
    world.gate.wait_for(1).await;
    let awaited = tokio::spawn(print().on(&retry).into_future());
    world.gate.wait_for(2).await;
    let running = retry.worker_id().to_owned();
    let held = async || {
        let tasks = retry.tasks().list(Filter::all().source(241)).await.unwrap();
        tasks.iter().filter(|task| task.locked_by.as_ref() == Some(&running)).count()
    };
    assert!(held().await > 30);
    retry.sources().pause(Sources::Print).await.unwrap();
    until("only what runs is held", async || held().await == 2).await;
    // What runs goes on, also to its end; its retry waits.
    world.gate.open(2);
    let error = awaited.await.unwrap().unwrap_err();
    assert!(error.is_deferred() && error.to_string().contains("no paper"), "{error}");
    until("nothing is held", async || held().await == 0).await;
    a_while().await;
    assert_eq!(world.gate.came(), 2);
    let failed = retry.tasks().count(Filter::all().status(Status::Retrying)).await.unwrap();
    assert_eq!(failed, 2);

    world.gate.open(1000);
    retry.sources().resume(Sources::Print).await.unwrap();
    for id in ids {
        let task = becomes(&retry, id, Status::Succeeded).await;
        assert_eq!((task.send_count, task.crash_count), (1, 0));
    }
    retry.shutdown().await.unwrap();
}

/// Where no workers run, nobody reads the table but those who are about to run something.
async fn passes_leave_it_out(db: Arc<TestDb>) {
    let (pauses, _) = builder(&db);
    let pauses = pauses.job(false).start().await.unwrap();
    let (runs, world) = builder(&db);
    let runs = runs.job(false).start().await.unwrap();
    let id = mail(1).on(&runs).enqueue().await.unwrap().id();
    pauses.sources().pause(Sources::Mail).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(runs.run_due(None).await.unwrap().claimed, 0);
    is_left_alone(mail(2).on(&runs)).await;
    let report = runs.run_due(Some(vec![id])).await.unwrap();
    assert_eq!((report.claimed, report.succeeded), (1, 1));
    assert_eq!(world.mails.load(Ordering::SeqCst), 1);

    pauses.sources().resume(Sources::Mail).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(mail(3).on(&runs).await.unwrap(), 3);
    assert_eq!(runs.run_due(None).await.unwrap().succeeded, 1);
    pauses.shutdown().await.unwrap();
    runs.shutdown().await.unwrap();
}

async fn what_is_asked_for_by_id_runs_in_a_full_pool(db: Arc<TestDb>) {
    let (builder, world) = builder(&db);
    let pool = task_retry::ThreadPoolParam { max_pool_size: 1, ..Default::default() };
    let retry = builder.thread_pool_param(pool).start().await.unwrap();
    retry.sources().pause(Sources::Mail).await.unwrap();
    let id = mail(1).on(&retry).enqueue().await.unwrap().id();
    print().on(&retry).enqueue().await.unwrap();
    world.gate.wait_for(1).await;
    let pass = {
        let retry = retry.clone();
        tokio::spawn(async move { retry.run_due(Some(vec![id])).await })
    };
    until("it is held", async || task(&retry, id).await.locked_by.is_some()).await;
    // A further pause does not take it back.
    retry.sources().pause(77).await.unwrap();
    world.gate.open(2);
    assert_eq!(pass.await.unwrap().unwrap().succeeded, 1);
    retry.shutdown().await.unwrap();
}

async fn nothing_is_lost_between_pauses(db: Arc<TestDb>) {
    let (first, ran) = start(&db).await;
    let (second, also) = start(&db).await;
    let toggle = {
        let retry = first.clone();
        tokio::spawn(async move {
            for _ in 0..15 {
                retry.sources().pause(Sources::Mail).await.unwrap();
                tokio::time::sleep(Duration::from_millis(7)).await;
                retry.sources().resume(Sources::Mail).await.unwrap();
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
        })
    };
    let mut ids = Vec::new();
    for round in 0..20 {
        let calls =
            (0..20).map(|n| mail(n).on(if n % 2 == 0 { &first } else { &second }).enqueue());
        ids.extend(join_all(calls).await.into_iter().map(|it| it.unwrap().id()));
        if let Err(error) = mail(round).on(&first).await {
            assert!(error.is_deferred(), "{error}");
            ids.push(error.id().unwrap());
        }
    }
    toggle.await.unwrap();
    assert!(first.sources().paused().await.unwrap().is_empty());
    for id in &ids {
        let task = becomes(&first, *id, Status::Succeeded).await;
        assert_eq!((task.send_count, task.crash_count), (0, 0));
    }
    let runs = ran.mails.load(Ordering::SeqCst) + also.mails.load(Ordering::SeqCst);
    assert_eq!(u64::from(runs), first.tasks().count(Filter::all()).await.unwrap());
    first.shutdown().await.unwrap();
    second.shutdown().await.unwrap();
}

async fn a_paused_task_can_be_ended(db: Arc<TestDb>) {
    let (retry, world) = start(&db).await;
    retry.sources().pause(Sources::Mail).await.unwrap();
    mail(1).on(&retry).enqueue().await.unwrap();
    let id = only_task(&retry).await.id;
    retry.tasks().retry_now(Filter::ids([id])).await.unwrap();
    retry.fail(id, "the post is on strike").await.unwrap();
    assert_eq!(task(&retry, id).await.status, Status::Retrying);
    retry.complete(id).await.unwrap();
    assert_eq!(task(&retry, id).await.status, Status::Succeeded);
    assert_eq!(world.mails.load(Ordering::SeqCst), 0);
    retry.shutdown().await.unwrap();
}

contract!(
    nothing_of_a_paused_source_starts,
    every_process_sees_it_and_no_other_project,
    what_waits_in_memory_is_handed_back,
    passes_leave_it_out,
    what_is_asked_for_by_id_runs_in_a_full_pool,
    nothing_is_lost_between_pauses,
    a_paused_task_can_be_ended,
);
