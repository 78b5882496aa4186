//! A tour of a few seconds: durable calls, their retries, a transaction, and the table behind them.
//!
//! ```text
//! cargo run -p task-retry-examples --bin quickstart
//! cargo run -p task-retry-examples --bin quickstart -- --crash
//! ```
//!
//! With `--crash` the process kills itself in the middle of an attempt. What it left behind is in
//! `quickstart.db`, and the next plain run finishes it. With `RUST_LOG=task_retry=debug` the runtime
//! tells what it does.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sea_orm::{ConnectionTrait, Database, DatabaseConnection, TransactionTrait};
use task_retry::{
    CallError, Filter, Source, Status, TaskContext, TaskId, TaskLog, TaskRetry, retryable,
};
use tracing_subscriber::EnvFilter;

const FILE: &str = "quickstart.db";
const URL: &str = "sqlite://quickstart.db?mode=rwc";

/// Every source of this project. The number is what the table holds, so it never changes its
/// meaning. The delays are short here, so that you need not wait; by default they are 5 s, 100 s,
/// 1000 s and 10000 s.
#[derive(Source, Clone, Copy, Debug)]
enum Sources {
    #[source(30)]
    Greet,
    #[source(31, first_execute = "300ms", delay_base = "300ms", delay_multiplier = 1.0)]
    SendSms,
    #[source(32, max_retry = 2, first_execute = "200ms", delay_base = "100ms")]
    ChargeCard,
    #[source(33)]
    WriteInvoice,
    #[source(34)]
    PackParcel,
}

/// The simplest durable function. Its arguments go into the table, its value to the caller.
#[retryable(source = Sources::Greet)]
async fn greet(name: &str) -> Result<String, ShopError> {
    Ok(format!("hello, {name}"))
}

/// Fails twice, for the gateway is busy at first, and then succeeds.
#[retryable(source = Sources::SendSms)]
async fn send_sms(order: u64, phone: &str, #[state] gateway: &Gateway) -> Result<u32, ShopError> {
    let sent = gateway.send(phone);
    match &sent {
        Ok(receipt) => println!("  send_sms      order {order}: sent, receipt {receipt}"),
        Err(error) => println!("  send_sms      order {order}: {error}"),
    }
    sent
}

/// Never works, so that its retries are used up.
#[retryable(source = Sources::ChargeCard)]
async fn charge_card(order: u64, #[context] ctx: &TaskContext) -> Result<(), ShopError> {
    println!("  charge_card   order {order}: attempt {} fails", ctx.attempt());
    Err(ShopError::Declined)
}

/// Belongs to an order: stored by the transaction that stores the order.
#[retryable(source = Sources::WriteInvoice)]
async fn write_invoice(order: u64) {
    println!("  write_invoice order {order}: written");
}

/// With `--crash`, dies half-way. The attempt after that sees how often this has happened.
#[retryable(source = Sources::PackParcel)]
async fn pack_parcel(
    order: u64,
    #[state] table: &PackingTable,
    #[context] ctx: &TaskContext,
) -> Result<(), ShopError> {
    let crashes = ctx.task().crash_count;
    table.crashes.store(crashes, Ordering::Relaxed);
    println!("  pack_parcel   order {order}: half packed, crash_count {crashes}");
    if table.collapses {
        println!("  pack_parcel   order {order}: kill -9 {} …", std::process::id());
        kill_myself();
    }
    println!("  pack_parcel   order {order}: packed");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).init();
    let crash = std::env::args().any(|argument| argument == "--crash");
    let left_behind = unfinished().await?;
    if left_behind == 0 {
        start_clean()?;
    }

    let table = Arc::new(PackingTable { collapses: crash, crashes: AtomicU32::new(0) });
    let retry = TaskRetry::builder()
        .project("shop")
        .database(URL)
        .max_delay_second(1) // between two attempts; by default a day
        .lease_second(5) // so long does the work of a dead process stay untouched; by default 30
        .state(Gateway::default())
        .shared_state(table.clone())
        .start()
        .await?;

    if left_behind > 0 {
        finish_what_was_left(&retry, &table, left_behind).await?;
    } else if crash {
        println!("== A process that dies in the middle of an attempt");
        pack_parcel(7).await?; // does not come back
    }
    tour(&retry).await?;

    println!("\n== The table, t_sys_mq_resend_log in {FILE}");
    print_table(&retry.tasks().list(Filter::all()).await?);
    retry.shutdown().await?;
    Ok(())
}

async fn tour(retry: &TaskRetry) -> Result<(), Box<dyn Error>> {
    println!("== An awaited call: stored, then run here and now");
    println!("  main          {}", greet("Ada").await?);

    println!("\n== A call that fails: its caller hears of it, and it is retried all the same");
    let sent = match send_sms(42, "+8613800000000").await {
        Err(CallError::Deferred { id, cause, retry_at }) => {
            let at = retry_at.format("%H:%M:%S%.3f");
            println!("  main          {cause}; task {id} is due again at {at} UTC");
            id
        }
        other => panic!("the gateway was busy, and yet: {other:?}"),
    };

    println!("\n== An enqueued call: stored, and run by a worker");
    let charged = charge_card(42).enqueue().await?.id();

    println!("\n== In a transaction: the task exists only if the order does");
    let db = Database::connect(URL).await?;
    db.execute_unprepared("create table if not exists orders (number integer)").await?;
    let unpaid = place_order(&db, 43, false).await?;
    let paid = place_order(&db, 44, true).await?;
    retry.kick(); // it is committed: look at once

    wait_until_done(retry).await?;
    assert_eq!(end_of(retry, sent).await?, Some((Status::Succeeded, 2)));
    assert_eq!(end_of(retry, charged).await?, Some((Status::Failed, 3)));
    assert_eq!(end_of(retry, paid).await?, Some((Status::Succeeded, 0)));
    assert_eq!(end_of(retry, unpaid).await?, None);
    Ok(())
}

/// An order and the task that follows from it: both or neither.
async fn place_order(
    db: &DatabaseConnection,
    order: u64,
    paid: bool,
) -> Result<TaskId, Box<dyn Error>> {
    let transaction = db.begin().await?;
    transaction.execute_unprepared(&format!("insert into orders values ({order})")).await?;
    let invoice = write_invoice(order).enqueue_in(&transaction).await?;
    match paid {
        true => transaction.commit().await?,
        false => transaction.rollback().await?,
    }
    println!("  main          order {order}: {}", if paid { "committed" } else { "rolled back" });
    Ok(invoice.id())
}

/// How a task stands, and how many of its attempts have failed.
async fn end_of(retry: &TaskRetry, id: TaskId) -> task_retry::Result<Option<(Status, u32)>> {
    Ok(retry.tasks().get(id).await?.map(|task| (task.status, task.send_count)))
}

/// A task stays with the process that died until its lease ends. Then the workers here take it.
async fn finish_what_was_left(
    retry: &TaskRetry,
    table: &PackingTable,
    count: u64,
) -> Result<(), Box<dyn Error>> {
    println!("== {FILE} holds {count} unfinished task(s) of an earlier run");
    for task in retry.tasks().list(open()).await? {
        let name = task.task_name.as_deref().unwrap_or_default();
        let due = task.next_send_time.unwrap_or_default();
        let seconds = (due - retry.now()).as_seconds_f64().max(0.0);
        let whose = task.locked_by.as_deref().unwrap_or("nobody");
        println!("  main          {name}, task {}, is held by {whose}", task.id);
        println!("  main          waiting for the end of its lease, {seconds:.1} s …");
    }
    wait_until_done(retry).await?;
    println!("  main          the work of the earlier run has ended");
    match table.crashes.load(Ordering::Relaxed) {
        0 => println!(),
        crashes => println!("  main          its last attempt saw crash_count {crashes}\n"),
    }
    Ok(())
}

async fn wait_until_done(retry: &TaskRetry) -> Result<(), Box<dyn Error>> {
    while retry.tasks().count(open()).await? > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The tasks that have not ended.
fn open() -> Filter {
    Filter::all().status(Status::Executing).status(Status::Retrying)
}

/// The log as a table, each column as wide as its widest cell.
fn print_table(tasks: &[TaskLog]) {
    let titles = ["id", "function", "status", "attempts", "arguments", "last error"];
    let mut rows = vec![titles.map(String::from)];
    rows.extend(tasks.iter().map(|task| {
        let succeeded = task.status == Status::Succeeded;
        [
            task.id.to_string(),
            task.task_name.clone().unwrap_or_default(),
            format!("{} {}", task.status.number(), task.status),
            (task.send_count + u32::from(succeeded)).to_string(),
            task.context.clone().unwrap_or_default(),
            task.last_error.clone().unwrap_or_default(),
        ]
    }));
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        println!("  {}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// How many tasks an earlier run has left unfinished. A runtime without workers only looks.
async fn unfinished() -> Result<u64, Box<dyn Error>> {
    if !Path::new(FILE).exists() {
        return Ok(0);
    }
    let builder = TaskRetry::builder().project("shop").database(URL).detached();
    let looking = builder.only::<()>().job(false).start().await?;
    let count = looking.tasks().count(open()).await?;
    looking.shutdown().await?;
    Ok(count)
}

fn start_clean() -> std::io::Result<()> {
    for end in ["", "-wal", "-shm"] {
        match std::fs::remove_file(format!("{FILE}{end}")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// As a power cut would: nothing is flushed, nothing is dropped, nobody is told.
fn kill_myself() {
    let kill = format!("kill -9 {}", std::process::id());
    let _ = Command::new("sh").args(["-c", &kill]).status();
    std::process::abort(); // where there is no `sh`
}

struct PackingTable {
    /// Whether this run is to die.
    collapses: bool,
    /// What the last attempt saw.
    crashes: AtomicU32,
}

/// A gateway that is busy for the first two messages.
#[derive(Default)]
struct Gateway {
    calls: AtomicU32,
}

impl Gateway {
    fn send(&self, _phone: &str) -> Result<u32, ShopError> {
        match self.calls.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Err(ShopError::Busy),
            receipt => Ok(receipt),
        }
    }
}

#[derive(Debug)]
enum ShopError {
    Busy,
    Declined,
}

impl fmt::Display for ShopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "the gateway is busy",
            Self::Declined => "the card was declined",
        })
    }
}

impl Error for ShopError {}
