//! Everything at once: calls, failures, people who interfere, processes that come and go. What callers
//! were told has to be true all the same, and nothing may be lost or stuck.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use task_retry::{
    Builder, CallError, CauseKind, ErrorKind, Filter, Outcome, Status, TaskContext, TaskId,
    TaskRetry, retryable,
};
use task_retry_tests::{TestDb, contract, task, until};

/// How often each task has run, and whether any may still fail.
#[derive(Default)]
struct World {
    runs: Mutex<HashMap<TaskId, u32>>,
    calm: AtomicBool,
}

#[retryable(source = 100, first_execute = "0s", delay_base = "0s", max_retry = 3)]
async fn work(
    number: u32,
    #[state] world: &World,
    #[context] ctx: &TaskContext,
) -> Result<Outcome<u32>, String> {
    *world.runs.lock().unwrap().entry(ctx.id()).or_default() += 1;
    for _ in 0..fastrand::u32(0..50) {
        tokio::task::yield_now().await;
    }
    match fastrand::u8(0..20) {
        _ if world.calm.load(Ordering::SeqCst) => Ok(Outcome::Done(number)),
        0..6 => Err("bad luck".into()),
        6 => Ok(Outcome::Pending { deadline: Duration::from_millis(50) }),
        _ => Ok(Outcome::Done(number)),
    }
}

fn builder(db: &TestDb, world: &Arc<World>) -> Builder {
    let mut pool = task_retry::Config::default().thread_pool_param;
    (pool.core_pool_size, pool.max_pool_size, pool.queue_capacity) = (2, 4, 8);
    db.builder().shared_state(world.clone()).thread_pool_param(pool).shutdown_grace_second(0)
}

/// Calls until the runtime is closed, and returns the tasks that succeeded by what it was told.
async fn call(retry: TaskRetry) -> Vec<TaskId> {
    let mut done = Vec::new();
    for number in 0.. {
        let key = format!("{number} {}", fastrand::u64(..));
        match work(number).key(&key).on(&retry).await {
            Ok(Outcome::Done(value)) => {
                assert_eq!(value, number);
                let [task] = &retry.tasks().list(Filter::all().unique_key(key)).await.unwrap()[..]
                else {
                    panic!("a success is there")
                };
                done.push(task.id);
            }
            Ok(Outcome::Pending { .. }) => {}
            Err(CallError::Superseded { .. }) => {}
            Err(CallError::Deferred { cause, .. } | CallError::Failed { cause, .. }) => {
                assert_ne!(cause.kind(), CauseKind::TimedOut);
            }
            Err(CallError::Rejected(error)) => {
                assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
                return done;
            }
            Err(error) => panic!("{error}"),
        }
        if work(number).on(&retry).enqueue().await.is_err() {
            return done;
        }
    }
    unreachable!("it is closed before that")
}

/// Interferes until the runtime is closed.
async fn interfere(retry: TaskRetry) {
    loop {
        let after = TaskId::from(fastrand::i64(..));
        let open = Filter::all().status(Status::Executing).status(Status::Retrying);
        let open = open.status(Status::Waiting).limit(fastrand::u64(1..10));
        let ids: Vec<_> = match retry.tasks().list(open.after(after)).await {
            Ok(tasks) => tasks.into_iter().map(|task| task.id).collect(),
            Err(error) => panic!("{error}"),
        };
        for id in ids {
            let result = match fastrand::u8(0..5) {
                0 => retry.complete(id).await,
                1 | 2 => retry.fail(id, "from outside").await,
                3 => retry.tasks().cancel(Filter::ids([id])).await.map(drop),
                _ => retry.tasks().retry_now(Filter::all().limit(3)).await.map(drop),
            };
            match result.map_err(|error| error.kind()) {
                Ok(()) | Err(ErrorKind::Conflict) => {}
                Err(ErrorKind::Closed) => return,
                Err(kind) => panic!("{kind:?}"),
            }
        }
        if retry.run_due(None).await.is_err() {
            return;
        }
    }
}

async fn in_turmoil_what_callers_are_told_is_true(db: Arc<TestDb>) {
    let world = Arc::new(World::default());
    let mut told = Vec::new();
    let last = builder(&db, &world).start().await.unwrap();
    for _ in 0..3 {
        let first = builder(&db, &world).start().await.unwrap();
        let second = builder(&db, &world).start().await.unwrap();
        let busy =
            [&first, &second, &first, &second].map(|retry| tokio::spawn(call(retry.clone())));
        let people = [&first, &second].map(|retry| tokio::spawn(interfere(retry.clone())));
        let count = last.tasks().count(Filter::all()).await.unwrap();
        until("much has been called", async || {
            last.tasks().count(Filter::all()).await.unwrap() > count + 100
        })
        .await;
        first.shutdown().await.unwrap();
        second.shutdown().await.unwrap();
        for done in join_all(busy).await {
            told.extend(done.unwrap());
        }
        for person in join_all(people).await {
            person.unwrap();
        }
    }
    world.calm.store(true, Ordering::SeqCst);
    until("all is done", async || {
        last.tasks().retry_now(Filter::all()).await.unwrap();
        let left = last.tasks().count(Filter::all()).await.unwrap();
        left == last.tasks().count(Filter::all().status(Status::Succeeded)).await.unwrap()
    })
    .await;
    for id in told {
        let row = task(&last, id).await;
        assert_eq!((row.fence, row.send_count), (1, 0), "it has not run again: {row:?}");
        assert_eq!(world.runs.lock().unwrap()[&id], 1);
    }
    for row in last.tasks().list(Filter::all()).await.unwrap() {
        assert_eq!((row.locked_by, row.next_send_time, row.crash_count), (None, None, 0));
    }
    last.shutdown().await.unwrap();
}

contract!(in_turmoil_what_callers_are_told_is_true);
