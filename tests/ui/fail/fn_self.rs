use task_retry::retryable;

struct Gateway;

impl Gateway {
    #[retryable(source = 30)]
    async fn send_sms(&self, _order_id: u64) {}

    #[retryable(source = 31)]
    async fn charge(self, _order_id: u64) {}
}

fn main() {}
