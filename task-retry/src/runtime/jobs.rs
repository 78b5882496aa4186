//! What can be scheduled from outside as well: a pass over due rows, and the removal of history.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::claim::{ROUNDING, Tell};
use super::execute::Told;
use super::{Inner, TaskRetry, claim, pauses, waits};
use crate::clock::floor_millis;
use crate::store::{Claim, DEPENDENTS, Shard, Which, steadily};
use crate::{Error, ErrorKind, Result, Status, TaskId, TaskLog};

/// Rows removed by one statement.
const ROWS: u32 = 1000;
/// Pages of so many tasks that a pass looks through for orphans.
const PAGES: usize = 100;
/// After so many rows a pass looks where what is still due begins: what it has claimed leaves dead entries in
/// the index, and each of its claims would read them all.
const AHEAD: usize = 1000;
/// How often, and how long, a pass over a share waits for rows that are locked but not claimed.
const SKIPS: u32 = 100;
const SKIP: Duration = Duration::from_millis(10);
/// How often history is removed.
const EVERY: Duration = Duration::from_secs(3600);

/// What a pass of [`TaskRetry::run_due`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunReport {
    /// Tasks that were claimed.
    pub claimed: u64,
    /// Tasks that have succeeded.
    pub succeeded: u64,
    /// Tasks that failed and will be retried.
    pub retrying: u64,
    /// Tasks that were given up.
    pub failed: u64,
    /// Tasks that wait for somebody to complete them.
    pub waiting: u64,
    /// Tasks that no code here can decode; they were put back.
    pub undecodable: u64,
    /// Tasks that were put back, or that were ended elsewhere meanwhile.
    pub other: u64,
}

impl RunReport {
    fn count(&mut self, told: Told) {
        let counter = match told {
            Told::Undecodable => &mut self.undecodable,
            Told::Nothing => &mut self.other,
            Told::Became(Status::Succeeded) => &mut self.succeeded,
            Told::Became(Status::Retrying) => &mut self.retrying,
            Told::Became(Status::Failed) => &mut self.failed,
            Told::Became(Status::Waiting) => &mut self.waiting,
            Told::Became(_) => &mut self.other,
        };
        *counter += 1;
    }
}

impl TaskRetry {
    /// One pass of the retry job: runs what is due now, and returns when it has ended. For those who
    /// schedule retries from outside, with `job: false`.
    ///
    /// With ids, it runs these tasks of this project whatever their status, also ended ones, and
    /// although their source is paused; only tasks under a live lease, and of sources that are not
    /// registered here, are left alone.
    ///
    /// Dropping the future leaves what was claimed to the workers.
    ///
    /// # Errors
    /// `Closed` while shutting down, `Store` if the database refuses; what was claimed before that
    /// still runs.
    pub async fn run_due(&self, ids: Option<Vec<TaskId>>) -> Result<RunReport> {
        Pass { ids, ..Pass::default() }.run(self.open()?).await
    }

    /// One pass of the retry job over a share of the due tasks: of `total` processes that are told
    /// 0, 1, … as their `index`, each runs its own, and together they run all of them.
    ///
    /// Shares go by the tasks' ids. They spread the load and are no locks: two passes over one share
    /// do no harm.
    ///
    /// # Errors
    /// As for [`run_due`](Self::run_due), and `Config` if `index` is not below `total`.
    pub async fn run_due_shard(&self, index: u32, total: u32) -> Result<RunReport> {
        if index >= total {
            let message = format!("there is no share {index} of {total}: the first is 0");
            return Err(Error::new(ErrorKind::Config, message));
        }
        let shard = Some(Shard { index, total });
        Pass { shard, ..Pass::default() }.run(self.open()?).await
    }

    /// One pass of the history job: deletes what was kept long enough (`data-kept-day`,
    /// `failed-kept-day`), in small batches, with results and attempts, and returns how many tasks
    /// that were.
    ///
    /// # Errors
    /// `Closed` while shutting down, `Store` if the database refuses; what was deleted stays deleted.
    pub async fn remove_history(&self) -> Result<u64> {
        remove_history(self.open()?).await
    }
}

/// A pass of the retry job.
#[derive(Default)]
pub(crate) struct Pass {
    /// Only these tasks, whatever their status.
    pub(crate) ids: Option<Vec<TaskId>>,
    pub(crate) shard: Option<Shard>,
    /// Claims nothing more when this is cancelled, and waits for nothing.
    pub(crate) stop: CancellationToken,
    /// Hears how each task ended.
    pub(crate) tell: Option<Box<dyn Fn(TaskId, Told) + Send + Sync>>,
}

impl Pass {
    pub(crate) async fn run(self, inner: &Arc<Inner>) -> Result<RunReport> {
        waits::listen(inner);
        let mut report = RunReport::default();
        match &self.ids {
            Some(ids) => self.run_ids(inner, ids, &mut report).await?,
            None => self.run_all(inner, &mut report).await?,
        }
        Ok(report)
    }

    fn is_over(&self, inner: &Inner) -> bool {
        self.stop.is_cancelled() || inner.closing.is_cancelled()
    }

    async fn run_ids(
        &self,
        inner: &Arc<Inner>,
        ids: &[TaskId],
        report: &mut RunReport,
    ) -> Result<()> {
        let ours = |id: &i64| self.shard.is_none_or(|shard| shard.has(*id));
        for ids in ids.chunks(inner.store.most_claimed().min(500)) {
            if self.is_over(inner) {
                break;
            }
            let ids = ids.iter().map(|id| id.0).filter(|id| !inner.held.contains(*id));
            let ids: Vec<i64> = ids.filter(ours).collect();
            let mut claim = inner.claim(inner.registry.sources(), ids.len() as u32);
            claim.ids = Some(ids);
            let tasks = steadily(|| inner.store.claim(&claim)).await?;
            self.work_off(inner, tasks, &claim, report).await;
        }
        Ok(())
    }

    async fn run_all(&self, inner: &Arc<Inner>, report: &mut RunReport) -> Result<()> {
        // What fails now and is due again at once is the next pass's.
        let due = inner.clock.due();
        let limit = (inner.task_limit.max(1) as usize).min(inner.store.most_claimed()) as u32;
        pauses::look(inner).await;
        for source in inner.registry.sources() {
            if inner.pauses.is_paused(source) {
                continue;
            }
            for which in [Which::Innocent, Which::Suspect] {
                let (mut skipped, mut floor, mut ahead) = (0, None, 0);
                while !self.is_over(inner) {
                    let mut claim = inner.claim(vec![source], limit);
                    claim.now = due;
                    claim.which = which;
                    claim.shard = self.shard;
                    claim.floor = floor;
                    if which == Which::Suspect {
                        claim.limit = 1;
                    }
                    let tasks = steadily(|| inner.store.claim(&claim)).await?;
                    let more = tasks.len() >= claim.limit as usize;
                    // Claims are as large as the pool, so that leases are not kept by what only waits.
                    self.work_off(inner, tasks, &claim, report).await;
                    if more {
                        skipped = 0;
                        ahead += claim.limit as usize;
                        if ahead >= AHEAD {
                            ahead = 0;
                            let asked = [(source, floor)];
                            let first = steadily(|| inner.store.first_due(&asked)).await?;
                            floor = first.first().map(|(_, first)| first - ROUNDING);
                        }
                        continue;
                    }
                    // Something may have come to lie before it.
                    if floor.take().is_some() {
                        continue;
                    }
                    // On MySQL, claims of other shares lock rows of this one in passing, and this
                    // claim has then skipped them.
                    let left = self.shard.is_some()
                        && skipped < SKIPS
                        && steadily(|| inner.store.is_due(&claim)).await?;
                    if !left {
                        break;
                    }
                    skipped += 1;
                    tokio::time::sleep(SKIP).await;
                }
            }
        }
        Ok(())
    }

    async fn work_off(
        &self,
        inner: &Arc<Inner>,
        tasks: Vec<TaskLog>,
        claim: &Claim,
        report: &mut RunReport,
    ) {
        let ids: Vec<TaskId> = tasks.iter().map(|task| task.id).collect();
        let told = start(inner, tasks, claim.until, claim.ids.is_some(), report);
        for (id, told) in ids.into_iter().zip(told) {
            let told = tokio::select! {
                told = told => told.unwrap_or(Told::Nothing),
                () = self.stop.cancelled() => return,
            };
            report.count(told);
            if let Some(tell) = &self.tell {
                tell(id, told);
            }
        }
    }
}

pub(super) fn start(
    inner: &Arc<Inner>,
    tasks: Vec<TaskLog>,
    until: i64,
    by_id: bool,
    report: &mut RunReport,
) -> Vec<oneshot::Receiver<Told>> {
    report.claimed += tasks.len() as u64;
    let mut told = Vec::with_capacity(tasks.len());
    for task in tasks {
        let (to, hear) = oneshot::channel();
        claim::submit(inner, task, until, Some(Tell { to, by_id }));
        told.push(hear);
    }
    told
}

#[cfg(feature = "testing")]
pub(super) async fn hear(told: Vec<oneshot::Receiver<Told>>, report: &mut RunReport) {
    for told in told {
        report.count(told.await.unwrap_or(Told::Nothing));
    }
}

/// Removes history every hour until the runtime closes; the first time within ten minutes.
pub(crate) async fn history(inner: Arc<Inner>) {
    let mut pause = Duration::from_secs(fastrand::u64(60..600));
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = inner.closing.cancelled() => return,
        }
        pause = EVERY.mul_f64(0.9 + 0.2 * fastrand::f64());
        match remove_history(&inner).await {
            Ok(0) => {}
            Ok(rows) => info!(rows, "removed history"),
            Err(error) => warn!(%error, "history cannot be removed now; trying again later"),
        }
    }
}

/// Warns of unfinished tasks that nothing here can run.
pub(crate) async fn strangers(inner: Arc<Inner>) {
    let mut after = i32::MIN;
    for _ in 0..100 {
        let (source, name) = match inner.store.next_source(after).await {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(error) => return debug!(%error, "sources cannot be looked through"),
        };
        if inner.registry.by_source(source).is_none() {
            warn!(
                source,
                name = name.unwrap_or_default(),
                "there are unfinished tasks of a source that nothing here knows: they wait for a \
                 program that does; if it is this one, its crate may have been left out by the linker \
                 (`use jobs as _;` or `.register::<…>()`)"
            );
        }
        after = source;
    }
}

/// Deletes what is kept beside tasks that somebody else deleted: so many pages a pass, going on where
/// the last one ended.
async fn sweep(inner: &Inner) -> Result<()> {
    for (table, swept) in DEPENDENTS.into_iter().zip(&inner.swept) {
        for _ in 0..PAGES {
            let after = swept.load(Ordering::Relaxed);
            let last = steadily(|| inner.store.sweep(table, after, ROWS)).await?;
            swept.store(last.unwrap_or(0), Ordering::Relaxed);
            if last.is_none() || inner.closing.is_cancelled() {
                break;
            }
        }
    }
    Ok(())
}

pub(crate) async fn remove_history(inner: &Inner) -> Result<u64> {
    let kept = [
        (&[Status::Succeeded][..], inner.data_kept),
        (&[Status::Failed, Status::Cancelled][..], inner.failed_kept),
    ];
    let mut removed = 0;
    for (statuses, kept) in kept {
        let Some(kept) = kept else { continue };
        let before = inner.clock.now().saturating_sub(floor_millis(kept));
        loop {
            let store = &inner.store;
            let rows = steadily(|| store.remove_history(statuses, before, ROWS)).await?;
            removed += rows;
            if rows < u64::from(ROWS) || inner.closing.is_cancelled() {
                break;
            }
        }
    }
    sweep(inner).await?;
    Ok(removed)
}
