//! Worker processes to kill, pause and restart, and the ledger that their tasks write to.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use task_retry::{Filter, TaskContext, TaskRetry};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command as Program};

use crate::{Kind, TestDb, within};

/// The source of the worker's function `work`.
pub const WORK: i32 = 1000;
/// The source of the worker's function `bulk`, which does the same.
pub const BULK: i32 = 1001;

/// What a worker process is told at its start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// The database.
    pub url: String,
    /// Claims without `skip locked`.
    pub optimistic: bool,
    /// Where attempts are written down.
    pub ledger: PathBuf,
    /// `max-pool-size`
    pub places: u32,
    /// `queue-capacity`
    pub queue: u32,
    /// `lease-second`
    pub lease: u64,
    /// `poll-interval-ms`
    pub poll: u64,
    /// `shutdown-grace-second`
    pub grace: u64,
    /// Threads of its tokio runtime; 0: a `current_thread` one.
    pub threads: usize,
}

/// What a worker process is told to do later; it answers each with one [`Reply`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Enqueues a call of `work` for each number, all of them at the same time.
    Enqueue {
        /// The argument that names the call in the ledger.
        numbers: Range<u64>,
        /// The argument that says what the attempts do.
        plan: Vec<How>,
        /// One unique key for all of them.
        key: Option<String>,
    },
    /// Awaits a call of `work`.
    Await {
        /// As for `Enqueue`.
        number: u64,
        /// As for `Enqueue`.
        plan: Vec<How>,
    },
}

/// What a worker process says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// It has started.
    Ready,
    /// The ids, and whether they are new.
    Enqueued(Vec<(i64, bool)>),
    /// The result of an awaited call, as text.
    Ended(Result<(), String>),
    /// It has shut down.
    Bye,
}

/// What an attempt does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Succeeds at once.
    Ok,
    /// Fails at once.
    Fail,
    /// Never ends.
    Hang,
    /// Takes the process down.
    Abort,
    /// Succeeds after so many milliseconds.
    Sleep(u64),
    /// As `Sleep`, but blocks its thread.
    Block(u64),
    /// Succeeds when there is a file of this name.
    Gate(PathBuf),
    /// As `Gate`, but blocks its thread, so that it cannot be cancelled.
    BlockingGate(PathBuf),
}

impl How {
    /// Does it.
    ///
    /// # Errors
    /// If it is to fail.
    pub async fn perform(&self) -> Result<(), String> {
        const PAUSE: Duration = Duration::from_millis(2);
        match self {
            Self::Ok => {}
            Self::Fail => return Err("told to fail".to_owned()),
            Self::Hang => std::future::pending().await,
            Self::Abort => std::process::abort(),
            Self::Sleep(millis) => tokio::time::sleep(Duration::from_millis(*millis)).await,
            Self::Block(millis) => std::thread::sleep(Duration::from_millis(*millis)),
            Self::Gate(path) => {
                while !path.exists() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Self::BlockingGate(path) => {
                while !path.exists() {
                    std::thread::sleep(PAUSE);
                }
            }
        }
        Ok(())
    }
}

/// In a worker program: the settings, its one argument. Logs go to the standard error, from `level` on or
/// as `RUST_LOG` says.
pub fn settings<T: serde::de::DeserializeOwned>(level: &str) -> T {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| level.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let settings = std::env::args().nth(1).expect("one argument: the settings");
    serde_json::from_str(&settings).expect("settings are JSON")
}

/// The time since the machine was started, the same for all processes.
pub fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).expect("there is a monotonic clock").into()
}

/// A file to which all attempts of all processes are appended. It outlives their crashes, and needs
/// no database.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
}

/// What happened to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It started.
    Start,
    /// The body came to its end.
    End,
    /// The body was dropped before its end.
    Dropped,
}

/// A line of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What happened.
    pub event: Event,
    /// The task.
    pub id: i64,
    /// Its fence, which tells the claim.
    pub fence: i64,
    /// Its `crash_count`, as the attempt sees it.
    pub crashes: u32,
    /// The first argument of the call.
    pub number: u64,
    /// The process.
    pub pid: u32,
    /// When, by [`uptime`].
    pub at: Duration,
}

impl Ledger {
    /// Opens the ledger, which need not be there yet.
    pub fn open(path: &Path) -> Self {
        let file = File::options().create(true).append(true).open(path).expect("a ledger");
        Self { path: path.to_owned(), file }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the start of an attempt down, and its end when the answer is told so or dropped.
    pub fn attempt(self: &Arc<Self>, context: &TaskContext, number: u64) -> Attempt {
        let task = context.task();
        let entry = Entry {
            event: Event::Start,
            id: task.id.get(),
            fence: task.fence,
            crashes: task.crash_count,
            number,
            pid: std::process::id(),
            at: Duration::ZERO,
        };
        self.append(entry);
        Attempt { ledger: self.clone(), entry, ended: false }
    }

    /// One write for a line: lines of several processes do not mix.
    fn append(&self, entry: Entry) {
        let Entry { event, id, fence, crashes, number, pid, .. } = entry;
        let at = uptime().as_micros();
        let line = format!("{event:?} {id} {fence} {crashes} {number} {pid} {at}\n");
        (&self.file).write_all(line.as_bytes()).expect("the ledger takes a line");
    }

    /// How many lines there are at the least: a line has fewer than 70 bytes.
    pub fn len(&self) -> u64 {
        self.file.metadata().expect("the ledger is there").len() / 70
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything that was written so far.
    pub fn read(&self) -> Vec<Entry> {
        let text = std::fs::read_to_string(&self.path).expect("the ledger is there");
        // A line that is being written has no end yet.
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(parse).collect()
    }

    /// What happened to the attempts of one call.
    pub fn of(&self, number: u64) -> Vec<Entry> {
        self.read().into_iter().filter(|entry| entry.number == number).collect()
    }

    /// Waits until something has happened to the attempts of a call so many times.
    pub async fn wait_for(&self, number: u64, event: Event, times: usize) -> Entry {
        let found = || self.of(number).into_iter().filter(|entry| entry.event == event);
        within(
            Duration::from_secs(60),
            &format!("{event:?} of call {number}, {times} times"),
            async || found().count() >= times,
        )
        .await;
        found().nth(times - 1).expect("it was just there")
    }
}

fn parse(line: &str) -> Entry {
    let mut words = line.split_whitespace();
    let event = match words.next() {
        Some("Start") => Event::Start,
        Some("End") => Event::End,
        Some("Dropped") => Event::Dropped,
        other => panic!("no event: {other:?}"),
    };
    let mut next = || words.next().and_then(|word| word.parse::<i64>().ok()).expect("a number");
    Entry {
        event,
        id: next(),
        fence: next(),
        crashes: next() as u32,
        number: next() as u64,
        pid: next() as u32,
        at: Duration::from_micros(next() as u64),
    }
}

/// An attempt that was written to the ledger.
#[derive(Debug)]
pub struct Attempt {
    ledger: Arc<Ledger>,
    entry: Entry,
    ended: bool,
}

impl Attempt {
    /// What the n-th claim of a task does; the last of the plan is repeated.
    pub async fn run(mut self, plan: &[How]) -> Result<(), String> {
        let claim = usize::try_from(self.entry.fence - 1).unwrap_or(0);
        let how = plan.get(claim).or(plan.last()).expect("a plan says something");
        let result = how.perform().await;
        self.ended = true;
        result
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let event = if self.ended { Event::End } else { Event::Dropped };
        self.ledger.append(Entry { event, ..self.entry });
    }
}

/// A test's database, ledger and gates, and a runtime of its own that only looks.
#[derive(Debug)]
pub struct Scene {
    /// The database.
    pub db: Arc<TestDb>,
    /// A runtime without workers, to look at tasks.
    pub retry: TaskRetry,
    /// What the workers did.
    pub ledger: Ledger,
    folder: PathBuf,
}

impl Scene {
    /// Makes the folder and the table.
    pub async fn new(db: &Arc<TestDb>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("task-retry-scene-{}-{count}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        let retry = look(db).await;
        let ledger = Ledger::open(&folder.join("ledger"));
        Self { db: db.clone(), retry, ledger, folder }
    }

    /// Looks through new connections.
    pub async fn look_anew(&mut self) {
        let old = std::mem::replace(&mut self.retry, look(&self.db).await);
        old.shutdown().await.expect("the runtime ends");
    }

    /// The settings of its workers: eight places, a lease of 5 s, a poll every 100 ms.
    pub fn settings(&self) -> Settings {
        Settings {
            url: self.db.url.clone(),
            optimistic: self.db.kind == Kind::Optimistic,
            ledger: self.ledger.path().to_owned(),
            places: 8,
            queue: 1000,
            lease: 5,
            poll: 100,
            grace: 5,
            threads: 2,
        }
    }

    /// Starts a worker process with these settings.
    pub async fn worker(&self) -> Worker {
        Worker::start(&self.settings()).await
    }

    /// Stores so many rows of a source that are due, all in one statement, as if a process had stored
    /// them and gone: calls with the numbers from 0 on and this plan.
    pub async fn fill(&self, source: i32, count: u64, plan: &[How]) {
        let digits: Vec<String> = (0..10).map(|digit| format!("select {digit} as n")).collect();
        let digits = digits.join(" union all ");
        let numbers = format!(
            "(select a.n + 10 * b.n + 100 * c.n + 1000 * d.n + 10000 * e.n as n from ({digits}) a \
             cross join ({digits}) b cross join ({digits}) c cross join ({digits}) d \
             cross join ({digits}) e) numbers where n < {count}"
        );
        self.insert(source, plan, &numbers).await;
    }

    /// Stores one row that is due, as a transaction of somebody else's would.
    pub async fn store(&self, source: i32, number: u64, plan: &[How]) {
        self.insert(source, plan, &format!("(select {number} as n) numbers")).await;
    }

    async fn insert(&self, source: i32, plan: &[How], numbers: &str) {
        let name = if source == WORK { "work" } else { "bulk" };
        let plan = serde_json::to_string(plan).expect("a plan is JSON");
        let now = self.retry.now();
        let zone = if self.db.kind == Kind::Postgres { "+00" } else { "" };
        let time = now.format("%F %T%.3f");
        // Beside the runtime's own ids of about this time, and those of other sources.
        let first =
            ((now.timestamp_millis() - 1_288_834_974_657) << 22) + i64::from(source) * 10_000_000;
        self.db
            .execute(&format!(
                "insert into t_sys_mq_resend_log \
                 (id, project_name, source, task_name, next_send_time, context) \
                 select {first} + n, 'test', {source}, '{name}', '{time}{zone}', \
                 concat('{{\"number\":', n, ',\"plan\":{plan}}}') from {numbers}"
            ))
            .await;
    }

    /// How many tasks a filter matches.
    pub async fn count(&self, filter: Filter) -> u64 {
        self.retry.tasks().count(filter).await.expect("the database answers")
    }

    /// A gate that is shut.
    pub fn gate(&self, name: &str) -> PathBuf {
        self.folder.join(format!("gate-{name}"))
    }

    /// Opens a gate.
    pub fn open(&self, gate: &Path) {
        File::create(gate).expect("a gate can be opened");
    }

    /// Ends the runtime, and removes the folder; after a failure, it stays.
    pub async fn end(self) {
        self.retry.shutdown().await.expect("the runtime ends");
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn look(db: &TestDb) -> TaskRetry {
    let looker = db.builder().only::<()>().job(false);
    looker.start().await.expect("a runtime that looks")
}

/// A worker process; killed when it is dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    pid: Pid,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Starts one, and waits until it has started.
    pub async fn start(settings: &Settings) -> Self {
        let log = settings.ledger.with_file_name("workers.log");
        let log = File::options().create(true).append(true).open(log).expect("a log");
        // Beside the test program's folder `deps`; Cargo builds it before it runs the tests.
        let mut program = std::env::current_exe().expect("the test program has a path");
        program.pop();
        program.set_file_name("worker");
        let mut child = Program::new(program)
            .arg(serde_json::to_string(settings).expect("settings are JSON"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("the worker starts");
        let pid = Pid::from_raw(child.id().expect("it has just started") as i32);
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut worker = Self { child, pid, input, output };
        assert_eq!(worker.reply().await, Reply::Ready);
        worker
    }

    /// Tells it to do something.
    pub async fn tell(&mut self, command: Command) {
        let line = serde_json::to_string(&command).expect("a command is JSON") + "\n";
        let input = self.input.as_mut().expect("it has not been told to end");
        input.write_all(line.as_bytes()).await.expect("the worker listens");
    }

    /// Waits for its next answer.
    pub async fn reply(&mut self) -> Reply {
        let line = tokio::time::timeout(Duration::from_secs(60), self.output.next_line());
        let line = line.await.expect("the worker answers").expect("its answer is text");
        serde_json::from_str(&line.expect("the worker lives")).expect("its answer is JSON")
    }

    /// Tells it to do something, and waits for the answer.
    pub async fn ask(&mut self, command: Command) -> Reply {
        self.tell(command).await;
        self.reply().await
    }

    /// Its process id, as the ledger has it.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("the process can be signalled");
    }

    /// Kills it, as a crash would: it can do nothing about that.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("the process can be killed");
    }

    /// Waits until it has died by itself.
    pub async fn died(&mut self) -> ExitStatus {
        self.child.wait().await.expect("the process can be waited for")
    }

    /// Lets it shut down, with what its settings grant to running tasks.
    pub async fn shut_down(mut self) {
        self.input = None;
        assert_eq!(self.reply().await, Reply::Bye);
        assert!(self.died().await.success());
    }

    /// The most memory that it has used so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
        let status = status.expect("the process lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        let kilobytes = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
        kilobytes * 1024
    }
}
