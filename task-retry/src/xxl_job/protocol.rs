//! What admin and executor tell each other, in the dialects of all admins from 2.3 to 3.5 at once.

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use crate::clock::{Millis, to_datetime};

pub(super) const SUCCESS: i32 = 200;
pub(super) const FAILURE: i32 = 500;
pub(super) const TIMED_OUT: i32 = 502;

/// Admins store no more of a message.
const MESSAGE: usize = 50_000;

/// An answer to the admin: the payload is called `content` up to 3.2, and `data` since.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    code: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    msg: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<LogPage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<LogPage>,
}

impl Answer {
    pub(super) fn ok() -> Self {
        Self { code: SUCCESS, msg: None, content: None, data: None }
    }

    pub(super) fn refusal(message: impl Into<String>) -> Self {
        Self { code: FAILURE, msg: Some(message.into()), content: None, data: None }
    }

    pub(super) fn page(page: LogPage) -> Self {
        Self { content: Some(page.clone()), data: Some(page), ..Self::ok() }
    }
}

/// A run that the admin asks for. Whatever an admin may leave out or send as null has a default.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Trigger {
    pub(super) job_id: i64,
    pub(super) executor_handler: Option<String>,
    pub(super) executor_params: Option<String>,
    pub(super) executor_block_strategy: Option<String>,
    /// In seconds; none if it is not positive.
    pub(super) executor_timeout: Option<i64>,
    pub(super) log_id: i64,
    pub(super) log_date_time: Option<Millis>,
    pub(super) glue_type: Option<String>,
    pub(super) broadcast_index: Option<i64>,
    pub(super) broadcast_total: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OfJob {
    pub(super) job_id: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LogAsked {
    pub(super) log_id: i64,
    /// The time of the run, in whole seconds; its first name misses a letter.
    #[serde(alias = "logDateTime")]
    pub(super) log_date_tim: Option<Millis>,
    #[serde(default)]
    pub(super) from_line_num: i64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LogPage {
    pub(super) from_line_num: i64,
    pub(super) to_line_num: i64,
    pub(super) log_content: String,
    pub(super) is_end: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Registration<'a> {
    pub(super) registry_group: &'a str,
    pub(super) registry_key: &'a str,
    pub(super) registry_value: &'a str,
}

/// A run: the admin's number for it, and when it was triggered, which tells runs apart when an admin
/// counts from 1 again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct RunId {
    pub(super) time: Millis,
    pub(super) log: i64,
}

impl RunId {
    /// The day by which its log is filed.
    pub(super) fn day(self) -> NaiveDate {
        to_datetime(self.time).date_naive()
    }
}

/// The end of a run, as the admin is told of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) run: RunId,
    pub(super) code: i32,
    pub(super) message: String,
}

impl Ended {
    pub(super) fn new(run: RunId, code: i32, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if let Some((end, _)) = message.char_indices().nth(MESSAGE) {
            message.truncate(end);
        }
        Self { run, code, message }
    }
}

/// An end as admins up to 3.4 call it, ...
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Callback<'a> {
    log_id: i64,
    #[serde(flatten)]
    time: CallbackTime,
    handle_code: i32,
    handle_msg: &'a str,
}

#[derive(Debug, Serialize)]
enum CallbackTime {
    #[serde(rename = "logDateTim")]
    Old(Millis),
    #[serde(rename = "logDateTime")]
    New(Millis),
}

/// ... and as those from 3.5 do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CallbackList<'a> {
    callback_list: Vec<Callback<'a>>,
}

pub(super) fn array(ends: &[Ended]) -> Vec<Callback<'_>> {
    callbacks(ends, CallbackTime::Old)
}

pub(super) fn object(ends: &[Ended]) -> CallbackList<'_> {
    CallbackList { callback_list: callbacks(ends, CallbackTime::New) }
}

fn callbacks(ends: &[Ended], time: fn(Millis) -> CallbackTime) -> Vec<Callback<'_>> {
    let callback = |end: &'_ Ended| (end.run.log, time(end.run.time), end.code);
    ends.iter()
        .map(|end| {
            let (log_id, time, handle_code) = callback(end);
            Callback { log_id, time, handle_code, handle_msg: &end.message }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn callbacks_have_the_admins_shapes() {
        let run = RunId { time: 1_795_447_228_855, log: 7 };
        let ends = [Ended::new(run, TIMED_OUT, "late")];
        let item = |date: &str| json!({ "logId": 7, date: 1_795_447_228_855_i64, "handleCode": 502, "handleMsg": "late" });
        assert_eq!(serde_json::to_value(array(&ends)).unwrap(), json!([item("logDateTim")]));
        let object = serde_json::to_value(object(&ends)).unwrap();
        assert_eq!(object, json!({ "callbackList": [item("logDateTime")] }));
    }

    #[test]
    fn messages_are_cut() {
        let run = RunId { time: 0, log: 1 };
        let message = Ended::new(run, FAILURE, "错".repeat(60_000)).message;
        assert_eq!(message.chars().count(), 50_000);
    }

    #[test]
    fn triggers_of_every_admin_are_read() {
        let text = r#"{"jobId":3,"executorHandler":"taskRetryJob","executorParams":"blank",
            "executorBlockStrategy":"SERIAL_EXECUTION","executorTimeout":0,"logId":1,
            "logDateTime":1795447228855,"glueType":"BEAN","glueSource":"",
            "glueUpdatetime":1795447228000,"broadcastIndex":0,"broadcastTotal":1}"#;
        let trigger: Trigger = serde_json::from_str(text).unwrap();
        assert_eq!((trigger.job_id, trigger.log_id), (3, 1));
        assert_eq!(trigger.log_date_time, Some(1_795_447_228_855));
        let trigger: Trigger =
            serde_json::from_str(r#"{"jobId":3,"logId":1,"executorParams":null}"#).unwrap();
        assert_eq!(trigger.executor_params, None);
        for date in ["logDateTim", "logDateTime"] {
            let text = format!(r#"{{"logId":1,"{date}":1795447228000,"fromLineNum":3}}"#);
            let asked: LogAsked = serde_json::from_str(&text).unwrap();
            assert_eq!(asked.log_date_tim, Some(1_795_447_228_000));
            assert_eq!(asked.from_line_num, 3);
        }
    }
}
