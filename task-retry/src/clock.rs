//! One clock for all times that are written: the database's, read now and then, and the monotonic
//! clock in between; or one that tests move.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use crate::store::next_id;

/// Milliseconds since 1970 in UTC: the unit of every time inside the runtime.
pub(crate) type Millis = i64;

/// Beyond this difference of wall and monotonic clock the machine was asleep, or its clock was set.
const DRIFT: Duration = Duration::from_secs(1);

/// A clock that stands still until it is moved, for tests; give it to
/// [`Builder::clock`](crate::Builder::clock).
///
/// ```
/// use std::time::Duration;
/// use task_retry::ManualClock;
///
/// let clock = ManualClock::new("2026-01-01T00:00:00Z".parse()?);
/// clock.advance(Duration::from_secs(5));
/// assert_eq!(clock.now().to_rfc3339(), "2026-01-01T00:00:05+00:00");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Manual>);

#[derive(Debug)]
struct Manual {
    now: AtomicI64,
    moved: watch::Sender<()>,
    /// Of the tasks of this clock, so that their ids are in the order of their making, however other
    /// clocks of the process stand.
    last_id: AtomicI64,
}

impl ManualClock {
    /// A clock that shows this time.
    pub fn new(now: DateTime<Utc>) -> Self {
        let now = AtomicI64::new(now.timestamp_millis());
        let moved = watch::Sender::new(());
        Self(Arc::new(Manual { now, moved, last_id: AtomicI64::new(0) }))
    }

    /// The time that it shows.
    pub fn now(&self) -> DateTime<Utc> {
        to_datetime(self.0.now.load(Ordering::SeqCst))
    }

    /// Moves it on, in whole milliseconds, and wakes what waits for a time.
    pub fn advance(&self, by: Duration) {
        self.0.now.fetch_add(floor_millis(by), Ordering::SeqCst);
        self.0.moved.send_replace(());
    }

    /// Sets it to a time, also back.
    pub fn set(&self, now: DateTime<Utc>) {
        self.0.now.store(now.timestamp_millis(), Ordering::SeqCst);
        self.0.moved.send_replace(());
    }
}

#[derive(Clone)]
pub(crate) enum Clock {
    Database(Arc<RwLock<Anchor>>),
    Manual(ManualClock),
}

/// The database's time at a moment of the monotonic clock.
#[derive(Clone, Copy)]
pub(crate) struct Anchor {
    reading: Millis,
    monotonic: Instant,
    wall: SystemTime,
    /// How far off the reading may be, in either direction: half of the time that the answer took.
    error: Millis,
}

/// A clock that may be further off is asked for again, and what is due by it waits for certainty.
pub(crate) const UNSURE: Millis = 100;

/// What a clock shows at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) now: Millis,
    /// How far off that may be. What a holder does not know does not lengthen its lease, and what a
    /// claim does not know does not shorten that of another.
    pub(crate) error: Millis,
}

impl Reading {
    /// The latest time that it may be.
    pub(crate) fn latest(self) -> Millis {
        self.now + self.error
    }

    /// The earliest time that it may be.
    pub(crate) fn earliest(self) -> Millis {
        self.now - self.error
    }

    /// What has this time or an earlier one is due. It is ahead by no more than [`UNSURE`].
    pub(crate) fn due(self) -> Millis {
        self.now - (self.error - UNSURE).max(0)
    }
}

impl Clock {
    /// A clock that goes by the machine until it is first set.
    pub(crate) fn new() -> Self {
        let (monotonic, wall) = (Instant::now(), SystemTime::now());
        let anchor = Anchor { reading: system_now(), monotonic, wall, error: LATEST };
        Self::Database(Arc::new(RwLock::new(anchor)))
    }

    pub(crate) fn now(&self) -> Millis {
        self.read().now
    }

    /// One look at it, for whoever asks several things about the same moment.
    pub(crate) fn read(&self) -> Reading {
        match self {
            Self::Manual(clock) => Reading { now: clock.0.now.load(Ordering::SeqCst), error: 0 },
            Self::Database(anchor) => {
                anchor.read().unwrap_or_else(PoisonError::into_inner).read(Instant::now())
            }
        }
    }

    /// See [`Reading::error`].
    pub(crate) fn error(&self) -> Millis {
        self.read().error
    }

    /// See [`Reading::latest`].
    pub(crate) fn latest(&self) -> Millis {
        self.read().latest()
    }

    /// See [`Reading::due`].
    pub(crate) fn due(&self) -> Millis {
        self.read().due()
    }

    /// An id for a task that is made at this time.
    pub(crate) fn new_id(&self, now: Millis) -> i64 {
        static LAST: AtomicI64 = AtomicI64::new(0);
        match self {
            Self::Manual(clock) => next_id(&clock.0.last_id, now),
            Self::Database(_) => next_id(&LAST, now),
        }
    }

    /// Takes a reading of the database's clock that was asked for at `asked` and arrived now, unless
    /// the one before is better still: an answer that took long says little. Where both cannot be
    /// true, the database's clock was set, or it is another database by now.
    pub(crate) fn set(&self, reading: Millis, asked: Instant) {
        if let Self::Database(anchor) = self {
            let half = asked.elapsed() / 2;
            let new = Anchor {
                reading,
                monotonic: asked + half,
                wall: SystemTime::now(),
                error: ceil_millis(half),
            };
            let mut anchor = anchor.write().unwrap_or_else(PoisonError::into_inner);
            let at = Instant::now();
            let better = new.error <= anchor.read(at).error;
            if better || anchor.has_drifted() || anchor.contradicts(&new, at) {
                *anchor = new;
            }
        }
    }

    /// Whether the database has to be asked for the time before anything is decided by it.
    pub(crate) fn has_drifted(&self) -> bool {
        match self {
            Self::Manual(_) => false,
            Self::Database(anchor) => {
                anchor.read().unwrap_or_else(PoisonError::into_inner).has_drifted()
            }
        }
    }

    /// Waits until the clock shows a time that much later.
    #[cfg(feature = "xxl-job")]
    pub(crate) async fn sleep(&self, time: Duration) {
        match self {
            Self::Database(_) => tokio::time::sleep(time).await,
            Self::Manual(clock) => {
                let mut moved = clock.0.moved.subscribe();
                let until = self.now().saturating_add(ceil_millis(time));
                while self.now() < until && moved.changed().await.is_ok() {}
            }
        }
    }

    /// Waits until the clock may show something new: for so long, or until a test moves it.
    pub(crate) async fn pause(&self, time: Duration) {
        match self {
            Self::Database(_) => tokio::time::sleep(time).await,
            Self::Manual(clock) => {
                let mut moved = clock.0.moved.subscribe();
                moved.mark_unchanged();
                let _ = tokio::time::timeout(time, moved.changed()).await;
            }
        }
    }
}

impl Anchor {
    /// The error grows by a millisecond in ten seconds: crystals are off by a tenth of that.
    fn read(&self, at: Instant) -> Reading {
        let elapsed = at.saturating_duration_since(self.monotonic);
        Reading {
            now: self.reading + floor_millis(elapsed),
            error: self.error + floor_millis(elapsed / 10_000),
        }
    }

    /// Whether both cannot be true.
    fn contradicts(&self, new: &Self, at: Instant) -> bool {
        let (this, new) = (self.read(at), new.read(at));
        // Both are cut to milliseconds.
        (this.now - new.now).abs() > this.error + new.error + 2
    }

    fn has_drifted(&self) -> bool {
        let wall = self.wall.elapsed().unwrap_or(Duration::MAX);
        wall.abs_diff(self.monotonic.elapsed()) > DRIFT
    }
}

pub(crate) fn system_now() -> Millis {
    floor_millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Whole milliseconds, rounded down: what is due is due a little early rather than late.
pub(crate) fn floor_millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX / 4).min(Millis::MAX / 4)
}

/// Whole milliseconds, rounded up: a lease is a little too long rather than too short.
pub(crate) fn ceil_millis(duration: Duration) -> Millis {
    floor_millis(duration.saturating_add(Duration::from_nanos(999_999)))
}

/// The latest time that every database and chrono can hold: the last second of the year 9999.
pub(crate) const LATEST: Millis = 253_402_300_799_000;

pub(crate) fn to_datetime(millis: Millis) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(millis.clamp(0, LATEST)).unwrap_or_default()
}

pub(crate) fn to_millis(time: DateTime<Utc>) -> Millis {
    time.timestamp_millis().clamp(0, LATEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clock after an answer that took so long; the database's clock is ahead of the machine's.
    fn read(clock: &Clock, ahead: Millis, took: Duration) {
        let asked = Instant::now() - took;
        clock.set(system_now() - floor_millis(took / 2) + ahead, asked);
    }

    fn ahead(clock: &Clock) -> Millis {
        clock.now() - system_now()
    }

    #[test]
    fn a_slow_answer_makes_an_unsure_clock_and_does_not_replace_a_quick_one() {
        let clock = Clock::new();
        assert!(clock.error() > UNSURE, "nobody was asked");
        read(&clock, 5000, Duration::from_secs(4));
        assert!((1990..=2010).contains(&clock.error()), "{}", clock.error());
        assert!(clock.read().earliest() < clock.now() && clock.now() < clock.latest());
        assert!(
            (95..=UNSURE).contains(&(clock.due() - clock.read().earliest())),
            "{}",
            clock.due()
        );
        read(&clock, 6000, Duration::from_millis(10));
        assert!(clock.error() <= 7 && (5990..=6010).contains(&ahead(&clock)), "{}", ahead(&clock));
        assert!((0..=5).contains(&(clock.now() - clock.due())), "{}", clock.due());
        // The first reading is as true as this one, but says less.
        read(&clock, 5000, Duration::from_secs(4));
        assert!(clock.error() <= 7 && (5990..=6010).contains(&ahead(&clock)), "{}", ahead(&clock));
    }

    #[test]
    fn a_reading_that_contradicts_the_one_before_is_taken() {
        let clock = Clock::new();
        read(&clock, 0, Duration::from_millis(2));
        read(&clock, 3000, Duration::from_millis(400));
        assert!((2900..=3100).contains(&ahead(&clock)), "{}", ahead(&clock));
        assert!((195..=215).contains(&clock.error()), "{}", clock.error());
        assert!(clock.error() > UNSURE, "so it is asked again");
    }
}
