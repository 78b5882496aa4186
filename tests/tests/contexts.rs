//! Arguments: what goes into the `context` column, and what comes back out of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use task_retry::{
    CallError, ErrorKind, Filter, ManualClock, Status, Task, TaskContext, TaskLog, TaskRetry,
    retryable,
};
use task_retry_tests::{TestDb, becomes, contract, manual_clock, only_task, task, until};

/// What the bodies saw, one line an attempt.
#[derive(Default)]
struct Seen(Mutex<Vec<String>>);

impl Seen {
    fn add(&self, line: impl Into<String>) {
        self.0.lock().unwrap().push(line.into());
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Fails once, so that the second attempt has its arguments from the table.
fn twice(seen: &Seen, ctx: &TaskContext, line: String) -> Result<(), &'static str> {
    seen.add(line);
    if ctx.attempt() == 1 { Err("once more") } else { Ok(()) }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u64,
    tags: Vec<String>,
}

/// JSON has one word for `None` and for NaN.
#[retryable(source = 119)]
async fn maybe(_number: Option<f64>) -> Result<(), String> {
    Ok(())
}

#[retryable(source = 100)]
#[allow(clippy::too_many_arguments)]
async fn borrows(
    text: &str,
    bytes: &[u8],
    order: &Order,
    path: &Path,
    orders: &[Order],
    maybe: &Option<Order>,
    #[state] seen: &Seen,
    #[context] ctx: &TaskContext,
) -> Result<(), &'static str> {
    twice(seen, ctx, format!("{text} {bytes:?} {order:?} {path:?} {orders:?} {maybe:?}"))
}

#[retryable(source = 101)]
async fn numbers(
    huge: u128,
    tiny: i128,
    long: u64,
    floats: Vec<f64>,
    map: BTreeMap<u128, i64>,
    #[state] seen: &Seen,
    #[context] ctx: &TaskContext,
) -> Result<(), &'static str> {
    let floats: Vec<u64> = floats.into_iter().map(f64::to_bits).collect();
    twice(seen, ctx, format!("{huge} {tiny} {long} {floats:?} {map:?}"))
}

#[retryable(source = 102)]
async fn says(
    text: String,
    #[state] seen: &Seen,
    #[context] ctx: &TaskContext,
) -> Result<(), &'static str> {
    twice(seen, ctx, text)
}

#[retryable(source = 103)]
async fn holds(text: String) -> Result<usize, &'static str> {
    Ok(text.len())
}

#[retryable(source = 104, type = OddNames)]
async fn odd_names(
    args: u8,
    ctx: u8,
    env: u8,
    r#type: u8,
    mut count: u8,
    #[context] context: &TaskContext,
) -> Result<(u8, u32), String> {
    count += 1;
    Ok((args + ctx + env + r#type + count, context.attempt()))
}

#[retryable(source = 105)]
async fn float(_number: f64) -> Result<(), String> {
    Ok(())
}

/// One level of JSON a level of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Nest(Vec<Nest>);

#[retryable(source = 106)]
async fn nested(_nest: Nest) -> Result<(), String> {
    Ok(())
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Leaky {
    kept: u8,
    #[serde(skip_serializing)]
    _lost: u8,
}

#[retryable(source = 107)]
async fn leaky(_value: Leaky) -> Result<(), String> {
    Ok(())
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Forgetful {
    kept: u8,
    #[serde(skip)]
    cache: u8,
}

#[retryable(source = 108)]
async fn forgetful(
    value: Forgetful,
    #[state] seen: &Seen,
    #[context] ctx: &TaskContext,
) -> Result<(), &'static str> {
    twice(seen, ctx, format!("{} {}", value.kept, value.cache))
}

/// Panics when it is encoded.
#[derive(Clone, Debug, Deserialize)]
struct Explosive;

impl Serialize for Explosive {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("not today")
    }
}

#[retryable(source = 109)]
async fn explosive(_value: Explosive) -> Result<(), String> {
    Ok(())
}

#[retryable(source = 110, name = "grown")]
async fn grown(
    old: u8,
    #[arg(default)] new: Option<u8>,
    #[arg(default)] more: u8,
) -> Result<u8, String> {
    Ok(old + new.unwrap_or(10) + more)
}

async fn start(db: &TestDb) -> (TaskRetry, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let builder = db.builder().first_execute_second(0).shared_state(seen.clone());
    (builder.start().await.unwrap(), seen)
}

/// Runs a call that fails once, and asserts that both attempts saw this.
macro_rules! comes_back {
    ($retry:expr, $seen:expr, $call:expr, $line:expr) => {{
        let error = $call.on(&$retry).await.unwrap_err();
        let row = becomes(&$retry, error.id().unwrap(), Status::Succeeded).await;
        assert_eq!(row.send_count, 1);
        let line: String = $line.into();
        assert_eq!($seen.all(), [line.clone(), line]);
        $seen.0.lock().unwrap().clear();
    }};
}

async fn borrowed_parameters_come_back(db: Arc<TestDb>) {
    let (retry, seen) = start(&db).await;
    let order = Order { id: u64::MAX, tags: vec!["中文".into(), String::new()] };
    let orders = [order.clone(), Order { id: 0, tags: Vec::new() }];
    let bytes = [0, 127, 255];
    let path = Path::new("/tmp/a b");
    let line = format!("a text {bytes:?} {order:?} {path:?} {orders:?} {:?}", Some(&order));
    let call = borrows("a text", &bytes, &order, path, &orders, &Some(order.clone()));
    comes_back!(retry, seen, call, line);
    retry.shutdown().await.unwrap();
}

async fn numbers_come_back_exactly(db: Arc<TestDb>) {
    let (retry, seen) = start(&db).await;
    let floats = [
        0.1 + 0.2,
        -0.0,
        5e-324,
        f64::MIN_POSITIVE,
        f64::MAX,
        1.0 / 3.0,
        9_007_199_254_740_993.0,
        123_456_789.012_345_67,
        2.225_073_858_507_201e-308,
    ];
    let bits = floats.map(f64::to_bits);
    let map = BTreeMap::from([(u128::MAX, i64::MIN), (0, i64::MAX)]);
    let line = format!("{} {} {} {bits:?} {map:?}", u128::MAX, i128::MIN, u64::MAX);
    let call = numbers(u128::MAX, i128::MIN, u64::MAX, floats.to_vec(), map);
    comes_back!(retry, seen, call, line);
    retry.shutdown().await.unwrap();
}

async fn texts_come_back_exactly(db: Arc<TestDb>) {
    let (retry, seen) = start(&db).await;
    for text in [
        "",
        "'; drop table t_sys_mq_resend_log; --",
        r#""quoted" \ back\\slashed {"a": [1, null]} {1,2}"#,
        "\0 and \u{1} and \t\r\n",
        "😀 中文 日本語 \u{2028}\u{feff}\u{10ffff}",
        "?1 $1 :name %s ${x} NULL \\N",
    ] {
        comes_back!(retry, seen, says(text.to_owned()), text);
    }
    retry.shutdown().await.unwrap();
}

async fn parameters_may_have_any_name(db: Arc<TestDb>) {
    let (retry, _) = start(&db).await;
    assert_eq!(odd_names(1, 2, 3, 4, 5).on(&retry).await.unwrap(), (16, 1));
    let task = only_task(&retry).await;
    assert_eq!(task.context.as_deref(), Some(r#"{"args":1,"ctx":2,"env":3,"type":4,"count":5}"#));
    assert_eq!(task.task_name.as_deref(), Some("odd_names"));
    retry.shutdown().await.unwrap();
}

async fn five_mebibytes_are_stored_and_read_again(db: Arc<TestDb>) {
    let (retry, seen) = start(&db).await;
    let text = "5 MiB\n\"".repeat(749_000);
    let error = says(text.clone()).on(&retry).await.unwrap_err();
    becomes(&retry, error.id().unwrap(), Status::Succeeded).await;
    assert!(seen.all() == [text.clone(), text], "both attempts saw it");
    assert!(only_task(&retry).await.context.unwrap().len() > 5 << 20);
    retry.shutdown().await.unwrap();
}

/// Nothing is stored, and nothing has run.
async fn assert_refused<T>(
    retry: &TaskRetry,
    result: Result<T, CallError<impl std::fmt::Display>>,
) {
    let Err(CallError::Rejected(error)) = result else { panic!("it was not refused") };
    assert_eq!(error.kind(), ErrorKind::Context, "{error}");
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 0);
}

async fn what_does_not_come_back_is_refused(db: Arc<TestDb>) {
    let (retry, _) = start(&db).await;
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_refused(&retry, float(number).on(&retry).await).await;
    }
    assert_eq!(float(f64::NAN).on(&retry).enqueue().await.unwrap_err().kind(), ErrorKind::Context);
    let connection = db.connect().await;
    let error = float(f64::NAN).on(&retry).enqueue_in(&connection).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Context);
    assert_refused(&retry, maybe(Some(f64::NAN)).on(&retry).await).await;
    let deep = |depth| (1..depth).fold(Nest::default(), |nest, _| Nest(vec![nest]));
    assert_refused(&retry, nested(deep(128)).on(&retry).await).await;
    assert_refused(&retry, nested(deep(1000)).on(&retry).await).await;
    assert_refused(&retry, leaky(Leaky { kept: 1, _lost: 2 }).on(&retry).await).await;
    assert_refused(&retry, explosive(Explosive).on(&retry).await).await;
    assert_refused(&retry, holds("x".repeat(16 << 20)).on(&retry).await).await;
    // The deepest that fits, with the object of the arguments around it.
    nested(deep(126)).on(&retry).await.unwrap();
    retry.shutdown().await.unwrap();
}

async fn the_first_attempt_sees_what_later_ones_will(db: Arc<TestDb>) {
    let (retry, seen) = start(&db).await;
    let value = Forgetful { kept: 1, cache: 2 };
    comes_back!(retry, seen, forgetful(value), "1 0");
    retry.shutdown().await.unwrap();
}

/// A row as somebody else's code may leave it; it was due an hour ago.
async fn insert(db: &TestDb, id: i64, source: i32, name: &str, context: &str) {
    db.execute(&format!(
        "insert into t_sys_mq_resend_log (id, project_name, source, task_name, context, \
         next_send_time) values ({id}, 'test', {source}, '{name}', '{context}', \
         '2026-03-01 11:00:00')"
    ))
    .await;
}

async fn older_rows_are_decoded_by_newer_code(db: Arc<TestDb>) {
    let (retry, _) = start(&db).await;
    insert(&db, 1, 110, "grown", r#"{"old":1}"#).await;
    insert(&db, 2, 110, "grown", r#"{"old":1,"new":null,"gone":[1]}"#).await;
    retry.kick();
    for id in [1, 2] {
        becomes(&retry, id.into(), Status::Succeeded).await;
    }
    retry.shutdown().await.unwrap();
}

async fn a_row_that_nobody_can_decode_rests_longer_and_longer(db: Arc<TestDb>) {
    let clock = manual_clock();
    let retry = db.builder().clock(clock.clone()).state(Seen::default()).start().await.unwrap();
    insert(&db, 1, 103, "holds", "garbage").await;
    insert(&db, 2, 103, "holds", r#"{"text":1}"#).await;
    insert(&db, 3, 103, "another", r#"{"text":"x"}"#).await;
    insert(&db, 4, 103, "holds", r#"{"text":"x"}"#).await;
    insert(&db, 5, 999, "stranger", r#"{"text":"x"}"#).await;
    retry.kick();
    becomes(&retry, 4.into(), Status::Succeeded).await;
    for (fence, pause) in [(1, 1), (2, 2), (3, 4), (4, 8)] {
        rests(&retry, &clock, fence, pause).await;
        clock.advance(Duration::from_secs(pause) - Duration::from_millis(1));
        assert_eq!(retry.run_due(None).await.unwrap().claimed, 0, "not before its time");
        clock.advance(Duration::from_millis(1));
    }
    for fence in 5..17 {
        for id in [1, 2, 3] {
            put_back(&retry, id, fence).await;
        }
        clock.advance(Duration::from_secs(3600));
    }
    let row = put_back(&retry, 1, 17).await;
    let most = clock.now() + Duration::from_secs(3600);
    assert_eq!(row.next_send_time, Some(most), "an hour at the most");
    assert_eq!((row.status, row.send_count, row.crash_count), (Status::Executing, 0, 0));
    // An unknown source is left alone for ever.
    let stranger = task(&retry, 5.into()).await;
    assert_eq!((stranger.fence, stranger.locked_by), (0, None));
    // Mended, it runs.
    retry.tasks().edit_context(1.into(), r#"{"text":"mended"}"#).await.unwrap();
    clock.advance(Duration::from_secs(3600));
    becomes(&retry, 1.into(), Status::Succeeded).await;
    retry.shutdown().await.unwrap();
}

/// Waits until nobody holds a row of this fence.
async fn put_back(retry: &TaskRetry, id: i64, fence: i64) -> TaskLog {
    until("it is put back", async || {
        let row = task(retry, id.into()).await;
        row.fence == fence && row.locked_by.is_none()
    })
    .await;
    task(retry, id.into()).await
}

/// All three were tried so often, and put back for so long, without a cost.
async fn rests(retry: &TaskRetry, clock: &ManualClock, fence: i64, pause: u64) {
    for (id, error) in [
        (1, "the context does not fit the function's parameters"),
        (2, "invalid type: integer"),
        (3, "stored for the function `another`"),
    ] {
        let row = put_back(retry, id, fence).await;
        assert_eq!((row.status, row.send_count, row.crash_count), (Status::Executing, 0, 0));
        assert_eq!(row.next_send_time, Some(clock.now() + Duration::from_secs(pause)), "{id}");
        assert!(row.last_error.as_deref().unwrap().contains(error), "{row:?}");
    }
}

/// Only PostgreSQL has such times, and the last years of its calendar are in nobody else's.
async fn an_infinite_time_stops_nobody(db: Arc<TestDb>) {
    if db.kind != task_retry_tests::Kind::Postgres {
        return;
    }
    let (retry, _) = start(&db).await;
    // In one statement: a worker may look at any moment.
    db.execute(
        "insert into t_sys_mq_resend_log (id, project_name, source, task_name, context, next_send_time, expire_time) \
         select id, 'test', 103, 'holds', '{\"text\":\"x\"}', next, expire from (values \
         (1, 'infinity'::timestamp, null::timestamp), \
         (2, '2026-03-01 11:00:00', 'infinity'), \
         (3, '2026-03-01 11:00:00', null), \
         (4, '2026-03-01 11:00:00', '294276-12-31'), \
         (5, '294276-12-31', null)) as rows (id, next, expire)",
    )
    .await;
    retry.kick();
    for id in [2, 3, 4] {
        becomes(&retry, id.into(), Status::Succeeded).await;
    }
    for id in [1, 5] {
        assert_eq!(task(&retry, id.into()).await.status, Status::Executing);
    }
    retry.shutdown().await.unwrap();
}

async fn what_is_submitted_is_checked(db: Arc<TestDb>) {
    let (retry, _) = start(&db).await;
    for context in ["garbage", r#"{"text":1}"#, "{}", "[]", ""] {
        let error = retry.submit(Task::new(103).context(context)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Context, "{context}: {error}");
    }
    let error = retry.submit(Task::new(103)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Context, "{error}");
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 0);
    let stored = retry.submit(Task::new(103).context(r#"{"text":"good"}"#)).await.unwrap();
    becomes(&retry, stored.id(), Status::Succeeded).await;
    retry.shutdown().await.unwrap();
}

contract!(
    borrowed_parameters_come_back,
    numbers_come_back_exactly,
    texts_come_back_exactly,
    parameters_may_have_any_name,
    five_mebibytes_are_stored_and_read_again,
    what_does_not_come_back_is_refused,
    the_first_attempt_sees_what_later_ones_will,
    older_rows_are_decoded_by_newer_code,
    a_row_that_nobody_can_decode_rests_longer_and_longer,
    an_infinite_time_stops_nobody,
    what_is_submitted_is_checked,
);
