//! A table of the Java starter, with rows as the starter writes them, is taken over, and the starter
//! goes on working beside us.
//!
//! Its JVM is at +08:00 and the server at UTC: `create_time` and `next_send_time` are eight hours
//! ahead of `update_time`, which the server writes. Times are whole seconds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use task_retry::{
    Builder, CallError, ErrorKind, Filter, HandleResult, ManualClock, RunReport, Status, Strategy,
    Task, TaskId, TaskLog, TaskRetry, retryable,
};
use task_retry_tests::{Gate, TestDb, becomes, contract, task, until};

/// Word for word as the starter's manual gives it.
const TABLE: &str = "\
CREATE TABLE `t_sys_mq_resend_log` (
 `id` bigint(20) unsigned NOT NULL COMMENT '主键',
 `project_name` varchar(100) NOT NULL DEFAULT '' COMMENT '项目名，项目名和source唯一确定一个记录',
 `source` int(11) NOT NULL COMMENT '任务来源' ,
 `msg_key` varchar(50) NOT NULL DEFAULT '' COMMENT '任务唯一标识',
 `status` tinyint(4) NOT NULL DEFAULT '0' COMMENT '任务状态 0=执行中 1=重试中 2=任务执行失败 3=任务执行成功',
 `send_count` int(11) NOT NULL DEFAULT '0' COMMENT '重试次数',
 `topic` varchar(255) NOT NULL DEFAULT '' COMMENT '消息topic',
 `context` text COMMENT '消息内容,任务上下文字段',
 `next_send_time` datetime DEFAULT NULL COMMENT '下一次发送时间',
 `create_time` datetime NOT NULL DEFAULT CURRENT_TIMESTAMP COMMENT '创建时间',
 `update_time` datetime NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP COMMENT '最后更新时间',
 PRIMARY KEY (`id`),
 KEY `idx_msg_key` (`msg_key`),
 KEY `idx_create_time` (`create_time`),
 KEY `idx_update_time` (`update_time`),
 KEY `idx_search` (`project_name`,`next_send_time`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 ROW_FORMAT=DYNAMIC COMMENT='任务重试记录表'";

/// Seven rows in all four states, of known and unknown sources and of another project. At `NOON`
/// only `DUE` is due; `NEXT` is due 40 s later.
const ROWS: &str = r#"
INSERT INTO t_sys_mq_resend_log VALUES
 (2120000000000000001, 'test',  30, '',     0, 0, '',       '{"orderId":1,"phone":"+861"}',  NULL,                  '2024-03-01 17:00:00', '2024-03-01 09:00:00'),
 (2120000000000000002, 'test',  30, 'due',  1, 1, '',       '{"orderId":2,"phone":"+862"}',  '2024-03-01 20:00:00', '2024-03-01 19:59:54', '2024-03-01 11:59:55'),
 (2120000000000000003, 'test',  31, 'next', 1, 3, 'orders', 'not json, \\ and '' 第二次 😀', '2024-03-01 20:00:40', '2024-03-01 19:42:00', '2024-03-01 11:44:00'),
 (2120000000000000004, 'test',  30, 'lost', 2, 4, '',       '{"orderId":4,"phone":"+864"}',  '2024-03-01 18:00:00', '2024-03-01 12:00:00', '2024-03-01 10:00:00'),
 (2120000000000000005, 'test',  31, 'done', 3, 1, 'orders', 'hello',                         '2024-03-01 18:00:10', '2024-03-01 18:00:05', '2024-03-01 10:00:10'),
 (2120000000000000006, 'test',  10, 'key1', 1, 1, 'orders', 'a message',                     '2024-03-01 19:00:00', '2024-03-01 18:59:55', '2024-03-01 11:00:00'),
 (2120000000000000007, 'other', 30, 'due',  1, 1, '',       '{"orderId":7,"phone":"+867"}',  '2024-03-01 19:00:00', '2024-03-01 18:59:55', '2024-03-01 11:00:00')"#;

const FRESH: i64 = 2_120_000_000_000_000_001;
const DUE: i64 = 2_120_000_000_000_000_002;
const NEXT: i64 = 2_120_000_000_000_000_003;
const GIVEN_UP: i64 = 2_120_000_000_000_000_004;
const DONE: i64 = 2_120_000_000_000_000_005;
const UNKNOWN: i64 = 2_120_000_000_000_000_006;
const OTHERS: i64 = 2_120_000_000_000_000_007;

/// 20:00:00 at +08:00.
const NOON: &str = "2024-03-01T12:00:00.250Z";

/// What ran, as `source: what`.
#[derive(Default)]
struct Log {
    runs: Mutex<Vec<String>>,
    failures: Mutex<u32>,
}

impl Log {
    fn write(&self, line: String) -> Result<(), String> {
        self.runs.lock().unwrap().push(line);
        let mut failures = self.failures.lock().unwrap();
        if *failures == 0 {
            return Ok(());
        }
        *failures -= 1;
        Err("the gateway is busy".to_owned())
    }

    fn fail_next(&self, failures: u32) {
        *self.failures.lock().unwrap() = failures;
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.runs.lock().unwrap())
    }
}

/// The starter's contexts are JSON objects of its users' own; parameters are named as their fields.
#[allow(non_snake_case)]
#[retryable(source = 30, name = "sms")]
async fn send_sms(orderId: u64, phone: &str, #[state] log: &Arc<Log>) -> Result<(), String> {
    log.write(format!("30: {orderId} {phone}"))
}

/// What is not JSON is a strategy's, as it was in the starter.
struct Orders(Arc<Log>);

impl Strategy for Orders {
    fn source(&self) -> i32 {
        31
    }

    fn name(&self) -> &str {
        "orders"
    }

    async fn handle(&self, task: &TaskLog) -> HandleResult {
        let context = task.context.as_deref().unwrap_or("nothing");
        match self.0.write(format!("31: {} {} {context}", task.topic, task.msg_key)) {
            Ok(()) => HandleResult::Success,
            Err(reason) => HandleResult::Fail { reason, retry: true },
        }
    }
}

/// Waits at the gate, then fails if it is told to.
#[retryable(source = 32)]
async fn slow(fails: bool, #[state] gate: &Arc<Gate>) -> Result<(), String> {
    gate.pass().await;
    if fails { Err("too late".into()) } else { Ok(()) }
}

struct Takeover {
    retry: TaskRetry,
    clock: ManualClock,
    log: Arc<Log>,
    gate: Arc<Gate>,
    db: DatabaseConnection,
}

/// The starter's table with these rows.
async fn starters_table(db: &TestDb, rows: &str) -> DatabaseConnection {
    let connection = db.connect().await;
    connection.execute_unprepared(TABLE).await.unwrap();
    if !rows.is_empty() {
        connection.execute_unprepared(rows).await.unwrap();
    }
    connection
}

/// A runtime without workers: `run_due` runs what is due, and then nothing else is running.
async fn take_over(db: &TestDb, rows: &str) -> Takeover {
    let connection = starters_table(db, rows).await;
    start(db, connection, |builder| builder.job(false)).await
}

async fn start(
    db: &TestDb,
    connection: DatabaseConnection,
    change: impl FnOnce(Builder) -> Builder,
) -> Takeover {
    let (log, gate) = (Arc::new(Log::default()), Arc::new(Gate::default()));
    let clock = ManualClock::new(NOON.parse().unwrap());
    let builder = db
        .builder()
        .time_zone("+08:00")
        .clock(clock.clone())
        .only::<(send_sms, slow)>()
        .state(log.clone())
        .state(gate.clone())
        .strategy(Orders(log.clone()));
    let retry = change(builder).start().await.unwrap();
    Takeover { retry, clock, log, gate, db: connection }
}

impl Takeover {
    async fn run_due(&self) -> RunReport {
        self.retry.run_due(None).await.unwrap()
    }

    /// The starter's columns of each row as text, by id.
    async fn rows(&self) -> BTreeMap<i64, String> {
        let columns = "project_name, source, msg_key, status, send_count, topic, context, \
                       next_send_time, create_time, update_time";
        let sql = format!(
            "select cast(id as signed), concat_ws('|', {}) from t_sys_mq_resend_log",
            columns
                .split(", ")
                .map(|name| format!("coalesce({name}, '-')"))
                .collect::<Vec<_>>()
                .join(", ")
        );
        let rows = self.query(&sql).await;
        rows.iter()
            .map(|row| (row.try_get_by_index(0).unwrap(), row.try_get_by_index(1).unwrap()))
            .collect()
    }

    async fn query(&self, sql: &str) -> Vec<sea_orm::QueryResult> {
        let statement = Statement::from_string(self.db.get_database_backend(), sql);
        self.db.query_all_raw(statement).await.unwrap()
    }

    async fn text(&self, sql: &str) -> String {
        let rows = self.query(sql).await;
        rows[0].try_get_by_index(0).unwrap()
    }

    async fn execute(&self, sql: &str) -> u64 {
        self.db.execute_unprepared(sql).await.unwrap().rows_affected()
    }

    /// `status send_count next_send_time`, as the table has them.
    async fn stands(&self, id: i64) -> String {
        let columns = "concat_ws(' ', status, send_count, coalesce(next_send_time, 'null'))";
        self.text(&format!("select {columns} from t_sys_mq_resend_log where id = {id}")).await
    }

    /// What the starter's job would pick up at this time of its zone.
    async fn seen_by_the_starter(&self, now: &str) -> Vec<i64> {
        let sql = format!(
            "select cast(id as signed) from t_sys_mq_resend_log where project_name = 'test' and \
             send_count <= 4 and status in (0, 1) and next_send_time <= '{now}' order by id limit 50"
        );
        self.query(&sql).await.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
    }

    async fn end(self) {
        self.retry.shutdown().await.unwrap();
        self.db.close().await.unwrap();
    }
}

fn id(number: i64) -> TaskId {
    TaskId::from(number)
}

async fn what_is_due_runs_when_it_is_due_and_nothing_else(db: Arc<TestDb>) {
    let t = take_over(&db, ROWS).await;
    let before = t.rows().await;
    let report = t.run_due().await;
    assert_eq!((report.claimed, report.succeeded), (1, 1));
    assert_eq!(t.log.take(), ["30: 2 +862"]);
    let done = task(&t.retry, id(DUE)).await;
    assert_eq!((done.status, done.send_count, done.fence), (Status::Succeeded, 1, 1));
    assert_eq!((done.next_send_time, done.locked_by, done.task_name), (None, None, None));

    // A second too early, then at its time.
    t.clock.set("2024-03-01T12:00:39.999Z".parse().unwrap());
    assert_eq!(t.run_due().await, RunReport::default());
    t.clock.set("2024-03-01T12:00:40Z".parse().unwrap());
    assert_eq!(t.run_due().await.succeeded, 1);
    assert_eq!(t.log.take(), [r"31: orders next not json, \ and ' 第二次 😀"]);

    // A year later: the ended ones, whose times are set, the one whose time is not, the one whose
    // source nobody here knows and the other project's have not run, nor changed at all.
    t.clock.advance(Duration::from_secs(365 * 86_400));
    assert_eq!(t.run_due().await, RunReport::default());
    let after = t.rows().await;
    for untouched in [FRESH, GIVEN_UP, DONE, UNKNOWN, OTHERS] {
        assert_eq!(after[&untouched], before[&untouched]);
    }
    assert_eq!(t.log.take(), [""; 0]);
    t.end().await;
}

async fn workers_take_over_by_themselves(db: Arc<TestDb>) {
    let connection = starters_table(&db, ROWS).await;
    let t = start(&db, connection, |builder| builder).await;
    becomes(&t.retry, id(DUE), Status::Succeeded).await;
    t.clock.advance(Duration::from_secs(39));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(task(&t.retry, id(NEXT)).await.status, Status::Retrying);
    t.clock.advance(Duration::from_secs(1));
    becomes(&t.retry, id(NEXT), Status::Succeeded).await;
    assert_eq!(t.log.take().len(), 2);
    for (untouched, status) in [(FRESH, 0), (GIVEN_UP, 2), (DONE, 3), (UNKNOWN, 1)] {
        let task = task(&t.retry, id(untouched)).await;
        assert_eq!((task.status.number(), task.fence), (status, 0));
    }
    t.end().await;
}

async fn stranded_rows_run_only_when_they_are_adopted(db: Arc<TestDb>) {
    let t = take_over(&db, ROWS).await;
    t.execute(
        "INSERT INTO t_sys_mq_resend_log (id, project_name, source, context, create_time) VALUES \
         (2120000000000000008, 'test', 30, '{\"orderId\":8,\"phone\":\"\"}', '2024-03-01 19:55:00'), \
         (2120000000000000009, 'test', 10, 'a message', '2024-03-01 17:00:00')",
    )
    .await;
    t.run_due().await;
    t.log.take();
    let fresh = task(&t.retry, id(FRESH)).await;
    assert_eq!((fresh.status, fresh.fence, fresh.next_send_time), (Status::Executing, 0, None));
    assert_eq!(
        fresh.create_time,
        "2024-03-01T09:00:00Z".parse::<chrono::DateTime<chrono::Utc>>().unwrap()
    );

    // By age in the starter's zone: 08 may well be running in its process.
    let older = |minutes: u64| Filter::stranded(Duration::from_secs(minutes * 60)).source(30);
    assert_eq!(t.retry.tasks().count(older(181)).await.unwrap(), 0);
    assert_eq!(t.retry.tasks().count(older(180)).await.unwrap(), 1);
    assert_eq!(t.retry.tasks().count(older(5)).await.unwrap(), 2);
    let changed = t.retry.tasks().retry_now(older(10)).await.unwrap();
    assert_eq!((changed.changed, changed.leased), (1, vec![]));
    assert_eq!(t.stands(FRESH).await, "0 0 2024-03-01 20:00:00");
    assert_eq!(t.run_due().await.succeeded, 1);
    assert_eq!(t.log.take(), ["30: 1 +861"]);
    assert_eq!(t.stands(2_120_000_000_000_000_008).await, "0 0 null");
    assert_eq!(t.stands(2_120_000_000_000_000_009).await, "0 0 null", "of another source");

    // By id, as the starter's job with a parameter.
    let report = t.retry.run_due(Some(vec![id(2_120_000_000_000_000_008), id(DONE), id(OTHERS)]));
    assert_eq!(report.await.unwrap().succeeded, 2);
    let mut runs = t.log.take();
    runs.sort();
    assert_eq!(runs, ["30: 8 ", "31: orders done hello"]);
    t.end().await;
}

async fn failures_go_on_counting_where_the_starter_was(db: Arc<TestDb>) {
    let t = take_over(&db, ROWS).await;
    // The second failure: 100 s later, at whole seconds.
    t.log.fail_next(1);
    assert_eq!(t.run_due().await.retrying, 1);
    assert_eq!(t.stands(DUE).await, "1 2 2024-03-01 20:01:40");
    // The fourth: 10000 s later. The fifth: given up.
    t.clock.set("2024-03-01T12:00:40.9Z".parse().unwrap());
    t.log.fail_next(1);
    assert_eq!(t.run_due().await.retrying, 1);
    assert_eq!(t.stands(NEXT).await, "1 4 2024-03-01 22:47:20");
    t.clock.set("2024-03-01T14:47:20Z".parse().unwrap());
    t.log.fail_next(2);
    let report = t.run_due().await;
    assert_eq!((report.retrying, report.failed), (1, 1));
    assert_eq!(t.stands(NEXT).await, "2 5 null");
    assert_eq!(t.stands(DUE).await, "1 3 2024-03-01 23:04:00");
    let given_up = task(&t.retry, id(NEXT)).await;
    assert_eq!(given_up.last_error.as_deref(), Some("the gateway is busy"));
    t.end().await;
}

async fn our_rows_are_such_as_the_starter_writes(db: Arc<TestDb>) {
    let t = take_over(&db, "").await;
    t.log.fail_next(1);
    let CallError::Deferred { id: deferred, retry_at, .. } =
        send_sms(1, "+861").on(&t.retry).await.unwrap_err()
    else {
        panic!("not deferred")
    };
    assert_eq!(retry_at.to_rfc3339(), "2024-03-01T12:00:05.250+00:00");
    // Its zone, whole seconds, due rounded down; `update_time` is the server's own.
    let row = &t.rows().await[&deferred.get()];
    let (ours, updated) = row.rsplit_once('|').unwrap();
    assert_eq!(
        ours,
        "test|30||1|1||{\"orderId\":1,\"phone\":\"+861\"}|2024-03-01 20:00:05|2024-03-01 20:00:00"
    );
    assert!(updated > "2025", "{updated}");
    let age =
        "select cast(timestampdiff(second, update_time, now()) as char) from t_sys_mq_resend_log";
    assert!((0..5).contains(&t.text(age).await.parse::<i64>().unwrap()));

    // The starter's own query finds it when it is due, and finds no ended row of ours at all.
    assert_eq!(t.seen_by_the_starter("2024-03-01 20:00:04").await, [0; 0]);
    assert_eq!(t.seen_by_the_starter("2024-03-01 20:00:05").await, [deferred.get()]);
    t.clock.set("2024-03-01T12:00:05Z".parse().unwrap());
    assert_eq!(t.run_due().await.succeeded, 1);
    assert_eq!(t.stands(deferred.get()).await, "3 1 null");
    let later =
        send_sms(2, "").on(&t.retry).delay(Duration::from_millis(1999)).enqueue().await.unwrap();
    assert_eq!(t.stands(later.id().get()).await, "0 0 2024-03-01 20:00:06");
    assert_eq!(t.seen_by_the_starter("2024-03-01 20:00:06").await, [later.id().get()]);
    t.end().await;
}

async fn leases_are_rounded_up(db: Arc<TestDb>) {
    let t = take_over(&db, "").await;
    let call = tokio::spawn(slow(false).on(&t.retry).into_future());
    t.gate.wait_for(1).await;
    // 12:00:00.250 and 5 s, at whole seconds. So long, the starter's job does not see it either.
    let running = t.retry.tasks().list(Filter::all()).await.unwrap().remove(0);
    assert_eq!(t.stands(running.id.get()).await, "0 0 2024-03-01 20:00:06");
    assert_eq!(t.seen_by_the_starter("2024-03-01 20:00:05").await, [0; 0]);
    // Renewed from the thread that does that.
    t.clock.advance(Duration::from_millis(3100));
    until("the lease is renewed", async || {
        t.stands(running.id.get()).await == "0 0 2024-03-01 20:00:09"
    })
    .await;
    t.gate.open(1);
    call.await.unwrap().unwrap();
    assert_eq!(t.stands(running.id.get()).await, "3 0 null");
    t.end().await;
}

async fn a_claim_is_rounded_up_too(db: Arc<TestDb>) {
    let row = "INSERT INTO t_sys_mq_resend_log (id, project_name, source, context, next_send_time) VALUES \
               (2120000000000000010, 'test', 32, '{\"fails\":false}', '2024-03-01 19:00:00')";
    let connection = starters_table(&db, row).await;
    let t = start(&db, connection, |builder| builder).await;
    t.gate.wait_for(1).await;
    assert_eq!(t.stands(2_120_000_000_000_000_010).await, "0 0 2024-03-01 20:00:06");
    t.gate.open(1);
    becomes(&t.retry, id(2_120_000_000_000_000_010), Status::Succeeded).await;
    t.end().await;
}

async fn what_the_table_cannot_hold_is_refused(db: Arc<TestDb>) {
    let t = take_over(&db, "").await;
    // 64 KiB less one, in bytes and not in characters.
    let frame = r#"{"orderId":1,"phone":""}"#.len();
    let widest = "中".repeat((65_535 - frame) / 3) + &"x".repeat((65_535 - frame) % 3);
    send_sms(1, &widest).on(&t.retry).await.unwrap();
    let error = send_sms(1, &(widest.clone() + "x")).on(&t.retry).await.unwrap_err();
    let CallError::Rejected(error) = error else { panic!("{error}") };
    assert_eq!(error.kind(), ErrorKind::Context);
    assert!(error.to_string().contains("65536 bytes"), "{error}");
    assert!(error.to_string().contains("holds 65535"), "{error}");
    let error = send_sms(1, &"x".repeat(5 << 20)).on(&t.retry).enqueue().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Context);
    for (context, fits) in [("x".repeat(65_535), true), ("x".repeat(65_536), false)] {
        let answer = t.retry.submit(Task::new(31).context(context)).await;
        assert_eq!(
            answer.map(drop).map_err(|error| error.kind()),
            fits.then_some(()).ok_or(ErrorKind::Context)
        );
    }
    // In characters: 50 of them, whatever they take.
    for (key, fits) in [("键".repeat(50), true), ("键".repeat(51), false), ("k".repeat(51), false)]
    {
        let answer = t.retry.submit(Task::new(31).key(key)).await;
        assert_eq!(
            answer.map(drop).map_err(|error| error.kind()),
            fits.then_some(()).ok_or(ErrorKind::Context)
        );
    }
    for (topic, fits) in [("t".repeat(255), true), ("t".repeat(256), false)] {
        let answer = t.retry.submit(Task::new(31).topic(topic)).await;
        assert_eq!(
            answer.map(drop).map_err(|error| error.kind()),
            fits.then_some(()).ok_or(ErrorKind::Context)
        );
    }
    assert_eq!(t.retry.tasks().count(Filter::all()).await.unwrap(), 4);
    assert_eq!(t.run_due().await.succeeded, 3);
    t.end().await;
}

async fn the_starter_goes_on_working(db: Arc<TestDb>) {
    let t = take_over(&db, ROWS).await;
    // What its job would run now is what it would have run before.
    assert_eq!(t.seen_by_the_starter("2024-03-01 20:00:00").await, [DUE, UNKNOWN]);
    // It stores a task, runs it and fails; we run the retry.
    t.execute(
        "INSERT INTO t_sys_mq_resend_log (id, project_name, source, status, send_count, context, create_time) \
         VALUES (2120000000000000011, 'test', 30, 0, 0, '{\"orderId\":11,\"phone\":\"\"}', '2024-03-01 20:00:00')",
    )
    .await;
    let changed = t
        .execute(
            "UPDATE t_sys_mq_resend_log SET status = 1, send_count = 1, next_send_time = '2024-03-01 20:00:05' \
             WHERE id = 2120000000000000011",
        )
        .await;
    assert_eq!(changed, 1);
    t.run_due().await;
    assert_eq!(t.log.take(), ["30: 2 +862"]);
    t.clock.set("2024-03-01T12:00:05Z".parse().unwrap());
    assert_eq!(t.run_due().await.succeeded, 1);
    assert_eq!(t.log.take(), ["30: 11 "]);
    // It ends one of its own, by id.
    let changed = t
        .execute("UPDATE t_sys_mq_resend_log SET status = 3, send_count = 3 WHERE id = 2120000000000000003")
        .await;
    assert_eq!(changed, 1);
    t.clock.advance(Duration::from_secs(3600));
    assert_eq!(t.run_due().await, RunReport::default());
    // And removes history in its way, ours too.
    let removed = t
        .execute(
            "DELETE FROM t_sys_mq_resend_log WHERE create_time < '2024-03-01 20:00:01' AND \
             project_name = 'test' AND status IN (3) ORDER BY create_time LIMIT 100",
        )
        .await;
    assert_eq!(removed, 4);
    t.end().await;
}

async fn what_the_starter_ends_meanwhile_stays_ended(db: Arc<TestDb>) {
    let t = take_over(&db, "").await;
    let call = tokio::spawn(slow(true).on(&t.retry).into_future());
    t.gate.wait_for(1).await;
    let running = t.retry.tasks().list(Filter::all()).await.unwrap().remove(0).id;
    t.execute("UPDATE t_sys_mq_resend_log SET status = 3").await;
    t.gate.open(1);
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Superseded { .. }), "{error}");
    let row = task(&t.retry, running).await;
    assert_eq!((row.status, row.send_count, row.last_error), (Status::Succeeded, 0, None));
    t.clock.advance(Duration::from_secs(3600));
    assert_eq!(t.run_due().await, RunReport::default());
    t.end().await;
}

async fn projects_are_compared_as_the_table_compares_them(db: Arc<TestDb>) {
    let row = "INSERT INTO t_sys_mq_resend_log (id, project_name, source, context, next_send_time) VALUES \
               (2120000000000000012, 'TEST', 30, '{\"orderId\":12,\"phone\":\"\"}', '2024-03-01 19:00:00')";
    let t = take_over(&db, row).await;
    // Without regard to case, as the starter does.
    assert_eq!(t.seen_by_the_starter("2024-03-01 20:00:00").await, [2_120_000_000_000_000_012]);
    assert_eq!(t.run_due().await.succeeded, 1);
    assert_eq!(t.log.take(), ["30: 12 "]);
    let row = task(&t.retry, id(2_120_000_000_000_000_012)).await;
    assert_eq!((row.project_name.as_str(), row.status), ("TEST", Status::Succeeded));
    // Unique keys differ in case all the same.
    for (key, is_new) in [("order-1", true), ("Order-1", true), ("order-1", false)] {
        let stored = send_sms(1, "").on(&t.retry).key(key).enqueue().await.unwrap();
        assert_eq!(stored.is_new(), is_new, "{key}");
    }
    t.end().await;
}

async fn history_goes_by_the_starters_zone(db: Arc<TestDb>) {
    let t = take_over(&db, ROWS).await;
    // DONE was accepted at 18:00:05 of its zone. It is kept for seven days.
    t.clock.set("2024-03-08T10:00:05Z".parse().unwrap());
    assert_eq!(t.retry.remove_history().await.unwrap(), 0);
    t.clock.set("2024-03-08T10:00:06Z".parse().unwrap());
    assert_eq!(t.retry.remove_history().await.unwrap(), 1);
    let left: Vec<i64> = t.rows().await.into_keys().collect();
    assert_eq!(left, [FRESH, DUE, NEXT, GIVEN_UP, UNKNOWN, OTHERS]);
    t.end().await;
}

/// Some have given the starter's columns fractions of seconds. The zone stays what it was.
async fn a_table_with_milliseconds_keeps_its_zone(db: Arc<TestDb>) {
    let connection = starters_table(&db, ROWS).await;
    let finer = "ALTER TABLE t_sys_mq_resend_log MODIFY next_send_time datetime(3) NULL, \
                 MODIFY create_time datetime(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3)";
    connection.execute_unprepared(finer).await.unwrap();
    let t = start(&db, connection, |builder| builder.job(false)).await;
    t.log.fail_next(1);
    assert_eq!(t.run_due().await.claimed, 1);
    assert_eq!(t.stands(DUE).await, "1 2 2024-03-01 20:01:40.250");
    let age = "select cast(timestampdiff(second, update_time, now()) as char) \
               from t_sys_mq_resend_log where id = 2120000000000000002";
    assert!((0..5).contains(&t.text(age).await.parse::<i64>().unwrap()), "the server's");
    t.end().await;
}

async fn a_table_that_was_prepared_by_script_needs_few_rights(db: Arc<TestDb>) {
    let connection = starters_table(&db, ROWS).await;
    let script = include_str!("../../migrations/sql/mysql-from-starter.sql");
    connection.execute_unprepared(script).await.unwrap();
    let user = format!("u{}", fastrand::u64(..));
    let schema = db.url.rsplit_once('/').unwrap().1;
    connection.execute_unprepared(&format!("create user {user}@'%'")).await.unwrap();
    for table in
        ["t_sys_mq_resend_log", "t_task_retry_result", "t_task_retry_attempt", "t_task_retry_pause"]
    {
        let grant =
            format!("grant select, insert, update, delete on {schema}.{table} to {user}@'%'");
        connection.execute_unprepared(&grant).await.unwrap();
    }
    let url = db.url.replacen("root@", &format!("{user}@"), 1);
    assert_ne!(url, db.url);
    let t = start(&db, connection, |it| it.job(false).migrate(false).database(url)).await;
    assert_eq!(t.run_due().await.succeeded, 1);
    assert_eq!(t.log.take(), ["30: 2 +862"]);
    // What it is allowed is enough for everything.
    t.log.fail_next(1);
    let error = send_sms(1, "").key("k").on(&t.retry).await.unwrap_err();
    assert!(error.is_deferred(), "{error}");
    assert!(!send_sms(1, "").key("k").on(&t.retry).enqueue().await.unwrap().is_new());
    assert_eq!(t.retry.tasks().attempts(error.id().unwrap()).await.unwrap().len(), 1);
    t.retry.sources().pause(31).await.unwrap();
    t.retry.sources().resume(31).await.unwrap();
    assert_eq!(t.retry.tasks().cancel(Filter::ids(error.id())).await.unwrap().changed, 1);
    t.clock.advance(Duration::from_secs(8 * 86_400));
    assert_eq!(t.retry.remove_history().await.unwrap(), 2);
    t.execute(&format!("drop user {user}@'%'")).await;
    t.end().await;
}

async fn without_the_script_the_missing_columns_are_named(db: Arc<TestDb>) {
    let connection = starters_table(&db, ROWS).await;
    let error = db.builder().only::<()>().migrate(false).start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("has no column fence, crash_count"), "{error}");
    connection.close().await.unwrap();
}

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        contract!(@ mariadb MariaDb: $($name),*);
        contract!(@ mysql MySql: $($name),*);
    };
}

on_both!(
    what_is_due_runs_when_it_is_due_and_nothing_else,
    workers_take_over_by_themselves,
    stranded_rows_run_only_when_they_are_adopted,
    failures_go_on_counting_where_the_starter_was,
    our_rows_are_such_as_the_starter_writes,
    leases_are_rounded_up,
    a_claim_is_rounded_up_too,
    what_the_table_cannot_hold_is_refused,
    the_starter_goes_on_working,
    what_the_starter_ends_meanwhile_stays_ended,
    projects_are_compared_as_the_table_compares_them,
    history_goes_by_the_starters_zone,
    a_table_with_milliseconds_keeps_its_zone,
    a_table_that_was_prepared_by_script_needs_few_rights,
    without_the_script_the_missing_columns_are_named,
);
