use task_retry::retryable;

#[retryable(source = 2147483648)]
async fn send_sms(_order_id: u64) {}

#[retryable(source = 30u64)]
async fn charge(_order_id: u64) {}

#[retryable(source = 99999999999999999999999)]
async fn refund(_order_id: u64) {}

fn main() {}
