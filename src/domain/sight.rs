//! What a caller may see of a record. Whether a record is restricted is judged here and in `patient::decide`, and
//! nowhere else: the handles of the actors give records out as `Seen`, and an edge makes answers of nothing else.

use std::sync::Arc;

use super::access::Caller;
use super::patient::Patient;

/// The record is restricted, and the caller may not see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restricted;

/// What it took to see a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glass {
    /// Nothing: the record is not restricted.
    Whole,
    /// The caller's reason, which is to be audited: the record is restricted.
    Broken,
}

/// A record, or something of its past, that the caller who asked for it may see. Only the functions here make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<T> {
    what: T,
    glass: Glass,
}

impl<T> Seen<T> {
    /// `what` is known of the record whose newest version is `newest`, be it that of its end. Earlier versions are
    /// judged by the newest one too: who may not see a restricted record sees none of its past.
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

    /// What is seen, and what it took.
    pub fn open(self) -> (T, Glass) {
        (self.what, self.glass)
    }
}

impl Seen<Arc<Patient>> {
    /// `patient`, as it is now.
    ///
    /// # Errors
    /// As `of_record`.
    pub fn now(patient: Arc<Patient>, caller: &Caller) -> Result<Self, Restricted> {
        let newest = Arc::clone(&patient);
        Seen::of_record(&newest, patient, caller)
    }
}

impl Seen<Patient> {
    /// `patient` as a list shows it: no list shows a restricted record to anybody.
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
                // The past is judged by the present.
                let past = |newest: bool| Seen::of_record(&record(newest), (), &caller).is_ok();
                assert_eq!((past(true), past(false)), (breaks, true), "{role:?} {reason:?}");
            }
        }
        assert!(Seen::listed(Patient::clone(&record(false))).is_some());
        assert!(Seen::listed(Patient::clone(&record(true))).is_none(), "not even by breaking the glass");
    }
}
