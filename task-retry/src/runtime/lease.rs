//! Renewal of leases, on a thread and a connection of its own: neither code that blocks the runtime
//! nor a busy pool can starve it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sea_orm::DbErr;
use tracing::{debug, warn};

use super::Inner;
use super::held::{Hold, Stop};
use crate::clock::ceil_millis;
use crate::store::{Store, sibling, steadily};

/// Leases renewed by one statement.
const ROWS: usize = 1000;
/// How often the database is asked for its time.
const SYNC: Duration = Duration::from_secs(30);

/// Starts the thread; it ends when the runtime has shut down.
pub(crate) fn spawn(inner: Arc<Inner>) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("task-retry-lease".into());
    thread
        .spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    tracing::error!(%error, "the lease thread cannot start; leases are not renewed");
                    return;
                }
            };
            runtime.block_on(run(&inner));
        })
        .map(drop)
}

async fn run(inner: &Arc<Inner>) {
    let store = Store { db: sibling(&inner.store.db), ..inner.store.clone() };
    let period = inner.lease / 3;
    let mut last = Instant::now();
    let mut synced = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            () = inner.ended.cancelled() => return,
        }
        if last.elapsed() > inner.lease {
            // We were stopped, or the database was away: other holders may be late as well.
            inner.let_holders_write();
        }
        if inner.clock.has_drifted() || synced.elapsed() > SYNC {
            match limited(inner, store.sync(&inner.clock)).await {
                Ok(()) => synced = Instant::now(),
                Err(error) => debug!(%error, "the database's time cannot be read"),
            }
        }
        match renew(inner, &store).await {
            Ok(()) => last = Instant::now(),
            Err(error) => warn!(%error, "leases cannot be renewed now; trying again"),
        }
    }
}

/// No statement here may hang for longer than a lease allows.
async fn limited<T>(
    inner: &Inner,
    statement: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, DbErr> {
    tokio::time::timeout(inner.lease / 2, statement)
        .await
        .unwrap_or_else(|_| Err(DbErr::Custom("the database did not answer in time".into())))
}

async fn renew(inner: &Arc<Inner>, store: &Store) -> Result<(), DbErr> {
    let held = inner.held.all();
    for holds in held.chunks(ROWS) {
        let rows: Vec<(i64, i64)> = holds.iter().map(|hold| (hold.id, hold.fence)).collect();
        let until = inner.clock.now() + ceil_millis(inner.lease);
        let renewed = limited(inner, steadily(|| store.renew(&rows, until))).await?;
        let mut missing = Vec::new();
        for hold in holds {
            match renewed.contains(&hold.id) {
                true => hold.renewed(until),
                false => missing.push(hold),
            }
        }
        if !missing.is_empty() {
            cancel_lost(inner, store, &missing).await?;
        }
    }
    Ok(())
}

/// A row that was not renewed is merely locked, not stored yet, or somebody else's: only the last
/// cancels its attempt.
async fn cancel_lost(
    inner: &Arc<Inner>,
    store: &Store,
    missing: &[&Arc<Hold>],
) -> Result<(), DbErr> {
    let ids: Vec<i64> = missing.iter().map(|hold| hold.id).collect();
    let holders = limited(inner, store.holders(&ids)).await?;
    for hold in missing {
        let Some(holder) = holders.get(&hold.id) else { continue };
        let ours = holder.fence == hold.fence
            && holder.locked_by.as_deref() == Some(store.worker.as_str());
        // What is being written, or was completed by its own transaction, tells its own end.
        let ends = hold.ending.load(Ordering::Acquire) || hold.completed.load(Ordering::Acquire);
        if !ours && !ends {
            warn!(task.id = hold.id, "another process has the task, or it was ended from outside");
            hold.stop(Stop::Lost);
        }
    }
    Ok(())
}
