//! PostgreSQL's NOTIFY: rows that are stored unclaimed wake other processes of the project.
//! It only saves waiting; what it misses, the next poll finds.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::postgres::{PgListener, PgPoolOptions};
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tracing::debug;

use super::Inner;
use super::write::Backoff;

const CHANNEL: &str = "task_retry";
/// At most one notification in this time.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// A hundred processes do not ask at the same moment.
const SPREAD: Duration = Duration::from_millis(20);

/// Whether there is something to listen to.
pub(crate) fn applies(inner: &Inner) -> bool {
    inner.notify && inner.store.db.get_database_backend() == DbBackend::Postgres
}

/// Sends what was asked for with `inner.notify_others`.
pub(crate) async fn send(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = inner.others.notified() => {}
            () = inner.closing.cancelled() => return,
        }
        let sql = "select pg_notify($1, $2)";
        let values = [CHANNEL.into(), inner.store.project.as_str().into()];
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
        if let Err(error) = inner.store.db.execute_raw(statement).await {
            debug!(%error, "other processes cannot be notified; they will find it at their next poll");
        }
        tokio::time::sleep(DEBOUNCE).await;
    }
}

/// Listens on a connection of its own, outside of any transaction.
pub(crate) async fn listen(inner: Arc<Inner>) {
    let mut backoff = Backoff::default();
    while !inner.closing.is_cancelled() {
        if let Err(error) = receive(&inner, &mut backoff).await {
            debug!(%error, "notifications cannot be received; polling goes on");
        }
        tokio::select! {
            () = backoff.pause() => {}
            () = inner.closing.cancelled() => {}
        }
    }
}

async fn receive(inner: &Arc<Inner>, backoff: &mut Backoff) -> Result<(), sea_orm::sqlx::Error> {
    let options = inner.store.db.get_postgres_connection_pool().connect_options();
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with((*options).clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen(CHANNEL).await?;
    backoff.reset();
    loop {
        let notification = tokio::select! {
            notification = listener.recv() => notification?,
            () = inner.closing.cancelled() => return Ok(()),
        };
        if notification.payload() == inner.store.project {
            tokio::time::sleep(SPREAD.mul_f64(fastrand::f64())).await;
            inner.wake.kick();
        }
    }
}
