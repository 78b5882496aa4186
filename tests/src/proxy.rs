//! A TCP proxy between a runtime and its database that can do what networks do.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

/// The proxy; when it is dropped, its connections are closed.
#[derive(Debug)]
pub struct Proxy {
    wires: Arc<Wires>,
    port: u16,
}

/// What all connections share.
#[derive(Debug)]
struct Wires {
    server: Mutex<String>,
    state: watch::Sender<State>,
    /// Answers until the one that is dropped; below 1: none is.
    answers: AtomicI64,
    /// With that answer, everything is cut.
    cuts: AtomicBool,
    /// Statements that PostgreSQL was asked to execute.
    statements: AtomicU64,
    /// Most bytes that a client has sent before it was answered.
    longest: AtomicUsize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct State {
    /// New connections are refused.
    refuses: bool,
    /// Connections of older generations are closed.
    closed_before: u64,
    /// Connections of older generations are silent for ever, though they stay open.
    silent_before: u64,
    /// Nothing passes, in either direction.
    frozen: bool,
    generation: u64,
    dropped: bool,
}

impl Proxy {
    /// Starts a proxy to the server of this URL.
    pub async fn start(url: &str) -> Self {
        let wires = Arc::new(Wires {
            server: Mutex::new(authority(url).to_owned()),
            state: watch::Sender::default(),
            answers: AtomicI64::new(0),
            cuts: AtomicBool::new(false),
            statements: AtomicU64::new(0),
            longest: AtomicUsize::new(0),
        });
        let reserved = bind(0);
        let port = reserved.local_addr().expect("it is bound").port();
        let listener = bind(port).listen(1024).expect("a port to listen on");
        tokio::spawn(listen(wires.clone(), listener, reserved));
        Self { wires, port }
    }

    /// The URL by which the database is reached through the proxy.
    pub fn url(&self, url: &str) -> String {
        url.replacen(authority(url), &format!("127.0.0.1:{}", self.port), 1)
    }

    /// New connections go to the server of this URL, as if its address had moved there.
    pub fn lead_to(&self, url: &str) {
        *self.wires.server.lock().expect("nobody panicked") = authority(url).to_owned();
    }

    /// Closes every connection, and refuses new ones.
    pub fn cut(&self) {
        self.wires.cut();
    }

    /// Takes connections again.
    pub fn restore(&self) {
        self.wires.state.send_modify(|state| state.refuses = false);
    }

    /// Connections stay open, also new ones, but nothing passes until [`thaw`](Self::thaw).
    pub fn freeze(&self) {
        self.wires.state.send_modify(|state| state.frozen = true);
    }

    /// What was frozen passes now.
    pub fn thaw(&self) {
        self.wires.state.send_modify(|state| state.frozen = false);
    }

    /// Present connections stay open and are silent for ever, as after the loss of a host or of a
    /// firewall's memory; new ones work.
    pub fn silence(&self) {
        self.wires.state.send_modify(|state| {
            state.generation += 1;
            state.silent_before = state.generation;
        });
    }

    /// Drops the n-th answer of the server from now on, 1 being the next, and its connection with it:
    /// what was asked has been done, and the client does not hear of it.
    pub fn drop_answer(&self, number: u32) {
        self.wires.state.send_modify(|state| state.dropped = false);
        self.wires.answers.store(number.into(), Ordering::SeqCst);
    }

    /// As [`drop_answer`](Self::drop_answer), but everything is [`cut`](Self::cut) then.
    pub fn cut_at_answer(&self, number: u32) {
        self.wires.cuts.store(true, Ordering::SeqCst);
        self.drop_answer(number);
    }

    /// How many statements have gone to a PostgreSQL so far; meaningless of other servers.
    pub fn statements(&self) -> u64 {
        self.wires.statements.load(Ordering::SeqCst)
    }

    /// Most bytes that a connection has sent so far before it was answered.
    pub fn longest(&self) -> usize {
        self.wires.longest.load(Ordering::SeqCst)
    }

    /// Waits until the answer that was to be dropped has come.
    pub async fn dropped(&self) {
        let mut state = self.wires.state.subscribe();
        state.wait_for(|state| state.dropped).await.expect("the proxy is there");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Wires {
    fn cut(&self) {
        self.state.send_modify(|state| {
            state.refuses = true;
            state.generation += 1;
            state.closed_before = state.generation;
        });
    }

    /// Whether this answer is the one to be dropped.
    fn drops(&self) -> bool {
        let drops = self.answers.fetch_sub(1, Ordering::SeqCst) == 1;
        if drops {
            if self.cuts.swap(false, Ordering::SeqCst) {
                self.cut();
            }
            self.state.send_modify(|state| state.dropped = true);
        }
        drops
    }
}

/// `host:port` of a URL.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").expect("a URL").1;
    let rest = rest.split_once('/').map_or(rest, |(authority, _)| authority);
    rest.rsplit_once('@').map_or(rest, |(_, server)| server)
}

/// A port that nothing listens on yet; two sockets can have it, one of which listens.
fn bind(port: u16) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("it can be shared");
    socket.bind(([127, 0, 0, 1], port).into()).expect("a port");
    socket
}

/// Takes connections, except while they are refused: then nothing listens, and the other socket
/// keeps the port from being taken by strangers.
async fn listen(wires: Arc<Wires>, listener: TcpListener, reserved: TcpSocket) {
    let port = reserved.local_addr().expect("it is bound").port();
    let mut state = wires.state.subscribe();
    let mut listener = Some(listener);
    loop {
        let listening = listener.take().unwrap_or_else(|| bind(port).listen(1024).expect("a port"));
        tokio::select! {
            () = accept(&wires, &listening) => {}
            _ = state.wait_for(|state| state.refuses) => {}
        }
        drop(listening);
        if state.wait_for(|state| !state.refuses).await.is_err() {
            return;
        }
    }
}

async fn accept(wires: &Arc<Wires>, listener: &TcpListener) {
    while let Ok((client, _)) = listener.accept().await {
        let State { refuses, generation, .. } = *wires.state.borrow();
        // What came before a cut may be taken after it.
        if !refuses {
            tokio::spawn(connection(wires.clone(), client, generation));
        }
    }
}

/// One connection, until one side or the proxy ends it.
async fn connection(wires: Arc<Wires>, client: TcpStream, born: u64) {
    let mut state = wires.state.subscribe();
    let server = wires.server.lock().expect("nobody panicked").clone();
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let asked = AtomicUsize::new(0);
    let asks = pump(&wires, born, from_client, to_server, &asked, false);
    let answers = pump(&wires, born, from_server, to_client, &asked, true);
    tokio::select! {
        _ = asks => {}
        _ = answers => {}
        _ = state.wait_for(|state| born < state.closed_before) => {}
    }
}

async fn pump(
    wires: &Wires,
    born: u64,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    asked: &AtomicUsize,
    answers: bool,
) -> io::Result<()> {
    let mut state = wires.state.subscribe();
    let mut bytes = vec![0; 64 << 10];
    let mut messages = Messages::default();
    loop {
        let count = from.read(&mut bytes).await?;
        // It never is, for a connection that is silent.
        let passes = |state: &State| !state.frozen && born >= state.silent_before;
        let _ = state.wait_for(passes).await;
        if count == 0 {
            return Ok(());
        }
        if answers && wires.drops() {
            return Ok(());
        }
        if answers {
            asked.store(0, Ordering::SeqCst);
        } else {
            let statements = messages.statements(&bytes[..count]);
            wires.statements.fetch_add(statements, Ordering::SeqCst);
            let asked = asked.fetch_add(count, Ordering::SeqCst) + count;
            wires.longest.fetch_max(asked, Ordering::SeqCst);
        }
        to.write_all(&bytes[..count]).await?;
    }
}

/// What a client says to PostgreSQL: messages of a type, a length and the rest; the first ones have no
/// type.
#[derive(Default)]
struct Messages {
    /// It has said who it is.
    started: bool,
    head: Vec<u8>,
    /// Bytes that are left of a message whose head was read.
    rest: usize,
}

impl Messages {
    /// How many statements begin to be executed in these bytes.
    fn statements(&mut self, mut bytes: &[u8]) -> u64 {
        let mut statements = 0;
        while !bytes.is_empty() {
            let skipped = self.rest.min(bytes.len());
            self.rest -= skipped;
            bytes = &bytes[skipped..];
            let wanted = if self.started { 5 } else { 8 };
            let taken = bytes.len().min(wanted - self.head.len());
            self.head.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.head.len() < wanted {
                break;
            }
            let number = |at: usize| {
                u32::from_be_bytes(self.head[at..at + 4].try_into().expect("four bytes")) as usize
            };
            if self.started {
                statements += u64::from(matches!(self.head[0], b'E' | b'Q'));
                self.rest = number(1).saturating_sub(4);
            } else {
                // Its version 3.0; what came before asked whether to encrypt.
                self.started = number(4) == 0x3_0000;
                self.rest = number(0).saturating_sub(8);
            }
            self.head.clear();
        }
        statements
    }
}
