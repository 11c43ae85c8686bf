//! What commands need of the other rooms: the one place where they are called.

use async_trait::async_trait;

use super::failure::{Exit, Failure};
use crate::config::Config;
use crate::domain::access::Role;
use crate::store::UserRow;

/// What the `user` commands do.
#[async_trait]
pub(super) trait Users: Send + Sync {
    /// Makes a user.
    async fn add(&self, email: &str, password: &str, role: Role) -> Result<(), Failure>;
    /// Sets a password.
    async fn set_password(&self, email: &str, password: &str) -> Result<(), Failure>;
    /// Disables or enables.
    async fn set_disabled(&self, email: &str, disabled: bool) -> Result<(), Failure>;
    /// Users in the order of e-mail addresses, after `after`, at most `limit_rows`.
    async fn list(&self, after: Option<&str>, limit_rows: u32) -> Result<Vec<UserRow>, Failure>;
}

/// Opens the database for the `user` commands.
pub(super) async fn open_users(_config: &Config) -> Result<Box<dyn Users>, Failure> {
    Err(Failure::new(Exit::Unavailable, "this build has no database"))
}

/// Brings the tables up to date.
pub(super) async fn migrate(_config: &Config) -> Result<(), Failure> {
    Err(Failure::new(Exit::Unavailable, "this build has no database"))
}

/// The OpenAPI document as JSON.
pub(super) fn openapi() -> Result<String, Failure> {
    Err(Failure::new(Exit::Failed, "this build has no HTTP edge"))
}
