//! Patients: the handle the edges speak to, and what the sharded core needs to know of them.

use std::sync::Arc;

use uuid::Uuid;

use super::directory::Asker;
use super::entity::{Decision, Entity, Loaded, Refused, Stamp, Write};
use crate::context::{RequestContext, TraceContext};
use crate::domain::access::Action;
use crate::domain::audit::{Access, Change, Outcome};
use crate::domain::event::{EventType, RecordedEvent};
use crate::domain::ids::{CommandId, Kind, PatientId};
use crate::domain::patient::{
    self, Patient, PatientChange, PatientCommand, PatientDetails, PatientEvent, PatientState, Refusal,
};
use crate::error::Result;
use crate::store::{self, AppendOutcome, AuditBatch, ListPosition, PatientAppend, PatientStore};

/// Speaks to the patients of the whole cluster. Cloning is cheap.
#[derive(Clone)]
pub struct PatientHandle {
    asker: Asker<Patients>,
}

impl PatientHandle {
    /// Asks by `asker`.
    pub fn new(asker: Asker<Patients>) -> Self {
        PatientHandle { asker }
    }

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
        self.asker.write(ctx, id.0, PatientCommand::Register(details)).await
    }

    /// Replaces the details.
    ///
    /// # Errors
    /// `NotFound`; `AlreadyExists`: the e-mail address is taken; `Forbidden`: it is restricted; else as `register`.
    pub async fn update(
        &self,
        ctx: &RequestContext,
        id: PatientId,
        change: PatientChange,
    ) -> Result<Arc<Patient>> {
        self.asker.write(ctx, id.0, PatientCommand::Update(change)).await
    }

    /// Marks the record restricted, or no longer so.
    ///
    /// # Errors
    /// `NotFound`; else as `register`.
    pub async fn restrict(&self, ctx: &RequestContext, id: PatientId, restricted: bool) -> Result<()> {
        self.asker.write(ctx, id.0, PatientCommand::Restrict(restricted)).await.map(drop)
    }

    /// Ends the record.
    ///
    /// # Errors
    /// `NotFound`; else as `register`.
    pub async fn delete(&self, ctx: &RequestContext, id: PatientId) -> Result<()> {
        self.asker.write(ctx, id.0, PatientCommand::Delete).await.map(drop)
    }

    /// The record as of now: never older than any answer given before this call.
    ///
    /// # Errors
    /// `NotFound`; else as `register`, without `OutcomeUnknown`.
    pub async fn get(&self, ctx: &RequestContext, id: PatientId) -> Result<Arc<Patient>> {
        self.asker.read(ctx, id.0).await
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
        self.asker.query(ctx, || PatientList { after, limit_rows }).await
    }
}

/// The kind.
pub struct Patients;

/// A page of the list of living patients.
#[derive(Clone, Copy, Debug)]
pub struct PatientList {
    /// Where the page begins.
    pub after: Option<ListPosition>,
    /// The most rows.
    pub limit_rows: u32,
}

impl Entity for Patients {
    const KIND: Kind = Kind::Patient;
    type State = PatientState;
    type Command = PatientCommand;
    type Answer = Arc<Patient>;
    type Append = PatientAppend;
    type Query = PatientList;
    type QueryAnswer = Vec<Patient>;
    type Store = dyn PatientStore;

    fn command_name(command: &PatientCommand) -> &'static str {
        match command {
            PatientCommand::Register(_) => "Register",
            PatientCommand::Update(_) => "Update",
            PatientCommand::Restrict(_) => "Restrict",
            PatientCommand::Delete => "Delete",
        }
    }

    fn read(state: &PatientState) -> std::result::Result<Arc<Patient>, Refused> {
        match state {
            PatientState::Active(patient) => Ok(Arc::clone(patient)),
            PatientState::Absent | PatientState::Deleted(_) => Err(Refused::NotFound),
        }
    }

    fn decide(id: Uuid, state: &PatientState, write: &Write<Self>, stamp: &Stamp) -> Decision<Self> {
        let action = match &write.command {
            PatientCommand::Register(_) => Action::PatientRegister,
            PatientCommand::Update(_) => Action::PatientUpdate,
            PatientCommand::Restrict(_) => Action::PatientRestrict,
            PatientCommand::Delete => Action::PatientDelete,
        };
        match patient::decide(PatientId(id), state, &write.command, write.caller.role, stamp.now) {
            Ok(event) => Decision::Append(PatientAppend {
                shard: stamp.shard,
                epoch: stamp.epoch,
                caller: write.caller.clone(),
                action,
                released_email_key: released_email_key(state, &event),
                recorded: RecordedEvent {
                    event_id: stamp.event_id,
                    command_id: write.command_id,
                    event,
                    at: stamp.now,
                    subject: Arc::clone(&write.caller.subject),
                    traceparent: write.traceparent.clone(),
                },
            }),
            Err(Refusal::NotFound) => Decision::Refuse(Refused::NotFound),
            Err(Refusal::AlreadyExists) => Decision::Refuse(Refused::IdTaken),
            Err(Refusal::Restricted) => Decision::Refuse(Refused::Restricted),
        }
    }

    fn presumed(command: &PatientCommand) -> Option<PatientState> {
        matches!(command, PatientCommand::Register(_)).then_some(PatientState::Absent)
    }

    fn committed(append: &PatientAppend) -> (PatientState, Arc<Patient>) {
        let event = &append.recorded.event;
        (patient::evolve(event), Arc::clone(event.patient()))
    }

    fn worth_keeping(state: &PatientState) -> bool {
        matches!(state, PatientState::Active(_))
    }

    async fn load(
        store: &(dyn PatientStore + 'static),
        id: Uuid,
        command: Option<CommandId>,
    ) -> store::Result<Loaded<Self>> {
        let loaded = store.load_patient(PatientId(id), command).await?;
        let applied = loaded.applied.map(|recorded| Arc::clone(recorded.event.patient()));
        Ok(Loaded { state: loaded.state, applied })
    }

    fn committed_by(append: &mut PatientAppend, trace: &TraceContext) {
        append.recorded.traceparent = trace.to_string().into();
    }

    fn access(append: &PatientAppend) -> Option<Access> {
        let recorded = &append.recorded;
        let trace = TraceContext::parse(&recorded.traceparent);
        Some(Access {
            at: recorded.at,
            action: append.action,
            outcome: Outcome::Submitted,
            caller: append.caller.clone(),
            patients: vec![recorded.patient_id()],
            trace_id: trace.map_or(0, |trace| trace.trace_id),
            reason: None,
            change: Some(Change { event: recorded.event_id, version: recorded.version() }),
        })
    }

    async fn commit(
        store: &(dyn PatientStore + 'static),
        batch: &[PatientAppend],
        audit: Option<&AuditBatch>,
    ) -> store::Result<Vec<AppendOutcome>> {
        store.commit_patients_audited(batch, audit).await
    }

    async fn query(store: &(dyn PatientStore + 'static), query: &PatientList) -> store::Result<Vec<Patient>> {
        store.list_patients(query.after, query.limit_rows).await
    }
}

/// The unique form of the address that `event` frees, if it frees one.
fn released_email_key(before: &PatientState, event: &PatientEvent) -> Option<String> {
    let PatientState::Active(patient) = before else { return None };
    let old = patient.details.email_key();
    let freed = match EventType::of(event) {
        EventType::Created => false,
        EventType::Updated => event.patient().details.email_key() != old,
        EventType::Deleted => true,
    };
    freed.then_some(old)
}
