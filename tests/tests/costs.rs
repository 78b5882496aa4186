//! What tasks cost in statements, counted between the runtime and PostgreSQL: that is the same on every
//! machine, other than their time.

use std::time::Duration;

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use task_retry::{TaskRetry, enqueue_all, retryable};
use task_retry_tests::proxy::Proxy;
use task_retry_tests::{Kind, TestDb, on, within};

#[retryable(source = 100)]
async fn nothing(number: u64) -> Result<(), String> {
    let _ = number;
    Ok(())
}

/// A runtime whose statements are counted, and which asks for nothing of itself meanwhile.
async fn start(db: &TestDb) -> (TaskRetry, Proxy) {
    let proxy = Proxy::start(&db.url).await;
    let builder = db.builder().database(proxy.url(&db.url)).poll_interval_ms(60_000);
    let retry = builder.lease_second(600).start().await.unwrap();
    // The first looks for what is due, and connections of the pool, come before.
    for number in 0..10 {
        nothing(number).on(&retry).await.unwrap();
    }
    (retry, proxy)
}

/// What some work costs for each of so many tasks, until all have succeeded.
async fn per_task(db: &TestDb, proxy: &Proxy, tasks: u64, work: impl Future<Output = ()>) -> f64 {
    let before = proxy.statements();
    work.await;
    // By a connection whose statements are not counted.
    let direct = db.connect().await;
    within(Duration::from_secs(60), "all succeed", async || {
        let sql = "select count(*) from t_sys_mq_resend_log where status <> 3";
        let row = direct.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await;
        row.unwrap().unwrap().try_get_by_index::<i64>(0).unwrap() == 0
    })
    .await;
    (proxy.statements() - before) as f64 / tasks as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_cost_few_statements() {
    on(Kind::Postgres, async |db| {
        let (retry, proxy) = start(&db).await;
        let call = |number| nothing(number).on(&retry);

        let alone = per_task(&db, &proxy, 50, async {
            for number in 0..50 {
                call(number).await.unwrap();
            }
        })
        .await;
        let grouped = per_task(&db, &proxy, 2560, async {
            let callers = (0..256).map(async |caller| {
                for number in 0..10 {
                    call(caller * 10 + number).await.unwrap();
                }
            });
            join_all(callers).await;
        })
        .await;
        let handed_over = per_task(&db, &proxy, 2000, async {
            let stored = join_all((0..2000).map(|number| call(number).enqueue())).await;
            assert!(stored.into_iter().all(|stored| stored.is_ok()));
        })
        .await;
        let claimed = per_task(&db, &proxy, 5000, async {
            enqueue_all((0..5000).map(call)).await.unwrap();
        })
        .await;
        println!(
            "statements a task: {alone:.3} alone, {grouped:.4} grouped, {handed_over:.4} handed over, \
             {claimed:.4} stored together and claimed"
        );
        // The insert and the success; what the runtime asks for itself now and then is little.
        assert!((2.0..2.5).contains(&alone), "{alone}");
        assert!(grouped < 0.2, "{grouped}");
        assert!(handed_over < 0.08, "{handed_over}");
        assert!(claimed < 0.05, "{claimed}");
        retry.shutdown().await.unwrap();
    })
    .await;
}
