use task_retry::Source;

#[derive(Source)]
#[source(retired(31, 32))]
enum Sources {
    #[source(30)]
    SendSms,
    #[source(31)]
    Charge,
}

fn main() {}
