//! Messages to RocketMQ.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::Shared;
use rocketmq_client_rust::prelude::{ClientConfig, DefaultMQProducer};
use rocketmq_client_rust::{
    AclClientRPCHook, ClientError, ClientRuntime, ClientRuntimeConfig, SendResult, SendStatus,
    SessionCredentials,
};
use rocketmq_error::{ErrorClass, SharedError};
use rocketmq_model::common::message::MessageTrait;
use rocketmq_model::common::message::message_queue::MessageQueue;
use rocketmq_model::common::message::message_single::Message as RocketMessage;
use rocketmq_observability::TelemetryRuntimeGuard;
use rocketmq_protocol::protocol::remoting_command::RemotingCommand;
use rocketmq_runtime::{RuntimeConfig, RuntimeOwner};
use rocketmq_transport::api::RPCHook;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use super::{Broker, Draft, Message, PublishError};
use crate::registry::BoxFuture;
use crate::{Error, ErrorKind, Result, source};

/// Messages in flight at once. The client takes no more than about 512 requests.
const IN_FLIGHT: u32 = 256;

/// A new client is made at most this often.
const PACE: Duration = Duration::from_millis(300);

/// How long closing a client may take: a broker that is away does not answer its farewell.
const FAREWELL: Duration = Duration::from_secs(3);

/// The longest topic, in bytes, as the client and the broker have it.
const TOPIC_BYTES: usize = 127;

/// The longest producer group, in bytes.
const GROUP_BYTES: usize = 120;

/// What properties are separated by.
const SEPARATORS: [char; 2] = ['\u{1}', '\u{2}'];

/// A draft of a message to RocketMQ, to the topic `topic` or, with a tag, `topic:tag`.
///
/// ```no_run
/// # use task_retry::{TaskRetry, mq};
/// # async fn example(db: sea_orm::DatabaseConnection) -> Result<(), Box<dyn std::error::Error>> {
/// let config = mq::RocketMqConfig::new("127.0.0.1:9876").producer_group("shop");
/// let retry = TaskRetry::builder()
///     .project("shop")
///     .database("postgres://localhost/shop")
///     .strategy(mq::RocketMq::connect(config).await?)
///     .start()
///     .await?;
///
/// // Stored, then sent: `Ok` says that the broker has it.
/// mq::rocketmq("orders:paid").key("20221213660896").send("objMsg").await?;
/// # Ok(())
/// # }
/// ```
pub fn rocketmq(topic: impl Into<String>) -> Draft {
    Draft::new(source::ROCKET_MQ, topic)
}

/// How to reach RocketMQ.
///
/// `Debug` hides the secret key.
#[derive(Clone)]
#[must_use = "a configuration does nothing until `RocketMq::connect` gets it"]
pub struct RocketMqConfig {
    name_servers: String,
    producer_group: String,
    send_timeout: Duration,
    credentials: Option<(String, String)>,
    tls: bool,
    tls_ca: Option<PathBuf>,
}

impl RocketMqConfig {
    /// The addresses of the name servers, `host:port`, several with `;` between them.
    pub fn new(name_servers: impl Into<String>) -> Self {
        Self {
            name_servers: name_servers.into(),
            producer_group: "task-retry".to_owned(),
            send_timeout: Duration::from_secs(3),
            credentials: None,
            tls: false,
            tls_ca: None,
        }
    }

    /// The producer group: 1 to 120 letters, digits, `_`, `-`, `%` or `|`; `task-retry` by default.
    pub fn producer_group(mut self, group: impl Into<String>) -> Self {
        self.producer_group = group.into();
        self
    }

    /// How long one attempt may take in all, waiting for its turn included: 10 ms to 10 minutes; 3 s
    /// by default. A message whose time is over may have arrived all the same, and is sent again.
    pub fn send_timeout(mut self, timeout: Duration) -> Self {
        self.send_timeout = timeout;
        self
    }

    /// Access key and secret key, for brokers with access control; none by default.
    pub fn credentials(
        mut self,
        access_key: impl Into<String>,
        secret_key: impl Into<String>,
    ) -> Self {
        self.credentials = Some((access_key.into(), secret_key.into()));
        self
    }

    /// Whether to speak TLS; `false` by default. The servers' certificates are checked, by the
    /// system's authorities or [`tls_ca`](Self::tls_ca).
    ///
    /// The client uses rustls and its default provider. Where the process has none,
    /// [`RocketMq::connect`] installs ring as that.
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// A file with the certificates, in PEM, of the authorities to trust instead of the system's.
    pub fn tls_ca(mut self, path: impl AsRef<Path>) -> Self {
        self.tls_ca = Some(path.as_ref().to_owned());
        self
    }

    fn check(&self) -> Result<()> {
        let error = |message: String| Err(Error::new(ErrorKind::Config, message));
        let mut servers = self.name_servers.split(';').map(str::trim);
        if let Some(server) = servers.find(|server| !is_address(server)) {
            let all = &self.name_servers;
            return error(format!(
                "RocketMQ: `{server}` of the name servers `{all}` is no address; \
                 write `host:port`, several with `;` between them"
            ));
        }
        let group = &self.producer_group;
        if !is_name(group, GROUP_BYTES) {
            return error(format!(
                "RocketMQ: the producer group `{group}` is not 1 to {GROUP_BYTES} of the letters, \
                 digits and `_-%|`"
            ));
        }
        let time = self.send_timeout;
        if !(Duration::from_millis(10)..=Duration::from_secs(600)).contains(&time) {
            return error(format!(
                "RocketMQ: a send time-out of {time:?} is not between 10 ms and 10 minutes"
            ));
        }
        if self
            .credentials
            .as_ref()
            .is_some_and(|(access, secret)| access.trim().is_empty() || secret.trim().is_empty())
        {
            return error("RocketMQ: access key and secret key must not be empty".to_owned());
        }
        match &self.tls_ca {
            Some(path) if !self.tls => error(format!(
                "RocketMQ: `tls_ca` is {} although TLS is off; add `.tls(true)`",
                path.display()
            )),
            Some(path) => match std::fs::File::open(path) {
                Ok(_) => Ok(()),
                Err(cause) => error(format!(
                    "RocketMQ: the certificates in {} cannot be read: {cause}",
                    path.display()
                )),
            },
            None => Ok(()),
        }
    }

    fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::default();
        config.set_namesrv_addr(self.name_servers.replace(' ', "").into());
        let timeout = u64::try_from(self.send_timeout.as_millis()).unwrap_or(u64::MAX);
        config.set_mq_client_api_timeout(timeout);
        // A client of its own for each generation, also by the broker's books.
        config.set_instance_name(format!("task-retry-{:08x}", fastrand::u32(..)).into());
        config.set_vip_channel_enabled(false);
        config.set_use_tls(self.tls);
        config.set_tls_client_auth_server(true);
        if let Some(path) = &self.tls_ca {
            config.set_tls_client_trust_cert_path(path.display().to_string());
        }
        config
    }
}

impl fmt::Debug for RocketMqConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access_key = self.credentials.as_ref().map(|(access_key, _)| access_key);
        f.debug_struct("RocketMqConfig")
            .field("name_servers", &self.name_servers)
            .field("producer_group", &self.producer_group)
            .field("send_timeout", &self.send_timeout)
            .field("access_key", &access_key)
            .field("secret_key", &access_key.map(|_| "…"))
            .field("tls", &self.tls)
            .field("tls_ca", &self.tls_ca)
            .finish()
    }
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && !host.contains(char::is_whitespace)
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// Whether it may name a topic or a group.
fn is_name(text: &str, bytes: usize) -> bool {
    (1..=bytes).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-%|".contains(&byte))
}

/// The strategy that sends the messages of source 10 to RocketMQ 4 and 5, by its remoting protocol.
///
/// A message's topic is the topic, or `topic:tag`. Its key is its key in RocketMQ, and chooses the
/// queue as Java's `SelectMessageQueueByHash` does, so that producers in Rust and in Java put the
/// messages of one key into one queue; without a key, any queue will do. Its body is the task's
/// context, as UTF-8; the user property `task-id` has the id of the task, and [`Message::headers`]
/// are user properties too. Only `SEND_OK` is a success.
///
/// While RocketMQ is away, messages wait in the table, and each one's next attempt after its return
/// succeeds. What cannot be sent by the rules of every client ends at once: an empty body, a bad name of
/// a topic, a header that RocketMQ keeps to itself.
///
/// Cheap to clone; the clones share one connection, which has one thread, and is closed when the runtime
/// stops. At most 256 messages are in flight.
#[derive(Clone)]
pub struct RocketMq(Arc<Inner>);

super::strategy!(RocketMq, source::ROCKET_MQ, "rocketmq");

impl RocketMq {
    /// Checks the configuration and begins to connect. That name server or broker is away is no error.
    ///
    /// # Errors
    /// `Config` if a value is not usable; the message names it.
    // It waits for nothing today, but may have to when the client is another.
    #[allow(clippy::unused_async)]
    pub async fn connect(config: RocketMqConfig) -> Result<Self> {
        config.check()?;
        if config.tls && rustls::crypto::CryptoProvider::get_default().is_none() {
            // Without one the client panics where both of rustls' providers are compiled.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let broker = Self(Arc::new(Inner {
            config,
            current: Mutex::default(),
            retired: TaskTracker::new(),
        }));
        drop(broker.0.current()); // made in the background
        Ok(broker)
    }
}

impl fmt::Debug for RocketMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RocketMq").field(&self.0.config).finish()
    }
}

impl Broker for RocketMq {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let outgoing = Outgoing::new(&message)?;
        let deadline = Instant::now() + self.0.config.send_timeout;
        let turn = timeout_at(deadline, self.0.turn(&outgoing.topic))
            .await
            .unwrap_or_else(|_| Err(PublishError::new(self.0.not_in_time(&outgoing.topic))))?;
        self.0.send(turn, outgoing, deadline).await
    }

    async fn close(&self) {
        let current = lock(&self.0.current).take();
        if let Some(generation) = current {
            self.0.retire(generation);
        }
        self.0.retired.close();
        let _ = timeout(self.0.config.send_timeout + 2 * FAREWELL, self.0.retired.wait()).await;
        self.0.retired.reopen();
    }
}

/// A message that keeps RocketMQ's rules.
struct Outgoing {
    topic: String,
    message: RocketMessage,
    /// Of the key, if it has one.
    hash: Option<i32>,
}

impl Outgoing {
    fn new(message: &Message) -> Result<Self, PublishError> {
        let refuse = |reason: String| Err(PublishError::permanent(reason));
        let (topic, tag) = match message.topic.split_once(':') {
            Some((topic, tag)) => (topic, tag),
            None => (message.topic.as_str(), ""),
        };
        if !is_name(topic, TOPIC_BYTES) {
            return refuse(format!(
                "the topic `{topic}` is not 1 to {TOPIC_BYTES} of the letters, digits and `_-%|` that \
                 RocketMQ takes"
            ));
        }
        if message.body.is_empty() {
            return refuse("RocketMQ takes no message with an empty body".to_owned());
        }
        let id = message.id.to_string();
        let headers = message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let headers = headers.chain([("task-id", id.as_str())]);
        let mut texts = vec![("tag", tag), ("key", message.key.as_str())];
        texts.extend(headers.clone());
        if let Some((name, _)) = texts
            .iter()
            .find(|(name, value)| name.contains(SEPARATORS) || value.contains(SEPARATORS))
        {
            return refuse(format!(
                "the {name} has a character U+0001 or U+0002, which RocketMQ keeps to itself"
            ));
        }
        let mut builder = RocketMessage::builder().topic(topic).body(message.body.clone());
        if !tag.is_empty() {
            builder = builder.tags(tag);
        }
        if !message.key.is_empty() {
            builder = builder.key(message.key.as_str());
        }
        let built = builder.build();
        let mut built = built.map_err(|error| PublishError::permanent(error.to_string()))?;
        for (name, value) in headers.filter(|(_, value)| !value.is_empty()) {
            if built.put_user_property(name.into(), value.into()).is_err() {
                return refuse(format!(
                    "RocketMQ keeps the property `{name}` to itself: give the header another name"
                ));
            }
        }
        let hash = (!message.key.is_empty()).then(|| java_hash(&message.key));
        Ok(Self { topic: topic.to_owned(), message: built, hash })
    }
}

/// Java's `String.hashCode`.
fn java_hash(text: &str) -> i32 {
    text.encode_utf16()
        .fold(0, |hash: i32, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
}

/// The queue that `SelectMessageQueueByHash` chooses of so many; 0 of none.
fn queue_of(hash: i32, queues: usize) -> usize {
    let queues = i64::try_from(queues).unwrap_or(i64::MAX).max(1);
    usize::try_from((i64::from(hash) % queues).abs()).unwrap_or_default()
}

struct Inner {
    config: RocketMqConfig,
    current: Mutex<Option<Generation>>,
    /// What closes the clients that were given up.
    retired: TaskTracker,
}

/// One client, or what is to become one. Its making is shared: who comes meanwhile waits for it.
type Generation = Shared<BoxFuture<'static, Result<Arc<Client>, String>>>;

/// What a message needs to be sent now.
struct Turn {
    client: Arc<Client>,
    _alone: Option<OwnedMutexGuard<()>>,
    _place: OwnedSemaphorePermit,
}

impl Inner {
    /// The present client, or one that is being made.
    fn current(&self) -> Generation {
        lock(&self.current).get_or_insert_with(|| make(&self.config)).clone()
    }

    /// Waits for a client, for the topic's first message, and for one of the places.
    async fn turn(&self, topic: &str) -> Result<Turn, PublishError> {
        loop {
            let generation = self.current();
            let client = match generation.clone().await {
                Ok(client) => client,
                Err(reason) => {
                    self.forget(&generation);
                    return Err(PublishError::new(reason));
                }
            };
            if client.is_suspect() {
                // Its breaker may be open for half a minute: another one asks afresh.
                sleep_until(client.born + PACE).await;
                self.replace(&generation);
                continue;
            }
            let alone = client.alone(topic).await;
            if client.is_suspect() && client.born.elapsed() >= PACE {
                continue;
            }
            if let Ok(place) = client.places.clone().acquire_owned().await {
                return Ok(Turn { client, _alone: alone, _place: place });
            }
        }
    }

    async fn send(
        &self,
        turn: Turn,
        outgoing: Outgoing,
        deadline: Instant,
    ) -> Result<(), PublishError> {
        let Outgoing { topic, message, hash } = outgoing;
        let began = Instant::now();
        let left = deadline.saturating_duration_since(began).as_millis();
        let left = u64::try_from(left).unwrap_or(u64::MAX).max(1);
        let (sent, remark) = match timeout_at(deadline, turn.client.send(message, hash, left)).await
        {
            Ok(answer) => answer,
            Err(_) => {
                turn.client.timed_out(began);
                return Err(PublishError::new(self.no_answer(&topic)));
            }
        };
        match sent {
            Ok(Some(result)) => {
                turn.client.answered(&topic);
                match result.send_status {
                    SendStatus::SendOk => Ok(()),
                    status => Err(PublishError::new(format!(
                        "RocketMQ's broker took the message to `{topic}` but did not make it safe: \
                         {status:?}"
                    ))),
                }
            }
            Ok(None) => Err(PublishError::new(self.no_answer(&topic))),
            Err(error) => Err(PublishError::new(self.reason(
                &turn.client,
                &topic,
                &error,
                remark.as_ref(),
                began,
            ))),
        }
    }

    /// What an error of the client says, and what it says of the client.
    fn reason(
        &self,
        client: &Client,
        topic: &str,
        error: &ClientError,
        remark: Option<&Remark>,
        began: Instant,
    ) -> String {
        let servers = &self.config.name_servers;
        let said = error.broker_response_code();
        let cause = error.source_ref::<io::Error>();
        let lost = cause.is_some() || error.is(&rocketmq_error::TRANSPORT_CONNECTION_FAILED);
        if said.is_none() && lost {
            client.suspect.store(true, Ordering::Relaxed);
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            return format!(
                "RocketMQ cannot be reached for the topic `{topic}`{cause}; are the broker and the name \
                 server {servers} up?"
            );
        }
        if said.is_none() && error.descriptor().class() == ErrorClass::TIMEOUT {
            client.timed_out(began);
            return self.no_answer(topic);
        }
        match said.or(remark.map(|remark| remark.code)) {
            // A name server says so as well, of topics that are to be made.
            Some(code::TOPIC_NOT_EXIST) => {}
            Some(code) => {
                client.answered(topic);
                let remark = remark.filter(|remark| remark.code == code);
                return refusal(topic, code, remark.map_or("", |remark| &remark.text));
            }
            None => client.suspect.store(true, Ordering::Relaxed),
        }
        format!(
            "RocketMQ has no broker for the topic `{topic}`: are the name server {servers} and a broker \
             up, and does the topic exist?"
        )
    }

    fn no_answer(&self, topic: &str) -> String {
        let (time, servers) = (self.config.send_timeout, &self.config.name_servers);
        format!(
            "RocketMQ has not answered within {time:?} for the topic `{topic}`: the message may have \
             arrived, and is sent again; are the broker and the name server {servers} up?"
        )
    }

    fn not_in_time(&self, topic: &str) -> String {
        let (time, servers) = (self.config.send_timeout, &self.config.name_servers);
        format!(
            "the message to `{topic}` had to wait for others for {time:?} and was not sent: are \
             RocketMQ's broker and the name server {servers} up?"
        )
    }

    /// Puts a new client into the place of this one, if nobody has yet.
    fn replace(&self, generation: &Generation) {
        if let Some(old) = self.forget(generation) {
            self.retire(old);
        }
    }

    fn forget(&self, generation: &Generation) -> Option<Generation> {
        lock(&self.current).take_if(|current| current.ptr_eq(generation))
    }

    /// Closes a client when what it has in flight has ended.
    fn retire(&self, generation: Generation) {
        self.retired.spawn(async move {
            let Ok(client) = generation.await else { return };
            let _all = client.places.acquire_many(IN_FLIGHT).await;
            client.places.close();
            let _ = timeout(FAREWELL, client.shutdown()).await;
        });
    }
}

/// Starts to make a client, in a task of its own: nobody's time-out ends that.
fn make(config: &RocketMqConfig) -> Generation {
    let config = config.clone();
    let made = tokio::spawn(async move { Client::start(&config).await.map(Arc::new) });
    let made = async move {
        made.await.unwrap_or_else(|error| Err(error.to_string())).map_err(|error| {
            format!("RocketMQ's client cannot be started: {error}; the next attempt tries again")
        })
    };
    made.boxed().shared()
}

/// A client of RocketMQ's with its runtime, which stops with it.
struct Client {
    born: Instant,
    places: Arc<Semaphore>,
    topics: Mutex<Topics>,
    /// Something is wrong with it or with what it is connected to.
    suspect: AtomicBool,
    answered: Mutex<Option<Instant>>,
    producer: DefaultMQProducer,
    runtime: Arc<ClientRuntime>,
    owner: RuntimeOwner,
    _telemetry: TelemetryRuntimeGuard,
}

/// The client refuses all but 64 messages at once to a topic whose route it does not know yet: the first
/// one goes alone.
#[derive(Default)]
struct Topics {
    known: HashSet<String>,
    first: HashMap<String, Arc<AsyncMutex<()>>>,
}

type Sent = Result<Option<SendResult>, ClientError>;

impl Client {
    async fn start(config: &RocketMqConfig) -> Result<Self, String> {
        let text = |error: &dyn fmt::Display| error.to_string();
        let plan = RuntimeConfig {
            worker_threads: 1,
            thread_name: "task-retry-rocketmq".to_owned(),
            shutdown_timeout: FAREWELL,
            ..Default::default()
        };
        let owner = RuntimeOwner::plan(plan).map_err(|error| text(&error))?;
        let owner = owner.build().map_err(|error| text(&error))?;
        let telemetry = TelemetryRuntimeGuard::noop();
        let runtime = ClientRuntime::try_new(
            owner.root_context().component("task-retry"),
            ClientRuntimeConfig { shutdown_timeout: FAREWELL, ..Default::default() },
            telemetry.handle(),
        )
        .map_err(|error| text(&error))?;
        let credentials = config.credentials.as_ref().map(|(access_key, secret_key)| {
            AclClientRPCHook::new(SessionCredentials::with_keys(
                access_key.as_str(),
                secret_key.as_str(),
            ))
        });
        let mut producer = DefaultMQProducer::builder(runtime.clone())
            .client_config(config.client_config())
            .producer_group(config.producer_group.as_str())
            // The broker knows how much it takes.
            .max_message_size(u32::MAX)
            .rpc_hook(Arc::new(Hook(credentials)))
            .build();
        Box::pin(producer.start()).await.map_err(|error| text(&error))?;
        Ok(Self {
            born: Instant::now(),
            places: Arc::new(Semaphore::new(IN_FLIGHT as usize)),
            topics: Mutex::default(),
            suspect: AtomicBool::new(false),
            answered: Mutex::default(),
            producer,
            runtime,
            owner,
            _telemetry: telemetry,
        })
    }

    fn send(
        &self,
        message: RocketMessage,
        hash: Option<i32>,
        millis: u64,
    ) -> BoxFuture<'_, (Sent, Option<Remark>)> {
        // Boxed, for the client's futures are deep.
        Box::pin(REMARK.scope(RefCell::default(), async move {
            let sent = match hash {
                None => self.producer.send_with_timeout(message, millis).await,
                Some(hash) => {
                    let select = |queues: &[MessageQueue], _: &RocketMessage, hash: &i32| {
                        queues.get(queue_of(*hash, queues.len())).cloned()
                    };
                    self.producer.send_with_selector_timeout(message, select, hash, millis).await
                }
            };
            (sent, REMARK.with(RefCell::take))
        }))
    }

    fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// Waits until the topic is known, or nobody else is finding out.
    async fn alone(&self, topic: &str) -> Option<OwnedMutexGuard<()>> {
        let first = {
            let mut topics = lock(&self.topics);
            if topics.known.contains(topic) {
                return None;
            }
            topics.first.entry(topic.to_owned()).or_default().clone()
        };
        let alone = first.lock_owned().await;
        (!lock(&self.topics).known.contains(topic)).then_some(alone)
    }

    /// A broker has answered.
    fn answered(&self, topic: &str) {
        *lock(&self.answered) = Some(Instant::now());
        let mut topics = lock(&self.topics);
        if topics.first.remove(topic).is_some() {
            topics.known.insert(topic.to_owned());
        }
    }

    /// Nobody has answered a message of that time: if no other was answered either, the connection may
    /// be dead without knowing.
    fn timed_out(&self, began: Instant) {
        if lock(&self.answered).is_none_or(|answered| answered < began) {
            self.suspect.store(true, Ordering::Relaxed);
        }
    }

    async fn shutdown(&self) {
        Box::pin(self.producer.clone().shutdown()).await;
        self.runtime.shutdown().await;
        self.owner.shutdown_tasks().await;
    }
}

/// What a server says beside its code, which the client does not pass on.
#[derive(Debug)]
struct Remark {
    code: i32,
    text: String,
}

tokio::task_local! {
    /// Of the last answer to this message that was no success.
    static REMARK: RefCell<Option<Remark>>;
}

/// Signs requests, and reads what answers say.
struct Hook(Option<AclClientRPCHook>);

impl RPCHook for Hook {
    fn do_before_request(
        &self,
        address: SocketAddr,
        request: &mut RemotingCommand,
    ) -> Result<(), SharedError> {
        match &self.0 {
            Some(credentials) => credentials.do_before_request(address, request),
            None => Ok(()),
        }
    }

    fn do_after_response(
        &self,
        _: SocketAddr,
        _: &RemotingCommand,
        response: &mut RemotingCommand,
    ) -> Result<(), SharedError> {
        let code = response.code();
        if code != 0 {
            let text = response.remark().map(ToString::to_string).unwrap_or_default();
            let _ = REMARK.try_with(|remark| remark.replace(Some(Remark { code, text })));
        }
        Ok(())
    }
}

/// RocketMQ's codes of answers that deserve a word.
mod code {
    pub(super) const MESSAGE_ILLEGAL: i32 = 13;
    pub(super) const SERVICE_NOT_AVAILABLE: i32 = 14;
    pub(super) const NO_PERMISSION: i32 = 16;
    pub(super) const TOPIC_NOT_EXIST: i32 = 17;
}

/// A broker's no, with its words up to where its addresses of help pages begin.
fn refusal(topic: &str, code: i32, remark: &str) -> String {
    let hint = match code {
        code::MESSAGE_ILLEGAL => "the message is too large or not well formed",
        code::SERVICE_NOT_AVAILABLE => "it takes no messages now; its disk may be full",
        code::NO_PERMISSION => "check access key, secret key and their permissions",
        _ => "",
    };
    let remark = remark.lines().next().unwrap_or_default();
    let remark = remark.split("See http").next().unwrap_or_default();
    let remark: String = remark.trim_end_matches([' ', '.', ',']).chars().take(300).collect();
    let mut reason = format!("RocketMQ's broker refused a message to `{topic}` with code {code}");
    for part in [hint, &remark] {
        if !part.is_empty() {
            reason += ": ";
            reason += part;
        }
    }
    reason
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts, their hashes, and their queues of 3, 4, 8 and 16, as Java has them.
    #[test]
    fn keys_choose_the_queues_that_java_chooses() {
        for (text, hash, queues) in [
            ("key1", 3_288_498, [0, 2, 2, 2]),
            ("20221213660896", -304_555_226, [2, 2, 2, 10]),
            ("", 0, [0, 0, 0, 0]),
            ("订单", 1_129_459, [1, 3, 3, 3]),
            ("😀", 1_772_899, [1, 3, 3, 3]),
            ("a😀b", 57_849_694, [1, 2, 6, 14]),
            ("polygenelubricants", i32::MIN, [2, 0, 0, 0]),
        ] {
            assert_eq!(java_hash(text), hash, "{text}");
            assert_eq!([3, 4, 8, 16].map(|count| queue_of(hash, count)), queues, "{text}");
        }
        assert_eq!(queue_of(5, 0), 0);
    }

    #[test]
    fn a_refusal_is_one_sentence() {
        let remark = "the broker's disk is full [CL: 0.97], messages are put to the slave, message \
                      store has been shut down, etc.\nSee https://rocketmq.apache.org/docs";
        let reason = refusal("orders", 14, remark);
        assert_eq!(
            reason,
            "RocketMQ's broker refused a message to `orders` with code 14: it takes no messages now; \
             its disk may be full: the broker's disk is full [CL: 0.97], messages are put to the \
             slave, message store has been shut down, etc"
        );
        assert_eq!(
            refusal("orders", 2, ""),
            "RocketMQ's broker refused a message to `orders` with code 2"
        );
    }
}
