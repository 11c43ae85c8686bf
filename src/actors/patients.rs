//! Patients: the handle the edges speak to, and what the sharded core needs to know of them.

use std::sync::Arc;

use uuid::Uuid;

use super::directory::Asker;
use super::entity::{Applied, Decision, Entity, Loaded, Refused, Stamp, Write};
use crate::context::{RequestContext, TraceContext};
use crate::domain::access::Action;
use crate::domain::audit::{Access, Change, Outcome};
use crate::domain::conditions::Conditions;
use crate::domain::event::{EventType, RecordedEvent};
use crate::domain::ids::{CommandId, Kind, PatientId, Version};
use crate::domain::patient::{
    self, Patient, PatientChange, PatientCommand, PatientDetails, PatientEvent, PatientPatch, PatientState,
    Refusal,
};
use crate::domain::search::{HistoryEntry, PatientPage, PatientSearch};
use crate::error::{Error, ErrorCode, Result};
use crate::store::{self, AppendOutcome, AuditBatch, PatientAppend, PatientStore};

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
    /// `AlreadyExists`: the id or the e-mail address is taken. Else as every change: `KeyReused`, `KeyExpired`: the
    /// command id stands for another request, or for one of long ago. `Overloaded`, `Unavailable` and
    /// `DeadlineExceeded`: nothing was done. `OutcomeUnknown`: repeat under the same command id.
    pub async fn register(
        &self,
        ctx: &RequestContext,
        id: PatientId,
        details: PatientDetails,
        conditions: Conditions,
    ) -> Result<PatientReply> {
        self.asker.write_if(ctx, id.0, PatientCommand::Register(details), conditions).await
    }

    /// Replaces the details.
    ///
    /// # Errors
    /// `NotFound`; `Forbidden`: it is restricted; `PreconditionFailed`: the record has none of the expected
    /// versions; `AlreadyExists`: the e-mail address is taken; else as `register`.
    pub async fn update(
        &self,
        ctx: &RequestContext,
        id: PatientId,
        change: PatientChange,
        conditions: Conditions,
    ) -> Result<Arc<Patient>> {
        let reply = self.asker.write_if(ctx, id.0, PatientCommand::Update(change), conditions).await?;
        Ok(reply.patient)
    }

    /// Replaces some of the details.
    ///
    /// # Errors
    /// As `update`.
    pub async fn patch(
        &self,
        ctx: &RequestContext,
        id: PatientId,
        patch: PatientPatch,
        conditions: Conditions,
    ) -> Result<PatientReply> {
        self.asker.write_if(ctx, id.0, PatientCommand::Patch(patch), conditions).await
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
    /// As `update`, without `AlreadyExists`.
    pub async fn delete(&self, ctx: &RequestContext, id: PatientId, conditions: Conditions) -> Result<()> {
        self.asker.write_if(ctx, id.0, PatientCommand::Delete, conditions).await.map(drop)
    }

    /// The record as of now: never older than any answer given before this call.
    ///
    /// # Errors
    /// `NotFound`; else as `register`, without `OutcomeUnknown`.
    pub async fn get(&self, ctx: &RequestContext, id: PatientId) -> Result<Arc<Patient>> {
        self.asker.read(ctx, id.0).await.map(|reply| reply.patient)
    }

    /// A page of living patients.
    ///
    /// # Errors
    /// As `get`, without `NotFound`.
    pub async fn search(&self, ctx: &RequestContext, search: &PatientSearch) -> Result<PatientPage> {
        match self.asker.query(ctx, || PatientQuery::Search(search.clone())).await? {
            PatientAnswer::Page(page) => Ok(page),
            PatientAnswer::History(_) => Err(another_answer()),
        }
    }

    /// The versions of `id` after `after`, the oldest first, whether the record has ended or not; empty if there
    /// is none.
    ///
    /// # Errors
    /// As `get`, without `NotFound`.
    pub async fn history(
        &self,
        ctx: &RequestContext,
        id: PatientId,
        after: Version,
        limit_rows: u32,
    ) -> Result<Vec<HistoryEntry>> {
        match self.asker.query(ctx, || PatientQuery::History { id, after, limit_rows }).await? {
            PatientAnswer::History(entries) => Ok(entries),
            PatientAnswer::Page(_) => Err(another_answer()),
        }
    }
}

fn another_answer() -> Error {
    Error::new(ErrorCode::Internal, "The answer is one to another question")
}

/// The answer to a read or a change of one patient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatientReply {
    /// The record as it is, or as the change left it.
    pub patient: Arc<Patient>,
    /// The change had been made before, under the same command id: nothing was changed now.
    pub again: bool,
}

impl From<Arc<Patient>> for PatientReply {
    fn from(patient: Arc<Patient>) -> Self {
        PatientReply { patient, again: false }
    }
}

/// The kind.
pub struct Patients;

/// A question about many patients, or many versions of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatientQuery {
    /// A page of living patients.
    Search(PatientSearch),
    /// A page of the versions of one.
    History {
        /// Whose.
        id: PatientId,
        /// Versions after this one.
        after: Version,
        /// The most rows.
        limit_rows: u32,
    },
}

impl PatientQuery {
    /// The most rows of the answer.
    pub const fn limit_rows(&self) -> u32 {
        match self {
            PatientQuery::Search(search) => search.limit_rows,
            PatientQuery::History { limit_rows, .. } => *limit_rows,
        }
    }
}

/// The answer to a `PatientQuery`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatientAnswer {
    /// To `Search`.
    Page(PatientPage),
    /// To `History`.
    History(Vec<HistoryEntry>),
}

impl Entity for Patients {
    const KIND: Kind = Kind::Patient;
    type State = PatientState;
    type Command = PatientCommand;
    type Answer = PatientReply;
    type Append = PatientAppend;
    type Query = PatientQuery;
    type QueryAnswer = PatientAnswer;
    type Store = dyn PatientStore;

    fn command_name(command: &PatientCommand) -> &'static str {
        match command {
            PatientCommand::Register(_) => "Register",
            PatientCommand::Update(_) => "Update",
            PatientCommand::Patch(_) => "Patch",
            PatientCommand::Restrict(_) => "Restrict",
            PatientCommand::Delete => "Delete",
        }
    }

    fn read(state: &PatientState) -> std::result::Result<PatientReply, Refused> {
        match state {
            PatientState::Active(patient) => Ok(Arc::clone(patient).into()),
            PatientState::Absent | PatientState::Deleted(_) => Err(Refused::NotFound),
        }
    }

    fn decide(id: Uuid, state: &PatientState, write: &Write<Self>, stamp: &Stamp) -> Decision<Self> {
        let action = match &write.command {
            PatientCommand::Register(_) => Action::PatientRegister,
            PatientCommand::Update(_) | PatientCommand::Patch(_) => Action::PatientUpdate,
            PatientCommand::Restrict(_) => Action::PatientRestrict,
            PatientCommand::Delete => Action::PatientDelete,
        };
        let by = write.caller.role;
        match patient::decide(PatientId(id), state, &write.command, by, &write.conditions, stamp.now) {
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
                    fingerprint: write.conditions.fingerprint,
                },
            }),
            Err(Refusal::NotFound) => Decision::Refuse(Refused::NotFound),
            Err(Refusal::AlreadyExists) => Decision::Refuse(Refused::IdTaken),
            Err(Refusal::Restricted) => Decision::Refuse(Refused::Restricted),
            Err(Refusal::OtherVersion) => Decision::Refuse(Refused::OtherVersion),
        }
    }

    fn presumed(command: &PatientCommand) -> Option<PatientState> {
        matches!(command, PatientCommand::Register(_)).then_some(PatientState::Absent)
    }

    fn committed(append: &PatientAppend) -> (PatientState, PatientReply) {
        let event = &append.recorded.event;
        (patient::evolve(event), Arc::clone(event.patient()).into())
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
        let applied = loaded.applied.map(|recorded| Applied {
            answer: PatientReply { patient: Arc::clone(recorded.event.patient()), again: true },
            fingerprint: recorded.fingerprint,
            at: recorded.at,
        });
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

    async fn query(
        store: &(dyn PatientStore + 'static),
        query: &PatientQuery,
    ) -> store::Result<PatientAnswer> {
        match query {
            PatientQuery::Search(search) => store.search(search).await.map(PatientAnswer::Page),
            PatientQuery::History { id, after, limit_rows } => {
                let events = store.history(*id, *after, *limit_rows).await?;
                Ok(PatientAnswer::History(events.into_iter().map(HistoryEntry::from).collect()))
            }
        }
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
