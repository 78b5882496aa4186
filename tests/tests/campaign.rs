//! Kills, faults and load together, and a check of everything afterwards. CI runs a short one on every
//! database; `TASK_RETRY_CAMPAIGN="kills=1000 faults=200 tasks=200000"` makes it as long as one likes.

use task_retry_tests::Kind;
use task_retry_tests::campaign::{Size, run};

async fn nothing_is_lost(kind: Kind) {
    let size = Size::from_env();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let Some(report) = run(kind, size, seed).await else { return };
    println!("{report}");
    assert!(report.violations.is_empty(), "seed {seed}: {report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite() {
    nothing_is_lost(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres() {
    nothing_is_lost(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb() {
    nothing_is_lost(Kind::MariaDb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql() {
    nothing_is_lost(Kind::MySql).await;
}
