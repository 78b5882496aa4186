//! Speed against hand-written SQL and against peers, interleaved round by round in one run.
//! `benches/run --help` tells how; docs/performance.md what came out.

mod compare;
mod feed;
mod group;
mod hand_others;
mod hand_postgres;
mod ours;
mod peers;
mod plans;
mod report;
mod tool;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use compare::{On, Round, Run};

const USAGE: &str = "\
usage: benches/run [OPTION]…

Measures on private servers that it starts and stops, or on those that TASK_RETRY_TEST_POSTGRES,
TASK_RETRY_TEST_MARIADB and TASK_RETRY_TEST_MYSQL name, and writes docs/performance.md and
docs/performance.svg.
On servers of your own it needs an administrator, and leaves MariaDB's and MySQL's slow log and their
pace of writing pages at the defaults.

  --rounds N   how many rounds (5); in each, everybody works once, in turn
  --quick      shorter work: for trying things, not for numbers
  --only NAME  only these comparisons (may be repeated; the names are those of --list); writes no file
  --list       the names of the comparisons
  --help       this text";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if let [child_, who, what] = &arguments[..]
        && child_ == "child"
    {
        // In a task of the runtime, as a program's own work would be.
        let task =
            runtime.spawn(child(std::env::var("BENCH_URL").unwrap(), who.clone(), what.clone()));
        return runtime.block_on(task).unwrap();
    }
    let (mut rounds, mut only) = (5, BTreeSet::new());
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => unsafe { std::env::set_var("BENCH_QUICK", "1") },
            "--rounds" => {
                rounds = arguments.next().and_then(|n| n.parse().ok()).unwrap_or_else(|| usage())
            }
            "--only" => _ = only.insert(arguments.next().unwrap_or_else(|| usage())),
            "--list" => {
                compare::comparisons()
                    .iter()
                    .for_each(|comparison| println!("{}", comparison.name));
                return;
            }
            "--help" => return println!("{USAGE}"),
            _ => usage(),
        }
    }
    report::check_chart();
    let mut comparisons = compare::comparisons();
    let write = only.is_empty();
    comparisons.retain(|comparison| only.is_empty() || only.contains(comparison.name));
    let servers: BTreeMap<On, String> =
        On::ALL.into_iter().filter_map(|on| Some((on, server(on)?))).collect();
    comparisons.retain(|comparison| {
        let has = servers.contains_key(&comparison.ours.0.0);
        if !has {
            eprintln!("left out, no server: {} ({})", comparison.text, comparison.ours.0.0.name());
        }
        has
    });
    let mut runs: Vec<Run> = Vec::new();
    for run in comparisons.iter().flat_map(compare::Comparison::runs) {
        if !runs.contains(&run) {
            runs.push(run);
        }
    }
    let start = Instant::now();
    let (mut all, mut notes) = (Vec::new(), BTreeMap::new());
    for number in 0..rounds {
        let mut round = Round::new();
        // Nobody always comes first.
        let turn: Vec<&Run> =
            if number % 2 == 0 { runs.iter().collect() } else { runs.iter().rev().collect() };
        for run in turn {
            eprint!("round {} of {rounds}: {} {} on {} …", number + 1, run.1, run.2, run.0.name());
            match run_child(&runtime, &servers[&run.0], run) {
                Ok((numbers, note)) => {
                    let told: Vec<_> =
                        numbers.iter().map(|(name, value)| format!("{name} {value:.1}")).collect();
                    eprintln!(" {}", told.join(", "));
                    if !note.is_empty() {
                        notes.insert(format!("{} {} on {}", run.1, run.2, run.0.name()), note);
                    }
                    round.insert((run.0, run.1.to_owned(), run.2.to_owned()), numbers);
                }
                Err(problem) => eprintln!(" FAILED: {problem}"),
            }
        }
        all.push(round);
    }
    eprintln!("{rounds} rounds took {} s", start.elapsed().as_secs());
    let versions: Vec<(On, String)> =
        servers.iter().map(|(on, url)| (*on, runtime.block_on(tool::version(url)))).collect();
    let report = report::Report {
        comparisons: &comparisons,
        rounds: &all,
        notes: &notes,
        versions: &versions,
    };
    println!("{}", report.table());
    if write {
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/performance");
        report.write_into(&format!("{docs}.md"));
        std::fs::write(format!("{docs}.svg"), report.chart()).unwrap();
    }
}

fn usage() -> ! {
    eprintln!("{USAGE}");
    std::process::exit(2);
}

fn server(on: On) -> Option<String> {
    match on {
        On::Postgres => std::env::var("TASK_RETRY_TEST_POSTGRES").ok(),
        On::Mariadb => std::env::var("TASK_RETRY_TEST_MARIADB").ok(),
        On::Mysql => std::env::var("TASK_RETRY_TEST_MYSQL").ok(),
        On::Sqlite => Some("sqlite://".to_owned()),
    }
}

/// A child on a fresh database: what it tells.
fn run_child(
    runtime: &tokio::runtime::Runtime,
    admin: &str,
    run: &Run,
) -> Result<(BTreeMap<String, f64>, String), String> {
    let name = format!("bench_{}", std::process::id());
    let url = runtime.block_on(tool::fresh(admin, &name));
    let mut program = std::env::current_exe().unwrap();
    if run.1 == "effectum" {
        program.set_file_name("effectum-bench");
    }
    let mut child = Command::new(program)
        .args(["child", run.1, run.2])
        .env("BENCH_URL", &url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // With its second process, if it has one.
        .process_group(0)
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
    });
    let end = Instant::now() + compare::limit(run);
    let (mut numbers, mut note) = (BTreeMap::new(), String::new());
    let timely = loop {
        match told.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Some(number) = line.strip_prefix("@ ") {
                    let (name, value) = number.split_once(' ').unwrap();
                    numbers.insert(name.to_owned(), value.parse().unwrap());
                } else if let Some(line) = line.strip_prefix("# ") {
                    note += line;
                    note.push('\n');
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break true,
            Err(mpsc::RecvTimeoutError::Timeout) => break false,
        }
    };
    if !timely {
        let group = format!("-{}", child.id());
        let _ = Command::new("kill").args(["-s", "KILL", "--", &group]).status();
    }
    let status = child.wait().unwrap();
    runtime.block_on(tool::remove(admin, &name));
    match (timely, status.success()) {
        (false, _) => Err("took too long".to_owned()),
        (_, false) => Err(status.to_string()),
        _ => Ok((numbers, note)),
    }
}

async fn child(url: String, who: String, what: String) {
    match who.as_str() {
        "ours" => ours::child(&url, &what).await,
        "hand" if !url.starts_with("postgres") => hand_others::child(&url, &what).await,
        "hand" => hand_postgres::child(&url, &what).await,
        "apalis" => peers::apalis::child(&url, &what).await,
        "dbos" => peers::dbos::child(&url, &what).await,
        "graphile_worker" => peers::graphile::child(&url, &what).await,
        "riverqueue" => peers::river::child(&url, &what).await,
        "ruststream-lock" | "ruststream-lease" => peers::ruststream::child(&url, &who, &what).await,
        _ => panic!("unknown contestant {who}"),
    }
}
