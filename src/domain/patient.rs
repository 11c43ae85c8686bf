//! A patient's record: what may be done to it and what it is afterwards.

use std::sync::Arc;

use ::time::Date;

use super::access::{Action, Role};
use super::conditions::Conditions;
use super::ids::{PatientId, Version};
use super::time::Timestamp;

/// A living record, as of `version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patient {
    /// Who this is.
    pub id: PatientId,
    /// 1 after registration, one more after each change.
    pub version: Version,
    /// When the record was made: the order of lists.
    pub created_at: Timestamp,
    /// Whether it is marked restricted: shown to those who break the glass, changed by those who may mark it.
    pub restricted: bool,
    /// What the clinic knows.
    pub details: PatientDetails,
}

/// What the clinic knows of a patient. Valid by construction: see `validate`.
#[derive(Clone, PartialEq, Eq)]
pub struct PatientDetails {
    /// Full name, 1 to 100 characters.
    pub name: Box<str>,
    /// E-mail address as given. Unique over living patients without regard to case.
    pub email: Box<str>,
    /// Postal address.
    pub address: Box<str>,
    /// Not in the future when it was given.
    pub date_of_birth: Date,
    /// The day the clinic took the patient on, as the clinic says it.
    pub registered_date: Date,
}

/// Never prints what it holds: a record may end up in an error or an assertion of a caller.
impl std::fmt::Debug for PatientDetails {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PatientDetails(..)")
    }
}

impl PatientDetails {
    /// The form of the e-mail address under which it is unique.
    pub fn email_key(&self) -> String {
        email_key(&self.email)
    }
}

/// The form of an e-mail address under which it is unique: lower case.
pub fn email_key(email: &str) -> String {
    email.to_lowercase()
}

/// A change of the details; `registered_date` stays as it is if it is not given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatientChange {
    /// The new name.
    pub name: Box<str>,
    /// The new e-mail address.
    pub email: Box<str>,
    /// The new address.
    pub address: Box<str>,
    /// The new date of birth.
    pub date_of_birth: Date,
    /// The new registered date, if it changes.
    pub registered_date: Option<Date>,
}

/// A change of some of the details; what is not given stays as it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PatientPatch {
    /// The new name.
    pub name: Option<Box<str>>,
    /// The new e-mail address.
    pub email: Option<Box<str>>,
    /// The new address.
    pub address: Option<Box<str>>,
    /// The new date of birth.
    pub date_of_birth: Option<Date>,
    /// The new registered date.
    pub registered_date: Option<Date>,
}

/// Never prints what it holds.
impl std::fmt::Debug for PatientPatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PatientPatch(..)")
    }
}

/// What a caller wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatientCommand {
    /// Make the record.
    Register(PatientDetails),
    /// Replace the details.
    Update(PatientChange),
    /// Replace some of the details.
    Patch(PatientPatch),
    /// Mark the record restricted, or no longer so.
    Restrict(bool),
    /// End the record. Its id is never used again; its e-mail address is free again.
    Delete,
}

/// What happened. Each event carries the record as it is after it (for a deletion: as it was before),
/// so that any version can be shown without replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatientEvent {
    /// The record was made.
    Registered(Arc<Patient>),
    /// The details were replaced.
    Updated(Arc<Patient>),
    /// The record was ended; `version` of the patient is that of the deletion.
    Deleted(Arc<Patient>),
}

impl PatientEvent {
    /// The record the event carries.
    pub fn patient(&self) -> &Arc<Patient> {
        match self {
            PatientEvent::Registered(p) | PatientEvent::Updated(p) | PatientEvent::Deleted(p) => p,
        }
    }

    /// The version the patient has after this event.
    pub fn version(&self) -> Version {
        self.patient().version
    }
}

/// What is known of an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatientState {
    /// Nothing was ever registered under it.
    Absent,
    /// A living record.
    Active(Arc<Patient>),
    /// There was a record; it ended at this version.
    Deleted(Version),
}

/// Why a command was refused by the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No living record has this id.
    NotFound,
    /// The id is taken, by a living or an ended record.
    AlreadyExists,
    /// The record is restricted, and the caller is none of those who may change it then.
    Restricted,
    /// The record has another version than the caller expects.
    OtherVersion,
}

/// What `command` of a caller of the role `by` does to `state` at `now` under `conditions`, or why it may not.
/// Whether there is a record comes first, then whether the caller may change it, and last whether it is as expected
/// (RFC 9110, section 13.2.1): a refusal says nothing of a record that the caller may not see. That
/// the e-mail address is free is decided by the store at commit, since it concerns all patients.
///
/// # Errors
/// The refusal of the rules; nothing has happened then.
pub fn decide(
    id: PatientId,
    state: &PatientState,
    command: &PatientCommand,
    by: Role,
    conditions: &Conditions,
    now: Timestamp,
) -> Result<PatientEvent, Refusal> {
    let restricted = matches!(state, PatientState::Active(patient) if patient.restricted);
    let changes =
        matches!(command, PatientCommand::Update(_) | PatientCommand::Patch(_) | PatientCommand::Delete);
    if restricted && changes && !Action::PatientRestrict.permits(by) {
        return Err(Refusal::Restricted);
    }
    match (command, state) {
        (PatientCommand::Register(details), PatientState::Absent) => {
            Ok(PatientEvent::Registered(Arc::new(Patient {
                id,
                version: 1,
                created_at: now,
                restricted: false,
                details: details.clone(),
            })))
        }
        (PatientCommand::Register(_), _) => Err(Refusal::AlreadyExists),
        (_, PatientState::Absent | PatientState::Deleted(_)) => Err(Refusal::NotFound),
        (_, PatientState::Active(patient)) if !conditions.meet(patient.version) => Err(Refusal::OtherVersion),
        (PatientCommand::Update(change), PatientState::Active(patient)) => {
            Ok(PatientEvent::Updated(next(patient, changed(&patient.details, change))))
        }
        (PatientCommand::Patch(patch), PatientState::Active(patient)) => {
            Ok(PatientEvent::Updated(next(patient, patched(&patient.details, patch))))
        }
        (PatientCommand::Restrict(restricted), PatientState::Active(patient)) => {
            Ok(PatientEvent::Updated(Arc::new(Patient {
                version: patient.version + 1,
                restricted: *restricted,
                details: patient.details.clone(),
                ..**patient
            })))
        }
        (PatientCommand::Delete, PatientState::Active(patient)) => {
            Ok(PatientEvent::Deleted(next(patient, patient.details.clone())))
        }
    }
}

fn next(patient: &Patient, details: PatientDetails) -> Arc<Patient> {
    Arc::new(Patient { version: patient.version + 1, details, ..*patient })
}

fn changed(old: &PatientDetails, change: &PatientChange) -> PatientDetails {
    PatientDetails {
        name: change.name.clone(),
        email: change.email.clone(),
        address: change.address.clone(),
        date_of_birth: change.date_of_birth,
        registered_date: change.registered_date.unwrap_or(old.registered_date),
    }
}

fn patched(old: &PatientDetails, patch: &PatientPatch) -> PatientDetails {
    PatientDetails {
        name: patch.name.as_ref().unwrap_or(&old.name).clone(),
        email: patch.email.as_ref().unwrap_or(&old.email).clone(),
        address: patch.address.as_ref().unwrap_or(&old.address).clone(),
        date_of_birth: patch.date_of_birth.unwrap_or(old.date_of_birth),
        registered_date: patch.registered_date.unwrap_or(old.registered_date),
    }
}

/// The state after `event`.
pub fn evolve(event: &PatientEvent) -> PatientState {
    match event {
        PatientEvent::Registered(patient) | PatientEvent::Updated(patient) => {
            PatientState::Active(Arc::clone(patient))
        }
        PatientEvent::Deleted(patient) => PatientState::Deleted(patient.version),
    }
}

#[cfg(test)]
mod tests {
    use ::time::macros::date;
    use uuid::Uuid;

    use super::*;

    fn record(restricted: bool) -> PatientState {
        PatientState::Active(Arc::new(Patient {
            id: PatientId(Uuid::nil()),
            version: 3,
            created_at: Timestamp(0),
            restricted,
            details: PatientDetails {
                name: "Ada".into(),
                email: "ada@example.com".into(),
                address: "London".into(),
                date_of_birth: date!(1915 - 12 - 10),
                registered_date: date!(2026 - 01 - 02),
            },
        }))
    }

    fn update() -> PatientCommand {
        PatientCommand::Update(PatientChange {
            name: "Ada King".into(),
            email: "ada@example.com".into(),
            address: "London".into(),
            date_of_birth: date!(1915 - 12 - 10),
            registered_date: None,
        })
    }

    #[test]
    fn a_restricted_record_is_changed_by_those_who_may_mark_it() {
        let by = |role, command: &PatientCommand, state: &PatientState| {
            decide(PatientId(Uuid::nil()), state, command, role, &Conditions::default(), Timestamp(0))
        };
        for command in [update(), PatientCommand::Delete] {
            for role in Role::ALL {
                let may = matches!(role, Role::Admin | Role::Clinician);
                let decided = by(*role, &command, &record(true));
                assert_eq!(decided.as_ref().err(), (!may).then_some(&Refusal::Restricted), "{role:?}");
                assert!(by(*role, &command, &record(false)).is_ok(), "{role:?}");
            }
        }
        // A change keeps the mark, and the mark changes nothing else.
        let changed = by(Role::Clinician, &update(), &record(true)).expect("changed");
        assert!(changed.patient().restricted && changed.version() == 4);
        for mark in [true, false] {
            let marked = by(Role::Admin, &PatientCommand::Restrict(mark), &record(!mark)).expect("marked");
            let PatientState::Active(before) = record(mark) else { unreachable!() };
            assert_eq!(**marked.patient(), Patient { version: 4, ..Patient::clone(&before) });
        }
        let absent = by(Role::Admin, &PatientCommand::Restrict(true), &PatientState::Absent);
        assert_eq!(absent, Err(Refusal::NotFound));
    }
}
