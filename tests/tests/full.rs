//! Databases whose disk is full for a while.

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use task_retry::{CallError, Filter, Status, TaskContext, TaskRetry, retryable};
use task_retry_tests::disk::Tmpfs;
use task_retry_tests::heard::{Heard, check};
use task_retry_tests::server::Server;
use task_retry_tests::worker::{How, Ledger, Scene, WORK};
use task_retry_tests::{Kind, TestDb, each_at_once, within};

/// How long a call may take to say that it cannot be stored.
const ANSWER: Duration = Duration::from_secs(30);

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
        assert!(began.elapsed() < ANSWER, "call {number} was answered after {:?}", began.elapsed());
        if let Err(CallError::Rejected(error) | CallError::Uncertain { error, .. }) = &result {
            self.call.lock().unwrap().push(chain(error));
        }
        self.hear(number, Heard::of_call(number, result))
    }

    /// Whether callers of both kinds were told so.
    fn says(&self, what: &str) -> bool {
        let says = |errors: &Mutex<Vec<String>>| {
            errors.lock().unwrap().iter().any(|error| error.contains(what))
        };
        says(&self.enqueue) && says(&self.call)
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
        Kind::Sqlite => (64, "", "database or disk is full"),
        Kind::Postgres => (128, "postgres", "No space left on device"),
        _ => (256, "mariadb", "is full"),
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
    let scene = Scene::new(&Arc::new(db)).await;
    let ledger = Arc::new(Ledger::open(scene.ledger.path()));
    let retry = scene.db.builder().shared_state(ledger).start().await.unwrap();
    let told = Told::default();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let enqueues = async {
        for number in (1000..).take_while(|_| !*stopped.borrow()) {
            told.enqueue(&retry, number).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let calls = async {
        for number in (1_000_000..).take_while(|_| !*stopped.borrow()) {
            told.call(&retry, number).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let disk_is_full = async {
        within(Duration::from_secs(60), "the load runs", async || {
            scene.count(Filter::all().status(Status::Succeeded)).await > 20
        })
        .await;
        // The panic of PostgreSQL when it cannot write its log.
        let panicked = || match (&server, kind) {
            (Some(server), Kind::Postgres) => {
                std::fs::read_to_string(server.path("log")).unwrap().contains("PANIC")
            }
            _ => true,
        };
        within(
            Duration::from_secs(120),
            "the callers are told, and the server notices",
            async || {
                disk.fill();
                told.says(says) && panicked()
            },
        )
        .await;
        // Some more of it.
        tokio::time::sleep(Duration::from_secs(2)).await;
        disk.clear();
        if let Some(server) = &server {
            // Only if it ended.
            server.restart().await;
        }
        for number in 2_000_000.. {
            if told.enqueue(&retry, number).await && told.call(&retry, 1_000_000 + number).await {
                break;
            }
            assert!(number < 2_000_600, "calls are accepted again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let _ = stop.send(true);
    };
    tokio::join!(enqueues, calls, disk_is_full);
    let heard = told.heard.into_inner().unwrap();
    let count = |what| heard.iter().filter(|(_, heard)| *heard == what).count();
    println!(
        "{kind:?}: {} stored, {} rejected, {} uncertain; {:?}",
        count(Heard::Stored),
        count(Heard::Rejected),
        count(Heard::Uncertain),
        told.call.into_inner().unwrap().iter().find(|error| error.contains(says))
    );
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
