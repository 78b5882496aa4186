#![deny(warnings)]

use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(_order_id: u64) {}

fn main() {
    send_sms(42);
}
