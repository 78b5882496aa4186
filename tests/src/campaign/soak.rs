//! Load for long, with faults of the database, on workers that live all the time: whether what they use
//! stays the same.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sea_orm::{ConnectOptions, ConnectionTrait, DatabaseConnection, Statement};

use super::crew::{Crew, Worker};
use super::database::{Database, trouble};
use super::{End, Report, Settings, open, prepare};
use crate::{Kind, TestDb};

/// Worker processes.
const WORKERS: u64 = 3;
/// Between two samples, and between two faults, about.
const SAMPLE: Duration = Duration::from_secs(2);
/// See [`SAMPLE`].
const FAULT: Duration = Duration::from_secs(4);
/// So much more memory at the end is no growth: a tenth, and this many kilobytes.
const MEMORY: u64 = 3 << 10;
/// So many more connections at the end are no growth: a tenth, and this many.
const CONNECTIONS: u64 = 3;

/// What a soak found.
#[derive(Clone, Debug, Default)]
pub struct Soak {
    /// What a campaign tells, too.
    pub report: Report,
    /// The memory of each worker in kilobytes, and the connections to the database, over the time.
    pub uses: Vec<Use>,
}

/// How much there was of something at each sample.
#[derive(Clone, Debug)]
pub struct Use {
    /// Of what.
    pub what: String,
    /// What is added to a tenth for the limit.
    slack: u64,
    samples: Vec<u64>,
}

impl Use {
    fn new(what: String, slack: u64) -> Self {
        Self { what, slack, samples: Vec::new() }
    }

    /// The median of a quarter of the time, from 0 on.
    fn median(&self, quarter: usize) -> u64 {
        let count = self.samples.len();
        let mut part = self.samples[count * quarter / 4..count * (quarter + 1) / 4].to_vec();
        part.sort_unstable();
        part.get(part.len() / 2).copied().unwrap_or_default()
    }

    /// The most that the last quarter may show.
    fn limit(&self) -> u64 {
        let early = self.median(1);
        early + early / 10 + self.slack
    }
}

impl fmt::Display for Soak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.report)?;
        let (early, late) = ("2nd quarter", "4th quarter");
        write!(f, "  {:<22}{early:>12}{late:>12}{:>12}{:>12}", "medians of", "limit", "most")?;
        self.uses.iter().try_for_each(|one| {
            let most = one.samples.iter().max().copied().unwrap_or_default();
            let (early, late, limit) = (one.median(1), one.median(3), one.limit());
            write!(f, "\n  {:<22}{early:>12}{late:>12}{limit:>12}{most:>12}", one.what)
        })
    }
}

/// Runs for so long; `None` where its server is not there.
pub async fn soak(kind: Kind, time: Duration, seed: u64) -> Option<Soak> {
    let (db, database) = open(kind).await?;
    let direct = match &database {
        Database::Server(server, _) => server.url(),
        _ => panic!("{kind:?} has no server"),
    };
    let (folder, mut reader) = prepare(&db).await;
    let began = Instant::now();
    let report = Report { name: format!("{kind:?} (soak)"), ..Report::default() };
    let mut soak = Soak { report, uses: Vec::new() };
    let database = Arc::new(database);
    let stop = Arc::new(AtomicBool::new(false));
    let random = fastrand::Rng::with_seed(seed);
    let faults = {
        let (stop, database, url) = (stop.clone(), database.clone(), db.url.clone());
        tokio::spawn(trouble(database, url, random.clone(), FAULT, u32::MAX, stop))
    };
    let settings =
        Settings { url: String::new(), folder: folder.clone(), first: 0, at: None, rate: 60 };
    let urls = vec![db.url.clone()];
    let mut crew =
        Crew { settings, faketime: None, urls, file: None, workers: Vec::new(), random, made: 0 };
    for _ in 0..WORKERS {
        crew.add();
    }
    let pids: Vec<u32> = crew.workers.iter().map(|worker| worker.pid).collect();
    soak.uses.extend(pids.iter().map(|pid| Use::new(format!("worker {pid}, kB"), MEMORY)));
    soak.uses.push(Use::new("connections".to_owned(), CONNECTIONS));
    let watcher = Watcher::new(&db, &direct).await;
    let mut troubles = Vec::new();
    while began.elapsed() < time && crew.workers.len() == pids.len() {
        tokio::time::sleep(SAMPLE).await;
        reader.read();
        crew.reap(&mut soak.report, &mut troubles);
        let (last, workers) = soak.uses.split_last_mut().expect("they are there");
        for (worker, one) in crew.workers.iter().zip(workers) {
            one.samples.extend(memory(worker));
        }
        last.samples.extend(watcher.connections().await);
    }
    if crew.workers.len() < pids.len() {
        soak.report.violations.push("a worker ended before its time".to_owned());
    }
    stop.store(true, Ordering::Relaxed);
    let faults = faults.await.expect("the faults end");
    let end = End { db, database: &database, folder: &folder, crew, reader, troubles };
    end.check(faults, &mut soak.report).await;
    for one in &soak.uses {
        if one.samples.len() < 8 {
            soak.report.violations.push(format!("{}: too few samples", one.what));
        } else if one.median(3) > one.limit() {
            soak.report.violations.push(format!(
                "{} grew: {} in the second quarter, {} in the last; {:?}",
                one.what,
                one.median(1),
                one.median(3),
                one.samples
            ));
        }
    }
    soak.report.time = began.elapsed();
    Some(soak)
}

/// The resident memory of a process, in kilobytes.
fn memory(worker: &Worker) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid)).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Counts the connections to the database of a test, beside the faults of the network.
struct Watcher {
    admin: DatabaseConnection,
    sql: String,
}

impl Watcher {
    async fn new(db: &TestDb, admin: &str) -> Self {
        let name = db.url.rsplit('/').next().expect("a URL ends with a database");
        let sql = if db.kind.is_mysql() {
            format!(
                "select cast(count(*) as signed) from information_schema.processlist where db = '{name}'"
            )
        } else {
            format!("select count(*) from pg_stat_activity where datname = '{name}'")
        };
        let mut options = ConnectOptions::new(admin);
        options.max_connections(1).sqlx_logging(false).acquire_timeout(Duration::from_secs(2));
        Self { admin: sea_orm::Database::connect(options).await.expect("it answers"), sql }
    }

    /// `None` while the server is down.
    async fn connections(&self) -> Option<u64> {
        let sql = Statement::from_string(self.admin.get_database_backend(), &self.sql);
        let row = self.admin.query_one_raw(sql).await.ok()??;
        row.try_get_by_index::<i64>(0).ok()?.try_into().ok()
    }
}
