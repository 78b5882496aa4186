//! The runs: one at a time of a job, the others of it in a queue, and what they leave for the admin.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::journal::Journal;
use super::protocol::{
    Answer, Ended, FAILURE, LogAsked, LogPage, RunId, SUCCESS, TIMED_OUT, Trigger,
};
use super::work::{Log, Work};
use crate::runtime::Inner;

/// Runs of one job that may wait.
const QUEUE: usize = 1000;

pub(super) struct Runs {
    inner: Arc<Inner>,
    journal: Journal,
    state: Mutex<State>,
    /// Ends that the admin was not told of yet.
    ends: Mutex<BTreeMap<RunId, Ended>>,
    pub(super) ended: Notify,
}

#[derive(Default)]
struct State {
    /// The jobs of which something runs.
    jobs: HashMap<i64, Job>,
    /// By day and log id: their logs grow.
    active: HashSet<(chrono::NaiveDate, i64)>,
    closed: bool,
}

struct Job {
    running: Arc<Run>,
    queue: VecDeque<Arc<Run>>,
}

struct Run {
    id: RunId,
    job: i64,
    work: Work,
    timeout: Option<Duration>,
    stop: CancellationToken,
    why: OnceLock<&'static str>,
}

impl Run {
    fn stop(&self, why: &'static str) {
        let _ = self.why.set(why);
        self.stop.cancel();
    }
}

impl Runs {
    pub(super) fn new(inner: Arc<Inner>, journal: Journal) -> Self {
        let ends = journal.left().into_iter().map(|end| (end.run, end)).collect();
        Self {
            inner,
            journal,
            state: Mutex::default(),
            ends: Mutex::new(ends),
            ended: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ends(&self) -> MutexGuard<'_, BTreeMap<RunId, Ended>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a run on, or says why not.
    pub(super) fn trigger(self: &Arc<Self>, trigger: &Trigger) -> Answer {
        let time = trigger.log_date_time.filter(|time| *time > 0);
        let id =
            RunId { log: trigger.log_id, time: time.unwrap_or_else(|| self.inner.clock.now()) };
        let work = match Work::of(trigger) {
            Ok(work) => work,
            Err(refusal) => return Answer::refusal(refusal),
        };
        let timeout = trigger.executor_timeout.and_then(|seconds| u64::try_from(seconds).ok());
        let run = Arc::new(Run {
            id,
            job: trigger.job_id,
            work,
            timeout: timeout.filter(|seconds| *seconds > 0).map(Duration::from_secs),
            stop: CancellationToken::new(),
            why: OnceLock::new(),
        });
        let strategy = trigger.executor_block_strategy.as_deref().unwrap_or_default();
        let mut replaced = Vec::new();
        let answer = self.accept(run, strategy, &mut replaced);
        for run in replaced {
            self.end(&run, Self::stopped(&run));
        }
        answer
    }

    fn accept(
        self: &Arc<Self>,
        run: Arc<Run>,
        strategy: &str,
        replaced: &mut Vec<Arc<Run>>,
    ) -> Answer {
        let mut state = self.state();
        if state.closed {
            return Answer::refusal("the executor is shutting down");
        }
        // Before the block strategy: a trigger that is sent twice must not replace itself.
        if self.journal.is_known(run.id) {
            return Answer::ok();
        }
        let busy = state.jobs.get_mut(&run.job);
        if let Some(job) = &busy {
            if strategy == "DISCARD_LATER" {
                return Answer::refusal(
                    "discarded: an earlier run of the job has not ended (DISCARD_LATER)",
                );
            }
            if job.queue.len() >= QUEUE && strategy != "COVER_EARLY" {
                return Answer::refusal(format!("{QUEUE} runs of the job wait already"));
            }
        }
        match self.journal.begin(run.id) {
            Ok(true) => {}
            Ok(false) => return Answer::ok(),
            Err(error) => {
                let folder = self.journal.folder().display();
                return Answer::refusal(format!("log-path {folder} cannot be written: {error}"));
            }
        }
        match busy {
            Some(job) => {
                if strategy == "COVER_EARLY" {
                    let why = "replaced by a later run of the job (COVER_EARLY)";
                    replaced.extend(job.queue.drain(..));
                    replaced.iter().for_each(|run| run.stop(why));
                    job.running.stop(why);
                }
                job.queue.push_back(run.clone());
            }
            None => {
                let job = Job { running: run.clone(), queue: VecDeque::new() };
                state.jobs.insert(run.job, job);
                self.inner.handle.spawn(self.clone().work_off(run.clone()));
            }
        }
        state.active.insert((run.id.day(), run.id.log));
        Answer::ok()
    }

    /// Runs what a job has to run, one after the other.
    async fn work_off(self: Arc<Self>, mut run: Arc<Run>) {
        loop {
            let ended = match AssertUnwindSafe(self.perform(&run)).catch_unwind().await {
                Ok(ended) => ended,
                Err(_) => (FAILURE, "the run panicked".to_owned()),
            };
            // The job is free before the admin hears of the end.
            let next = self.next(run.job);
            self.end(&run, ended);
            match next {
                Some(next) => run = next,
                None => return,
            }
        }
    }

    fn next(&self, job: i64) -> Option<Arc<Run>> {
        let mut state = self.state();
        let next = state.jobs.get_mut(&job)?.queue.pop_front();
        match (&next, state.jobs.get_mut(&job)) {
            (Some(run), Some(job)) => job.running = run.clone(),
            _ => drop(state.jobs.remove(&job)),
        }
        next
    }

    async fn perform(&self, run: &Run) -> (i32, String) {
        if run.stop.is_cancelled() {
            return Self::stopped(run);
        }
        let log = Arc::new(Log::new(self.journal.writer(run.id), &self.inner));
        log.line(&run.work.describe());
        // In a task of its own: what it has claimed is handed over, whatever stops the run.
        let stop = run.stop.child_token();
        let work = run.work.clone().perform(self.inner.clone(), stop.clone(), log);
        let work = self.inner.handle.spawn(work);
        let late = async {
            match run.timeout {
                Some(timeout) => self.inner.clock.sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = run.stop.cancelled() => Self::stopped(run),
            done = work => match done {
                Ok(Ok(text)) => (SUCCESS, text),
                Ok(Err(text)) => (FAILURE, text),
                Err(_) => (FAILURE, "the run panicked".to_owned()),
            },
            () = late => {
                stop.cancel();
                let seconds = run.timeout.unwrap_or_default().as_secs();
                (TIMED_OUT, format!(
                    "not done in {seconds} s, the job's time-out; tasks that had begun go on to their end"
                ))
            }
        }
    }

    fn stopped(run: &Run) -> (i32, String) {
        let why = run.why.get().copied().unwrap_or("stopped");
        (FAILURE, format!("{why}; tasks that had begun go on to their end"))
    }

    /// Writes the end of a run down, and has the admin told.
    fn end(&self, run: &Run, (code, text): (i32, String)) {
        let log = Log::new(self.journal.writer(run.id), &self.inner);
        log.last(&format!("ended with {code}: {text}"));
        info!(job = run.job, log_id = run.id.log, code, text, "a run of xxl-job has ended");
        let end = Ended::new(run.id, code, text);
        if let Err(error) = self.journal.keep(&end) {
            warn!(%error, "xxl-job's log-path cannot be written: a crash would lose the end of a run");
        }
        {
            // At once, so that neither a shutdown nor somebody who reads the log sees one without the
            // other.
            let mut state = self.state();
            state.active.remove(&(run.id.day(), run.id.log));
            self.ends().insert(end.run, end);
        }
        self.ended.notify_one();
    }

    /// Stops what a job runs, and forgets what waits.
    pub(super) fn kill(&self, job: i64) {
        self.stop(Some(job), "killed from the admin");
    }

    /// Stops one job or all; those that wait end at once, those that run end by themselves.
    fn stop(&self, which: Option<i64>, why: &'static str) {
        let mut waiting = Vec::new();
        for (job, runs) in &mut self.state().jobs {
            if which.is_none_or(|which| which == *job) {
                waiting.extend(runs.queue.drain(..));
                runs.running.stop(why);
            }
        }
        for run in waiting {
            run.stop(why);
            self.end(&run, Self::stopped(&run));
        }
    }

    pub(super) fn is_busy(&self, job: i64) -> bool {
        self.state().jobs.contains_key(&job)
    }

    pub(super) fn log(&self, asked: &LogAsked) -> LogPage {
        let time = asked.log_date_tim.filter(|time| *time > 0);
        let time = time.unwrap_or_else(|| self.inner.clock.now());
        let day = RunId { time, log: asked.log_id }.day();
        // Before it is read: nothing is written behind the last line.
        let has_ended = !self.state().active.contains(&(day, asked.log_id));
        self.journal.read(time, asked.log_id, asked.from_line_num, has_ended)
    }

    /// Ends for one message to the admin, the oldest first.
    pub(super) fn batch(&self, most: usize) -> Vec<Ended> {
        self.ends().values().take(most).cloned().collect()
    }

    /// The admin was told of these.
    pub(super) fn told(&self, ends: &[Ended]) {
        for end in ends {
            self.ends().remove(&end.run);
            self.journal.forget(end.run);
        }
    }

    pub(super) fn sweep(&self, days: u32) {
        let now = self.inner.clock.now();
        self.journal.sweep(now, days);
        let age = i64::from(days).saturating_mul(86_400_000);
        let old: Vec<Ended> =
            self.ends().values().filter(|end| end.run.time < now - age).cloned().collect();
        if !old.is_empty() {
            warn!(
                runs = old.len(),
                "the admin was never told of the ends of old runs; they are forgotten"
            );
            self.told(&old);
        }
    }

    /// Takes nothing on any more; lets what runs end for so long, then stops it.
    pub(super) async fn close(&self, grace: Duration) {
        let why = "the executor was shut down";
        let mut waiting = Vec::new();
        {
            let mut state = self.state();
            state.closed = true;
            state.jobs.values_mut().for_each(|job| waiting.extend(job.queue.drain(..)));
        }
        for run in waiting {
            run.stop(why);
            self.end(&run, Self::stopped(&run));
        }
        if !self.idle(grace).await {
            self.stop(None, why);
            self.idle(Duration::from_secs(1)).await;
        }
    }

    async fn idle(&self, most: Duration) -> bool {
        let until = tokio::time::Instant::now() + most;
        loop {
            let (jobs, active) = {
                let state = self.state();
                (state.jobs.len(), state.active.len())
            };
            if jobs == 0 && active == 0 {
                return true;
            }
            if tokio::time::Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
