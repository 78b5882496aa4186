//! A campaign: worker processes that call and run tasks under load, while they are killed, stopped and
//! shut down, and their database is killed, frozen and cut off; then a check of everything that was
//! written down on the way against what the table says.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use task_retry::failpoints;

use crate::proxy::Proxy;
use crate::server::Server;
use crate::{Kind, TestDb};

mod check;
mod crew;
mod database;
mod ledger;
mod soak;

use self::check::check;
use self::crew::{Crew, faketime};
use self::database::{Database, pair, trouble};
pub use self::ledger::{Ledger, Line, now};
use self::ledger::{Reader, Seen};
pub use self::soak::{Soak, soak};

/// The source of the workers' function.
pub const WORK: i32 = 1100;
/// The workers' lease and poll interval.
pub const LEASE: Duration = Duration::from_secs(5);
/// See [`LEASE`].
pub const POLL: Duration = Duration::from_millis(100);
/// The delay of a retry.
pub const RETRY: Duration = Duration::from_secs(1);
/// A worker's clock may be ahead by a tenth of a second, and rounds to milliseconds.
const APART: Duration = Duration::from_millis(110);
/// So many moves of clocks, at the least, are seen by workers.
const MOVES: u32 = 10;
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
    /// Moves of a worker's wall clock by an hour or two that it saw.
    pub clocks_moved: u32,
    /// Graceful ends of workers.
    pub shutdowns: u32,
    /// Faults of the database, by kind.
    pub faults: BTreeMap<&'static str, u32>,
    /// Tasks that succeeded more than once, by cause.
    pub duplicates: BTreeMap<&'static str, u32>,
    /// From a worker's death to the next start of each of its tasks, while the database was well.
    pub recovery: Recovery,
    /// Of these, the times of tasks that are suspected of killing, which are started one at a time.
    pub suspects: Recovery,
    /// What must not be.
    pub violations: Vec<String>,
}

/// How long tasks waited, the shortest first.
#[derive(Clone, Debug, Default)]
pub struct Recovery(Vec<Duration>);

impl Recovery {
    /// So much of them took no longer than this.
    pub fn within(&self, part: f64) -> Duration {
        let index = (self.0.len().saturating_sub(1) as f64 * part).round() as usize;
        self.0.get(index).copied().unwrap_or_default()
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (half, most) = (self.within(0.5), self.within(1.0));
        write!(
            f,
            "{} times, p50 {half:?}, p99 {:?}, most {most:?}",
            self.0.len(),
            self.within(0.99)
        )
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
            "  {} kills, {} stops beyond the lease, {} shutdowns, {} clocks moved",
            self.kills, self.stops, self.shutdowns, self.clocks_moved
        )?;
        writeln!(f, "  killed at points: {}", points.join(", "))?;
        writeln!(f, "  faults of the database: {}", list(&self.faults))?;
        writeln!(f, "  tasks that succeeded twice: {}", list(&self.duplicates))?;
        writeln!(f, "  from death to next start: {}", self.recovery)?;
        writeln!(f, "  of these, suspects: {}", self.suspects)?;
        write!(f, "  violations: {}", self.violations.len())?;
        self.violations.iter().take(20).try_for_each(|violation| write!(f, "\n  - {violation}"))
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

/// Runs a campaign; `None` where its server is not there.
pub async fn run(kind: Kind, size: Size, seed: u64) -> Option<Report> {
    let (db, database) = open(kind).await?;
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

/// A database of its own, on a server of its own behind a proxy.
async fn open(kind: Kind) -> Option<(TestDb, Database)> {
    if kind == Kind::Sqlite {
        return Some((TestDb::create(kind).await?, Database::Sqlite));
    }
    let server = Server::start(kind).await?;
    let mut db = TestDb::create_at(kind, &server.url()).await;
    let proxy = Proxy::start(&db.url).await;
    db.url = proxy.url(&db.url);
    Some((db, Database::Server(server, proxy)))
}

/// Makes the table, and a folder with an empty ledger.
async fn prepare(db: &TestDb) -> (PathBuf, Reader) {
    let looker = db.builder().only::<()>().job(false).start().await.expect("the table is made");
    looker.shutdown().await.expect("the runtime ends");
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = format!("task-retry-campaign-{}-{count}", std::process::id());
    let folder = std::env::temp_dir().join(folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    drop(Ledger::open(&folder));
    let file = File::open(folder.join("ledger")).expect("the ledger is there");
    (folder, Reader { file, rest: Vec::new(), seen: Seen::default() })
}

async fn campaign(name: &str, db: TestDb, database: Database, size: Size, seed: u64) -> Report {
    let (folder, mut reader) = prepare(&db).await;
    let began = Instant::now();
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
    // All processes that share a file share the clock of their machine.
    let faketime = if matches!(*database, Database::Sqlite) { None } else { faketime() };
    let moves = if faketime.is_some() { MOVES } else { 0 };
    let file = match *database {
        Database::Sqlite => Some(database::file(&db.url).await),
        _ => None,
    };
    let mut crew = Crew { settings, faketime, urls, file, workers: Vec::new(), random, made: 0 };
    let most = Duration::from_secs(
        120 + u64::from(size.kills) + 6 * u64::from(size.faults) + size.tasks / 200,
    );
    loop {
        reader.read();
        crew.reap(&mut report, &mut troubles);
        // And every point was the end of its share.
        let hits = |point: &&str| reader.seen.hits.get(*point).copied().unwrap_or(0);
        let fewest = failpoints::ALL.iter().map(hits).min().unwrap_or(0);
        let enough = report.kills >= size.kills && fewest >= size.kills / 10;
        let done = enough
            && reader.seen.accepted.len() as u64 >= size.tasks
            && reader.seen.moved >= moves
            && faults.is_finished();
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
        crew.strike(enough, &mut report, &mut troubles).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let faults = faults.await.expect("the faults end");
    let end = End { db, database: &database, folder: &folder, crew, reader, troubles };
    end.check(faults, &mut report).await;
    report.time = began.elapsed();
    report
}

/// What comes after load and faults.
struct End<'a> {
    db: TestDb,
    database: &'a Database,
    folder: &'a Path,
    crew: Crew,
    reader: Reader,
    troubles: Vec<Trouble>,
}

impl End<'_> {
    /// Lets all tasks come to their end, reads ledger and table against each other, and cleans up.
    async fn check(mut self, faults: Vec<(&'static str, u64, u64)>, report: &mut Report) {
        let faults = faults.into_iter();
        self.troubles.extend(faults.map(|(what, from, until)| Trouble {
            what,
            pid: None,
            from,
            until,
        }));
        // No more calls; what is there is to come to its end.
        File::create(self.folder.join("stop")).expect("a file");
        if !self.crew.finish(&self.db, report, &mut self.troubles).await {
            let text = "tasks are still open two minutes after the last fault";
            report.violations.push(text.to_owned());
        }
        for fault in self.troubles.iter().filter(|trouble| trouble.pid.is_none()) {
            *report.faults.entry(fault.what).or_default() += 1;
        }
        self.reader.read();
        check(&self.db, &self.reader.seen, &self.troubles, report).await;
        if report.violations.is_empty() {
            let _ = std::fs::remove_dir_all(self.folder);
        } else {
            eprintln!("the ledger and the workers' log stay in {}", self.folder.display());
        }
        // A server goes with all that is in it.
        if matches!(self.database, Database::Sqlite) {
            self.db.drop().await;
        }
    }
}
