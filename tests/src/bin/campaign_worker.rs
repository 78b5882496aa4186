//! A process of a campaign: it calls `work` and runs it, until it is killed or its input ends; see
//! `task_retry_tests::campaign`.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sea_orm::{ConnectOptions, Database, DatabaseConnection, TransactionTrait};
use task_retry::{Config, ErrorKind, TaskContext, TaskRetry, enqueue_all, failpoints, retryable};
use task_retry_tests::campaign::{LEASE, Ledger, Line, POLL, Settings, WORK, now};
use task_retry_tests::worker::{settings, uptime};

/// Takes a while, and fails now and then.
#[retryable(source = WORK, max_retry = 1000, first_execute = "1s", delay_base = "1s", delay_multiplier = 1)]
async fn work(
    number: u64,
    #[context] context: &TaskContext,
    #[state] ledger: Arc<Ledger>,
) -> Result<(), String> {
    let running = Attempt { context, ledger: &ledger, ended: false };
    let (id, fence, pid) = (context.id().get(), context.task().fence, std::process::id());
    let (attempt, crashes) = (context.attempt(), context.task().crash_count);
    ledger.write(&Line::Start { id, fence, attempt, crashes, pid, at: now() });
    let mut random = fastrand::Rng::with_seed(number ^ u64::from(context.attempt()));
    let millis = if random.u8(..) < 10 { 200 } else { random.u64(..10) };
    tokio::time::sleep(Duration::from_millis(millis)).await;
    running.end(random.u8(..) < 240)
}

struct Attempt<'a> {
    context: &'a TaskContext,
    ledger: &'a Ledger,
    ended: bool,
}

impl Attempt<'_> {
    fn end(mut self, ok: bool) -> Result<(), String> {
        self.ended = true;
        let (id, fence) = (self.context.id().get(), self.context.task().fence);
        // In this order: whether it is held is asked after the time that is written down.
        let at = now();
        let held = self.context.holds();
        self.ledger.write(&Line::End { id, fence, ok, held, pid: std::process::id(), at });
        if ok { Ok(()) } else { Err("told to fail".to_owned()) }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let (id, fence) = (self.context.id().get(), self.context.task().fence);
            let pid = std::process::id();
            self.ledger.write(&Line::Dropped { id, fence, pid, at: now() });
        }
    }
}

fn main() {
    let settings: Settings = settings("error");
    let ledger = Arc::new(Ledger::open(&settings.folder));
    if let Some((point, times)) = settings.at.clone() {
        kill_at(ledger.clone(), point, times);
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a tokio runtime");
    runtime.block_on(run(settings, ledger));
    runtime.shutdown_background();
}

/// Writes it down when the wall clock is moved.
async fn watch_clock(ledger: Arc<Ledger>) {
    const FAR: Duration = Duration::from_secs(60);
    let read = || (SystemTime::now(), uptime());
    let mut last = read();
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let next = read();
        // It may be earlier than before.
        let expected = last.0 + (next.1 - last.1);
        let off = next.0.duration_since(expected).unwrap_or_else(|back| back.duration());
        if off > FAR {
            ledger.write(&Line::Moved { pid: std::process::id(), at: now() });
        }
        last = next;
    }
}

fn kill_at(ledger: Arc<Ledger>, point: String, times: u32) {
    let reached = AtomicU32::new(0);
    failpoints::set_hook(move |name| {
        if name == point && reached.fetch_add(1, Ordering::Relaxed) + 1 == times {
            ledger.write(&Line::Hit { point: point.clone(), pid: std::process::id(), at: now() });
            let _ = kill(Pid::this(), Signal::SIGKILL);
        }
    });
}

async fn run(settings: Settings, ledger: Arc<Ledger>) {
    let (ends, mut end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = ends.send(());
        // No orphan stays.
        std::thread::sleep(Duration::from_secs(60));
        std::process::exit(3);
    });
    tokio::spawn(watch_clock(ledger.clone()));
    // The database may be away at the moment.
    let retry = loop {
        match start(&settings, &ledger).await {
            Ok(retry) => break retry,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Store, "{error}");
                tracing::warn!(%error, "not started yet");
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                    _ = &mut end => return,
                }
            }
        }
    };
    if settings.first > 0 {
        let caller = Arc::new(Caller { ledger, next: AtomicU64::new(settings.first), settings });
        for _ in 0..CALLERS {
            tokio::spawn(caller.clone().call());
        }
    }
    let _ = end.await;
    retry.shutdown().await.expect("the runtime ends");
}

async fn start(settings: &Settings, ledger: &Arc<Ledger>) -> task_retry::Result<TaskRetry> {
    let mut pool = Config::default().thread_pool_param;
    (pool.core_pool_size, pool.max_pool_size, pool.queue_capacity) = (2, 32, 200);
    TaskRetry::builder()
        .project("test")
        .database(&settings.url)
        .thread_pool_param(pool)
        .migrate(false)
        .lease_second(LEASE.as_secs())
        .poll_interval_ms(POLL.as_millis() as u64)
        .shutdown_grace_second(0)
        .max_crash(1000)
        .shared_state(ledger.clone())
        .start()
        .await
}

/// Tasks that call, each after the answer to its last call.
const CALLERS: u32 = 8;

struct Caller {
    settings: Settings,
    ledger: Arc<Ledger>,
    next: AtomicU64,
}

impl Caller {
    fn accepted(&self, id: i64) {
        self.ledger.write(&Line::Accepted { id, at: now() });
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    async fn call(self: Arc<Self>) {
        let mut options = ConnectOptions::new(&self.settings.url);
        options.max_connections(1).sqlx_logging(false).connect_lazy(true);
        let Ok(db) = Database::connect(options).await else { return };
        let pause = Duration::from_secs(1) * CALLERS / self.settings.rate;
        while !self.settings.folder.join("stop").exists() {
            tokio::join!(self.once(&db), tokio::time::sleep(pause));
        }
    }

    /// In every way that there is. An error is the caller's to hear; what was not accepted is not
    /// written down.
    async fn once(&self, db: &DatabaseConnection) {
        let number = self.number();
        match fastrand::u8(..10) {
            0..4 => {
                if let Ok(stored) = work(number).enqueue().await {
                    self.accepted(stored.id().get());
                }
            }
            4 => {
                if let Ok(stored) = work(number).key(number.to_string()).enqueue().await {
                    self.accepted(stored.id().get());
                }
            }
            5 => {
                let numbers = [number, self.number(), self.number()];
                if let Ok(stored) = enqueue_all(numbers.map(work)).await {
                    stored.iter().for_each(|one| self.accepted(one.id().get()));
                }
            }
            6 => {
                let Ok(transaction) = db.begin().await else { return };
                let Ok(stored) = work(number).enqueue_in(&transaction).await else { return };
                if transaction.commit().await.is_ok() {
                    self.accepted(stored.id().get());
                }
            }
            // The attempt itself tells the id of a call that succeeded.
            _ => match work(number).await {
                Ok(()) => {}
                Err(error) if error.is_deferred() => {
                    self.accepted(error.id().expect("it is stored").get());
                }
                Err(_) => {}
            },
        }
    }
}
