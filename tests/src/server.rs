//! A server of one test, a database's or a broker's, to be killed and started again.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use crate::Kind;

/// Makes a server beside those of `tests/run`, by the same scripts, so that it is stopped with them at
/// the latest: NAME, the folder for it, the folder of the scripts, and what to do, with what.
const CREATE: &str = r#"
set -euo pipefail
name=$1 dir=$2 scripts=$3 verb=$4
work=$(cd "$(dirname "$dir")/.." && pwd)
export LC_ALL=C
source "$scripts/lib.sh"
for script in "$scripts"/*.sh; do source "$script"; done
"${name}_prepare"
for attempt in 1 2 3; do
  port=$(free_port)
  url=$("${name}_url" "$port")
  mkdir -p "$dir"
  "${name}_$verb" "$dir" "$port" "${@:5}"
  if START_LIMIT=0 "$dir/start"; then
    # A cluster is new once.
    sed -i 's/"--wsrep-new-cluster"/"--wsrep-on=ON"/' "$dir/settings"
    exit
  fi
  rm -rf "$dir"
done
exit 1
"#;

/// The server; it is stopped and removed when it is dropped, but one of `tests/run` is left running.
#[derive(Debug)]
pub struct Server {
    folder: PathBuf,
    shared: bool,
}

/// The folder of the servers of `tests/run`.
fn servers() -> Option<PathBuf> {
    let Ok(servers) = std::env::var("TASK_RETRY_TEST_SERVERS") else {
        assert!(!crate::requires_all(), "TASK_RETRY_TEST_SERVERS is not set: use `tests/run`");
        eprintln!("skipped: TASK_RETRY_TEST_SERVERS is not set");
        return None;
    };
    Some(servers.into())
}

impl Server {
    /// Creates and starts one; `None` without `tests/run`, which is an error with
    /// `TASK_RETRY_TEST_REQUIRE_ALL=1`.
    pub async fn start(kind: Kind) -> Option<Self> {
        Self::named(&format!("{kind:?}").to_lowercase()).await
    }

    /// The same of any server, by the name of its script.
    pub async fn named(name: &str) -> Option<Self> {
        Self::start_with(name, "", &[]).await
    }

    /// The same with what its script takes from the environment; `mark` tells it from others of this
    /// name.
    pub async fn start_with(name: &str, mark: &str, settings: &[(&str, &str)]) -> Option<Self> {
        Some(Self::create(&servers()?, name, mark, settings, &["create"]).await)
    }

    /// Creates and starts a PostgreSQL that follows this one.
    pub async fn standby(&self) -> Self {
        let servers = self.folder.parent().expect("a folder in a folder");
        let arguments = ["standby", &self.read("port")];
        Self::create(servers, "postgres", "-standby", &[], &arguments).await
    }

    /// Creates and starts a cluster of three MariaDB nodes.
    pub async fn galera() -> Option<Vec<Self>> {
        let servers = servers()?;
        let group = |_| format!("127.0.0.1:{}", fastrand::u16(14_000..20_000));
        let groups: Vec<String> = (0..3).map(group).collect();
        let all = groups.join(",");
        let mut nodes = Vec::new();
        for group in &groups {
            let mut arguments = vec!["create", group, &all];
            if nodes.is_empty() {
                arguments.push("new");
            }
            nodes.push(Self::create(&servers, "galera", "", &[], &arguments).await);
        }
        Some(nodes)
    }

    async fn create(
        servers: &Path,
        name: &str,
        mark: &str,
        settings: &[(&str, &str)],
        arguments: &[&str],
    ) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = servers.join(format!("{name}{mark}-{}-{count}", std::process::id()));
        let server = Self { folder, shared: false };
        let created = Command::new("bash")
            .args(["-c", CREATE, "create", name])
            .envs(settings.iter().copied())
            .arg(&server.folder)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/servers"))
            .args(arguments)
            .stdin(Stdio::null())
            .status();
        assert!(created.await.expect("bash runs").success(), "{name} cannot be started");
        server
    }

    /// One of `tests/run` by its name, which no other test may need while this is alive; `None` as for
    /// [`start`](Self::start).
    pub fn shared(name: &str) -> Option<Self> {
        Some(Self { folder: servers()?.join(name), shared: true })
    }

    /// The URL of its administrator.
    pub fn url(&self) -> String {
        self.read("url")
    }

    /// A file of its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Kills it, as a crash would.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Freezes it: it keeps its connections, takes new ones, and says nothing.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.read("pid").parse().expect("a process id"));
        kill(pid, signal).expect("the server is there");
    }

    /// Starts it again, and waits until it is ready.
    pub async fn restart(&self) {
        let started = Command::new(self.folder.join("start")).stdin(Stdio::null()).status();
        assert!(started.await.expect("the script runs").success(), "the server starts again");
    }

    fn read(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.folder.join(name));
        text.expect("the server's folder is there").trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let run = |path: PathBuf| std::process::Command::new(path).status();
        if self.shared {
            // A test that failed may have left it frozen or dead.
            if let Ok(pid) = self.read("pid").parse() {
                let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
            }
            let _ = run(self.folder.join("start"));
            return;
        }
        let name = self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // RocketMQ has two.
        for folder in [self.folder.clone(), self.folder.with_file_name(name + "-namesrv")] {
            if folder.exists() {
                let _ = run(folder.join("stop"));
                let _ = std::fs::remove_dir_all(&folder);
            }
        }
    }
}
