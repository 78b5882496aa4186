//! The databases, and how they are made to fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sea_orm::{ConnectOptions, ConnectionTrait, DatabaseConnection};

use super::ledger::now;
use crate::Kind;
use crate::proxy::Proxy;
use crate::server::Server;

/// The database of a campaign, and how it is made to fail.
pub(super) enum Database {
    Sqlite,
    Server(Server, Proxy),
    /// A PostgreSQL whose commits wait for its standby.
    Pair(tokio::sync::Mutex<(Server, Server)>, Proxy),
    /// Three MariaDB nodes, and a proxy for each, which leads elsewhere while its node is down.
    Cluster(Vec<Server>, Vec<Proxy>),
}

/// Starts a PostgreSQL and a standby without which it commits nothing.
pub(super) async fn pair() -> Option<(Server, Server)> {
    let primary = Server::start(Kind::Postgres).await?;
    let admin = sea_orm::Database::connect(primary.url()).await.expect("the server answers");
    for sql in ["alter system set synchronous_standby_names = '*'", "select pg_reload_conf()"] {
        admin.execute_unprepared(sql).await.expect("a superuser may");
    }
    admin.close().await.expect("it closes");
    let standby = primary.standby().await;
    Some((primary, standby))
}

/// Kills the primary, makes its standby the primary, and gives it a standby.
pub(super) async fn fail_over(pair: &mut (Server, Server), proxy: &Proxy) {
    pair.0.kill();
    let promoted = sea_orm::Database::connect(pair.1.url()).await.expect("the standby answers");
    promoted.execute_unprepared("select pg_promote()").await.expect("it is promoted");
    promoted.close().await.expect("it closes");
    proxy.lead_to(&pair.1.url());
    let standby = pair.1.standby().await;
    let promoted = std::mem::replace(&mut pair.1, standby);
    pair.0 = promoted;
}

/// A connection to SQLite's file that waits a second for its lock.
pub(super) async fn file(url: &str) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    options.map_sqlx_sqlite_opts(|options| options.busy_timeout(Duration::from_secs(1)));
    sea_orm::Database::connect(options).await.expect("the file is there")
}

/// Faults of the database, one after another; returns what, from when and until when.
pub(super) async fn trouble(
    database: Arc<Database>,
    url: String,
    mut random: fastrand::Rng,
    pause: Duration,
    count: u32,
    stop: Arc<AtomicBool>,
) -> Vec<(&'static str, u64, u64)> {
    let mut faults = Vec::new();
    let wait = async |random: &mut fastrand::Rng, from: u64, until: u64| {
        tokio::time::sleep(Duration::from_millis(random.u64(from..until))).await;
    };
    while faults.len() < count as usize && !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(pause / 2 + pause.mul_f64(random.f64())).await;
        let from = now();
        // One in ten outlasts a lease.
        let (least, most) = if random.u8(..) < 25 { (5500, 7000) } else { (50, 1500) };
        let what = match &*database {
            Database::Sqlite => {
                let options = ConnectOptions::new(&url).max_connections(1).to_owned();
                let other = sea_orm::Database::connect(options).await.expect("the file is there");
                // The others may hold it for a while.
                let begin = "begin exclusive";
                while other.execute_unprepared(begin).await.is_err() {
                    tokio::task::yield_now().await;
                }
                wait(&mut random, least, most).await;
                other.execute_unprepared("rollback").await.expect("it ends");
                other.close().await.expect("it closes");
                "locked by another process"
            }
            Database::Cluster(nodes, proxies) => {
                let down = random.usize(..nodes.len());
                let up = (down + 1) % nodes.len();
                nodes[down].kill();
                proxies[down].lead_to(&nodes[up].url());
                wait(&mut random, least, most).await;
                nodes[down].restart().await;
                proxies[down].lead_to(&nodes[down].url());
                "node killed"
            }
            Database::Pair(pair, proxy) => {
                fail_over(&mut *pair.lock().await, proxy).await;
                "failed over"
            }
            Database::Server(server, proxy) => match random.u8(..5) {
                0 | 1 => {
                    server.kill();
                    wait(&mut random, 0, most / 2).await;
                    server.restart().await;
                    "server killed"
                }
                2 => {
                    proxy.freeze();
                    wait(&mut random, least, most).await;
                    proxy.thaw();
                    "frozen"
                }
                3 => {
                    proxy.cut();
                    wait(&mut random, least, most).await;
                    proxy.restore();
                    "cut off"
                }
                _ => {
                    proxy.cut_at_answer(random.u32(1..200));
                    let dropped = tokio::time::timeout(Duration::from_secs(5), proxy.dropped());
                    let _ = dropped.await;
                    wait(&mut random, 50, 500).await;
                    proxy.restore();
                    "answer lost"
                }
            },
        };
        faults.push((what, from, now()));
    }
    faults
}
