//! Billing accounts, as the edges see them.

use std::sync::Arc;

use crate::context::RequestContext;
use crate::domain::account::Account;
use crate::domain::ids::PatientId;
use crate::error::Result;

/// Speaks to the accounts of the whole cluster. Cloning is cheap.
#[derive(Clone)]
pub struct BillingHandle {}

#[allow(unused_variables, clippy::unused_async, reason = "skeleton")]
impl BillingHandle {
    /// Opens the account of `patient`, or answers with the one there is.
    ///
    /// # Errors
    /// `Overloaded`, `Unavailable`, `DeadlineExceeded`: nothing was done. `OutcomeUnknown`: repeat.
    pub async fn open(
        &self,
        ctx: &RequestContext,
        patient: PatientId,
        name: &str,
        email: &str,
    ) -> Result<Arc<Account>> {
        unimplemented!("skeleton")
    }

    /// The account of `patient`.
    ///
    /// # Errors
    /// `NotFound`: there is none (yet); else as `open`, without `OutcomeUnknown`.
    pub async fn account(&self, ctx: &RequestContext, patient: PatientId) -> Result<Arc<Account>> {
        unimplemented!("skeleton")
    }
}
