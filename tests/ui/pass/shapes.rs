//! Every shape of parameter and return type.
#![deny(clippy::all, warnings, missing_docs, missing_debug_implementations, unreachable_pub)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use task_retry::{Call, Outcome, Retryable, TaskContext, retryable};

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Order {
    id: u64,
}

#[derive(Debug)]
struct Gateway;

type Answer<T> = Result<T, String>;
type Text = str;

#[retryable(source = 30)]
async fn nothing() {}

#[retryable(source = 31)]
async fn owned(
    id: u64,
    order: Order,
    tags: Vec<String>,
    map: BTreeMap<String, u8>,
    pair: (u8, [u8; 3]),
) -> Answer<Order> {
    drop((id, tags, map, pair));
    Ok(order)
}

#[retryable(source = 32)]
async fn borrowed(
    a: &str,
    b: &[Order],
    c: &Order,
    d: &Path,
    e: &Text,
    f: &Option<u8>,
    g: &(u8, u8),
    h: &[u8; 2],
) -> Answer<usize> {
    Ok(a.len()
        + b.len()
        + c.id as usize
        + d.as_os_str().len()
        + e.len()
        + f.iter().count()
        + g.0 as usize
        + h.len())
}

#[retryable(source = 33)]
async fn from_the_process(
    #[state] a: &Gateway,
    b: u64,
    #[state] c: Arc<Gateway>,
    #[context] d: &TaskContext,
    #[state] e: std::sync::Arc<Vec<u8>>,
    #[state] f: &Cow<'static, str>,
    #[state] g: &inner::Inner,
) {
    drop((a, b, c, d, e, f, g));
}

mod inner {
    #[derive(Debug)]
    pub(crate) struct Inner;
}

#[retryable(source = 34)]
async fn mutable(
    mut count: u64,
    mut names: Vec<String>,
    #[allow(unused_mut)] mut unused: u8,
) -> Result<u64, std::io::Error> {
    count += 1;
    names.clear();
    let _ = unused;
    Ok(count)
}

#[retryable(source = 35)]
async fn with_options(
    #[arg(default)] a: u8,
    #[arg(secret)] b: &str,
    #[arg(default, secret)] c: &str,
) {
    let _ = (a, b, c);
}

#[retryable(source = 36)]
async fn owned_cow(text: Cow<'static, str>) -> Result<Cow<'static, str>, &'static str> {
    Ok(text)
}

#[retryable(source = 37)]
async fn waits(id: u64) -> Result<Outcome<u64>, Box<dyn std::error::Error + Send + Sync>> {
    if id == 0 {
        Ok(Outcome::Pending { deadline: std::time::Duration::from_secs(60) })
    } else {
        Ok(Outcome::Done(id))
    }
}

fn is_temporary(error: &String) -> bool {
    error.is_empty()
}

mod hooks {
    pub(crate) async fn tell(_task: task_retry::TaskLog, _error: String) {}
}

const SEND: i32 = 38;

#[retryable(
    source = SEND,
    name = "all arguments",
    type = Everything,
    max_retry = 8,
    first_execute = "5s",
    delay_base = "1.5m",
    delay_multiplier = 10,
    max_delay = "1h30m",
    jitter = 0.1,
    timeout = "250ms",
    retry_if = is_temporary,
    on_exhausted = hooks::tell,
    concurrency = 4,
    store_result,
    crate = ::task_retry,
)]
async fn everything(order: &Order) -> Answer<u64> {
    Ok(order.id)
}

/// The type and the function share a name, and one `use` brings both.
mod jobs {
    #[task_retry::retryable(source = 39)]
    pub(crate) async fn send_sms(_order_id: u64) {}
}

use jobs::send_sms;

fn takes<R: Retryable>() {}

fn is_send<T: Send>(_: T) {}

fn main() {
    takes::<nothing>();
    takes::<Everything>();
    takes::<send_sms>();
    let call: Call<send_sms> = send_sms(42);
    is_send(call);
    is_send(owned(1, Order { id: 1 }, Vec::new(), BTreeMap::new(), (1, [1, 2, 3])));
    let text = String::from("not static");
    is_send(borrowed(
        &text,
        &[],
        &Order { id: 1 },
        Path::new(&text),
        &text,
        &None,
        &(1, 2),
        &[3, 4],
    ));
    is_send(from_the_process(1));
    is_send(owned_cow::direct(Cow::Borrowed("x")));
    is_send(everything(&Order { id: 1 }));
}
