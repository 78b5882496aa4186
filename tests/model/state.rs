//! What the database and the workers know.

use crate::protocol::Ticks;

/// A start of a process, as `locked_by` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Me {
    pub(crate) worker: u8,
    pub(crate) start: u8,
}

/// `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Status {
    #[default]
    Executing,
    Retrying,
    Failed,
    Succeeded,
    Cancelled,
    Waiting,
}

impl Status {
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::Executing | Self::Retrying | Self::Waiting)
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Row {
    pub(crate) status: Status,
    pub(crate) fence: u8,
    pub(crate) locked_by: Option<Me>,
    /// `next_send_time`.
    pub(crate) next: Option<Ticks>,
    pub(crate) send_count: u8,
    pub(crate) crash_count: u8,
    /// Not in the table: the fence of the attempt that has succeeded; 0: from outside.
    pub(crate) success: Option<u8>,
    /// Not in the table: holders of lesser fences have lost it by a change from outside.
    pub(crate) moved: u8,
}

impl Row {
    /// The end of an attempt or of the task.
    pub(crate) fn end(&mut self, to: Status, next: Option<Ticks>) {
        self.status = to;
        self.next = next;
        self.locked_by = None;
        if to == Status::Succeeded {
            self.crash_count = 0;
        }
    }

    /// Whether this claim of it is the last one.
    pub(crate) fn is_held(&self, fence: u8, me: Me) -> bool {
        (self.fence, self.locked_by) == (fence, Some(me))
    }

    /// Nobody who has held it so far holds it any more.
    pub(crate) fn take_away(&mut self) {
        self.fence += 1;
        self.moved = self.moved.max(self.fence);
    }

    /// Counts a success, and says so if there was one before.
    pub(crate) fn succeed(&mut self, fence: u8) -> Option<Wrong> {
        self.success.replace(fence).map(|_| Wrong::SecondSuccess)
    }

    /// What a claim changes.
    pub(crate) fn claimed(&self) -> Claimed {
        (self.fence, self.locked_by, self.next, self.crash_count)
    }
}

type Claimed = (u8, Option<Me>, Option<Ticks>, u8);

/// What is written at the end of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Settlement {
    pub(crate) to: Status,
    pub(crate) send_count: u8,
    pub(crate) next: Option<Ticks>,
}

/// A task that a worker holds, with the row as it was claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Hold {
    pub(crate) fence: u8,
    pub(crate) until: Ticks,
    pub(crate) status: Status,
    pub(crate) send_count: u8,
    pub(crate) crash_count: u8,
}

/// What a worker has to do with a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Job {
    #[default]
    None,
    /// The answer of its insert was lost: the same row is inserted again.
    Storing { until: Ticks },
    /// Read by an optimistic claim, which is still to write.
    Picked { now: Ticks, until: Ticks, fence: u8, status: Status },
    /// Held, and not started.
    Ready(Hold),
    /// `completed`: the attempt has sent `complete_in`.
    Running { hold: Hold, completed: bool },
    /// Its end is being written.
    Ending { hold: Hold, settlement: Settlement },
}

impl Job {
    pub(crate) fn hold(&self) -> Option<&Hold> {
        match self {
            Self::Ready(hold) | Self::Running { hold, .. } | Self::Ending { hold, .. } => {
                Some(hold)
            }
            _ => None,
        }
    }

    pub(crate) fn hold_mut(&mut self) -> Option<&mut Hold> {
        match self {
            Self::Ready(hold) | Self::Running { hold, .. } | Self::Ending { hold, .. } => {
                Some(hold)
            }
            _ => None,
        }
    }
}

/// A process, or the one that is started in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Worker<const T: usize> {
    pub(crate) start: u8,
    pub(crate) closing: bool,
    pub(crate) jobs: [Job; T],
}

impl<const T: usize> Worker<T> {
    /// Another process in the place of this one.
    pub(crate) fn restart(&mut self) {
        *self = Self { start: self.start + 1, closing: false, jobs: [Job::None; T] };
    }

    pub(crate) fn shut_down(&mut self) {
        self.closing = true;
        for job in &mut self.jobs {
            if let Job::Ready(hold) = *job {
                *job = Job::Ending { hold, settlement: Settlement::put_back(&hold) };
            }
        }
    }
}

/// A statement, with the times that its sender has put into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Statement {
    pub(crate) task: usize,
    pub(crate) me: Me,
    pub(crate) sql: Sql,
}

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Sql {
    Insert { until: Ticks },
    Claim { now: Ticks, until: Ticks, picked: Option<(u8, Status)> },
    Renew { fence: u8, until: Ticks },
    Settle { fence: u8, settlement: Settlement },
    CompleteIn { fence: u8 },
}

impl Sql {
    /// By which claim it is written.
    pub(crate) fn fence(&self) -> Option<u8> {
        match *self {
            Self::Insert { .. } | Self::Claim { .. } => None,
            Self::Renew { fence, .. } | Self::Settle { fence, .. } | Self::CompleteIn { fence } => {
                Some(fence)
            }
        }
    }
}

/// A call and its row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Task {
    pub(crate) called: bool,
    /// The caller was told that it is stored.
    pub(crate) accepted: bool,
    pub(crate) row: Option<Row>,
    /// What a fail-over brings back: the row before its claim, where that was its last change.
    pub(crate) before: Option<Claimed>,
}

impl Task {
    /// The database forgets the claim, which breaks the promise of its lease.
    pub(crate) fn fail_over(&mut self) {
        if let (Some(row), Some(before)) = (&mut self.row, self.before.take()) {
            row.moved = row.fence + 1;
            (row.fence, row.locked_by, row.next, row.crash_count) = before;
        }
    }
}

/// What must not happen, at the step at which it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Wrong {
    StaleWrite,
    Reopened,
    SecondSuccess,
    StartedWithoutLease,
    ClaimedAfterItsEnd,
    ToldWrongly,
    Forgotten,
    Miscounted,
}

/// Everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct State<const W: usize, const T: usize> {
    pub(crate) tasks: [Task; T],
    pub(crate) workers: [Worker<T>; W],
    /// Statements whose senders have given them up.
    pub(crate) wire: [Option<Statement>; 2],
    pub(crate) faults: u8,
    pub(crate) outside: u8,
    /// Ticks since the last fault.
    pub(crate) calm: Option<u8>,
    pub(crate) wrong: Option<Wrong>,
}

impl<const W: usize, const T: usize> State<W, T> {
    pub(crate) fn new(faults: u8, outside: u8) -> Self {
        Self {
            tasks: [Task::default(); T],
            workers: [Worker { start: 0, closing: false, jobs: [Job::None; T] }; W],
            wire: [None; 2],
            faults,
            outside,
            calm: None,
            wrong: None,
        }
    }

    pub(crate) fn me(&self, worker: usize) -> Me {
        Me { worker: worker as u8, start: self.workers[worker].start }
    }

    /// Lets a tick pass. What is past for every clock stays so.
    pub(crate) fn tick(&mut self, margin: Ticks) {
        let pass = |time: &mut Ticks| *time = (*time - 1).max(-margin);
        for task in &mut self.tasks {
            task.row.iter_mut().filter_map(|row| row.next.as_mut()).for_each(pass);
            task.before.iter_mut().filter_map(|before| before.2.as_mut()).for_each(pass);
        }
        for job in self.workers.iter_mut().flat_map(|worker| &mut worker.jobs) {
            match job {
                Job::Storing { until } => pass(until),
                Job::Picked { now, until, .. } => [now, until].into_iter().for_each(pass),
                Job::Ending { settlement, .. } => settlement.next.iter_mut().for_each(pass),
                _ => {}
            }
            if let Some(hold) = job.hold_mut() {
                pass(&mut hold.until);
            }
        }
        for statement in self.wire.iter_mut().flatten() {
            match &mut statement.sql {
                Sql::Insert { until } | Sql::Renew { until, .. } => pass(until),
                Sql::Claim { now, until, .. } => [now, until].into_iter().for_each(pass),
                Sql::Settle { settlement, .. } => settlement.next.iter_mut().for_each(pass),
                Sql::CompleteIn { .. } => {}
            }
        }
        self.calm = self.calm.map(|ticks| ticks + 1);
    }

    /// No faults from now on; what is on its way is lost.
    pub(crate) fn calm(&mut self) {
        self.calm = Some(0);
        (self.faults, self.outside, self.wire) = (0, 0, [None; 2]);
    }
}

impl<const W: usize, const T: usize> State<W, T> {
    /// Puts workers and tasks in an order of their own, and forgets starts that nothing remembers: of
    /// states that differ in names only, few are left.
    pub(crate) fn rename(&mut self) {
        let mut tasks: [usize; T] = std::array::from_fn(|task| task);
        let unnamed = |row: Row| (row.locked_by.is_some(), Row { locked_by: None, ..row });
        tasks.sort_by_key(|task| (self.tasks[*task].called, self.tasks[*task].row.map(unnamed)));
        self.tasks = tasks.map(|task| self.tasks[task]);
        for worker in &mut self.workers {
            worker.jobs = tasks.map(|task| worker.jobs[task]);
        }
        for statement in self.wire.iter_mut().flatten() {
            statement.task = tasks.iter().position(|task| *task == statement.task).unwrap_or(0);
        }

        let mut workers: [usize; W] = std::array::from_fn(|worker| worker);
        let holds =
            |me: Me| self.tasks.map(|task| task.row.is_some_and(|row| row.locked_by == Some(me)));
        workers.sort_by_key(|worker| {
            let Worker { jobs, closing, .. } = self.workers[*worker];
            (jobs, closing, holds(self.me(*worker)))
        });
        let mut starts = [0_u32; W];
        self.names(|me| starts[usize::from(me.worker)] |= 1 << me.start);
        let name = |me: Me| {
            let before = starts[usize::from(me.worker)] & ((1 << me.start) - 1);
            let worker =
                workers.iter().position(|worker| *worker == usize::from(me.worker)).unwrap_or(0);
            Me { worker: worker as u8, start: before.count_ones() as u8 }
        };
        self.workers = workers
            .map(|worker| Worker { start: name(self.me(worker)).start, ..self.workers[worker] });
        self.names(|me| *me = name(*me));
    }

    /// Visits the places where starts of workers are named.
    fn names(&mut self, mut visit: impl FnMut(&mut Me)) {
        for Task { row, before, .. } in &mut self.tasks {
            row.iter_mut().filter_map(|row| row.locked_by.as_mut()).for_each(&mut visit);
            before.iter_mut().filter_map(|before| before.1.as_mut()).for_each(&mut visit);
        }
        self.wire.iter_mut().flatten().for_each(|statement| visit(&mut statement.me));
    }
}
