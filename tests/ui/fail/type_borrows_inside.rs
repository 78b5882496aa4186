use task_retry::retryable;

struct Text<'a>(&'a str);

#[retryable(source = 30)]
async fn send_sms(
    _phone: Option<&str>,
    _text: Text<'_>,
    _words: &[&str],
    _parts: (u8, &'static str),
) {
}

fn main() {}
