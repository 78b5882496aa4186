//! Claims: what others left behind, and what was stored for later, is found here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use sea_orm::DbErr;
use tokio::sync::Notify;
use tracing::{debug, warn};

use super::Inner;
use super::execute::Ready;
use super::held::Hold;
use super::write::Backoff;
use crate::TaskLog;
use crate::clock::{LATEST, Millis, ceil_millis};
use crate::store::{Claim, SUSPECT, Which, steadily};

/// The index is read from this long before the first due row seen, ...
const MARGIN: Millis = 2000;
/// ... and from its beginning this often.
const FULL_LOOK: Duration = Duration::from_secs(5);
/// A probe at least this often while batches come full.
const PROBE: Duration = Duration::from_millis(200);
/// What one claim may bring into memory, about.
const BYTES: usize = 32 << 20;

/// Wakes the claims: at once, or for a time that is known in this process.
pub(crate) struct Wake {
    now: Notify,
    due: AtomicI64,
    /// Read the index from its beginning.
    look: AtomicBool,
}

impl Wake {
    pub(crate) fn new() -> Self {
        Self { now: Notify::new(), due: AtomicI64::new(LATEST), look: AtomicBool::new(false) }
    }

    /// Something is due; it may have been stored a while ago by a transaction that ends now.
    pub(crate) fn kick(&self) {
        self.look.store(true, Ordering::Release);
        self.now.notify_one();
    }

    /// A row of ours is due then.
    pub(crate) fn due_at(&self, time: Millis) {
        if self.due.fetch_min(time, Ordering::AcqRel) > time {
            self.now.notify_one();
        }
    }
}

/// What is remembered of a source between claims.
struct Line {
    source: i32,
    /// Rows per claim.
    size: usize,
    floor: Option<Millis>,
    looked: Instant,
    /// The last claim came back full: there is probably more.
    full: bool,
    claimed: Instant,
    /// About how large a row of it is.
    bytes: usize,
}

/// The claim loop: it ends when the runtime closes, and no error ends it.
pub(crate) async fn run(inner: Arc<Inner>) {
    let smallest = inner.task_limit.max(1) as usize;
    let mut lines: Vec<Line> = inner
        .registry
        .sources()
        .into_iter()
        .map(|source| Line {
            source,
            size: smallest,
            floor: None,
            looked: Instant::now(),
            full: false,
            claimed: Instant::now(),
            bytes: 1000,
        })
        .collect();
    let mut backoff = Backoff::default();
    let mut away: Option<Instant> = None;
    let mut probed = None;
    while !inner.closing.is_cancelled() {
        match pass(&inner, &mut lines, &mut probed).await {
            Ok(pause) => {
                if away.take().is_some_and(|since| since.elapsed() > inner.lease) {
                    inner.let_holders_write();
                }
                backoff.reset();
                wait(&inner, pause).await;
            }
            Err(error) => {
                away.get_or_insert_with(Instant::now);
                warn!(%error, "due tasks cannot be claimed now; trying again");
                tokio::select! {
                    () = backoff.pause() => {}
                    () = inner.closing.cancelled() => {}
                }
            }
        }
    }
}

async fn wait(inner: &Inner, pause: Duration) {
    if pause.is_zero() {
        return tokio::task::yield_now().await;
    }
    tokio::select! {
        () = inner.clock.pause(pause) => {}
        () = inner.wake.now.notified() => {}
        () = inner.pool.room.notified() => {}
        () = inner.closing.cancelled() => {}
    }
}

/// Looks once, source by source in turn, and tells how long nothing will be due.
async fn pass(
    inner: &Arc<Inner>,
    lines: &mut [Line],
    probed: &mut Option<Instant>,
) -> Result<Duration, DbErr> {
    if inner.clock.has_drifted() {
        inner.store.sync(&inner.clock).await?;
    }
    let poll = inner.poll_interval;
    lines.rotate_left(usize::from(lines.len() > 1));
    let wanted: Vec<usize> =
        (0..lines.len()).filter(|index| rows_wanted(inner, &lines[*index]) > 0).collect();
    if wanted.is_empty() {
        return Ok(poll);
    }
    inner.wake.due.store(LATEST, Ordering::Release);
    let fresh =
        probed.is_some_and(|at| at.elapsed() < PROBE) && !inner.wake.look.load(Ordering::Acquire);
    let mut first = LATEST;
    if !fresh || !wanted.iter().any(|index| lines[*index].full) {
        first = probe(inner, lines, &wanted).await?;
        *probed = Some(Instant::now());
    }
    let mut more = false;
    for index in wanted.into_iter().filter(|index| lines[*index].full).collect::<Vec<_>>() {
        let line = &mut lines[index];
        let wanted = rows_wanted(inner, line);
        if wanted > 0 {
            claim(inner, line, wanted).await?;
            more |= line.full && rows_wanted(inner, line) > 0;
        }
    }
    if more {
        return Ok(Duration::ZERO);
    }
    let first = first.min(inner.wake.due.load(Ordering::Acquire));
    let until = first.saturating_sub(inner.clock.now()).max(1);
    Ok(poll.min(Duration::from_millis(until as u64)))
}

/// Asks for the first due time of each source, in one statement; those that are due are marked as
/// full. Returns the first time that is still to come.
async fn probe(inner: &Arc<Inner>, lines: &mut [Line], wanted: &[usize]) -> Result<Millis, DbErr> {
    let look = inner.wake.look.swap(false, Ordering::AcqRel);
    for line in lines.iter_mut().filter(|line| look || line.looked.elapsed() > FULL_LOOK) {
        line.floor = None;
    }
    let asked: Vec<_> =
        wanted.iter().map(|index| (lines[*index].source, lines[*index].floor)).collect();
    let found: HashMap<i32, Millis> = inner.store.first_due(&asked).await?.into_iter().collect();
    let now = inner.clock.now();
    let mut first = LATEST;
    for index in wanted {
        let line = &mut lines[*index];
        if line.floor.is_none() {
            line.looked = Instant::now();
        }
        let due = found.get(&line.source).copied();
        line.full = due.is_some_and(|due| due <= now);
        if let Some(due) = due {
            line.floor = Some(due.min(now) - MARGIN);
            if due > now {
                first = first.min(due);
            }
        }
    }
    Ok(first)
}

/// How many rows of a source fit now: as many as there are free places and at least the task limit,
/// but none while enough of it waits.
fn rows_wanted(inner: &Inner, line: &Line) -> usize {
    let concurrency = inner.concurrency(line.source);
    let room = inner.pool.room_for(line.source, concurrency);
    if room.closed || room.waiting > line.size / 2 {
        return 0;
    }
    let most = (BYTES / line.bytes.max(1)).max(1);
    line.size.max(room.free).saturating_sub(room.waiting).min(room.queue).min(most)
}

async fn claim(inner: &Arc<Inner>, line: &mut Line, wanted: usize) -> Result<(), DbErr> {
    let dry = inner.pool.room_for(line.source, None).waiting == 0;
    let mut claim = inner.claim(vec![line.source], wanted as u32);
    claim.floor = line.floor;
    let tasks = steadily(|| inner.store.claim(&claim)).await?;
    let full = tasks.len() >= wanted;
    adapt(inner, line, dry, full);
    line.full = full;
    if !tasks.is_empty() {
        let bytes: usize =
            tasks.iter().map(|task| 500 + task.context.as_ref().map_or(0, String::len)).sum();
        line.bytes = (line.bytes + bytes / tasks.len()) / 2;
        debug!(source = line.source, tasks = tasks.len(), "claimed");
    }
    take_in(inner, tasks, claim.until);
    if !full && !inner.pool.has_suspect() {
        // One at a time, and only to start at once: whoever is held beside it may die with it.
        claim.which = Which::Suspect;
        claim.limit = 1;
        let until = inner.clock.now() + ceil_millis(inner.lease);
        let claim = Claim { until, floor: None, ..claim };
        let suspects = steadily(|| inner.store.claim(&claim)).await?;
        line.full |= !suspects.is_empty();
        take_in(inner, suspects, until);
    }
    Ok(())
}

/// Batches grow while workers run dry within a second of a full claim, and shrink afterwards.
fn adapt(inner: &Inner, line: &mut Line, dry: bool, full: bool) {
    let quick = line.claimed.elapsed() < Duration::from_secs(1);
    line.claimed = Instant::now();
    let (least, most) = (inner.task_limit.max(1) as usize, inner.queue_capacity.max(1));
    if full && dry && quick {
        line.size = (line.size * 2).min(most.max(least));
    } else if !full {
        line.size = (line.size / 2).max(least);
    }
}

/// Hands claimed tasks to the workers.
pub(crate) fn take_in(inner: &Arc<Inner>, tasks: Vec<TaskLog>, until: Millis) {
    for task in tasks {
        submit(inner, task, until, None);
    }
}

/// Hands one claimed task to the workers; `false` if it cannot run here now.
pub(crate) fn submit(
    inner: &Arc<Inner>,
    task: TaskLog,
    until: Millis,
    tell: Option<tokio::sync::oneshot::Sender<super::execute::Told>>,
) -> bool {
    let Some(handler) = inner.registry.by_source(task.source).cloned() else { return false };
    let hold = Hold::new(task.id.0, task.fence, until);
    if !inner.held.add(hold.clone()) {
        // An older hold of the same task is ending; the lease of this one runs out by itself.
        warn!(task.id = task.id.0, "the task is still held by an earlier attempt here");
        return false;
    }
    let ready = Ready { task: Arc::new(task), hold, handler, args: None, tell };
    if let Err(ready) = inner.pool.submit(inner, ready) {
        let inner = inner.clone();
        inner.handle.clone().spawn(async move {
            super::execute::hand_back(&inner, vec![*ready]).await;
        });
        return false;
    }
    true
}

impl Inner {
    /// A claim of due rows.
    pub(crate) fn claim(&self, sources: Vec<i32>, limit: u32) -> Claim {
        let now = self.clock.now();
        Claim {
            sources,
            ids: None,
            limit,
            now,
            until: now + ceil_millis(self.lease),
            floor: None,
            which: Which::Innocent,
            take_over: now >= self.take_over_from.load(Ordering::Acquire),
        }
    }

    pub(crate) fn concurrency(&self, source: i32) -> Option<usize> {
        self.registry.by_source(source).and_then(|handler| handler.meta().concurrency)
    }

    /// Leaves expired locks alone for one lease, so that their holders can write first.
    pub(crate) fn let_holders_write(&self) {
        let from = self.clock.now() + ceil_millis(self.lease);
        self.take_over_from.store(from, Ordering::Release);
    }
}

const _: () = assert!(SUSPECT == 2, "the claim's condition in the store says so too");
