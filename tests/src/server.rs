//! A server of one test, a database's or a broker's, to be killed and started again.

use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use crate::Kind;

/// Makes a server beside those of `tests/run`, by the same scripts, so that it is stopped with them at
/// the latest: NAME, the folder for it, and the folder of the scripts.
const CREATE: &str = r#"
set -euo pipefail
name=$1 dir=$2 scripts=$3
work=$(cd "$(dirname "$dir")/.." && pwd)
export LC_ALL=C
source "$scripts/lib.sh"
source "$scripts/$name.sh"
"${name}_prepare"
for attempt in 1 2 3; do
  port=$(free_port)
  url=$("${name}_url" "$port")
  mkdir -p "$dir"
  "${name}_create" "$dir" "$port"
  if START_LIMIT=0 "$dir/start"; then exit; fi
  rm -rf "$dir"
done
exit 1
"#;

/// The server; it is stopped and removed when it is dropped.
#[derive(Debug)]
pub struct Server {
    folder: PathBuf,
}

impl Server {
    /// Creates and starts one; `None` without `tests/run`, which is an error with
    /// `TASK_RETRY_TEST_REQUIRE_ALL=1`.
    pub async fn start(kind: Kind) -> Option<Self> {
        Self::named(&format!("{kind:?}").to_lowercase()).await
    }

    /// The same of a broker, by the name of its script.
    pub async fn named(name: &str) -> Option<Self> {
        let Ok(servers) = std::env::var("TASK_RETRY_TEST_SERVERS") else {
            assert!(!crate::requires_all(), "TASK_RETRY_TEST_SERVERS is not set: use `tests/run`");
            eprintln!("skipped: TASK_RETRY_TEST_SERVERS is not set");
            return None;
        };
        let folder = PathBuf::from(servers).join(format!("{name}-{}", std::process::id()));
        let server = Self { folder };
        let created = Command::new("bash")
            .args(["-c", CREATE, "create", name])
            .arg(&server.folder)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/servers"))
            .stdin(Stdio::null())
            .status();
        assert!(created.await.expect("bash runs").success(), "{name} cannot be started");
        Some(server)
    }

    /// The URL of its administrator.
    pub fn url(&self) -> String {
        self.read("url")
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
        kill(pid, signal).expect("the server can be signalled");
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
