//! A campaign: worker processes that call and run tasks under load, while they are killed, stopped and
//! shut down, and their database is killed, frozen and cut off; then a check of everything that was
//! written down on the way against what the table says.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sea_orm::{ConnectionTrait, Statement};
use serde::{Deserialize, Serialize};
use task_retry::failpoints;
use tokio::process::{Child, ChildStdin, Command};

use crate::proxy::Proxy;
use crate::server::Server;
use crate::worker::uptime;
use crate::{Kind, TestDb};

/// The source of the workers' function.
pub const WORK: i32 = 1100;
/// The workers' lease and poll interval.
pub const LEASE: Duration = Duration::from_secs(5);
/// See [`LEASE`].
pub const POLL: Duration = Duration::from_millis(100);
/// The delay of a retry.
pub const RETRY: Duration = Duration::from_secs(1);
/// The clocks of two processes may be so far apart: half of what an answer took that one of them got.
const APART: Duration = Duration::from_millis(250);
/// Processes at work at a time.
const WORKERS: usize = 4;

/// How large a campaign is: it goes on until it has reached all three.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// SIGKILLs of workers.
    pub kills: u32,
    /// Faults of the database.
    pub faults: u32,
    /// Tasks whose callers were told that they are stored.
    pub tasks: u64,
}

impl Size {
    /// What CI runs at every change.
    pub const SHORT: Self = Self { kills: 24, faults: 4, tasks: 4000 };

    /// `TASK_RETRY_CAMPAIGN="kills=1000 faults=200 tasks=200000"`, or the short one.
    pub fn from_env() -> Self {
        let mut size = Self::SHORT;
        for pair in std::env::var("TASK_RETRY_CAMPAIGN").unwrap_or_default().split_whitespace() {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = value.parse().unwrap_or_else(|_| panic!("`{pair}`: not NAME=NUMBER"));
            match name {
                "kills" => size.kills = value,
                "faults" => size.faults = value,
                "tasks" => size.tasks = value.into(),
                _ => panic!("`{pair}`: use kills, faults, tasks"),
            }
        }
        size
    }
}

/// What a worker process is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// The database.
    pub url: String,
    /// Where the ledger and the file `stop` are.
    pub folder: PathBuf,
    /// Its calls have numbers from here on.
    pub first: u64,
    /// Kills itself when it comes to this point for the n-th time.
    pub at: Option<(String, u32)>,
    /// Calls a second, about.
    pub rate: u32,
}

/// A line of the ledger. `at` is the uptime in microseconds, taken before what it stands for can be
/// seen by others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are what their names say
pub enum Line {
    /// A caller was told that the task is stored.
    Accepted { id: i64, at: u64 },
    /// An attempt starts.
    Start { id: i64, fence: i64, attempt: u32, pid: u32, at: u64 },
    /// An attempt ends; it succeeded, and it held its task then.
    End { id: i64, fence: i64, ok: bool, held: bool, pid: u32, at: u64 },
    /// An attempt was stopped.
    Dropped { id: i64, fence: i64, pid: u32, at: u64 },
    /// The process kills itself at a point.
    Hit { point: String, pid: u32, at: u64 },
}

/// [`uptime`] in microseconds.
pub fn now() -> u64 {
    uptime().as_micros() as u64
}

/// The ledger, for appending: one write a line, so that lines of several processes do not mix.
#[derive(Debug)]
pub struct Ledger(File);

impl Ledger {
    /// Opens the one in this folder.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join("ledger");
        Self(File::options().create(true).append(true).open(path).expect("a ledger"))
    }

    /// Writes a line.
    pub fn write(&self, line: &Line) {
        let line = serde_json::to_string(line).expect("a line is JSON") + "\n";
        (&self.0).write_all(line.as_bytes()).expect("the ledger takes a line");
    }
}

/// A time in which something that explains duplicates went on.
#[derive(Clone, Debug)]
struct Trouble {
    what: &'static str,
    /// Whom it struck; the database strikes all.
    pid: Option<u32>,
    from: u64,
    until: u64,
}

#[derive(Debug, Default)]
struct Seen {
    accepted: HashSet<i64>,
    attempts: HashMap<i64, Vec<Attempt>>,
    hits: BTreeMap<String, u32>,
    /// Who killed itself, and when.
    by_itself: Vec<(u32, u64)>,
}

#[derive(Clone, Debug)]
struct Attempt {
    fence: i64,
    number: u32,
    pid: u32,
    start: u64,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug)]
struct End {
    at: u64,
    /// `None`: it was stopped.
    ok: Option<bool>,
    held: bool,
}

/// Reads the ledger as it grows.
#[derive(Debug)]
struct Reader {
    file: File,
    rest: Vec<u8>,
    seen: Seen,
}

impl Reader {
    fn read(&mut self) {
        self.file.read_to_end(&mut self.rest).expect("the ledger is there");
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line = serde_json::from_slice(line).unwrap_or_else(|error| {
                panic!("{error} in the ledger: {}", String::from_utf8_lossy(line))
            });
            self.seen.add(line);
        }
    }
}

impl Seen {
    fn add(&mut self, line: Line) {
        match line {
            Line::Accepted { id, .. } => {
                self.accepted.insert(id);
            }
            Line::Start { id, fence, attempt, pid, at } => {
                let attempt = Attempt { fence, number: attempt, pid, start: at, end: None };
                self.attempts.entry(id).or_default().push(attempt);
            }
            Line::End { id, fence, ok, held, pid, at } => {
                self.end(id, fence, pid, End { at, ok: Some(ok), held });
            }
            Line::Dropped { id, fence, pid, at } => {
                self.end(id, fence, pid, End { at, ok: None, held: false });
            }
            Line::Hit { point, pid, at } => {
                *self.hits.entry(point).or_default() += 1;
                self.by_itself.push((pid, at));
            }
        }
    }

    fn end(&mut self, id: i64, fence: i64, pid: u32, end: End) {
        let attempts = self.attempts.get_mut(&id).expect("what ends has started");
        let mut attempts = attempts.iter_mut().rev();
        let attempt = attempts.find(|one| (one.fence, one.pid) == (fence, pid));
        attempt.expect("what ends has started").end = Some(end);
    }
}

/// What a campaign found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The database.
    pub name: String,
    /// How long it took.
    pub time: Duration,
    /// Tasks whose callers were told that they are stored.
    pub accepted: u64,
    /// Rows in the table at the end: also those whose callers died before they were told.
    pub rows: u64,
    /// Attempts that started.
    pub attempts: u64,
    /// SIGKILLs of workers.
    pub kills: u32,
    /// Of these, by a process itself, at a point.
    pub at_points: BTreeMap<String, u32>,
    /// SIGSTOPs of workers, for longer than a lease.
    pub stops: u32,
    /// Graceful ends of workers.
    pub shutdowns: u32,
    /// Faults of the database, by kind.
    pub faults: BTreeMap<&'static str, u32>,
    /// Tasks that succeeded more than once, by cause.
    pub duplicates: BTreeMap<&'static str, u32>,
    /// From a worker's death to the next start of each of its tasks, while the database was well.
    pub recovery: Vec<Duration>,
    /// What must not be.
    pub violations: Vec<String>,
}

impl Report {
    /// A part of the times of recovery are no longer than this.
    pub fn recovered_within(&self, part: f64) -> Duration {
        let index = (self.recovery.len().saturating_sub(1) as f64 * part).round() as usize;
        self.recovery.get(index).copied().unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |map: &BTreeMap<&'static str, u32>| {
            let list: Vec<String> =
                map.iter().map(|(name, count)| format!("{count} {name}")).collect();
            if list.is_empty() { "none".to_owned() } else { list.join(", ") }
        };
        let points: Vec<String> =
            self.at_points.iter().map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(f, "campaign on {}, {} s", self.name, self.time.as_secs())?;
        writeln!(
            f,
            "  {} tasks accepted, {} rows, {} attempts",
            self.accepted, self.rows, self.attempts
        )?;
        writeln!(
            f,
            "  {} kills, {} stops beyond the lease, {} shutdowns",
            self.kills, self.stops, self.shutdowns
        )?;
        writeln!(f, "  killed at points: {}", points.join(", "))?;
        writeln!(f, "  faults of the database: {}", list(&self.faults))?;
        writeln!(f, "  tasks that succeeded twice: {}", list(&self.duplicates))?;
        writeln!(
            f,
            "  from death to next start: {} times, p50 {:?}, p99 {:?}, most {:?}",
            self.recovery.len(),
            self.recovered_within(0.5),
            self.recovered_within(0.99),
            self.recovered_within(1.0)
        )?;
        write!(f, "  violations: {}", self.violations.len())?;
        self.violations.iter().take(20).try_for_each(|violation| write!(f, "\n  - {violation}"))
    }
}

/// A worker process of the campaign.
struct Worker {
    child: Child,
    pid: u32,
    born: Instant,
    /// Its end asks it to shut down.
    input: Option<ChildStdin>,
    /// Told to shut down when it has lived for this long.
    quits: Option<Duration>,
    /// Until when it is stopped.
    stopped: Option<(u64, Instant)>,
}

impl Worker {
    fn start(settings: &Settings) -> Self {
        let log = File::options().create(true).append(true).open(settings.folder.join("log"));
        // Beside the test program's folder `deps`; Cargo builds it before it runs the tests.
        let mut program = std::env::current_exe().expect("the test program has a path");
        program.pop();
        program.set_file_name("campaign_worker");
        let mut child = Command::new(program)
            .arg(serde_json::to_string(settings).expect("settings are JSON"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log.expect("a log"))
            .kill_on_drop(true)
            .spawn()
            .expect("the worker starts");
        let pid = child.id().expect("it has just started");
        let input = child.stdin.take();
        Self { child, pid, born: Instant::now(), input, quits: None, stopped: None }
    }

    fn signal(&self, signal: Signal) {
        // It may have just ended; it is still there to be waited for.
        let _ = kill(Pid::from_raw(self.pid as i32), signal);
    }

    /// Lets it go on if it is stopped.
    fn wake(&mut self, troubles: &mut Vec<Trouble>) {
        if let Some((from, _)) = self.stopped.take() {
            self.signal(Signal::SIGCONT);
            troubles.push(Trouble { what: "stopped", pid: Some(self.pid), from, until: now() });
        }
    }
}

/// The database of a campaign, and how it is made to fail.
enum Database {
    Sqlite,
    Server(Server, Proxy),
    /// A PostgreSQL whose commits wait for its standby.
    Pair(tokio::sync::Mutex<(Server, Server)>, Proxy),
    /// Three MariaDB nodes, and a proxy for each, which leads elsewhere while its node is down.
    Cluster(Vec<Server>, Vec<Proxy>),
}

/// Starts a PostgreSQL and a standby without which it commits nothing.
async fn pair() -> Option<(Server, Server)> {
    let primary = Server::start(Kind::Postgres).await?;
    let admin = sea_orm::Database::connect(primary.url()).await.expect("the server answers");
    for sql in ["alter system set synchronous_standby_names = '*'", "select pg_reload_conf()"] {
        admin.execute_unprepared(sql).await.expect("a superuser may");
    }
    admin.close().await.expect("it closes");
    let standby = primary.standby().await;
    Some((primary, standby))
}

/// Kills the primary, makes its standby the primary, and gives it a standby.
async fn fail_over(pair: &mut (Server, Server), proxy: &Proxy) {
    pair.0.kill();
    let promoted = sea_orm::Database::connect(pair.1.url()).await.expect("the standby answers");
    promoted.execute_unprepared("select pg_promote()").await.expect("it is promoted");
    promoted.close().await.expect("it closes");
    proxy.lead_to(&pair.1.url());
    let standby = pair.1.standby().await;
    let promoted = std::mem::replace(&mut pair.1, standby);
    pair.0 = promoted;
}

/// Runs a campaign; `None` where its server is not there.
pub async fn run(kind: Kind, size: Size, seed: u64) -> Option<Report> {
    let (db, database) = if kind == Kind::Sqlite {
        (TestDb::create(kind).await?, Database::Sqlite)
    } else {
        let server = Server::start(kind).await?;
        let mut db = TestDb::create_at(kind, &server.url()).await;
        let proxy = Proxy::start(&db.url).await;
        db.url = proxy.url(&db.url);
        (db, Database::Server(server, proxy))
    };
    Some(campaign(&format!("{kind:?}"), db, database, size, seed).await)
}

/// Runs a campaign on a PostgreSQL that fails over to its standby, again and again.
pub async fn run_pair(size: Size, seed: u64) -> Option<Report> {
    let pair = pair().await?;
    let mut db = TestDb::create_at(Kind::Postgres, &pair.0.url()).await;
    let proxy = Proxy::start(&db.url).await;
    db.url = proxy.url(&db.url);
    let database = Database::Pair(pair.into(), proxy);
    Some(campaign("Postgres with a synchronous standby", db, database, size, seed).await)
}

/// Runs a campaign on a Galera cluster whose nodes are killed in turn and join again; the workers are
/// on different nodes.
pub async fn run_cluster(size: Size, seed: u64) -> Option<Report> {
    let nodes = Server::galera().await?;
    let mut db = TestDb::create_at(Kind::MariaDb, &nodes[0].url()).await;
    let mut proxies = Vec::new();
    for node in &nodes {
        proxies.push(Proxy::start(&node.url()).await);
    }
    db.url = proxies[0].url(&db.url);
    let database = Database::Cluster(nodes, proxies);
    Some(campaign("MariaDb in a Galera cluster", db, database, size, seed).await)
}

async fn campaign(name: &str, db: TestDb, database: Database, size: Size, seed: u64) -> Report {
    let looker = db.builder().only::<()>().job(false).start().await.expect("the table is made");
    looker.shutdown().await.expect("the runtime ends");

    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = format!("task-retry-campaign-{}-{count}", std::process::id());
    let folder = std::env::temp_dir().join(folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    let began = Instant::now();
    let ledger = Ledger::open(&folder);
    drop(ledger);
    let file = File::open(folder.join("ledger")).expect("the ledger is there");
    let mut reader = Reader { file, rest: Vec::new(), seen: Seen::default() };
    let mut report = Report { name: name.to_owned(), ..Report::default() };
    let mut troubles = Vec::new();
    let random = fastrand::Rng::with_seed(seed);
    let stop = Arc::new(AtomicBool::new(false));
    let database = Arc::new(database);
    let faults = {
        let (stop, database, url) = (stop.clone(), database.clone(), db.url.clone());
        let random = fastrand::Rng::with_seed(seed ^ 1);
        // Spread over the kills, which come at about ten a second.
        let pause =
            Duration::from_millis(u64::from(size.kills * 100 / size.faults.max(1)).min(3000));
        tokio::spawn(trouble(database, url, random, pause, size.faults, stop))
    };
    let urls = match &*database {
        Database::Cluster(_, proxies) => proxies.iter().map(|proxy| proxy.url(&db.url)).collect(),
        _ => vec![db.url.clone()],
    };
    let settings =
        Settings { url: String::new(), folder: folder.clone(), first: 0, at: None, rate: 250 };
    let mut crew = Crew { settings, urls, workers: Vec::new(), random, made: 0 };
    let most = Duration::from_secs(
        120 + u64::from(size.kills) + 6 * u64::from(size.faults) + size.tasks / 200,
    );
    loop {
        reader.read();
        crew.reap(&mut report, &mut troubles).await;
        // And every point was the end of its share.
        let hits = |point: &&str| reader.seen.hits.get(*point).copied().unwrap_or(0);
        let fewest = failpoints::ALL.iter().map(hits).min().unwrap_or(0);
        let enough = report.kills >= size.kills && fewest >= size.kills / 10;
        let done =
            enough && reader.seen.accepted.len() as u64 >= size.tasks && faults.is_finished();
        if done {
            break;
        }
        assert!(
            began.elapsed() < most,
            "the campaign takes more than {most:?}; {} tasks accepted, all faults done: {}, {report}",
            reader.seen.accepted.len(),
            faults.is_finished()
        );
        while crew.workers.len() < WORKERS {
            crew.hire(&reader.seen.hits);
        }
        crew.strike(enough, &mut report, &mut troubles);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for (what, from, until) in faults.await.expect("the faults end") {
        *report.faults.entry(what).or_default() += 1;
        troubles.push(Trouble { what, pid: None, from, until });
    }
    // No more calls; what is there is to come to its end.
    File::create(folder.join("stop")).expect("a file");
    let ended = crew.finish(&db, &mut report, &mut troubles).await;
    if !ended {
        report.violations.push("tasks are still open two minutes after the last fault".to_owned());
    }
    reader.read();
    check(&db, &reader.seen, &troubles, &mut report).await;
    report.time = began.elapsed();
    if report.violations.is_empty() {
        let _ = std::fs::remove_dir_all(&folder);
    } else {
        eprintln!("the ledger and the workers' log stay in {}", folder.display());
    }
    // A server goes with all that is in it.
    if matches!(*database, Database::Sqlite) {
        db.drop().await;
    }
    report
}

/// The worker processes.
struct Crew {
    settings: Settings,
    /// They take turns.
    urls: Vec<String>,
    workers: Vec<Worker>,
    random: fastrand::Rng,
    made: u64,
}

impl Crew {
    /// For the next one.
    fn settings(&mut self) -> Settings {
        self.made += 1;
        let url = self.urls[self.made as usize % self.urls.len()].clone();
        Settings { url, ..self.settings.clone() }
    }

    /// Starts one. Most of them will kill themselves at the point that was hit least so far.
    fn hire(&mut self, hits: &BTreeMap<String, u32>) {
        let mut settings = self.settings();
        settings.first = self.made << 32;
        let mut quits = None;
        if self.random.u8(..) < 190 {
            let waiting: Vec<u32> =
                failpoints::ALL.iter().map(|name| hits.get(*name).copied().unwrap_or(0)).collect();
            let least = waiting.iter().min().copied().unwrap_or(0);
            let rare: Vec<_> = (0..waiting.len()).filter(|i| waiting[*i] <= least + 1).collect();
            let point = failpoints::ALL[rare[self.random.usize(..rare.len())]];
            let often = !point.starts_with("renew") && !point.starts_with("hand-back");
            let times = if often { self.random.u32(1..=30) } else { 1 };
            if point.starts_with("hand-back") {
                quits = Some(Duration::from_millis(self.random.u64(300..1500)));
            }
            settings.at = Some((point.to_owned(), times));
        } else if self.random.u8(..) < 30 {
            quits = Some(Duration::from_millis(self.random.u64(300..3000)));
        }
        let mut worker = Worker::start(&settings);
        worker.quits = quits;
        self.workers.push(worker);
    }

    /// Takes note of those that have ended.
    async fn reap(&mut self, report: &mut Report, troubles: &mut Vec<Trouble>) {
        let mut alive = Vec::new();
        for mut worker in self.workers.drain(..) {
            match worker.child.try_wait().expect("a child can be waited for") {
                None => alive.push(worker),
                Some(status) => {
                    use std::os::unix::process::ExitStatusExt;
                    let at = now();
                    if status.signal() == Some(Signal::SIGKILL as i32) {
                        report.kills += 1;
                        let what = "killed";
                        troubles.push(Trouble { what, pid: Some(worker.pid), from: at, until: at });
                    } else if status.success() {
                        report.shutdowns += 1;
                        let (what, pid) = ("shut down", Some(worker.pid));
                        troubles.push(Trouble { what, pid, from: at, until: at });
                    } else {
                        report.violations.push(format!("a worker ended with {status}"));
                    }
                }
            }
        }
        self.workers = alive;
    }

    /// Kills, stops, wakes or asks to shut down.
    fn strike(&mut self, enough: bool, report: &mut Report, troubles: &mut Vec<Trouble>) {
        for worker in &mut self.workers {
            if worker.stopped.is_some_and(|(_, until)| Instant::now() >= until) {
                worker.wake(troubles);
            }
            if worker.quits.is_some_and(|after| worker.born.elapsed() > after) {
                worker.input = None;
            }
        }
        if enough {
            return;
        }
        // About five a second, beside those that do it themselves; a tick is 20 ms.
        let victim = self.random.usize(..self.workers.len());
        let worker = &mut self.workers[victim];
        match self.random.u32(..1000) {
            0..60
                if worker.stopped.is_none()
                    && worker.born.elapsed() > Duration::from_millis(300) =>
            {
                worker.signal(Signal::SIGKILL);
            }
            60..63 if worker.stopped.is_none() => {
                report.stops += 1;
                let from = now();
                worker.signal(Signal::SIGSTOP);
                let pause = LEASE + Duration::from_millis(self.random.u64(500..2500));
                worker.stopped = Some((from, Instant::now() + pause));
            }
            _ => {}
        }
    }

    /// Lets everything come to its end, for two minutes at most, and all workers shut down.
    async fn finish(
        &mut self,
        db: &TestDb,
        report: &mut Report,
        troubles: &mut Vec<Trouble>,
    ) -> bool {
        let connection = db.connect().await;
        let until = Instant::now() + Duration::from_secs(120);
        let mut ended = false;
        while !ended && Instant::now() < until {
            self.reap(report, troubles).await;
            while self.workers.len() < 2 {
                let settings = self.settings();
                self.workers.push(Worker::start(&settings));
            }
            self.strike(true, report, troubles);
            tokio::time::sleep(Duration::from_millis(200)).await;
            let sql = "select count(*) from t_sys_mq_resend_log where status in (0, 1, 5)";
            let sql = Statement::from_string(connection.get_database_backend(), sql);
            let row = connection.query_one_raw(sql).await.expect("the database answers");
            let open: i64 = row.expect("a row").try_get_by_index(0).expect("a number");
            ended = open == 0;
        }
        for worker in &mut self.workers {
            worker.wake(troubles);
            worker.input = None;
        }
        for worker in &mut self.workers {
            let _ = tokio::time::timeout(Duration::from_secs(30), worker.child.wait()).await;
        }
        self.workers.clear();
        ended
    }
}

/// Faults of the database, one after another; returns what, from when and until when.
async fn trouble(
    database: Arc<Database>,
    url: String,
    mut random: fastrand::Rng,
    pause: Duration,
    count: u32,
    stop: Arc<AtomicBool>,
) -> Vec<(&'static str, u64, u64)> {
    let mut faults = Vec::new();
    let wait = async |random: &mut fastrand::Rng, from: u64, until: u64| {
        tokio::time::sleep(Duration::from_millis(random.u64(from..until))).await;
    };
    while faults.len() < count as usize && !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(pause / 2 + pause.mul_f64(random.f64())).await;
        let from = now();
        // One in ten outlasts a lease.
        let (least, most) = if random.u8(..) < 25 { (5500, 7000) } else { (50, 1500) };
        let what = match &*database {
            Database::Sqlite => {
                let options = sea_orm::ConnectOptions::new(&url).max_connections(1).to_owned();
                let other = sea_orm::Database::connect(options).await.expect("the file is there");
                // The others may hold it for a while.
                let begin = "begin exclusive";
                while other.execute_unprepared(begin).await.is_err() {
                    tokio::task::yield_now().await;
                }
                wait(&mut random, least, most).await;
                other.execute_unprepared("rollback").await.expect("it ends");
                other.close().await.expect("it closes");
                "locked by another process"
            }
            Database::Cluster(nodes, proxies) => {
                let down = random.usize(..nodes.len());
                let up = (down + 1) % nodes.len();
                nodes[down].kill();
                proxies[down].lead_to(&nodes[up].url());
                wait(&mut random, least, most).await;
                nodes[down].restart().await;
                proxies[down].lead_to(&nodes[down].url());
                "node killed"
            }
            Database::Pair(pair, proxy) => {
                fail_over(&mut *pair.lock().await, proxy).await;
                "failed over"
            }
            Database::Server(server, proxy) => match random.u8(..5) {
                0 | 1 => {
                    server.kill();
                    wait(&mut random, 0, most / 2).await;
                    server.restart().await;
                    "server killed"
                }
                2 => {
                    proxy.freeze();
                    wait(&mut random, least, most).await;
                    proxy.thaw();
                    "frozen"
                }
                3 => {
                    proxy.cut();
                    wait(&mut random, least, most).await;
                    proxy.restore();
                    "cut off"
                }
                _ => {
                    proxy.cut_at_answer(random.u32(1..200));
                    let dropped = tokio::time::timeout(Duration::from_secs(5), proxy.dropped());
                    let _ = dropped.await;
                    wait(&mut random, 50, 500).await;
                    proxy.restore();
                    "answer lost"
                }
            },
        };
        faults.push((what, from, now()));
    }
    faults
}

/// A row at the end.
struct Row {
    status: i64,
    fence: i64,
    send_count: i64,
}

async fn rows(db: &TestDb) -> HashMap<i64, Row> {
    let connection = db.connect().await;
    let int = if db.kind.is_mysql() { "signed" } else { "bigint" };
    let sql = format!(
        "select cast(id as {int}), cast(status as {int}), cast(fence as {int}), cast(send_count as {int}) \
         from t_sys_mq_resend_log"
    );
    let sql = Statement::from_string(connection.get_database_backend(), sql);
    let rows = connection.query_all_raw(sql).await.expect("the database answers");
    let number = |row: &sea_orm::QueryResult, index| -> i64 {
        row.try_get_by_index(index).expect("a number")
    };
    let rows = rows.iter().map(|row| {
        let (status, fence, send_count) = (number(row, 1), number(row, 2), number(row, 3));
        (number(row, 0), Row { status, fence, send_count })
    });
    rows.collect()
}

/// Reads ledger and table against each other.
async fn check(db: &TestDb, seen: &Seen, troubles: &[Trouble], report: &mut Report) {
    let rows = rows(db).await;
    report.accepted = seen.accepted.len() as u64;
    report.rows = rows.len() as u64;
    report.at_points = seen.hits.clone();
    report.attempts = seen.attempts.values().map(|attempts| attempts.len() as u64).sum();
    let mut violations = Vec::new();
    for id in &seen.accepted {
        if !rows.contains_key(id) {
            violations.push(format!("lost: task {id} was accepted, and is not in the table"));
        }
        if !seen.attempts.contains_key(id) {
            violations.push(format!("lost: task {id} was accepted, and never started"));
        }
    }
    for (id, row) in &rows {
        if row.status != 3 {
            violations.push(format!("task {id} has status {}, not 3", row.status));
        }
    }
    for (id, attempts) in &seen.attempts {
        let mut attempts = attempts.clone();
        attempts.sort_by_key(|attempt| (attempt.fence, attempt.start));
        let Some(row) = rows.get(id) else {
            violations.push(format!("task {id} ran, and is not in the table"));
            continue;
        };
        one_task(*id, row, &attempts, troubles, report, &mut violations);
    }
    recovery(seen, troubles, report);
    report.violations.append(&mut violations);
}

fn one_task(
    id: i64,
    row: &Row,
    attempts: &[Attempt],
    troubles: &[Trouble],
    report: &mut Report,
    violations: &mut Vec<String>,
) {
    let succeeded = |attempt: &&Attempt| attempt.end.is_some_and(|end| end.ok == Some(true));
    // What counts is what the attempt with the row's fence did: nobody else's write took effect.
    let winner = attempts.iter().find(|attempt| attempt.fence == row.fence);
    if row.status == 3 && winner.filter(succeeded).is_none() {
        violations.push(format!(
            "stale write: task {id} succeeded under fence {}, and the attempt of it is {winner:?}",
            row.fence
        ));
    }
    for (index, attempt) in attempts.iter().enumerate() {
        let Some(next) = attempts.get(index + 1) else { continue };
        if attempt.fence == next.fence {
            violations.push(format!("task {id}: two attempts under fence {}", next.fence));
        }
        if let Some(end) = attempt.end {
            if end.held && end.at > next.start {
                violations.push(format!(
                    "task {id}: fence {} still held it {} µs after {} had started",
                    attempt.fence,
                    end.at - next.start,
                    next.fence
                ));
            }
            // Counted as failed, it waits for its time.
            let counted = end.ok == Some(false) && next.number > attempt.number;
            let waited = next.start.saturating_sub(end.at);
            if counted && waited < (RETRY - APART).as_micros() as u64 {
                violations.push(format!("task {id}: retried after {waited} µs"));
            }
        }
        if next.number < attempt.number || next.number > attempt.number + 1 {
            violations
                .push(format!("task {id}: attempt {} came after {}", next.number, attempt.number));
        }
        if succeeded(&attempt) {
            match why(attempt, next, troubles) {
                Some(cause) => *report.duplicates.entry(cause).or_default() += 1,
                None => violations.push(format!(
                    "task {id} succeeded under fence {}, and ran again for no reason: {attempt:?} {next:?}",
                    attempt.fence
                )),
            }
        }
    }
    let failed = attempts.iter().filter(|one| one.end.is_some_and(|end| end.ok == Some(false)));
    if row.send_count as usize > failed.count() {
        violations.push(format!("task {id}: more failures are counted than there were"));
    }
}

/// What kept the end of an attempt from being written before the next started.
fn why(attempt: &Attempt, next: &Attempt, troubles: &[Trouble]) -> Option<&'static str> {
    // A process that is stopped between its last look at the lease and the start starts late.
    let (from, until) = (attempt.start.min(next.start), attempt.start.max(next.start));
    let concerned = troubles.iter().filter(|trouble| {
        trouble.pid.is_none_or(|pid| pid == attempt.pid)
            && trouble.from <= until
            && trouble.until >= from
    });
    // What struck the process itself explains it best.
    concerned.max_by_key(|trouble| trouble.pid.is_some()).map(|trouble| trouble.what)
}

/// How long tasks waited whose worker was killed, and whose next worker was not.
fn recovery(seen: &Seen, troubles: &[Trouble], report: &mut Report) {
    let mut deaths: HashMap<u32, Vec<u64>> = HashMap::new();
    let noticed = troubles.iter().filter(|trouble| trouble.what == "killed");
    let noticed = noticed.filter_map(|trouble| Some((trouble.pid?, trouble.from)));
    // Noticed a little later than they came; those of its own a process told of itself.
    for (pid, at) in seen.by_itself.iter().copied().chain(noticed) {
        deaths.entry(pid).or_default().push(at);
    }
    let faults: Vec<&Trouble> = troubles.iter().filter(|trouble| trouble.pid.is_none()).collect();
    for attempts in seen.attempts.values() {
        for attempt in attempts.iter().filter(|attempt| attempt.end.is_none()) {
            // Numbers of processes come again.
            let deaths = deaths.get(&attempt.pid).into_iter().flatten();
            let death = deaths.filter(|death| **death >= attempt.start).min();
            let next = attempts.iter().find(|next| next.fence == attempt.fence + 1);
            let (Some(&death), Some(next)) = (death, next) else { continue };
            // After a fault all leases are left alone for the length of one.
            let quiet = LEASE.as_micros() as u64;
            let well = !faults
                .iter()
                .any(|fault| fault.from <= next.start && fault.until + quiet >= attempt.start);
            if well {
                report.recovery.push(Duration::from_micros(next.start.saturating_sub(death)));
            }
        }
    }
    report.recovery.sort_unstable();
}
