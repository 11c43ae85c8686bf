//! Patients: the handle that the edges use, and the `Entity` implementation for the sharded core.

use std::sync::Arc;

use uuid::Uuid;

use super::directory::{Asker, restricted};
use super::entity::{Applied, Decision, Entity, Loaded, Refused, Stamp, Write};
use crate::context::{RequestContext, TraceContext};
use crate::domain::access::Action;
use crate::domain::audit::{Access, Change, Detail, Outcome};
use crate::domain::conditions::Conditions;
use crate::domain::event::{EventType, RecordedEvent};
use crate::domain::ids::{CommandId, Fingerprint, Kind, PatientId, Version};
use crate::domain::patient::{
    self, Decided, Patient, PatientChange, PatientCommand, PatientDetails, PatientEvent, PatientPatch,
    PatientState, Refusal,
};
use crate::domain::search::{HistoryEntry, PatientPage, PatientSearch};
use crate::domain::sight::Seen;
use crate::error::{Error, ErrorCode, Result};
use crate::store::{self, AppendOutcome, AuditBatch, PatientAppend, PatientStore};

/// Sends requests to the patients of the whole cluster. Cloning is cheap.
#[derive(Clone)]
pub struct PatientHandle {
    asker: Asker<Patients>,
}

impl PatientHandle {
    /// Creates a handle that sends its requests through `asker`.
    pub fn new(asker: Asker<Patients>) -> Self {
        PatientHandle { asker }
    }

    /// Registers a patient under `id`.
    ///
    /// # Errors
    /// `AlreadyExists` if the id or the e-mail address is in use. Every change may also return:
    ///
    /// - `KeyReused` or `KeyExpired`: the command id belongs to another request, or to one of long ago.
    /// - `Forbidden`: the record is restricted, and the caller may not see it.
    /// - `Overloaded`, `Unavailable` or `DeadlineExceeded`: nothing was done.
    /// - `OutcomeUnknown`: repeat the request under the same command id.
    pub async fn register(
        &self,
        ctx: &RequestContext,
        id: PatientId,
        details: PatientDetails,
        conditions: Conditions,
    ) -> Result<Changed<Seen<Arc<Patient>>>> {
        self.change(ctx, id, PatientCommand::Register(details), conditions).await
    }

    /// Replaces the details.
    ///
    /// # Errors
    /// `NotFound`; `PreconditionFailed` if the record has none of the expected versions; `AlreadyExists` if
    /// the e-mail address is in use; otherwise as `register`.
    pub async fn update(
        &self,
        ctx: &RequestContext,
        id: PatientId,
        change: PatientChange,
        conditions: Conditions,
    ) -> Result<Changed<Seen<Arc<Patient>>>> {
        self.change(ctx, id, PatientCommand::Update(change), conditions).await
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
    ) -> Result<Changed<Seen<Arc<Patient>>>> {
        self.change(ctx, id, PatientCommand::Patch(patch), conditions).await
    }

    /// Marks the record as restricted, or removes the mark. Does not return the record.
    ///
    /// # Errors
    /// `NotFound`; otherwise as `register`.
    pub async fn restrict(
        &self,
        ctx: &RequestContext,
        id: PatientId,
        restricted: bool,
    ) -> Result<Changed<()>> {
        let reply = self.asker.write(ctx, id.0, PatientCommand::Restrict(restricted)).await?;
        Ok(Changed { what: (), recorded: reply.made.is_recorded(None) })
    }

    /// Deletes the record. Does not return it.
    ///
    /// # Errors
    /// As `update`, without `AlreadyExists`.
    pub async fn delete(
        &self,
        ctx: &RequestContext,
        id: PatientId,
        conditions: Conditions,
    ) -> Result<Changed<()>> {
        let keyed = conditions.fingerprint;
        let reply = self.asker.write_if(ctx, id.0, PatientCommand::Delete, conditions).await?;
        Ok(Changed { what: (), recorded: reply.made.is_recorded(keyed) })
    }

    /// Carries out `command` and returns the resulting record. The shard checks that the caller may see the
    /// record before it changes anything. If an earlier request under the same key made the change, access is
    /// checked against the current record instead.
    async fn change(
        &self,
        ctx: &RequestContext,
        id: PatientId,
        command: PatientCommand,
        conditions: Conditions,
    ) -> Result<Changed<Seen<Arc<Patient>>>> {
        let keyed = conditions.fingerprint;
        let PatientReply { patient, made } = self.asker.write_if(ctx, id.0, command, conditions).await?;
        let what = match made {
            Made::Before if keyed.is_some() => {
                self.as_newest(ctx, id, patient).await.map_err(made_but_not_shown)?
            }
            Made::Before | Made::Now | Made::Nothing => {
                Seen::now(patient, &ctx.caller).map_err(|_| restricted())?
            }
        };
        Ok(Changed { what, recorded: made.is_recorded(keyed) })
    }

    /// Returns the current record, never an older one than any answer given before this call.
    ///
    /// # Errors
    /// `NotFound`; `Forbidden` if the record is restricted and the caller may not see it; otherwise as
    /// `register`, without `OutcomeUnknown`.
    pub async fn get(&self, ctx: &RequestContext, id: PatientId) -> Result<Seen<Arc<Patient>>> {
        let patient = self.asker.read(ctx, id.0).await?.patient;
        Seen::now(patient, &ctx.caller).map_err(|_| restricted())
    }

    /// Returns a page of patients that are neither deleted nor restricted.
    ///
    /// # Errors
    /// As `get`, without `NotFound` and `Forbidden`.
    pub async fn search(
        &self,
        ctx: &RequestContext,
        search: &PatientSearch,
    ) -> Result<PatientPage<Seen<Patient>>> {
        match self.asker.query(ctx, || PatientQuery::Search(search.clone())).await? {
            PatientAnswer::Page(PatientPage { patients, resume }) => {
                let patients = patients.into_iter().filter_map(Seen::listed).collect();
                Ok(PatientPage { patients, resume })
            }
            PatientAnswer::History(_) => Err(another_answer()),
        }
    }

    /// Returns the versions of `id` after version `after`, oldest first. Works for deleted records too.
    ///
    /// # Errors
    /// As `get`, but `NotFound` only if the record never existed. If there are no later versions, the page is
    /// empty.
    pub async fn history(
        &self,
        ctx: &RequestContext,
        id: PatientId,
        after: Version,
        limit_rows: u32,
    ) -> Result<Seen<Vec<HistoryEntry>>> {
        let entries = self.versions(ctx, id, after, limit_rows).await?;
        self.as_newest(ctx, id, entries).await
    }

    /// Returns `what` of the record `id` if the caller may see the newest version. The newest version is read
    /// after `what`, so that a restriction acknowledged before this request takes effect.
    async fn as_newest<T>(&self, ctx: &RequestContext, id: PatientId, what: T) -> Result<Seen<T>> {
        let newest = match self.asker.read(ctx, id.0).await {
            Ok(reply) => reply.patient,
            Err(error) if error.code == ErrorCode::NotFound => match self.end_of(ctx, id).await? {
                Some(end) => Arc::clone(end.event.patient()),
                None => return Err(error),
            },
            Err(error) => return Err(error),
        };
        Seen::of_record(&newest, what, &ctx.caller).map_err(|_| restricted())
    }

    /// Returns the last version of a deleted record. Few records have more than one page of versions, and the
    /// request's deadline limits the loop.
    async fn end_of(&self, ctx: &RequestContext, id: PatientId) -> Result<Option<HistoryEntry>> {
        let mut last: Option<HistoryEntry> = None;
        loop {
            let after = last.as_ref().map_or(0, HistoryEntry::version);
            match self.versions(ctx, id, after, VERSIONS_MAX).await?.pop() {
                Some(entry) => last = Some(entry),
                None => return Ok(last),
            }
        }
    }

    async fn versions(
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

/// Versions per page while the last version is looked up.
const VERSIONS_MAX: u32 = 200;

/// Converts an error that comes after the change was made, because an error that means "nothing was done"
/// would be wrong.
fn made_but_not_shown(error: Error) -> Error {
    match error.code {
        ErrorCode::Forbidden => error,
        _ => Error::new(
            ErrorCode::OutcomeUnknown,
            "The change was made before, but it cannot be told now whether its record may be shown",
        ),
    }
}

fn another_answer() -> Error {
    Error::new(ErrorCode::Internal, "The answer is one to another question")
}

/// The result of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed<T> {
    /// The record or other value that the change resulted in.
    pub what: T,
    /// Whether a transaction of this request has recorded the access. If not, the edge records it.
    pub recorded: bool,
}

/// When a change was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// By this request. Also used for reads.
    Now,
    /// By an earlier attempt or request with the same command id.
    Before,
    /// Never, because the record was already as requested.
    Nothing,
}

impl Made {
    /// Returns whether a transaction of this request has recorded the access. A change made before under a
    /// key may come from an earlier request; without a key it comes from an earlier attempt of this request.
    const fn is_recorded(self, keyed: Option<Fingerprint>) -> bool {
        match self {
            Made::Now => true,
            Made::Before => keyed.is_none(),
            Made::Nothing => false,
        }
    }
}

/// A shard's answer to a read or change of one patient. It stays inside the actors; an edge gets `Seen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatientReply {
    /// The current record, or the record after the change.
    pub(in crate::actors) patient: Arc<Patient>,
    /// When the change was made; `Now` for a read.
    pub(in crate::actors) made: Made,
}

impl From<Arc<Patient>> for PatientReply {
    fn from(patient: Arc<Patient>) -> Self {
        PatientReply { patient, made: Made::Now }
    }
}

/// The kind of patients.
pub struct Patients;

/// A query about many patients, or about many versions of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatientQuery {
    /// A page of patients that are not deleted.
    Search(PatientSearch),
    /// A page of the versions of one patient.
    History {
        /// The patient.
        id: PatientId,
        /// Return only versions after this one.
        after: Version,
        /// The maximum number of rows.
        limit_rows: u32,
    },
}

impl PatientQuery {
    /// Returns the maximum number of rows of the answer.
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
        let by = &write.caller;
        match patient::decide(PatientId(id), state, &write.command, by, &write.conditions, stamp.now) {
            Ok(Decided::Unchanged(patient)) => {
                Decision::Answer(PatientReply { patient, made: Made::Nothing })
            }
            Ok(Decided::Event(event)) => Decision::Append(PatientAppend {
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

    fn is_settled(answer: &PatientReply) -> bool {
        answer.made != Made::Nothing
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
            answer: PatientReply { patient: Arc::clone(recorded.event.patient()), made: Made::Before },
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
            reason: reason(append),
            change: Some(Change { event: recorded.event_id, version: recorded.version() }),
            detail: (append.action == Action::PatientRestrict)
                .then(|| Box::new(Detail::of_mark(recorded.event.patient().restricted))),
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

/// Returns the caller's break-glass reason, if `append` needed one: for a change of a restricted record, and
/// for removing the restriction.
fn reason(append: &PatientAppend) -> Option<Box<str>> {
    let marked = append.recorded.event.patient().restricted;
    let needed = if append.action == Action::PatientRestrict { !marked } else { marked };
    append.caller.break_glass.as_deref().filter(|_| needed).map(Into::into)
}

/// Returns the unique form of the e-mail address that `event` frees, if any.
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
