use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(
    _order_id: u64,
    #[cfg(unix)] _phone: &str,
    #[cfg_attr(unix, allow(unused))] _text: &str,
) {
}

fn main() {}
