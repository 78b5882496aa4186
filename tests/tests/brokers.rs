//! Messages to real brokers, which are away, frozen, killed, and refuse.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use task_retry::mq::{
    self, Broker, Draft, Kafka, KafkaConfig, Message, Nats, NatsConfig, RabbitMq, RabbitMqConfig,
};
use task_retry::{
    Builder, CallError, ErrorKind, Filter, Policy, Status, Strategy, Task, TaskId, TaskLog,
    TaskRetry, source,
};
use task_retry_tests::server::Server;
use task_retry_tests::{Kind, TestDb, becomes, on, task, within};

/// Messages of the test with the crashes.
const MANY: u32 = 10_000;
/// How long a message may take in these tests.
const LIMIT: Duration = Duration::from_secs(2);
/// Far more than anything takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a consumer got.
#[derive(Clone, Debug, Default)]
struct Got {
    /// The task's id, where consumers find it.
    id: String,
    key: String,
    headers: BTreeMap<String, String>,
    body: String,
    partition: i32,
}

/// A broker, from its other side.
trait Bench: Send + Sync + 'static {
    type Broker: Broker + Strategy;
    const NAME: &'static str;
    const SOURCE: i32;
    /// The database of the test with the crashes.
    const DATABASE: Kind;

    /// The strategy, with a password other than the right one if it is given.
    async fn broker(url: &str, password: Option<&str>) -> Self::Broker;
    /// Makes what takes a topic's messages, large ones too.
    async fn create(url: &str, topic: &str);
    /// Everything that came to a topic.
    async fn read(url: &str, topic: &str) -> Vec<Got>;
    /// Topics that are refused, and what is said of them.
    fn refused() -> Vec<(&'static str, Vec<&'static str>)>;
    /// What is said of a wrong password, and of a message of 2.5 MB.
    fn words() -> [&'static str; 2];
}

struct RabbitMqBench;

impl RabbitMqBench {
    async fn channel(url: &str) -> lapin::Channel {
        let connection = lapin::Connection::connect(url, Default::default()).await.unwrap();
        connection.create_channel().await.unwrap()
    }
}

impl Bench for RabbitMqBench {
    type Broker = RabbitMq;
    const NAME: &'static str = "rabbitmq";
    const SOURCE: i32 = source::RABBIT_MQ;
    const DATABASE: Kind = Kind::Postgres;

    async fn broker(url: &str, password: Option<&str>) -> RabbitMq {
        let url = url.replace("secret", password.unwrap_or("secret"));
        RabbitMq::connect(RabbitMqConfig::new(url).send_timeout(LIMIT)).await.unwrap()
    }

    async fn create(url: &str, topic: &str) {
        let options = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
        let channel = Self::channel(url).await;
        channel.queue_declare(topic.into(), options, Default::default()).await.unwrap();
    }

    async fn read(url: &str, topic: &str) -> Vec<Got> {
        let channel = Self::channel(url).await;
        let options = lapin::options::BasicGetOptions { no_ack: true };
        let mut all = Vec::new();
        while let Some(message) = channel.basic_get(topic.into(), options).await.unwrap() {
            let properties = &message.properties;
            assert_eq!(*properties.delivery_mode(), Some(2));
            let headers = properties.headers().iter().flat_map(|table| table.inner());
            let headers: BTreeMap<_, _> = headers
                .map(|(name, value)| {
                    let value = value.as_long_string().unwrap().as_bytes();
                    (name.to_string(), String::from_utf8(value.to_vec()).unwrap())
                })
                .collect();
            all.push(Got {
                id: properties.message_id().as_ref().unwrap().to_string(),
                key: headers.get("key").cloned().unwrap_or_default(),
                headers,
                body: String::from_utf8(message.data.to_vec()).unwrap(),
                partition: 0,
            });
        }
        all
    }

    fn refused() -> Vec<(&'static str, Vec<&'static str>)> {
        vec![
            ("no-such-queue", vec!["queue `no-such-queue`", "NO_ROUTE", "312", "declare or bind"]),
            ("/exchanges/nowhere/a%2Fb", vec!["exchange `nowhere`", "NOT_FOUND", "declare it"]),
            ("/exchanges/amq.topic/a%2Fb", vec!["`amq.topic`", "routing key `a/b`", "NO_ROUTE"]),
            ("/queues/100%", vec!["no address of RabbitMQ"]),
        ]
    }

    fn words() -> [&'static str; 2] {
        ["ACCESS_REFUSED", "max size"]
    }
}

struct NatsBench;

impl NatsBench {
    async fn stream(url: &str) -> async_nats::jetstream::Context {
        let options =
            async_nats::ConnectOptions::with_user_and_password("tester".into(), "secret".into());
        async_nats::jetstream::new(options.connect(url).await.unwrap())
    }
}

impl Bench for NatsBench {
    type Broker = Nats;
    const NAME: &'static str = "nats";
    const SOURCE: i32 = source::NATS;
    const DATABASE: Kind = Kind::Sqlite;

    async fn broker(url: &str, password: Option<&str>) -> Nats {
        let server = url.replace("tester:secret@", "");
        let config = NatsConfig::new(server).user("tester", password.unwrap_or("secret"));
        Nats::connect(config.send_timeout(LIMIT)).await.unwrap()
    }

    async fn create(url: &str, topic: &str) {
        let config = async_nats::jetstream::stream::Config {
            name: topic.to_owned(),
            subjects: vec![topic.to_owned()],
            ..Default::default()
        };
        Self::stream(url).await.create_stream(config).await.unwrap();
    }

    async fn read(url: &str, topic: &str) -> Vec<Got> {
        let mut stream = Self::stream(url).await.get_stream(topic).await.unwrap();
        let count = stream.info().await.unwrap().state.messages as usize;
        let config = async_nats::jetstream::consumer::pull::Config {
            ack_policy: async_nats::jetstream::consumer::AckPolicy::None,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.unwrap();
        let messages = consumer.messages().await.unwrap().take(count);
        messages
            .map(|message| {
                let message = message.unwrap();
                let headers: BTreeMap<_, _> = message
                    .headers
                    .iter()
                    .flat_map(|all| all.iter())
                    .map(|(name, values)| (name.to_string(), values[0].to_string()))
                    .collect();
                assert_eq!(headers["Nats-Msg-Id"], headers["task-id"]);
                Got {
                    id: headers["task-id"].clone(),
                    key: headers.get("key").cloned().unwrap_or_default(),
                    headers,
                    body: String::from_utf8(message.payload.to_vec()).unwrap(),
                    partition: 0,
                }
            })
            .collect()
            .await
    }

    fn refused() -> Vec<(&'static str, Vec<&'static str>)> {
        vec![
            ("no.such.stream", vec!["no stream takes the subject `no.such.stream`", "create one"]),
            ("two words", vec!["`two words` is no subject"]),
            ("", vec!["`` is no subject"]),
        ]
    }

    fn words() -> [&'static str; 2] {
        ["authorization violation", "max payload"]
    }
}

struct KafkaBench;

impl KafkaBench {
    fn client(url: &str, password: &str) -> KafkaConfig {
        KafkaConfig::new(url.rsplit_once('@').unwrap().1)
            .send_timeout(LIMIT)
            .set("security.protocol", "SASL_PLAINTEXT")
            .set("sasl.mechanism", "PLAIN")
            .set("sasl.username", "tester")
            .set("sasl.password", password)
    }

    fn admin(url: &str) -> rdkafka::ClientConfig {
        let mut config = rdkafka::ClientConfig::new();
        config
            .set("bootstrap.servers", url.rsplit_once('@').unwrap().1)
            .set("security.protocol", "SASL_PLAINTEXT")
            .set("sasl.mechanism", "PLAIN")
            .set("sasl.username", "tester")
            .set("sasl.password", "secret")
            .set("group.id", "test")
            .set("auto.offset.reset", "earliest");
        config
    }
}

impl Bench for KafkaBench {
    type Broker = Kafka;
    const NAME: &'static str = "kafka";
    const SOURCE: i32 = source::KAFKA;
    const DATABASE: Kind = Kind::Sqlite;

    async fn broker(url: &str, password: Option<&str>) -> Kafka {
        Kafka::connect(Self::client(url, password.unwrap_or("secret"))).await.unwrap()
    }

    async fn create(url: &str, topic: &str) {
        use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
        let admin: AdminClient<_> = Self::admin(url).create().unwrap();
        let topic = NewTopic::new(topic, 4, TopicReplication::Fixed(1));
        let made = admin.create_topics(&[topic], &AdminOptions::new()).await.unwrap();
        made.into_iter().for_each(|topic| _ = topic.unwrap());
    }

    async fn read(url: &str, topic: &str) -> Vec<Got> {
        use rdkafka::consumer::{BaseConsumer, Consumer};
        use rdkafka::message::{Headers, Message as _};
        let (config, topic) = (Self::admin(url), topic.to_owned());
        let read = move || {
            let consumer: BaseConsumer = config.create().unwrap();
            let wait = Duration::from_secs(30);
            let mut places = rdkafka::TopicPartitionList::new();
            let mut left = HashMap::new();
            for partition in 0..4 {
                let (low, high) = consumer.fetch_watermarks(&topic, partition, wait).unwrap();
                let offset = rdkafka::Offset::Beginning;
                places.add_partition_offset(&topic, partition, offset).unwrap();
                if low < high {
                    left.insert(partition, high - 1);
                }
            }
            consumer.assign(&places).unwrap();
            let mut all = Vec::new();
            while !left.is_empty() {
                let message = consumer.poll(wait).expect("there are more").unwrap();
                if left.get(&message.partition()) == Some(&message.offset()) {
                    left.remove(&message.partition());
                }
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let headers: BTreeMap<_, _> = message
                    .headers()
                    .unwrap()
                    .iter()
                    .map(|header| (header.key.to_owned(), text(header.value.unwrap())))
                    .collect();
                all.push(Got {
                    id: headers["task-id"].clone(),
                    key: message.key().map(text).unwrap_or_else(|| "none".into()),
                    headers,
                    body: text(message.payload().unwrap()),
                    partition: message.partition(),
                });
            }
            all
        };
        let mut all = tokio::task::spawn_blocking(read).await.unwrap();
        for got in &mut all {
            assert_ne!(got.key, "", "an empty key is no key");
            if got.key == "none" {
                got.key.clear();
            }
        }
        all
    }

    fn refused() -> Vec<(&'static str, Vec<&'static str>)> {
        vec![
            ("no-such-topic", vec!["no topic `no-such-topic`", "create it"]),
            ("a/b", vec!["a/b"]),
            ("", vec!["no topic of Kafka"]),
        ]
    }

    fn words() -> [&'static str; 2] {
        ["uthentication failed", "too large"]
    }
}

fn builder<B: Bench>(db: &TestDb, broker: B::Broker) -> Builder {
    let short = Duration::from_millis(250);
    let policy = Policy::new().max_retry(1_000).first_execute(short).delay_base(short);
    db.builder().strategy_with(broker, policy.delay_multiplier(1.0))
}

/// The broker of `tests/run`.
fn url<B: Bench>() -> Option<String> {
    task_retry_tests::broker(&format!("TASK_RETRY_TEST_{}", B::NAME.to_uppercase()))
}

/// A topic that no other test has.
fn topic(what: &str) -> String {
    format!("{what}-{}", fastrand::u64(..))
}

/// Waits until a task has failed, and says all of these words, within its time.
async fn fails(retry: &TaskRetry, id: TaskId, words: &[&str]) -> TaskLog {
    let start = Instant::now();
    loop {
        let error = task(retry, id).await.last_error;
        if error.as_ref().is_some_and(|error| words.iter().all(|word| error.contains(word))) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{words:?} is not said, but {error:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let row = task(retry, id).await;
    assert_eq!(row.status, Status::Retrying, "{row:?}");
    assert!(!row.last_error.as_deref().unwrap_or_default().contains("secret"), "{row:?}");
    row
}

async fn succeeds(retry: &TaskRetry, id: TaskId) {
    let start = Instant::now();
    loop {
        let row = task(retry, id).await;
        if row.status == Status::Succeeded {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "not sent: {row:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Key, headers, id and body arrive by each door.
async fn messages_arrive<B: Bench>() {
    let Some(url) = url::<B>() else { return };
    on(Kind::Sqlite, async |db| {
        let topic = topic("arrive");
        B::create(&url, &topic).await;
        let broker = B::broker(&url, None).await;
        let colours = |task: &TaskLog| {
            let message = Message::of(task).header("colour", "grün").header("empty", "");
            Ok(message.body(
                [b"<".as_slice(), task.context.as_deref().unwrap().as_bytes(), b">"].concat(),
            ))
        };
        let colours = broker.assembled(40, "colours", colours);
        let retry = builder::<B>(&db, broker).strategy(colours).start().await.unwrap();
        let draft = || Draft::new(B::SOURCE, &topic);
        draft().key("20221213660896").send("objMsg 中").on(&retry).await.unwrap();
        draft().send(&[1, 2]).on(&retry).await.unwrap();
        Draft::new(40, &topic).key("k").send("x").on(&retry).await.unwrap();
        let untyped = Task::new(B::SOURCE).topic(&topic).key("untyped");
        let untyped = retry.submit(untyped).await.unwrap().id();
        becomes(&retry, untyped, Status::Succeeded).await;
        let got = B::read(&url, &topic).await;
        let got: HashMap<_, _> = got.into_iter().map(|got| (got.body.clone(), got)).collect();
        assert_eq!(got.len(), 4, "{got:?}");
        for (body, key) in
            [("objMsg 中", "20221213660896"), ("[1,2]", ""), ("<x>", "k"), ("", "untyped")]
        {
            assert_eq!(got[body].key, key, "{body}");
            let row = task(&retry, got[body].id.parse::<i64>().unwrap().into()).await;
            assert_eq!((row.msg_key.as_str(), row.send_count), (key, 0));
        }
        assert_eq!(got["<x>"].headers["colour"], "grün");
        assert_eq!(got["<x>"].headers["empty"], "");
        retry.shutdown().await.unwrap();
    })
    .await;
}

/// What a broker refuses waits, and says why.
async fn refused_messages_wait<B: Bench>() {
    let Some(url) = url::<B>() else { return };
    on(Kind::Sqlite, async |db| {
        let good = topic("refuse");
        B::create(&url, &good).await;
        let retry = builder::<B>(&db, B::broker(&url, None).await).start().await.unwrap();
        let send = async |topic: &str, body: &str| {
            let task = Task::new(B::SOURCE).topic(topic).context(body);
            retry.submit(task).await.unwrap().id()
        };
        let started = Instant::now();
        let refused = Draft::new(B::SOURCE, B::refused()[0].0).send("x").on(&retry);
        match refused.await {
            Err(CallError::Deferred { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert!(started.elapsed() < LIMIT + Duration::from_secs(1), "{:?}", started.elapsed());
        let large = "x".repeat(2_500_000);
        let mut waiting = vec![(send(&good, &large).await, vec![B::words()[1]])];
        for (topic, words) in B::refused() {
            waiting.push((send(topic, "x").await, words));
        }
        for (id, words) in &waiting {
            fails(&retry, *id, words).await;
        }
        // Good ones get through beside them.
        let sent = stream::iter(0..200).map(async |n| send(&good, &n.to_string()).await);
        let sent: Vec<_> = sent.buffer_unordered(50).collect().await;
        for id in &sent {
            succeeds(&retry, *id).await;
        }
        let got: HashSet<_> = B::read(&url, &good).await.into_iter().map(|got| got.id).collect();
        assert_eq!(got, sent.iter().map(ToString::to_string).collect());
        retry.shutdown().await.unwrap();
    })
    .await;
    on(Kind::Sqlite, async |db| {
        let broker = B::broker(&url, Some("wrong-secret")).await;
        let retry = builder::<B>(&db, broker).start().await.unwrap();
        let task = Task::new(B::SOURCE).topic("any").context("x");
        let id = retry.submit(task).await.unwrap().id();
        fails(&retry, id, &[B::words()[0]]).await;
        retry.shutdown().await.unwrap();
    })
    .await;
}

/// A broker that is away, frozen and killed loses nothing.
async fn no_message_is_lost<B: Bench>() {
    if url::<B>().is_none() {
        return;
    }
    let Some(server) = Server::named(B::NAME).await else { return };
    let url = server.url();
    on(B::DATABASE, async |db| {
        let topic = topic("crash");
        B::create(&url, &topic).await;

        server.kill();
        let retry = builder::<B>(&db, B::broker(&url, None).await).start().await.unwrap();
        let send = async |body: String| {
            let task = Task::new(B::SOURCE).topic(&topic).key(&body).context(body);
            retry.submit(task).await.unwrap().id()
        };
        let started = Instant::now();
        match Draft::new(B::SOURCE, &topic).send("away").on(&retry).await {
            Err(CallError::Deferred { .. }) => {}
            other => panic!("{other:?}"),
        }
        println!("{}: away: {:?}", B::NAME, started.elapsed());
        assert!(started.elapsed() < LIMIT + Duration::from_secs(1), "{:?}", started.elapsed());
        let waiting = send("waits".into()).await;
        println!("{}: {:?}", B::NAME, fails(&retry, waiting, &[]).await.last_error);
        server.restart().await;
        succeeds(&retry, waiting).await;

        server.freeze();
        let started = Instant::now();
        match Draft::new(B::SOURCE, &topic).send("frozen").on(&retry).await {
            Err(CallError::Deferred { id, cause, .. }) => {
                println!("{}: frozen: {:?}, {cause}", B::NAME, started.elapsed());
                let spent = started.elapsed();
                assert!(spent < LIMIT + Duration::from_secs(1), "{spent:?}");
                server.thaw();
                succeeds(&retry, id).await;
            }
            other => panic!("{other:?}"),
        }

        let started = Instant::now();
        let sent = stream::iter(0..MANY).map(|n| send(n.to_string()));
        let sent = async { sent.buffer_unordered(256).collect::<Vec<_>>().await };
        let succeeded = Filter::all().status(Status::Succeeded);
        let done = async || retry.tasks().count(succeeded.clone()).await.unwrap();
        let crashes = async {
            for (crash, after) in [(1, 1_000), (2, 4_000)] {
                within(PATIENCE, "some are sent", async || done().await >= after).await;
                let at = retry.now();
                server.kill();
                server.restart().await;
                println!("{}: crash {crash} at {at}: {:?}", B::NAME, started.elapsed());
            }
        };
        let (sent, ()) = tokio::join!(sent, crashes);
        let all = u64::from(MANY) + 3;
        within(PATIENCE, "all are sent", async || done().await == all).await;
        let got = B::read(&url, &topic).await;
        let ids: HashSet<_> = got.iter().map(|got| got.id.clone()).collect();
        let lost: Vec<_> = sent.iter().filter(|id| !ids.contains(&id.to_string())).collect();
        for id in &lost {
            println!("lost: {:?}", task(&retry, **id).await);
        }
        let lost = lost.len();
        let duplicates = got.len() - ids.len();
        let spent = started.elapsed();
        println!("{}: {MANY} messages, {lost} lost, {duplicates} duplicates, {spent:?}", B::NAME);
        assert_eq!((lost, ids.len() as u64), (0, all));
        retry.shutdown().await.unwrap();
    })
    .await;
}

macro_rules! brokers {
    ($($module:ident $bench:ident: $($name:ident),*;)*) => {
        $(mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<super::$bench>().await;
            })*
        })*
    };
}

brokers! {
    rabbitmq RabbitMqBench: messages_arrive, refused_messages_wait, no_message_is_lost;
    nats NatsBench: messages_arrive, refused_messages_wait, no_message_is_lost;
    kafka KafkaBench: messages_arrive, refused_messages_wait, no_message_is_lost;
}

/// One message fits; the next one waits until there is room.
async fn waits_for_room<B: Bench>(url: &str, topic: &str, said: &str, make_room: impl AsyncFn()) {
    on(Kind::Sqlite, async |db| {
        let retry = builder::<B>(&db, B::broker(url, None).await).start().await.unwrap();
        Draft::new(B::SOURCE, topic).send("first").on(&retry).await.unwrap();
        let task = Task::new(B::SOURCE).topic(topic).context("second");
        let second = retry.submit(task).await.unwrap().id();
        fails(&retry, second, &[said]).await;
        make_room().await;
        succeeds(&retry, second).await;
        retry.shutdown().await.unwrap();
    })
    .await;
}

/// A queue that takes one message.
async fn small_queue(channel: &lapin::Channel, topic: &str) {
    let mut limits = lapin::types::FieldTable::default();
    limits.insert("x-max-length".into(), lapin::types::AMQPValue::LongInt(1));
    let refuse = lapin::types::AMQPValue::LongString("reject-publish".into());
    limits.insert("x-overflow".into(), refuse);
    let options = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(topic.into(), options, limits).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_queue_of_rabbitmq_is_full_messages_wait() {
    let Some(url) = url::<RabbitMqBench>() else { return };
    let topic = topic("full");
    let channel = RabbitMqBench::channel(&url).await;
    small_queue(&channel, &topic).await;
    waits_for_room::<RabbitMqBench>(&url, &topic, "its queue is full", async || {
        let options = Default::default();
        channel.queue_purge(topic.as_str().into(), options).await.unwrap();
    })
    .await;
}

/// Many threads send at once, by one channel, to a queue that takes all and to one that takes none: what
/// is said of one message is not taken for what is said of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn rabbitmq_confirms_each_message_for_itself() {
    let Some(url) = url::<RabbitMqBench>() else { return };
    on(Kind::Sqlite, async |db| {
        let (good, full) = (topic("good"), topic("full"));
        RabbitMqBench::create(&url, &good).await;
        small_queue(&RabbitMqBench::channel(&url).await, &full).await;
        let broker = RabbitMqBench::broker(&url, None).await;
        let retry = builder::<RabbitMqBench>(&db, broker.clone()).start().await.unwrap();
        Draft::new(source::RABBIT_MQ, &full).send("first").on(&retry).await.unwrap();
        let row = retry.tasks().list(Filter::all()).await.unwrap().remove(0);
        let senders = (0..64).map(|sender| {
            let topic = if sender % 2 == 0 { good.clone() } else { full.clone() };
            let (broker, row) = (broker.clone(), row.clone());
            tokio::spawn(async move {
                let mut wrong = 0;
                for _ in 0..200 {
                    let sent = broker.publish(Message::of(&row).topic(&topic)).await;
                    wrong += u32::from(sent.is_ok() != (sender % 2 == 0));
                }
                wrong
            })
        });
        let mut wrong = 0;
        for sender in senders.collect::<Vec<_>>() {
            wrong += sender.await.unwrap();
        }
        assert_eq!(wrong, 0, "of 12,800 messages");
        retry.shutdown().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_stream_of_nats_is_full_messages_wait() {
    let Some(url) = url::<NatsBench>() else { return };
    let topic = topic("full");
    let config = async_nats::jetstream::stream::Config {
        name: topic.clone(),
        subjects: vec![topic.clone()],
        max_messages: 1,
        discard: async_nats::jetstream::stream::DiscardPolicy::New,
        ..Default::default()
    };
    let stream = NatsBench::stream(&url).await.create_stream(config).await.unwrap();
    waits_for_room::<NatsBench>(&url, &topic, "maximum messages", async || {
        stream.purge().await.unwrap();
    })
    .await;
}

/// Java's `Utils.murmur2`, as it is published.
fn murmur2(data: &[u8]) -> i32 {
    const M: i32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c_u32 as i32 ^ data.len() as i32;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = i32::from_le_bytes(chunk.try_into().unwrap()).wrapping_mul(M);
        k ^= (k as u32 >> 24) as i32;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    for (n, byte) in rest.iter().enumerate().rev() {
        hash ^= i32::from(*byte) << (8 * n);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash ^= (hash as u32 >> 13) as i32;
    hash = hash.wrapping_mul(M);
    hash ^ (hash as u32 >> 15) as i32
}

#[test]
fn our_murmur2_is_javas() {
    // From the tests of Kafka's Java client.
    for (text, hash) in [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ] {
        assert_eq!(murmur2(text.as_bytes()), hash, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_kafka_chooses_the_partition_that_java_would() {
    let Some(url) = url::<KafkaBench>() else { return };
    on(Kind::Sqlite, async |db| {
        let topic = topic("keys");
        KafkaBench::create(&url, &topic).await;
        let broker = KafkaBench::broker(&url, None).await;
        let retry = builder::<KafkaBench>(&db, broker).start().await.unwrap();
        let keys = ["21", "foobar", "abc", "a-little-bit-longer-string", "20221213660896", "中文"];
        for key in keys {
            mq::kafka(&topic).key(key).send(key).on(&retry).await.unwrap();
        }
        let got = KafkaBench::read(&url, &topic).await;
        assert_eq!(got.len(), keys.len());
        for got in got {
            let expected = (murmur2(got.body.as_bytes()) & i32::MAX) % 4;
            assert_eq!(got.partition, expected, "{}", got.body);
        }
        retry.shutdown().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_configuration_is_checked_and_keeps_its_secrets() {
    let kafka = |key: &str| {
        Kafka::connect(
            KafkaConfig::new("127.0.0.1:1").set("sasl.password", "geheim").set(key, "geheim"),
        )
    };
    for key in ["acks", "enable.idempotence", "partitioner", "message.timeout.ms", "no.such.key"] {
        let error = kafka(key).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(key), "{error}");
        assert!(!error.to_string().contains("geheim"), "{error}");
    }
    let ok = Kafka::connect(KafkaConfig::new("127.0.0.1:1").set("sasl.password", "geheim"));
    let ok = ok.await.unwrap();
    assert!(!format!("{ok:?}").contains("geheim"), "{ok:?}");
    ok.close().await;
    ok.close().await;
    assert!(Kafka::connect(KafkaConfig::new(" ")).await.is_err());

    for servers in ["nats://u:geheim@", "nats://u:geheim@h:x", ""] {
        let error = Nats::connect(NatsConfig::new(servers)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(!error.to_string().contains("geheim"), "{error}");
    }
    let config = NatsConfig::new("nats://127.0.0.1:1");
    let error = Nats::connect(config.clone().credentials_file("/no/such/file")).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/file"), "{error}");
    let error = Nats::connect(config.clone().root_certificate("/no/such/file")).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/file"), "{error}");
    let ok = Nats::connect(config.user("u", "geheim").token("geheim")).await.unwrap();
    assert!(!format!("{ok:?}").contains("geheim"), "{ok:?}");
    ok.close().await;
    ok.close().await;

    let ok = RabbitMq::connect(RabbitMqConfig::new("amqp://u:geheim@127.0.0.1:1")).await.unwrap();
    assert!(!format!("{ok:?}").contains("geheim"), "{ok:?}");
    ok.close().await;
    let brief = RabbitMqConfig::new("amqp://127.0.0.1").send_timeout(Duration::from_millis(1));
    assert_eq!(RabbitMq::connect(brief).await.unwrap_err().kind(), ErrorKind::Config);
    let _ = (mq::rabbitmq("q"), mq::nats("s"));
}
