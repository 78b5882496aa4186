use task_retry::{TaskContext, retryable};

#[retryable(source = 30)]
async fn send_sms(#[context] _ctx: TaskContext) {}

fn main() {}
