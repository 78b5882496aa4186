//! What tasks cost in statements, and how long those are, counted between the runtime and its database:
//! that is the same on every machine, other than their time.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use task_retry::{Filter, Status, TaskRetry, ThreadPoolParam, enqueue_all, retryable};
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

/// Statements, by a time at which nothing is to be done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_process_asks_once_a_poll_interval() {
    on(Kind::Postgres, async |db| {
        const POLL: Duration = Duration::from_millis(50);
        let proxy = Proxy::start(&db.url).await;
        let builder = db.builder().database(proxy.url(&db.url)).lease_second(600);
        let retry = builder.poll_interval_ms(POLL.as_millis() as u64).start().await.unwrap();
        nothing(1).on(&retry).await.unwrap();
        let (before, began) = (proxy.statements(), Instant::now());
        let enough = before + 100;
        within(Duration::from_secs(60), "it polls", async || proxy.statements() >= enough).await;
        let statements = (proxy.statements() - before) as f64;
        let polls = began.elapsed().as_secs_f64() / POLL.as_secs_f64();
        println!("{statements} statements in {polls:.1} poll intervals");
        // It looks for paused sources every two seconds, too, and now and then at the database's clock.
        assert!(statements < polls * 1.2 + 5.0, "{statements} in {polls}");
        retry.shutdown().await.unwrap();
    })
    .await;
}

/// Each of these tasks is told to all processes, and one of them runs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_processes_few_look_for_what_another_has_stored() {
    const PROCESSES: u32 = 30;
    const TASKS: u64 = 100;
    on(Kind::Postgres, async |db| {
        let proxy = Proxy::start(&db.url).await;
        let mut workers = Vec::new();
        for _ in 0..PROCESSES {
            let pool = ThreadPoolParam { core_pool_size: 1, ..ThreadPoolParam::default() };
            let builder = db.builder().database(proxy.url(&db.url)).thread_pool_param(pool);
            let builder = builder.lease_second(600);
            workers.push(builder.poll_interval_ms(600_000).start().await.unwrap());
        }
        let sender = db.builder().job(false).start().await.unwrap();
        let send = async |tasks| {
            for number in 0..tasks {
                let task = nothing(number).on(&sender).enqueue().await.unwrap();
                task.wait().await.unwrap();
            }
        };
        // By then the processes know who finds nothing.
        send(30).await;
        let (before, began) = (proxy.statements(), Instant::now());
        send(TASKS).await;
        let statements = (proxy.statements() - before) as f64;
        let seconds = began.elapsed().as_secs_f64();
        println!("{:.1} statements a task, in {seconds:.1} s", statements / TASKS as f64);
        // Those of the process that runs it, and of the others ten looks a second.
        let others = f64::from(PROCESSES) * seconds * 12.0;
        assert!(statements < 8.0 * TASKS as f64 + others, "{statements} in {seconds} s");
        for retry in workers.iter().chain([&sender]) {
            retry.shutdown().await.unwrap();
        }
    })
    .await;
}

/// The longest statement of some thousand tasks, in bytes on the wire.
async fn longest(db: &TestDb, parameters: &str) -> usize {
    let proxy = Proxy::start(&db.url).await;
    let url = format!("{}?{parameters}", proxy.url(&db.url));
    // So that nothing is renewed meanwhile.
    let retry = db.builder().database(url).lease_second(600).start().await.unwrap();
    let call = |number| nothing(number).on(&retry);
    enqueue_all((0..3000).map(call)).await.unwrap();
    let enqueued = join_all((0..1000).map(|number| call(number).enqueue()));
    let (answers, enqueued) = tokio::join!(join_all((0..1000).map(call)), enqueued);
    assert!(answers.iter().all(Result::is_ok) && enqueued.iter().all(Result::is_ok));
    within(Duration::from_secs(60), "all succeed", async || {
        let succeeded = Filter::all().status(Status::Succeeded);
        retry.tasks().count(succeeded).await.unwrap() == 5000
    })
    .await;
    retry.shutdown().await.unwrap();
    db.connect().await.execute_unprepared("delete from t_sys_mq_resend_log").await.unwrap();
    proxy.longest()
}

/// What has two records waits 40 ms for the first of them, where the server is on the same machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_to_this_machine_has_one_record_of_tls() {
    const RECORD: usize = 16 << 10;
    // Unlike the other servers of the tests, it offers TLS.
    on(Kind::MySql, async |db| {
        let open = longest(&db, "ssl-mode=disabled").await;
        assert!(open > 2 * RECORD, "{open}");
        let encrypted = longest(&db, "ssl-mode=required").await;
        assert!(encrypted > RECORD / 4, "{encrypted}");
        assert!(encrypted <= RECORD, "{encrypted}");
    })
    .await;
}
