//! An executor and the xxl-job admin `ratchjob`, whose path is the argument. To be run in a network
//! namespace of its own: that admin listens on every interface. Panics if they do not understand
//! each other.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use task_retry::xxl_job::XxlJobConfig;
use task_retry::{Status, TaskRetry, retryable};
use task_retry_tests::xxl_job::raw;
use task_retry_tests::{becomes, until};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

const API: &str = "127.0.0.1:8725";
const CONSOLE: &str = "127.0.0.1:8825";

/// Ends at once.
#[retryable(source = 1100)]
async fn ends() -> Result<(), String> {
    Ok(())
}

/// Takes too long for its job's time-out.
#[retryable(source = 1101)]
async fn hangs() -> Result<(), String> {
    std::future::pending().await
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let ratchjob = std::env::args().nth(1).expect("one argument: the program ratchjob");
    let name = format!("task-retry-ratchjob-{}-{:x}", std::process::id(), fastrand::u64(..));
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir(&folder).expect("a folder");
    let mut admin = admin(&ratchjob, &folder);
    until("the admin listens", async || {
        TcpStream::connect(API).await.is_ok() && TcpStream::connect(CONSOLE).await.is_ok()
    })
    .await;
    work(&folder).await;
    admin.kill().await.expect("the admin is killed");
    std::fs::remove_dir_all(folder).expect("the folder is removed");
}

fn admin(ratchjob: &str, folder: &Path) -> Child {
    let log = std::fs::File::create(folder.join("admin.log")).expect("a file");
    Command::new(ratchjob)
        .env("RATCH_DATA_DIR", folder.join("admin"))
        .env("RATCH_HTTP_API_PORT", "8725")
        .env("RATCH_CONSOLE_ENABLE_CAPTCHA", "false")
        .env("RATCH_INIT_ADMIN_USERNAME", "admin")
        .env("RATCH_INIT_ADMIN_PASSWORD", "admin")
        .env("RATCH_XXL_DEFAULT_ACCESS_TOKEN", "default_token")
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file"))
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .expect("ratchjob can be started")
}

async fn work(folder: &Path) {
    let mut xxl_job = XxlJobConfig::new(&format!("http://{API}/xxl-job-admin"));
    xxl_job.access_token = Some("default_token".to_owned());
    xxl_job.port = 0;
    xxl_job.timeout_second = 30;
    xxl_job.log_path = Some(folder.join("logs"));
    let retry = TaskRetry::builder()
        .project("shop")
        .database(format!("sqlite://{}?mode=rwc", folder.join("shop.db").display()))
        .xxl_job(xxl_job)
        .shutdown_grace_second(1)
        .start()
        .await
        .expect("the runtime starts");
    let due = ends().delay(Duration::from_millis(1)).enqueue().await.expect("it is stored").id();
    let blank = job("taskRetryJob", "blank").await;
    let bad = job("taskRetryJob", "orders").await;
    let history = job("removeHistory", "").await;

    becomes(&retry, due, Status::Succeeded).await;
    ends_as(blank, "SUCCESS").await;
    ends_as(history, "SUCCESS").await;
    let refused = ends_as(bad, "FAIL").await;
    let message = refused["triggerMessage"].as_str().expect("a text");
    assert!(message.contains("write `blank` or nothing"), "{message}");

    // The log of the run that found the task, as the console shows it.
    let cookie = login().await;
    let found = async || {
        for run in runs(blank).await {
            let path = format!(
                "/ratchjob/api/console/v1/job/task/log?jobId={blank}&taskId={}&fromLineNum=1",
                run["taskId"]
            );
            let log = get(CONSOLE, &path, &format!("Cookie: {cookie}\r\n")).await.to_string();
            if log.contains(&format!("task {due}: succeeded")) && log.contains("ended with 200") {
                return true;
            }
        }
        false
    };
    until("the console shows the log of the run", found).await;

    // A run that takes longer than its job's time-out is told as failed.
    hangs().delay(Duration::from_millis(1)).enqueue().await.expect("it is stored");
    let late = async || {
        let runs = runs(blank).await;
        runs.iter()
            .any(|run| !matches!(run["status"].as_str(), Some("SUCCESS" | "INIT" | "RUNNING")))
    };
    until("the time-out is told", late).await;
    retry.shutdown().await.expect("the runtime ends");
}

/// Makes a job that is triggered every second, and is to take no longer than three; its number.
async fn job(handler: &str, params: &str) -> i64 {
    let body = json!({
        "enable": true, "appName": "shop", "namespace": "xxl", "key": format!("{handler}-{params}"),
        "description": "a test's", "scheduleType": "CRON", "cronValue": "* * * * * *",
        "runMode": "BEAN", "handleName": handler, "triggerParam": params, "routerStrategy": "FIRST",
        "blockingStrategy": "SERIAL_EXECUTION", "timeoutSecond": 3, "tryTimes": 0,
    })
    .to_string();
    let head = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    let answer = send("POST /ratch/v1/job/create", API, &head, &body).await.json();
    answer["content"]["id"].as_i64().unwrap_or_else(|| panic!("no job: {answer}"))
}

/// Waits for a run that ended so.
async fn ends_as(job: i64, status: &str) -> Value {
    let one = async || runs(job).await.into_iter().find(|run| run["status"] == status);
    until(&format!("a run of job {job} ends as {status}"), async || one().await.is_some()).await;
    one().await.expect("it is there")
}

async fn runs(job: i64) -> Vec<Value> {
    let mut answer = get(API, &format!("/ratch/v1/job/task/list?jobId={job}"), "").await;
    match answer["data"]["list"].take() {
        Value::Array(runs) => runs,
        _ => Vec::new(),
    }
}

/// The cookie of a session in the console.
async fn login() -> String {
    let body = "username=admin&password=YWRtaW4%3D";
    let head = format!(
        "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
        body.len()
    );
    let answer = send("POST /ratchjob/api/console/v1/login/login", CONSOLE, &head, body).await;
    let cookies = answer.head.lines().filter_map(|line| line.strip_prefix("set-cookie: "));
    let pairs: Vec<&str> = cookies.filter_map(|cookie| cookie.split(';').next()).collect();
    assert!(!pairs.is_empty(), "no session: {answer:?}");
    pairs.join("; ")
}

async fn get(address: &str, path: &str, head: &str) -> Value {
    send(&format!("GET {path}"), address, head, "").await.json()
}

async fn send(
    line: &str,
    address: &str,
    head: &str,
    body: &str,
) -> task_retry_tests::xxl_job::Answer {
    raw(
        address,
        &format!("{line} HTTP/1.1\r\nHost: {address}\r\n{head}Connection: close\r\n\r\n{body}"),
    )
    .await
}
