//! The actors, and the handles through which the edges speak to them.

pub mod address;
pub mod analytics;
mod background;
pub mod billing;
#[cfg(test)]
mod fake_store;
pub mod kafka_bridge;
pub mod patients;
