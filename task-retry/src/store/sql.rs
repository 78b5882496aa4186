//! A statement under construction: text for any of the dialects, values always bound.

use std::fmt::Write;

use sea_orm::{DbBackend, Statement, Value};

use crate::clock::{Millis, to_datetime};

pub(crate) const TABLE: &str = "t_sys_mq_resend_log";

/// The statuses of tasks that have not ended, as SQL.
pub(crate) const OPEN: &str = "status in (0, 1, 5)";

#[derive(Clone, Debug)]
pub(crate) struct Sql {
    backend: DbBackend,
    text: String,
    values: Vec<Value>,
}

impl Sql {
    pub(crate) fn new(backend: DbBackend, text: &str) -> Self {
        let mut sql = String::with_capacity(text.len().max(512));
        sql.push_str(text);
        Self { backend, text: sql, values: Vec::with_capacity(16) }
    }

    pub(crate) fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Puts a text that binds nothing before all others.
    pub(crate) fn start_with(&mut self, text: &str) -> &mut Self {
        self.text.insert_str(0, text);
        self
    }

    pub(crate) fn bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        match self.backend {
            DbBackend::Postgres => {
                let _ = write!(self.text, "${}", self.values.len());
            }
            _ => self.text.push('?'),
        }
        self
    }

    /// The last value once more.
    pub(crate) fn again(&mut self) -> &mut Self {
        if self.backend == DbBackend::Postgres {
            let _ = write!(self.text, "${}", self.values.len());
        } else if let Some(last) = self.values.last().cloned() {
            self.bind(last);
        }
        self
    }

    /// `(a, b, c)`; an empty list is one that matches nothing.
    pub(crate) fn list<V: Into<Value>>(
        &mut self,
        values: impl IntoIterator<Item = V>,
    ) -> &mut Self {
        self.push("(");
        let mut empty = true;
        for value in values {
            if !empty {
                self.push(", ");
            }
            empty = false;
            self.bind(value);
        }
        if empty {
            self.push("null");
        }
        self.push(")")
    }

    pub(crate) fn build(self) -> Statement {
        Statement::from_sql_and_values(self.backend, self.text, self.values)
    }
}

/// How a table holds times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Times {
    pub(crate) backend: DbBackend,
    /// Seconds east of UTC of `create_time` and `next_send_time`.
    pub(crate) offset: i32,
    /// Whole seconds, as in a starter's table.
    pub(crate) seconds: bool,
}

pub(crate) const SQLITE_TIME: &str = "%Y-%m-%d %H:%M:%S%.3f";

impl Times {
    /// A due time, rounded down.
    pub(crate) fn down(&self, time: Millis) -> Value {
        let time = if self.seconds { time.div_euclid(1000) * 1000 } else { time };
        self.encode(time)
    }

    /// The end of a lease, rounded up.
    pub(crate) fn up(&self, time: Millis) -> Value {
        self.down(if self.seconds { time.saturating_add(999) } else { time })
    }

    pub(crate) fn maybe(&self, time: Option<Millis>) -> Value {
        match time {
            Some(time) => self.down(time),
            None => self.null(),
        }
    }

    fn null(&self) -> Value {
        match self.backend {
            DbBackend::Postgres => Value::ChronoDateTimeUtc(None),
            DbBackend::Sqlite => Value::String(None),
            _ => Value::ChronoDateTime(None),
        }
    }

    fn encode(&self, time: Millis) -> Value {
        let shifted = time.saturating_add(i64::from(self.offset) * 1000);
        match self.backend {
            DbBackend::Postgres => Value::from(to_datetime(time)),
            DbBackend::Sqlite => Value::from(self.text(shifted)),
            _ => Value::from(to_datetime(shifted).naive_utc()),
        }
    }

    fn text(&self, time: Millis) -> String {
        to_datetime(time).format(SQLITE_TIME).to_string()
    }

    /// A time as SQLite's table holds it.
    pub(crate) fn sqlite(&self, time: Option<Millis>) -> Option<String> {
        time.map(|time| self.text(time))
    }
}
