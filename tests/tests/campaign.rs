//! Kills, faults and load together, and a check of everything afterwards. CI runs a short one on every
//! database; `TASK_RETRY_CAMPAIGN="kills=1000 faults=200 tasks=200000"` makes it as long as one likes.

use task_retry_tests::Kind;
use task_retry_tests::campaign::{Report, Size, run, run_cluster, run_pair};

async fn nothing_is_lost(campaign: impl AsyncFnOnce(Size, u64) -> Option<Report>) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let Some(report) = campaign(Size::from_env(), seed).await else { return };
    println!("{report}");
    assert!(report.violations.is_empty(), "seed {seed}: {report}");
}

/// Servers that fail over take their time, and a package more: `tests/run --cluster`.
fn clusters() -> bool {
    let wanted = std::env::var("TASK_RETRY_TEST_CLUSTER").as_deref() == Ok("1");
    if !wanted {
        println!("skipped: `tests/run --cluster` runs it");
    }
    wanted
}

/// Nodes do not see each other's locks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_in_a_galera_cluster() {
    if clusters() {
        nothing_is_lost(run_cluster).await;
    }
}

/// What was acknowledged is on the standby too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_that_fails_over() {
    if clusters() {
        nothing_is_lost(run_pair).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite() {
    nothing_is_lost(async |size, seed| run(Kind::Sqlite, size, seed).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres() {
    nothing_is_lost(async |size, seed| run(Kind::Postgres, size, seed).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb() {
    nothing_is_lost(async |size, seed| run(Kind::MariaDb, size, seed).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql() {
    nothing_is_lost(async |size, seed| run(Kind::MySql, size, seed).await).await;
}
