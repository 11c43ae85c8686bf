//! Access to restricted records. Only this module and `patient::decide` check whether a caller may see a
//! restricted record. The handles of the actors return records as `Seen`, and the edges build their answers
//! from nothing else.

use std::sync::Arc;

use super::access::Caller;
use super::patient::Patient;

/// The record is restricted, and the caller may not see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restricted;

/// What was needed to see a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glass {
    /// Nothing, because the record is not restricted.
    Whole,
    /// The caller's reason, because the record is restricted. The access must be audited.
    Broken,
}

/// A record, or data of its history, that the caller may see. Only the functions here create one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<T> {
    what: T,
    glass: Glass,
}

impl<T> Seen<T> {
    /// Wraps `what`, which belongs to the record whose newest version is `newest`, even if that version is
    /// its deletion. The newest version decides for earlier versions too: a caller who may not see a
    /// restricted record sees none of its history.
    ///
    /// # Errors
    /// The record is restricted, and `caller` may not see it.
    pub fn of_record(newest: &Patient, what: T, caller: &Caller) -> Result<Self, Restricted> {
        match newest.restricted {
            false => Ok(Seen { what, glass: Glass::Whole }),
            true if caller.sees_restricted() => Ok(Seen { what, glass: Glass::Broken }),
            true => Err(Restricted),
        }
    }

    /// Returns the data, and what was needed to see it.
    pub fn open(self) -> (T, Glass) {
        (self.what, self.glass)
    }
}

impl Seen<Arc<Patient>> {
    /// Wraps `patient`, the current version of a record.
    ///
    /// # Errors
    /// As `of_record`.
    pub fn now(patient: Arc<Patient>, caller: &Caller) -> Result<Self, Restricted> {
        let newest = Arc::clone(&patient);
        Seen::of_record(&newest, patient, caller)
    }
}

impl Seen<Patient> {
    /// Wraps `patient` for a list. Returns `None` for a restricted record, because lists never show one.
    pub fn listed(patient: Patient) -> Option<Self> {
        (!patient.restricted).then_some(Seen { what: patient, glass: Glass::Whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::access::Role;
    use crate::domain::patient::tests::record;

    #[test]
    fn a_restricted_record_is_seen_by_those_who_break_the_glass() {
        for role in Role::ALL {
            for reason in [None, Some("unconscious")] {
                let caller =
                    Caller { role: *role, break_glass: reason.map(Into::into), ..Caller::system("") };
                let breaks = *role == Role::Clinician && reason.is_some();
                let open = Seen::now(record(false), &caller).expect("open to all");
                assert_eq!(open.open(), (record(false), Glass::Whole), "{role:?}");
                let restricted = Seen::now(record(true), &caller).map(Seen::open);
                let expected = if breaks { Ok((record(true), Glass::Broken)) } else { Err(Restricted) };
                assert_eq!(restricted, expected, "{role:?} {reason:?}");
                // The newest version decides for the history.
                let past = |newest: bool| Seen::of_record(&record(newest), (), &caller).is_ok();
                assert_eq!((past(true), past(false)), (breaks, true), "{role:?} {reason:?}");
            }
        }
        assert!(Seen::listed(Patient::clone(&record(false))).is_some());
        assert!(Seen::listed(Patient::clone(&record(true))).is_none(), "not even by breaking the glass");
    }
}
