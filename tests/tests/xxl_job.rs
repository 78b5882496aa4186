//! The executor of an xxl-job admin: its protocol in every dialect, its faults, and what it runs.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use task_retry::xxl_job::{CallbackShape, XxlJobConfig};
use task_retry::{
    Builder, Call, Error, ErrorKind, Filter, ManualClock, Retryable, Status, TaskContext, TaskId,
    TaskRetry, retryable,
};
use task_retry_tests::xxl_job::{Admin, Dialect, Fault, TRIGGERED, address, raw};
use task_retry_tests::{Gate, Kind, TestDb, becomes, contract, manual_clock, on, task, until};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// Where attempts write down which task they ran.
#[derive(Default)]
struct Ran(Mutex<Vec<i64>>);

impl Ran {
    fn ids(&self) -> Vec<i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[retryable(source = 100, max_retry = 3, first_execute = "1m")]
async fn note(
    fails: bool,
    #[context] context: &TaskContext,
    #[state] ran: &Ran,
) -> Result<(), String> {
    ran.0.lock().unwrap_or_else(PoisonError::into_inner).push(context.task().id.get());
    if fails { Err("told to".into()) } else { Ok(()) }
}

#[retryable(source = 101)]
async fn gated(#[state] gate: &Gate) -> Result<(), String> {
    gate.pass().await;
    Ok(())
}

/// A folder for logs, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!("task-retry-xxl-{}-{:x}", std::process::id(), fastrand::u64(..));
        Self(std::env::temp_dir().join(name))
    }

    fn callbacks(&self) -> usize {
        std::fs::read_dir(self.0.join("callbacks")).map_or(0, Iterator::count)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(admin: &Admin, folder: &Folder) -> XxlJobConfig {
    let mut config = XxlJobConfig::new(&admin.url());
    config.access_token = Some("default_token".to_owned());
    config.port = 0;
    // Nothing is to depend on how busy this machine is.
    config.timeout_second = 30;
    config.log_path = Some(folder.0.clone());
    config
}

fn builder(db: &TestDb, config: XxlJobConfig) -> Builder {
    db.builder()
        .only::<(note, gated)>()
        .shared_state(Arc::new(Ran::default()))
        .shared_state(Arc::new(Gate::default()))
        .xxl_job(config)
}

/// An executor with its admin, on SQLite.
struct Scene {
    db: TestDb,
    admin: Admin,
    folder: Folder,
    retry: TaskRetry,
    clock: ManualClock,
    gate: Arc<Gate>,
    at: String,
}

impl Scene {
    async fn new(dialect: Dialect) -> Self {
        let admin = Admin::start(dialect, Some("default_token")).await;
        Self::with(admin, |_| {}).await
    }

    async fn with(admin: Admin, change: impl FnOnce(&mut XxlJobConfig)) -> Self {
        let db = TestDb::create(Kind::Sqlite).await.expect("SQLite is always there");
        let (folder, clock) = (Folder::new(), manual_clock());
        let gate = Arc::new(Gate::default());
        let mut config = config(&admin, &folder);
        change(&mut config);
        let registers = config.access_token.is_some();
        let retry = db
            .builder()
            .only::<(note, gated)>()
            .state(Ran::default())
            .shared_state(gate.clone())
            .clock(clock.clone())
            .xxl_job(config)
            .start()
            .await
            .expect("it starts");
        let at = if registers { admin.registered(1).await.remove(0) } else { String::new() };
        Self { db, admin, folder, retry, clock, gate, at }
    }

    /// Stores a call that is due, and that no worker takes.
    async fn due(&self, fails: bool) -> TaskId {
        self.becomes_due(note(fails)).await
    }

    async fn due_gated(&self) -> TaskId {
        self.becomes_due(gated()).await
    }

    async fn becomes_due<R: Retryable>(&self, call: Call<R>) -> TaskId {
        let call = call.on(&self.retry).delay(Duration::from_millis(1));
        let id = call.enqueue().await.expect("it is stored").id();
        self.clock.advance(Duration::from_millis(1));
        id
    }

    /// A run that goes on until the gate opens.
    async fn long_run(&self, job: &Value) -> i64 {
        let came = self.gate.came();
        self.due_gated().await;
        let (log_id, answer) = self.admin.trigger(&self.at, job).await;
        assert_eq!(answer["code"], 200, "{answer}");
        self.gate.wait_for(came + 1).await;
        log_id
    }

    async fn is_busy(&self, job: i64) -> bool {
        let answer =
            self.admin.ask(&self.at, "idleBeat", &json!({ "jobId": job }).to_string()).await;
        answer["code"] != 200
    }

    /// Moves the clock on, second by second, until a condition holds, and tells how many that were.
    async fn seconds_until(&self, what: &str, condition: impl AsyncFn() -> bool) -> u64 {
        let seconds = Cell::new(0);
        until(what, async || {
            if condition().await {
                return true;
            }
            self.clock.advance(Duration::from_secs(1));
            seconds.set(seconds.get() + 1);
            false
        })
        .await;
        seconds.get()
    }

    fn blank(&self) -> Value {
        self.admin.job("taskRetryJob", "blank")
    }

    async fn end(self) {
        self.gate.open(1000);
        self.retry.shutdown().await.expect("it shuts down");
        until("it is unregistered", async || self.admin.executors().is_empty()).await;
        self.db.drop().await;
    }
}

async fn in_every_dialect(shape: impl Fn(Dialect) -> CallbackShape) {
    for dialect in Dialect::ALL {
        let admin = Admin::start(dialect, Some("default_token")).await;
        let scene = Scene::with(admin, |config| config.callback_shape = shape(dialect)).await;
        let registration = scene.admin.requests("/api/registry").remove(0);
        assert_eq!(registration.header("xxl-job-appname"), Some("test"), "sent to every admin");
        assert_eq!(registration.body["registryKey"], "test");
        let own = registration.body["registryValue"].as_str().unwrap();
        assert!(own.starts_with("http://127.0.0.1:") && own.ends_with('/'), "{own}");
        assert_eq!(scene.admin.ask(&scene.at, "beat", "").await["code"], 200);

        let (good, bad) = (scene.due(false).await, scene.due(true).await);
        let job = scene.blank();
        let (code, text) = scene.admin.run(&scene.at, &job).await;
        assert_eq!((code, &*text), (200, "2 tasks run, 1 succeeded, 1 failed and will be retried"));
        assert_eq!(task(&scene.retry, good).await.status, Status::Succeeded);
        assert_eq!(task(&scene.retry, bad).await.status, Status::Retrying);
        let page = scene.admin.log(&scene.at, job["logId"].as_i64().unwrap(), 1).await;
        let lines = page["logContent"].as_str().unwrap();
        for part in [
            "taskRetryJob: all due tasks",
            &format!("task {good}: succeeded"),
            &format!("task {bad}: failed, will be retried"),
            "ended with 200: 2 tasks run",
        ] {
            assert!(lines.contains(part), "{part} in {lines}");
        }
        assert_eq!((&page["fromLineNum"], &page["isEnd"]), (&json!(1), &json!(true)));
        assert_eq!(page["toLineNum"], lines.lines().count());

        let job = scene.admin.job("removeHistory", "");
        assert_eq!(scene.admin.run(&scene.at, &job).await, (200, "0 tasks removed".to_owned()));
        until("the disk forgets what was told", async || scene.folder.callbacks() == 0).await;
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_dialect_is_spoken() {
    in_every_dialect(|_| CallbackShape::Auto).await;
    in_every_dialect(|dialect| match dialect {
        Dialect::New => CallbackShape::Object,
        _ => CallbackShape::Array,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registration_is_renewed_every_30_s() {
    let scene = Scene::new(Dialect::Middle).await;
    let count = || scene.admin.requests("/api/registry").len();
    for renewed in 2..5 {
        let seconds = scene.seconds_until("it is renewed", async || count() == renewed).await;
        // One may have been counted too early.
        assert!(seconds >= 29, "renewed after {seconds} s");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_wait_for_the_admin_but_first_attempts_do_not() {
    let scene = Scene::new(Dialect::Old).await;
    let first = note(false).on(&scene.retry).enqueue().await.unwrap().id();
    becomes(&scene.retry, first, Status::Succeeded).await;
    let due = scene.due(false).await;
    scene.retry.kick();
    // Three polls of workers that looked for themselves.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(task(&scene.retry, due).await.status, Status::Executing);
    assert_eq!(scene.admin.run(&scene.at, &scene.blank()).await.0, 200);
    assert_eq!(task(&scene.retry, due).await.status, Status::Succeeded);
    scene.end().await;

    let admin = Admin::start(Dialect::Old, Some("default_token")).await;
    let scene = Scene::with(admin, |config| config.with_workers = true).await;
    let due = scene.due(false).await;
    becomes(&scene.retry, due, Status::Succeeded).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_are_blank_or_ids() {
    let scene = Scene::new(Dialect::Middle).await;
    let ids = [scene.due(false).await, scene.due(false).await, scene.due(false).await];
    let params = format!("{}, {}", ids[0], ids[2]);
    let job = scene.admin.job("taskRetryJob", &params);
    assert_eq!(scene.admin.run(&scene.at, &job).await.1, "2 of 2 tasks run, 2 succeeded");
    assert_eq!(task(&scene.retry, ids[1]).await.status, Status::Executing);
    // Whatever its status; one that is not there does not matter.
    let job = scene.admin.job("taskRetryJob", &format!("{},1", ids[0]));
    let (code, text) = scene.admin.run(&scene.at, &job).await;
    assert!(code == 200 && text.starts_with("1 of 2 tasks run, 1 succeeded; the others"), "{text}");
    let (_, answer) =
        scene.admin.trigger(&scene.at, &scene.admin.job("taskRetryJob", "orders")).await;
    assert_eq!(answer["code"], 500);
    let text = answer["msg"].as_str().unwrap();
    assert!(text.contains("\"orders\": write `blank` or nothing"), "{text}");
    assert_eq!(scene.admin.run(&scene.at, &scene.admin.job("taskRetryJob", "")).await.0, 200);
    assert_eq!(task(&scene.retry, ids[1]).await.status, Status::Succeeded);
    let mut job = scene.blank();
    job["executorParams"] = Value::Null;
    assert_eq!(scene.admin.run(&scene.at, &job).await.0, 200);
    let (_, answer) = scene.admin.trigger(&scene.at, &scene.admin.job("demoJob", "")).await;
    assert_eq!(answer["code"], 500);
    let text = answer["msg"].as_str().unwrap();
    assert!(text.starts_with("job handler [demoJob] not found."), "{text}");
    let mut job = scene.blank();
    job["glueType"] = json!("GLUE_GROOVY");
    assert_eq!(scene.admin.trigger(&scene.at, &job).await.1["code"], 500);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_the_admin_are_sat_out() {
    let faults =
        [Fault::Away, Fault::Code(500), Fault::Code(203), Fault::Empty, Fault::Status(404)];
    for fault in faults {
        let admin = Admin::start(Dialect::Middle, Some("default_token")).await;
        let scene = Scene::with(admin, |_| {}).await;
        scene.due(false).await;
        scene.admin.fault(fault);
        let (log_id, answer) = scene.admin.trigger(&scene.at, &scene.blank()).await;
        assert_eq!(answer["code"], 200);
        let count = || scene.admin.requests("/api/callback").len();
        let kept = async || {
            let log = scene.admin.log(&scene.at, log_id, 1).await;
            log["isEnd"] == true && (fault == Fault::Away || count() >= 2)
        };
        until("the run ends, and its end is refused in both shapes", kept).await;
        assert_eq!(scene.folder.callbacks(), 1, "kept after {fault:?}");
        scene.admin.fault(Fault::Chunked);
        let comes = async || {
            // Its pause may begin only now.
            scene.clock.advance(Duration::from_secs(30));
            !scene.admin.callbacks(log_id).is_empty()
        };
        until("it comes later", comes).await;
        assert_eq!(scene.admin.callbacks(log_id).len(), 1);
        until("it is forgotten", async || scene.folder.callbacks() == 0).await;
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_that_is_away_at_the_start_is_no_error() {
    let admin = Admin::start(Dialect::New, Some("default_token")).await;
    admin.fault(Fault::Away);
    let db = TestDb::create(Kind::Sqlite).await.unwrap();
    let (folder, clock) = (Folder::new(), manual_clock());
    let other = Admin::start(Dialect::New, Some("default_token")).await;
    let mut config = config(&admin, &folder);
    let retry = builder(&db, config.clone()).clock(clock.clone()).start().await.unwrap();
    admin.fault(Fault::None);
    let comes = async || {
        clock.advance(Duration::from_secs(30));
        admin.executors().len() == 1
    };
    until("it is registered when the admin is back", comes).await;
    retry.shutdown().await.unwrap();
    // Of two, the first that answers.
    admin.fault(Fault::Away);
    config.admin_addresses.push(other.url());
    let retry = builder(&db, config).start().await.unwrap();
    other.registered(1).await;
    retry.shutdown().await.unwrap();
    assert!(other.executors().is_empty());
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_opens_nothing() {
    let admin = Admin::start(Dialect::Middle, Some("another")).await;
    let db = TestDb::create(Kind::Sqlite).await.unwrap();
    let folder = Folder::new();
    let retry = builder(&db, config(&admin, &folder)).start().await.unwrap();
    until("it asks", async || !admin.requests("/api/registry").is_empty()).await;
    assert!(admin.executors().is_empty());
    let own = admin.requests("/api/registry")[0].body["registryValue"].as_str().unwrap().to_owned();
    for path in ["beat", "idleBeat", "run", "trigger", "kill", "log"] {
        let answer = admin.ask(&own, path, &admin.job("taskRetryJob", "").to_string()).await;
        assert_eq!(answer, json!({ "code": 500, "msg": "The access token is wrong." }), "{path}");
    }
    retry.shutdown().await.unwrap();
    // Without a token, on loopback, none is asked for and none is sent.
    let admin = Admin::start(Dialect::Middle, None).await;
    let mut config = config(&admin, &folder);
    config.access_token = None;
    let retry = builder(&db, config).start().await.unwrap();
    let at = admin.registered(1).await.remove(0);
    assert_eq!(admin.run(&at, &admin.job("taskRetryJob", "")).await.0, 200);
    retry.shutdown().await.unwrap();
    db.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_read_byte_by_byte() {
    let scene = Scene::new(Dialect::Old).await;
    let at = address(&scene.at);
    let request = |line: &str, body: &str| {
        format!(
            "{line} HTTP/1.1\r\nHost: {at}\r\nxxl-job-access-token: default_token\r\nConnection: close\r\n\
             Accept-Encoding: gzip\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let ask = async |line: &str, body: &str| {
        let answer = raw(&at, &request(line, body)).await;
        assert!(!answer.head.contains("content-encoding"), "{answer:?}");
        assert!(answer.head.contains("content-type: application/json"), "{answer:?}");
        answer.json()
    };
    for path in ["/run", "//run", "/trigger", "/prefix/run", "/a/b//trigger", "/run/"] {
        let job = scene.blank();
        let answer = ask(&format!("POST {path}"), &job.to_string()).await;
        assert_eq!(answer, json!({ "code": 200 }), "no payload: {path}");
        assert_eq!(scene.admin.ended(job["logId"].as_i64().unwrap()).await.0, 200);
    }
    for (line, body, part) in [
        ("GET /run", "", "POST is"),
        ("POST /run", "{", "not understood"),
        ("POST /run", "", "not understood"),
        ("POST /run", "{\"jobId\":1}", "logId"),
        (
            "POST /run",
            &scene.admin.job("taskRetryJob", "订单").to_string(),
            "\"订单\": write `blank`",
        ),
        ("POST /log", "[]", "not understood"),
        ("POST /", "{}", "nothing at /"),
        ("POST /runs", "{}", "beat, idleBeat, run, trigger, kill and log"),
        ("POST /run", &" ".repeat(2 << 20), "more than"),
    ] {
        let answer = ask(line, body).await;
        assert_eq!(answer["code"], 500, "{line}: {answer}");
        assert!(answer["msg"].as_str().unwrap().contains(part), "{line}: {answer}");
    }
    let page = ask(
        "POST /log",
        &json!({ "logId": 999, "logDateTim": TRIGGERED, "fromLineNum": 5 }).to_string(),
    )
    .await;
    assert_eq!(page["content"], page["data"], "both names");
    assert_eq!((&page["data"]["toLineNum"], &page["data"]["isEnd"]), (&json!(4), &json!(true)));
    // One connection for two requests, as Java's client keeps it.
    let beat = format!(
        "POST /beat HTTP/1.1\r\nHost: {at}\r\nXXL-JOB-ACCESS-TOKEN: default_token\r\n\r\n{}",
        request("POST //beat", "\"\"")
    );
    let answer = raw(&at, &beat).await;
    assert_eq!(answer.body.matches("{\"code\":200}").count(), 2, "{answer:?}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_that_is_sent_twice_runs_once() {
    let scene = Scene::new(Dialect::Middle).await;
    scene.due(true).await;
    for strategy in ["SERIAL_EXECUTION", "DISCARD_LATER", "COVER_EARLY"] {
        let mut job = scene.blank();
        job["executorBlockStrategy"] = json!(strategy);
        let log_id = scene.long_run(&job).await;
        // The client goes away without an answer, and sends it again.
        let body = job.to_string();
        let text = format!(
            "POST /run HTTP/1.1\r\nHost: x\r\nXXL-JOB-ACCESS-TOKEN: default_token\r\nContent-Length: \
             {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(address(&scene.at)).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        drop(stream);
        assert_eq!(scene.admin.trigger(&scene.at, &job).await.1["code"], 200);
        scene.gate.open(1);
        let ended = scene.admin.ended(log_id).await;
        assert_eq!(ended.0, 200, "{strategy}: {}", ended.1);
        // Also when it has ended.
        assert_eq!(scene.admin.trigger(&scene.at, &job).await.1["code"], 200);
        assert!(!scene.is_busy(3).await);
        assert_eq!(scene.admin.callbacks(log_id).len(), 1);
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn block_strategies_decide_what_a_busy_job_does() {
    let scene = Scene::new(Dialect::Middle).await;
    let with = |strategy: &str| {
        let mut job = scene.blank();
        job["executorBlockStrategy"] = json!(strategy);
        job
    };
    assert!(!scene.is_busy(3).await);
    let first = scene.long_run(&with("SERIAL_EXECUTION")).await;
    assert!(scene.is_busy(3).await && !scene.is_busy(4).await);

    let (second, answer) = scene.admin.trigger(&scene.at, &with("SERIAL_EXECUTION")).await;
    assert_eq!(answer["code"], 200, "queued");
    let (third, answer) = scene.admin.trigger(&scene.at, &with("DISCARD_LATER")).await;
    assert_eq!(answer["code"], 500);
    assert!(answer["msg"].as_str().unwrap().contains("DISCARD_LATER"), "{answer}");
    // Another job is not in the way.
    let mut other = with("DISCARD_LATER");
    other["jobId"] = json!(4);
    assert_eq!(scene.admin.run(&scene.at, &other).await.0, 200);
    assert!(scene.admin.callbacks(first).is_empty() && scene.admin.callbacks(second).is_empty());
    scene.gate.open(1);
    assert_eq!(scene.admin.ended(first).await.0, 200);
    assert_eq!(scene.admin.ended(second).await.0, 200);

    let running = scene.long_run(&with("SERIAL_EXECUTION")).await;
    let (queued, _) = scene.admin.trigger(&scene.at, &with("SERIAL_EXECUTION")).await;
    let (code, _) = scene.admin.run(&scene.at, &with("COVER_EARLY")).await;
    assert_eq!(code, 200);
    for replaced in [running, queued] {
        let (code, text) = scene.admin.ended(replaced).await;
        assert!(code == 500 && text.contains("COVER_EARLY"), "{code}: {text}");
    }
    assert!(scene.admin.callbacks(third).is_empty(), "what was discarded calls nobody back");
    // What had begun goes on.
    let waiting = scene.retry.tasks().list(Filter::all().source(101)).await.unwrap();
    scene.gate.open(1);
    for task in waiting {
        becomes(&scene.retry, task.id, Status::Succeeded).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_stopped_by_its_time_out_and_by_kill() {
    let scene = Scene::new(Dialect::New).await;
    let mut job = scene.blank();
    job["executorTimeout"] = json!(10);
    let log_id = scene.long_run(&job).await;
    let ended = async || !scene.admin.callbacks(log_id).is_empty();
    let seconds = scene.seconds_until("it is told", ended).await;
    assert!(seconds >= 10, "ended after {seconds} s");
    let (code, text) = scene.admin.ended(log_id).await;
    assert!(code == 502 && text.contains("10 s"), "{code}: {text}");
    assert!(!scene.is_busy(3).await);

    let running = scene.long_run(&scene.blank()).await;
    let (queued, _) = scene.admin.trigger(&scene.at, &scene.blank()).await;
    let kill = json!({ "jobId": 3 }).to_string();
    assert_eq!(scene.admin.ask(&scene.at, "kill", &kill).await["code"], 200);
    for killed in [running, queued] {
        let (code, text) = scene.admin.ended(killed).await;
        assert!(code == 500 && text.starts_with("killed"), "{code}: {text}");
        assert_eq!(scene.admin.log(&scene.at, killed, 1).await["isEnd"], true);
    }
    assert_eq!(scene.admin.ask(&scene.at, "kill", &kill).await["code"], 200, "nothing is there");
    assert_eq!(scene.admin.run(&scene.at, &scene.blank()).await.0, 200);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_grow_and_come_in_pages() {
    let scene = Scene::new(Dialect::Middle).await;
    let log_id = scene.long_run(&scene.blank()).await;
    let first = scene.admin.log(&scene.at, log_id, 1).await;
    assert_eq!((&first["toLineNum"], &first["isEnd"]), (&json!(1), &json!(false)));
    let none = scene.admin.log(&scene.at, log_id, 2).await;
    assert_eq!(none, json!({ "fromLineNum": 2, "toLineNum": 1, "logContent": "", "isEnd": false }));
    scene.gate.open(1);
    scene.admin.ended(log_id).await;
    let rest = scene.admin.log(&scene.at, log_id, 2).await;
    assert_eq!((&rest["toLineNum"], &rest["isEnd"]), (&json!(3), &json!(true)));
    let past = scene.admin.log(&scene.at, log_id, 4).await;
    assert_eq!((&past["toLineNum"], &past["isEnd"]), (&json!(3), &json!(true)));
    // Escaped for admins that show it as it is.
    let (refused, answer) = scene.admin.trigger(&scene.at, &scene.admin.job("<b>", "")).await;
    assert_eq!(answer["code"], 500);
    assert_eq!(scene.admin.log(&scene.at, refused, 1).await["isEnd"], true, "it has no log");
    assert!(scene.folder.0.join("2026-11-23").exists(), "filed by the day of the trigger");
    // Kept for thirty days.
    scene.clock.set("2026-12-23T12:00:00Z".parse().unwrap());
    scene.clock.advance(Duration::from_secs(3600));
    assert!(scene.folder.0.join("2026-11-23").exists());
    let gone = async || {
        scene.clock.advance(Duration::from_secs(24 * 3600));
        !scene.folder.0.join("2026-11-23").exists()
    };
    until("old logs are removed", gone).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_are_told_fifty_at_a_time() {
    let scene = Scene::new(Dialect::Old).await;
    scene.admin.fault(Fault::Away);
    let mut logs = Vec::new();
    for _ in 0..120 {
        let (log_id, answer) = scene.admin.trigger(&scene.at, &scene.blank()).await;
        assert_eq!(answer["code"], 200);
        logs.push(log_id);
    }
    until("they have run", async || !scene.is_busy(3).await).await;
    assert_eq!(scene.folder.callbacks(), 120);
    scene.admin.fault(Fault::None);
    let told = async || {
        scene.clock.advance(Duration::from_secs(30));
        scene.folder.callbacks() == 0
    };
    until("all are told", told).await;
    for log_id in logs {
        assert_eq!(scene.admin.callbacks(log_id).len(), 1, "run {log_id}");
    }
    let sizes: Vec<usize> = scene
        .admin
        .requests("/api/callback")
        .iter()
        .map(|request| request.body.as_array().unwrap().len())
        .collect();
    assert_eq!(sizes.iter().sum::<usize>(), 120);
    assert!(sizes.contains(&50), "{sizes:?}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_ends_what_runs_and_tells_the_admin() {
    let scene = Scene::new(Dialect::New).await;
    let ends = scene.long_run(&scene.blank()).await;
    let (queued, _) = scene.admin.trigger(&scene.at, &scene.blank()).await;
    let retry = scene.retry.clone();
    let shutdown = tokio::spawn(async move { retry.shutdown().await });
    until("it is unregistered first", async || scene.admin.executors().is_empty()).await;
    scene.gate.open(1);
    let (code, text) = scene.admin.ended(queued).await;
    assert!(code == 500 && text.contains("shut down"), "{text}");
    shutdown.await.unwrap().unwrap();
    let (code, text) = scene.admin.ended(ends).await;
    assert!(
        code == 500 && text.contains("shut down meanwhile: 1 tasks run, 1 succeeded"),
        "{text}"
    );
    assert_eq!(scene.folder.callbacks(), 0);
    assert!(TcpStream::connect(address(&scene.at)).await.is_err(), "nobody listens");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_end_is_lost_when_a_run_and_the_executor_end_together() {
    for _ in 0..20 {
        let scene = Scene::new(Dialect::New).await;
        let mut logs = Vec::new();
        for _ in 0..3 {
            logs.push(scene.admin.trigger(&scene.at, &scene.blank()).await.0);
        }
        scene.retry.shutdown().await.unwrap();
        for log_id in logs {
            assert!(!scene.admin.callbacks(log_id).is_empty(), "the admin was told of {log_id}");
        }
        scene.end().await;
    }
}

struct Executor(Child);

impl Executor {
    async fn start(db: &TestDb, admin: &Admin, folder: &Folder) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_executor"))
            .args([&db.url, &admin.url(), &folder.0.display().to_string()])
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the executor can be started");
        Self(child)
    }

    async fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().await.expect("it ends").success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callbacks_outlive_kill_9() {
    on(Kind::Sqlite, async |db: Arc<TestDb>| {
        let admin = Admin::start(Dialect::Middle, Some("default_token")).await;
        let folder = Folder::new();
        let mut child = Executor::start(&db, &admin, &folder).await;
        let at = admin.registered(1).await.remove(0);
        let insert = |id: i64, source: i32, name: &str| {
            format!(
                "insert into t_sys_mq_resend_log (id, project_name, source, task_name, context, \
                 next_send_time) values ({id}, 'test', {source}, '{name}', '{{}}', '2020-01-01 00:00:00.000')"
            )
        };
        // One has ended while the admin was away, and one runs.
        db.execute(&insert(1, 1101, "ends")).await;
        admin.fault(Fault::Away);
        let job = admin.job("taskRetryJob", "");
        let (ended, _) = admin.trigger(&at, &job).await;
        until("it has ended", async || admin.log(&at, ended, 1).await["isEnd"] == true).await;
        db.execute(&insert(2, 1100, "hangs")).await;
        let hanging = admin.job("taskRetryJob", "");
        let (runs, _) = admin.trigger(&at, &hanging).await;
        let (queued, _) = admin.trigger(&at, &admin.job("taskRetryJob", "")).await;
        until("it runs", async || admin.log(&at, runs, 1).await["toLineNum"] == 1).await;
        child.0.kill().await.expect("it is killed");
        assert_eq!(folder.callbacks(), 3);
        admin.fault(Fault::None);

        let child = Executor::start(&db, &admin, &folder).await;
        assert_eq!(admin.ended(ended).await, (200, "1 tasks run, 1 succeeded".to_owned()));
        for lost in [runs, queued] {
            let (code, text) = admin.ended(lost).await;
            assert!(code == 500 && text.contains("process ended before this run did"), "{text}");
        }
        // What was seen before the crash is known after it.
        // The dead one is still registered, as it would be for 90 s.
        let now = admin.registered(2).await.into_iter().find(|it| *it != at).unwrap();
        assert_eq!(admin.trigger(&now, &job).await.1["code"], 200);
        assert_eq!(admin.ask(&now, "idleBeat", "{\"jobId\":3}").await["code"], 200);
        until("told once", async || folder.callbacks() == 0).await;
        assert_eq!(admin.callbacks(ended).len(), 1);
        child.end().await;
    })
    .await;
}

/// A broadcast to three executors, each of them with its share, runs every due row exactly once.
async fn a_broadcast_runs_each_row_once(db: Arc<TestDb>) {
    const ROWS: usize = 300;
    let admin = Admin::start(Dialect::Middle, Some("default_token")).await;
    let ran = Arc::new(Ran::default());
    let (mut folders, mut executors) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let folder = Folder::new();
        let builder = db.builder().only::<(note,)>().shared_state(ran.clone()).task_limit(20);
        executors.push(builder.xxl_job(config(&admin, &folder)).start().await.unwrap());
        folders.push(folder);
    }
    let at = admin.registered(3).await;
    let mut calls = Vec::new();
    for _ in 0..ROWS {
        calls.push(note(false).on(&executors[0]).delay(Duration::from_millis(1)));
    }
    let stored = task_retry::enqueue_all(calls).await.unwrap();
    // Due times are rounded down.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let one = stored[0].id();
    // A share that is alone runs its own rows only.
    let mut logs = Vec::new();
    for (index, at) in at.iter().enumerate() {
        let mut job = admin.job("taskRetryJob", "blank");
        job["broadcastIndex"] = json!(index);
        job["broadcastTotal"] = json!(3);
        if index == 0 {
            let (code, text) = admin.run(at, &job).await;
            assert_eq!(code, 200, "{text}");
            assert!(ran.ids().iter().all(|id| id % 3 == 0), "only its share");
            let share = stored.iter().filter(|one| one.id().get() % 3 == 0).count();
            assert_eq!(ran.ids().len(), share, "the whole share");
        } else {
            logs.push(admin.trigger(at, &job).await);
        }
    }
    for (log_id, answer) in logs {
        assert_eq!(answer["code"], 200);
        assert_eq!(admin.ended(log_id).await.0, 200);
    }
    let mut runs: HashMap<i64, usize> = HashMap::new();
    ran.ids().into_iter().for_each(|id| *runs.entry(id).or_default() += 1);
    assert_eq!(runs.len(), ROWS);
    assert!(runs.values().all(|runs| *runs == 1), "{runs:?}");
    // Ids are shared out as well: one of the three runs it.
    let mut claimed = 0;
    for (index, at) in at.iter().enumerate() {
        let mut job = admin.job("taskRetryJob", &one.to_string());
        job["broadcastIndex"] = json!(index);
        job["broadcastTotal"] = json!(3);
        let (_, text) = admin.run(at, &job).await;
        claimed += usize::from(text.starts_with("1 tasks run"));
    }
    assert_eq!(claimed, 1);
    let error = executors[0].run_due_shard(3, 3).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    for executor in executors {
        executor.shutdown().await.unwrap();
    }
    assert!(admin.executors().is_empty());
}

/// History is removed at the admin's word.
async fn history_is_removed_when_it_is_triggered(db: Arc<TestDb>) {
    let admin = Admin::start(Dialect::Old, Some("default_token")).await;
    let (folder, clock) = (Folder::new(), manual_clock());
    let builder = builder(&db, config(&admin, &folder)).clock(clock.clone());
    let retry = builder.start().await.unwrap();
    let at = admin.registered(1).await.remove(0);
    note(false).on(&retry).await.unwrap();
    note(true).on(&retry).await.unwrap_err();
    clock.advance(Duration::from_secs(8 * 86_400));
    let job = admin.job("removeHistory", "");
    assert_eq!(admin.run(&at, &job).await, (200, "1 tasks removed".to_owned()));
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 1);
    let (code, text) = admin.run(&at, &admin.job("taskRetryJob", "")).await;
    assert_eq!((code, &*text), (200, "1 tasks run, 1 failed and will be retried"));
    // A database that cannot be asked is the run's failure.
    db.execute("alter table t_sys_mq_resend_log rename to moved").await;
    let (code, text) = admin.run(&at, &admin.job("removeHistory", "")).await;
    assert_eq!(code, 500, "{text}");
    db.execute("alter table moved rename to t_sys_mq_resend_log").await;
    retry.shutdown().await.unwrap();
}

contract!(a_broadcast_runs_each_row_once, history_is_removed_when_it_is_triggered);

/// Where nothing else listens, since it listens on every interface: in a network namespace of its own.
#[tokio::test]
async fn an_admin_of_somebody_else_triggers_and_sees_the_runs() {
    let Some(ratchjob) = task_retry_tests::broker("TASK_RETRY_TEST_RATCHJOB") else { return };
    if ratchjob == "none" {
        eprintln!("skipped: no network namespace can be made here");
        return;
    }
    let mut unshare = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let beside = env!("CARGO_BIN_EXE_beside_ratchjob");
    unshare.args([
        "--net",
        "sh",
        "-c",
        "ip link set lo up && exec \"$0\" \"$1\"",
        beside,
        &ratchjob,
    ]);
    let status =
        tokio::time::timeout(Duration::from_secs(120), unshare.kill_on_drop(true).status());
    assert!(status.await.expect("it ends").expect("unshare is there").success(), "see above");
}

async fn refusal(builder: Builder) -> Error {
    match builder.start().await {
        Err(error) => error,
        Ok(_) => panic!("it has started"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_refused_at_the_start() {
    let db = TestDb::create(Kind::Sqlite).await.unwrap();
    let folder = Folder::new();
    let admin = Admin::start(Dialect::Old, None).await;
    let bad = |change: &dyn Fn(&mut XxlJobConfig)| {
        let mut config = config(&admin, &folder);
        change(&mut config);
        builder(&db, config)
    };
    let error = refusal(bad(&|config| config.admin_addresses.clear())).await;
    assert!(error.to_string().contains("xxl-job.admin-addresses is missing"), "{error}");
    let open = refusal(bad(&|config| {
        config.ip = "0.0.0.0".parse().unwrap();
        config.access_token = None;
    }))
    .await;
    assert!(open.to_string().contains("access-token is missing"), "{open}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = refusal(bad(&|config| config.port = port)).await;
    assert!(error.to_string().contains(&format!("cannot listen on 127.0.0.1:{port}")), "{error}");
    let file = std::env::temp_dir().join(format!("task-retry-file-{:x}", fastrand::u64(..)));
    std::fs::write(&file, "").unwrap();
    let error = refusal(bad(&|config| config.log_path = Some(file.clone()))).await;
    assert!(error.to_string().contains("cannot be written"), "{error}");
    std::fs::remove_file(file).unwrap();
    match bad(&|config| config.admin_addresses = vec!["https://127.0.0.1:1".into()]).start().await {
        Ok(retry) => retry.shutdown().await.unwrap(),
        Err(error) => assert!(error.to_string().contains("ca-certificates"), "{error}"),
    }
    let error = refusal(bad(&|_| {}).project("商店")).await;
    assert!(error.to_string().contains("xxl-job.app-name is \"商店\""), "{error}");

    let retry = bad(&|_| {}).start().await.unwrap();
    let error = refusal(bad(&|_| {})).await;
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("in use by another executor"), "{error}");
    retry.shutdown().await.unwrap();
    // Neither without jobs nor without anything stored is there an executor.
    for builder in [bad(&|_| {}).job(false), bad(&|_| {}).enable(false)] {
        let seen = admin.requests("/api/registry").len();
        let retry = builder.start().await.unwrap();
        retry.shutdown().await.unwrap();
        assert_eq!(admin.requests("/api/registry").len(), seen);
    }
    db.drop().await;
}
