//! What it takes to open an account, as those see it who only do that: the gRPC edge and the relay.
//! The one implementation outside tests is `BillingHandle`.

use std::sync::Arc;

use async_trait::async_trait;

use super::billing::BillingHandle;
use crate::context::RequestContext;
use crate::domain::account::Account;
use crate::domain::ids::PatientId;
use crate::error::Result;

/// Opens accounts, at most one per patient however often it is asked.
#[async_trait]
pub trait OpenAccounts: Send + Sync {
    /// See `BillingHandle::open`.
    ///
    /// # Errors
    /// Those of `BillingHandle::open`.
    async fn open(
        &self,
        ctx: &RequestContext,
        patient: PatientId,
        name: &str,
        email: &str,
    ) -> Result<Arc<Account>>;
}

#[async_trait]
impl OpenAccounts for BillingHandle {
    async fn open(
        &self,
        ctx: &RequestContext,
        patient: PatientId,
        name: &str,
        email: &str,
    ) -> Result<Arc<Account>> {
        BillingHandle::open(self, ctx, patient, name, email).await
    }
}
