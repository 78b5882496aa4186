//! A transactional outbox: an order and its message in one transaction.
//!
//! ```text
//! cargo run -p task-retry-examples --bin outbox
//! ```
//!
//! The broker here is a list that is away at first, so that the example runs without any server. The
//! lines for real brokers stand beside.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sea_orm::{ConnectionTrait, Database, DatabaseConnection, TransactionTrait};
use serde::Serialize;
use task_retry::mq::{Broker, Draft, Message, PublishError};
use task_retry::{CallError, Enqueued, Filter, Policy, Status, TaskLog, TaskRetry};

const URL: &str = "sqlite://outbox.db?mode=rwc";

/// The source of our messages. RabbitMQ, NATS and Kafka have sources of their own.
const LETTERS: i32 = 40;

/// What the message says; it is sent as JSON.
#[derive(Serialize)]
struct Placed {
    order: u64,
    cents: u64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let _ = std::fs::remove_file("outbox.db");
    let letters = Letters::default();

    // With features = ["rabbitmq"], ["nats"] or ["kafka"], this is instead:
    //   let rabbit = RabbitMq::connect(RabbitMqConfig::new("amqp://shop:secret@127.0.0.1/%2f")).await?;
    //   let nats = Nats::connect(NatsConfig::new("nats://127.0.0.1:4222")).await?;
    //   let kafka = Kafka::connect(KafkaConfig::new("127.0.0.1:9092")).await?;
    // and then `.strategy(rabbit)`, `.strategy(nats)` or `.strategy(kafka)`.
    let strategy = letters.assembled(LETTERS, "letters", |task: &TaskLog| {
        Ok(Message::of(task).header("content-type", "application/json"))
    });
    // The delays are short here, so that you need not wait; by default they are 5 s, 100 s and so on.
    let delay = Duration::from_millis(300);
    let policy = Policy::new().first_execute(delay).delay_base(delay).delay_multiplier(1.0);
    let retry = TaskRetry::builder()
        .project("shop")
        .database(URL)
        .strategy_with(strategy, policy)
        .start()
        .await?;

    let db = Database::connect(URL).await?;
    db.execute_unprepared("create table orders (number integer)").await?;

    println!("== Rolled back: neither order nor message is there");
    place_order(&db, 41, false).await?;
    println!("  {} tasks", retry.tasks().count(Filter::all()).await?);

    println!("== Committed while the broker is away: the message waits");
    let message = place_order(&db, 42, true).await?;
    retry.kick(); // it is committed: look at once, not at the next poll
    let waiting = Filter::all().status(Status::Retrying);
    while retry.tasks().count(waiting.clone()).await? == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let row = retry.tasks().get(message.id()).await?.ok_or("it is stored")?;
    println!("  {}: {}", row.status, row.last_error.unwrap_or_default());

    println!("== The broker is back: the message is sent");
    letters.back.store(true, Ordering::Relaxed);
    println!("  {}", message.ended().await?);

    println!("== Awaited: stored, and sent at once");
    // With a real broker: mq::rabbitmq("orders"), mq::nats("orders") or mq::kafka("orders").
    match Draft::new(LETTERS, "orders").key("43").send("a string goes as it is").await {
        Ok(()) => println!("  the broker has it"),
        Err(CallError::Deferred { id, .. }) => println!("  it will be sent, as task {id}"),
        Err(error) => return Err(error.into()),
    }
    retry.shutdown().await?;
    assert_eq!(letters.sent.lock().map(|sent| sent.len()).unwrap_or_default(), 2);
    Ok(())
}

/// An order and the message about it: both or neither.
async fn place_order(
    db: &DatabaseConnection,
    order: u64,
    paid: bool,
) -> Result<Enqueued, Box<dyn Error>> {
    let transaction = db.begin().await?;
    transaction.execute_unprepared(&format!("insert into orders values ({order})")).await?;
    let placed = Placed { order, cents: 995 };
    let draft = Draft::new(LETTERS, "orders").key(order.to_string());
    let message = draft.send(&placed).enqueue_in(&transaction).await?;
    match paid {
        true => transaction.commit().await?,
        false => transaction.rollback().await?,
    }
    Ok(message)
}

/// A broker in memory.
#[derive(Clone, Default)]
struct Letters {
    back: Arc<AtomicBool>,
    sent: Arc<Mutex<Vec<Message>>>,
}

impl Broker for Letters {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        if !self.back.load(Ordering::Relaxed) {
            return Err(PublishError::new("the post is on strike"));
        }
        let Message { topic, key, body, .. } = &message;
        println!("  sent to {topic}, key {key}: {}", String::from_utf8_lossy(body));
        let mut sent = self.sent.lock().map_err(|error| PublishError::new(error.to_string()))?;
        sent.push(message);
        Ok(())
    }
}
