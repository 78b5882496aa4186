//! The binary `task-retry-migrations`.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

const UP: &str = "\
m20261125_000001_create_task_log                 applied
m20261125_000002_add_retry_columns               applied
m20261125_000003_create_results_attempts_pauses  applied
";

#[test]
fn up_status_down() {
    let file = File::new("up_status_down");
    let url = file.url();
    assert_eq!(ok(&["status", "--database-url", &url]), UP.replace("applied", "pending"));
    assert_eq!(ok(&["up", "--database-url", &url]), UP);
    assert_eq!(ok(&["--database-url", &url, "up"]), UP);
    let one = ok(&["down", "--database-url", &url]);
    assert_eq!(one.matches("applied").count(), 2, "{one}");
    assert_eq!(ok(&["up", "--database-url", &url]), UP);
    assert_eq!(ok(&["down", "--all", "--database-url", &url]), UP.replace("applied", "pending"));
    assert_eq!(ok(&["status", "--database-url", &url]), UP.replace("applied", "pending"));
}

#[test]
fn the_url_may_come_from_the_environment() {
    let file = File::new("environment");
    let output = command(&["up"]).env("DATABASE_URL", file.url()).output().unwrap();
    assert_eq!(text(&output.stdout), UP, "{output:?}");
}

#[test]
fn eight_processes_at_once() {
    let file = File::new("eight_processes");
    let start = || {
        let mut command = command(&["up", "--database-url", &file.url()]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let processes: Vec<Child> = (0..8).map(|_| start()).collect();
    for process in processes {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(text(&output.stdout), UP);
    }
}

#[test]
fn errors_say_what_to_do() {
    let missing = File::new("missing").url().replace("?mode=rwc", "");
    for (arguments, code, says) in [
        (vec!["up"], 2, "give --database-url or set DATABASE_URL"),
        (vec!["up", "--database-url", "shop.db"], 2, "write postgres://"),
        (vec!["up", "--database-url", "oracle://scott:tiger@x/y"], 2, "`oracle` databases are not"),
        (vec!["up", "--database-url", &missing], 1, "?mode=rwc"),
        (vec!["sideways"], 2, "unrecognized subcommand"),
        (vec!["down", "--all", "--steps", "2"], 2, "cannot be used with"),
    ] {
        let output = command(&arguments).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("tiger"), "a password: {stderr}");
    }
}

fn ok(arguments: &[&str]) -> String {
    let output = command(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    text(&output.stdout)
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_task-retry-migrations"));
    command.args(arguments).env_remove("DATABASE_URL");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A SQLite file that goes with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> File {
        let name = format!("task_retry_{}_{name}.db", std::process::id());
        File(std::env::temp_dir().join(name))
    }

    fn url(&self) -> String {
        format!("sqlite://{}?mode=rwc", self.0.display())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
