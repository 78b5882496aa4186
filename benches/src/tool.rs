//! What every contestant needs: numbers out, fresh databases, a second process.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection};

pub use crate::feed::*;

/// Tells the run something to be printed as it is.
pub fn note(text: &str) {
    for line in text.lines() {
        println!("# {line}");
    }
}

pub fn percentile(times: &mut [Duration], part: f64) -> f64 {
    times.sort();
    times[((times.len() - 1) as f64 * part).round() as usize].as_secs_f64() * 1e6
}

/// When lone calls are made: all wait as long, since how long a processor and a disk have rested tells.
pub fn lone_pace() -> tokio::time::Interval {
    let mut pace = tokio::time::interval(Duration::from_millis(6));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    pace
}

/// Nanoseconds of the machine's clock: the same in all processes.
pub fn nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

pub async fn connect(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.sqlx_logging(false).max_connections(2);
    Database::connect(options).await.unwrap()
}

/// Statistics and visibility as they are in a table that has been in use, and no checkpoint soon.
pub async fn settle(url: &str) {
    let db = connect(url).await;
    if url.starts_with("postgres") {
        db.execute_unprepared("vacuum analyze").await.unwrap();
        db.execute_unprepared("checkpoint").await.unwrap();
    } else if url.starts_with("mysql") {
        let _ = db.execute_unprepared("analyze table t_sys_mq_resend_log").await;
        write_dirty_pages(&db).await;
    } else {
        db.execute_unprepared("analyze").await.unwrap();
        db.execute_unprepared("pragma wal_checkpoint(truncate)").await.unwrap();
    }
    db.close().await.unwrap();
}

/// What a checkpoint does, on MySQL and MariaDB.
async fn write_dirty_pages(db: &DatabaseConnection) {
    const SETTINGS: [(&str, &str); 4] = [
        ("innodb_io_capacity_max", "40000"),
        ("innodb_io_capacity", "20000"),
        ("innodb_max_dirty_pages_pct_lwm", "0"),
        ("innodb_max_dirty_pages_pct", "0"),
    ];
    for (name, value) in SETTINGS {
        db.execute_unprepared(&format!("set global {name} = {value}")).await.unwrap();
    }
    let end = std::time::Instant::now() + Duration::from_secs(60);
    let sql = "show global status like 'Innodb_buffer_pool_pages_dirty'";
    loop {
        let sql = sea_orm::Statement::from_string(db.get_database_backend(), sql);
        let row = db.query_one_raw(sql).await.unwrap().unwrap();
        let dirty: String = row.try_get_by_index(1).unwrap();
        // The server itself is never quite idle.
        if dirty.parse::<u64>().unwrap() < 50 {
            break;
        }
        assert!(std::time::Instant::now() < end, "{dirty} pages are still not written");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (name, _) in SETTINGS.iter().rev() {
        db.execute_unprepared(&format!("set global {name} = default")).await.unwrap();
    }
}

/// An empty database, or the file of one.
pub async fn fresh(admin: &str, name: &str) -> String {
    if admin.starts_with("sqlite") {
        let path = std::env::temp_dir().join(format!("{name}.db"));
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", path.display()));
        }
        return format!("sqlite://{}?mode=rwc", path.display());
    }
    let db = connect(admin).await;
    drop_database(&db, admin, name).await;
    db.execute_unprepared(&format!("create database {name}")).await.unwrap();
    db.close().await.unwrap();
    // MySQL offers TLS; the others' servers here do not. It makes sqlx 0.9.0 wait, see docs/performance.md.
    let plain = if admin.starts_with("mysql") { "?ssl-mode=disabled" } else { "" };
    format!("{}/{name}{plain}", admin.rsplit_once('/').unwrap().0)
}

pub async fn remove(admin: &str, name: &str) {
    if !admin.starts_with("sqlite") {
        let db = connect(admin).await;
        drop_database(&db, admin, name).await;
        db.close().await.unwrap();
    }
}

async fn drop_database(db: &DatabaseConnection, admin: &str, name: &str) {
    let force = if admin.starts_with("postgres") { " with (force)" } else { "" };
    db.execute_unprepared(&format!("drop database if exists {name}{force}")).await.unwrap();
}

/// The most memory that this process ever had, in MB.
pub fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// This program once more, with other work on the same database.
pub struct Second {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Second {
    pub fn start(who: &str, what: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", who, what])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// Waits for its next number.
    pub async fn number(self) -> (Self, f64) {
        tokio::task::spawn_blocking(move || {
            let mut this = self;
            let mut line = String::new();
            loop {
                line.clear();
                assert!(this.out.read_line(&mut line).unwrap() > 0, "the second process has ended");
                if let Some(number) = line.strip_prefix("@ ") {
                    let number = number.split_whitespace().nth(1).unwrap().parse().unwrap();
                    return (this, number);
                }
            }
        })
        .await
        .unwrap()
    }

    /// Lets it go on from [`wait_for_go`].
    pub fn go(mut self) -> Self {
        writeln!(self.child.stdin.as_mut().unwrap()).unwrap();
        self
    }

    pub fn end(mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

/// Callers side by side that call again and again until a time. Returns the calls and what each took.
pub async fn callers<F, R>(count: u64, until: std::time::Instant, call: F) -> Vec<Duration>
where
    F: Fn(u64) -> R + Clone + Send + 'static,
    R: Future<Output = ()> + Send,
{
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..count {
        let call = call.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            let mut start = std::time::Instant::now();
            while start < until {
                call(caller).await;
                let end = std::time::Instant::now();
                times.push(end - start);
                start = end;
            }
            times
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

/// Rate and latency of [`callers`], after a warm-up and on an analysed table.
pub async fn measure_callers<F, R>(url: &str, count: u64, call: F)
where
    F: Fn(u64) -> R + Clone + Send + 'static,
    R: Future<Output = ()> + Send,
{
    use std::time::Instant;
    callers(count, Instant::now() + Duration::from_secs(1), call.clone()).await;
    settle(url).await;
    let start = Instant::now();
    let mut times = callers(count, start + seconds(5, 3), call).await;
    metric("rate", times.len() as f64 / start.elapsed().as_secs_f64());
    metric("p50_us", percentile(&mut times, 0.5));
}

/// In the second process: waits for the first.
pub fn wait_for_go() {
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// The server's version, in numbers.
pub async fn version(admin: &str) -> String {
    let url = if admin == "sqlite://" { "sqlite::memory:" } else { admin };
    let db = connect(url).await;
    let sql = if admin == "sqlite://" { "select sqlite_version()" } else { "select version()" };
    let sql = sea_orm::Statement::from_string(db.get_database_backend(), sql);
    let row = db.query_one_raw(sql).await.unwrap().unwrap();
    let text: String = row.try_get_by_index(0).unwrap();
    db.close().await.unwrap();
    let text = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    text.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect()
}
