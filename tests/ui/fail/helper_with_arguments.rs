use task_retry::{TaskContext, retryable};

#[retryable(source = 30)]
async fn send_sms(#[state(shared)] _a: &String, #[context = "x"] _b: &TaskContext) {}

fn main() {}
