//! Others, each at the best configuration that was found for it.

pub mod apalis;
pub mod dbos;
pub mod graphile;
pub mod river;
pub mod ruststream;
