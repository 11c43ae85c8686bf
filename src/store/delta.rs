//! What a batch of observations changes in the analytics projection: the arithmetic that both
//! databases share.
//!
//! Invariant: an observation counts if its version is greater than the last one counted of its
//! patient, and then exactly once.

use std::collections::{BTreeMap, HashMap};

use time::Date;

use super::Applied;
use crate::domain::analytics::Observation;
use crate::domain::event::EventType;
use crate::domain::ids::{PatientId, Version};

/// What the projection knows of a patient: the last version counted, and the date of birth while the
/// patient lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) version: Version,
    pub(super) date_of_birth: Option<Date>,
}

/// What has to be added to the stored counts, in the order of keys so that concurrent transactions
/// take their locks in one order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    pub(super) patients: BTreeMap<PatientId, Known>,
    pub(super) event_types: BTreeMap<i16, i64>,
    pub(super) registrations: BTreeMap<Date, i64>,
    pub(super) births: BTreeMap<Date, i64>,
    pub(super) applied: Applied,
}

/// What `observations` change, given what is `known` of their patients.
pub(super) fn delta(known: &HashMap<PatientId, Known>, observations: &[Observation]) -> Delta {
    let mut delta = Delta::default();
    for observation in observations {
        let id = observation.patient_id;
        let before = delta.patients.get(&id).or_else(|| known.get(&id)).copied();
        if before.is_some_and(|known| known.version >= observation.version) {
            delta.applied.repeated += 1;
            continue;
        }
        delta.applied.counted += 1;
        *delta.event_types.entry(observation.event_type.code()).or_default() += 1;
        if observation.event_type == EventType::Created {
            *delta.registrations.entry(observation.at.date()).or_default() += 1;
        }
        let born_before = before.and_then(|known| known.date_of_birth);
        if born_before != observation.date_of_birth {
            if let Some(birth) = born_before {
                *delta.births.entry(birth).or_default() -= 1;
            }
            if let Some(birth) = observation.date_of_birth {
                *delta.births.entry(birth).or_default() += 1;
            }
        }
        let now = Known { version: observation.version, date_of_birth: observation.date_of_birth };
        delta.patients.insert(id, now);
    }
    delta.births.retain(|_, n| *n != 0);
    delta
}

#[cfg(test)]
mod tests {
    use time::macros::date;
    use uuid::Uuid;

    use super::*;
    use crate::domain::time::Timestamp;

    fn seen(version: Version, event_type: EventType, birth: Option<Date>) -> Observation {
        Observation {
            patient_id: PatientId(Uuid::from_u128(1)),
            version,
            event_type,
            at: Timestamp(0),
            date_of_birth: birth,
        }
    }

    #[test]
    fn a_life_leaves_no_birth_behind_and_repeats_have_no_effect() {
        let (old, new) = (date!(1990 - 01 - 01), date!(1991 - 01 - 01));
        let life = [
            seen(1, EventType::Created, Some(old)),
            seen(1, EventType::Created, Some(old)),
            seen(2, EventType::Updated, Some(new)),
            seen(3, EventType::Deleted, None),
            seen(2, EventType::Updated, Some(new)),
        ];
        let delta = delta(&HashMap::new(), &life);
        assert_eq!(delta.applied, Applied { counted: 3, repeated: 2 });
        assert_eq!(delta.births, BTreeMap::new());
        assert_eq!(delta.event_types, BTreeMap::from([(1, 1), (2, 1), (3, 1)]));
        assert_eq!(delta.registrations, BTreeMap::from([(date!(1970 - 01 - 01), 1)]));
    }

    #[test]
    fn what_is_known_already_counts_against() {
        let (old, new) = (date!(1990 - 01 - 01), date!(1991 - 01 - 01));
        let id = PatientId(Uuid::from_u128(1));
        let known = HashMap::from([(id, Known { version: 4, date_of_birth: Some(old) })]);
        let batch = [seen(4, EventType::Updated, Some(new)), seen(5, EventType::Updated, Some(new))];
        let delta = delta(&known, &batch);
        assert_eq!(delta.applied, Applied { counted: 1, repeated: 1 });
        assert_eq!(delta.births, BTreeMap::from([(old, -1), (new, 1)]));
    }
}
