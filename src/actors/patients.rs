//! Patients, as the edges see them.

use std::sync::Arc;

use crate::context::RequestContext;
use crate::domain::ids::PatientId;
use crate::domain::patient::{Patient, PatientChange, PatientDetails};
use crate::error::Result;
use crate::store::ListPosition;

/// Speaks to the patients of the whole cluster. Cloning is cheap.
#[derive(Clone)]
pub struct PatientHandle {}

#[allow(unused_variables, clippy::unused_async, reason = "skeleton")]
impl PatientHandle {
    /// Registers a patient under `id`.
    ///
    /// # Errors
    /// `AlreadyExists`: the id or the e-mail address is taken. Else as every call of this handle: `Overloaded`,
    /// `Unavailable` and `DeadlineExceeded`: nothing was done. `OutcomeUnknown`: repeat under the same command id.
    pub async fn register(
        &self,
        ctx: &RequestContext,
        id: PatientId,
        details: PatientDetails,
    ) -> Result<Arc<Patient>> {
        unimplemented!("skeleton")
    }

    /// Replaces the details.
    ///
    /// # Errors
    /// `NotFound`; `AlreadyExists`: the e-mail address is taken; else as `register`.
    pub async fn update(
        &self,
        ctx: &RequestContext,
        id: PatientId,
        change: PatientChange,
    ) -> Result<Arc<Patient>> {
        unimplemented!("skeleton")
    }

    /// Ends the record.
    ///
    /// # Errors
    /// `NotFound`; else as `register`.
    pub async fn delete(&self, ctx: &RequestContext, id: PatientId) -> Result<()> {
        unimplemented!("skeleton")
    }

    /// The record as of now: never older than any answer given before this call.
    ///
    /// # Errors
    /// `NotFound`; else as `register`, without `OutcomeUnknown`.
    pub async fn get(&self, ctx: &RequestContext, id: PatientId) -> Result<Arc<Patient>> {
        unimplemented!("skeleton")
    }

    /// Living patients, oldest record first, after `after`.
    ///
    /// # Errors
    /// As `get`, without `NotFound`.
    pub async fn list(
        &self,
        ctx: &RequestContext,
        after: Option<ListPosition>,
        limit_rows: u32,
    ) -> Result<Vec<Patient>> {
        unimplemented!("skeleton")
    }
}
