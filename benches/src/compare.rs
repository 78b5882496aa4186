//! What is run, what is compared with what, and what is to be reached.

use std::collections::BTreeMap;
use std::time::Duration;

/// The server that a run gets a fresh database of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum On {
    Postgres,
    Mariadb,
    Mysql,
    Sqlite,
}

impl On {
    pub const ALL: [Self; 4] = [Self::Postgres, Self::Mariadb, Self::Mysql, Self::Sqlite];

    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Mariadb => "MariaDB",
            Self::Mysql => "MySQL",
            Self::Sqlite => "SQLite",
        }
    }
}

/// One child process: who works, at what, on which database.
pub type Run = (On, &'static str, &'static str);

/// A number of a run.
#[derive(Clone, Copy)]
pub struct Number(pub Run, pub &'static str);

/// What a run's number is held against.
pub enum Of {
    Run(Number),
    /// The best of these in the same round.
    Best(&'static [Number]),
    /// Nothing: it is the number itself that counts.
    Itself,
}

pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

pub struct Comparison {
    /// For `--only`.
    pub name: &'static str,
    pub text: &'static str,
    /// What has been made durable when either answers.
    pub durable: &'static str,
    pub ours: Number,
    pub of: Of,
    pub other: &'static str,
    pub goal: Goal,
}

/// The numbers that each round's children told.
pub type Round = BTreeMap<(On, String, String), BTreeMap<String, f64>>;

impl Number {
    pub fn of(&self, round: &Round) -> Option<f64> {
        let (on, who, what) = self.0;
        round.get(&(on, who.to_owned(), what.to_owned()))?.get(self.1).copied()
    }
}

impl Comparison {
    /// The numbers of one round: ours and the other's.
    pub fn numbers(&self, round: &Round) -> Option<(f64, f64)> {
        let ours = self.ours.of(round)?;
        let other = match &self.of {
            Of::Run(number) => number.of(round)?,
            Of::Best(numbers) => {
                numbers.iter().filter_map(|number| number.of(round)).reduce(f64::max)?
            }
            Of::Itself => 1.0,
        };
        Some((ours, other))
    }

    pub fn runs(&self) -> Vec<Run> {
        let mut runs = vec![self.ours.0];
        match &self.of {
            Of::Run(number) => runs.push(number.0),
            Of::Best(numbers) => runs.extend(numbers.iter().map(|number| number.0)),
            Of::Itself => {}
        }
        runs
    }

    pub fn met(&self, value: f64) -> bool {
        match self.goal {
            Goal::AtMost(goal) => value <= goal,
            Goal::AtLeast(goal) => value >= goal,
        }
    }
}

/// How long a child may take.
pub fn limit(run: &Run) -> Duration {
    match run.2.split(':').next().unwrap() {
        "claim" | "memory" | "snapshot" => Duration::from_secs(300),
        _ => Duration::from_secs(150),
    }
}

use Goal::{AtLeast, AtMost};
use On::{Mariadb, Mysql, Postgres, Sqlite};

const fn rate(on: On, who: &'static str, what: &'static str) -> Number {
    Number((on, who, what), "rate")
}

const fn p50(on: On, who: &'static str, what: &'static str) -> Number {
    Number((on, who, what), "p50_us")
}

const DRAIN_PEERS: &[Number] = &[
    rate(Postgres, "graphile_worker", "drain:50000"),
    rate(Postgres, "ruststream-lock", "drain:50000"),
    rate(Postgres, "ruststream-lease", "drain:50000"),
    rate(Postgres, "riverqueue", "drain:50000"),
    rate(Postgres, "apalis", "drain:50000"),
];
const SUSTAINED_PEERS: &[Number] = &[
    rate(Postgres, "graphile_worker", "sustained:2"),
    rate(Postgres, "ruststream-lock", "sustained:2"),
    rate(Postgres, "ruststream-lease", "sustained:2"),
    rate(Postgres, "riverqueue", "sustained:2"),
    rate(Postgres, "apalis", "sustained:2"),
];
const FENCED_PEERS: &[Number] = &[rate(Postgres, "ruststream-lease", "sustained:2")];
const BULK_PEERS: &[Number] = &[
    rate(Postgres, "graphile_worker", "bulk:100000"),
    rate(Postgres, "riverqueue", "bulk:100000"),
    rate(Postgres, "apalis", "bulk:100000"),
];

const BOTH_COMMITS: &str = "the row before the function runs, and its success before the answer";
const EACH_ENDED: &str = "every success, before the clock stops";

pub fn comparisons() -> Vec<Comparison> {
    let sustained = rate(Postgres, "ours", "sustained:2000");
    let two = rate(Postgres, "ours", "two:2000");
    let graphile = rate(Postgres, "graphile_worker", "sustained:2");
    let awaited = |on, name, goal| Comparison {
        name,
        text: "256 concurrent awaited calls",
        durable: BOTH_COMMITS,
        ours: rate(on, "ours", "awaited:256"),
        of: Of::Run(rate(on, "hand", "awaited:256")),
        other: "group commit by hand",
        goal: AtLeast(goal),
    };
    let claim = |on, name, small, other| Comparison {
        name,
        text: "Claiming 50 rows beside 1M finished and 1M future rows, p50",
        durable: "the claim",
        ours: p50(on, "ours", "claim:1000"),
        of: Of::Run(p50(on, "ours", small)),
        other,
        goal: AtMost(1.2),
    };
    vec![
        Comparison {
            name: "lone",
            text: "A lone awaited call, p50",
            durable: BOTH_COMMITS,
            ours: p50(Postgres, "ours", "lone"),
            of: Of::Run(p50(Postgres, "hand", "lone")),
            other: "insert + update by hand",
            goal: AtMost(1.25),
        },
        Comparison {
            name: "lone-enqueue",
            text: "A lone `enqueue`, p50",
            durable: "the row",
            ours: p50(Postgres, "ours", "lone-enqueue"),
            of: Of::Run(p50(Postgres, "hand", "lone-enqueue")),
            other: "insert by hand",
            goal: AtMost(1.25),
        },
        awaited(Postgres, "awaited", 0.75),
        Comparison {
            name: "awaited",
            text: "256 concurrent awaited calls",
            durable: BOTH_COMMITS,
            ours: rate(Postgres, "ours", "awaited:256"),
            of: Of::Run(rate(Postgres, "hand", "each:256")),
            other: "a statement per call by hand, 64 connections",
            goal: AtLeast(4.0),
        },
        Comparison {
            name: "durable-64",
            text: "A durable call, 64 callers",
            durable: BOTH_COMMITS,
            ours: rate(Postgres, "ours", "awaited:64"),
            of: Of::Run(rate(Postgres, "dbos", "call:64")),
            other: "dbos, a one-step workflow",
            goal: AtLeast(15.0),
        },
        Comparison {
            name: "durable-256",
            text: "A durable call, 256 callers",
            durable: BOTH_COMMITS,
            ours: rate(Postgres, "ours", "awaited:256"),
            of: Of::Run(rate(Postgres, "dbos", "call:256")),
            other: "dbos, a one-step workflow",
            goal: AtLeast(15.0),
        },
        Comparison {
            name: "drain",
            text: "Draining 50,000 due rows",
            durable: EACH_ENDED,
            ours: rate(Postgres, "ours", "drain:50000"),
            of: Of::Run(rate(Postgres, "hand", "drain:50000")),
            other: "batches by hand",
            goal: AtLeast(0.75),
        },
        Comparison {
            name: "drain",
            text: "Draining 50,000 due rows",
            durable: EACH_ENDED,
            ours: rate(Postgres, "ours", "drain:50000"),
            of: Of::Best(DRAIN_PEERS),
            other: "the fastest peer",
            goal: AtLeast(1.5),
        },
        Comparison {
            name: "sustained",
            text: "Enqueue and run, one process",
            durable: "each row at its enqueue's answer; every success before the clock stops",
            ours: sustained,
            of: Of::Run(rate(Postgres, "hand", "sustained:2")),
            other: "hand-over by hand, batches of 1,000",
            goal: AtLeast(0.65),
        },
        Comparison {
            name: "sustained",
            text: "Enqueue and run, one process",
            durable: "the same; peers enqueue in batches of 1,000",
            ours: sustained,
            of: Of::Best(SUSTAINED_PEERS),
            other: "the fastest peer",
            goal: AtLeast(1.75),
        },
        Comparison {
            name: "sustained",
            text: "Enqueue and run, one process",
            durable: "the same; peers enqueue in batches of 1,000",
            ours: sustained,
            of: Of::Run(graphile),
            other: "graphile_worker",
            goal: AtLeast(3.0),
        },
        Comparison {
            name: "sustained",
            text: "Enqueue and run, one process",
            durable: "the same; peers enqueue in batches of 1,000",
            ours: sustained,
            of: Of::Best(FENCED_PEERS),
            other: "the fastest fenced peer",
            goal: AtLeast(8.0),
        },
        Comparison {
            name: "two",
            text: "One process enqueues, another works",
            durable: "the same; the peer in one process",
            ours: two,
            of: Of::Run(graphile),
            other: "graphile_worker",
            goal: AtLeast(2.0),
        },
        Comparison {
            name: "two",
            text: "One process enqueues, another works",
            durable: "the same; the peer in one process",
            ours: two,
            of: Of::Best(SUSTAINED_PEERS),
            other: "the fastest peer",
            goal: AtLeast(1.1),
        },
        Comparison {
            name: "bulk",
            text: "`enqueue_all` of 100,000",
            durable: "all rows, in one transaction",
            ours: rate(Postgres, "ours", "bulk:100000"),
            of: Of::Run(rate(Postgres, "hand", "bulk:100000")),
            other: "UNNEST by hand",
            goal: AtLeast(0.8),
        },
        Comparison {
            name: "bulk",
            text: "`enqueue_all` of 100,000",
            durable: "all rows; the peer in ten transactions",
            ours: rate(Postgres, "ours", "bulk:100000"),
            of: Of::Best(BULK_PEERS),
            other: "the fastest peer's bulk call",
            goal: AtLeast(2.5),
        },
        Comparison {
            name: "latency",
            text: "Idle, enqueue to start, same process, p50",
            durable: "the row, before it starts",
            ours: p50(Postgres, "ours", "latency"),
            of: Of::Itself,
            other: "",
            goal: AtMost(1000.0),
        },
        Comparison {
            name: "latency",
            text: "Idle, enqueue to start, same process, p99",
            durable: "the row, before it starts",
            ours: Number((Postgres, "ours", "latency"), "p99_us"),
            of: Of::Itself,
            other: "",
            goal: AtMost(10_000.0),
        },
        Comparison {
            name: "latency-other",
            text: "Idle, enqueue to start, another process, p50",
            durable: "the row, before it starts",
            ours: p50(Postgres, "ours", "latency-other"),
            of: Of::Itself,
            other: "",
            goal: AtMost(3000.0),
        },
        Comparison {
            name: "latency-other",
            text: "Idle, enqueue to start, another process, p99",
            durable: "the row, before it starts",
            ours: Number((Postgres, "ours", "latency-other"), "p99_us"),
            of: Of::Itself,
            other: "",
            goal: AtMost(10_000.0),
        },
        claim(Postgres, "claim", "claim:10", "the same beside 10k and 10k"),
        claim(Postgres, "claim", "claim:100", "the same beside 100k and 100k"),
        Comparison {
            name: "snapshot",
            text: "With an old snapshot held for 60 s: the last 10 s",
            durable: "each row at its enqueue's answer",
            ours: Number((Postgres, "ours", "snapshot:512"), "last"),
            of: Of::Run(Number((Postgres, "ours", "snapshot:512"), "first")),
            other: "the first 10 s",
            goal: AtLeast(0.8),
        },
        Comparison {
            name: "memory",
            text: "Working on 1M due rows, most memory ever resident",
            durable: "—",
            ours: Number((Postgres, "ours", "memory:1000000"), "peak_mb"),
            of: Of::Itself,
            other: "",
            goal: AtMost(100.0),
        },
        awaited(Mariadb, "mariadb-awaited", 0.7),
        Comparison {
            name: "mariadb-sustained",
            text: "Enqueue and run, one process",
            durable: "each row at its enqueue's answer; every success before the clock stops",
            ours: rate(Mariadb, "ours", "sustained:2000"),
            of: Of::Run(rate(Mariadb, "ruststream-lock", "sustained:2")),
            other: "ruststream-sqlx, rows locked",
            goal: AtLeast(1.2),
        },
        Comparison {
            name: "mariadb-sustained",
            text: "Enqueue and run, one process",
            durable: "each row at its enqueue's answer; every success before the clock stops",
            ours: rate(Mariadb, "ours", "sustained:2000"),
            of: Of::Run(rate(Mariadb, "ruststream-lease", "sustained:2")),
            other: "ruststream-sqlx, leases",
            goal: AtLeast(1.2),
        },
        claim(Mariadb, "mariadb-claim", "claim:10", "the same beside 10k and 10k"),
        claim(Mariadb, "mariadb-claim", "claim:100", "the same beside 100k and 100k"),
        awaited(Mysql, "mysql-awaited", 0.7),
        claim(Mysql, "mysql-claim", "claim:10", "the same beside 10k and 10k"),
        claim(Mysql, "mysql-claim", "claim:100", "the same beside 100k and 100k"),
        Comparison {
            name: "sqlite-sustained",
            text: "Enqueue and run, one process",
            durable: "each row at its enqueue's answer; every success before the clock stops",
            ours: rate(Sqlite, "ours", "sustained:2000"),
            of: Of::Run(rate(Sqlite, "ruststream-lease", "sustained:2")),
            other: "ruststream-sqlx, leases",
            goal: AtLeast(10.0),
        },
        Comparison {
            name: "sqlite-sustained",
            text: "Enqueue and run, one process",
            durable: "the same; the peer's commits do not wait for the disk",
            ours: rate(Sqlite, "ours", "sustained:2000"),
            of: Of::Run(rate(Sqlite, "effectum", "sustained:2")),
            other: "effectum",
            goal: AtLeast(1.0),
        },
        awaited(Sqlite, "sqlite-awaited", 0.7),
        claim(Sqlite, "sqlite-claim", "claim:10", "the same beside 10k and 10k"),
        claim(Sqlite, "sqlite-claim", "claim:100", "the same beside 100k and 100k"),
    ]
}
