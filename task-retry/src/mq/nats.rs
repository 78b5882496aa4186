use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{
    Client, ClientError, ConnectOptions, Event, HeaderMap, HeaderName, HeaderValue, Request,
    RequestErrorKind, ServerAddr,
};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::{
    Broker, Draft, Message, PublishError, SEND_TIMEOUT, check_timeout, config, percent_decoded,
    strategy,
};
use crate::{Result, source};

/// A message to a subject of NATS, see [`Nats`].
pub fn nats(subject: impl Into<String>) -> Draft {
    Draft::new(source::NATS, subject)
}

/// How to reach NATS, and how long to wait for it.
///
/// `Debug` shows neither passwords nor tokens.
#[derive(Clone)]
pub struct NatsConfig {
    servers: String,
    user: Option<(String, String)>,
    token: Option<String>,
    credentials: Option<PathBuf>,
    root_certificate: Option<PathBuf>,
    client_certificate: Option<(PathBuf, PathBuf)>,
    require_tls: bool,
    send_timeout: Duration,
}

impl NatsConfig {
    /// The servers, `nats://host:port`, several with commas between them; `tls://` requires TLS. User
    /// and password, or a token, may be in the URL: `nats://user:password@host`, `nats://token@host`.
    pub fn new(servers: impl Into<String>) -> Self {
        Self {
            servers: servers.into(),
            user: None,
            token: None,
            credentials: None,
            root_certificate: None,
            client_certificate: None,
            require_tls: false,
            send_timeout: SEND_TIMEOUT,
        }
    }

    /// The user's name and password. Default: those in the URL, if any.
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some((name.into(), password.into()));
        self
    }

    /// A token instead of user and password.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// A file of credentials, with a JWT and an nkey, as `nsc` writes it.
    pub fn credentials_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.credentials = Some(path.into());
        self
    }

    /// A PEM file of certificates to trust beside those of the system.
    pub fn root_certificate(mut self, path: impl Into<PathBuf>) -> Self {
        self.root_certificate = Some(path.into());
        self
    }

    /// PEM files of this client's certificate and key.
    pub fn client_certificate(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.client_certificate = Some((certificate.into(), key.into()));
        self
    }

    /// Whether to refuse servers without TLS. Default `false`.
    pub fn require_tls(mut self, require: bool) -> Self {
        self.require_tls = require;
        self
    }

    /// How long a message may take, connecting included, 100 ms to 1 h. Default 3 s.
    pub fn send_timeout(mut self, timeout: Duration) -> Self {
        self.send_timeout = timeout;
        self
    }

    /// The servers, and the options without those of the servers.
    fn addresses(&self, mut options: ConnectOptions) -> Result<(Vec<ServerAddr>, ConnectOptions)> {
        // The parser's own words would repeat the URL, with its password.
        let bad = || {
            config("the servers of NATS are not of the form nats://host:port, with commas between")
        };
        let mut addresses = Vec::new();
        for server in self.servers.split(',') {
            let server: ServerAddr = server.trim().parse().map_err(|_| bad())?;
            if server.host().is_empty() || !["nats", "tls"].contains(&server.scheme()) {
                return Err(bad());
            }
            let decoded = |text: &str| percent_decoded(text).ok_or_else(bad);
            if let (Some(user), None, None) = (server.username(), &self.user, &self.token) {
                options = match server.password() {
                    Some(password) => options.user_and_password(decoded(user)?, decoded(password)?),
                    None => options.token(decoded(user)?),
                };
            }
            // The client does not use what is before the @, and would log it.
            let host = match server.host() {
                host if host.contains(':') => format!("[{host}]"),
                host => host.to_owned(),
            };
            let bare = format!("{}://{host}:{}", server.scheme(), server.port());
            addresses.push(bare.parse().map_err(|_| bad())?);
        }
        Ok((addresses, options))
    }

    async fn options(&self) -> Result<ConnectOptions> {
        let mut options = ConnectOptions::new()
            .name("task-retry")
            .retry_on_initial_connect()
            // So that one which was closed while NATS is away ends; the next message makes another.
            .max_reconnects(60)
            .connection_timeout(self.send_timeout)
            .ping_interval(Duration::from_secs(10))
            .require_tls(self.require_tls)
            .reconnect_delay_callback(|attempts| {
                Duration::from_millis(50 << attempts.clamp(1, 6)).min(Duration::from_secs(2))
            });
        if let Some((name, password)) = &self.user {
            options = options.user_and_password(name.clone(), password.clone());
        }
        if let Some(token) = &self.token {
            options = options.token(token.clone());
        }
        if let Some(path) = &self.credentials {
            options = options.credentials_file(path).await.map_err(|error| unread(path, error))?;
        }
        if let Some(path) = &self.root_certificate {
            readable(path)?;
            options = options.add_root_certificates(path.clone());
        }
        if let Some((certificate, key)) = &self.client_certificate {
            readable(certificate)?;
            readable(key)?;
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        Ok(options)
    }
}

fn readable(path: &Path) -> Result<()> {
    File::open(path).map(drop).map_err(|error| unread(path, error))
}

fn unread(path: &Path, error: std::io::Error) -> crate::Error {
    config(format!("{}, which NATS is to use, cannot be read", path.display())).with_source(error)
}

impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsConfig")
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .field("credentials_file", &self.credentials)
            .field("require_tls", &self.require_tls)
            .field("send_timeout", &self.send_timeout)
            .finish_non_exhaustive()
    }
}

/// Sends messages to NATS JetStream: the strategy of source 12.
///
/// The topic is the subject; there has to be a stream that takes it. Each message has its task's id as
/// `Nats-Msg-Id`, so that JetStream drops what is sent again within the stream's duplicate window (2
/// minutes by default), and as the header `task-id`; a key is the header `key`. A message is sent when
/// JetStream has acknowledged it.
///
/// The client connects in the background and reconnects by itself; while it is not connected,
/// messages fail at once and are retried by the policy.
///
/// ```no_run
/// use task_retry::mq::{self, Nats, NatsConfig};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let nats = Nats::connect(NatsConfig::new("nats://127.0.0.1:4222").user("shop", "secret")).await?;
/// let retry = task_retry::TaskRetry::builder().project("shop").strategy(nats).start().await?;
/// mq::nats("orders.placed").key("20221213660896").send("objMsg").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Nats(Arc<Inner>);

struct Inner {
    config: NatsConfig,
    addresses: Vec<ServerAddr>,
    options: ConnectOptions,
    link: Mutex<Option<Link>>,
}

#[derive(Clone)]
struct Link {
    client: Client,
    state: watch::Receiver<State>,
}

#[derive(Clone, Default)]
enum State {
    /// It has not connected yet, nor failed to.
    #[default]
    New,
    Up,
    /// Why it is not connected.
    Down(String),
    /// It does not connect any more.
    Ended,
}

impl Nats {
    /// Checks the configuration and begins to connect. That NATS is away is no error: messages wait.
    ///
    /// # Errors
    /// `Config` if the servers, the time-out or a file that is named are not usable.
    pub async fn connect(config: NatsConfig) -> Result<Self> {
        check_timeout(config.send_timeout)?;
        let (addresses, options) = config.addresses(config.options().await?)?;
        let nats = Self(Arc::new(Inner { config, addresses, options, link: Mutex::default() }));
        nats.0.link().await.map_err(|error| super::config(error.reason))?;
        Ok(nats)
    }
}

impl Link {
    fn lives(&self) -> bool {
        !matches!(*self.state.borrow(), State::Ended)
    }
}

impl Inner {
    /// The client; a new one after `close`.
    async fn link(&self) -> Result<Link, PublishError> {
        let there = self.link.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(link) = there.filter(Link::lives) {
            return Ok(link);
        }
        let (sender, state) = watch::channel(State::New);
        let sender = Arc::new(sender);
        let options = self.options.clone().event_callback(move |event| {
            debug!(target: "task_retry::mq", %event, "NATS");
            match event {
                Event::Connected => _ = sender.send_replace(State::Up),
                Event::Disconnected => {
                    _ = sender.send_replace(State::Down("connection lost".into()))
                }
                Event::Closed | Event::ClientError(ClientError::MaxReconnects) => {
                    sender.send_replace(State::Ended);
                }
                Event::ClientError(error) => sender.send_modify(|state| {
                    if !matches!(state, State::Up) {
                        *state = State::Down(error.to_string());
                    }
                }),
                _ => {}
            }
            async {}
        });
        let client = async_nats::connect_with_options(&self.addresses[..], options).await;
        let client = client.map_err(|error| PublishError::new(format!("NATS: {error}")))?;
        let mut slot = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have been faster.
        let faster = slot.take().filter(Link::lives);
        Ok(slot.insert(faster.unwrap_or(Link { client, state })).clone())
    }

    async fn send(&self, message: Message, deadline: Instant) -> Result<(), PublishError> {
        let mut link = self.link().await?;
        let state = link.state.wait_for(|state| !matches!(state, State::New)).await;
        if let Ok(State::Down(reason)) = state.map(|state| state.clone()) {
            let servers = self.servers();
            return Err(PublishError::new(format!("not connected to NATS at {servers}: {reason}")));
        }
        let request = Request::new()
            .headers(headers(&message)?)
            .payload(message.body.into())
            .timeout(Some(deadline - Instant::now()));
        let subject = message.topic;
        match link.client.send_request(subject.clone(), request).await {
            Ok(answer) => acknowledged(&subject, &answer.payload),
            Err(error) => Err(PublishError::new(match error.kind() {
                RequestErrorKind::NoResponders => format!(
                    "no stream takes the subject `{subject}`: create one for it, as by `nats stream \
                     add`, on a server with JetStream"
                ),
                RequestErrorKind::InvalidSubject => {
                    format!(
                        "`{subject}` is no subject of NATS: it may not be empty, nor have spaces"
                    )
                }
                RequestErrorKind::TimedOut => self.late(&subject),
                _ => format!("NATS did not take the message to `{subject}`: {error}"),
            })),
        }
    }

    fn late(&self, subject: &str) -> String {
        let (servers, timeout) = (self.servers(), self.config.send_timeout);
        format!(
            "NATS at {servers} did not acknowledge the message to `{subject}` within {timeout:?}"
        )
    }

    /// Host and port of each.
    fn servers(&self) -> String {
        let names = self.addresses.iter().map(|at| format!("{}:{}", at.host(), at.port()));
        names.collect::<Vec<_>>().join(", ")
    }
}

fn headers(message: &Message) -> Result<HeaderMap, PublishError> {
    let id = message.id.to_string();
    let mut headers = HeaderMap::new();
    let own = [("Nats-Msg-Id", id.as_str()), ("task-id", &id), ("key", &message.key)];
    let own = own.into_iter().filter(|(_, value)| !value.is_empty());
    let theirs = message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in theirs.chain(own) {
        let refused = || PublishError::new(format!("NATS cannot carry the header `{name}`"));
        let name = name.parse::<HeaderName>().map_err(|_| refused())?;
        headers.insert(name.clone(), value.parse::<HeaderValue>().map_err(|_| refused())?);
    }
    Ok(headers)
}

/// What JetStream answers.
#[derive(Deserialize)]
struct Answer {
    stream: Option<String>,
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

fn acknowledged(subject: &str, answer: &[u8]) -> Result<(), PublishError> {
    let reason = match serde_json::from_slice(answer) {
        Ok(Answer { error: Some(Fault { err_code, description }), .. }) => {
            format!("JetStream refused the message to `{subject}`: {description} ({err_code})")
        }
        // Also of a duplicate: it has the message.
        Ok(Answer { stream: Some(_), .. }) => return Ok(()),
        _ => {
            format!("who answers on `{subject}` is not JetStream: create a stream for the subject")
        }
    };
    Err(PublishError::new(reason))
}

impl Broker for Nats {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let deadline = Instant::now() + self.0.config.send_timeout;
        let subject = message.topic.clone();
        let sent = timeout_at(deadline, self.0.send(message, deadline)).await;
        sent.unwrap_or_else(|_| Err(PublishError::new(self.0.late(&subject))))
    }

    async fn close(&self) {
        let link = self.0.link.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(link) = link {
            // Nothing of ours is in flight any more.
            let _ = tokio::time::timeout(Duration::from_secs(1), link.client.drain()).await;
        }
    }
}

strategy!(Nats, source::NATS, "nats");

impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Nats").field(&self.0.config).finish()
    }
}
