//! Conversion of domain values to and from their wire form, without loss. A value that cannot be read becomes
//! `None`, without a description of its content, which may be patient data.

use std::sync::Arc;

use ::time::Date;
use uuid::Uuid;

use crate::actors::analytics::SummaryView;
use crate::actors::entity::{Failure, Refused};
use crate::actors::patients::{Made, PatientReply};
use crate::context::TraceContext;
use crate::domain::account::{Account, AccountStatus};
use crate::domain::analytics::{AGE_BANDS, Summary};
use crate::domain::conditions::Conditions;
use crate::domain::event::EventType;
use crate::domain::ids::{AccountId, Fingerprint, PatientId};
use crate::domain::patient::{Patient, PatientChange, PatientCommand, PatientDetails, PatientPatch};
use crate::domain::time::Timestamp;
use crate::proto::cluster as pb;
use crate::proto::cluster::reply::Outcome;

pub(super) fn id(uuid: Uuid) -> Option<pb::Id> {
    let (high, low) = uuid.as_u64_pair();
    Some(pb::Id { high, low })
}

pub(super) fn uuid(id: Option<pb::Id>) -> Option<Uuid> {
    id.map(|id| Uuid::from_u64_pair(id.high, id.low))
}

pub(super) fn trace(trace: &TraceContext) -> pb::Trace {
    pb::Trace {
        trace_high: (trace.trace_id >> 64) as u64,
        trace_low: trace.trace_id as u64,
        span: trace.span_id,
        sampled: trace.sampled,
    }
}

/// Returns the sender's hop, to be used as a parent; a new trace if the request has none.
pub(super) fn trace_context(trace: Option<pb::Trace>) -> TraceContext {
    let said = trace.and_then(|trace| {
        let trace_id = (u128::from(trace.trace_high) << 64) | u128::from(trace.trace_low);
        let known = trace_id != 0 && trace.span != 0;
        known.then_some(TraceContext { trace_id, span_id: trace.span, parent_id: 0, sampled: trace.sampled })
    });
    said.unwrap_or_else(TraceContext::root)
}

pub(super) fn date(day: i32) -> Option<Date> {
    Date::from_julian_day(day).ok()
}

pub(super) fn details(details: PatientDetails) -> pb::Details {
    // Destructure without `..`, so that a new field does not compile until it is sent to other nodes too.
    let PatientDetails { name, email, address, date_of_birth, registered_date } = details;
    pb::Details {
        name: name.into(),
        email: email.into(),
        address: address.into(),
        date_of_birth: date_of_birth.to_julian_day(),
        registered_date: registered_date.to_julian_day(),
    }
}

pub(super) fn patient_details(details: Option<pb::Details>) -> Option<PatientDetails> {
    let details = details?;
    Some(PatientDetails {
        name: details.name.into(),
        email: details.email.into(),
        address: details.address.into(),
        date_of_birth: date(details.date_of_birth)?,
        registered_date: date(details.registered_date)?,
    })
}

pub(super) fn update(id: Uuid, change: PatientChange) -> pb::UpdatePatient {
    pb::UpdatePatient {
        id: self::id(id),
        name: change.name.into(),
        email: change.email.into(),
        address: change.address.into(),
        date_of_birth: change.date_of_birth.to_julian_day(),
        registered_date: change.registered_date.map(Date::to_julian_day),
    }
}

pub(super) fn patient_change(update: pb::UpdatePatient) -> Option<PatientChange> {
    Some(PatientChange {
        name: update.name.into(),
        email: update.email.into(),
        address: update.address.into(),
        date_of_birth: date(update.date_of_birth)?,
        registered_date: match update.registered_date {
            Some(day) => Some(date(day)?),
            None => None,
        },
    })
}

/// Returns a change in the form that an older version refuses instead of ignoring its conditions.
pub(super) fn change(id: Uuid, command: PatientCommand, conditions: Conditions) -> pb::ChangePatient {
    use pb::change_patient::Change;
    pb::ChangePatient {
        id: self::id(id),
        expected: conditions.expected.map(|versions| pb::Versions { versions: versions.into() }),
        fingerprint: conditions.fingerprint.and_then(|fingerprint| self::id(fingerprint.0)),
        change: Some(match command {
            PatientCommand::Register(details) => Change::Register(self::details(details)),
            PatientCommand::Update(change) => {
                Change::Update(pb::UpdatePatient { id: None, ..update(id, change) })
            }
            PatientCommand::Patch(patch) => Change::Patch(self::patch(patch)),
            PatientCommand::Restrict(restricted) => {
                Change::Restrict(pb::RestrictPatient { id: None, restricted })
            }
            PatientCommand::Delete => Change::Delete(pb::DeletePatient { id: None }),
        }),
    }
}

/// Reads what `change` wrote, except for the id.
pub(super) fn read_change(change: pb::ChangePatient) -> Option<(PatientCommand, Conditions)> {
    use pb::change_patient::Change;
    let command = match change.change? {
        Change::Register(details) => PatientCommand::Register(patient_details(Some(details))?),
        Change::Update(update) => PatientCommand::Update(patient_change(update)?),
        Change::Patch(patch) => PatientCommand::Patch(read_patch(patch)?),
        Change::Restrict(restrict) => PatientCommand::Restrict(restrict.restricted),
        Change::Delete(_) => PatientCommand::Delete,
    };
    let conditions = Conditions {
        expected: change.expected.map(|expected| expected.versions.into()),
        fingerprint: uuid(change.fingerprint).map(Fingerprint),
    };
    Some((command, conditions))
}

fn patch(patch: PatientPatch) -> pb::PatchPatient {
    pb::PatchPatient {
        name: patch.name.map(Into::into),
        email: patch.email.map(Into::into),
        address: patch.address.map(Into::into),
        date_of_birth: patch.date_of_birth.map(Date::to_julian_day),
        registered_date: patch.registered_date.map(Date::to_julian_day),
    }
}

/// Reads an optional day.
pub(super) fn day(said: Option<i32>) -> Option<Option<Date>> {
    match said {
        Some(day) => date(day).map(Some),
        None => Some(None),
    }
}

fn read_patch(patch: pb::PatchPatient) -> Option<PatientPatch> {
    Some(PatientPatch {
        name: patch.name.map(Into::into),
        email: patch.email.map(Into::into),
        address: patch.address.map(Into::into),
        date_of_birth: day(patch.date_of_birth)?,
        registered_date: day(patch.registered_date)?,
    })
}

pub(super) fn patient(patient: &Patient) -> pb::Patient {
    let Patient { id, version, created_at, restricted, details } = patient;
    pb::Patient {
        id: self::id(id.0),
        version: *version,
        created_at_us: created_at.0,
        restricted: *restricted,
        again: false,
        unchanged: false,
        details: Some(self::details(details.clone())),
    }
}

pub(super) fn read_patient(patient: pb::Patient) -> Option<Patient> {
    Some(Patient {
        id: PatientId(uuid(patient.id)?),
        version: patient.version,
        created_at: Timestamp(patient.created_at_us),
        restricted: patient.restricted,
        details: patient_details(patient.details)?,
    })
}

fn account(account: &Account) -> pb::Account {
    let Account { id, patient_id, name, email, status, opened_at } = account;
    pb::Account {
        id: self::id(id.0),
        patient_id: self::id(patient_id.0),
        name: name.as_ref().into(),
        email: email.as_ref().into(),
        status: status.as_str().to_owned(),
        opened_at_us: opened_at.0,
    }
}

fn read_account(account: pb::Account) -> Option<Account> {
    Some(Account {
        id: AccountId(uuid(account.id)?),
        patient_id: PatientId(uuid(account.patient_id)?),
        name: account.name.into(),
        email: account.email.into(),
        status: AccountStatus::parse(&account.status)?,
        opened_at: Timestamp(account.opened_at_us),
    })
}

fn summary(view: &SummaryView) -> pb::Summary {
    let SummaryView { summary, lag_events, as_of } = view;
    let types = summary.by_event_type.iter();
    let days = summary.registrations_by_day.iter();
    let bands = summary.age_bands.iter();
    pb::Summary {
        total_patients: summary.total_patients,
        by_event_type: types
            .map(|(t, n)| pb::TypeCount { event_type: t.as_str().to_owned(), count: *n })
            .collect(),
        registrations_by_day: days
            .map(|(day, n)| pb::DayCount { day: day.to_julian_day(), count: *n })
            .collect(),
        age_bands: bands.map(|(band, n)| pb::BandCount { band: (*band).to_owned(), count: *n }).collect(),
        lag_events: *lag_events,
        as_of_us: as_of.0,
    }
}

/// Types and bands that this version does not know are ignored.
fn read_summary(summary: pb::Summary) -> Option<SummaryView> {
    let band_of = |name: &str| AGE_BANDS.iter().find(|(band, ..)| *band == name).map(|(band, ..)| *band);
    let types = summary.by_event_type.iter();
    let bands = summary.age_bands.iter();
    Some(SummaryView {
        summary: Summary {
            total_patients: summary.total_patients,
            by_event_type: types.filter_map(|c| Some((EventType::parse(&c.event_type)?, c.count))).collect(),
            registrations_by_day: summary
                .registrations_by_day
                .iter()
                .map(|c| Some((date(c.day)?, c.count)))
                .collect::<Option<_>>()?,
            age_bands: bands.filter_map(|c| Some((band_of(&c.band)?, c.count))).collect(),
        },
        lag_events: summary.lag_events,
        as_of: Timestamp(summary.as_of_us),
    })
}

fn failure(code: pb::failure::Code) -> Outcome {
    Outcome::Failure(pb::Failure { code: code.into(), owner: String::new() })
}

fn refusal(code: pb::refusal::Code) -> Outcome {
    Outcome::Refusal(pb::Refusal { code: code.into() })
}

/// Returns the wire form of a failure.
pub(super) fn failed(why: &Failure) -> Outcome {
    use pb::failure::Code;
    match why {
        Failure::Refused(Refused::NotFound) => refusal(pb::refusal::Code::NotFound),
        Failure::Refused(Refused::IdTaken) => refusal(pb::refusal::Code::IdTaken),
        Failure::Refused(Refused::EmailTaken) => refusal(pb::refusal::Code::EmailTaken),
        Failure::Refused(Refused::Restricted) => refusal(pb::refusal::Code::Restricted),
        Failure::Refused(Refused::OtherVersion) => refusal(pb::refusal::Code::OtherVersion),
        Failure::Refused(Refused::KeyReused) => refusal(pb::refusal::Code::KeyReused),
        Failure::Refused(Refused::KeyExpired) => refusal(pb::refusal::Code::KeyExpired),
        Failure::Busy => failure(Code::Busy),
        Failure::Expired => failure(Code::Expired),
        Failure::NotServing(owner) => Outcome::Failure(pb::Failure {
            code: Code::NotServing.into(),
            owner: owner.as_deref().unwrap_or_default().to_owned(),
        }),
        // The asker knows better which nodes are live.
        Failure::NoNode(_) => failure(Code::NotServing),
        Failure::Unavailable => failure(Code::Unavailable),
        Failure::Unknown => failure(Code::Unknown),
        Failure::Unsupported => failure(Code::Unsupported),
    }
}

/// Returns the outcome of a request whose handler died.
pub(super) fn dropped() -> Outcome {
    failure(pb::failure::Code::Dropped)
}

/// Reads a failure from a node, which may run another version. Returns `None` if the outcome is not a
/// failure, is unknown, or has a code that this version does not know.
fn read_failure(outcome: &Outcome) -> Option<Failure> {
    use pb::failure::Code;
    match outcome {
        Outcome::Refusal(refusal) => match refusal.code() {
            pb::refusal::Code::NotFound => Some(Failure::Refused(Refused::NotFound)),
            pb::refusal::Code::IdTaken => Some(Failure::Refused(Refused::IdTaken)),
            pb::refusal::Code::EmailTaken => Some(Failure::Refused(Refused::EmailTaken)),
            pb::refusal::Code::Restricted => Some(Failure::Refused(Refused::Restricted)),
            pb::refusal::Code::OtherVersion => Some(Failure::Refused(Refused::OtherVersion)),
            pb::refusal::Code::KeyReused => Some(Failure::Refused(Refused::KeyReused)),
            pb::refusal::Code::KeyExpired => Some(Failure::Refused(Refused::KeyExpired)),
            pb::refusal::Code::Unspecified => None,
        },
        Outcome::Failure(failure) => match failure.code() {
            Code::Busy => Some(Failure::Busy),
            Code::Expired => Some(Failure::Expired),
            Code::NotServing => {
                let owner = (!failure.owner.is_empty()).then(|| failure.owner.as_str().into());
                Some(Failure::NotServing(owner))
            }
            Code::Unavailable => Some(Failure::Unavailable),
            Code::Unknown => Some(Failure::Unknown),
            Code::Unsupported => Some(Failure::Unsupported),
            Code::Dropped | Code::Unspecified => None,
        },
        _ => None,
    }
}

/// An answer that can be sent over a link.
pub(super) trait Answer: Sized + Send + Sync + 'static {
    /// Returns the wire form.
    fn outcome(&self) -> Outcome;
    /// Reads the wire form; `None` if `outcome` is not this kind of answer.
    fn read(outcome: Outcome) -> Option<Self>;
}

/// Reads the outcome of a request; `None` if it is unknown.
pub(super) fn read<T: Answer>(outcome: Option<Outcome>) -> Option<Result<T, Failure>> {
    let outcome = outcome?;
    match read_failure(&outcome) {
        Some(failure) => Some(Err(failure)),
        None => T::read(outcome).map(Ok),
    }
}

impl Answer for PatientReply {
    fn outcome(&self) -> Outcome {
        let (again, unchanged) = (self.made != Made::Now, self.made == Made::Nothing);
        Outcome::Patient(pb::Patient { again, unchanged, ..patient(&self.patient) })
    }

    fn read(outcome: Outcome) -> Option<Self> {
        let Outcome::Patient(patient) = outcome else { return None };
        let made = match (patient.again, patient.unchanged) {
            (false, _) => Made::Now,
            (true, false) => Made::Before,
            (true, true) => Made::Nothing,
        };
        Some(PatientReply { patient: Arc::new(read_patient(patient)?), made })
    }
}

impl Answer for Arc<Account> {
    fn outcome(&self) -> Outcome {
        Outcome::Account(account(self))
    }

    fn read(outcome: Outcome) -> Option<Self> {
        let Outcome::Account(account) = outcome else { return None };
        read_account(account).map(Arc::new)
    }
}

impl Answer for SummaryView {
    fn outcome(&self) -> Outcome {
        Outcome::Summary(summary(self))
    }

    fn read(outcome: Outcome) -> Option<Self> {
        let Outcome::Summary(summary) = outcome else { return None };
        read_summary(summary)
    }
}

/// The answer to `cluster status`: JSON that only its reader interprets.
impl Answer for Vec<u8> {
    fn outcome(&self) -> Outcome {
        Outcome::Status(pb::StatusReport { json: self.clone() })
    }

    fn read(outcome: Outcome) -> Option<Self> {
        let Outcome::Status(status) = outcome else { return None };
        Some(status.json)
    }
}
