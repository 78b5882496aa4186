use task_retry::Source;

#[derive(Source)]
#[source(retire(31), crate = "x", krate = y)]
enum Sources {
    #[source(30, max_retries = 3, concurrency = 4)]
    SendSms,
    #[source(31, timeout = 5, jitter = 0.1, jitter = 0.2)]
    Charge,
    #[source(32, 33)]
    Refund,
    #[source(34)]
    #[source(max_retry = 3)]
    Ship,
}

fn main() {}
