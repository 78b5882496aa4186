//! What is kept on disk: a log for each run, by which a run that was seen is known again, and the end
//! of each run until the admin was told of it.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{Days, NaiveDate};
use tracing::warn;

use super::protocol::{Ended, FAILURE, LogPage, RunId};
use crate::clock::{Millis, to_datetime};
use crate::{Error, ErrorKind, Result};

const CALLBACKS: &str = "callbacks";
/// A run's log ends here; the last line says so.
const LINES: u64 = 2000;
/// What one answer to the admin holds of a log, about.
const PAGE: usize = 256 << 10;
/// What a run leaves behind whose process was killed.
const KILLED: &str = "the executor's process ended before this run did; tasks that it had begun are taken over \
                      when their leases run out";

pub(super) struct Journal {
    folder: PathBuf,
    /// Held as long as the executor lives.
    _lock: File,
}

impl Journal {
    /// # Errors
    /// If the folder cannot be written, or is another executor's.
    pub(super) fn open(folder: PathBuf) -> Result<Self> {
        let shown = folder.display().to_string();
        let refuse = |error: io::Error| {
            let message = format!(
                "xxl-job's log-path {shown} cannot be written: name a folder that can, and that \
                 survives a restart"
            );
            Error::new(ErrorKind::Config, message).with_source(error)
        };
        fs::create_dir_all(folder.join(CALLBACKS)).map_err(refuse)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join("lock"))
            .map_err(refuse)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "xxl-job's log-path {shown} is in use by another executor: each needs a `log-path` \
                     of its own"
                ),
            )),
            Err(TryLockError::Error(error)) => Err(refuse(error)),
        }
    }

    /// Writes down that a run was accepted; `false` if it was seen before. From now on its end is
    /// told, whatever happens to this process.
    pub(super) fn begin(&self, run: RunId) -> io::Result<bool> {
        let log = self.log(run.day(), run.log);
        if log.exists() {
            return Ok(false);
        }
        // First the end that holds if the process dies from here on: a run that is known and of which
        // nothing is ever told would be worse than one that is told and never began.
        self.keep(&Ended::new(run, FAILURE, KILLED))?;
        let create = || {
            if let Some(day) = log.parent() {
                fs::create_dir_all(day)?;
            }
            File::options().create_new(true).write(true).open(&log)
        };
        create().inspect_err(|_| self.forget(run))?;
        Ok(true)
    }

    pub(super) fn is_known(&self, run: RunId) -> bool {
        self.log(run.day(), run.log).exists()
    }

    /// The log of a run, to append to.
    pub(super) fn writer(&self, run: RunId) -> Writer {
        let path = self.log(run.day(), run.log);
        let open = File::options().append(true).create(true).open(&path);
        let file = open.inspect_err(|error| warn!(%error, ?path, "a run's log cannot be written"));
        Writer { file: file.ok(), lines: 0 }
    }

    /// A part of a run's log, from a line on that is counted from 1.
    pub(super) fn read(&self, time: Millis, log: i64, from: i64, has_ended: bool) -> LogPage {
        let path = self.log(RunId { time, log }.day(), log);
        let Ok(file) = File::open(&path) else {
            return LogPage {
                from_line_num: from,
                to_line_num: from.saturating_sub(1),
                log_content: format!("There is no log of run {log} here (any more).\n"),
                is_end: true,
            };
        };
        let first = from.max(1);
        let (mut content, mut line, mut is_end) = (String::new(), 0, false);
        let mut lines = BufReader::new(file.take(64 << 20));
        let mut text = Vec::new();
        loop {
            text.clear();
            match lines.read_until(b'\n', &mut text) {
                Ok(read) if read > 0 && text.ends_with(b"\n") => {}
                // A line that is just being written is the next page's.
                _ => {
                    is_end = has_ended;
                    break;
                }
            }
            if line + 1 >= first {
                let escaped = escape(&String::from_utf8_lossy(&text));
                if !content.is_empty() && content.len() + escaped.len() > PAGE {
                    break;
                }
                content.push_str(&escaped);
            }
            line += 1;
        }
        let to_line_num = if content.is_empty() { from.saturating_sub(1) } else { line };
        LogPage { from_line_num: from, to_line_num, log_content: content, is_end }
    }

    /// Writes the end of a run down until the admin was told of it.
    pub(super) fn keep(&self, end: &Ended) -> io::Result<()> {
        let path = self.callback(end.run);
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec(end)?)?;
        fs::rename(new, path)
    }

    /// The admin was told.
    pub(super) fn forget(&self, run: RunId) {
        let path = self.callback(run);
        if let Err(error) = fs::remove_file(&path) {
            warn!(%error, ?path, "cannot be removed: the admin will be told of the run once more");
        }
    }

    /// The ends that the admin was not told of when the last process of this folder ended.
    pub(super) fn left(&self) -> Vec<Ended> {
        let Ok(folder) = fs::read_dir(self.folder.join(CALLBACKS)) else { return Vec::new() };
        let mut ends = Vec::new();
        for path in folder.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.extension().is_none_or(|extension| extension != "json") {
                let _ = fs::remove_file(path);
                continue;
            }
            let end = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
            match end {
                Some(end) => ends.push(end),
                None => warn!(?path, "is no callback of ours; it is left alone"),
            }
        }
        ends
    }

    /// Removes what is older than so many days.
    pub(super) fn sweep(&self, now: Millis, days: u32) {
        let first = to_datetime(now).date_naive() - Days::new(days.into());
        let Ok(folder) = fs::read_dir(&self.folder) else { return };
        for path in folder.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // Nothing but folders that are named like ours.
            let is_old = NaiveDate::parse_from_str(name, "%Y-%m-%d").is_ok_and(|day| day < first);
            if is_old && let Err(error) = fs::remove_dir_all(&path) {
                warn!(%error, ?path, "old logs of runs cannot be removed");
            }
        }
    }

    fn log(&self, day: NaiveDate, log: i64) -> PathBuf {
        self.folder.join(day.format("%Y-%m-%d").to_string()).join(format!("{log}.log"))
    }

    fn callback(&self, run: RunId) -> PathBuf {
        self.folder.join(CALLBACKS).join(format!("{}-{}.json", run.time, run.log))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The log of one run.
pub(super) struct Writer {
    file: Option<File>,
    lines: u64,
}

impl Writer {
    /// Appends one line, until there are too many.
    pub(super) fn line(&mut self, now: Millis, text: &str) {
        self.lines += 1;
        match self.lines {
            ..LINES => self.write(now, text),
            LINES => self.write(now, "… and so on: the log is full, only its last line follows"),
            _ => {}
        }
    }

    /// Appends the last line.
    pub(super) fn last(&mut self, now: Millis, text: &str) {
        self.write(now, text);
    }

    fn write(&mut self, now: Millis, text: &str) {
        let time = to_datetime(now).format("%Y-%m-%d %H:%M:%S%.3f");
        let text: String = text.replace(['\r', '\n'], " ").chars().take(4096).collect();
        // At one go, so that nobody reads half a line.
        if let Some(file) = &mut self.file
            && file.write_all(format!("{time}Z {text}\n").as_bytes()).is_err()
        {
            self.file = None;
        }
    }
}

/// How often old logs are looked for.
pub(super) const SWEEP: Duration = Duration::from_secs(3600);

/// Some admins put logs into their page as they are.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xxl_job::protocol::SUCCESS;

    const RUN: RunId = RunId { time: 1_795_447_228_855, log: 7 };

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let name = format!("task-retry-journal-{}-{}", std::process::id(), fastrand::u64(..));
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_run_is_known_again_and_its_end_outlives_the_process() {
        let folder = Folder::new();
        let journal = Journal::open(folder.0.clone()).unwrap();
        assert!(!journal.is_known(RUN));
        assert!(journal.begin(RUN).unwrap());
        assert!(!journal.begin(RUN).unwrap());
        assert!(journal.is_known(RUN));
        let other = RunId { log: 8, ..RUN };
        assert!(journal.begin(other).unwrap());
        journal.keep(&Ended::new(other, SUCCESS, "fine")).unwrap();
        let error = Journal::open(folder.0.clone()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        drop(journal);

        let journal = Journal::open(folder.0.clone()).unwrap();
        fs::write(folder.0.join(CALLBACKS).join("1-1.new"), "half").unwrap();
        let mut left = journal.left();
        left.sort_by_key(|end| end.run);
        assert_eq!(left, [Ended::new(RUN, FAILURE, KILLED), Ended::new(other, SUCCESS, "fine")]);
        assert!(!journal.begin(RUN).unwrap(), "still known");
        left.iter().for_each(|end| journal.forget(end.run));
        assert_eq!(journal.left(), []);
        journal.sweep(RUN.time + 3 * 86_400_000, 3);
        assert!(journal.is_known(RUN));
        journal.sweep(RUN.time + 4 * 86_400_000, 3);
        assert!(!journal.is_known(RUN));
        assert!(folder.0.join(CALLBACKS).exists());
    }

    #[test]
    fn logs_are_read_in_pages_and_escaped() {
        let folder = Folder::new();
        let journal = Journal::open(folder.0.clone()).unwrap();
        assert!(journal.read(RUN.time, RUN.log, 1, false).is_end, "there is none");
        journal.begin(RUN).unwrap();
        let cut = RUN.time / 1000 * 1000;
        let page = journal.read(cut, RUN.log, 1, false);
        assert_eq!((page.from_line_num, page.to_line_num, page.is_end), (1, 0, false));
        let mut writer = journal.writer(RUN);
        writer.line(RUN.time, "<b>first</b> & 'second'\n\"third\"");
        writer.line(RUN.time, &"长".repeat(4096));
        let page = journal.read(cut, RUN.log, 1, false);
        assert!(page.log_content.starts_with(
            "2026-11-23 15:20:28.855Z &lt;b&gt;first&lt;/b&gt; &amp; &#39;second&#39; &quot;third&quot;\n"
        ), "{}", page.log_content);
        assert_eq!((page.from_line_num, page.to_line_num, page.is_end), (1, 2, false));
        let page = journal.read(cut, RUN.log, 3, true);
        assert_eq!((page.from_line_num, page.to_line_num, page.is_end), (3, 2, true));
        for _ in 0..3000 {
            writer.line(RUN.time, &"x".repeat(1000));
        }
        writer.last(RUN.time, "the end");
        let (mut from, mut pages, mut text) = (1, 0, String::new());
        loop {
            let page = journal.read(cut, RUN.log, from, true);
            assert_eq!(page.from_line_num, from);
            pages += 1;
            text += &page.log_content;
            from = page.to_line_num + 1;
            if page.is_end {
                break;
            }
        }
        assert_eq!((from, text.lines().count()), (2002, 2001));
        assert!(pages > 5 && text.ends_with("the end\n") && text.contains("the log is full"));
    }
}
