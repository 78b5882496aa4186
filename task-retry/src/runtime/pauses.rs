//! Sources that are paused: kept in a small table, so that every process of the project sees them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sea_orm::DbErr;
use tokio::sync::Mutex;
use tracing::{debug, info};

use super::{Inner, TaskRetry, execute};
use crate::store::{ANSWER, in_time, steadily};
use crate::{Result, Source};

/// How often the table is read.
const EVERY: Duration = Duration::from_secs(2);

/// What this process knows of the project's pauses.
#[derive(Default)]
pub(crate) struct Pauses {
    sources: RwLock<HashSet<i32>>,
    /// Spares the rest where nothing is paused, as it mostly is.
    any: AtomicBool,
    /// When the table was last read. Locked by whoever reads or changes it, so that an older reading
    /// cannot hide a newer change.
    read: Mutex<Option<Instant>>,
}

impl Pauses {
    pub(crate) fn is_paused(&self, source: i32) -> bool {
        self.any.load(Ordering::Acquire)
            && self.sources.read().unwrap_or_else(PoisonError::into_inner).contains(&source)
    }

    /// Takes a reading in, and returns what was known before.
    fn set(&self, sources: HashSet<i32>) -> HashSet<i32> {
        let mut known = self.sources.write().unwrap_or_else(PoisonError::into_inner);
        self.any.store(!sources.is_empty(), Ordering::Release);
        std::mem::replace(&mut *known, sources)
    }
}

/// Reads the table every two seconds until the runtime closes.
pub(crate) async fn run(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = inner.closing.cancelled() => return,
        }
        if let Err(error) = read(&inner).await {
            debug!(%error, "pauses cannot be read now; what was known last holds");
        }
    }
}

/// Reads the table.
pub(crate) async fn read(inner: &Arc<Inner>) -> Result<Vec<i32>, DbErr> {
    let mut read = inner.pauses.read.lock().await;
    let sources = steadily(|| in_time(ANSWER, inner.store.paused())).await?;
    *read = Some(Instant::now());
    apply(inner, &sources).await;
    Ok(sources)
}

/// Reads the table if that was long ago: where no loop reads it, with `job: false`, those do who are
/// about to run something.
pub(crate) async fn look(inner: &Arc<Inner>) {
    if !inner.job {
        // The future of a call, which seldom does this, stays small.
        Box::pin(look_again(inner)).await;
    }
}

async fn look_again(inner: &Arc<Inner>) {
    let mut read = inner.pauses.read.lock().await;
    if read.is_some_and(|at| at.elapsed() < EVERY) {
        return;
    }
    // Not for long: a call waits for it, and others wait for that one.
    let sources = in_time(EVERY, steadily(|| inner.store.paused())).await;
    *read = Some(Instant::now());
    match sources {
        Ok(sources) => apply(inner, &sources).await,
        Err(error) => debug!(%error, "pauses cannot be read now; what was known last holds"),
    }
}

/// Hands back what waits of sources that are paused now, and looks for tasks of those that no longer
/// are.
async fn apply(inner: &Arc<Inner>, sources: &[i32]) {
    let now: HashSet<i32> = sources.iter().copied().collect();
    let before = inner.pauses.set(now.clone());
    if now == before {
        return;
    }
    info!(?sources, "the paused sources have changed");
    if now.difference(&before).next().is_some() {
        let waiting = inner.pool.withdraw(|source| now.contains(&source));
        execute::hand_back(inner, waiting).await;
    }
    if before.difference(&now).next().is_some() {
        inner.wake.kick();
    }
}

/// The sources of a project, see [`TaskRetry::sources`].
///
/// Of a source that is paused no attempt starts, in no process of the project. The process that
/// pauses or resumes one does so at once, the others within about two seconds, when they next read
/// the table `t_task_retry_pause`. A pause outlives every process, until it is resumed.
///
/// While a source is paused:
/// - attempts that run go on, and their ends are written; tasks that wait in memory are handed back
///   to the table, with nothing counted;
/// - `enqueue` stores tasks as ever, and they wait in the table;
/// - an awaited call is stored and answered with [`CallError::Deferred`], its cause
///   [`CauseKind::Interrupted`];
/// - [`TaskRetry::run_due`] leaves the source out, but runs what it is given by id;
/// - tasks can be completed, failed, cancelled and made due as ever.
///
/// ```standalone_crate
/// # use task_retry::{TaskRetry, retryable};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// /// Charges a card.
/// #[retryable(source = 31)]
/// async fn charge(order: u64) -> Result<(), String> {
///     Ok(())
/// }
///
/// # let retry = TaskRetry::builder().project("docs").database("sqlite::memory:").start().await?;
/// retry.sources().pause(31).await?; // the bank is down
/// let error = charge(42).await.unwrap_err();
/// assert!(error.is_deferred());
/// assert_eq!(retry.sources().paused().await?, [31]);
///
/// retry.sources().resume(31).await?; // what has waited runs now
/// # retry.shutdown().await?;
/// # Ok(())
/// # }
/// ```
///
/// [`CallError::Deferred`]: crate::CallError::Deferred
/// [`CauseKind::Interrupted`]: crate::CauseKind::Interrupted
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a>(&'a TaskRetry);

impl TaskRetry {
    /// The sources of the project: to pause and to resume.
    pub fn sources(&self) -> Sources<'_> {
        Sources(self)
    }
}

impl Sources<'_> {
    /// Pauses a source, also one that nothing in this process has. One that is paused stays so.
    ///
    /// Dropping the future leaves it paused or not.
    ///
    /// # Errors
    /// `Closed` while shutting down, `Config` with `enable: false`, `Store` if the database refuses.
    pub async fn pause(&self, source: impl Source) -> Result<()> {
        let (inner, source) = (self.0.open()?, source.number());
        let mut read = inner.pauses.read.lock().await;
        let now = inner.clock.now();
        steadily(|| inner.store.pause(source, now)).await?;
        let sources = steadily(|| inner.store.paused()).await?;
        *read = Some(Instant::now());
        apply(inner, &sources).await;
        Ok(())
    }

    /// Resumes a source; one that is not paused stays so. What has waited is due at once.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    pub async fn resume(&self, source: impl Source) -> Result<()> {
        let (inner, source) = (self.0.open()?, source.number());
        let mut read = inner.pauses.read.lock().await;
        steadily(|| inner.store.resume(source)).await?;
        let sources = steadily(|| inner.store.paused()).await?;
        *read = Some(Instant::now());
        apply(inner, &sources).await;
        Ok(())
    }

    /// The sources that are paused, in the order of their numbers, as the table has them now.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    pub async fn paused(&self) -> Result<Vec<i32>> {
        Ok(read(self.0.open()?).await?)
    }
}
