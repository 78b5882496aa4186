//! Durable retry.
