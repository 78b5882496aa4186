use task_retry::{TaskLog, retryable};

async fn tell(_task: TaskLog, _error: u8) {}

fn not_async(_task: TaskLog, _error: String) {}

#[retryable(source = 30, on_exhausted = tell)]
async fn send_sms(_order_id: u64) {}

#[retryable(source = 31, on_exhausted = not_async)]
async fn charge(_order_id: u64) {}

fn main() {}
