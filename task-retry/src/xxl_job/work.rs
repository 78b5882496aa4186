//! The handlers: what a run does.

use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use super::journal::Writer;
use super::protocol::Trigger;
use crate::clock::Millis;
use crate::runtime::{Inner, Pass, RunReport, Told, remove_history};
use crate::store::Shard;
use crate::{Status, TaskId};

const TASK_RETRY_JOB: &str = "taskRetryJob";
const REMOVE_HISTORY: &str = "removeHistory";

/// What a trigger asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Work {
    RunDue { ids: Option<Vec<TaskId>>, shard: Option<Shard> },
    RemoveHistory,
}

impl Work {
    /// # Errors
    /// With what the admin's user is to write instead.
    pub(super) fn of(trigger: &Trigger) -> Result<Self, String> {
        let glue = trigger.glue_type.as_deref().unwrap_or("BEAN");
        if !matches!(glue, "" | "BEAN") {
            return Err(format!(
                "the glue type {glue} is not for this executor: make it a job of type BEAN"
            ));
        }
        match trigger.executor_handler.as_deref().unwrap_or_default().trim() {
            TASK_RETRY_JOB => {
                let ids = ids(trigger.executor_params.as_deref().unwrap_or_default())?;
                Ok(Self::RunDue { ids, shard: shard(trigger)? })
            }
            REMOVE_HISTORY => Ok(Self::RemoveHistory),
            // The words of xxl-job's own executor; the admin's users know them.
            name => Err(format!(
                "job handler [{name}] not found. This executor has {TASK_RETRY_JOB} and {REMOVE_HISTORY}."
            )),
        }
    }

    /// Does it, and tells in a line what was done. When it is stopped it claims nothing more.
    pub(super) async fn perform(
        self,
        inner: Arc<Inner>,
        stop: CancellationToken,
        log: Arc<Log>,
    ) -> Result<String, String> {
        match self {
            Self::RunDue { ids, shard } => {
                let asked = ids.as_ref().filter(|_| shard.is_none()).map(Vec::len);
                let tell = Box::new(move |id, told| {
                    log.line(&format!("task {id}: {}", word(told)));
                });
                let pass = Pass { ids, shard, stop, tell: Some(tell) };
                let report = pass.run(&inner).await.map_err(|error| with_source(&error))?;
                if inner.closing.is_cancelled() {
                    return Err(format!(
                        "the executor was shut down meanwhile: {}",
                        summary(&report, asked)
                    ));
                }
                Ok(summary(&report, asked))
            }
            Self::RemoveHistory => {
                let removed = remove_history(&inner).await.map_err(|error| with_source(&error))?;
                Ok(format!("{removed} tasks removed"))
            }
        }
    }

    /// For the first line of the log.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::RunDue { ids, shard } => {
                let which = match ids {
                    Some(ids) => format!("{} tasks by their ids", ids.len()),
                    None => "all due tasks".to_owned(),
                };
                match shard {
                    Some(Shard { index, total }) => {
                        format!("{TASK_RETRY_JOB}: {which}, share {index} of {total}")
                    }
                    None => format!("{TASK_RETRY_JOB}: {which}"),
                }
            }
            Self::RemoveHistory => REMOVE_HISTORY.to_owned(),
        }
    }
}

/// A run's log, shared with what it runs.
pub(super) struct Log {
    writer: Mutex<Writer>,
    now: Box<dyn Fn() -> Millis + Send + Sync>,
}

impl Log {
    pub(super) fn new(writer: Writer, inner: &Arc<Inner>) -> Self {
        let clock = inner.clock.clone();
        Self { writer: Mutex::new(writer), now: Box::new(move || clock.now()) }
    }

    pub(super) fn line(&self, text: &str) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.line((self.now)(), text);
    }

    pub(super) fn last(&self, text: &str) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.last((self.now)(), text);
    }
}

/// `blank`, nothing, or ids with commas between them.
fn ids(params: &str) -> Result<Option<Vec<TaskId>>, String> {
    let params = params.trim();
    if params.is_empty() || params.eq_ignore_ascii_case("blank") {
        return Ok(None);
    }
    let mut ids = Vec::new();
    for part in params.split(',').map(str::trim) {
        match part.parse::<i64>() {
            Ok(id) => ids.push(TaskId::from(id)),
            Err(_) => {
                let part: String = part.chars().take(60).collect();
                return Err(format!(
                    "the parameter is not understood at {part:?}: write `blank` or nothing to run all due \
                     tasks, or ids of tasks with commas between them, such as `{}`",
                    "7233190012345678901,7233190012345678902"
                ));
            }
        }
    }
    Ok(Some(ids))
}

/// No share where there is but one.
fn shard(trigger: &Trigger) -> Result<Option<Shard>, String> {
    let total = trigger.broadcast_total.unwrap_or(1).max(1);
    let index = trigger.broadcast_index.unwrap_or(0);
    match (u32::try_from(index), u32::try_from(total)) {
        (_, Ok(1)) => Ok(None),
        (Ok(index), Ok(total)) if index < total => Ok(Some(Shard { index, total })),
        _ => Err(format!("there is no share {index} of {total}: the first is 0")),
    }
}

fn summary(report: &RunReport, asked: Option<usize>) -> String {
    let mut text = match asked {
        Some(asked) => format!("{} of {asked} tasks run", report.claimed),
        None => format!("{} tasks run", report.claimed),
    };
    for (count, what) in [
        (report.succeeded, "succeeded"),
        (report.retrying, "failed and will be retried"),
        (report.failed, "given up"),
        (report.waiting, "wait to be completed"),
        (report.undecodable, "cannot be decoded and were put back"),
        (report.other, "put back or ended elsewhere"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    if asked.is_some_and(|asked| report.claimed < asked as u64) {
        text.push_str(
            "; the others are held by a process, of a source that is not here, or not there",
        );
    }
    text
}

fn word(told: Told) -> &'static str {
    match told {
        Told::Became(Status::Succeeded) => "succeeded",
        Told::Became(Status::Retrying) => "failed, will be retried",
        Told::Became(Status::Failed) => "failed, given up",
        Told::Became(Status::Waiting) => "waits to be completed",
        Told::Became(Status::Executing | Status::Cancelled) | Told::Nothing => {
            "put back, or ended elsewhere"
        }
        Told::Undecodable => "cannot be decoded, put back",
    }
}

fn with_source(error: &crate::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trigger(extra: &str) -> Trigger {
        let text = format!(r#"{{"jobId":1,"logId":1,"executorHandler":"taskRetryJob"{extra}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn parameters_are_blank_or_ids() {
        for blank in ["", "  ", "blank", "Blank"] {
            assert_eq!(ids(blank), Ok(None));
        }
        let some = vec![TaskId::from(7), TaskId::from(8)];
        assert_eq!(ids("7, 8"), Ok(Some(some)));
        for bad in ["7;8", "7,,8", "null", "7,", "99999999999999999999"] {
            assert!(ids(bad).unwrap_err().contains("write `blank` or nothing"), "{bad}");
        }
    }

    #[test]
    fn shares_are_those_of_a_broadcast() {
        let share = |extra: &str| shard(&trigger(extra));
        assert_eq!(share(""), Ok(None));
        assert_eq!(share(r#","broadcastIndex":0,"broadcastTotal":1"#), Ok(None));
        assert_eq!(share(r#","broadcastIndex":0,"broadcastTotal":0"#), Ok(None));
        assert_eq!(share(r#","broadcastIndex":5,"broadcastTotal":-1"#), Ok(None));
        let second = Shard { index: 1, total: 3 };
        assert_eq!(share(r#","broadcastIndex":1,"broadcastTotal":3"#), Ok(Some(second)));
        assert!(share(r#","broadcastIndex":3,"broadcastTotal":3"#).is_err());
        assert!(share(r#","broadcastIndex":-1,"broadcastTotal":3"#).is_err());
    }

    #[test]
    fn what_is_not_here_is_refused() {
        let error = Work::of(&trigger(r#","glueType":"GLUE_SHELL""#)).unwrap_err();
        assert!(error.contains("BEAN"));
        let other = r#"{"jobId":1,"logId":1,"executorHandler":"demoJob"}"#;
        let error = Work::of(&serde_json::from_str(other).unwrap()).unwrap_err();
        assert!(error.starts_with("job handler [demoJob] not found."));
    }
}
