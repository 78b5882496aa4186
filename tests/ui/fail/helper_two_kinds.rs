use task_retry::{TaskContext, retryable};

#[retryable(source = 30)]
async fn send_sms(
    #[state]
    #[context]
    _a: &TaskContext,
    #[state]
    #[state]
    _b: &String,
    #[state]
    #[arg(secret)]
    _c: &String,
) {
}

fn main() {}
