use task_retry::retryable;

#[retryable(source = 30)]
struct SendSms;

#[retryable(source = 31)]
impl SendSms {}

#[retryable(source = 32)]
pub(crate) mod sms {}

fn main() {
    let _ = SendSms;
}
