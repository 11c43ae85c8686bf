//! The actors, and the handles through which the edges speak to them.

pub mod analytics;
pub mod billing;
pub mod patients;
