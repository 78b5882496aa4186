//! A database server of one test, to be killed and started again.

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

/// The server; it is stopped and removed when it is dropped.
#[derive(Debug)]
pub struct Server {
    folder: PathBuf,
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
        let servers = servers()?;
        let name = format!("{kind:?}").to_lowercase();
        Some(Self::create(&servers, &name, &["create"]).await)
    }

    /// Creates and starts a PostgreSQL that follows this one.
    pub async fn standby(&self) -> Self {
        let servers = self.folder.parent().expect("a folder in a folder");
        Self::create(servers, "postgres", &["standby", &self.read("port")]).await
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
            nodes.push(Self::create(&servers, "galera", &arguments).await);
        }
        Some(nodes)
    }

    async fn create(servers: &Path, name: &str, arguments: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = servers.join(format!("{name}-{}-{count}", std::process::id()));
        let server = Self { folder };
        let created = Command::new("bash")
            .args(["-c", CREATE, "create", name])
            .arg(&server.folder)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/servers"))
            .args(arguments)
            .stdin(Stdio::null())
            .status();
        assert!(created.await.expect("bash runs").success(), "{name} cannot be started");
        server
    }

    /// The URL of its administrator.
    pub fn url(&self) -> String {
        self.read("url")
    }

    /// Kills it, as a crash would.
    pub fn kill(&self) {
        let pid = Pid::from_raw(self.read("pid").parse().expect("a process id"));
        kill(pid, Signal::SIGKILL).expect("the server can be killed");
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
        let _ = std::process::Command::new(self.folder.join("stop")).status();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
