//! What processes write down on the way, in a file that needs no database and outlives their crashes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::worker::uptime;

/// A line of the ledger. `at` is the uptime in microseconds, taken before what it stands for can be
/// seen by others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are what their names say
pub enum Line {
    /// A caller was told that the task is stored.
    Accepted { id: i64, at: u64 },
    /// An attempt starts; so many processes have died while they held its task.
    Start { id: i64, fence: i64, attempt: u32, crashes: u32, pid: u32, at: u64 },
    /// An attempt ends; it succeeded, and it held its task then.
    End { id: i64, fence: i64, ok: bool, held: bool, pid: u32, at: u64 },
    /// An attempt was stopped.
    Dropped { id: i64, fence: i64, pid: u32, at: u64 },
    /// The process saw that its wall clock was moved.
    Moved { pid: u32, at: u64 },
    /// The process kills itself at a point.
    Hit { point: String, pid: u32, at: u64 },
}

/// [`uptime`] in microseconds.
pub fn now() -> u64 {
    uptime().as_micros() as u64
}

/// The ledger, for appending: one write a line, so that lines of several processes do not mix.
#[derive(Debug)]
pub struct Ledger(File);

impl Ledger {
    /// Opens the one in this folder.
    pub fn open(folder: &Path) -> Self {
        let path = folder.join("ledger");
        Self(File::options().create(true).append(true).open(path).expect("a ledger"))
    }

    /// Writes a line.
    pub fn write(&self, line: &Line) {
        let line = serde_json::to_string(line).expect("a line is JSON") + "\n";
        (&self.0).write_all(line.as_bytes()).expect("the ledger takes a line");
    }
}

#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) accepted: HashSet<i64>,
    pub(super) attempts: HashMap<i64, Vec<Attempt>>,
    pub(super) hits: BTreeMap<String, u32>,
    pub(super) moved: u32,
    /// Who killed itself, and when.
    pub(super) by_itself: Vec<(u32, u64)>,
}

#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) fence: i64,
    pub(super) number: u32,
    pub(super) crashes: u32,
    pub(super) pid: u32,
    pub(super) start: u64,
    pub(super) end: Option<End>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) at: u64,
    /// `None`: it was stopped.
    pub(super) ok: Option<bool>,
    pub(super) held: bool,
}

/// Reads the ledger as it grows.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) file: File,
    pub(super) rest: Vec<u8>,
    pub(super) seen: Seen,
}

impl Reader {
    pub(super) fn read(&mut self) {
        self.file.read_to_end(&mut self.rest).expect("the ledger is there");
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            self.seen.add(whole_line(line));
        }
    }
}

/// A process that is killed may leave the beginning of a line, which somebody else's then follows.
fn whole_line(text: &[u8]) -> Line {
    let starts = (0..text.len()).filter(|at| text[*at..].starts_with(b"{\""));
    let mut lines = starts.filter_map(|at| serde_json::from_slice(&text[at..]).ok());
    lines.next().unwrap_or_else(|| {
        panic!("no line of the ledger: {}", String::from_utf8_lossy(text));
    })
}

impl Seen {
    pub(super) fn add(&mut self, line: Line) {
        match line {
            Line::Accepted { id, .. } => {
                self.accepted.insert(id);
            }
            Line::Start { id, fence, attempt: number, crashes, pid, at } => {
                let attempt = Attempt { fence, number, crashes, pid, start: at, end: None };
                self.attempts.entry(id).or_default().push(attempt);
            }
            Line::End { id, fence, ok, held, pid, at } => {
                self.end(id, fence, pid, End { at, ok: Some(ok), held });
            }
            Line::Dropped { id, fence, pid, at } => {
                self.end(id, fence, pid, End { at, ok: None, held: false });
            }
            Line::Moved { .. } => self.moved += 1,
            Line::Hit { point, pid, at } => {
                *self.hits.entry(point).or_default() += 1;
                self.by_itself.push((pid, at));
            }
        }
    }

    pub(super) fn end(&mut self, id: i64, fence: i64, pid: u32, end: End) {
        let attempts = self.attempts.get_mut(&id).expect("what ends has started");
        let mut attempts = attempts.iter_mut().rev();
        let attempt = attempts.find(|one| (one.fence, one.pid) == (fence, pid));
        attempt.expect("what ends has started").end = Some(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_may_follow_the_beginning_of_another() {
        let line = Line::Hit { point: "run.before".into(), pid: 7, at: 9 };
        let text = serde_json::to_string(&line).unwrap();
        for torn in ["", "{", r#"{"End":{"id":2125614425549508696,"fence"#] {
            assert_eq!(whole_line(format!("{torn}{text}").as_bytes()), line);
        }
    }
}
