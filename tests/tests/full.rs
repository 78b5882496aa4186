//! Databases whose disk is full for a while.

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sea_orm::ConnectionTrait;
use task_retry::{CallError, Filter, Status, TaskContext, TaskRetry, retryable};
use task_retry_tests::disk::Tmpfs;
use task_retry_tests::heard::{Heard, check};
use task_retry_tests::server::Server;
use task_retry_tests::worker::{How, Ledger, Scene, WORK};
use task_retry_tests::{Kind, TestDb, each_at_once, within};
use tokio::task::JoinSet;

/// How long a call may take to say that it cannot be stored.
const ANSWER: Duration = Duration::from_secs(60);

/// Succeeds; its text takes room.
#[retryable(source = WORK, max_retry = 100, first_execute = "0s", delay_base = "0s")]
async fn work(
    number: u64,
    text: String,
    #[context] context: &TaskContext,
    #[state] ledger: Arc<Ledger>,
) -> Result<(), String> {
    let _ = text;
    ledger.attempt(context, number).run(&[How::Ok]).await
}

/// That no database can make smaller.
fn text() -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(16_000).collect()
}

/// What the callers heard, and what errors said.
#[derive(Default)]
struct Told {
    heard: Mutex<Vec<(u64, Heard)>>,
    enqueue: Mutex<Vec<String>>,
    call: Mutex<Vec<String>>,
}

impl Told {
    fn hear(&self, number: u64, heard: Heard) -> bool {
        self.heard.lock().unwrap().push((number, heard));
        heard == Heard::Stored
    }

    async fn enqueue(&self, retry: &TaskRetry, number: u64) -> bool {
        let began = Instant::now();
        let result = work(number, text()).on(retry).enqueue().await;
        assert!(began.elapsed() < ANSWER, "call {number} was answered after {:?}", began.elapsed());
        if let Err(error) = &result {
            self.enqueue.lock().unwrap().push(chain(error));
        }
        self.hear(number, Heard::of_enqueue(number, result))
    }

    async fn call(&self, retry: &TaskRetry, number: u64) -> bool {
        let began = Instant::now();
        let result = work(number, text()).on(retry).await;
        if let Err(CallError::Rejected(error) | CallError::Uncertain { error, .. }) = &result {
            let took = began.elapsed();
            assert!(took < ANSWER, "call {number} was answered after {took:?}");
            self.call.lock().unwrap().push(chain(error));
        }
        // What is stored and has run waits until its end can be written, too.
        self.hear(number, Heard::of_call(number, result))
    }

    /// Whether callers of both kinds were refused.
    fn refused(&self) -> bool {
        !self.enqueue.lock().unwrap().is_empty() && !self.call.lock().unwrap().is_empty()
    }

    /// What an error said, in which these words are.
    fn says(&self, what: &str) -> bool {
        let errors = [&self.enqueue, &self.call];
        errors.iter().any(|errors| errors.lock().unwrap().iter().any(|it| it.contains(what)))
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

async fn a_full_disk_loses_nothing(kind: Kind) {
    // What the server makes for itself, and some tens of megabytes.
    let (size, name, says) = match kind {
        Kind::Sqlite => (64, "", &["database or disk is full"][..]),
        Kind::Postgres => (128, "postgres", &["No space left on device", "PANIC"][..]),
        // It may abort, when it cannot roll a statement back.
        _ => (256, "mariadb", &["failed with error 28"][..]),
    };
    let Some(disk) = Tmpfs::mount(size) else { return };
    let (server, db) = if kind == Kind::Sqlite {
        (None, TestDb::sqlite_in(disk.path()))
    } else {
        let folder = disk.path().to_str().unwrap();
        // Small files of its log, so that it comes to the end of one.
        let settings = [("DATABASE_FOLDER", folder), ("POSTGRES_INITDB", "--wal-segsize=1")];
        let Some(server) = Server::start_with(name, "-full", &settings).await else { return };
        let db = TestDb::create_at(kind, &server.url()).await;
        (Some(server), db)
    };
    let mut scene = Scene::new(&Arc::new(db)).await;
    let connection = scene.db.connect().await;
    let ledger = Arc::new(Ledger::open(scene.ledger.path()));
    let retry = scene.db.builder().shared_state(ledger).start().await.unwrap();
    let logged = |what: &str| {
        let log =
            server.as_ref().map(|server| std::fs::read_to_string(server.path("log")).unwrap());
        log.is_some_and(|log| log.contains(what))
    };
    let told = Arc::new(Told::default());
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let enqueues = async {
        for number in (1000..).take_while(|_| !*stopped.borrow()) {
            told.enqueue(&retry, number).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let calls = async {
        let mut calls = JoinSet::new();
        for number in (1_000_000..).take_while(|_| !*stopped.borrow()) {
            let (told, retry) = (told.clone(), retry.clone());
            calls.spawn(async move { told.call(&retry, number).await });
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        calls.join_all().await;
    };
    let disk_is_full = async {
        within(Duration::from_secs(60), "the load runs", async || {
            scene.count(Filter::all().status(Status::Succeeded)).await > 20
        })
        .await;
        let full = within(Duration::from_secs(90), "the callers are told, and why", async || {
            disk.fill();
            if kind == Kind::Postgres {
                // It panics when it cannot begin a file of its log.
                let _ = connection.execute_unprepared("select pg_switch_wal()").await;
            }
            told.refused() && says.iter().all(|says| told.says(says) || logged(says))
        })
        .await;
        // Some more of it.
        tokio::time::sleep(Duration::from_secs(2)).await;
        disk.clear();
        within(Duration::from_secs(90), "calls are accepted again", async || {
            if let Some(server) = &server {
                // Only if it has ended, which may take it a while.
                server.restart().await;
            }
            let number = 2_000_000 + told.heard.lock().unwrap().len() as u64;
            told.enqueue(&retry, number).await && told.call(&retry, 1_000_000 + number).await
        })
        .await;
        let _ = stop.send(true);
        full
    };
    let ((), (), full) = tokio::join!(enqueues, calls, disk_is_full);
    let heard = std::mem::take(&mut *told.heard.lock().unwrap());
    let count = |what| heard.iter().filter(|(_, heard)| *heard == what).count();
    println!(
        "{kind:?}: {} stored, {} rejected, {} uncertain, {:.1} s until all were told; {}",
        count(Heard::Stored),
        count(Heard::Rejected),
        count(Heard::Uncertain),
        full.as_secs_f64(),
        told.enqueue.lock().unwrap()[0],
    );
    // Its own connections were lost, too.
    scene.look_anew().await;
    check(&scene, &heard).await;
    retry.shutdown().await.unwrap();
    scene.end().await;
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_loses_nothing() {
    let kinds = [Kind::Sqlite, Kind::Postgres, Kind::MariaDb];
    each_at_once(&kinds, a_full_disk_loses_nothing).await;
}
