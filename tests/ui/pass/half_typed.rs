//! What stands in the body is left to rustc, the strangest of it too.
#![deny(warnings)]

use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(id: u64) -> Result<u64, String> {
    #![allow(unused_variables)]
    let unused = 1;
    macro_rules! inner {
        ($($tokens:tt)*) => { stringify!($($tokens)*) };
    }
    let text = inner!(fn half => typed as _);
    struct Inside(u64);
    impl Inside {
        fn id(&self) -> u64 {
            self.0
        }
    }
    let closure = async move |x: u64| x + text.len() as u64;
    Ok(closure(Inside(id).id()).await)
}

fn main() {
    drop(send_sms(1));
}
