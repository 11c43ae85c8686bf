//! Adapts `Auth` to the node's `Sessions` actor, which keeps it fresh.

use async_trait::async_trait;

use crate::actors::sessions::Keeper;
use crate::auth::Auth;
use crate::domain::ids::SessionId;

/// The authentication state that the actor refreshes.
pub(super) struct Known(pub(super) Auth);

#[async_trait]
impl Keeper for Known {
    async fn read_revocations(&self) -> Result<(), String> {
        self.0.read_revocations().await
    }

    async fn read_keys(&self) -> Result<(), String> {
        self.0.read_keys().await
    }

    async fn delete_dead(&self) -> Result<(), String> {
        self.0.delete_dead().await.map_err(|error| error.to_string())
    }

    fn why_unsigned(&self) -> Option<String> {
        self.0.why_unsigned()
    }

    fn revoked_elsewhere(&self, sessions: &[SessionId]) {
        self.0.revoked_elsewhere(sessions);
    }
}
