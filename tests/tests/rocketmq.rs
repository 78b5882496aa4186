//! Messages to RocketMQ, read back by its consumer.
#![recursion_limit = "512"]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
#[allow(deprecated)]
use rocketmq_client_rust::DefaultMQPullConsumer;
use rocketmq_client_rust::{ClientRuntime, ClientRuntimeConfig, PullStatus};
use rocketmq_model::common::message::message_ext::MessageExt;
use rocketmq_observability::TelemetryRuntimeGuard;
use rocketmq_runtime::{RuntimeConfig, RuntimeOwner};
use task_retry::mq::{self, Broker, Draft, Message, RocketMq, RocketMqConfig};
use task_retry::{
    CallError, ErrorKind, Filter, Policy, Status, Strategy, Task, TaskId, TaskLog, TaskRetry,
    source,
};
use task_retry_tests::disk::Tmpfs;
use task_retry_tests::server::Server;
use task_retry_tests::{Kind, TestDb, becomes, broker, on, task, within};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

const NAME_SERVER: &str = "TASK_RETRY_TEST_ROCKETMQ";

/// Who kills the servers of `tests/run` has them alone.
static SERVERS: RwLock<()> = RwLock::const_new(());

async fn alive() -> Option<(String, RwLockReadGuard<'static, ()>)> {
    Some((broker(NAME_SERVER)?, SERVERS.read().await))
}

/// The servers, alone: name server's address, broker, name server.
struct Alone {
    broker: Server,
    name_server: Server,
    address: String,
    _guard: RwLockWriteGuard<'static, ()>,
}

impl Alone {
    async fn get() -> Option<Self> {
        let address = broker(NAME_SERVER)?;
        let guard = SERVERS.write().await;
        let (broker, name_server) =
            (Server::shared("rocketmq")?, Server::shared("rocketmq-namesrv")?);
        let alone = Self { broker, name_server, address, _guard: guard };
        alone.works().await;
        Some(alone)
    }

    /// Waits until a client of its own has sent something: a port that is open is not enough.
    async fn works(&self) -> Duration {
        works(config(&self.address)).await
    }
}

async fn works(config: RocketMqConfig) -> Duration {
    let log = message().await;
    within(Duration::from_secs(60), "RocketMQ takes messages", async || {
        let probe = RocketMq::connect(config.clone()).await.unwrap();
        let sent = probe.publish(Message::of(&log).topic("probe")).await;
        probe.close().await;
        sent.is_ok()
    })
    .await
}

/// A task's row to make messages of.
async fn message() -> TaskLog {
    let db = TestDb::create(Kind::Sqlite).await.unwrap();
    let nobody = RocketMq::connect(config("127.0.0.1:1")).await.unwrap();
    let retry = db.builder().job(false).strategy(nobody).start().await.unwrap();
    let stored =
        retry.submit(Task::new(source::ROCKET_MQ).topic("t").context("body")).await.unwrap();
    let log = task(&retry, stored.id()).await;
    retry.shutdown().await.unwrap();
    if let Ok(db) = Arc::try_unwrap(Arc::new(db)) {
        db.drop().await;
    }
    log
}

fn config(address: &str) -> RocketMqConfig {
    RocketMqConfig::new(address).producer_group("tests")
}

/// A topic of one test's own.
fn topic(name: &str) -> String {
    format!("{name}-{:08x}", fastrand::u32(..))
}

/// Retries soon and for long.
fn soon() -> Policy {
    let time = Duration::from_millis(200);
    Policy::new().max_retry(1000).first_execute(time).delay_base(time).delay_multiplier(1.0)
}

async fn start(db: &TestDb, config: RocketMqConfig) -> TaskRetry {
    start_with(db, config, soon()).await
}

async fn start_with(db: &TestDb, config: RocketMqConfig, policy: Policy) -> TaskRetry {
    let rocketmq = RocketMq::connect(config).await.unwrap();
    db.builder().strategy_with(rocketmq, policy).start().await.unwrap()
}

async fn on_sqlite<F: Future<Output = ()>>(body: impl FnOnce(Arc<TestDb>) -> F) {
    on(Kind::Sqlite, body).await;
}

/// A message as it was received.
#[derive(Clone, Debug)]
struct Received {
    queue: i32,
    offset: i64,
    key: String,
    tag: String,
    body: String,
    properties: HashMap<String, String>,
}

impl Received {
    fn of(message: &MessageExt) -> Self {
        let properties = message.properties().iter();
        let properties: HashMap<String, String> =
            properties.map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let property = |name: &str| properties.get(name).cloned().unwrap_or_default();
        Self {
            queue: message.queue_id(),
            offset: message.queue_offset(),
            key: property("KEYS"),
            tag: property("TAGS"),
            body: String::from_utf8(message.body().unwrap_or_default().to_vec()).unwrap(),
            properties,
        }
    }
}

/// Reads a topic queue by queue, from the beginning of each, until there is enough.
///
/// The pushing consumer is faster, but was seen to give some messages the number of another queue.
#[allow(deprecated)] // the lite one, too, pulls several queues at once
async fn consume(
    address: &str,
    topic: &str,
    tags: &str,
    enough: impl Fn(&[Received]) -> bool,
) -> Vec<Received> {
    let plan =
        RuntimeConfig { worker_threads: 1, thread_name: "consumer".into(), ..Default::default() };
    let owner = RuntimeOwner::plan(plan).unwrap().build().unwrap();
    let telemetry = TelemetryRuntimeGuard::noop();
    let context = owner.root_context().component("consumer");
    let client =
        ClientRuntime::try_new(context, ClientRuntimeConfig::default(), telemetry.handle())
            .unwrap();
    let consumer = DefaultMQPullConsumer::builder(client.clone())
        .consumer_group(format!("group-{:08x}", fastrand::u32(..)))
        .name_server_addr(address)
        .build()
        .unwrap();
    consumer.start().await.unwrap();
    let state = tokio::sync::Mutex::new((HashMap::<i32, i64>::new(), Vec::new()));
    within(Duration::from_secs(60), "the messages arrive", async || {
        let (offsets, received) = &mut *state.lock().await;
        let Ok(queues) = consumer.fetch_subscribe_message_queues(topic).await else { return false };
        for queue in queues {
            let offset = offsets.entry(queue.queue_id()).or_default();
            while let Ok(pulled) = consumer.pull(&queue, tags, *offset, 32).await {
                *offset = i64::try_from(pulled.next_begin_offset()).unwrap();
                if *pulled.pull_status() != PullStatus::Found {
                    break;
                }
                let messages = pulled.msg_found_list().unwrap_or_default();
                received.extend(messages.iter().map(Received::of));
            }
        }
        enough(received)
    })
    .await;
    let _ = consumer.shutdown().await;
    client.shutdown().await;
    owner.shutdown_tasks().await;
    owner.shutdown_background();
    state.into_inner().1
}

fn distinct(received: &[Received]) -> usize {
    received.iter().map(|message| message.body.as_str()).collect::<HashSet<_>>().len()
}

async fn all_succeed(retry: &TaskRetry, count: u64, limit: Duration) -> Duration {
    within(limit, "all messages are sent", async || {
        retry.tasks().count(Filter::all().status(Status::Succeeded)).await.unwrap() == count
    })
    .await
}

async fn both_lines_arrive() {
    let Some((address, _alive)) = alive().await else { return };
    on_sqlite(async |db| {
        let retry = start(&db, config(&address)).await;
        let topic = topic("my-topic");
        // The starter's line, then the typed one.
        let untyped =
            Task::new(source::ROCKET_MQ).topic(&topic).key("20221213660896").context("objMsg");
        let untyped = retry.submit(untyped).await.unwrap().id();
        becomes(&retry, untyped, Status::Succeeded).await;
        mq::rocketmq(format!("{topic}:paid")).key("key1").send(&[1, 2]).on(&retry).await.unwrap();
        mq::rocketmq(&topic).send("无键 😀").on(&retry).await.unwrap();
        let received = consume(&address, &topic, "*", |received| received.len() >= 3).await;
        retry.shutdown().await.unwrap();
        assert_eq!(received.len(), 3, "{received:?}");
        let of = |body: &str| received.iter().find(|message| message.body == body).expect(body);
        let first = of("objMsg");
        assert_eq!(
            (first.key.as_str(), first.tag.as_str(), first.queue),
            ("20221213660896", "", 2)
        );
        assert_eq!(first.properties["task-id"], untyped.to_string());
        let second = of("[1,2]");
        assert_eq!((second.key.as_str(), second.tag.as_str(), second.queue), ("key1", "paid", 2));
        assert_eq!(of("无键 😀").key, "");
        let tagged = consume(&address, &topic, "paid", |received| !received.is_empty()).await;
        assert_eq!(tagged.len(), 1);
        assert_eq!(tagged[0].body, "[1,2]");
    })
    .await;
}

#[tokio::test]
async fn both_lines_arrive_on_one_thread() {
    both_lines_arrive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_lines_arrive_on_several_threads() {
    both_lines_arrive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_assembled_message_has_headers_and_goes_by_the_same_connection() {
    let Some((address, _alive)) = alive().await else { return };
    on_sqlite(async |db| {
        let rocketmq = RocketMq::connect(config(&address)).await.unwrap();
        let topic = topic("assembled");
        let to = topic.clone();
        let assembled = rocketmq.assembled(40, "orders", move |task: &TaskLog| {
            Ok(Message::of(task).topic(to.clone()).header("shop", "x").header("none", ""))
        });
        let builder = db.builder().strategy(rocketmq.clone()).strategy(assembled);
        let retry = builder.start().await.unwrap();
        Draft::new(40, "").key("k").send("one").on(&retry).await.unwrap();
        mq::rocketmq(&topic).key("k").send("two").on(&retry).await.unwrap();
        retry.shutdown().await.unwrap();
        // Closed twice by now; it opens again for who needs it.
        let log = message().await;
        rocketmq.publish(Message::of(&log).topic(&topic).body("three")).await.unwrap();
        rocketmq.shutdown().await;
        rocketmq.shutdown().await;
        let received = consume(&address, &topic, "*", |received| received.len() >= 3).await;
        let one = received.iter().find(|message| message.body == "one").unwrap();
        assert_eq!(one.properties["shop"], "x");
        assert!(!one.properties.contains_key("none"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_goes_to_the_queue_that_java_chooses() {
    let Some((address, _alive)) = alive().await else { return };
    let Some(server) = Server::shared("rocketmq") else { return };
    on_sqlite(async |db| {
        let retry = start(&db, config(&address)).await;
        let topic = topic("java");
        let keys =
            ["key1", "20221213660896", "订单", "a😀b", "polygenelubricants", "k 2", "k3", "k4"];
        for key in keys {
            mq::rocketmq(&topic).key(key).send(&key).on(&retry).await.unwrap();
        }
        let java = tokio::process::Command::new(server.path("by-hash"))
            .args([&topic, &address])
            .args(keys)
            .env("LC_ALL", "C.UTF-8") // else it does not read its arguments as UTF-8
            .output();
        let java = java.await.unwrap();
        assert!(java.status.success(), "{}", String::from_utf8_lossy(&java.stderr));
        let printed = String::from_utf8(java.stdout).unwrap();
        let queues: Vec<&str> = printed.lines().filter(|line| line.starts_with("queue ")).collect();
        assert_eq!(queues.len(), keys.len(), "{printed}");
        let ours =
            consume(&address, &topic, "*", |received| received.len() == 2 * keys.len()).await;
        for (key, queue) in keys.iter().zip(queues) {
            let both: Vec<_> = ours.iter().filter(|message| message.body == *key).collect();
            assert_eq!(both.len(), 2, "{key}");
            for message in both {
                assert_eq!(queue, format!("queue {} SEND_OK", message.queue), "{key}");
            }
        }
        retry.shutdown().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_to_a_new_topic_arrives_whole() {
    let Some((address, _alive)) = alive().await else { return };
    on_sqlite(async |db| {
        let retry = start(&db, config(&address)).await;
        let topic = topic("burst");
        let drafts = (0..1000).map(|n: u32| {
            let draft = mq::rocketmq(&topic);
            let draft = if n.is_multiple_of(2) { draft } else { draft.key(n.to_string()) };
            draft.send(&n).on(&retry).into_future()
        });
        let sent = join_all(drafts).await;
        let failed: Vec<_> = sent.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed[0]);
        let received = consume(&address, &topic, "*", |received| distinct(received) == 1000).await;
        println!("burst: {} duplicates", received.len() - 1000);
        retry.shutdown().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_no_client_may_send_ends_at_once() {
    on_sqlite(async |db| {
        let rocketmq = RocketMq::connect(config("127.0.0.1:1")).await.unwrap();
        let named = |name: &'static str, value: &'static str| {
            move |task: &TaskLog| Ok(Message::of(task).header(name, value))
        };
        let builder = db.builder().strategy(rocketmq.clone());
        let builder = builder.strategy(rocketmq.assembled(40, "reserved", named("KEYS", "x")));
        let builder = builder.strategy(rocketmq.assembled(41, "separator", named("a", "\u{1}")));
        let retry = builder.start().await.unwrap();
        let long = "x".repeat(128);
        for (source, topic, body, reason) in [
            (10, "orders", "", "empty body"),
            (10, "", "x", "the topic ``"),
            (10, ":tag", "x", "the topic ``"),
            (10, "中", "x", "the topic `中`"),
            (10, &long, "x", "127"),
            (40, "orders", "x", "`KEYS`"),
            (41, "orders", "x", "U+0001"),
        ] {
            let stored = retry.submit(Task::new(source).topic(topic).context(body)).await.unwrap();
            let row = becomes(&retry, stored.id(), Status::Failed).await;
            let error = row.last_error.unwrap();
            assert!(error.contains(reason) && row.send_count == 1, "{error}");
        }
        retry.shutdown().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_bad_configuration_is_refused() {
    let good = || config("127.0.0.1:9876;localhost:9877");
    RocketMq::connect(good()).await.unwrap();
    for (bad, named) in [
        (config(""), "host:port"),
        (config("127.0.0.1"), "`127.0.0.1`"),
        (config("127.0.0.1:9876;x:0"), "`x:0`"),
        (good().producer_group(""), "producer group"),
        (good().producer_group("a b"), "`a b`"),
        (good().send_timeout(Duration::ZERO), "time-out"),
        (good().credentials("", "x"), "access key"),
        (good().tls_ca("/nowhere"), "`.tls(true)`"),
        (good().tls(true).tls_ca("/nowhere"), "/nowhere"),
    ] {
        let error = RocketMq::connect(bad).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(named), "{error}");
    }
    let shown = format!("{:?}", RocketMq::connect(good().credentials("me", "hush")).await.unwrap());
    assert!(shown.contains("me") && !shown.contains("hush"), "{shown}");
}

/// A time-out of one second, and what an attempt may take by it.
const SECOND: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_millis(1500);

/// Sends one message that cannot arrive now, and checks how it is put off.
async fn deferred(retry: &TaskRetry, topic: &str, body: &str, said: &str) -> TaskId {
    let began = Instant::now();
    let sent = mq::rocketmq(topic).key("k").send(body).on(retry).await;
    let took = began.elapsed();
    let Err(CallError::Deferred { id, cause, .. }) = sent else { panic!("{sent:?}") };
    println!("{took:?}: {cause}");
    assert!(took < LIMIT, "{took:?}");
    assert!(cause.to_string().contains(said), "{cause}");
    let error = task(retry, id).await.last_error.unwrap();
    assert!(error.contains(said) && error.len() < 500, "{error}");
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_listens_messages_wait() {
    on_sqlite(async |db| {
        let retry = start(&db, config("127.0.0.1:1").send_timeout(SECOND)).await;
        deferred(&retry, "orders", "a", "127.0.0.1:1").await;
        let many = (0..300).map(|n: u32| mq::rocketmq("orders").send(&n).on(&retry).into_future());
        let began = Instant::now();
        for sent in join_all(many).await {
            assert!(sent.is_err_and(|error| error.is_deferred()));
        }
        println!("300 put off in {:?}", began.elapsed());
        let began = Instant::now();
        retry.shutdown().await.unwrap();
        println!("shut down in {:?}", began.elapsed());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_server_is_away_messages_wait() {
    let Some(servers) = Alone::get().await else { return };
    on_sqlite(async |db| {
        let retry = start(&db, config(&servers.address).send_timeout(SECOND)).await;
        let (topic, fresh, quiet) = (topic("away"), topic("fresh"), topic("quiet"));
        mq::rocketmq(&topic).key("k").send("before").on(&retry).await.unwrap();

        servers.broker.freeze();
        let frozen = deferred(&retry, &topic, "frozen", "not answered within 1s").await;
        servers.broker.thaw();
        becomes(&retry, frozen, Status::Succeeded).await;

        servers.broker.kill();
        let killed = deferred(&retry, &topic, "killed", "RocketMQ").await;
        servers.broker.restart().await;
        println!("broker back after {:?}", servers.works().await);
        becomes(&retry, killed, Status::Succeeded).await;

        servers.name_server.kill();
        // What is known goes on; what is new waits.
        mq::rocketmq(&topic).key("k").send("known").on(&retry).await.unwrap();
        let unknown = deferred(&retry, &fresh, "unknown", &servers.address).await;
        servers.name_server.restart().await;
        println!("name server back after {:?}", servers.works().await);
        becomes(&retry, unknown, Status::Succeeded).await;

        servers.name_server.freeze();
        let silent = deferred(&retry, &quiet, "silent", "RocketMQ").await;
        servers.name_server.thaw();
        becomes(&retry, silent, Status::Succeeded).await;

        let received = consume(&servers.address, &topic, "*", |all| distinct(all) == 4).await;
        println!("away: {} duplicates", received.len() - 4);
        retry.shutdown().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_breaker_costs_no_more_than_the_next_attempt() {
    let Some(servers) = Alone::get().await else { return };
    let log = message().await;
    let topic = topic("breaker");
    let rocketmq = RocketMq::connect(config(&servers.address).send_timeout(SECOND)).await.unwrap();
    for keyed in [true, false] {
        let message = || Message::of(&log).topic(&topic).key(if keyed { "k" } else { "" });
        rocketmq.publish(message()).await.unwrap();
        servers.broker.kill();
        // Five failures would do.
        let mut failed = 0;
        while failed < 40 {
            let error = rocketmq.publish(message()).await.unwrap_err();
            assert!(error.retry, "{error}");
            failed += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        servers.broker.restart().await;
        println!("broker back after {:?}", servers.works().await);
        let attempts = [rocketmq.publish(message()).await, rocketmq.publish(message()).await];
        println!("keyed {keyed}: {attempts:?}");
        assert!(attempts.iter().any(Result::is_ok), "{attempts:?}");
    }
    rocketmq.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_broker_is_killed() {
    const COUNT: usize = 10_000;
    let Some(servers) = Alone::get().await else { return };
    on_sqlite(async |db| {
        let retry = start(&db, config(&servers.address)).await;
        let topic = topic("killed");
        let began = Instant::now();
        let submits = async {
            for batch in 0..100 {
                let tasks = (0..COUNT / 100).map(|n| {
                    let n = batch * 100 + n;
                    let task = Task::new(source::ROCKET_MQ).topic(&topic).context(n.to_string());
                    retry.submit(if n.is_multiple_of(2) {
                        task
                    } else {
                        task.key(format!("key{}", n % 50))
                    })
                });
                for stored in join_all(tasks).await {
                    stored.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let kills = async {
            for after in [1500, 6000] {
                let sent =
                    async || retry.tasks().count(Filter::all().status(Status::Succeeded)).await;
                within(Duration::from_secs(60), "some are sent", async || {
                    sent().await.unwrap() >= after
                })
                .await;
                servers.broker.kill();
                let at = sent().await.unwrap();
                tokio::time::sleep(Duration::from_millis(500)).await; // an outage that is seen
                servers.broker.restart().await;
                println!("killed with {at} sent, back {:?} later", servers.works().await);
            }
        };
        tokio::join!(submits, kills);
        all_succeed(&retry, COUNT as u64, Duration::from_secs(90)).await;
        println!("all sent after {:?}", began.elapsed());
        retry.shutdown().await.unwrap();
        let received = consume(&servers.address, &topic, "*", |all| distinct(all) == COUNT).await;
        println!("killed twice: {COUNT} messages, {} duplicates", received.len() - COUNT);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_each_message_keeps_the_order_of_a_key() {
    const KEYS: usize = 6;
    const EACH: usize = 60;
    let Some(servers) = Alone::get().await else { return };
    on_sqlite(async |db| {
        let retry = start(&db, config(&servers.address).send_timeout(SECOND)).await;
        let topic = topic("order");
        let senders = (0..KEYS).map(async |key| {
            for n in 0..EACH {
                let body = format!("{key}/{n}");
                let draft = mq::rocketmq(&topic).key(format!("key{key}"));
                match draft.send(&body).on(&retry).await {
                    Ok(()) => {}
                    Err(CallError::Deferred { id, .. }) => {
                        within(Duration::from_secs(60), "it is sent", async || {
                            task(&retry, id).await.status == Status::Succeeded
                        })
                        .await;
                    }
                    Err(error) => panic!("{error}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let kills = async {
            within(Duration::from_secs(60), "some are sent", async || {
                let sent = Filter::all().status(Status::Succeeded);
                retry.tasks().count(sent).await.unwrap() > 30
            })
            .await;
            servers.broker.kill();
            tokio::time::sleep(Duration::from_millis(300)).await; // an outage that is seen
            servers.broker.restart().await;
        };
        tokio::join!(join_all(senders), kills);
        retry.shutdown().await.unwrap();
        let received =
            consume(&servers.address, &topic, "*", |all| distinct(all) == KEYS * EACH).await;
        println!("order: {} duplicates", received.len() - KEYS * EACH);
        let mut keys: BTreeMap<String, Vec<Received>> = BTreeMap::new();
        for message in received {
            keys.entry(message.key.clone()).or_default().push(message);
        }
        for (key, mut messages) in keys {
            messages.sort_by_key(|message| message.offset);
            let place = |message: &Received| (message.queue, message.offset, message.body.clone());
            let places: Vec<_> = messages.iter().map(place).collect();
            assert!(
                messages.iter().all(|message| message.queue == messages[0].queue),
                "{places:?}"
            );
            let mut seen = HashSet::new();
            let firsts = messages.iter().filter(|message| seen.insert(message.body.clone()));
            let order: Vec<usize> = firsts
                .map(|message| message.body.split_once('/').unwrap().1.parse().unwrap())
                .collect();
            assert_eq!(order, (0..EACH).collect::<Vec<_>>(), "{key}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_wrong_password_messages_wait() {
    if broker(NAME_SERVER).is_none() {
        return;
    }
    let settings = "authenticationEnabled=true
authenticationProvider=org.apache.rocketmq.auth.authentication.provider.DefaultAuthenticationProvider
authenticationMetadataProvider=org.apache.rocketmq.auth.authentication.provider.LocalAuthenticationMetadataProvider
initAuthenticationUser={\"username\":\"admin\",\"password\":\"secret-1\"}
innerClientAuthenticationCredentials={\"accessKey\":\"admin\",\"secretKey\":\"secret-1\"}";
    let server = Server::start_with("rocketmq", "-acl", &[("ROCKETMQ_BROKER", settings)]).await;
    let Some(server) = server else { return };
    on_sqlite(async |db| {
        let good = config(&server.url()).credentials("admin", "secret-1");
        works(good.clone()).await;
        let bad = config(&server.url()).credentials("admin", "secret-2").send_timeout(SECOND);
        let topic = topic("acl");
        let retry = start(&db, bad).await;
        let id = deferred(&retry, &topic, "one", "code 16: check access key").await;
        retry.shutdown().await.unwrap();
        let none = start(&db, config(&server.url()).send_timeout(SECOND)).await;
        deferred(&none, &topic, "two", "code 16").await;
        none.shutdown().await.unwrap();
        // The password has been mended.
        let retry = start(&db, good).await;
        becomes(&retry, id, Status::Succeeded).await;
        all_succeed(&retry, 2, Duration::from_secs(30)).await;
        retry.shutdown().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_by_tls_to_whom_is_trusted() {
    if broker(NAME_SERVER).is_none() {
        return;
    }
    let server = Server::start_with("rocketmq", "-tls", &[("ROCKETMQ_TLS", "1")]).await;
    let Some(server) = server else { return };
    on_sqlite(async |db| {
        let stranger = config(&server.url()).tls(true).send_timeout(SECOND);
        let trusted = stranger.clone().tls_ca(server.path("cert.pem"));
        let topic = topic("tls");
        let retry = start(&db, stranger).await;
        let id = deferred(&retry, &topic, "one", "RocketMQ").await;
        retry.shutdown().await.unwrap();
        works(trusted.clone()).await;
        let retry = start(&db, trusted).await;
        becomes(&retry, id, Status::Succeeded).await;
        retry.shutdown().await.unwrap();
        consume(&server.url(), &topic, "*", |received| !received.is_empty()).await;
    })
    .await;
}

/// Of the small file system, in MiB.
const SIZE: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_brokers_disk_is_full_messages_wait() {
    if broker(NAME_SERVER).is_none() {
        return;
    }
    let Some(disk) = Tmpfs::mount(SIZE) else { return };
    let settings = [("ROCKETMQ_STORE", disk.path().to_str().unwrap())];
    let Some(server) = Server::start_with("rocketmq", "-full", &settings).await else { return };
    on_sqlite(async |db| {
        works(config(&server.url())).await;
        let retry = start(&db, config(&server.url()).send_timeout(SECOND)).await;
        // 94 % full, which the broker notices within ten seconds; with nothing left it would crash.
        disk.fill_but((SIZE << 20) * 6 / 100);
        let topic = topic("full");
        let id = Mutex::new(None);
        within(Duration::from_secs(60), "the broker is full", async || {
            match mq::rocketmq(&topic).send("x").on(&retry).await {
                Ok(()) => false,
                Err(CallError::Deferred { id: deferred, .. }) => {
                    *id.lock().unwrap() = Some(deferred);
                    true
                }
                Err(error) => panic!("{error}"),
            }
        })
        .await;
        let id = id.into_inner().unwrap().unwrap();
        let error = task(&retry, id).await.last_error.unwrap();
        println!("{error}");
        assert!(error.contains("code 14") && error.contains("full"), "{error}");
        disk.clear();
        within(Duration::from_secs(60), "it is sent", async || {
            task(&retry, id).await.status == Status::Succeeded
        })
        .await;
        retry.shutdown().await.unwrap();
    })
    .await;
    drop(server);
}
