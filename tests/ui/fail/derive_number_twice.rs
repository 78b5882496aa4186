use task_retry::Source;

#[derive(Source)]
enum Sources {
    #[source(30)]
    SendSms,
    #[source(31)]
    Charge,
    #[source(30)]
    Refund,
}

fn main() {}
