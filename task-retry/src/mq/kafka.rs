use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::util::Timeout;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::{Broker, Draft, Message, PublishError, SEND_TIMEOUT, check_timeout, config, strategy};
use crate::{Result, source};

/// A message to a topic of Kafka, see [`Kafka`].
pub fn kafka(topic: impl Into<String>) -> Draft {
    Draft::new(source::KAFKA, topic)
}

/// What makes the promises, so it cannot be set.
const OURS: [&str; 12] = [
    "bootstrap.servers",
    "metadata.broker.list",
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "enable.gapless.guarantee",
    "partitioner",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "retries",
    "message.send.max.retries",
    "transactional.id",
];

/// How to reach Kafka, and how long to wait for it.
///
/// `Debug` shows the names of the settings, not their values.
#[derive(Clone)]
pub struct KafkaConfig {
    servers: String,
    settings: Vec<(String, String)>,
    send_timeout: Duration,
}

impl KafkaConfig {
    /// The first servers to ask, `host:port`, several with commas between them.
    pub fn new(servers: impl Into<String>) -> Self {
        Self { servers: servers.into(), settings: Vec::new(), send_timeout: SEND_TIMEOUT }
    }

    /// A setting of librdkafka, as `security.protocol` or `sasl.password`, by the names of its
    /// [configuration](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md).
    ///
    /// Those that make the promises are refused by [`Kafka::connect`]: servers, acknowledgements,
    /// idempotence, retries, partitioner, time-out and transactions.
    ///
    /// TLS is compiled in by the feature `ssl` of `rdkafka`: add `rdkafka` with it to your own
    /// dependencies.
    pub fn set(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((key.into(), value.into()));
        self
    }

    /// How long a message may take, connecting included, 100 ms to 1 h. Default 3 s.
    pub fn send_timeout(mut self, timeout: Duration) -> Self {
        self.send_timeout = timeout;
        self
    }

    fn client(&self) -> Result<ClientConfig> {
        check_timeout(self.send_timeout)?;
        if self.servers.trim().is_empty() {
            return Err(config("no server of Kafka is named: host:port, with commas between"));
        }
        let milliseconds = self.send_timeout.as_millis();
        let mut client = ClientConfig::new();
        client
            .set("client.id", "task-retry")
            .set("reconnect.backoff.ms", "100")
            // Otherwise, after a while without a server, a message would wait for its time-out and longer.
            .set("reconnect.backoff.max.ms", "500")
            .set("topic.metadata.propagation.max.ms", (milliseconds / 3).min(1000).to_string());
        for (key, value) in &self.settings {
            if OURS.contains(&key.as_str()) {
                return Err(config(format!(
                    "`{key}` cannot be set: what is promised of messages to Kafka depends on it"
                )));
            }
            client.set(key, value);
        }
        client
            .set("bootstrap.servers", &self.servers)
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            // A little less than ours, so that no message stays behind that nobody waits for.
            .set("message.timeout.ms", (milliseconds * 5 / 6).to_string());
        Ok(client)
    }
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings: Vec<_> = self.settings.iter().map(|(key, _)| key).collect();
        f.debug_struct("KafkaConfig")
            .field("servers", &self.servers)
            .field("settings", &settings)
            .field("send_timeout", &self.send_timeout)
            .finish()
    }
}

/// Sends messages to Kafka: the strategy of source 13.
///
/// The topic is Kafka's. The key is the record's: it chooses the partition as Java's producer does, by
/// murmur2; an empty one is no key, and any partition. Each record has its task's id in the header
/// `task-id`. A message is sent when all replicas in sync have it. The producer is idempotent: its own
/// repetitions make no duplicates; those of later attempts do.
///
/// librdkafka connects in the background and reconnects by itself.
///
/// ```no_run
/// use task_retry::mq::{self, Kafka, KafkaConfig};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let config = KafkaConfig::new("127.0.0.1:9092")
///     .set("security.protocol", "SASL_PLAINTEXT")
///     .set("sasl.mechanism", "PLAIN")
///     .set("sasl.username", "shop")
///     .set("sasl.password", "secret");
/// let kafka = Kafka::connect(config).await?;
/// let retry = task_retry::TaskRetry::builder().project("shop").strategy(kafka).start().await?;
/// mq::kafka("orders").key("20221213660896").send("objMsg").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Kafka(Arc<Inner>);

struct Inner {
    config: KafkaConfig,
    client: ClientConfig,
    link: Mutex<Option<Link>>,
}

#[derive(Clone)]
struct Link {
    producer: FutureProducer<Log>,
    log: Log,
}

/// Takes what librdkafka says.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Option<String>>>);

impl Log {
    /// What it said last of its connections, since a message was delivered.
    fn last(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Log {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(target: "task_retry::mq", ?level, facility, message, "Kafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(target: "task_retry::mq", %error, reason, "Kafka");
        let mut last = self.last();
        // That all are away says less than why one is.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) || last.is_none() {
            *last = Some(reason.to_owned());
        }
    }
}

impl Kafka {
    /// Checks the configuration and begins to connect. That Kafka is away is no error: messages wait.
    ///
    /// # Errors
    /// `Config` if the servers or the time-out are not usable, if a setting is one of those that make
    /// the promises, or if librdkafka refuses it.
    pub async fn connect(config: KafkaConfig) -> Result<Self> {
        let client = config.client()?;
        let kafka = Self(Arc::new(Inner { config, client, link: Mutex::default() }));
        kafka.0.link().map_err(super::config)?;
        Ok(kafka)
    }
}

impl Inner {
    /// The producer; a new one after `close` and after an error that ended it.
    fn link(&self) -> Result<Link, String> {
        let mut slot = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = &*slot {
            return Ok(link.clone());
        }
        let log = Log::default();
        let producer = self.client.create_with_context(log.clone());
        let producer = producer.map_err(|error| match error {
            // Its value may be a password.
            KafkaError::ClientConfig(_, _, key, _) => {
                format!("librdkafka does not take the setting `{key}`, or not this value of it")
            }
            error => format!("librdkafka does not take the settings: {error}"),
        })?;
        Ok(slot.insert(Link { producer, log }).clone())
    }

    /// Nobody is to use a producer any more that cannot go on.
    fn forget(&self, link: &Link) {
        if link.producer.client().fatal_error().is_some() {
            let mut slot = self.link.lock().unwrap_or_else(PoisonError::into_inner);
            let fatal = |link: &mut Link| link.producer.client().fatal_error().is_some();
            drop(slot.take_if(fatal));
        }
    }

    fn late(&self, topic: &str, log: &Log) -> String {
        let (servers, timeout) = (&self.config.servers, self.config.send_timeout);
        let why = log.last().as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        format!(
            "Kafka at {servers} did not acknowledge the message to `{topic}` within {timeout:?}{why}"
        )
    }

    fn reason(&self, topic: &str, error: &KafkaError, link: &Link) -> String {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageTimedOut) => self.late(topic, &link.log),
            Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => {
                format!("Kafka has no topic `{topic}`: create it, as by kafka-topics.sh --create")
            }
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => format!(
                "the message to `{topic}` is too large for Kafka: raise `message.max.bytes` of the \
                 client and of the broker or topic"
            ),
            _ => format!("Kafka did not take the message to `{topic}`: {error}"),
        }
    }
}

fn headers(message: &Message) -> OwnedHeaders {
    let id = message.id.to_string();
    let theirs = message.headers.iter().filter(|(name, _)| name != "task-id");
    let theirs = theirs.map(|(name, value)| (name.as_str(), value.as_str()));
    let headers = OwnedHeaders::new_with_capacity(message.headers.len() + 1);
    theirs.chain([("task-id", id.as_str())]).fold(headers, |headers, (key, value)| {
        // A NUL would end its name.
        headers.insert(Header { key: &key.replace('\0', ""), value: Some(value) })
    })
}

impl Broker for Kafka {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let deadline = Instant::now() + self.0.config.send_timeout;
        let topic = &message.topic;
        if topic.is_empty() || topic.contains('\0') {
            return Err(PublishError::new(format!("{topic:?} is no topic of Kafka")));
        }
        let link = self.0.link().map_err(PublishError::new)?;
        let mut record = FutureRecord::to(topic).payload(&message.body).headers(headers(&message));
        if !message.key.is_empty() {
            record = record.key(&message.key);
        }
        let wait = Timeout::After(self.0.config.send_timeout);
        let reason = match timeout_at(deadline, link.producer.send(record, wait)).await {
            Ok(Ok(_)) => {
                link.log.last().take();
                return Ok(());
            }
            Ok(Err((error, _))) => self.0.reason(topic, &error, &link),
            Err(_) => self.0.late(topic, &link.log),
        };
        self.0.forget(&link);
        Err(PublishError::new(reason))
    }

    async fn close(&self) {
        let link = self.0.link.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The last clone waits for librdkafka's threads.
        let _ = tokio::task::spawn_blocking(|| drop(link)).await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let link = self.link.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // Not closed: librdkafka's threads are waited for elsewhere than in an async function.
        std::thread::spawn(|| drop(link));
    }
}

strategy!(Kafka, source::KAFKA, "kafka");

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kafka").field(&self.0.config).finish()
    }
}
