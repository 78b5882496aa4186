use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(
    #[arg(defualt)] _a: u8,
    #[arg] _b: u8,
    #[arg()] _c: u8,
    #[arg(secret = true)] _d: u8,
    #[arg(secret, secret)] _e: u8,
    #[arg(0)] _f: u8,
) {
}

fn main() {}
