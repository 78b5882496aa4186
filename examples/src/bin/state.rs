//! State: what a function needs and the table cannot hold, such as clients, pools and caches.
//!
//! A parameter with `#[state]` is no argument of the call. The builder is given the value once, and
//! every attempt borrows it, also one that another process starts a day later: there it is that
//! process's own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use task_retry::{ErrorKind, Filter, TaskRetry, retryable};

/// Only the id is stored. The customer is looked up when the mail is sent, so that it goes to
/// today's address and not to the one that was there when the order was placed.
#[retryable(source = 30)]
async fn send_mail(
    customer: u64,
    text: &str,
    #[state] customers: &Customers,
    #[state] outbox: Arc<Outbox>,
) -> Result<(), String> {
    let address = customers.0.get(&customer).ok_or_else(|| format!("nobody is {customer}"))?;
    outbox.0.lock().unwrap().push(format!("{address}: {text}"));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A state that is missing is found out at the start, and not at the first call.
    let error = TaskRetry::builder()
        .project("state")
        .database("sqlite::memory:")
        .state(Customers::default())
        .start()
        .await
        .unwrap_err();
    println!("without an outbox: {error}\n");
    assert_eq!(error.kind(), ErrorKind::Registry);

    // `state` takes a value, `shared_state` one that the program goes on using.
    let outbox = Arc::new(Outbox::default());
    let retry = TaskRetry::builder()
        .project("state")
        .database("sqlite::memory:")
        .state(Customers::default())
        .shared_state(outbox.clone())
        .start()
        .await?;
    send_mail(7, "your parcel is on its way").await?;
    println!("sent: {:?}", outbox.0.lock().unwrap());
    assert_eq!(*outbox.0.lock().unwrap(), ["ada@example.org: your parcel is on its way"]);

    // The row has the arguments, and nothing of the state.
    let task = retry.tasks().list(Filter::all()).await?.remove(0);
    println!("stored: {}", task.context.as_deref().unwrap_or_default());
    assert_eq!(
        task.context.as_deref(),
        Some(r#"{"customer":7,"text":"your parcel is on its way"}"#)
    );
    retry.shutdown().await?;

    // `direct` is the body alone, without a table and without a runtime: for unit tests.
    let none = Customers(HashMap::new());
    let sent = send_mail::direct(7, "hello", &none, outbox).await;
    println!("direct: {sent:?}");
    assert_eq!(sent, Err("nobody is 7".to_owned()));
    Ok(())
}

struct Customers(HashMap<u64, String>);

impl Default for Customers {
    fn default() -> Self {
        Self(HashMap::from([(7, "ada@example.org".to_owned())]))
    }
}

#[derive(Default)]
struct Outbox(Mutex<Vec<String>>);
