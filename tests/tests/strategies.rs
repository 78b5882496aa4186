//! Hand-written strategies, and the untyped door to them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use task_retry::{
    ErrorKind, Filter, HandleResult, ManualClock, Policy, Status, Strategy, Task, TaskLog,
    TaskRetry, source,
};
use task_retry_tests::{Gate, Kind, TestDb, becomes, contract, manual_clock, task};

const SAID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Does what the context says.
#[derive(Clone, Default)]
struct Obedient {
    source: i32,
    gate: Arc<Gate>,
    seen: Arc<Mutex<Vec<TaskLog>>>,
}

impl Strategy for Obedient {
    fn source(&self) -> i32 {
        self.source
    }

    fn name(&self) -> &str {
        "obedient"
    }

    async fn handle(&self, task: &TaskLog) -> HandleResult {
        self.seen.lock().unwrap().push(task.clone());
        let fail = |retry| HandleResult::Fail { reason: "as told".into(), retry };
        match task.context.as_deref() {
            Some("abort") => fail(false),
            Some("fail") => fail(true),
            Some("fail once") if task.attempt() == 1 => fail(true),
            Some("pending") => HandleResult::Pending { deadline: Duration::from_secs(60) },
            Some("panic") => panic!("as told"),
            Some("gate") => {
                self.gate.pass().await;
                HandleResult::Success
            }
            _ => HandleResult::Success,
        }
    }
}

fn obedient(source: i32) -> Obedient {
    Obedient { source, ..Obedient::default() }
}

async fn start(db: &TestDb) -> (TaskRetry, Obedient) {
    let strategy = obedient(100);
    let builder = db.builder().first_execute_second(0).strategy(strategy.clone());
    (builder.start().await.unwrap(), strategy)
}

async fn a_strategy_decides_what_becomes_of_a_task(db: Arc<TestDb>) {
    let (retry, _) = start(&db).await;
    for (context, status, send_count, error) in [
        ("ok", Status::Succeeded, 0, None),
        ("abort", Status::Failed, 1, Some("as told")),
        ("fail", Status::Failed, 2, Some("as told")),
        ("fail once", Status::Succeeded, 1, Some("as told")),
        ("pending", Status::Waiting, 0, None),
        ("panic", Status::Failed, 2, Some("panicked: as told")),
    ] {
        let task = Task::new(100).context(context).max_retry(1);
        let stored = retry.submit(task).await.unwrap();
        assert!(stored.is_new());
        let row = becomes(&retry, stored.id(), status).await;
        assert_eq!((row.send_count, row.last_error.as_deref()), (send_count, error), "{context}");
        assert_eq!(row.task_name.as_deref(), Some("obedient"));
    }
    let waiting = retry.tasks().list(Filter::all().status(Status::Waiting)).await.unwrap();
    retry.complete(waiting[0].id).await.unwrap();
    retry.shutdown().await.unwrap();
}

async fn a_strategy_sees_the_whole_task(db: Arc<TestDb>) {
    let clock = manual_clock();
    let strategy = obedient(source::ROCKET_MQ);
    let builder = db.builder().clock(clock.clone()).job(false).strategy(strategy.clone());
    let retry = builder.start().await.unwrap();
    let minute = Duration::from_secs(60);
    let task = Task::new(source::ROCKET_MQ).topic("orders").key("20221213660896").unique_key("u");
    let task = task.context("objMsg").max_retry(9).delay(minute).expires_in(minute * 2);
    let id = retry.submit(task).await.unwrap().id();
    let bare = retry.submit(Task::new(source::ROCKET_MQ)).await.unwrap().id();
    let at = clock.now() + minute * 3;
    retry.submit(Task::new(source::ROCKET_MQ).at(at)).await.unwrap();
    let made = clock.now();
    assert_eq!(retry.run_due(None).await.unwrap().succeeded, 1);
    clock.advance(minute);
    assert_eq!(retry.run_due(None).await.unwrap().succeeded, 1);
    {
        let seen = strategy.seen.lock().unwrap();
        let [first, second] = &seen[..] else { panic!("two") };
        assert_eq!((first.id, first.context.as_deref(), first.msg_key.as_str()), (bare, None, ""));
        assert_eq!((second.id, second.context.as_deref()), (id, Some("objMsg")));
        assert_eq!((second.topic.as_str(), second.msg_key.as_str()), ("orders", "20221213660896"));
        assert_eq!(second.unique_key.as_deref(), Some("u"));
        assert_eq!((second.max_retry, second.expire_time), (Some(9), Some(made + minute * 2)));
        assert_eq!((second.create_time, second.attempt(), second.fence), (made, 1, 1));
        assert_eq!(second.locked_by.as_deref(), Some(retry.worker_id()));
        assert_eq!((second.source, second.project_name.as_str()), (10, "test"));
    }
    clock.advance(minute * 2);
    assert_eq!(retry.run_due(None).await.unwrap().succeeded, 1);
    retry.shutdown().await.unwrap();
}

/// Whatever a claim asks for, and in which form: nothing of the row is lost or changed.
async fn a_claim_brings_the_row_as_it_is(db: Arc<TestDb>) {
    let clock = manual_clock();
    let strategy = obedient(100);
    let builder = db.builder().clock(clock.clone()).job(false).strategy(strategy.clone());
    let retry = builder.start().await.unwrap();
    let hour = Duration::from_secs(3600);
    let hard = "a \"b\" 'c' {d} [e],\n\tnull 中😀";
    let full = Task::new(100).topic(hard).key(hard).unique_key(hard).context(hard).max_retry(9);
    let full = full.expires_in(hour + Duration::from_millis(1)).trace_context(SAID);
    let ids = [
        retry.submit(full).await.unwrap().id(),
        retry.submit(Task::new(100).context("fail")).await.unwrap().id(),
        retry.submit(Task::new(100).expires_in(hour)).await.unwrap().id(),
        retry.submit(Task::new(100).max_retry(0)).await.unwrap().id(),
        retry.submit(Task::new(100).trace_context(SAID)).await.unwrap().id(),
        retry.submit(Task::new(100).topic("t")).await.unwrap().id(),
        retry.submit(Task::new(100).key("k")).await.unwrap().id(),
        retry.submit(Task::new(100).unique_key("u")).await.unwrap().id(),
    ];
    for round in 0..2 {
        let mut expected = Vec::new();
        for id in ids {
            let row = task(&retry, id).await;
            if row.status == Status::Executing || row.status == Status::Retrying {
                expected.push(row);
            }
        }
        retry.run_due(None).await.unwrap();
        let mut seen = std::mem::take(&mut *strategy.seen.lock().unwrap());
        seen.sort_by_key(|row| row.id);
        expected.sort_by_key(|row| row.id);
        assert_eq!(seen.len(), if round == 0 { 8 } else { 1 });
        for (seen, mut row) in seen.into_iter().zip(expected) {
            row.fence += 1;
            row.locked_by = seen.locked_by.clone();
            row.next_send_time = seen.next_send_time;
            row.update_time = seen.update_time;
            assert_eq!(seen, row);
        }
        clock.advance(Duration::from_secs(60));
    }
    retry.shutdown().await.unwrap();
}

async fn a_strategy_has_a_policy_of_its_own(db: Arc<TestDb>) {
    let clock = manual_clock();
    let (slow, other) = (obedient(100), obedient(101));
    let policy = Policy::new().max_retry(7).first_execute(Duration::from_secs(33));
    let policy = policy.timeout(Duration::from_millis(50));
    let builder = db.builder().clock(clock.clone()).job(false);
    let builder = builder.strategy_with(slow.clone(), policy).strategy(other);
    let retry = builder.start().await.unwrap();
    let late = retry.submit(Task::new(100).context("gate")).await.unwrap().id();
    let plain = retry.submit(Task::new(101).context("fail")).await.unwrap().id();
    assert_eq!(retry.run_due(None).await.unwrap().retrying, 2);
    let row = task(&retry, late).await;
    assert_eq!(row.last_error.as_deref(), Some("timed out after 50ms"));
    assert_eq!(row.next_send_time, Some(clock.now() + Duration::from_secs(33)));
    let row = task(&retry, plain).await;
    assert_eq!(row.next_send_time, Some(clock.now() + Duration::from_secs(5)));
    retry.shutdown().await.unwrap();
}

async fn an_unknown_source_is_refused(db: Arc<TestDb>) {
    let (retry, _) = start(&db).await;
    for source in [101, 10, 0, -1] {
        let error = retry.submit(Task::new(source).context("ok")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Registry);
        assert!(error.to_string().contains(&source.to_string()), "{error}");
    }
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 0);
    retry.shutdown().await.unwrap();
}

async fn a_bad_row_spoils_no_good_one_beside_it(db: Arc<TestDb>) {
    let (retry, strategy) = start(&db).await;
    let bad = |n: usize| {
        let task = Task::new(100);
        match n % 5 {
            0 => task.key("k".repeat(192)),
            1 => task.topic("中".repeat(256)),
            2 => task.key("a\0b"),
            3 => task.context("a\0b"),
            _ => task.context("x".repeat((16 << 20) + 1)),
        }
    };
    let tasks = (0..510).map(|n| match n % 51 {
        50 => bad(n / 51),
        _ => Task::new(100).key("中".repeat(191)).topic("😀".repeat(255)).context(n.to_string()),
    });
    let stored = join_all(tasks.map(|task| retry.submit(task))).await;
    for (n, stored) in stored.iter().enumerate() {
        match stored {
            Ok(stored) => assert!(n % 51 != 50 && stored.is_new()),
            Err(error) => assert!(n % 51 == 50 && error.kind() == ErrorKind::Context, "{error}"),
        }
    }
    for stored in stored.into_iter().flatten() {
        let row = becomes(&retry, stored.id(), Status::Succeeded).await;
        assert_eq!((row.msg_key.chars().count(), row.topic.chars().count()), (191, 255));
    }
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 500);
    let seen = strategy.seen.lock().unwrap().len();
    assert_eq!(seen, 500, "each of them once");
    retry.shutdown().await.unwrap();
}

async fn only_what_the_database_cannot_hold_is_refused(db: Arc<TestDb>) {
    // The table has changed under a running process, whose own checks pass.
    let (retry, _) = start(&db).await;
    let narrow = match db.kind {
        Kind::Sqlite => return retry.shutdown().await.unwrap(), // It takes any length.
        Kind::Postgres => "alter column topic type varchar(5)",
        _ => "modify topic varchar(5) not null default ''",
    };
    db.execute(&format!("alter table t_sys_mq_resend_log {narrow}")).await;
    let topic = |n: usize| if n % 50 == 7 { "longer than that" } else { "short" };
    let tasks = (0..500).map(|n| Task::new(100).topic(topic(n)).context("ok"));
    let stored = join_all(tasks.map(|task| retry.submit(task))).await;
    for (n, stored) in stored.iter().enumerate() {
        match stored {
            Ok(_) => assert_eq!(topic(n), "short"),
            Err(error) => {
                assert_eq!(topic(n), "longer than that", "{error}");
                assert_eq!(error.kind(), ErrorKind::Context, "{error}");
            }
        }
    }
    for stored in stored.into_iter().flatten() {
        becomes(&retry, stored.id(), Status::Succeeded).await;
    }
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 490);
    retry.shutdown().await.unwrap();
}

async fn the_starters_inserts_are_run(db: Arc<TestDb>) {
    let (retry, strategy) = start(&db).await;
    // As the starter writes them: none of our columns is named.
    for (id, status, count) in [(1, 0, 0), (2, 1, 2), (3, 2, 5), (4, 3, 0)] {
        db.execute(&format!(
            "insert into t_sys_mq_resend_log (id, project_name, source, msg_key, status, \
             send_count, topic, context, next_send_time) values ({id}, 'test', 100, 'k', {status}, \
             {count}, 't', 'ok', '2026-03-01 11:00:00')"
        ))
        .await;
    }
    retry.kick();
    for id in [1, 2] {
        becomes(&retry, id.into(), Status::Succeeded).await;
    }
    assert_eq!(task(&retry, 3.into()).await.status, Status::Failed);
    let mut seen: Vec<_> =
        strategy.seen.lock().unwrap().iter().map(|task| (task.id.get(), task.attempt())).collect();
    seen.sort_unstable();
    assert_eq!(seen, [(1, 1), (2, 3)]);
    retry.shutdown().await.unwrap();
}

/// One of its tasks stores another that has been due for long.
#[derive(Clone)]
struct StoresAnother(ManualClock);

impl Strategy for StoresAnother {
    fn source(&self) -> i32 {
        100
    }

    fn name(&self) -> &str {
        "stores another"
    }

    async fn handle(&self, task: &TaskLog) -> HandleResult {
        if task.msg_key == "1150" {
            let now = self.0.now();
            self.0.set(now - Duration::from_secs(60));
            let another = Task::new(100).at(self.0.now());
            TaskRetry::current().unwrap().submit(another).await.unwrap();
            self.0.set(now);
        }
        HandleResult::Success
    }
}

/// A pass reads the index from where it has got to, but not only from there.
async fn a_pass_runs_what_comes_to_lie_behind_it(db: Arc<TestDb>) {
    let clock = manual_clock();
    let builder = db.builder().clock(clock.clone()).job(false).task_limit(100);
    let retry = builder.strategy(StoresAnother(clock.clone())).start().await.unwrap();
    let due = |number| clock.now() + Duration::from_millis(number);
    let task = |number: u64| Task::new(100).key(number.to_string()).at(due(number));
    for stored in join_all((0..1400).map(|number| retry.submit(task(number)))).await {
        stored.unwrap();
    }
    clock.advance(Duration::from_secs(2));
    let report = retry.run_due(None).await.unwrap();
    assert_eq!((report.claimed, report.succeeded), (1401, 1401));
    retry.shutdown().await.unwrap();
}

struct Succeeds;

impl Strategy for Succeeds {
    fn source(&self) -> i32 {
        100
    }

    fn name(&self) -> &str {
        "succeeds"
    }

    async fn handle(&self, _: &TaskLog) -> HandleResult {
        HandleResult::Success
    }
}

/// A statement of MySQL can name fewer rows than may be asked for.
async fn a_claim_may_be_as_large_as_can_be(db: Arc<TestDb>) {
    let builder = db.builder().strategy(Succeeds).job(false).lease_second(600);
    let retry = builder.task_limit(10_000).start().await.unwrap();
    for start in (0..9000).step_by(1000) {
        let tasks = (start..start + 1000).map(|_| retry.submit(Task::new(100)));
        assert!(join_all(tasks).await.iter().all(Result::is_ok));
    }
    let report = retry.run_due(None).await.unwrap();
    assert_eq!((report.claimed, report.succeeded), (9000, 9000));
    retry.shutdown().await.unwrap();
}

contract!(
    a_strategy_decides_what_becomes_of_a_task,
    a_strategy_sees_the_whole_task,
    a_claim_brings_the_row_as_it_is,
    a_strategy_has_a_policy_of_its_own,
    an_unknown_source_is_refused,
    a_bad_row_spoils_no_good_one_beside_it,
    only_what_the_database_cannot_hold_is_refused,
    the_starters_inserts_are_run,
    a_pass_runs_what_comes_to_lie_behind_it,
    a_claim_may_be_as_large_as_can_be,
);
