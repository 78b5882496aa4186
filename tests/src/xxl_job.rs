//! An xxl-job admin of our own, in each of its dialects and with faults, and requests by raw sockets.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::until;

/// Which admin it is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// 2.3 to 3.2.
    Old,
    /// 3.3 to 3.4.
    Middle,
    /// 3.5.
    New,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Old, Self::Middle, Self::New];
}

/// What goes wrong in the admin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing does.
    None,
    /// It closes connections without an answer.
    Away,
    /// It answers with status 200 and this code.
    Code(i32),
    /// It answers with status 200 and nothing.
    Empty,
    /// It answers with this status.
    Status(u16),
    /// Nothing goes wrong, but answers come in chunks.
    Chunked,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its path.
    pub path: String,
    /// Its headers, with small letters.
    pub headers: Vec<(String, String)>,
    /// Its body, or null.
    pub body: Value,
}

impl Request {
    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }
}

/// The admin.
#[derive(Clone, Debug)]
pub struct Admin(Arc<State>);

#[derive(Debug)]
struct State {
    dialect: Dialect,
    token: Option<String>,
    port: u16,
    context: &'static str,
    fault: Mutex<Fault>,
    executors: Mutex<BTreeSet<(String, String)>>,
    callbacks: Mutex<Vec<Value>>,
    requests: Mutex<Vec<Request>>,
    log_id: AtomicI64,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time of the admin's triggers: they always carry one.
pub const TRIGGERED: i64 = 1_795_447_228_855;

impl Admin {
    /// Starts one on a port of its own.
    pub async fn start(dialect: Dialect, token: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let admin = Self(Arc::new(State {
            dialect,
            token: token.map(str::to_owned),
            port: listener.local_addr().expect("an address").port(),
            context: if dialect == Dialect::New { "" } else { "/xxl-job-admin" },
            fault: Mutex::new(Fault::None),
            executors: Mutex::default(),
            callbacks: Mutex::default(),
            requests: Mutex::default(),
            log_id: AtomicI64::new(0),
        }));
        let serving = admin.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let admin = serving.clone();
                tokio::spawn(async move { admin.serve(stream).await });
            }
        });
        admin
    }

    /// Its address for executors.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}{}", self.0.port, self.0.context)
    }

    /// Has this go wrong from now on.
    pub fn fault(&self, fault: Fault) {
        *lock(&self.0.fault) = fault;
    }

    /// What came so far at paths that end so.
    pub fn requests(&self, end: &str) -> Vec<Request> {
        let requests = lock(&self.0.requests);
        requests.iter().filter(|request| request.path.ends_with(end)).cloned().collect()
    }

    /// The addresses of those that are registered.
    pub fn executors(&self) -> Vec<String> {
        lock(&self.0.executors).iter().map(|(_, address)| address.clone()).collect()
    }

    /// Waits until so many are registered.
    pub async fn registered(&self, count: usize) -> Vec<String> {
        until("executors register", async || self.executors().len() == count).await;
        self.executors()
    }

    /// The callbacks that it took for a run.
    pub fn callbacks(&self, log_id: i64) -> Vec<(i64, String)> {
        let callbacks = lock(&self.0.callbacks);
        let of = callbacks.iter().filter(|it| it["logId"] == log_id);
        of.map(|it| {
            (it["handleCode"].as_i64().unwrap(), it["handleMsg"].as_str().unwrap().to_owned())
        })
        .collect()
    }

    /// Waits for the callback of a run.
    pub async fn ended(&self, log_id: i64) -> (i64, String) {
        let what = format!("run {log_id} calls back");
        until(&what, async || !self.callbacks(log_id).is_empty()).await;
        self.callbacks(log_id).remove(0)
    }

    /// A trigger as this admin sends it, for handler and parameter.
    pub fn job(&self, handler: &str, params: &str) -> Value {
        json!({
            "jobId": 3, "executorHandler": handler, "executorParams": params,
            "executorBlockStrategy": "SERIAL_EXECUTION", "executorTimeout": 0,
            "logId": self.0.log_id.fetch_add(1, Ordering::SeqCst) + 1, "logDateTime": TRIGGERED,
            "glueType": "BEAN", "glueSource": "", "glueUpdatetime": TRIGGERED / 1000 * 1000,
            "broadcastIndex": 0, "broadcastTotal": 1,
        })
    }

    /// Triggers a job at an executor; the log id, and the answer.
    pub async fn trigger(&self, executor: &str, job: &Value) -> (i64, Value) {
        let path = if self.0.dialect == Dialect::New { "trigger" } else { "run" };
        (job["logId"].as_i64().unwrap(), self.ask(executor, path, &job.to_string()).await)
    }

    /// Triggers a job that has to be taken on, and waits for its end.
    pub async fn run(&self, executor: &str, job: &Value) -> (i64, String) {
        let (log_id, answer) = self.trigger(executor, job).await;
        assert_eq!(answer["code"], 200, "{answer}");
        self.ended(log_id).await
    }

    /// Asks an executor as this admin does.
    pub async fn ask(&self, executor: &str, path: &str, body: &str) -> Value {
        let mut head = String::new();
        if let Some(token) = &self.0.token {
            head += &format!("XXL-JOB-ACCESS-TOKEN: {token}\r\n");
        }
        // Up to 3.2 it has a body of two quotes, later ones send none and no length.
        let body = match (path, self.0.dialect) {
            ("beat", Dialect::Old) => "\"\"",
            _ => body,
        };
        if !body.is_empty() {
            head += &format!(
                "Content-Type: application/json;charset=UTF-8\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        let address = address(executor);
        // Old admins put the path behind the slash of the address.
        let slashes = if self.0.dialect == Dialect::Old { "//" } else { "/" };
        let head = format!("POST {slashes}{path} HTTP/1.1\r\nHost: {address}\r\n{head}");
        let answer = raw(&address, &format!("{head}Connection: close\r\n\r\n{body}")).await;
        answer.json()
    }

    /// A page of a run's log.
    pub async fn log(&self, executor: &str, log_id: i64, from: i64) -> Value {
        let date = if self.0.dialect == Dialect::New { "logDateTime" } else { "logDateTim" };
        let asked = json!({ "logId": log_id, date: TRIGGERED / 1000 * 1000, "fromLineNum": from });
        let mut answer = self.ask(executor, "log", &asked.to_string()).await;
        assert_eq!(answer["code"], 200, "{answer}");
        let payload = if self.0.dialect == Dialect::Old { "content" } else { "data" };
        answer[payload].take()
    }

    async fn serve(&self, mut stream: TcpStream) {
        let Some((path, headers, body)) = read(&mut stream).await else { return };
        let fault = *lock(&self.0.fault);
        if fault == Fault::Away {
            return;
        }
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let request = Request { path, headers, body };
        lock(&self.0.requests).push(request.clone());
        let (status, answer) = match fault {
            Fault::Empty => (200, String::new()),
            Fault::Status(status) => (status, "{\"code\":200}".to_owned()),
            Fault::Code(code) => (200, json!({ "code": code, "msg": "told to" }).to_string()),
            _ => match self.obey(&request) {
                Ok(()) => (200, json!({ "code": 200, "msg": null }).to_string()),
                Err((code, msg)) => (200, json!({ "code": code, "msg": msg }).to_string()),
            },
        };
        let mut text = format!("HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\n");
        if fault == Fault::Chunked {
            text += "Transfer-Encoding: chunked\r\n\r\n";
            for part in answer.as_bytes().chunks(5) {
                text += &format!("{:x}\r\n{}\r\n", part.len(), String::from_utf8_lossy(part));
            }
            text += "0\r\n\r\n";
        } else {
            text += &format!("Content-Length: {}\r\n\r\n{answer}", answer.len());
        }
        let _ = stream.write_all(text.as_bytes()).await;
    }

    fn obey(&self, request: &Request) -> Result<(), (i32, &'static str)> {
        let state = &*self.0;
        if request.header("content-type").is_none_or(|it| !it.starts_with("application/json")) {
            return Err((500, "no JSON"));
        }
        if request.header("xxl-job-access-token") != state.token.as_deref() {
            return Err((500, "The access token is wrong."));
        }
        if state.dialect == Dialect::New && request.header("xxl-job-appname").is_none() {
            return Err((500, "The appname is missing."));
        }
        let body = &request.body;
        let executor = || {
            assert_eq!(body["registryGroup"], "EXECUTOR");
            let text = |key: &str| body[key].as_str().expect("a text").to_owned();
            (text("registryKey"), text("registryValue"))
        };
        let Some(what) = request.path.strip_prefix(state.context) else {
            return Err((500, "no page"));
        };
        match what {
            "/api/registry" => drop(lock(&state.executors).insert(executor())),
            "/api/registryRemove" => drop(lock(&state.executors).remove(&executor())),
            "/api/callback" => {
                let (list, date) = match state.dialect {
                    Dialect::New => (body["callbackList"].as_array(), "logDateTime"),
                    _ => (body.as_array(), "logDateTim"),
                };
                let Some(list) = list else {
                    return Err((
                        if state.dialect == Dialect::Old { 203 } else { 500 },
                        "bad shape",
                    ));
                };
                assert!(list.len() <= 50, "{} callbacks at once", list.len());
                for callback in list {
                    assert!(callback["logId"].is_i64() && callback[date].is_i64(), "{callback}");
                }
                lock(&state.callbacks).extend(list.iter().cloned());
            }
            _ => return Err((500, "no page")),
        }
        Ok(())
    }
}

/// The host and port of a URL.
pub fn address(url: &str) -> String {
    url.trim_start_matches("http://").trim_end_matches('/').to_owned()
}

/// An answer as it came.
#[derive(Debug)]
pub struct Answer {
    /// The status line and the headers, with small letters.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body of an answer with status 200.
    pub fn json(&self) -> Value {
        assert!(self.head.starts_with("http/1.1 200 "), "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

/// Sends a text and reads until the connection is closed.
pub async fn raw(address: &str, text: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("the executor listens");
    stream.write_all(text.as_bytes()).await.expect("the request is sent");
    let mut answer = String::new();
    // What was cut off shows in the answer.
    let _ = stream.read_to_string(&mut answer).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Answer { head: head.to_lowercase(), body: body.to_owned() }
}

type Parts = (String, Vec<(String, String)>, Vec<u8>);

async fn read(stream: &mut TcpStream) -> Option<Parts> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.and_then(|(_, length)| length.parse().ok()).unwrap_or(0);
    let mut body = bytes.split_off(end + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some((path, headers, body))
}
