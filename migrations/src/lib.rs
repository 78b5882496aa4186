//! Migrations of `task-retry`.
