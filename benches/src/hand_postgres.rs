//! What a careful person writes by hand with sqlx, on the very table and indices that task-retry makes.
//! It fences its updates and does nothing else: no keys, no leases to renew, no errors, no limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool, Row};

use crate::group::Group;
use crate::tool::*;

const TABLE: &str = include_str!("../../migrations/sql/postgres.sql");
const INSERT: &str = "insert into t_sys_mq_resend_log \
    (id, project_name, source, context, fence, locked_by, next_send_time) \
    values ($1, 'bench', 100, $2, 1, 'me', now() + interval '30 seconds')";
const INSERT_MANY: &str = "insert into t_sys_mq_resend_log \
    (id, project_name, source, context, fence, locked_by, next_send_time) \
    select v.id, 'bench', 100, v.context, 1, 'me', now() + interval '30 seconds' \
    from unnest($1::bigint[], $2::text[]) v(id, context)";
const INSERT_DUE: &str = "insert into t_sys_mq_resend_log \
    (id, project_name, source, context, next_send_time) \
    select v.id, 'bench', 100, v.context, now() from unnest($1::bigint[], $2::text[]) v(id, context)";
const CLAIM: &str = "update t_sys_mq_resend_log t set fence = fence + 1, locked_by = 'me', \
    next_send_time = now() + interval '30 seconds' where id = any(array(select id from \
    t_sys_mq_resend_log where project_name = 'bench' and source = 100 and status in (0, 1, 5) \
    and next_send_time <= now() order by next_send_time limit 1000 for update skip locked)) \
    returning id, fence, context";
const DONE: &str = "update t_sys_mq_resend_log set status = 3, locked_by = null, \
    next_send_time = null, update_time = now() where id = $1 and fence = $2";
const DONE_MANY: &str = "update t_sys_mq_resend_log t set status = 3, locked_by = null, \
    next_send_time = null, update_time = now() from unnest($1::bigint[], $2::bigint[]) v(id, fence) \
    where t.id = v.id and t.fence = v.fence";

static ID: AtomicI64 = AtomicI64::new(1_000_000_000_000);

fn id() -> i64 {
    ID.fetch_add(1, Relaxed)
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Arguments<'a> {
    number: u64,
    text: &'a str,
}

pub fn context(number: u64) -> String {
    serde_json::to_string(&Arguments { number, text: TEXT }).unwrap()
}

static RUNS: AtomicU64 = AtomicU64::new(0);

/// The function.
pub async fn noop(context: &str) -> Result<(), String> {
    let arguments: Arguments = serde_json::from_str(context).unwrap();
    let _ = (arguments.number, arguments.text);
    RUNS.fetch_add(1, Relaxed);
    Ok(())
}

pub async fn child(url: &str, what: &str) {
    let (what, number) = what.split_once(':').unwrap_or((what, "0"));
    let number: u64 = number.parse().unwrap();
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql("set client_min_messages = warning").execute(&mut connection).await.unwrap();
    sqlx::raw_sql(TABLE).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    match what {
        "lone" => lone(url).await,
        "lone-enqueue" => lone_enqueue(url).await,
        "awaited" => awaited(url, number).await,
        "each" => each(url, number).await,
        "drain" => drain(url, number).await,
        "sustained" => sustained(url, number).await,
        "bulk" => bulk(url, number).await,
        _ => panic!("unknown work {what}"),
    }
}

async fn lone(url: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let mut times = Vec::new();
    for i in 0..1400 {
        if i == 400 {
            settle(url).await;
            times.clear();
        }
        let start = Instant::now();
        let (id, context) = (id(), context(i));
        sqlx::query(INSERT).bind(id).bind(&context).execute(&mut connection).await.unwrap();
        noop(&context).await.unwrap();
        sqlx::query(DONE).bind(id).bind(1_i64).execute(&mut connection).await.unwrap();
        times.push(start.elapsed());
    }
    metric("p50_us", percentile(&mut times, 0.5));
    metric("p99_us", percentile(&mut times, 0.99));
}

/// Only the insert is timed; the update comes after it, as with ours.
async fn lone_enqueue(url: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let mut times = Vec::new();
    let mut pace = lone_pace();
    for i in 0..600 {
        if i == 200 {
            settle(url).await;
            times.clear();
        }
        pace.tick().await;
        let start = Instant::now();
        let (id, context) = (id(), context(i));
        sqlx::query(INSERT).bind(id).bind(&context).execute(&mut connection).await.unwrap();
        times.push(start.elapsed());
        sqlx::query(DONE).bind(id).bind(1_i64).execute(&mut connection).await.unwrap();
    }
    metric("p50_us", percentile(&mut times, 0.5));
    metric("p99_us", percentile(&mut times, 0.99));
}

async fn lane(group: Arc<Group>, url: String) {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    loop {
        let (rows, done, tell) = group.next(false).await;
        if rows.is_empty() {
            let fences = vec![1_i64; done.len()];
            let query = sqlx::query(DONE_MANY).bind(done).bind(fences);
            query.execute(&mut connection).await.unwrap();
        } else {
            let (ids, contexts): (Vec<i64>, Vec<String>) = rows.into_iter().unzip();
            let query = sqlx::query(INSERT_MANY).bind(ids).bind(contexts);
            query.execute(&mut connection).await.unwrap();
        }
        tell.into_iter().for_each(|tell| tell.send(()).unwrap());
    }
}

async fn awaited(url: &str, count: u64) {
    let group = Arc::new(Group::default());
    for _ in 0..2 {
        tokio::spawn(lane(group.clone(), url.to_owned()));
    }
    measure_callers(url, count, move |i| {
        let group = group.clone();
        async move {
            let (id, context) = (id(), context(i));
            group.insert(id, context.clone()).await;
            noop(&context).await.unwrap();
            group.done(id).await;
        }
    })
    .await;
}

/// The most connections that statement-per-call gets: more were slower.
const EACH: u32 = 64;

/// A statement a call, over a pool.
async fn each(url: &str, count: u64) {
    let connections = EACH.min(count as u32);
    let pool = PgPoolOptions::new().min_connections(connections).max_connections(connections);
    let options: PgConnectOptions = url.parse().unwrap();
    let pool: PgPool = pool.test_before_acquire(false).connect_with(options).await.unwrap();
    measure_callers(url, count, move |i| {
        let pool = pool.clone();
        async move {
            let (id, context) = (id(), context(i));
            sqlx::query(INSERT).bind(id).bind(&context).execute(&pool).await.unwrap();
            noop(&context).await.unwrap();
            sqlx::query(DONE).bind(id).bind(1_i64).execute(&pool).await.unwrap();
        }
    })
    .await;
}

async fn fill(connection: &mut PgConnection, rows: u64) {
    for start in (0..rows).step_by(1000) {
        let numbers = start..rows.min(start + 1000);
        let ids: Vec<i64> = numbers.clone().map(|_| id()).collect();
        let contexts: Vec<String> = numbers.map(context).collect();
        let query = sqlx::query(INSERT_DUE).bind(ids).bind(contexts);
        query.execute(&mut *connection).await.unwrap();
    }
}

/// One of two claimers.
async fn work(url: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    loop {
        let rows = sqlx::query(CLAIM).fetch_all(&mut connection).await.unwrap();
        if rows.is_empty() {
            return;
        }
        let (mut ids, mut fences) = (Vec::new(), Vec::new());
        for row in rows {
            noop(row.get::<&str, _>(2)).await.unwrap();
            ids.push(row.get::<i64, _>(0));
            fences.push(row.get::<i64, _>(1));
        }
        let query = sqlx::query(DONE_MANY).bind(ids).bind(fences);
        query.execute(&mut connection).await.unwrap();
    }
}

async fn drain(url: &str, count: u64) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    fill(&mut connection, 2000).await;
    work(url).await;
    fill(&mut connection, count).await;
    settle(url).await;
    let start = Instant::now();
    let lane = |url: String| tokio::spawn(async move { work(&url).await });
    let (one, two) = tokio::join!(lane(url.to_owned()), lane(url.to_owned()));
    one.and(two).unwrap();
    metric("rate", count as f64 / start.elapsed().as_secs_f64());
    assert_eq!(RUNS.load(Relaxed), 2000 + count);
}

async fn hand_over(url: String, until: Instant) -> u64 {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let mut count = 0;
    while Instant::now() < until {
        let ids: Vec<i64> = (0..1000).map(|_| id()).collect();
        let contexts: Vec<String> = (0..1000).map(context).collect();
        let query = sqlx::query(INSERT_MANY).bind(&ids).bind(&contexts);
        query.execute(&mut connection).await.unwrap();
        for context in &contexts {
            noop(context).await.unwrap();
        }
        let query = sqlx::query(DONE_MANY).bind(ids).bind(vec![1_i64; 1000]);
        query.execute(&mut connection).await.unwrap();
        count += 1000;
    }
    count
}

async fn sustained(url: &str, lanes: u64) {
    let run = async |time| {
        let until = Instant::now() + time;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..lanes {
            tasks.spawn(hand_over(url.to_owned(), until));
        }
        tasks.join_all().await.into_iter().sum::<u64>()
    };
    run(Duration::from_secs(1)).await;
    settle(url).await;
    let start = Instant::now();
    let count = run(sustained_time()).await;
    metric("rate", count as f64 / start.elapsed().as_secs_f64());
}

/// One transaction, as `enqueue_all` makes one.
async fn bulk(url: &str, count: u64) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    fill(&mut connection, 2000).await;
    settle(url).await;
    let start = Instant::now();
    let mut transaction = connection.begin().await.unwrap();
    fill(&mut transaction, count).await;
    transaction.commit().await.unwrap();
    metric("rate", count as f64 / start.elapsed().as_secs_f64());
}
