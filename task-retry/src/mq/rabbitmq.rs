use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex as Lock, OnceLock, PoisonError};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind,
    ExchangeKind, runtime,
};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Broker, Draft, Message, PublishError, SEND_TIMEOUT, check_timeout, config, percent_decoded,
    strategy,
};
use crate::{Result, source};

/// A message to RabbitMQ: to a routing key of the exchange that was configured, by default to a queue
/// of this name; or to an address, see [`RabbitMq`].
pub fn rabbitmq(topic: impl Into<String>) -> Draft {
    Draft::new(source::RABBIT_MQ, topic)
}

/// The longest text that AMQP has for names, in bytes.
const SHORT: usize = 255;

/// How to reach RabbitMQ, and how long to wait for it.
///
/// `Debug` does not show the URL, for its password.
#[derive(Clone)]
pub struct RabbitMqConfig {
    url: String,
    exchange: String,
    heartbeat: Duration,
    max_message_size: usize,
    root_certificates: Option<String>,
    send_timeout: Duration,
}

impl RabbitMqConfig {
    /// The server, `amqp://user:password@host:port/vhost`, or `amqps://` for TLS. Without a path the
    /// virtual host is `/`; one with a slash in its name is written with `%2f`. Defaults: user and
    /// password `guest`, port 5672, 5671 with TLS.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            exchange: String::new(),
            heartbeat: Duration::from_secs(10),
            max_message_size: 16 << 20,
            root_certificates: None,
            send_timeout: SEND_TIMEOUT,
        }
    }

    /// The exchange to which topics are routing keys, at most 255 bytes. Default: the default exchange,
    /// the empty name, whose routing keys are queues.
    pub fn exchange(mut self, exchange: impl Into<String>) -> Self {
        self.exchange = exchange.into();
        self
    }

    /// How often each side tells that it is there, 1 s to 65,535 s. Default 10 s. After two of
    /// silence the connection is given up.
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.heartbeat = every;
        self
    }

    /// The largest body to send, in bytes. Default 16 MiB, as RabbitMQ 4 has it. Set it to the broker's
    /// own `max_message_size` where that is smaller: what is larger makes the broker close the channel
    /// that all messages share.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.max_message_size = bytes;
        self
    }

    /// Certificates to trust beside those of the system, in PEM.
    pub fn root_certificates(mut self, pem: impl Into<String>) -> Self {
        self.root_certificates = Some(pem.into());
        self
    }

    /// How long a message may take, connecting included, 100 ms to 1 h. Default 3 s.
    pub fn send_timeout(mut self, timeout: Duration) -> Self {
        self.send_timeout = timeout;
        self
    }

    fn uri(&self) -> Result<AMQPUri> {
        check_timeout(self.send_timeout)?;
        // The parser's own words would repeat the URL, with its password.
        let mut uri: AMQPUri = self.url.parse().map_err(|_| {
            config("the URL of RabbitMQ is not of the form amqp://user:password@host:port/vhost")
        })?;
        // The parser takes an IPv6 address for localhost.
        if let Some((host, _)) = bracketed(&self.url) {
            uri.authority.host = host.to_owned();
        }
        let seconds = u16::try_from(self.heartbeat.as_secs()).ok().filter(|seconds| *seconds > 0);
        let Some(seconds) = seconds else {
            let heartbeat = self.heartbeat;
            return Err(config(format!("the heartbeat {heartbeat:?} is not from 1 s to 65,535 s")));
        };
        uri.query.heartbeat = Some(seconds);
        short("exchange", &self.exchange).map_err(|error| config(error.reason))?;
        Ok(uri)
    }
}

/// The address in the brackets of a URL.
fn bracketed(url: &str) -> Option<(&str, &str)> {
    let authority = url.split_once("://")?.1.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.strip_prefix('[')?.split_once(']')
}

impl fmt::Debug for RabbitMqConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitMqConfig")
            .field("exchange", &self.exchange)
            .field("heartbeat", &self.heartbeat)
            .field("max_message_size", &self.max_message_size)
            .field("send_timeout", &self.send_timeout)
            .finish_non_exhaustive()
    }
}

/// Sends messages to RabbitMQ: the strategy of source 11.
///
/// The topic is a routing key of the exchange that was configured; with the default exchange, a queue.
/// Or it is an address as RabbitMQ 4 has them, whose parts are percent-encoded:
/// `/exchanges/:exchange/:routing-key`, `/exchanges/:exchange` or `/queues/:queue`.
///
/// Each message is persistent and has its task's id as its message id, so no header `task-id` is
/// needed; a key is the header `key`. A message is sent when the broker has confirmed it and has routed
/// it to some queue: one that it returns as unroutable has failed.
///
/// All messages share one channel of one connection, which is made for the first one and made anew
/// when it is lost.
///
/// ```no_run
/// use task_retry::mq::{self, RabbitMq, RabbitMqConfig};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let rabbit = RabbitMq::connect(RabbitMqConfig::new("amqp://shop:secret@127.0.0.1/%2f")).await?;
/// let retry = task_retry::TaskRetry::builder().project("shop").strategy(rabbit).start().await?;
/// mq::rabbitmq("orders").key("20221213660896").send("objMsg").await?;
/// mq::rabbitmq("/exchanges/events/order.placed").send("objMsg").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RabbitMq(Arc<Inner>);

struct Inner {
    config: RabbitMqConfig,
    uri: AMQPUri,
    link: Mutex<Option<Arc<Link>>>,
}

struct Link {
    connection: Connection,
    channel: Channel,
    socket: Socket,
    /// Exchanges that are there, for a message to one that is not would end the channel.
    exchanges: Lock<HashSet<String>>,
    /// When the broker last confirmed something.
    heard: Lock<Instant>,
    /// Messages go out in the order of their numbers.
    order: Lock<()>,
}

/// A second handle to a connection's socket, with which to end it: the client itself waits for a broker
/// that is frozen.
#[derive(Clone, Default)]
struct Socket(Arc<OnceLock<std::net::TcpStream>>);

impl Socket {
    #[cfg(unix)]
    fn hold(&self, stream: &impl std::os::fd::AsFd) {
        if let Ok(socket) = stream.as_fd().try_clone_to_owned() {
            let _ = self.0.set(socket.into());
        }
    }

    #[cfg(windows)]
    fn hold(&self, stream: &impl std::os::windows::io::AsSocket) {
        if let Ok(socket) = stream.as_socket().try_clone_to_owned() {
            let _ = self.0.set(socket.into());
        }
    }

    fn cut(&self) {
        if let Some(socket) = self.0.get() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Cuts the socket of an attempt to connect that was given up.
struct Attempt(Option<Socket>);

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            socket.cut();
        }
    }
}

/// Exchange and routing key.
#[derive(Debug, PartialEq, Eq)]
struct Route {
    exchange: String,
    key: String,
}

impl Route {
    fn of(topic: &str, exchange: &str) -> Result<Self, PublishError> {
        let address = || -> Option<(String, String)> {
            if let Some(queue) = topic.strip_prefix("/queues/") {
                return Some((String::new(), decoded(queue)?));
            }
            let (exchange, key) = match topic.strip_prefix("/exchanges/")? {
                path if path.contains('/') => path.split_once('/')?,
                path => (path, ""),
            };
            Some((decoded(exchange)?, decoded(key)?))
        };
        let is_address = topic.starts_with("/queues/") || topic.starts_with("/exchanges/");
        let (exchange, key) = match is_address {
            false => (exchange.to_owned(), topic.to_owned()),
            true => address().ok_or_else(|| {
                PublishError::new(format!(
                    "`{topic}` is no address of RabbitMQ: write /exchanges/:exchange/:routing-key or \
                     /queues/:queue, with / in a name as %2F and % as %25"
                ))
            })?,
        };
        short("exchange", &exchange)?;
        short("routing key", &key)?;
        Ok(Self { exchange, key })
    }
}

/// One part of an address.
fn decoded(part: &str) -> Option<String> {
    if part.contains('/') { None } else { percent_decoded(part) }
}

fn short(what: &str, text: &str) -> Result<ShortString, PublishError> {
    ShortString::try_new(text).map_err(|_| {
        let bytes = text.len();
        PublishError::new(format!("the {what} has {bytes} bytes; RabbitMQ takes {SHORT}"))
    })
}

impl RabbitMq {
    /// Checks the configuration. It connects for the first message: that RabbitMQ is away is no error,
    /// messages wait.
    ///
    /// # Errors
    /// `Config` if the URL, the exchange, the heartbeat or the time-out are not usable.
    pub async fn connect(config: RabbitMqConfig) -> Result<Self> {
        let uri = config.uri()?;
        Ok(Self(Arc::new(Inner { config, uri, link: Mutex::default() })))
    }
}

impl Inner {
    /// The connection; a new one if there is none that works.
    async fn link(&self) -> Result<Arc<Link>, lapin::Error> {
        let mut slot = self.link.lock().await;
        if let Some(link) = &*slot {
            if link.connection.status().connected() && link.channel.status().connected() {
                return Ok(link.clone());
            }
            slot.take();
        }
        let link = Arc::new(self.open().await?);
        Ok(slot.insert(link).clone())
    }

    async fn open(&self) -> Result<Link, lapin::Error> {
        let socket = Socket::default();
        let mut attempt = Attempt(Some(socket.clone()));
        let tls = OwnedTLSConfig {
            cert_chain: self.config.root_certificates.clone(),
            ..OwnedTLSConfig::default()
        };
        let (hold, limit) = (socket.clone(), self.config.send_timeout);
        let name = LongString::from("task-retry");
        let properties = ConnectionProperties::default().with_connection_name(name);
        let runtime = runtime::default_runtime()?;
        let connect = Connection::connector(
            self.uri.clone(),
            runtime,
            async move |uri, runtime| {
                let at = (uri.authority.host.as_str(), uri.authority.port);
                let stream = async {
                    let addresses: Vec<_> = tokio::net::lookup_host(at).await?.collect();
                    let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
                    if let AsyncTcpStream::Plain(stream) = &stream {
                        hold.hold(stream.get_ref());
                    }
                    match uri.scheme {
                        AMQPScheme::AMQP => Ok(stream),
                        AMQPScheme::AMQPS => {
                            stream.into_tls(&uri.authority.host, tls.as_ref()).await
                        }
                    }
                };
                // In a thread of the client, which would otherwise wait as long as the system does.
                let stream = timeout(limit, stream).await;
                Ok(stream.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?)
            },
            properties,
        );
        let connection = connect.await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        attempt.0 = None;
        let heard = Lock::new(Instant::now());
        let (exchanges, order) = (Lock::default(), Lock::default());
        Ok(Link { connection, channel, socket, exchanges, heard, order })
    }

    async fn send(&self, message: &Message, route: &Route) -> Result<(), PublishError> {
        let mut again = false;
        loop {
            let link = self.link().await.map_err(|error| {
                let place = self.place();
                PublishError::new(format!(
                    "cannot connect to RabbitMQ at {place}: {}",
                    words(&error)
                ))
            })?;
            let mut silent = Silent { link: &link, started: Instant::now(), over: false };
            let sent = async {
                link.find(&route.exchange).await?;
                Ok(link.publish(message, route).await)
            };
            let sent = sent.await;
            silent.over = true;
            match sent? {
                Ok(confirmation) => {
                    link.heard();
                    return judged(confirmation, route);
                }
                // Another message may have ended the channel: that costs this one no attempt.
                Err(_) if !again && link.connection.status().connected() => again = true,
                Err(error) => {
                    return Err(PublishError::new(format!(
                        "RabbitMQ did not confirm the message to {route}: {}",
                        words(&error)
                    )));
                }
            }
        }
    }

    fn place(&self) -> String {
        format!("{}:{}", self.uri.authority.host, self.uri.authority.port)
    }
}

/// Cuts a connection when a message's time is over and nothing was confirmed meanwhile.
struct Silent<'a> {
    link: &'a Link,
    started: Instant,
    over: bool,
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        let heard = *self.link.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.over && heard < self.started {
            self.link.socket.cut();
        }
    }
}

impl Link {
    /// The broker has answered.
    fn heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Asks for an exchange, on a channel of its own, since the broker closes it if there is none.
    async fn find(&self, exchange: &str) -> Result<(), PublishError> {
        let known = || self.exchanges.lock().unwrap_or_else(PoisonError::into_inner);
        if exchange.is_empty() || known().contains(exchange) {
            return Ok(());
        }
        let asked = async {
            let channel = self.connection.create_channel().await?;
            let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
            let (name, table) = (ShortString::from(exchange), FieldTable::default());
            // Of one that is only asked for, the kind says nothing.
            channel.exchange_declare(name, ExchangeKind::Direct, options, table).await?;
            channel.close(200, "OK".into()).await
        };
        match asked.await {
            Ok(()) => {
                known().insert(exchange.to_owned());
                self.heard();
                Ok(())
            }
            Err(error) => Err(PublishError::new(format!(
                "the exchange `{exchange}` of RabbitMQ cannot be used, declare it first: {}",
                words(&error)
            ))),
        }
    }

    async fn publish(&self, message: &Message, route: &Route) -> lapin::Result<Confirmation> {
        let mut headers = FieldTable::default();
        let key = [("key".to_owned(), message.key.clone())];
        let key = key.into_iter().filter(|(_, key)| !key.is_empty());
        for (name, value) in message.headers.iter().cloned().chain(key) {
            if let Ok(name) = ShortString::try_new(name) {
                headers.insert(name, AMQPValue::LongString(value.into()));
            }
        }
        let properties = BasicProperties::default()
            .with_delivery_mode(2) // persistent
            .with_message_id(message.id.to_string().into())
            .with_headers(headers);
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let (exchange, key) = (route.exchange.as_str().into(), route.key.as_str().into());
        let sending = self.channel.basic_publish(exchange, key, options, &message.body, properties);
        let mut sending = std::pin::pin!(sending);
        // The client numbers a message and then queues it, and the broker numbers them as they come: in
        // between nobody else may, or one is taken for confirmed by what the broker says of another.
        let confirmed = std::future::poll_fn(|context| {
            let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
            sending.as_mut().poll(context)
        });
        confirmed.await?.await
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { exchange, key } = self;
        match exchange.as_str() {
            "" => write!(f, "the queue `{key}` (default exchange)"),
            _ => write!(f, "the exchange `{exchange}`, routing key `{key}`"),
        }
    }
}

fn judged(confirmation: Confirmation, route: &Route) -> Result<(), PublishError> {
    let reason = match confirmation {
        Confirmation::Ack(None) => return Ok(()),
        Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => format!(
            "RabbitMQ returned the message to {route}: {} ({}); declare or bind a queue for it",
            returned.reply_text, returned.reply_code
        ),
        Confirmation::Nack(None) => {
            format!("RabbitMQ refused the message to {route}: its queue is full, or has failed")
        }
        Confirmation::NotRequested => "RabbitMQ does not confirm messages".into(),
    };
    Err(PublishError::new(reason))
}

fn words(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => error.to_string(),
        ErrorKind::IOError(error) => error.to_string(),
        _ => error.to_string(),
    }
}

impl Broker for RabbitMq {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let Inner { config, .. } = &*self.0;
        let deadline = Instant::now() + config.send_timeout;
        let route = Route::of(&message.topic, &config.exchange)?;
        for (name, _) in &message.headers {
            short("name of a header", name)?;
        }
        let (bytes, most) = (message.body.len(), config.max_message_size);
        if bytes > most {
            return Err(PublishError::new(format!(
                "the message has {bytes} bytes, more than the {most} of `max_message_size`: raise \
                 that and the broker's own"
            )));
        }
        let sent = timeout_at(deadline, self.0.send(&message, &route)).await;
        sent.unwrap_or_else(|_| {
            let (place, limit) = (self.0.place(), config.send_timeout);
            Err(PublishError::new(format!(
                "RabbitMQ at {place} did not confirm the message to {route} within {limit:?}"
            )))
        })
    }

    async fn close(&self) {
        if let Some(link) = self.0.link.lock().await.take() {
            let closed = link.connection.close(200, "OK".into());
            if timeout(Duration::from_secs(1), closed).await.is_err() {
                link.socket.cut();
            }
        }
    }
}

strategy!(RabbitMq, source::RABBIT_MQ, "rabbitmq");

impl fmt::Debug for RabbitMq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RabbitMq").field(&self.0.config).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(topic: &str) -> Option<(String, String)> {
        Route::of(topic, "x").ok().map(|route| (route.exchange, route.key))
    }

    #[test]
    fn a_topic_is_a_routing_key_or_an_address() {
        for (topic, exchange, key) in [
            ("orders", "x", "orders"),
            ("", "x", ""),
            ("a/b%2F", "x", "a/b%2F"),
            ("/orders", "x", "/orders"),
            ("/queues/a%2Fb%25", "", "a/b%"),
            ("/queues/%E4%B8%AD", "", "中"),
            ("/exchanges/e/k.l", "e", "k.l"),
            ("/exchanges/e/", "e", ""),
            ("/exchanges/e", "e", ""),
            ("/exchanges/a%2fb/c%2fd", "a/b", "c/d"),
        ] {
            assert_eq!(route(topic), Some((exchange.into(), key.into())), "{topic}");
        }
        for topic in ["/queues/a/b", "/exchanges/e/k/l", "/queues/%", "/queues/%g0", "/queues/%ff"]
        {
            assert_eq!(route(topic), None, "{topic}");
        }
        assert!(route(&"中".repeat(86)).is_none(), "258 bytes");
        assert!(route(&"中".repeat(85)).is_some());
    }

    #[test]
    fn a_url_is_checked_without_telling_its_password() {
        let uri = |url: &str| RabbitMqConfig::new(url).uri();
        assert_eq!(uri("amqp://a:b@[::1]:5673/%2f").unwrap().authority.host, "::1");
        assert_eq!(uri("amqp://127.0.0.1").unwrap().authority.host, "127.0.0.1");
        for url in ["http://a:geheim@h", "amqp:geheim", "geheim", "amqp://a:geheim@h:port"] {
            let error = uri(url).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Config);
            assert!(!error.to_string().contains("geheim"), "{error}");
        }
        let config = RabbitMqConfig::new("amqp://a:geheim@h");
        assert!(!format!("{config:?}").contains("geheim"));
        assert!(config.clone().heartbeat(Duration::ZERO).uri().is_err());
        assert!(config.clone().send_timeout(Duration::ZERO).uri().is_err());
        assert!(config.exchange("x".repeat(256)).uri().is_err());
    }
}
