//! The actors, and the handles through which the edges speak to them.

pub mod analytics;
pub mod billing;
pub mod billing_relay;
pub mod open_accounts;
pub mod patients;
