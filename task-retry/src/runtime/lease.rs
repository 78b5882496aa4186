//! Renewal of leases, on a thread and a connection of its own: neither code that blocks the runtime
//! nor a busy pool can starve it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sea_orm::DbErr;
use tracing::{debug, warn};

use super::Inner;
use super::held::{Hold, Stop};
use crate::clock::{Millis, UNSURE, ceil_millis};
use crate::store::{Fault, Store, in_time, sibling, steadily};

/// Leases renewed by one statement.
const ROWS: usize = 1000;
/// How often the database is asked for its time.
const SYNC: Duration = Duration::from_secs(30);

/// Starts the thread; it ends when the runtime has shut down, or when the tokio runtime is gone that
/// the attempts ran on: nobody is there then whose leases it could renew.
pub(crate) fn spawn(inner: Arc<Inner>) -> std::io::Result<()> {
    let ended = inner.ended.clone();
    inner.handle.spawn(async move {
        let _cancels = ended.clone().drop_guard();
        ended.cancelled().await;
    });
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
    let connect = || Store { db: sibling(inner.store.db.pool()).into(), ..inner.store.clone() };
    let mut store = connect();
    let period = inner.lease / 3;
    let mut pause = period;
    let mut last = Instant::now();
    let mut synced = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = inner.ended.cancelled() => return,
        }
        if last.elapsed() > inner.lease {
            // We were stopped, or the database was away: other holders may be late as well.
            inner.let_holders_write();
        }
        let unsure = inner.clock.error() > UNSURE;
        if inner.clock.has_drifted() || unsure || synced.elapsed() > SYNC {
            match limited(inner, store.sync(&inner.clock)).await {
                Ok(()) => synced = Instant::now(),
                Err(error) => debug!(%error, "the database's time cannot be read"),
            }
        }
        match renew(inner, &store).await {
            Ok(()) => {
                last = Instant::now();
                pause = period;
            }
            Err(error) => {
                warn!(%error, "leases cannot be renewed now; trying again");
                // The connection may be silent for ever, and there is still time for another.
                store = connect();
                pause = period / 10;
            }
        }
    }
}

/// No statement here may hang for so long that a lease runs out before it is tried again.
async fn limited<T>(
    inner: &Inner,
    statement: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, DbErr> {
    in_time(inner.lease / 3, statement).await
}

async fn renew(inner: &Arc<Inner>, store: &Store) -> Result<(), DbErr> {
    let held = inner.held.all();
    let mut batches: Vec<&[Arc<Hold>]> = held.chunks(ROWS.min(store.bytes / 32)).collect();
    while let Some(holds) = batches.pop() {
        let rows: Vec<(i64, i64)> = holds.iter().map(|hold| (hold.id, hold.fence)).collect();
        let until = inner.clock.now() + ceil_millis(inner.lease);
        failpoint!("renew.before");
        let renewed = limited(inner, renewal(store, &rows, until)).await;
        failpoint!("renew.after");
        let renewed = match renewed {
            // Where locked rows cannot be skipped, the one that keeps the others is found by halves.
            Err(error) if store.optimistic && Fault::of(&error) == Fault::Repeat => {
                if holds.len() > 1 {
                    let (first, second) = holds.split_at(holds.len() / 2);
                    batches.extend([first, second]);
                }
                continue;
            }
            renewed => renewed?,
        };
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

async fn renewal(store: &Store, rows: &[(i64, i64)], until: Millis) -> Result<HashSet<i64>, DbErr> {
    match store.optimistic {
        true => store.renew(rows, until).await,
        false => steadily(|| store.renew(rows, until)).await,
    }
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
