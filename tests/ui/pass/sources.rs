//! `#[derive(Source)]` with everything that it takes.
#![deny(warnings)]

use task_retry::Source;

#[derive(Source, Clone, Copy, Debug)]
#[source(retired(77, 78), crate = task_retry)]
pub enum Sources {
    /// Documented.
    #[source(30)]
    SendSms,
    #[source(31, max_retry = 8, timeout = "30s", jitter = 0.5, delay_multiplier = 2)]
    #[allow(non_camel_case_types)]
    r#type,
    #[source(2147483647, first_execute = "1d")]
    Last,
    #[cfg(any())]
    Absent,
}

#[task_retry::retryable(source = Sources::SendSms)]
async fn send_sms() {}

fn main() {
    assert_eq!(Sources::SendSms.number(), 30);
    assert_eq!(Sources::r#type.name(), "type");
    assert_eq!(Sources::Last.number(), i32::MAX);
    let _ = (send_sms(), Sources::r#type.policy());
}
