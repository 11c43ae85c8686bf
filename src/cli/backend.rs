//! What commands need of the other rooms: the one place where they are called.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::failure::Failure;
use crate::actors::status::ClusterStatus;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::domain::access::Role;
use crate::domain::time::Clock;
use crate::{auth, http, store};

/// How long the database may take to say how the cluster is.
const STATUS_LIMIT: Duration = Duration::from_secs(5);

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
    async fn list(&self, after: Option<&str>, limit_rows: u32) -> Result<Vec<auth::User>, Failure>;
}

#[async_trait]
impl Users for auth::Users {
    async fn add(&self, email: &str, password: &str, role: Role) -> Result<(), Failure> {
        Ok(self.create(email, password, role).await?)
    }

    async fn set_password(&self, email: &str, password: &str) -> Result<(), Failure> {
        Ok(auth::Users::set_password(self, email, password).await?)
    }

    async fn set_disabled(&self, email: &str, disabled: bool) -> Result<(), Failure> {
        Ok(auth::Users::set_disabled(self, email, disabled).await?)
    }

    async fn list(&self, after: Option<&str>, limit_rows: u32) -> Result<Vec<auth::User>, Failure> {
        Ok(auth::Users::list(self, after, limit_rows).await?)
    }
}

/// Opens the database for the `user` commands.
pub(super) async fn open_users(config: &Config) -> Result<Box<dyn Users>, Failure> {
    let store = store::open(&config.store.clone().within(&config.data_dir), store::Use::Tool).await?;
    Ok(Box::new(auth::Users::new(&config.auth, store, Arc::new(SystemClock))))
}

/// Brings the tables up to date.
pub(super) async fn migrate(config: &Config) -> Result<(), Failure> {
    Ok(store::migrate(&config.store.clone().within(&config.data_dir)).await?)
}

/// What the database knows of the cluster.
pub(super) async fn ask_status(config: &Config, status: &mut ClusterStatus) -> Result<(), Failure> {
    let store = store::open(&config.store.clone().within(&config.data_dir), store::Use::Tool).await?;
    status.ask_database(&*store, SystemClock.now(), STATUS_LIMIT).await;
    store.close().await;
    Ok(())
}

/// The OpenAPI document as JSON.
pub(super) fn openapi() -> String {
    http::openapi()
}
