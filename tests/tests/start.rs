//! What `start` refuses, and what it makes.

use std::sync::Arc;

use sea_orm::{ConnectionTrait, DbBackend, Statement};
use task_retry::{
    Builder, CallError, Config, Error, ErrorKind, Filter, HandleResult, Status, Strategy, TaskLog,
    TaskRetry, retryable,
};
use task_retry_tests::{Kind, TestDb, becomes, contract, only_task, until};
use tokio::sync::Mutex;

/// The default of the process is one for all tests.
static DEFAULT: Mutex<()> = Mutex::const_new(());

struct Gateway;
struct Ledger;

#[retryable(source = 100)]
async fn good(number: u32) -> Result<u32, String> {
    if number == 0 { Err("zero".into()) } else { Ok(number) }
}

#[retryable(source = 101)]
async fn needy(#[state] _gateway: &Gateway, #[state] _ledger: Arc<Ledger>) -> Result<(), String> {
    Ok(())
}

#[retryable(source = 100)]
async fn rival() -> Result<(), String> {
    Ok(())
}

const RESERVED: i32 = 25;

#[retryable(source = RESERVED)]
async fn reserved() -> Result<(), String> {
    Ok(())
}

#[retryable(source = -5 + 2)]
async fn negative() -> Result<(), String> {
    Ok(())
}

#[retryable(source = 102)]
async fn outer(number: u32) -> Result<u32, CallError<String>> {
    good(number).await
}

struct Named(i32, &'static str);

impl Strategy for Named {
    fn source(&self) -> i32 {
        self.0
    }

    fn name(&self) -> &str {
        self.1
    }

    async fn handle(&self, _: &TaskLog) -> HandleResult {
        HandleResult::Success
    }
}

/// A builder that would start.
fn builder(db: &TestDb) -> Builder {
    db.builder().only::<(good, outer)>()
}

async fn refusal(builder: Builder) -> Error {
    match builder.start().await {
        Err(error) => error,
        Ok(_) => panic!("it has started"),
    }
}

/// Whether there is a table of ours.
async fn has_table(db: &TestDb) -> bool {
    let select = "select count(*) from t_sys_mq_resend_log";
    db.connect().await.execute_unprepared(select).await.is_ok()
}

async fn every_mistake_of_the_registry_is_told_at_once(db: Arc<TestDb>) {
    let builder = db.builder().strategy(Named(101, "late")).strategy(Named(200, ""));
    let builder = builder.strategy(Named(5, "low")).strategy(Named(0, "zero"));
    let error = refusal(builder).await;
    assert_eq!(error.kind(), ErrorKind::Registry);
    let text = error.to_string();
    for part in [
        "source 100 is used twice",
        "`good`",
        "`rival`",
        "source 101 is used twice",
        "`late`",
        "`reserved`",
        "has source 25",
        "`negative`",
        "has source -3",
        "Gateway`, which was not provided",
        "Ledger`, which was not provided",
        "a name has 1 to 191 characters",
        "`low` (strategy start::Named) has source 5",
        "`zero` (strategy start::Named) has source 0",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(text.matches("start.rs:").count(), 7, "{text}");
    assert!(text.contains("9 mistake(s)"), "{text}");
    assert!(!has_table(&db).await, "nothing was done");
}

async fn what_is_left_out_cannot_be_wrong(db: Arc<TestDb>) {
    let retry = db.builder().only::<(rival,)>().strategy(Named(10, "mq")).start().await.unwrap();
    rival().on(&retry).await.unwrap();
    let error = good(1).on(&retry).await.unwrap_err();
    let CallError::Rejected(error) = error else { panic!("{error}") };
    assert_eq!(error.kind(), ErrorKind::Registry);
    retry.shutdown().await.unwrap();
    let states = db.builder().state(Gateway).shared_state(Arc::new(Ledger));
    let retry = states.only::<(needy,)>().register::<needy>().start().await.unwrap();
    needy().on(&retry).await.unwrap();
    retry.shutdown().await.unwrap();
}

async fn a_process_has_one_default(db: Arc<TestDb>) {
    let _alone = DEFAULT.lock().await;
    let default = || {
        let builder = TaskRetry::builder().project("test").database(&db.url);
        builder.lease_second(5).poll_interval_ms(100).only::<(good, outer)>()
    };
    let retry = default().start().await.unwrap();
    assert_eq!(good(7).await.unwrap(), 7);
    assert_eq!(outer(7).await.unwrap(), 7);
    assert_eq!(tokio::spawn(good(8).into_future()).await.unwrap().unwrap(), 8);
    assert_eq!(TaskRetry::current().unwrap().worker_id(), retry.worker_id());
    assert_eq!(refusal(default()).await.kind(), ErrorKind::Conflict);
    // A detached one beside it is no default.
    let detached = builder(&db).project("else").start().await.unwrap();
    assert_eq!(TaskRetry::current().unwrap().worker_id(), retry.worker_id());
    assert_eq!(outer(1).on(&detached).await.unwrap(), 1);
    assert_eq!(detached.tasks().count(Filter::all()).await.unwrap(), 2);
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 4);
    detached.shutdown().await.unwrap();
    retry.shutdown().await.unwrap();
    assert_eq!(TaskRetry::current().unwrap_err().kind(), ErrorKind::NotStarted);
    // Its place is free now, also after a start that failed.
    assert_eq!(refusal(default().project("")).await.kind(), ErrorKind::Config);
    let again = default().start().await.unwrap();
    assert_ne!(again.worker_id(), retry.worker_id());
    assert_eq!(good(9).await.unwrap(), 9);
    again.shutdown().await.unwrap();
}

async fn bad_settings_are_named(db: Arc<TestDb>) {
    for (builder, parts) in [
        (builder(&db).lease_second(2), vec!["lease-second", "2", "at least 5"]),
        (builder(&db).jitter(1.5), vec!["jitter", "1.5", "at most 1"]),
        (builder(&db).delay_multiplier(0.5), vec!["delay-multiplier", "0.5", "at least 1"]),
        (builder(&db).poll_interval_ms(1), vec!["poll-interval-ms", "1"]),
        (builder(&db).time_zone("Mars"), vec!["time-zone", "Mars"]),
        (builder(&db).lease_second(1).task_limit(0), vec!["lease-second", "task-limit"]),
        (builder(&db).project(""), vec!["project"]),
        (builder(&db).project(" "), vec!["project"]),
        (builder(&db).project("shop "), vec!["project", "white space"]),
        (builder(&db).project("x".repeat(101)), vec!["project", "100"]),
        (builder(&db).database("oracle://x"), vec!["oracle", "sqlite://", "postgres://"]),
        (builder(&db).database("nonsense"), vec!["no scheme", "sqlite://"]),
        (builder(&db).config_file("/nowhere/retry.yaml"), vec!["/nowhere/retry.yaml"]),
        (builder(&db).config_file("/nowhere/retry.ini"), vec!["retry.ini"]),
        (
            TaskRetry::builder().detached().project("p").only::<(good,)>(),
            vec!["database", ".connection("],
        ),
    ] {
        let error = refusal(builder).await;
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        for part in parts {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
    }
    // A later layer wins.
    let mut config = Config::default();
    config.lease_second = 2;
    builder(&db).config(config).lease_second(6).start().await.unwrap().shutdown().await.unwrap();
}

async fn a_database_that_does_not_answer_is_an_error_of_the_store(db: Arc<TestDb>) {
    // The same server, and nothing that is there.
    let url = match db.url.rsplit_once('/') {
        Some((server, _)) if !server.starts_with("sqlite") => format!("{server}/no_such_database"),
        _ => "sqlite:///nowhere/at/all.db?mode=rwc".to_owned(),
    };
    let error = refusal(builder(&db).database(url)).await;
    assert_eq!(error.kind(), ErrorKind::Store, "{error}");
}

async fn without_migrations_the_table_has_to_be_there(db: Arc<TestDb>) {
    let error = refusal(builder(&db).migrate(false)).await;
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("`t_sys_mq_resend_log`"), "{error}");
    assert!(!has_table(&db).await, "nothing was made");
    builder(&db).start().await.unwrap().shutdown().await.unwrap();
    let retry = builder(&db).migrate(false).start().await.unwrap();
    assert_eq!(good(1).on(&retry).await.unwrap(), 1);
    retry.shutdown().await.unwrap();
}

async fn a_table_of_somebody_else_is_left_alone(db: Arc<TestDb>) {
    db.execute("create table t_sys_mq_resend_log (id int, name varchar(10))").await;
    let error = refusal(builder(&db)).await;
    assert!(error.to_string().contains("t_sys_mq_resend_log"), "{error}");
    db.execute("insert into t_sys_mq_resend_log (id, name) values (1, 'mine')").await;
}

async fn a_table_in_parts_is_claimed_like_any_other(db: Arc<TestDb>) {
    in_parts(db, false).await;
}

async fn a_table_may_be_divided_under_a_running_process(db: Arc<TestDb>) {
    in_parts(db, true).await;
}

/// In a partitioned table a place (`ctid`) names a row of each partition.
async fn in_parts(db: Arc<TestDb>, running: bool) {
    if db.kind != Kind::Postgres {
        return;
    }
    let mut retry = builder(&db).task_limit(5).start().await.unwrap();
    if !running {
        retry.shutdown().await.unwrap();
    }
    let parts = (0..4).map(|part| {
        format!(
            "create table part_{part} partition of t_sys_mq_resend_log \
             for values with (modulus 4, remainder {part});"
        )
    });
    let rows = |from: u32, project: &str| {
        format!(
            "insert into t_sys_mq_resend_log (id, project_name, source, context, next_send_time) \
             select g, '{project}', 100, '{{\"number\":1}}', now() \
             from generate_series({from}, {from} + 399) g;"
        )
    };
    let sql = format!(
        "alter table t_sys_mq_resend_log rename to in_one_part; \
         create table t_sys_mq_resend_log (like in_one_part including defaults, primary key (id)) \
         partition by hash (id); {} {} {}",
        parts.collect::<String>(),
        rows(1, "test"),
        rows(1001, "somebody else")
    );
    db.execute(&sql).await;
    if !running {
        retry = builder(&db).migrate(false).task_limit(5).start().await.unwrap();
    }
    until("all tasks succeed", async || {
        retry.tasks().count(Filter::all().status(Status::Succeeded)).await.unwrap() == 400
    })
    .await;
    retry.shutdown().await.unwrap();
    let touched = "select count(*) from t_sys_mq_resend_log \
                   where fence <> case project_name when 'test' then 1 else 0 end";
    let statement = Statement::from_string(DbBackend::Postgres, touched);
    let row = db.connect().await.query_one_raw(statement).await.unwrap().unwrap();
    assert_eq!(row.try_get_by_index::<i64>(0).unwrap(), 0, "each of them once, and no others");
}

async fn many_processes_may_start_at_once(db: Arc<TestDb>) {
    let mut pool = Config::default().thread_pool_param;
    pool.core_pool_size = 1;
    let starts = (0..8).map(|_| builder(&db).thread_pool_param(pool).start());
    let started = futures_util::future::join_all(starts).await;
    let started: Vec<TaskRetry> = started.into_iter().map(Result::unwrap).collect();
    let ids: std::collections::BTreeSet<_> =
        started.iter().map(|retry| retry.worker_id().to_owned()).collect();
    assert_eq!(ids.len(), 8, "each start has its own id");
    let calls = started.iter().map(|retry| good(1).on(retry).into_future());
    for result in futures_util::future::join_all(calls).await {
        assert_eq!(result.unwrap(), 1);
    }
    assert_eq!(started[0].tasks().count(Filter::all()).await.unwrap(), 8);
    for retry in started {
        retry.shutdown().await.unwrap();
    }
}

async fn a_connection_of_the_programs_own_is_used(db: Arc<TestDb>) {
    let connection = db.connect().await;
    let retry = builder(&db).connection(connection.clone()).start().await.unwrap();
    assert_eq!(good(1).on(&retry).await.unwrap(), 1);
    let id = good(2).on(&retry).enqueue().await.unwrap().id();
    becomes(&retry, id, Status::Succeeded).await;
    retry.shutdown().await.unwrap();
    connection.execute_unprepared("delete from t_sys_mq_resend_log").await.unwrap();
}

async fn switched_off_functions_run_bare(db: Arc<TestDb>) {
    let retry = builder(&db).enable(false).start().await.unwrap();
    assert_eq!(good(7).on(&retry).await.unwrap(), 7);
    assert_eq!(outer(7).on(&retry).await.unwrap(), 7, "so do the calls inside");
    let error = good(0).on(&retry).await.unwrap_err();
    let CallError::Failed { cause, .. } = error else { panic!("{error}") };
    assert_eq!(cause.error().unwrap(), "zero");
    let error = good(1).on(&retry).enqueue().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let connection = db.connect().await;
    let error = good(1).on(&retry).enqueue_in(&connection).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(retry.run_due(None).await.unwrap_err().kind(), ErrorKind::Config);
    assert!(!has_table(&db).await, "nothing was stored");
    retry.shutdown().await.unwrap();
    // No database is needed for that.
    let builder = TaskRetry::builder().detached().project("p").only::<(good,)>();
    let retry = builder.enable(false).start().await.unwrap();
    assert_eq!(retry.scope(good(3)).await.unwrap(), 3);
    retry.shutdown().await.unwrap();
}

async fn a_runtime_that_was_dropped_is_gone(db: Arc<TestDb>) {
    let retry = builder(&db).start().await.unwrap();
    let id = good(1).on(&retry).enqueue().await.unwrap().id();
    becomes(&retry, id, Status::Succeeded).await;
    drop(retry);
    // Another one takes its place.
    let retry = builder(&db).start().await.unwrap();
    assert_eq!(only_task(&retry).await.id, id);
    retry.shutdown().await.unwrap();
}

contract!(
    every_mistake_of_the_registry_is_told_at_once,
    what_is_left_out_cannot_be_wrong,
    a_process_has_one_default,
    bad_settings_are_named,
    a_database_that_does_not_answer_is_an_error_of_the_store,
    without_migrations_the_table_has_to_be_there,
    a_table_of_somebody_else_is_left_alone,
    a_table_in_parts_is_claimed_like_any_other,
    a_table_may_be_divided_under_a_running_process,
    many_processes_may_start_at_once,
    a_connection_of_the_programs_own_is_used,
    switched_off_functions_run_bare,
    a_runtime_that_was_dropped_is_gone,
);
