//! The part of `BillingHandle` that opens accounts, for the gRPC edge and the relay. The relay opens accounts
//! for patients that it has read itself. For requests of other systems, the patient is looked up first.

use std::sync::Arc;

use async_trait::async_trait;

use super::billing::BillingHandle;
use crate::context::RequestContext;
use crate::domain::account::Account;
use crate::domain::ids::PatientId;
use crate::domain::patient::PatientState;
use crate::error::{Error, ErrorCode, Result};
use crate::store::PatientStore;

/// Opens accounts, at most one per patient, however often the request is repeated.
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

/// Opens accounts only for patients that exist.
pub struct OfKnownPatients {
    /// Opens the accounts.
    pub accounts: BillingHandle,
    /// Looks the patients up. A patient whose registration was acknowledged is found.
    pub patients: Arc<dyn PatientStore>,
}

#[async_trait]
impl OpenAccounts for OfKnownPatients {
    async fn open(
        &self,
        ctx: &RequestContext,
        patient: PatientId,
        name: &str,
        email: &str,
    ) -> Result<Arc<Account>> {
        let loaded = self.patients.load_patient(patient, None).await.map_err(|error| {
            tracing::warn!(%error, "a patient could not be looked up");
            Error::new(ErrorCode::Unavailable, "Patients cannot be looked up")
        })?;
        match loaded.state {
            PatientState::Active(_) => self.accounts.open(ctx, patient, name, email).await,
            PatientState::Absent | PatientState::Deleted(_) => {
                Err(Error::new(ErrorCode::NotFound, "There is no patient with this patientId"))
            }
        }
    }
}
