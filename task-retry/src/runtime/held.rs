//! What this process holds: for each task the fence and the lease that it has.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::clock::Millis;

/// A task that this process holds, from its claim until its end is written.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) id: i64,
    pub(crate) fence: i64,
    until: AtomicI64,
    stop: AtomicU8,
    stopped: Notify,
    /// The attempt has ended and its end is being written: a lost lease shows itself there.
    pub(crate) ending: AtomicBool,
    /// The attempt has sent `complete_in`.
    pub(crate) completed: AtomicBool,
}

/// Why an attempt has to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Somebody else has the task, or it was ended from outside.
    Lost = 1,
    /// The runtime shuts down.
    Shutdown = 2,
}

impl Hold {
    pub(crate) fn new(id: i64, fence: i64, until: Millis) -> Arc<Self> {
        Arc::new(Self {
            id,
            fence,
            until: AtomicI64::new(until),
            stop: AtomicU8::new(0),
            stopped: Notify::new(),
            ending: AtomicBool::new(false),
            completed: AtomicBool::new(false),
        })
    }

    /// Whether the lease still runs, by our clock.
    pub(crate) fn is_valid(&self, now: Millis) -> bool {
        now < self.until.load(Ordering::Acquire)
    }

    pub(crate) fn renewed(&self, until: Millis) {
        self.until.fetch_max(until, Ordering::AcqRel);
    }

    pub(crate) fn stop(&self, why: Stop) {
        let _ = self.stop.compare_exchange(0, why as u8, Ordering::AcqRel, Ordering::Acquire);
        self.stopped.notify_waiters();
    }

    pub(crate) fn why_stopped(&self) -> Option<Stop> {
        match self.stop.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Stop::Lost),
            _ => Some(Stop::Shutdown),
        }
    }

    /// Waits until the attempt has to stop.
    pub(crate) async fn stopped(&self) -> Stop {
        loop {
            let notified = self.stopped.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Some(why) = self.why_stopped() {
                return why;
            }
            notified.await;
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<HashMap<i64, Arc<Hold>>>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<i64, Arc<Hold>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process never holds one id twice: `false` if an attempt of it runs here. One that has ended
    /// makes room: whoever could claim its task again has seen its end written, or made it void.
    pub(crate) fn add(&self, hold: Arc<Hold>) -> bool {
        use std::collections::hash_map::Entry;
        match self.lock().entry(hold.id) {
            Entry::Occupied(mut entry) if entry.get().ending.load(Ordering::Acquire) => {
                entry.insert(hold);
                true
            }
            Entry::Occupied(_) => false,
            Entry::Vacant(entry) => {
                entry.insert(hold);
                true
            }
        }
    }

    pub(crate) fn remove(&self, hold: &Arc<Hold>) {
        let mut held = self.lock();
        if held.get(&hold.id).is_some_and(|found| Arc::ptr_eq(found, hold)) {
            held.remove(&hold.id);
        }
    }

    /// Stops the attempt of a task, if one runs here.
    pub(crate) fn stop(&self, id: i64, why: Stop) {
        if let Some(hold) = self.lock().get(&id) {
            hold.stop(why);
        }
    }

    pub(crate) fn contains(&self, id: i64) -> bool {
        self.lock().contains_key(&id)
    }

    /// What is held although its lease has run out by our clock.
    pub(crate) fn expired(&self, now: Millis) -> Vec<i64> {
        self.lock().values().filter(|hold| !hold.is_valid(now)).map(|hold| hold.id).collect()
    }

    /// Everything held, in the order of ids.
    pub(crate) fn all(&self) -> Vec<Arc<Hold>> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_unstable_by_key(|hold| hold.id);
        all
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}
