//! The wire form of the requests of each kind.

use std::time::Duration;

use uuid::Uuid;

use super::Inner;
use super::queries;
use super::wire::{self, Answer};
use crate::actors::address::Address;
use crate::actors::billing::Accounts;
use crate::actors::directory::DirectoryMessage;
use crate::actors::entity::{Entity, Op, Write};
use crate::actors::patients::{PatientQuery, Patients};
use crate::actors::region::QueryAsk;
use crate::actors::shard::Ask;
use crate::context::TraceContext;
use crate::domain::access::{Caller, Role};
use crate::domain::account::OpenAccount;
use crate::domain::conditions::Conditions;
use crate::domain::ids::{AccountId, CommandId};
use crate::domain::patient::PatientCommand;
use crate::proto::cluster as pb;
use crate::proto::cluster::request::Body;

/// The estimated size of one record in an answer.
const RECORD_BYTES: usize = 1_024;

/// A kind whose requests can be sent over a link.
pub(super) trait Portable: Entity<Answer: Answer> {
    /// Returns the wire form of a request for `id`.
    fn body(id: Uuid, op: Op<Self>) -> Body;

    /// Returns the directory of this node, which learns where an entity was found.
    fn directory(links: &Inner) -> &Address<DirectoryMessage<Self>>;

    /// Sends a request about many entities to the live node `owner`.
    fn send_query(links: &Inner, owner: &str, query: QueryAsk<Self>);
}

/// The metadata of a request, without its body.
pub(super) struct Said {
    pub(super) trace: TraceContext,
    pub(super) budget: Duration,
    pub(super) caller: Caller,
}

/// How a request is forwarded.
#[derive(Clone, Debug, Default)]
pub(super) struct Passage {
    /// The number of nodes that have passed the request on.
    pub(super) hops: u32,
    /// The owner that the receiver should pass the request on to, because the sender cannot reach it.
    pub(super) wanted_owner: Option<std::sync::Arc<str>>,
}

fn envelope(trace: &TraceContext, budget: Duration, caller: &Caller) -> pb::Envelope {
    pb::Envelope {
        trace: Some(wire::trace(trace)),
        // Round up, so that the last millisecond is not lost. The asker watches its own clock.
        budget_ms: u64::try_from(budget.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX),
        subject: caller.subject.as_ref().to_owned(),
        role: caller.role.as_str().to_owned(),
        from: caller.from.map(|from| from.to_string()).unwrap_or_default(),
        command_id: None,
        traceparent: String::new(),
        maybe_done: false,
        break_glass: caller.break_glass.as_deref().unwrap_or_default().to_owned(),
    }
}

fn request(envelope: pb::Envelope, passage: Passage, body: Body) -> pb::Request {
    let wanted_owner = passage.wanted_owner.map(|owner| owner.as_ref().to_owned()).unwrap_or_default();
    pb::Request { id: 0, envelope: Some(envelope), hops: passage.hops, wanted_owner, body: Some(body) }
}

/// Returns the wire form of a request for one entity, and the estimated size of its answer in bytes.
pub(super) fn ask_request<E: Portable>(
    ask: &Ask<E>,
    op: Op<E>,
    budget: Duration,
    passage: Passage,
) -> (pb::Request, usize) {
    let mut envelope = envelope(&ask.trace, budget, &ask.caller);
    if let Op::Write(write) = &op {
        envelope.command_id = wire::id(write.command_id.0);
        envelope.traceparent = write.traceparent.as_ref().to_owned();
        envelope.maybe_done = write.maybe_done;
    }
    (request(envelope, passage, E::body(ask.id, op)), RECORD_BYTES)
}

/// Returns the wire form of a request about many patients, and the estimated size of its answer in bytes.
pub(super) fn query_request(
    ask: &QueryAsk<Patients>,
    budget: Duration,
    passage: Passage,
) -> (pb::Request, usize) {
    let limit_rows = ask.query.limit_rows();
    let answer_bytes = usize::try_from(limit_rows).unwrap_or(usize::MAX).saturating_mul(RECORD_BYTES);
    let envelope = envelope(&ask.trace, budget, &ask.caller);
    (request(envelope, passage, queries::body(&ask.query)), answer_bytes)
}

/// Returns the wire form of a request without parameters.
pub(super) fn plain_request(said: &Said, body: Body) -> pb::Request {
    request(envelope(&said.trace, said.budget, &said.caller), Passage::default(), body)
}

impl Portable for Patients {
    fn directory(links: &Inner) -> &Address<DirectoryMessage<Self>> {
        &links.served.patient_directory
    }

    fn send_query(links: &Inner, owner: &str, query: QueryAsk<Self>) {
        links.send_list(owner, query);
    }

    fn body(id: Uuid, op: Op<Self>) -> Body {
        match op {
            Op::Read => Body::PatientRead(pb::PatientRead { id: wire::id(id) }),
            // `ChangePatient`, because a version that does not know conditions must not carry out the change
            // without them.
            Op::Write(write) if write.conditions != Conditions::default() => {
                Body::ChangePatient(wire::change(id, write.command, write.conditions))
            }
            Op::Write(write) => match write.command {
                command @ PatientCommand::Patch(_) => {
                    Body::ChangePatient(wire::change(id, command, write.conditions))
                }
                PatientCommand::Register(details) => Body::RegisterPatient(pb::RegisterPatient {
                    id: wire::id(id),
                    details: Some(wire::details(details)),
                }),
                PatientCommand::Update(change) => Body::UpdatePatient(wire::update(id, change)),
                PatientCommand::Restrict(restricted) => {
                    Body::RestrictPatient(pb::RestrictPatient { id: wire::id(id), restricted })
                }
                PatientCommand::Delete => Body::DeletePatient(pb::DeletePatient { id: wire::id(id) }),
            },
        }
    }
}

impl Portable for Accounts {
    fn directory(links: &Inner) -> &Address<DirectoryMessage<Self>> {
        &links.served.account_directory
    }

    fn send_query(_: &Inner, _: &str, query: QueryAsk<Self>) {
        match query.query {}
    }

    fn body(id: Uuid, op: Op<Self>) -> Body {
        match op {
            Op::Read => Body::ReadAccount(pb::ReadAccount { patient_id: wire::id(id) }),
            Op::Write(write) => Body::OpenAccount(pb::OpenAccount {
                patient_id: wire::id(id),
                account_id: wire::id(write.command.account_id.0),
                name: write.command.name.into(),
                email: write.command.email.into(),
            }),
        }
    }
}

/// The body of a received request.
pub(super) enum Question {
    Patient(Uuid, Op<Patients>),
    Patients(PatientQuery),
    Account(Uuid, Op<Accounts>),
    Summary,
    Status,
}

/// Reads the metadata and the body of a request. Returns `None` if this version does not know the variant, or
/// if a field that every version sends is missing or invalid.
pub(super) fn read(envelope: Option<pb::Envelope>, body: Option<Body>) -> Option<(Said, Question)> {
    let envelope = envelope?;
    let caller = caller(&envelope)?;
    let said = Said {
        trace: wire::trace_context(envelope.trace),
        budget: Duration::from_millis(envelope.budget_ms),
        caller,
    };
    let write = Recorded { caller: said.caller.clone(), envelope };
    let question = match body? {
        Body::PatientRead(read) => Question::Patient(wire::uuid(read.id)?, Op::Read),
        Body::RegisterPatient(register) => {
            let command = PatientCommand::Register(wire::patient_details(register.details)?);
            Question::Patient(wire::uuid(register.id)?, write.op(command)?)
        }
        Body::UpdatePatient(update) => {
            let id = wire::uuid(update.id)?;
            Question::Patient(id, write.op(PatientCommand::Update(wire::patient_change(update)?))?)
        }
        Body::RestrictPatient(restrict) => {
            let command = PatientCommand::Restrict(restrict.restricted);
            Question::Patient(wire::uuid(restrict.id)?, write.op(command)?)
        }
        Body::DeletePatient(delete) => {
            Question::Patient(wire::uuid(delete.id)?, write.op(PatientCommand::Delete)?)
        }
        Body::ChangePatient(change) => {
            let id = wire::uuid(change.id)?;
            let (command, conditions) = wire::read_change(change)?;
            Question::Patient(id, write.op_if(command, conditions)?)
        }
        Body::ListPatients(list) => Question::Patients(queries::read_list(list)?),
        Body::SearchPatients(search) => Question::Patients(queries::read_search(search)?),
        Body::PatientHistory(history) => Question::Patients(queries::read_history(history)?),
        Body::ReadAccount(read) => Question::Account(wire::uuid(read.patient_id)?, Op::Read),
        Body::OpenAccount(open) => {
            let command = OpenAccount {
                account_id: AccountId(wire::uuid(open.account_id)?),
                name: open.name.into(),
                email: open.email.into(),
            };
            Question::Account(wire::uuid(open.patient_id)?, write.op(command)?)
        }
        Body::AnalyticsSummary(_) => Question::Summary,
        Body::Status(_) => Question::Status,
    };
    Some((said, question))
}

/// Returns `None` for a caller without a name or with an unknown role, so that nothing is done for it.
fn caller(envelope: &pb::Envelope) -> Option<Caller> {
    let subject = (!envelope.subject.is_empty()).then(|| envelope.subject.as_str().into())?;
    // An unreadable address is dropped: it is only recorded, and decides nothing.
    let from = envelope.from.parse().ok();
    let break_glass = (!envelope.break_glass.is_empty()).then(|| envelope.break_glass.as_str().into());
    Some(Caller { subject, role: Role::parse(&envelope.role)?, from, break_glass })
}

/// The data that is recorded with a change.
struct Recorded {
    caller: Caller,
    envelope: pb::Envelope,
}

impl Recorded {
    fn op<E: Entity>(self, command: E::Command) -> Option<Op<E>> {
        self.op_if(command, Conditions::default())
    }

    fn op_if<E: Entity>(self, command: E::Command, conditions: Conditions) -> Option<Op<E>> {
        Some(Op::Write(Write {
            command,
            conditions,
            command_id: CommandId(wire::uuid(self.envelope.command_id)?),
            caller: self.caller,
            traceparent: self.envelope.traceparent.into(),
            maybe_done: self.envelope.maybe_done,
        }))
    }
}
