//! All mistakes of an item come at once, each at its own place.
use task_retry::retryable;

#[retryable(sauce = 30, max_retry = -1, timeout = "soon", timeout = "5s")]
pub fn send<'a, T>(&self, _: T, phone: Option<&'a str>, #[stat] gateway: &String) -> impl Sized {}

fn main() {}
