//! Parameters, functions and types around may have any name.
#![deny(warnings)]
#![allow(dead_code, nonstandard_style)]

use task_retry::retryable;

struct Call;
struct Policy;
struct Box;
struct Send;
trait ToOwned {}
trait Future {}
trait Retryable {}
const args: u8 = 1;
static env: u8 = 2;
fn call() {}
mod core {}
mod std {}
mod serde {}

#[retryable(source = 30, max_retry = 3, timeout = "1s", on_exhausted = r#final, retry_if = r#if)]
async fn r#type(
    r#struct: u64,
    task: &str,
    self_: &[u8],
    #[state] r#impl: &u64,
    #[context] ctx: &task_retry::TaskContext,
    spec: u8,
    run: u8,
    direct: u8,
    source: u8,
    name: String,
    _unused: u8,
    serializer: u8,
    __S: u8,
    T: u8,
    R: u8,
    check: u8,
) -> Result<(), String> {
    let _ = (
        r#struct, task, self_, r#impl, ctx, spec, run, direct, source, name, serializer, __S, T, R,
        check,
    );
    Ok(())
}

async fn r#final(_task: task_retry::TaskLog, _error: String) {}

fn r#if(_error: &String) -> bool {
    true
}

#[retryable(source = 31)]
#[allow(clippy::too_many_arguments)]
async fn sendSms(orderId: u64) {
    let _ = orderId;
}

#[retryable(source = 32, type = r#Loop)]
async fn r#loop() {}

mod shadowed {
    type String = u8;
    type Option = u8;
    type Result<T> = ::std::result::Result<T, ::std::io::Error>;

    #[task_retry::retryable(source = 33)]
    pub(super) async fn ids(text: String, option: Option) -> Result<u8> {
        Ok(text + option)
    }
}

fn main() {
    drop(r#type(1, "", &[], 1, 2, 3, 4, ::std::string::String::new(), 5, 6, 7, 8, 9, 10));
    drop(sendSms(1));
    drop(r#loop());
    drop(shadowed::ids(1, 2));
}
