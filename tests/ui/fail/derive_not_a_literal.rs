use task_retry::Source;

const SEND_SMS: i32 = 30;

#[derive(Source)]
#[source(retired(SEND_SMS, "31"))]
enum Sources {
    #[source(SEND_SMS)]
    SendSms,
    #[source("31")]
    Charge,
    #[source(30 + 2)]
    Refund,
}

fn main() {}
