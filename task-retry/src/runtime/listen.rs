//! PostgreSQL's NOTIFY: rows that are stored unclaimed wake other processes of the project, and so do
//! the ends of tasks that they wait for. It only saves waiting; what it misses, the next poll finds.
//!
//! A message is the project, a line feed, and `stored` with sources, to wake the claims of those that
//! have one of them, or `look`, to have all of them read the index from its beginning too, or `waits` or
//! `ended` with the process that sends it and ids of tasks.

use std::collections::HashMap;
use std::fmt::Write;
use std::mem::take;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sea_orm::sqlx::postgres::{PgListener, PgPoolOptions};
use sea_orm::{ConnectionTrait, DatabaseConnectionType, DbBackend, Statement};
use tracing::{debug, info};

use super::write::Backoff;
use super::{Inner, supervised, waits};
use crate::TaskId;

const CHANNEL: &str = "task_retry";
/// At most one notification in this time.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// How often the others are told what is waited for here: those that claim it later as well.
pub(super) const TELL_EVERY: Duration = Duration::from_secs(30);
/// How long what others wait for is remembered.
const REMEMBER: Duration = Duration::from_secs(90);
/// How many tasks that others wait for are remembered; the others are found by looking.
const MOST: usize = 10_000;
/// Ids of one message: 8,000 bytes are allowed.
const IDS: usize = 300;
/// Sources of one message.
const SOURCES: usize = 500;

/// What other processes wait for.
#[derive(Default)]
pub(crate) struct Elsewhere {
    state: Mutex<Wanted>,
    any: AtomicBool,
    listening: AtomicBool,
}

#[derive(Default)]
struct Wanted {
    since: HashMap<i64, Instant>,
    /// Those that have ended here, to be told.
    ended: Vec<i64>,
}

impl Elsewhere {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task has ended here; `true` if another process is to be told.
    pub(super) fn ended(&self, id: i64) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let mut wanted = self.lock();
        let found = wanted.since.remove(&id).is_some();
        if found {
            wanted.ended.push(id);
        }
        self.any.store(!wanted.since.is_empty(), Ordering::Release);
        found
    }

    fn want(&self, ids: impl Iterator<Item = i64>) {
        let now = Instant::now();
        let mut wanted = self.lock();
        wanted.since.retain(|_, since| now - *since < REMEMBER);
        for id in ids {
            if wanted.since.len() < MOST || wanted.since.contains_key(&id) {
                wanted.since.insert(id, now);
            }
        }
        self.any.store(!wanted.since.is_empty(), Ordering::Release);
    }
}

/// Whether there is something to listen to.
pub(crate) fn applies(inner: &Inner) -> bool {
    let connection = &inner.store.db.pool().inner;
    inner.notify && matches!(connection, DatabaseConnectionType::SqlxPostgresPoolConnection(_))
}

/// Sends what was asked for with `inner.others`.
pub(crate) async fn send(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = inner.others.news.notified() => {}
            () = inner.closing.cancelled() => return,
        }
        let sql = "select pg_notify($1, $2)";
        let look = inner.others.look.swap(false, Ordering::AcqRel);
        let sources =
            take(&mut *inner.others.sources.lock().unwrap_or_else(PoisonError::into_inner));
        let mut message = inner.store.project.clone();
        if look || sources.len() > SOURCES {
            message.push_str("\nlook");
        } else if sources.is_empty() {
            // Said already.
            continue;
        } else {
            message.push_str("\nstored");
            sources.iter().for_each(|source| _ = write!(message, " {source}"));
        }
        let values = [CHANNEL.into(), message.into()];
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
        if let Err(error) = inner.store.db.execute_raw(statement).await {
            debug!(%error, "other processes cannot be notified; they will find it at their next poll");
        }
        tokio::time::sleep(DEBOUNCE).await;
    }
}

/// Tells the other processes that something waits here for these tasks.
pub(super) async fn tell_of_waiting(inner: &Inner, ids: &[i64]) {
    tell(inner, "waits", ids).await;
}

/// Tells the other processes of the ends that they wait for.
pub(super) async fn tell_of_ends(inner: &Inner) {
    let ended = std::mem::take(&mut inner.waits.elsewhere.lock().ended);
    tell(inner, "ended", &ended).await;
}

async fn tell(inner: &Inner, what: &str, ids: &[i64]) {
    for ids in ids.chunks(IDS) {
        let mut message = format!("{}\n{what} {}", inner.store.project, inner.store.worker);
        for id in ids {
            message.push(' ');
            message.push_str(&id.to_string());
        }
        let sql = "select pg_notify($1, $2)";
        let values = [CHANNEL.into(), message.into()];
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
        if let Err(error) = inner.store.db.execute_raw(statement).await {
            debug!(%error, "other processes cannot be told; they will look");
        }
    }
}

/// Takes in what another process says.
fn hear(inner: &Arc<Inner>, message: &str) {
    let mut words = message.split_ascii_whitespace();
    let what = words.next();
    if what == Some("stored") {
        let mut sources = words.filter_map(|word| word.parse().ok());
        if sources.any(|source| inner.registry.by_source(source).is_some()) {
            wake(inner, false);
        }
        return;
    }
    let worker = words.next();
    if worker == Some(inner.store.worker.as_str()) {
        return;
    }
    let ids = words.filter_map(|word| word.parse::<i64>().ok());
    match what {
        Some("waits") => {
            inner.waits.elsewhere.want(ids);
            // It sends what has ended.
            waits::start(inner);
        }
        Some("ended") => ids.for_each(|id| inner.waits.heard_of(TaskId(id))),
        // Of a newer version.
        _ => {}
    }
}

/// Starts to listen, if there is something to listen to and nobody does.
pub(crate) fn start(inner: &Arc<Inner>) {
    if applies(inner) && !inner.waits.elsewhere.listening.swap(true, Ordering::AcqRel) {
        supervised(inner, "listener", listen);
    }
}

/// Listens on a connection of its own, outside of any transaction.
async fn listen(inner: Arc<Inner>) {
    let mut backoff = Backoff::default();
    while !inner.closing.is_cancelled() {
        match receive(&inner, &mut backoff).await {
            Ok(Heard::Closing) => return,
            Ok(Heard::Pooler) => {
                return info!("nobody can listen through a pooler, only poll; see Builder::notify");
            }
            Err(error) => debug!(%error, "notifications cannot be received; polling goes on"),
        }
        tokio::select! {
            () = backoff.pause() => {}
            () = inner.closing.cancelled() => {}
        }
    }
}

/// Why nobody listens any more.
enum Heard {
    Closing,
    Pooler,
}

/// A setting that the server has only in a session of this client's own. A pooler that gives sessions
/// to one client after another refuses it at the start, or leaves it out.
const OWN: &str = "task_retry.listens";

/// Behind such a pooler, LISTEN would stay with the session, and notifications would come amid the
/// answers to others, which their drivers take for a broken connection.
async fn connect(inner: &Inner) -> Result<Option<PgListener>, sea_orm::sqlx::Error> {
    let options = inner.store.db.pool().get_postgres_connection_pool().connect_options();
    let options = (*options).clone().options([(OWN, "yes")]);
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
    let mut listener = match PgListener::connect_with(&pool).await {
        Err(sea_orm::sqlx::Error::Database(error))
            if error.message().contains("startup parameter") =>
        {
            return Ok(None);
        }
        connected => connected?,
    };
    let own = sea_orm::sqlx::query_scalar("select current_setting($1, true)").bind(OWN);
    let own: Option<String> = own.fetch_one(&mut listener).await?;
    Ok(own.is_some_and(|own| own == "yes").then_some(listener))
}

async fn receive(inner: &Arc<Inner>, backoff: &mut Backoff) -> Result<Heard, sea_orm::sqlx::Error> {
    let Some(mut listener) = connect(inner).await? else { return Ok(Heard::Pooler) };
    listener.listen(CHANNEL).await?;
    backoff.reset();
    loop {
        let notification = tokio::select! {
            notification = listener.recv() => notification?,
            () = inner.closing.cancelled() => return Ok(Heard::Closing),
        };
        match notification.payload().strip_prefix(inner.store.project.as_str()) {
            Some("\nlook") => wake(inner, true),
            Some(rest) if rest.starts_with('\n') => hear(inner, rest),
            _ => {}
        }
    }
}

fn wake(inner: &Arc<Inner>, look: bool) {
    let inner = inner.clone();
    inner.handle.clone().spawn(async move { inner.wake.heard(look).await });
}
