//! Claims: what others left behind, and what was stored for later, is found here.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sea_orm::DbErr;
use tokio::sync::{Notify, oneshot};
use tracing::{debug, warn};

use super::Inner;
use super::execute::{Ready, Told};
use super::held::{Hold, Stop};
use super::write::{Backoff, write_beside};
use crate::TaskLog;
use crate::clock::{LATEST, Millis, ceil_millis};
use crate::store::{ANSWER, Claim, Claimed, SUSPECT, Store, Which, in_time, steadily};

/// Probes read the index from this long before the first due row seen, ...
const MARGIN: Millis = 1000;
/// ... and from its beginning this often.
const FULL_LOOK: Duration = Duration::from_secs(5);
/// That takes at most a twentieth of the time. A starter's table is read past all rows that have
/// ended, since the starter leaves their times set.
const LOOKS: u32 = 20;
/// A row that was stored so much later than it was due may lie before the bound.
const LATE: Millis = MARGIN / 2;
/// A probe at least this often while batches come full.
const PROBE: Duration = Duration::from_millis(200);
/// However much else is due, suspects are looked for this often.
const SUSPECTS: Duration = Duration::from_secs(1);
/// With more tasks than this past their leases, a process waits for their renewal.
const MANY: usize = 1000;
/// Other programs write times in their own way: on SQLite a text without milliseconds comes before the same
/// time with them.
pub(super) const ROUNDING: Millis = 10;
/// So many of a claim's tasks start while the others are decoded.
const PART: usize = 250;
/// What one claim may bring into memory, about.
const BYTES: usize = 32 << 20;

/// Processes that look in vain when another one has stored something look later the next time, up to
/// this, and once for all that they hear until then. So of a hundred of them one or a few, which find
/// something, look at once, and the others ten times a second, on the average.
const SPREAD: Duration = Duration::from_millis(200);

/// Wakes the claims: at once, or for a time that is known in this process.
pub(crate) struct Wake {
    now: Notify,
    due: AtomicI64,
    /// Read the index from its beginning.
    look: AtomicBool,
    /// The next look answers what another process said.
    heard: AtomicBool,
    /// How long such a look is put off at most, in microseconds.
    spread: AtomicU64,
    /// It is being put off.
    #[cfg(feature = "postgres")]
    puts_off: AtomicBool,
}

/// What the other processes are to be told.
#[derive(Default)]
pub(crate) struct Others {
    pub(super) news: Notify,
    pub(super) look: AtomicBool,
    /// Of what has been stored.
    pub(super) sources: Mutex<BTreeSet<i32>>,
}

impl Others {
    /// Rows of a source are due that this process has just stored.
    fn stored(&self, source: i32) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).insert(source);
        self.news.notify_one();
    }

    /// Rows may be due that were stored a while ago, by a transaction that ends now.
    pub(crate) fn look(&self) {
        self.look.store(true, Ordering::Release);
        self.news.notify_one();
    }
}

impl Wake {
    pub(crate) fn new() -> Self {
        Self {
            now: Notify::new(),
            due: AtomicI64::new(LATEST),
            look: AtomicBool::new(false),
            heard: AtomicBool::new(false),
            spread: AtomicU64::new(0),
            #[cfg(feature = "postgres")]
            puts_off: AtomicBool::new(false),
        }
    }

    /// Another process has stored something. Whoever found something of late looks at once.
    #[cfg(feature = "postgres")]
    pub(super) async fn heard(&self, look: bool) {
        self.look.fetch_or(look, Ordering::AcqRel);
        let spread = Duration::from_micros(self.spread.load(Ordering::Relaxed));
        if !spread.is_zero() {
            if self.puts_off.swap(true, Ordering::AcqRel) {
                return;
            }
            tokio::time::sleep(spread.mul_f64(fastrand::f64())).await;
            self.puts_off.store(false, Ordering::Release);
        }
        self.heard.store(true, Ordering::Release);
        self.now.notify_one();
    }

    /// What a look has found.
    fn looked(&self, found: bool) {
        if self.heard.swap(false, Ordering::AcqRel) {
            let spread = self.spread.load(Ordering::Relaxed);
            let most = SPREAD.as_micros() as u64;
            let spread = if found { spread / 2 } else { (spread * 2).clamp(1000, most) };
            self.spread.store(spread, Ordering::Relaxed);
        }
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
    /// What the last probe found first: claims read the index from there, and what comes to lie before it
    /// is found by the next probe.
    first: Option<Millis>,
    looked: Instant,
    /// From one full look to the next.
    rest: Duration,
    /// The last claim came back full: there is probably more.
    full: bool,
    claimed: Instant,
    /// When suspects were looked for.
    suspects: Instant,
    /// It did indeed.
    much: bool,
    /// About how large a row of it is.
    bytes: Arc<AtomicUsize>,
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
            first: None,
            looked: Instant::now(),
            rest: FULL_LOOK,
            full: false,
            claimed: Instant::now(),
            suspects: Instant::now(),
            much: false,
            bytes: Arc::new(AtomicUsize::new(1000)),
        })
        .collect();
    let mut backoff = Backoff::default();
    let mut away: Option<Instant> = None;
    let mut probed = None;
    let store = inner.store.kept();
    while !inner.closing.is_cancelled() {
        let began = Instant::now();
        if away.is_some_and(|since| since.elapsed() > inner.lease) {
            inner.let_holders_write();
        }
        match pass(&inner, &store, &mut lines, &mut probed).await {
            Ok(pause) => {
                away = None;
                backoff.reset();
                let began = Instant::now();
                wait(&inner, &lines, pause).await;
                if began.elapsed() > pause + inner.lease {
                    // We were stopped; others may have been, too.
                    inner.let_holders_write();
                }
            }
            Err(error) => {
                away.get_or_insert(began);
                warn!(%error, "due tasks cannot be claimed now; trying again");
                tokio::select! {
                    () = backoff.pause() => {}
                    () = inner.closing.cancelled() => {}
                }
            }
        }
    }
}

async fn wait(inner: &Inner, lines: &[Line], pause: Duration) {
    if pause.is_zero() {
        return tokio::task::yield_now().await;
    }
    // A place that gets free matters only where rows may wait for it.
    let wants_room = inner.pool.has_suspect()
        || lines.iter().any(|line| line.full || rows_wanted(inner, line) == 0);
    tokio::select! {
        () = inner.clock.pause(pause) => {}
        () = inner.wake.now.notified() => {}
        () = inner.pool.room.notified(), if wants_room => {}
        () = inner.closing.cancelled() => {}
    }
}

/// Looks once, source by source in turn, and tells how long nothing will be due.
async fn pass(
    inner: &Arc<Inner>,
    store: &Store,
    lines: &mut [Line],
    probed: &mut Option<Instant>,
) -> Result<Duration, DbErr> {
    if inner.clock.has_drifted() {
        in_time(ANSWER, store.sync(&inner.clock)).await?;
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
        first = probe(inner, store, lines, &wanted).await?;
        *probed = Some(Instant::now());
    }
    let (mut more, mut found) = (false, false);
    for index in wanted.into_iter().filter(|index| lines[*index].full).collect::<Vec<_>>() {
        let line = &mut lines[index];
        let wanted = rows_wanted(inner, line);
        if wanted > 0 {
            found |= claim(inner, store, line, wanted).await?;
            more |= line.full && rows_wanted(inner, line) > 0;
        }
    }
    inner.wake.looked(found);
    if more {
        return Ok(Duration::ZERO);
    }
    let first = first.min(inner.wake.due.load(Ordering::Acquire));
    let until = first.saturating_sub(inner.clock.due()).max(1);
    Ok(poll.min(Duration::from_millis(until as u64)))
}

/// Asks for the first due time of each source, in one statement; those that are due are marked as
/// full. Returns the first time that is still to come.
async fn probe(
    inner: &Arc<Inner>,
    store: &Store,
    lines: &mut [Line],
    wanted: &[usize],
) -> Result<Millis, DbErr> {
    let look = inner.wake.look.swap(false, Ordering::AcqRel);
    for line in lines.iter_mut().filter(|line| look || line.looked.elapsed() > line.rest) {
        line.floor = None;
    }
    let asked: Vec<_> =
        wanted.iter().map(|index| (lines[*index].source, lines[*index].floor)).collect();
    // From before the answer: what is stored meanwhile must not lie below the next bound.
    let (now, asked_at) = (inner.clock.due(), Instant::now());
    let found = in_time(ANSWER, store.first_due(&asked)).await?;
    if asked_at.elapsed() > inner.lease {
        // The database was frozen, for the others as well.
        inner.let_holders_write();
    }
    let found: HashMap<i32, Millis> = found.into_iter().collect();
    let rest = asked_at.elapsed() * LOOKS;
    let mut first = LATEST;
    for index in wanted {
        let line = &mut lines[*index];
        if line.floor.is_none() {
            line.looked = Instant::now();
            line.rest = rest.max(FULL_LOOK);
        }
        let due = found.get(&line.source).copied();
        line.first = due.map(|due| due - ROUNDING);
        line.full = due.is_some_and(|due| due <= now);
        if let Some(due) = due {
            line.floor = Some(due.min(now) - MARGIN);
            if due > now {
                first = first.min(due);
            }
        } else if rest > inner.poll_interval {
            line.floor = Some(now - MARGIN);
        }
    }
    Ok(first)
}

/// How many rows of a source fit now: as many as there are free places and at least a claim's size, but
/// none while more than one claim of it waits. A claim fills at most half of the queue, so that the next
/// one comes while the last is worked on.
fn rows_wanted(inner: &Inner, line: &Line) -> usize {
    if inner.pauses.is_paused(line.source) {
        return 0;
    }
    let size = line.size.min((inner.queue_capacity / 2).max(1));
    let concurrency = inner.concurrency(line.source);
    let room = inner.pool.room_for(line.source, concurrency, size);
    if room.closed || room.waiting > size {
        return 0;
    }
    let most = (BYTES / line.bytes.load(Ordering::Relaxed).max(1)).max(1);
    size.max(room.free).min(room.queue).min(most).min(inner.store.most_claimed())
}

/// Claims once; `true` if there was anything.
async fn claim(
    inner: &Arc<Inner>,
    store: &Store,
    line: &mut Line,
    wanted: usize,
) -> Result<bool, DbErr> {
    let dry = inner.pool.waiting(line.source) == 0;
    let mut claim = inner.claim(vec![line.source], wanted as u32);
    claim.floor = line.first;
    failpoint!("claim.before");
    let claimed = steadily(|| in_time(ANSWER, store.claim_rows(&claim))).await?;
    failpoint!("claim.after");
    let full = claimed.len() >= wanted;
    adapt(inner, line, dry, full);
    line.full = full;
    let mut found = claimed.len() > 0;
    if found {
        come(inner, line, claimed, claim.clone(), full).await;
    }
    if (!full || line.suspects.elapsed() > SUSPECTS) && !inner.pool.has_suspect() {
        line.suspects = Instant::now();
        // One at a time, and only to start at once: whoever is held beside it may die with it.
        claim.which = Which::Suspect;
        claim.limit = 1;
        claim.until = inner.clock.now() + ceil_millis(inner.lease);
        let suspects = steadily(|| in_time(ANSWER, store.claim(&claim))).await?;
        line.full |= !suspects.is_empty();
        found |= !suspects.is_empty();
        take_in(inner, suspects, claim.until);
    }
    Ok(found)
}

/// Decodes what was claimed and hands it to the workers, who start with the first while the others are
/// decoded. While much is due, the next claim is on its way meanwhile.
async fn come(inner: &Arc<Inner>, line: &mut Line, mut claimed: Claimed, claim: Claim, full: bool) {
    debug!(source = line.source, tasks = claimed.len(), "claimed");
    let (much, bytes) = (full && line.much, line.bytes.clone());
    line.much = full;
    let mut coming = Coming::new(inner, line.source, claimed.len());
    let come = async move {
        while claimed.len() > 0 {
            let before = claimed.len();
            let tasks = claimed.take(PART, &coming.inner.store, &claim);
            let count = before - claimed.len();
            let size = |task: &TaskLog| 500 + task.context.as_ref().map_or(0, String::len);
            let average = tasks.iter().map(size).sum::<usize>() / count;
            bytes.store((bytes.load(Ordering::Relaxed) + average) / 2, Ordering::Relaxed);
            take_in(&coming.inner, tasks, claim.until);
            coming.arrived(count);
            tokio::task::yield_now().await;
        }
    };
    match much {
        true => write_beside(inner, |_| come),
        // Not before its rows have told how large they are.
        false => come.await,
    }
}

/// Tasks that are claimed and not in the pool yet.
struct Coming {
    inner: Arc<Inner>,
    source: i32,
    count: usize,
}

impl Coming {
    fn new(inner: &Arc<Inner>, source: i32, count: usize) -> Self {
        inner.pool.expect(source, count);
        Self { inner: inner.clone(), source, count }
    }

    fn arrived(&mut self, count: usize) {
        self.count -= count;
        self.inner.pool.arrived(self.source, count);
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.inner.pool.arrived(self.source, self.count);
    }
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

/// Who wants to hear how a claimed task ended.
pub(crate) struct Tell {
    pub(crate) to: oneshot::Sender<Told>,
    /// It was asked for by its id.
    pub(crate) by_id: bool,
}

/// Hands claimed tasks to the workers.
pub(crate) fn take_in(inner: &Arc<Inner>, tasks: Vec<TaskLog>, until: Millis) {
    for task in tasks {
        submit(inner, task, until, None);
    }
}

/// Hands one claimed task to the workers.
pub(crate) fn submit(inner: &Arc<Inner>, task: TaskLog, until: Millis, tell: Option<Tell>) {
    let Some(handler) = inner.registry.by_source(task.source).cloned() else { return };
    let hold = Hold::new(task.id.0, task.fence, until);
    let by_id = tell.as_ref().is_some_and(|tell| tell.by_id);
    let tell = tell.map(|tell| tell.to);
    let ready =
        Ready { task: Arc::new(task), hold, handler, args: None, tell, by_id, failed: None };
    if inner.held.add(ready.hold.clone()) {
        return hand_over(inner, ready);
    }
    inner.handle.spawn(after_an_earlier(inner.clone(), ready));
}

fn hand_over(inner: &Arc<Inner>, ready: Ready) {
    if let Err(ready) = inner.pool.submit(inner, ready) {
        let inner = inner.clone();
        inner.handle.clone().spawn(async move {
            super::execute::hand_back(&inner, vec![*ready]).await;
        });
    }
}

/// An earlier attempt of the task still runs here. It was failed from outside or retried by hand, for
/// instance, and has lost the task to this newer claim, so it is stopped first. If it cannot be
/// stopped, the lease of this claim runs out.
async fn after_an_earlier(inner: Arc<Inner>, ready: Ready) {
    while ready.hold.is_valid(inner.clock.latest()) {
        inner.held.stop(ready.hold.id, Stop::Lost);
        if inner.held.add(ready.hold.clone()) {
            return hand_over(&inner, ready);
        }
        if inner.closing.is_cancelled() {
            return super::execute::hand_back(&inner, vec![ready]).await;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    warn!(task.id = ready.hold.id, "an earlier attempt of the task cannot be stopped");
}

/// Ends a task that was taken for it as failed, once no earlier attempt of it runs here, and tells
/// whether that took effect.
pub(super) async fn give_up(inner: Arc<Inner>, ready: Ready) -> bool {
    while ready.hold.is_valid(inner.clock.latest()) {
        inner.held.stop(ready.hold.id, Stop::Lost);
        if inner.held.add(ready.hold.clone()) {
            let ended = super::execute::attempt(&inner, ready, false, true).await;
            return ended.landed == Some(true);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    false
}

impl Inner {
    /// Tells the claims, here and elsewhere, of a row that was stored and is not held.
    pub(crate) fn tell_of_stored(&self, source: i32, due: Millis) {
        if self.clock.now() - due > LATE {
            self.wake.kick();
            self.others.look();
        } else {
            self.wake.due_at(due);
            self.others.stored(source);
        }
    }

    /// A claim of due rows.
    pub(crate) fn claim(&self, sources: Vec<i32>, limit: u32) -> Claim {
        let clock = self.clock.read();
        let now = clock.now;
        // A process that was stopped for a while must not take its own tasks for a dead one's.
        let except = self.held.expired(clock.latest());
        Claim {
            sources,
            ids: None,
            limit,
            shard: None,
            now: clock.due(),
            expired: clock.earliest(),
            until: now + ceil_millis(self.lease),
            floor: None,
            which: Which::Innocent,
            suspects: Vec::new(),
            take_over: now >= self.take_over_from.load(Ordering::Acquire) && except.len() < MANY,
            except,
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
