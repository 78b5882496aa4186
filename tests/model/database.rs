//! The database: statements and their conditions.

use crate::protocol::{Check, MAX_RETRY, Outside, Protocol, Ticks};
use crate::state::{Me, Row, Settlement, Sql, State, Statement, Status, Wrong};

impl<const W: usize, const T: usize> Protocol<W, T> {
    /// What everything that the holder of a task writes is guarded by.
    fn guard(&self, row: &Row, fence: u8, me: Me) -> bool {
        (row.fence == fence || !self.has(Check::Fence))
            && (row.locked_by == Some(me) || !self.has(Check::LockedBy))
            && self.open(row)
    }

    fn open(&self, row: &Row) -> bool {
        row.status.is_open() || !self.has(Check::Open)
    }

    /// The condition of a claim.
    pub(crate) fn due(&self, row: &Row, now: Ticks) -> bool {
        let over = row.next.is_some_and(|next| next <= now) || !self.has(Check::Due);
        self.open(row) && over && (row.locked_by.is_none() || self.has(Check::TakeOver))
    }

    /// Carries a statement out; `false` if it changed nothing.
    pub(crate) fn execute(&self, state: &mut State<W, T>, statement: Statement) -> bool {
        let Statement { task, me, sql } = statement;
        let slot = &mut state.tasks[task];
        let Some(row) = &mut slot.row else {
            if let Sql::Insert { until } = sql {
                let next = Some(until);
                slot.row = Some(Row { fence: 1, locked_by: Some(me), next, ..Row::default() });
            }
            return slot.row.is_some();
        };
        let effective = match sql {
            Sql::Insert { .. } => false,
            Sql::Claim { now, picked, .. } => match picked {
                None => self.due(row, now),
                Some((fence, status)) => {
                    let due = self.due(row, now) || !self.has(Check::DueAgain);
                    row.fence == fence && row.status == status && due
                }
            },
            Sql::Renew { fence, .. } if !self.has(Check::RenewalFence) => {
                row.locked_by == Some(me) && row.status.is_open() && row.fence >= fence
            }
            Sql::Renew { fence, .. } | Sql::Settle { fence, .. } | Sql::CompleteIn { fence } => {
                self.guard(row, fence, me)
            }
        };
        if !effective {
            return false;
        }
        let stale = sql.fence().is_some_and(|fence| !row.is_held(fence, me));
        let mut wrong = stale.then_some(Wrong::StaleWrite);
        slot.before = None;
        match sql {
            Sql::Insert { .. } => {}
            Sql::Claim { until, .. } => {
                let ended = !row.status.is_open();
                wrong = ended.then_some(Wrong::ClaimedAfterItsEnd);
                slot.before = self.failover.then_some(row.claimed());
                row.crash_count += u8::from(row.locked_by.is_some());
                row.fence += 1;
                row.locked_by = Some(me);
                row.next = Some(until);
            }
            Sql::Renew { until, .. } => {
                let longest = row.next.filter(|_| self.has(Check::Longest));
                row.next = longest.max(Some(until));
            }
            Sql::Settle { fence, settlement: Settlement { to, send_count, next } } => {
                row.send_count = send_count;
                row.end(to, next);
                if to == Status::Succeeded {
                    wrong = wrong.or(row.succeed(fence));
                }
            }
            Sql::CompleteIn { fence } => {
                row.end(Status::Succeeded, None);
                row.take_away();
                wrong = wrong.or(row.succeed(fence));
            }
        }
        state.wrong = state.wrong.or(wrong);
        true
    }

    /// A change from outside; `None` if the row is not eligible.
    pub(crate) fn change(
        &self,
        state: &mut State<W, T>,
        task: usize,
        change: Outside,
    ) -> Option<()> {
        let row = state.tasks[task].row.as_mut()?;
        let leased = row.locked_by.is_some() && row.next.is_some_and(|next| next > 0);
        let eligible = match change {
            Outside::RetryNow => {
                matches!(row.status, Status::Retrying | Status::Failed | Status::Cancelled)
                    && !leased
            }
            _ => self.open(row),
        };
        if !eligible {
            return None;
        }
        state.tasks[task].before = None;
        let success = match change {
            Outside::ByHand => {
                row.status = Status::Succeeded;
                state.wrong = state.wrong.or(row.succeed(0));
                return Some(());
            }
            Outside::Complete => {
                row.end(Status::Succeeded, None);
                row.succeed(0)
            }
            Outside::Cancel => {
                row.end(Status::Cancelled, None);
                None
            }
            Outside::Fail => {
                let failed = Settlement::failed(row.send_count, MAX_RETRY);
                row.send_count = failed.send_count;
                row.end(failed.to, failed.next);
                None
            }
            Outside::RetryNow => {
                row.end(Status::Executing, Some(0));
                (row.send_count, row.crash_count) = (0, 0);
                None
            }
        };
        row.take_away();
        state.wrong = state.wrong.or(success);
        Some(())
    }
}
