//! The table and the chart.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::compare::{Comparison, Goal, Number, Of, On, Round, comparisons};

pub struct Report<'a> {
    pub comparisons: &'a [Comparison],
    pub rounds: &'a [Round],
    pub notes: &'a BTreeMap<String, String>,
    pub versions: &'a [(On, String)],
}

const BEGIN: &str = "<!-- begin: written by benches/run -->";
const END: &str = "<!-- end: written by benches/run -->";

/// Who, and the least, the middle and the greatest of its numbers.
type Bars<'a> = Vec<(&'a str, [f64; 3])>;

/// The least, the middle and the greatest.
fn spread(mut values: Vec<f64>) -> Option<[f64; 3]> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = match values.len() {
        0 => return None,
        n if n % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    };
    Some([values[0], median, values[values.len() - 1]])
}

/// With a thousands separator.
fn whole(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn show(value: f64, metric: &str) -> String {
    match metric {
        _ if metric.ends_with("_us") && value < 1000.0 => format!("{value:.0} µs"),
        _ if metric.ends_with("_us") => format!("{:.2} ms", value / 1000.0),
        _ if metric.ends_with("_mb") => format!("{value:.0} MB"),
        _ => format!("{}/s", whole(value)),
    }
}

/// What the chart shows.
fn groups() -> [(&'static str, Vec<(&'static str, Number)>); 6] {
    let rate = |on, who, what| Number((on, who, what), "rate");
    let postgres = |who, what| rate(On::Postgres, who, what);
    [
        (
            "PostgreSQL: enqueue and run in one process",
            vec![
                ("by hand, hand-over", postgres("hand", "sustained:2")),
                ("task-retry", postgres("ours", "sustained:2000")),
                ("task-retry, two processes", postgres("ours", "two:2000")),
                ("ruststream-sqlx, rows locked", postgres("ruststream-lock", "sustained:2")),
                ("graphile_worker", postgres("graphile_worker", "sustained:2")),
                ("apalis", postgres("apalis", "sustained:2")),
                ("riverqueue", postgres("riverqueue", "sustained:2")),
                ("ruststream-sqlx, leases", postgres("ruststream-lease", "sustained:2")),
            ],
        ),
        (
            "PostgreSQL: draining 50,000 due rows",
            vec![
                ("by hand, batches", postgres("hand", "drain:50000")),
                ("task-retry", postgres("ours", "drain:50000")),
                ("graphile_worker", postgres("graphile_worker", "drain:50000")),
                ("ruststream-sqlx, rows locked", postgres("ruststream-lock", "drain:50000")),
                ("riverqueue", postgres("riverqueue", "drain:50000")),
                ("apalis", postgres("apalis", "drain:50000")),
                ("ruststream-sqlx, leases", postgres("ruststream-lease", "drain:50000")),
            ],
        ),
        (
            "PostgreSQL: 256 callers that await a durable call",
            vec![
                ("by hand, group commit", postgres("hand", "awaited:256")),
                ("task-retry", postgres("ours", "awaited:256")),
                ("by hand, a statement per call", postgres("hand", "each:256")),
                ("dbos, a one-step workflow", postgres("dbos", "call:256")),
            ],
        ),
        (
            "PostgreSQL: 100,000 rows in one call",
            vec![
                ("by hand, UNNEST", postgres("hand", "bulk:100000")),
                ("task-retry", postgres("ours", "bulk:100000")),
                ("apalis", postgres("apalis", "bulk:100000")),
                ("graphile_worker", postgres("graphile_worker", "bulk:100000")),
                ("riverqueue", postgres("riverqueue", "bulk:100000")),
            ],
        ),
        (
            "MariaDB: enqueue and run in one process",
            vec![
                ("task-retry", rate(On::Mariadb, "ours", "sustained:2000")),
                (
                    "ruststream-sqlx, rows locked",
                    rate(On::Mariadb, "ruststream-lock", "sustained:2"),
                ),
                ("ruststream-sqlx, leases", rate(On::Mariadb, "ruststream-lease", "sustained:2")),
            ],
        ),
        (
            "SQLite: enqueue and run in one process",
            vec![
                ("task-retry", rate(On::Sqlite, "ours", "sustained:2000")),
                ("effectum", rate(On::Sqlite, "effectum", "sustained:2")),
                ("ruststream-sqlx, leases", rate(On::Sqlite, "ruststream-lease", "sustained:2")),
            ],
        ),
    ]
}

/// Fails if the chart is to show what is not run: it would leave it out, without a word.
pub fn check_chart() {
    let runs: Vec<_> = comparisons().iter().flat_map(Comparison::runs).collect();
    for Number(run, _) in groups().into_iter().flat_map(|group| group.1).map(|bar| bar.1) {
        assert!(runs.contains(&run), "the chart shows {} {}, which is not run", run.1, run.2);
    }
}

impl Report<'_> {
    pub fn table(&self) -> String {
        let mut out = String::new();
        let cores = std::thread::available_parallelism().unwrap();
        let versions: Vec<_> =
            self.versions.iter().map(|(on, version)| format!("{} {version}", on.name())).collect();
        let how = if crate::tool::quick() {
            ", **of shortened work (`--quick`): for a rough idea only**"
        } else {
            ""
        };
        let rounds = self.rounds.len();
        let s = if rounds == 1 { "" } else { "s" };
        let _ = writeln!(out, "{cores} cores; {}; {rounds} round{s}{how}.", versions.join(", "));
        for on in On::ALL {
            let rows: Vec<_> =
                self.comparisons.iter().filter(|comparison| comparison.ours.0.0 == on).collect();
            if rows.is_empty() {
                continue;
            }
            let _ = writeln!(
                out,
                "\n### {}\n\n| what | durable when it answers | task-retry | held against | ratio of medians \
                 (of rounds: min – median – max) | goal | |\n| --- | --- | ---: | --- | ---: | ---: | --- |",
                on.name()
            );
            rows.iter().for_each(|comparison| self.row(&mut out, comparison));
        }
        for (of, note) in self.notes {
            let _ = writeln!(
                out,
                "\n<details><summary>Plan: {of}</summary>\n\n```text\n{note}```\n\n</details>"
            );
        }
        out
    }

    fn row(&self, out: &mut String, comparison: &Comparison) {
        let pairs: Vec<(f64, f64)> =
            self.rounds.iter().filter_map(|round| comparison.numbers(round)).collect();
        let metric = comparison.ours.1;
        let _ = write!(out, "| {} | {} | ", comparison.text, comparison.durable);
        let Some([_, ours, _]) = spread(pairs.iter().map(|pair| pair.0).collect()) else {
            let _ = writeln!(out, "not measured | {} | | | |", comparison.other);
            return;
        };
        let [_, other, _] = spread(pairs.iter().map(|pair| pair.1).collect()).unwrap();
        let [least, median, most] =
            spread(pairs.iter().map(|pair| pair.0 / pair.1).collect()).unwrap();
        let _ = write!(out, "{} | ", show(ours, metric));
        let missing = self.rounds.len() - pairs.len();
        let ratio = ours / other;
        // By both measures, so that nobody chooses the kinder one.
        let met = match (comparison.met(ratio) && comparison.met(median), missing) {
            (true, 0) => "met".to_owned(),
            (false, 0) => "**missed**".to_owned(),
            (met, missing) => {
                format!("{}, {missing} failed", if met { "met" } else { "**missed**" })
            }
        };
        let goal = |text: &dyn Fn(f64) -> String| match comparison.goal {
            Goal::AtMost(goal) => format!("≤ {}", text(goal)),
            Goal::AtLeast(goal) => format!("≥ {}", text(goal)),
        };
        let _ = match comparison.of {
            Of::Itself => writeln!(
                out,
                "— | **{}** ({} – {} – {}) | {} | {met} |",
                show(ratio, metric),
                show(least, metric),
                show(median, metric),
                show(most, metric),
                goal(&|value| show(value, metric)),
            ),
            _ => writeln!(
                out,
                "{}{}: {} | **{ratio:.2}** ({least:.2} – {median:.2} – {most:.2}) | {} | {met} |",
                comparison.other,
                self.which(&comparison.of),
                show(other, metric),
                goal(&|value| format!("{value}×")),
            ),
        };
    }

    /// Who the best of many is.
    fn which(&self, of: &Of) -> String {
        let Of::Best(numbers) = of else { return String::new() };
        let median = |number: &Number| {
            let values = self.rounds.iter().filter_map(|round| number.of(round)).collect();
            spread(values).map_or(0.0, |spread| spread[1])
        };
        let best = numbers.iter().max_by(|a, b| median(a).total_cmp(&median(b)));
        best.map_or_else(String::new, |best| format!(" ({})", best.0.1))
    }

    /// Puts the table between the marks of a file.
    pub fn write_into(&self, path: &str) {
        let text = std::fs::read_to_string(path).unwrap();
        let (before, rest) = text.split_once(BEGIN).expect("no begin mark");
        let (_, after) = rest.split_once(END).expect("no end mark");
        std::fs::write(path, format!("{before}{BEGIN}\n{}{END}{after}", self.table())).unwrap();
    }

    /// Bars of the medians, with lines from the least to the greatest, on light and on dark.
    pub fn chart(&self) -> String {
        let groups = groups();
        let groups: Vec<(&str, Bars)> = groups
            .into_iter()
            .map(|(title, bars)| {
                let bars = bars.into_iter().filter_map(|(label, number)| {
                    let values = self.rounds.iter().filter_map(|round| number.of(round)).collect();
                    Some((label, spread(values)?))
                });
                (title, bars.collect::<Vec<_>>())
            })
            .filter(|(_, bars)| !bars.is_empty())
            .collect();
        let longest =
            groups.iter().flat_map(|(_, bars)| bars).map(|(_, value)| value[2]).fold(1.0, f64::max);
        const LEFT: f64 = 220.0;
        let scale = 420.0 / longest;
        let (mut body, mut y) = (String::new(), 44.0);
        for (title, bars) in groups {
            let _ = writeln!(body, "<text class=\"title\" x=\"12\" y=\"{y}\">{title}</text>");
            y += 10.0;
            for (label, [least, median, most]) in bars {
                let class = match label {
                    _ if label.starts_with("task-retry") => "ours",
                    _ if label.starts_with("by hand") => "hand",
                    _ => "peer",
                };
                let [a, b, c] = [least, median, most].map(|value| value * scale);
                let (text, middle) = (y + 13.0, y + 9.0);
                let _ = writeln!(
                    body,
                    "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{label}</text>\n\
                     <rect class=\"{class}\" x=\"{LEFT}\" y=\"{y}\" width=\"{b:.1}\" height=\"18\" rx=\"2\"/>\n\
                     <path class=\"spread\" d=\"M{:.1} {middle}H{:.1}\"/>\n\
                     <text x=\"{:.1}\" y=\"{text}\">{}</text>",
                    LEFT - 8.0,
                    LEFT + a,
                    LEFT + c,
                    LEFT + c + 8.0,
                    whole(median),
                );
                y += 24.0;
            }
            y += 26.0;
        }
        let height = y;
        let quick = if crate::tool::quick() { ", shortened work (--quick)" } else { "" };
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 740 {height}\" width=\"740\" height=\"{height}\" \
             role=\"img\" aria-label=\"Tasks per second of task-retry, of hand-written SQL and of peers\">\n\
             <style>\n\
             text {{ font: 13px system-ui, sans-serif; fill: #1f2328; }}\n\
             .title {{ font-weight: 600; }}\n\
             .small {{ font-size: 12px; }}\n\
             .back {{ fill: #ffffff; }}\n\
             .ours {{ fill: #0969da; }}\n\
             .hand {{ fill: #8c959f; }}\n\
             .peer {{ fill: #d4a72c; }}\n\
             .spread {{ stroke: #1f2328; stroke-width: 1.5; fill: none; }}\n\
             @media (prefers-color-scheme: dark) {{\n\
             text {{ fill: #e6edf3; }}\n\
             .back {{ fill: #0d1117; }}\n\
             .ours {{ fill: #4493f8; }}\n\
             .hand {{ fill: #6e7681; }}\n\
             .peer {{ fill: #9e7a1f; }}\n\
             .spread {{ stroke: #e6edf3; }}\n\
             }}\n\
             </style>\n\
             <rect class=\"back\" width=\"740\" height=\"{height}\" rx=\"6\"/>\n\
             <text class=\"small\" x=\"12\" y=\"20\">Tasks per second: median of {} rounds, line from least to greatest{quick}\
             </text>\n{body}</svg>\n",
            self.rounds.len()
        )
    }
}
