//! The worker processes, and what is done to them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use task_retry::failpoints;
use tokio::process::{Child, ChildStdin, Command};

use super::ledger::now;
use super::{LEASE, Report, Settings, Trouble};
use crate::TestDb;

/// A worker that is stopped.
pub(super) struct Stopped {
    from: u64,
    until: Instant,
    /// It seems to hold the database's only lock.
    locks: bool,
}

/// A worker process of the campaign.
pub(super) struct Worker {
    pub(super) child: Child,
    pub(super) pid: u32,
    pub(super) born: Instant,
    /// Its end asks it to shut down.
    pub(super) input: Option<ChildStdin>,
    /// Told to shut down when it has lived for this long.
    pub(super) quits: Option<Duration>,
    pub(super) stopped: Option<Stopped>,
    /// What its wall clock is ahead by is in this file.
    clock: Option<PathBuf>,
}

impl Worker {
    /// With this library its wall clock can be moved.
    pub(super) fn start(settings: &Settings, faketime: Option<&Path>) -> Self {
        let log = File::options().create(true).append(true).open(settings.folder.join("log"));
        // Beside the test program's folder `deps`; Cargo builds it before it runs the tests.
        let mut program = std::env::current_exe().expect("the test program has a path");
        program.pop();
        program.set_file_name("campaign_worker");
        let mut command = Command::new(program);
        let clock = faketime.map(|library| {
            let clock = settings.folder.join(format!("clock-{}", settings.first >> 32));
            move_clock(&clock, 0);
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &clock);
            // It looks into the file each time; the monotonic clock stays as it is.
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            clock
        });
        let mut child = command
            .arg(serde_json::to_string(settings).expect("settings are JSON"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log.expect("a log"))
            .kill_on_drop(true)
            .spawn()
            .expect("the worker starts");
        let pid = child.id().expect("it has just started");
        let input = child.stdin.take();
        Self { child, pid, born: Instant::now(), input, quits: None, stopped: None, clock }
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It may have just ended; it is still there to be waited for.
        let _ = kill(Pid::from_raw(self.pid as i32), signal);
    }

    fn ended(&self, status: ExitStatus, report: &mut Report, troubles: &mut Vec<Trouble>) {
        let what = if status.signal() == Some(Signal::SIGKILL as i32) {
            report.kills += 1;
            "killed"
        } else if status.success() {
            report.shutdowns += 1;
            "shut down"
        } else {
            return report.violations.push(format!("a worker ended with {status}"));
        };
        let at = now();
        troubles.push(Trouble { what, pid: Some(self.pid), from: at, until: at });
    }

    /// Lets it go on if it is stopped.
    async fn wake(&mut self, file: Option<&DatabaseConnection>, troubles: &mut Vec<Trouble>) {
        if let Some(Stopped { from, locks, .. }) = self.stopped.take() {
            let locks = locks && is_locked(file).await;
            self.signal(Signal::SIGCONT);
            let until = now();
            troubles.push(Trouble { what: "stopped", pid: Some(self.pid), from, until });
            if locks {
                let what = "locked by a stopped process";
                troubles.push(Trouble { what, pid: None, from, until });
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.clock.is_some() {
            // What the library leaves of a process that is killed.
            for name in ["faketime_shm", "sem.faketime_sem"] {
                let _ = std::fs::remove_file(format!("/dev/shm/{name}_{}", self.pid));
            }
        }
    }
}

/// Whether nobody gets SQLite's lock for a second: a process that is stopped may hold it, and then all
/// others wait until it goes on.
async fn is_locked(file: Option<&DatabaseConnection>) -> bool {
    let Some(file) = file else { return false };
    if file.execute_unprepared("begin immediate").await.is_err() {
        return true;
    }
    file.execute_unprepared("rollback").await.expect("what was begun ends");
    false
}

fn move_clock(clock: &Path, seconds: i64) {
    // All at once, since it is read at any time.
    let new = clock.with_extension("new");
    std::fs::write(&new, format!("{seconds:+}\n")).expect("a file can be written");
    std::fs::rename(&new, clock).expect("it can be moved");
}

/// The library that moves the clocks of single processes, of Debian's package `libfaketime`. `None` where
/// it is missing, which is an error with `TASK_RETRY_TEST_REQUIRE_ALL=1`.
pub(super) fn faketime() -> Option<PathBuf> {
    let folders =
        ["/usr/lib", "/usr/lib64"].into_iter().filter_map(|it| std::fs::read_dir(it).ok());
    let folders = folders.flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let library = folders
        .flat_map(|folder| {
            [folder.join("faketime/libfaketimeMT.so.1"), folder.join("libfaketimeMT.so.1")]
        })
        .find(|path| path.exists());
    if library.is_none() {
        assert!(!crate::requires_all(), "libfaketime is missing: run the tests with `tests/run`");
        eprintln!("no clock is moved: libfaketime is missing");
    }
    library
}

/// The worker processes.
pub(super) struct Crew {
    pub(super) settings: Settings,
    /// See [`faketime`].
    pub(super) faketime: Option<PathBuf>,
    /// They take turns.
    pub(super) urls: Vec<String>,
    /// SQLite's file.
    pub(super) file: Option<DatabaseConnection>,
    pub(super) workers: Vec<Worker>,
    pub(super) random: fastrand::Rng,
    pub(super) made: u64,
}

impl Crew {
    /// For the next one.
    pub(super) fn settings(&mut self) -> Settings {
        self.made += 1;
        let url = self.urls[self.made as usize % self.urls.len()].clone();
        Settings { url, ..self.settings.clone() }
    }

    /// Starts one. Most of them will kill themselves at the point that was hit least so far.
    pub(super) fn hire(&mut self, hits: &BTreeMap<String, u32>) {
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
        let mut worker = Worker::start(&settings, self.faketime.as_deref());
        worker.quits = quits;
        self.workers.push(worker);
    }

    /// Starts one that lives until it is told to end.
    pub(super) fn add(&mut self) {
        let mut settings = self.settings();
        settings.first = self.made << 32;
        self.workers.push(Worker::start(&settings, self.faketime.as_deref()));
    }

    /// Takes note of those that have ended.
    pub(super) fn reap(&mut self, report: &mut Report, troubles: &mut Vec<Trouble>) {
        for mut worker in std::mem::take(&mut self.workers) {
            match worker.child.try_wait().expect("a child can be waited for") {
                None => self.workers.push(worker),
                Some(status) => worker.ended(status, report, troubles),
            }
        }
    }

    /// Wakes all, lets them shut down, and takes note of how they ended.
    async fn dismiss(&mut self, report: &mut Report, troubles: &mut Vec<Trouble>) {
        for worker in &mut self.workers {
            worker.wake(self.file.as_ref(), troubles).await;
            worker.input = None;
        }
        for mut worker in std::mem::take(&mut self.workers) {
            let status = tokio::time::timeout(Duration::from_secs(60), worker.child.wait()).await;
            let status = status.expect("a worker shuts down in time");
            worker.ended(status.expect("a child can be waited for"), report, troubles);
        }
    }

    /// Kills, stops, wakes or asks to shut down, and moves clocks.
    pub(super) async fn strike(
        &mut self,
        enough: bool,
        report: &mut Report,
        troubles: &mut Vec<Trouble>,
    ) {
        for worker in &mut self.workers {
            if worker.stopped.as_ref().is_some_and(|stopped| Instant::now() >= stopped.until) {
                worker.wake(self.file.as_ref(), troubles).await;
            }
            if worker.quits.is_some_and(|after| worker.born.elapsed() > after) {
                worker.input = None;
            }
        }
        // About three a second.
        if self.random.u32(..1000) < 60 {
            let worker = &self.workers[self.random.usize(..self.workers.len())];
            if let Some(clock) = &worker.clock {
                move_clock(clock, [3600, -3600, 0][self.random.usize(..3)]);
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
                let until = Instant::now() + pause;
                let locks = is_locked(self.file.as_ref()).await;
                worker.stopped = Some(Stopped { from, until, locks });
            }
            _ => {}
        }
    }

    /// Lets everything come to its end, for two minutes at most. Only when nobody is left who calls can
    /// nothing more be stored.
    pub(super) async fn finish(
        &mut self,
        db: &TestDb,
        report: &mut Report,
        troubles: &mut Vec<Trouble>,
    ) -> bool {
        self.dismiss(report, troubles).await;
        for _ in 0..2 {
            let settings = self.settings();
            self.workers.push(Worker::start(&settings, None));
        }
        let connection = db.connect().await;
        let until = Instant::now() + Duration::from_secs(120);
        let mut ended = false;
        while !ended && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let sql = "select count(*) from t_sys_mq_resend_log where status in (0, 1, 5)";
            let sql = Statement::from_string(connection.get_database_backend(), sql);
            // A node that joins its cluster again does not answer at once.
            let Ok(row) = connection.query_one_raw(sql).await else { continue };
            let open: i64 = row.expect("a row").try_get_by_index(0).expect("a number");
            ended = open == 0;
        }
        self.dismiss(report, troubles).await;
        ended
    }
}
