//! Databases that go away, freeze, fall silent and lose answers, and rows that others lock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, Statement, TransactionTrait};
use task_retry::{
    CallError, Config, Filter, Status, TaskContext, TaskId, TaskRetry, enqueue_all, retryable,
};
use task_retry_tests::heard::{Heard, check};
use task_retry_tests::proxy::Proxy;
use task_retry_tests::server::Server;
use task_retry_tests::worker::{Command, Event, How, Ledger, Reply, Scene, WORK, Worker, uptime};
use task_retry_tests::{Kind, TestDb, at_once, becomes, each_at_once, task, within};

const LEASE: Duration = Duration::from_secs(5);
/// How long a call may take to say that the database is away.
const ANSWER: Duration = Duration::from_secs(30);

/// Does what its plan says for this attempt, like the worker's function of this name.
#[retryable(source = WORK, max_retry = 100, first_execute = "0s", delay_base = "0s")]
async fn work(
    number: u64,
    plan: Vec<How>,
    #[context] context: &TaskContext,
    #[state] ledger: Arc<Ledger>,
) -> Result<(), String> {
    ledger.attempt(context, number).run(&plan).await
}

/// A runtime with eight places that reaches the database by this URL.
async fn start(scene: &Scene, url: &str) -> TaskRetry {
    start_with(scene, url, 8).await
}

async fn start_with(scene: &Scene, url: &str, places: u32) -> TaskRetry {
    let mut pool = Config::default().thread_pool_param;
    (pool.core_pool_size, pool.max_pool_size) = (2, places);
    let ledger = Arc::new(Ledger::open(scene.ledger.path()));
    let builder = scene.db.builder().database(url).thread_pool_param(pool);
    builder.shared_state(ledger).start().await.expect("the runtime starts")
}

/// One without workers, which only calls.
async fn start_caller(scene: &Scene, url: &str) -> TaskRetry {
    let ledger = Arc::new(Ledger::open(scene.ledger.path()));
    let builder = scene.db.builder().database(url).job(false).shared_state(ledger);
    builder.start().await.expect("the runtime starts")
}

/// Awaits a call, and demands an answer in time.
async fn call(retry: &TaskRetry, number: u64, plan: Vec<How>) -> Heard {
    let began = Instant::now();
    let result = tokio::time::timeout(2 * ANSWER, work(number, plan).on(retry).into_future()).await;
    let took = began.elapsed();
    assert!(took < ANSWER, "call {number} was answered after {took:?}: {result:?}");
    Heard::of_call(number, result.unwrap())
}

/// Enqueues calls from a number on, one after another, until it is told to stop.
fn enqueue_steadily(
    retry: &TaskRetry,
    first: u64,
) -> (tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<Vec<(u64, Heard)>>) {
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let retry = retry.clone();
    let load = tokio::spawn(async move {
        let mut heard = Vec::new();
        for number in first.. {
            if stopped.try_recv().is_ok() {
                break;
            }
            let began = Instant::now();
            let result = work(number, vec![How::Ok]).on(&retry).enqueue().await;
            let took = began.elapsed();
            assert!(took < ANSWER, "call {number} was answered after {took:?}: {result:?}");
            heard.push((number, Heard::of_enqueue(number, result)));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        heard
    });
    (stop, load)
}

/// Two processes, one of which runs tasks while the database goes away for two leases.
async fn outage(
    scene: &Scene,
    url: &str,
    go_away: impl AsyncFnOnce(),
    come_back: impl AsyncFnOnce(),
) {
    let (holder, peer) = (start(scene, url).await, start(scene, url).await);
    let (during, after) = (scene.gate("during"), scene.gate("after"));
    let awaited = {
        let (holder, plan) = (holder.clone(), vec![How::Gate(during.clone()), How::Hang]);
        // It waits for the end of the outage.
        tokio::spawn(async move { work(1, plan).on(&holder).await })
    };
    let enqueue = async |number, gate: &std::path::PathBuf| {
        let plan = vec![How::Gate(gate.clone()), How::Hang];
        work(number, plan).on(&holder).enqueue().await.unwrap().id()
    };
    let (ends_during, ends_after) = (enqueue(2, &during).await, enqueue(3, &after).await);
    for number in 1..=3 {
        scene.ledger.wait_for(number, Event::Start, 1).await;
    }
    let loads = [enqueue_steadily(&holder, 1000), enqueue_steadily(&peer, 5000)];
    within(Duration::from_secs(10), "the load runs", async || {
        scene.count(Filter::all().status(Status::Succeeded)).await > 20
    })
    .await;

    let began = Instant::now();
    go_away().await;
    let calls = join_all((10..15).map(|number| call(&holder, number, vec![How::Ok])));
    let rest = async {
        tokio::time::sleep(LEASE / 2).await;
        scene.open(&during);
        scene.ledger.wait_for(2, Event::End, 1).await;
        tokio::time::sleep((2 * LEASE).saturating_sub(began.elapsed())).await;
        come_back().await;
    };
    let (calls, ()) = tokio::join!(calls, rest);
    let mut heard: Vec<_> = (10..15).zip(calls).collect();

    // What ended meanwhile was kept and is written; what still runs keeps its task.
    awaited.await.unwrap().unwrap();
    let row = becomes(&scene.retry, ends_during, Status::Succeeded).await;
    assert_eq!((row.fence, row.crash_count), (1, 0));
    within(Duration::from_secs(20), "the lease is renewed again", async || {
        task(&scene.retry, ends_after).await.next_send_time > Some(scene.retry.now())
    })
    .await;
    scene.open(&after);
    let row = becomes(&scene.retry, ends_after, Status::Succeeded).await;
    assert_eq!((row.fence, row.crash_count), (1, 0), "it was not taken over");

    // Both go on as before.
    for (retry, number) in [(&holder, 20), (&peer, 21)] {
        within(Duration::from_secs(20), "calls are accepted again", async || {
            call(retry, number, vec![How::Ok]).await == Heard::Stored
        })
        .await;
    }
    for (stop, load) in loads {
        let _ = stop.send(());
        heard.extend(load.await.unwrap());
    }
    heard.extend((1..=3).map(|number| (number, Heard::Stored)));
    check(scene, &heard).await;
    holder.shutdown().await.unwrap();
    peer.shutdown().await.unwrap();
}

async fn a_database_that_goes_away_and_comes_back_loses_nothing(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let proxy = Proxy::start(&db.url).await;
    let url = proxy.url(&db.url);
    outage(&scene, &url, async || proxy.cut(), async || proxy.restore()).await;
    scene.end().await;
}

async fn a_server_that_is_killed_and_comes_back_loses_nothing(kind: Kind) {
    let Some(server) = Server::start(kind).await else { return };
    let db = Arc::new(TestDb::create_at(kind, &server.url()).await);
    let scene = Scene::new(&db).await;
    outage(&scene, &db.url, async || server.kill(), async || server.restart().await).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing() {
    each_at_once(&Kind::SERVERS, a_server_that_is_killed_and_comes_back_loses_nothing).await;
}

async fn a_database_that_freezes_and_thaws_loses_nothing(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let proxy = Proxy::start(&db.url).await;
    let url = proxy.url(&db.url);
    outage(&scene, &url, async || proxy.freeze(), async || proxy.thaw()).await;
    scene.end().await;
}

/// Also while ends of attempts wait to be written, and in a process without workers.
async fn no_caller_waits_for(scene: &Scene, url: &str, go: impl Fn(), come_back: impl Fn()) {
    let (retry, caller) = (start(scene, url).await, start_caller(scene, url).await);
    let gate = scene.gate("during");
    for number in 1..=4 {
        let plan = vec![How::Gate(gate.clone()), How::Hang];
        work(number, plan).on(&retry).enqueue().await.unwrap();
        scene.ledger.wait_for(number, Event::Start, 1).await;
    }
    go();
    scene.open(&gate);
    for number in 1..=4 {
        scene.ledger.wait_for(number, Event::End, 1).await;
    }
    // As good as for ever, for what a process remembers for a while.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let calls = join_all((10..30).map(|number| {
        let retry = if number < 20 { &retry } else { &caller };
        call(retry, number, vec![How::Ok])
    }));
    let many = async {
        let began = Instant::now();
        let calls = (30..35).map(|number| work(number, vec![How::Ok]).on(&caller));
        let many = tokio::time::timeout(2 * ANSWER, enqueue_all(calls)).await;
        assert!(began.elapsed() < ANSWER, "many calls were answered after {:?}", began.elapsed());
        Heard::of_enqueue(30, many.unwrap().map(|mut stored| stored.remove(0)))
    };
    let (calls, many) = tokio::join!(calls, many);
    let mut heard: Vec<_> = (10..30).zip(calls).collect();
    heard.extend((30..35).map(|number| (number, many)));
    assert!(heard.iter().all(|(_, heard)| *heard != Heard::Stored), "{heard:?}");
    come_back();
    within(Duration::from_secs(30), "calls are accepted again", async || {
        let number = heard.len() as u64 + 100;
        heard.push((number, call(&retry, number, vec![How::Ok]).await));
        heard.last().unwrap().1 == Heard::Stored
    })
    .await;
    heard.extend((1..=4).map(|number| (number, Heard::Stored)));
    check(scene, &heard).await;
    caller.shutdown().await.unwrap();
    retry.shutdown().await.unwrap();
}

async fn a_database_that_stays_away_keeps_no_caller_waiting(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let proxy = Proxy::start(&db.url).await;
    no_caller_waits_for(&scene, &proxy.url(&db.url), || proxy.cut(), || proxy.restore()).await;
    scene.end().await;
}

async fn a_database_that_stays_frozen_keeps_no_caller_waiting(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let proxy = Proxy::start(&db.url).await;
    no_caller_waits_for(&scene, &proxy.url(&db.url), || proxy.freeze(), || proxy.thaw()).await;
    scene.end().await;
}

/// As after the loss of a host: nobody says that the connections are gone.
async fn connections_that_fall_silent_are_replaced(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let proxy = Proxy::start(&db.url).await;
    let holder = start(&scene, &proxy.url(&db.url)).await;
    let peer = start(&scene, &db.url).await;
    let gate = scene.gate("only");
    let plan = vec![How::Gate(gate.clone()), How::Hang];
    let id = work(1, plan).on(&holder).enqueue().await.unwrap().id();
    scene.ledger.wait_for(1, Event::Start, 1).await;
    let mut heard = vec![(1, Heard::Stored)];
    proxy.silence();
    let silent = scene.retry.now();
    let calls = join_all((2..6).map(|number| call(&holder, number, vec![How::Ok]))).await;
    heard.extend((2..6).zip(calls));
    within(Duration::from_secs(20), "calls are accepted again", async || {
        let number = heard.len() as u64 + 10;
        heard.push((number, call(&holder, number, vec![How::Ok]).await));
        heard.last().unwrap().1 == Heard::Stored
    })
    .await;
    // The peer, which sees the database, has not found an expired lease.
    within(Duration::from_secs(20), "the lease is renewed", async || {
        let row = task(&scene.retry, id).await;
        assert_eq!((row.fence, row.crash_count), (1, 0), "it was taken over");
        row.next_send_time > Some(silent + 3 * LEASE)
    })
    .await;
    scene.open(&gate);
    becomes(&scene.retry, id, Status::Succeeded).await;
    check(&scene, &heard).await;
    holder.shutdown().await.unwrap();
    peer.shutdown().await.unwrap();
    scene.end().await;
}

/// The others see the database all the while, and take its tasks over.
async fn a_process_that_is_cut_off_changes_nothing_and_starts_nothing(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let proxy = Proxy::start(&db.url).await;
    let holder = start_with(&scene, &proxy.url(&db.url), 1).await;
    let gate = scene.gate("holder");
    let plan = vec![How::Gate(gate.clone()), How::Ok];
    let awaited = tokio::spawn(work(1, plan.clone()).on(&holder).into_future());
    // The only place, and one that waits for it.
    work(2, plan.clone()).on(&holder).enqueue().await.unwrap();
    for number in 1..=2 {
        scene.ledger.wait_for(number, Event::Start, 1).await;
    }
    work(3, plan).on(&holder).enqueue().await.unwrap();
    let peer = start(&scene, &db.url).await;
    proxy.cut();
    let cut = uptime();
    for number in 1..=2 {
        let again = scene.ledger.wait_for(number, Event::Start, 2).await;
        assert_eq!((again.fence, again.crashes), (2, 1));
        let after = again.at - cut;
        assert!(after < LEASE + Duration::from_secs(2), "it was taken over after {after:?}");
    }
    within(Duration::from_secs(10), "all succeed elsewhere", async || {
        scene.count(Filter::all().status(Status::Succeeded)).await == 3
    })
    .await;
    let rows = scene.retry.tasks().list(Filter::all()).await.unwrap();

    scene.open(&gate);
    for number in 1..=2 {
        scene.ledger.wait_for(number, Event::End, 2).await;
    }
    proxy.restore();
    let error = awaited.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Superseded { .. }), "{error:?}");
    // It ends when it has nothing more to write.
    holder.shutdown().await.unwrap();
    assert_eq!(scene.retry.tasks().list(Filter::all()).await.unwrap(), rows);
    let third: Vec<_> = scene.ledger.of(3).iter().map(|seen| (seen.event, seen.fence)).collect();
    assert_eq!(third, [(Event::Start, 2), (Event::End, 2)], "its lease was over before its turn");
    peer.shutdown().await.unwrap();
    scene.end().await;
}

async fn connections_that_the_server_ends_lose_nothing(db: Arc<TestDb>) {
    let mut scene = Scene::new(&db).await;
    let (first, second) = (start(&scene, &db.url).await, start(&scene, &db.url).await);
    let loads = [enqueue_steadily(&first, 1000), enqueue_steadily(&second, 5000)];
    for round in 1..=10 {
        within(Duration::from_secs(20), "the load runs", async || scene.ledger.len() > 40 * round)
            .await;
        end_connections(&scene).await;
    }
    let mut heard = Vec::new();
    for (stop, load) in loads {
        let _ = stop.send(());
        heard.extend(load.await.unwrap());
    }
    // Its own connections were ended, too.
    scene.look_anew().await;
    check(&scene, &heard).await;
    first.shutdown().await.unwrap();
    second.shutdown().await.unwrap();
    scene.end().await;
}

async fn end_connections(scene: &Scene) {
    let connection = scene.db.connect().await;
    let backend = connection.get_database_backend();
    let own = |sql: &str| Statement::from_string(backend, sql);
    if scene.db.kind == Kind::Postgres {
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where datname = current_database() \
                   and pid <> pg_backend_pid()";
        connection.query_all_raw(own(sql)).await.unwrap();
    } else {
        let sql = "select cast(id as signed) from information_schema.processlist \
                   where db = database() and id <> connection_id()";
        for row in connection.query_all_raw(own(sql)).await.unwrap() {
            let id: i64 = row.try_get_by_index(0).unwrap();
            // It may have ended by itself.
            let _ = connection.execute_unprepared(&format!("kill {id}")).await;
        }
    }
    connection.close().await.unwrap();
}

/// The thread that renews leases must not outlive those whose leases they are.
async fn a_tokio_runtime_that_is_dropped_keeps_no_lease(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let ledger = Arc::new(Ledger::open(scene.ledger.path()));
    let builder = db.builder().shared_state(ledger);
    let gone = tokio::runtime::Runtime::new().unwrap();
    let stored = gone.spawn(async move {
        let retry = builder.start().await.unwrap();
        work(1, vec![How::Hang, How::Ok]).on(&retry).enqueue().await.unwrap();
        // As the default of a process, which nobody drops.
        std::mem::forget(retry);
    });
    stored.await.unwrap();
    scene.ledger.wait_for(1, Event::Start, 1).await;
    let peer = start(&scene, &db.url).await;
    gone.shutdown_background();
    let dropped = scene.ledger.wait_for(1, Event::Dropped, 1).await;
    let again = scene.ledger.wait_for(1, Event::Start, 2).await;
    assert_eq!((again.fence, again.crashes), (2, 1));
    let after = again.at - dropped.at;
    assert!(after < LEASE + Duration::from_secs(2), "it was taken over after {after:?}");
    check(&scene, &[]).await;
    peer.shutdown().await.unwrap();
    scene.end().await;
}

/// Whichever answer is lost: of the insert, of the end of the attempt, or of what the driver asks.
async fn a_lost_answer_neither_loses_nor_doubles_a_task(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let proxy = Proxy::start(&db.url).await;
    let retry = start(&scene, &proxy.url(&db.url)).await;
    let mut heard = Vec::new();
    for fault in 0..24 {
        let (number, keyed) = (10 * u64::from(fault), fault >= 12);
        proxy.drop_answer(1 + fault % 12);
        // Some that run at once, some that run behind, and some with keys, until it has happened.
        let calls = async {
            for number in number..number + 10 {
                let work = work(number, vec![How::Ok]).on(&retry);
                let enqueued = match keyed {
                    true => work.key(number.to_string()).enqueue().await,
                    false if number % 10 < 5 => {
                        heard.push((number, call(&retry, number, vec![How::Ok]).await));
                        continue;
                    }
                    false => work.enqueue().await,
                };
                // One's own row is no duplicate.
                assert!(enqueued.as_ref().is_ok_and(|it| it.is_new()) || enqueued.is_err());
                heard.push((number, Heard::of_enqueue(number, enqueued)));
            }
        };
        tokio::join!(calls, proxy.dropped());
    }
    let stored = heard.iter().filter(|(_, heard)| *heard == Heard::Stored).count();
    // A connection that is lost while it is made is no connection.
    assert!(stored > heard.len() - 24, "{heard:?}");
    check(&scene, &heard).await;
    retry.shutdown().await.unwrap();
    scene.end().await;
}

async fn a_commit_that_cannot_be_asked_for_is_uncertain_and_runs_all_the_same(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let proxy = Proxy::start(&db.url).await;
    // No workers: nothing but the call speaks with the database.
    let caller = start_caller(&scene, &proxy.url(&db.url)).await;
    let peer = start(&scene, &db.url).await;
    for number in 1..20 {
        call(&caller, number, vec![How::Ok]).await;
    }
    proxy.cut_at_answer(1);
    let result = work(20, vec![How::Ok]).on(&caller).await;
    let Err(CallError::Uncertain { id, .. }) = result else {
        panic!("it is uncertain: {result:?}")
    };
    // It was stored, held by a process that does not know.
    let row = becomes(&scene.retry, id, Status::Succeeded).await;
    assert_eq!((row.fence, row.send_count), (2, 0));
    check(&scene, &[(20, Heard::Uncertain)]).await;
    proxy.restore();
    caller.shutdown().await.unwrap();
    peer.shutdown().await.unwrap();
    scene.end().await;
}

async fn a_locked_row_delays_no_other_lease(db: Arc<TestDb>) {
    let scene = Scene::new(&db).await;
    let (mut holder, idle): (Worker, Worker) = (scene.worker().await, scene.worker().await);
    let (locked, free) = (scene.gate("locked"), scene.gate("free"));
    let mut ids: Vec<TaskId> = Vec::new();
    for (number, gate) in [(0, &locked), (1, &free), (2, &free)] {
        let plan = vec![How::Gate(gate.clone()), How::Ok];
        let command = Command::Enqueue { numbers: number..number + 1, plan, key: None };
        let Reply::Enqueued(stored) = holder.ask(command).await else { panic!("not enqueued") };
        ids.push(stored[0].0.into());
        scene.ledger.wait_for(number, Event::Start, 1).await;
    }
    let connection = db.connect().await;
    let transaction = connection.begin().await.unwrap();
    let lock = format!("select id from t_sys_mq_resend_log where id = {} for update", ids[0]);
    let backend = transaction.get_database_backend();
    transaction.query_all_raw(Statement::from_string(backend, lock)).await.unwrap();
    let since = scene.retry.now();
    let renewed_until = async |time| {
        within(3 * LEASE, "the other leases are renewed", async || {
            let mut renewed = true;
            for id in &ids[1..] {
                let row = task(&scene.retry, *id).await;
                assert_eq!(row.fence, 1, "task {id} was taken over");
                renewed &= row.next_send_time > Some(time);
            }
            renewed
        })
        .await;
    };
    // At twice the lease they are renewed up to thrice.
    renewed_until(since + 3 * LEASE).await;
    assert!(scene.ledger.read().iter().all(|entry| entry.event == Event::Start));
    // Its end has to wait for the lock, and nothing else has to.
    scene.open(&locked);
    scene.ledger.wait_for(0, Event::End, 1).await;
    renewed_until(scene.retry.now() + LEASE).await;
    scene.open(&free);
    for id in &ids[1..] {
        let row = becomes(&scene.retry, *id, Status::Succeeded).await;
        assert_eq!((row.fence, row.send_count, row.crash_count), (1, 0, 0));
    }
    transaction.rollback().await.unwrap();
    // Its own lease has run out, so it may be taken over before its end is written.
    let row = becomes(&scene.retry, ids[0], Status::Succeeded).await;
    assert_eq!((row.send_count, row.crash_count), (0, 0));
    connection.close().await.unwrap();
    holder.shut_down().await;
    idle.shut_down().await;
    scene.end().await;
}

macro_rules! at_once {
    ($($name:ident on $kinds:expr,)*) => {
        mod at_once {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                at_once($kinds, super::$name).await;
            })*
        }
    };
}

at_once!(
    a_database_that_goes_away_and_comes_back_loses_nothing on &Kind::SERVERS,
    a_database_that_freezes_and_thaws_loses_nothing on &Kind::SERVERS,
    a_database_that_stays_away_keeps_no_caller_waiting on &Kind::SERVERS,
    a_database_that_stays_frozen_keeps_no_caller_waiting on &Kind::SERVERS,
    connections_that_fall_silent_are_replaced on &Kind::SERVERS,
    a_process_that_is_cut_off_changes_nothing_and_starts_nothing on &Kind::SERVERS,
    a_tokio_runtime_that_is_dropped_keeps_no_lease on &Kind::ALL,
    connections_that_the_server_ends_lose_nothing on &Kind::SERVERS,
    a_lost_answer_neither_loses_nor_doubles_a_task on &Kind::SERVERS,
    a_commit_that_cannot_be_asked_for_is_uncertain_and_runs_all_the_same on &Kind::SERVERS,
    a_locked_row_delays_no_other_lease on
        &[Kind::Postgres, Kind::MariaDb, Kind::MySql, Kind::Optimistic],
);
