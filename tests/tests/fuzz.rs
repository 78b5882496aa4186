//! Bad input: texts of every kind, made at random and out of good ones, for a few seconds each.
//!
//! `TASK_RETRY_FUZZ_SECONDS=60` goes on for longer, with another seed each time; a failure prints the
//! seed and the text, and `TASK_RETRY_FUZZ_SEED` repeats it. The macros' tokens and the variables of
//! the environment have such tests beside their code.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement, Value};
use serde::{Deserialize, Serialize};
use task_retry::{
    Config, ErrorKind, Filter, ManualClock, Status, Task, TaskLog, TaskRetry, UtcOffset, retryable,
};
use task_retry_tests::{Kind, TestDb, manual_clock};

/// No text may take longer.
const LONGEST: Duration = Duration::from_secs(20);
/// Stands in texts as a value, which no error may quote. It is no name, so it is no parameter's.
const SECRET: &str = "hunter2!";

/// Makes texts and tries them until the time is over; tells how many that were.
fn fuzz(name: &str, mut make: impl FnMut(&mut Rng) -> String, mut test: impl FnMut(&str)) {
    let seconds = std::env::var("TASK_RETRY_FUZZ_SECONDS").ok();
    let time: f64 = seconds.as_ref().map_or(3.0, |text| text.parse().expect("seconds"));
    let seed = match std::env::var("TASK_RETRY_FUZZ_SEED") {
        Ok(seed) => seed.parse().expect("a seed is a number"),
        Err(_) if seconds.is_some() => fastrand::u64(..),
        Err(_) => 1,
    };
    println!("{name}: TASK_RETRY_FUZZ_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let watched = Watched::new(name);
    let began = Instant::now();
    let (mut count, mut slowest) = (0, Duration::ZERO);
    while began.elapsed().as_secs_f64() < time {
        let text = make(&mut rng);
        watched.now(&text);
        let start = Instant::now();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(&text))) {
            eprintln!("{name}: TASK_RETRY_FUZZ_SEED={seed}, text {count}: {text:?}");
            resume_unwind(panic);
        }
        slowest = slowest.max(start.elapsed());
        count += 1;
    }
    println!("{name}: {count} texts, the slowest took {slowest:.1?}");
    assert!(count > 10, "they take too long");
}

/// A thread that ends the process when one text takes too long: a loop cannot be stopped.
struct Watched(Arc<(Mutex<(Instant, String)>, AtomicBool)>);

impl Watched {
    fn new(name: &str) -> Self {
        let shared = Arc::new((Mutex::new((Instant::now(), String::new())), AtomicBool::new(true)));
        let (name, watched) = (name.to_owned(), shared.clone());
        std::thread::spawn(move || {
            while watched.1.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                let (since, text) = &*watched.0.lock().unwrap();
                if since.elapsed() > LONGEST && watched.1.load(Ordering::Relaxed) {
                    eprintln!("{name}: it hangs on {text:?}");
                    std::process::abort();
                }
            }
        });
        Self(shared)
    }

    fn now(&self, text: &str) {
        *self.0.0.lock().unwrap() = (Instant::now(), text.to_owned());
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.1.store(false, Ordering::Relaxed);
    }
}

/// A text out of good ones, or out of their pieces, or of anything.
fn spoilt(rng: &mut Rng, good: &[&str], pieces: &[&str]) -> String {
    let mut text: Vec<u8> = match rng.u8(0..10) {
        0 => (0..rng.usize(0..200)).map(|_| rng.u8(..)).collect(),
        1 => {
            (0..rng.usize(0..60)).flat_map(|_| pieces[rng.usize(0..pieces.len())].bytes()).collect()
        }
        _ => good[rng.usize(0..good.len())].into(),
    };
    for _ in 0..rng.u8(0..6) {
        let start = rng.usize(0..=text.len());
        let end = rng.usize(start..=text.len().min(start + 40));
        let cut = text[start..end].to_vec();
        match rng.u8(0..8) {
            0 => drop(text.drain(start..end)),
            1 => text.truncate(start),
            2 => drop(text.splice(start..start, cut)),
            3 => {
                let other = good[rng.usize(0..good.len())].as_bytes();
                let from = rng.usize(0..=other.len());
                text.splice(start..end, other[from..].iter().copied());
            }
            4 => {
                let times = 1 << rng.u32(0..10);
                text.splice(start..start, cut.repeat(times));
            }
            5 if start < end => text[start] = rng.u8(..),
            _ => {
                let piece = pieces[rng.usize(0..pieces.len())];
                text.splice(start..end, piece.bytes());
            }
        }
        text.truncate(1 << 20);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Shape {
    Unit,
    New(u128),
    Pair(i8, char),
    Named { at: f64, deep: Option<Box<Shape>> },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    Number {
        value: i64,
    },
    Text {
        value: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Either {
    Flag(bool),
    List(Vec<Either>),
    Map(BTreeMap<String, Either>),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Strict {
    name: String,
    #[serde(default)]
    sizes: [u16; 3],
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Loose {
    id: u8,
    #[serde(flatten)]
    rest: HashMap<String, u64>,
}

/// Quotes what it refuses, as people's own types do.
#[derive(Clone, Debug, Serialize)]
struct Even(u64);

impl<'de> Deserialize<'de> for Even {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.parse() {
            Ok(number) if number % 2 == 0 => Ok(Self(number)),
            _ => Err(serde::de::Error::custom(format!("{text} is not even"))),
        }
    }
}

#[allow(clippy::too_many_arguments)]
#[retryable(source = 200)]
async fn takes(
    text: &str,
    bytes: &[u8],
    shapes: Vec<Shape>,
    tagged: Option<Tagged>,
    either: Either,
    strict: Strict,
    loose: &Loose,
    #[arg(default)] even: Option<Even>,
    map: HashMap<i32, (u8, f32)>,
) -> Result<(), String> {
    let _ = (text, bytes, shapes, tagged, either, strict, loose, even, map);
    Ok(())
}

/// Contexts that `takes` can be called with.
const CONTEXTS: &[&str] = &[
    r#"{"text":"hunter2!","bytes":[0,255],"shapes":["Unit",{"New":340282366920938463463374607431768211455},{"Pair":[-128,"é"]},{"Named":{"at":1.5e300,"deep":{"Named":{"at":-0.0,"deep":null}}}}],"tagged":{"kind":"Text","value":"hunter2!"},"either":[true,{"a":[false]}],"strict":{"name":"hunter2!","sizes":[1,2,3]},"loose":{"id":1,"x":18446744073709551615},"even":"42","map":{"-1":[1,0.1]}}"#,
    r#"{"map":{},"loose":{"id":255},"strict":{"name":""},"either":{},"tagged":null,"shapes":[],"bytes":[],"text":"","gone":{"hunter2!":["hunter2!"]}}"#,
    "{\n \"text\": \"\\u0000\\ud83d\\ude00\\\"\\\\ hunter2!\",\n \"bytes\": [1],\n \"shapes\": [],\n \"tagged\": {\"kind\":\"Number\",\"value\":-9223372036854775808},\n \"either\": false,\n \"strict\": {\"name\":\"x\"},\n \"loose\": {\"id\":0},\n \"even\": null,\n \"map\": {\"2147483647\":[0,3.4e38]}\n}",
];

const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u",
    "\\ud800",
    "null",
    "true",
    "0",
    "-",
    "1e999",
    "1e-999",
    "-0",
    "256",
    "-129",
    "340282366920938463463374607431768211456",
    "0.1",
    "\"hunter2!\"",
    "\"kind\"",
    "\"text\"",
    "\"strict\"",
    "\"shapes\"",
    "\"Named\"",
    "\"deep\"",
    "\"either\"",
    "{\"Named\":{\"at\":1,\"deep\":",
    "[[[[[[[[[[",
    "{\"a\":",
    "\n",
    "\t",
    " ",
    "\u{feff}",
    "\0",
    "é",
    "中",
    "😀",
    "/*",
    "NaN",
    "'",
    "\"even\":\"hunter2!\",",
];

/// A runtime without workers on a database of its own.
struct Bench {
    tokio: tokio::runtime::Runtime,
    db: TestDb,
    clock: ManualClock,
    retry: TaskRetry,
}

impl Bench {
    fn new() -> Self {
        let tokio = tokio::runtime::Runtime::new().unwrap();
        let clock = manual_clock();
        let (db, retry) = tokio.block_on(async {
            let db = TestDb::create(Kind::Sqlite).await.unwrap();
            let builder = db.builder().clock(clock.clone()).job(false).only::<(takes,)>();
            let retry = builder.start().await.unwrap();
            (db, retry)
        });
        Self { tokio, db, clock, retry }
    }

    fn end(self) {
        self.tokio.block_on(async {
            self.retry.shutdown().await.unwrap();
            self.db.drop().await;
        });
    }
}

#[test]
fn contexts_of_any_kind_are_taken_or_refused() {
    let bench = Bench::new();
    let (mut taken, mut refused) = (0, 0);
    let make = |rng: &mut Rng| spoilt(rng, CONTEXTS, JSON);
    fuzz("contexts", make, |text| {
        // It is checked before anything is asked of the database.
        let task = Task::new(200).context(text).delay(Duration::from_secs(3600));
        match bench.tokio.block_on(bench.retry.submit(task)) {
            Ok(_) => taken += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Context, "{error}");
                assert!(!error.to_string().contains(SECRET), "{error}");
                refused += 1;
            }
        }
    });
    println!("contexts: {taken} taken, {refused} refused");
    assert!(taken > 0 && refused > taken);
    bench.end();
}

#[test]
fn rows_of_any_kind_run_or_wait_for_code_that_can_decode_them() {
    let bench = Bench::new();
    let connection = bench.tokio.block_on(bench.db.connect());
    let mut texts: Vec<String> = Vec::new();
    let mut succeeded = 0;
    let make = |rng: &mut Rng| spoilt(rng, CONTEXTS, JSON);
    fuzz("rows", make, |text| {
        texts.push(text.to_owned());
        if texts.len() < 100 {
            return;
        }
        bench.tokio.block_on(async {
            for (id, text) in texts.iter().enumerate() {
                insert(&connection, id as i64 + 1, text).await;
            }
            let report = bench.retry.run_due(None).await.unwrap();
            assert_eq!(report.claimed, 100);
            assert_eq!(report.succeeded + report.undecodable, 100, "{report:?}");
            succeeded += report.succeeded;
            for row in bench.retry.tasks().list(Filter::all()).await.unwrap() {
                let text = row.context.as_deref().unwrap_or_default();
                assert_eq!(text, texts[row.id.get() as usize - 1]);
                match row.status {
                    Status::Succeeded => assert_eq!(row.last_error, None),
                    _ => assert_put_back(&row, &bench.clock),
                }
            }
            bench.retry.tasks().purge(Filter::all()).await.unwrap();
        });
        texts.clear();
    });
    println!("rows: {succeeded} succeeded");
    assert!(succeeded > 0);
    bench.end();
}

async fn insert(connection: &DatabaseConnection, id: i64, context: impl Into<Value>) {
    let sql = "insert into t_sys_mq_resend_log (id, project_name, source, task_name, \
               next_send_time, context) values (?, 'test', 200, 'takes', '2026-03-01 11:00:00', \
               cast(? as text))";
    let statement =
        Statement::from_sql_and_values(DbBackend::Sqlite, sql, [id.into(), context.into()]);
    connection.execute_raw(statement).await.unwrap();
}

/// It rests, nothing was counted, and its error tells no secrets.
fn assert_put_back(row: &TaskLog, clock: &ManualClock) {
    let counts = (row.fence, row.send_count, row.crash_count);
    assert_eq!(
        (row.status, &row.locked_by, counts),
        (Status::Executing, &None, (1, 0, 0)),
        "{row:?}"
    );
    assert_eq!(row.next_send_time, Some(clock.now() + Duration::from_secs(1)), "{row:?}");
    let error = row.last_error.as_deref().unwrap_or_default();
    assert!((1..=4096).contains(&error.len()) && !error.contains(SECRET), "{row:?}");
}

/// SQLite stores what it is given, and people and other programs write to the table, too.
#[test]
fn a_row_that_cannot_be_read_does_not_stop_the_others() {
    let bench = Bench::new();
    bench.tokio.block_on(async {
        let connection = bench.db.connect().await;
        insert(&connection, 1, CONTEXTS[0]).await;
        insert(&connection, 2, vec![b'{', 0xff, b'}']).await;
        insert(&connection, 3, CONTEXTS[1]).await;
        assert_eq!(bench.retry.run_due(None).await.unwrap().succeeded, 2);
        let succeeded = Filter::all().status(Status::Succeeded);
        assert_eq!(bench.retry.tasks().list(succeeded).await.unwrap().len(), 2);
        assert!(bench.retry.tasks().list(Filter::all()).await.unwrap().len() >= 2);
    });
    bench.end();
}

const YAML: &[&str] = &[
    "task-retry:\n  task-limit: 50\n  task-max-retry: 4\n  first-execute-second: 5\n  delay-base-second: 10\n  delay-multiplier: 10\n  thread-pool-param: { core-pool-size: 10, max-pool-size: 100, keep-alive-seconds: 60, queue-capacity: 1000 }\n  jitter: 0.5\n  time-zone: \"+08:00\"\n",
    "spring: { datasource: { password: hunter2! } }\ntaskRetry:\n  enable: true\n  job: off\n  leaseSecond: 30\n  threadPoolParam:\n    maxPoolSize: 8\n",
    "task-retry.task-limit: 5\nother: [1, 2, {a: b}]\n---\n...\n",
    "spring:\n  datasource:\n    url: jdbc:mysql://h/d\n    password: 'hunter2!'\n    more: [hunter2!, {x: \"hunter2!\"}]\n",
    "a: &a { b: 1 }\ntask-retry:\n  <<: *a\n  task-limit: !!int \"7\"\n  time-zone: |\n    +01:00\n",
    "a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c]\ntask-retry: { jitter: *d, task-limit: *c }\ne: [*d, *d, *d, *d, *d, *d, *d, *d]\n",
];

const TOML: &[&str] = &[
    "[task-retry]\ntask-limit = 50\ndelay-multiplier = 2.5\ntime-zone = '+08:00'\n[task-retry.thread-pool-param]\nmax-pool-size = 8\n[database]\npassword = \"hunter2!\"\n",
    "taskRetry = { enable = true, threadPoolParam = { queueCapacity = 0 } }\na.b.c = [1, 2.0, 2020-01-01T00:00:00Z, \"\"\"x\"\"\"]\n[[x]]\n",
    "[database]\npassword = 'hunter2!'\nmore = [1, 'hunter2!', { x = \"hunter2!\" }]\n",
    "task-retry.lease-second = 0x1e\ntask-retry.jitter = inf\n\"task-retry\".job = false\n",
];

const CONFIG: &[&str] = &[
    ":",
    ": ",
    "=",
    "\n",
    "\n  ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "- ",
    "? ",
    "&a ",
    "*a",
    "<<: ",
    "!!str ",
    "!!binary ",
    "| ",
    "> ",
    "#",
    "---\n",
    "...\n",
    "%YAML 1.2\n",
    "\"",
    "'",
    "\\x",
    "\\u0000",
    ".",
    "task-retry",
    "taskRetry",
    "TASK_RETRY",
    "task-limit",
    "thread-pool-param",
    "time-zone",
    "jitter",
    "lease-second",
    "enable",
    "-1",
    "0",
    "1e999",
    ".nan",
    ".inf",
    "0x10",
    "0o7",
    "1_000",
    "99999999999999999999",
    "true",
    "null",
    "~",
    "+99:99",
    "-00:01",
    "[[",
    "]]",
    "[task-retry]\n",
    "\u{feff}",
    "\0",
    "\t",
    "\r\n",
    "\u{2028}",
    "é",
    "任务",
    "😀",
    "[[[[[[[[[[",
    "{a: {a: {a: ",
];

fn configuration(rng: &mut Rng) -> String {
    match rng.bool() {
        true => spoilt(rng, YAML, CONFIG),
        false => spoilt(rng, TOML, CONFIG),
    }
}

#[test]
fn no_configuration_panics() {
    let mut valid = 0;
    fuzz("configuration", configuration, |text| {
        for config in [Config::from_yaml(text), Config::from_toml(text)] {
            match config {
                Ok(config) => {
                    valid += 1;
                    config.validate().unwrap();
                    let policy = config.policy();
                    for failures in [0, 1, 2, 3, 100, u32::MAX] {
                        let next = policy.next_delay(failures, 0.5);
                        assert!(next.is_none_or(|delay| delay <= policy.max_delay));
                    }
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Config, "{error}"),
            }
        }
        let _ = text.parse::<UtcOffset>();
    });
    assert!(valid > 0, "none is valid");
}

/// What is not ours may be somebody's password, unless it is a key.
#[test]
fn no_error_of_a_configuration_quotes_the_rest_of_the_document() {
    fuzz("secrets", configuration, |text| {
        for error in
            [Config::from_yaml(text), Config::from_toml(text)].into_iter().flat_map(Result::err)
        {
            let mut shown = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                shown = format!("{shown}: {error}");
                source = error.source();
            }
            let told = text.to_lowercase().contains("task") || shown.contains("duplicate");
            assert!(told || !shown.contains(SECRET), "{shown:?}");
        }
    });
}
