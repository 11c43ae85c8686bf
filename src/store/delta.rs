//! The arithmetic of the analytics projection that both databases share: computes the effect of a batch of
//! observations.
//!
//! Invariant: each version of a patient counts once, in whatever order the versions arrive. Kafka keeps the
//! order only within a partition. A patient's events lie in several partitions after partitions were added,
//! and a later event may precede an earlier one that is published again. The newest version decides the
//! patient's date of birth.

use std::collections::{BTreeMap, HashMap};

use time::Date;

use super::{Applied, Error, Result};
use crate::domain::analytics::Observation;
use crate::domain::event::EventType;
use crate::domain::ids::{PatientId, Version};

/// Maximum number of versions of one patient that are counted ahead of a missing version. With one more, the
/// missing versions are given up: an event that no broker holds any more must not make the row grow for ever.
pub(super) const AHEAD_VERSIONS_MAX: usize = 64;

/// The state of a patient in the projection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// All versions up to this one are counted or given up.
    pub(super) version: Version,
    /// Counted versions beyond `version + 1`, in ascending order.
    ahead: Vec<Version>,
    /// The date of birth by the newest counted version; `None` once the patient is deleted.
    pub(super) date_of_birth: Option<Date>,
}

impl Known {
    /// Builds the state from the columns of a row.
    ///
    /// # Errors
    /// `Broken` if `ahead` is not a list of versions.
    pub(super) fn of(version: Version, ahead: Option<&str>, date_of_birth: Option<Date>) -> Result<Known> {
        let ahead = ahead.map(serde_json::from_str).transpose();
        let broken = |_| Error::Broken("projection_patients.ahead is not a list of versions".to_owned());
        Ok(Known { version, ahead: ahead.map_err(broken)?.unwrap_or_default(), date_of_birth })
    }

    /// The column `ahead`: a JSON list, or null if it is empty.
    pub(super) fn ahead(&self) -> Option<String> {
        let list =
            || format!("[{}]", self.ahead.iter().map(Version::to_string).collect::<Vec<_>>().join(","));
        (!self.ahead.is_empty()).then(list)
    }

    fn newest(&self) -> Version {
        self.ahead.last().copied().unwrap_or(self.version).max(self.version)
    }

    /// Counts `version`. Returns how many other versions are given up, or `None` if `version` was counted
    /// before.
    fn count(&mut self, version: Version) -> Option<u64> {
        if version <= self.version {
            return None;
        }
        let Err(place) = self.ahead.binary_search(&version) else { return None };
        self.ahead.insert(place, version);
        let mut given_up = 0;
        if self.ahead.len() > AHEAD_VERSIONS_MAX {
            given_up = self.ahead[0].abs_diff(self.version) - 1;
            self.version = self.ahead[0] - 1;
        }
        let joined = (1..).zip(&self.ahead).take_while(|(n, v)| **v - n == self.version).count();
        self.version = self.ahead.drain(..joined).next_back().unwrap_or(self.version);
        Some(given_up)
    }
}

/// Amounts to add to the stored counts, sorted by key so that concurrent transactions take their locks in the
/// same order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Delta {
    pub(super) patients: BTreeMap<PatientId, Known>,
    pub(super) event_types: BTreeMap<i16, i64>,
    pub(super) registrations: BTreeMap<Date, i64>,
    pub(super) births: BTreeMap<Date, i64>,
    pub(super) applied: Applied,
}

/// Computes the effect of `observations`, given the `known` state of their patients.
pub(super) fn delta(known: &HashMap<PatientId, Known>, observations: &[Observation]) -> Delta {
    let mut delta = Delta::default();
    for observation in observations {
        let id = observation.patient_id;
        let before = || known.get(&id).cloned().unwrap_or_default();
        let patient = delta.patients.entry(id).or_insert_with(before);
        let newest = patient.newest();
        let Some(given_up) = patient.count(observation.version) else {
            delta.applied.repeated += 1;
            continue;
        };
        delta.applied.given_up += given_up;
        delta.applied.counted += 1;
        *delta.event_types.entry(observation.event_type.code()).or_default() += 1;
        if observation.event_type == EventType::Created {
            *delta.registrations.entry(observation.at.date()).or_default() += 1;
        }
        if observation.version > newest && patient.date_of_birth != observation.date_of_birth {
            let born_before = std::mem::replace(&mut patient.date_of_birth, observation.date_of_birth);
            for (birth, n) in [(born_before, -1), (observation.date_of_birth, 1)] {
                if let Some(birth) = birth {
                    *delta.births.entry(birth).or_default() += n;
                }
            }
        }
    }
    delta.patients.retain(|id, patient| known.get(id) != Some(patient));
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
        assert_eq!(delta.applied, Applied { counted: 3, repeated: 2, given_up: 0 });
        assert_eq!(delta.births, BTreeMap::new());
        assert_eq!(delta.event_types, BTreeMap::from([(1, 1), (2, 1), (3, 1)]));
        assert_eq!(delta.registrations, BTreeMap::from([(date!(1970 - 01 - 01), 1)]));
    }

    #[test]
    fn what_is_known_already_counts_against() {
        let (old, new) = (date!(1990 - 01 - 01), date!(1991 - 01 - 01));
        let id = PatientId(Uuid::from_u128(1));
        let known = HashMap::from([(id, Known::of(4, None, Some(old)).expect("a row"))]);
        let batch = [seen(4, EventType::Updated, Some(new)), seen(5, EventType::Updated, Some(new))];
        let delta = delta(&known, &batch);
        assert_eq!(delta.applied, Applied { counted: 1, repeated: 1, given_up: 0 });
        assert_eq!(delta.births, BTreeMap::from([(old, -1), (new, 1)]));
    }

    /// All 24 permutations of four items.
    fn orders() -> impl Iterator<Item = [usize; 4]> {
        let all = (0..256).map(|n| [n & 3, n >> 2 & 3, n >> 4 & 3, n >> 6]);
        all.filter(|order| (0..4).all(|n| order.contains(&n)))
    }

    /// Every order of a patient's versions, split into two batches at any point, gives the same counts.
    #[test]
    fn the_order_of_versions_changes_no_count() {
        let (old, new) = (date!(1990 - 01 - 01), date!(1991 - 01 - 01));
        let life = [
            seen(1, EventType::Created, Some(old)),
            seen(2, EventType::Updated, Some(new)),
            seen(3, EventType::Updated, Some(old)),
            seen(4, EventType::Updated, Some(new)),
        ];
        let id = PatientId(Uuid::from_u128(1));
        for order in orders() {
            let life: Vec<_> = order.iter().map(|n| life[*n].clone()).collect();
            for cut in 0..=4 {
                let (mut known, mut births, mut applied) = (HashMap::new(), BTreeMap::new(), Vec::new());
                for batch in [&life[..cut], &life[cut..], &life[..]] {
                    let delta = delta(&known, batch);
                    for (birth, n) in delta.births {
                        *births.entry(birth).or_insert(0) += n;
                    }
                    applied.push(delta.applied.counted);
                    for (id, patient) in delta.patients {
                        let row =
                            Known::of(patient.version, patient.ahead().as_deref(), patient.date_of_birth);
                        known.insert(id, row.expect("a row"));
                    }
                }
                births.retain(|_, n| *n != 0);
                let counted = [cut as u64, 4 - cut as u64, 0];
                assert_eq!(
                    (applied, births),
                    (counted.to_vec(), BTreeMap::from([(new, 1)])),
                    "{order:?}, {cut}"
                );
                assert_eq!(known[&id], Known::of(4, None, Some(new)).expect("a row"), "{order:?}, {cut}");
            }
        }
    }

    #[test]
    fn what_never_comes_is_given_up_once_too_many_versions_are_ahead_of_it() {
        let first = 3;
        let max = i64::try_from(AHEAD_VERSIONS_MAX).expect("small");
        // Two versions are missing before the first, and one before each of the others.
        let versions: Vec<_> = (0..=max).map(|n| first + 2 * n).collect();
        let all: Vec<_> = versions.iter().map(|v| seen(*v, EventType::Updated, None)).collect();
        let full = delta(&HashMap::new(), &all[..AHEAD_VERSIONS_MAX]);
        assert_eq!(full.applied, Applied { counted: max.unsigned_abs(), repeated: 0, given_up: 0 });
        let known: HashMap<_, _> = full.patients.into_iter().collect();
        let more = delta(&known, &all[AHEAD_VERSIONS_MAX..]);
        assert_eq!(more.applied, Applied { counted: 1, repeated: 0, given_up: 2 });
        let patient = &more.patients[&PatientId(Uuid::from_u128(1))];
        assert_eq!((patient.version, patient.ahead.len()), (first, AHEAD_VERSIONS_MAX));
        let late = delta(&more.patients.into_iter().collect(), &[seen(2, EventType::Updated, None)]);
        assert_eq!(late.applied, Applied { counted: 0, repeated: 1, given_up: 0 });
    }

    #[test]
    fn the_largest_version_there_can_be_is_counted_once() {
        let last = [seen(Version::MAX, EventType::Updated, None)];
        let first = delta(&HashMap::new(), &last);
        assert_eq!(first.applied.counted, 1);
        let again = delta(&first.patients.into_iter().collect(), &last);
        assert_eq!(again.applied.repeated, 1);
    }
}
