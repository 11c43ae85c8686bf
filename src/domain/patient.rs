//! A patient's record: the commands on it, and its state after them.

use std::sync::Arc;

use ::time::Date;

use super::access::Caller;
use super::conditions::Conditions;
use super::email::email_key;
use super::ids::{PatientId, Version};
use super::time::Timestamp;

/// A record that is not deleted, as of `version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patient {
    /// The id of the patient.
    pub id: PatientId,
    /// 1 after registration, one more after each change.
    pub version: Version,
    /// When the record was created. The default order of lists.
    pub created_at: Timestamp,
    /// Whether the record is restricted. Only callers that break the glass may see or change it.
    pub restricted: bool,
    /// The data that the clinic keeps.
    pub details: PatientDetails,
}

/// The data that the clinic keeps about a patient. Valid by construction: see `validate`.
#[derive(Clone, PartialEq, Eq)]
pub struct PatientDetails {
    /// Full name, 1 to 100 characters.
    pub name: Box<str>,
    /// E-mail address as given. Its `email_key` is unique among patients that are not deleted.
    pub email: Box<str>,
    /// Postal address.
    pub address: Box<str>,
    /// Not in the future at the time it was given.
    pub date_of_birth: Date,
    /// The day on which the clinic registered the patient, as stated by the clinic.
    pub registered_date: Date,
}

/// Never prints its content, because a record may end up in a caller's error or assertion.
impl std::fmt::Debug for PatientDetails {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PatientDetails(..)")
    }
}

impl PatientDetails {
    /// Returns the unique form of the e-mail address.
    pub fn email_key(&self) -> String {
        email_key(&self.email)
    }
}

/// A change of all details. `registered_date` stays unchanged if it is not given.
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

/// A change of some details. Fields that are not given stay unchanged.
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

/// A command on a patient's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatientCommand {
    /// Create the record.
    Register(PatientDetails),
    /// Replace the details.
    Update(PatientChange),
    /// Replace some of the details.
    Patch(PatientPatch),
    /// Mark the record as restricted, or remove the mark.
    Restrict(bool),
    /// Delete the record. Its id is never reused; its e-mail address becomes free.
    Delete,
}

impl PatientCommand {
    /// Returns whether the command on a restricted record needs a caller that may see the record.
    pub const fn needs_sight(&self) -> bool {
        matches!(self, PatientCommand::Update(_) | PatientCommand::Patch(_) | PatientCommand::Delete)
    }
}

/// An event of a patient's record. Each event carries the record after it (a deletion carries the last
/// details), so any version can be shown without replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatientEvent {
    /// The record was created.
    Registered(Arc<Patient>),
    /// The details were replaced.
    Updated(Arc<Patient>),
    /// The record was deleted. The `version` of the patient is that of the deletion.
    Deleted(Arc<Patient>),
}

impl PatientEvent {
    /// Returns the record that the event carries.
    pub fn patient(&self) -> &Arc<Patient> {
        match self {
            PatientEvent::Registered(p) | PatientEvent::Updated(p) | PatientEvent::Deleted(p) => p,
        }
    }

    /// Returns the version of the patient after this event.
    pub fn version(&self) -> Version {
        self.patient().version
    }
}

/// The state of an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatientState {
    /// No patient was ever registered under the id.
    Absent,
    /// A record that is not deleted.
    Active(Arc<Patient>),
    /// The record was deleted, with this version.
    Deleted(Version),
}

/// Why a command was refused by the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No record with this id exists, or it is deleted.
    NotFound,
    /// The id is in use, by an existing or a deleted record.
    AlreadyExists,
    /// The record is restricted, and the caller may not see it.
    Restricted,
    /// The version of the record is not one that the caller expects.
    OtherVersion,
}

/// The result of a command that the rules allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decided {
    /// The command causes this event.
    Event(PatientEvent),
    /// The record is already as requested. There is no event and no new version.
    Unchanged(Arc<Patient>),
}

/// Decides `command` of the caller `by` on `state` at `now`, under `conditions`.
///
/// The checks run in this order: whether the record exists, whether the caller may see it, whether its
/// version is as expected (RFC 9110, section 13.2.1). So a refusal reveals nothing about a record that the
/// caller may not see. Setting the restriction does not require seeing the record. Removing it requires a
/// reason from any role, because the record becomes readable. The conditions are checked even if the command
/// would change nothing. The store checks at commit that the e-mail address is free, because that concerns
/// all patients.
///
/// # Errors
/// The refusal of the rules. Nothing has happened then.
pub fn decide(
    id: PatientId,
    state: &PatientState,
    command: &PatientCommand,
    by: &Caller,
    conditions: &Conditions,
    now: Timestamp,
) -> Result<Decided, Refusal> {
    let patient = match (command, state) {
        (PatientCommand::Register(details), PatientState::Absent) => {
            let details = details.clone();
            let made = Patient { id, version: 1, created_at: now, restricted: false, details };
            return Ok(Decided::Event(PatientEvent::Registered(Arc::new(made))));
        }
        (PatientCommand::Register(_), _) => return Err(Refusal::AlreadyExists),
        (_, PatientState::Absent | PatientState::Deleted(_)) => return Err(Refusal::NotFound),
        (_, PatientState::Active(patient)) => patient,
    };
    if patient.restricted && command.needs_sight() && !by.sees_restricted() {
        return Err(Refusal::Restricted);
    }
    if patient.restricted && matches!(command, PatientCommand::Restrict(false)) && by.break_glass.is_none() {
        return Err(Refusal::Restricted);
    }
    if !conditions.meet(patient.version) {
        return Err(Refusal::OtherVersion);
    }
    let (restricted, details) = match command {
        PatientCommand::Update(change) => (patient.restricted, changed(&patient.details, change)),
        PatientCommand::Patch(patch) => (patient.restricted, patched(&patient.details, patch)),
        PatientCommand::Restrict(restricted) => (*restricted, patient.details.clone()),
        PatientCommand::Register(_) | PatientCommand::Delete => (patient.restricted, patient.details.clone()),
    };
    let next = Patient { version: patient.version + 1, restricted, details, ..**patient };
    Ok(if matches!(command, PatientCommand::Delete) {
        Decided::Event(PatientEvent::Deleted(Arc::new(next)))
    } else if next.restricted == patient.restricted && next.details == patient.details {
        Decided::Unchanged(Arc::clone(patient))
    } else {
        Decided::Event(PatientEvent::Updated(Arc::new(next)))
    })
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

/// Returns the state after `event`.
pub fn evolve(event: &PatientEvent) -> PatientState {
    match event {
        PatientEvent::Registered(patient) | PatientEvent::Updated(patient) => {
            PatientState::Active(Arc::clone(patient))
        }
        PatientEvent::Deleted(patient) => PatientState::Deleted(patient.version),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use ::time::macros::date;
    use uuid::Uuid;

    use super::*;
    use crate::domain::access::Role;

    /// Returns a record of version 3.
    pub(crate) fn record(restricted: bool) -> Arc<Patient> {
        Arc::new(Patient {
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
        })
    }

    fn update(name: &str) -> PatientCommand {
        PatientCommand::Update(PatientChange {
            name: name.into(),
            email: "ada@example.com".into(),
            address: "London".into(),
            date_of_birth: date!(1915 - 12 - 10),
            registered_date: None,
        })
    }

    fn patch(patch: PatientPatch) -> PatientCommand {
        PatientCommand::Patch(patch)
    }

    fn caller(role: Role, reason: Option<&str>) -> Caller {
        Caller { role, break_glass: reason.map(Into::into), ..Caller::system("test") }
    }

    fn decided(
        by: &Caller,
        command: &PatientCommand,
        state: &PatientState,
        conditions: &Conditions,
    ) -> Result<Decided, Refusal> {
        decide(PatientId(Uuid::nil()), state, command, by, conditions, Timestamp(0))
    }

    #[test]
    fn a_restricted_record_is_changed_by_those_who_may_see_it() {
        let any = Conditions::default();
        let by = |caller: &Caller, command: &PatientCommand, restricted| {
            decided(caller, command, &PatientState::Active(record(restricted)), &any)
        };
        let nothing = patch(PatientPatch::default());
        for command in [update("Ada King"), nothing, PatientCommand::Delete] {
            for role in Role::ALL {
                for reason in [None, Some("unconscious")] {
                    let caller = caller(*role, reason);
                    let may = *role == Role::Clinician && reason.is_some();
                    let refusal = by(&caller, &command, true).err();
                    assert_eq!(refusal, (!may).then_some(Refusal::Restricted), "{role:?} {reason:?}");
                    assert!(by(&caller, &command, false).is_ok(), "{role:?}");
                }
            }
        }
        // A caller who may not see the record does not learn whether its version is as expected.
        let stale = Conditions { expected: Some([1].into()), ..Conditions::default() };
        let state = PatientState::Active(record(true));
        let told = |reason| decided(&caller(Role::Clinician, reason), &update("x"), &state, &stale);
        assert_eq!(told(None), Err(Refusal::Restricted));
        assert_eq!(told(Some("unconscious")), Err(Refusal::OtherVersion));
        // A change keeps the restriction, and changing the restriction changes nothing else.
        let changed = by(&caller(Role::Clinician, Some("unconscious")), &update("Ada King"), true);
        let Ok(Decided::Event(changed)) = changed else { panic!("{changed:?}") };
        assert!(changed.patient().restricted && changed.version() == 4);
        let silent = by(&caller(Role::Admin, None), &PatientCommand::Restrict(false), true);
        assert_eq!(silent, Err(Refusal::Restricted), "the mark is not taken off without a word");
        for mark in [true, false] {
            let why = (!mark).then_some("marked by mistake");
            let marked = by(&caller(Role::Admin, why), &PatientCommand::Restrict(mark), !mark);
            let Ok(Decided::Event(marked)) = marked else { panic!("{marked:?}") };
            assert_eq!(**marked.patient(), Patient { version: 4, ..Patient::clone(&record(mark)) });
        }
        let mark = PatientCommand::Restrict(true);
        let absent = decided(&caller(Role::Admin, None), &mark, &PatientState::Absent, &any);
        assert_eq!(absent, Err(Refusal::NotFound));
    }

    #[test]
    fn what_changes_nothing_makes_no_version() {
        let same = record(false).details.clone();
        let all = PatientPatch {
            name: Some(same.name.clone()),
            email: Some(same.email.clone()),
            address: Some(same.address.clone()),
            date_of_birth: Some(same.date_of_birth),
            registered_date: Some(same.registered_date),
        };
        let admin = caller(Role::Admin, None);
        let expecting = |version| Conditions { expected: Some([version].into()), ..Conditions::default() };
        for (command, restricted) in [
            (update("Ada"), false),
            (patch(PatientPatch::default()), false),
            (patch(all), false),
            (PatientCommand::Restrict(true), true),
            (PatientCommand::Restrict(false), false),
        ] {
            let state = PatientState::Active(record(restricted));
            for conditions in [Conditions::default(), expecting(3)] {
                let unchanged = decided(&admin, &command, &state, &conditions);
                assert_eq!(unchanged, Ok(Decided::Unchanged(record(restricted))), "{command:?}");
            }
            let stale = decided(&admin, &command, &state, &expecting(2));
            assert_eq!(stale, Err(Refusal::OtherVersion), "{command:?}: conditions are judged all the same");
            let ended = decided(&admin, &command, &PatientState::Deleted(4), &Conditions::default());
            assert_eq!(ended, Err(Refusal::NotFound), "{command:?}");
        }
        // A changed letter is a change, and so is a changed case.
        let state = PatientState::Active(record(false));
        for patch in [
            PatientPatch { name: Some("ada".into()), ..PatientPatch::default() },
            PatientPatch { email: Some("Ada@example.com".into()), ..PatientPatch::default() },
            PatientPatch { address: Some("Londo".into()), ..PatientPatch::default() },
            PatientPatch { date_of_birth: Some(date!(1915 - 12 - 11)), ..PatientPatch::default() },
            PatientPatch { registered_date: Some(date!(2026 - 01 - 01)), ..PatientPatch::default() },
        ] {
            let changed = decided(&admin, &PatientCommand::Patch(patch), &state, &Conditions::default());
            assert!(matches!(changed, Ok(Decided::Event(event)) if event.version() == 4));
        }
        let ended = decided(&admin, &PatientCommand::Delete, &state, &Conditions::default());
        assert!(matches!(ended, Ok(Decided::Event(PatientEvent::Deleted(_)))));
    }
}
