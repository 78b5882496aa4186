//! Load for long on processes that live all the time: their memory and their connections stay the same.
//! `TASK_RETRY_SOAK="minutes=30"` runs it, on one database with `TASK_RETRY_TEST_ONLY=Postgres`;
//! `tests/run --cluster` runs a short one on PostgreSQL.

use std::time::Duration;

use task_retry_tests::campaign::soak;
use task_retry_tests::{Kind, each_at_once};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_grows() {
    let (time, kinds) = match std::env::var("TASK_RETRY_SOAK") {
        Ok(text) => (minutes(&text), &Kind::SERVERS[..]),
        Err(_) if std::env::var("TASK_RETRY_TEST_CLUSTER").as_deref() == Ok("1") => {
            (Duration::from_secs(50), &[Kind::Postgres][..])
        }
        Err(_) => return println!("skipped: TASK_RETRY_SOAK=\"minutes=30\" runs it"),
    };
    each_at_once(kinds, async |kind| {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let Some(soak) = soak(kind, time, seed).await else { return };
        println!("{soak}");
        assert!(soak.report.violations.is_empty(), "seed {seed}: {soak}");
    })
    .await;
}

fn minutes(text: &str) -> Duration {
    let minutes = text.strip_prefix("minutes=").and_then(|minutes| minutes.parse::<f64>().ok());
    let minutes = minutes.unwrap_or_else(|| panic!("`{text}`: use minutes=NUMBER"));
    Duration::from_secs_f64(60.0 * minutes)
}
