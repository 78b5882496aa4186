use task_retry::retryable;

#[retryable(source = 30)]
async fn send<T: Send, const N: usize>(_message: [T; N]) {}

#[retryable(source = 31)]
async fn charge<T>(_amount: T)
where
    T: Send,
{
}

fn main() {}
