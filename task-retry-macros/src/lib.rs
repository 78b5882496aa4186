//! The macros of `task-retry`.
