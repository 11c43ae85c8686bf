//! What is counted of the events, and how the counts read.

use ::time::Date;

use super::event::EventType;
use super::ids::{PatientId, Version};
use super::time::Timestamp;

/// What the projection needs of a published event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Whom it concerns.
    pub patient_id: PatientId,
    /// The patient's version after it: what makes a repeat known as one.
    pub version: Version,
    /// What happened.
    pub event_type: EventType,
    /// When it happened; a registration counts on this UTC day.
    pub at: Timestamp,
    /// The date of birth after it. None for a deletion.
    pub date_of_birth: Option<Date>,
}

/// The counts as they are stored, before they are put into bands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// How many events of each type have been counted, each once.
    pub by_event_type: Vec<(EventType, i64)>,
    /// Registrations on each day asked for that had any, oldest first.
    pub registrations: Vec<(Date, i64)>,
    /// Living patients by date of birth.
    pub births: Vec<(Date, i64)>,
}

/// The ages that are counted together: the first and last year of age of a band, both included.
pub const AGE_BANDS: [(&str, i32, i32); 6] = [
    ("0-17", 0, 17),
    ("18-34", 18, 34),
    ("35-49", 35, 49),
    ("50-64", 50, 64),
    ("65-79", 65, 79),
    ("80+", 80, i32::MAX),
];

/// How many days `registrationsByDay` covers, today included.
pub const REGISTRATION_DAYS: i64 = 30;

/// The summary as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Created less deleted.
    pub total_patients: i64,
    /// Every type, zeros included.
    pub by_event_type: Vec<(EventType, i64)>,
    /// Every one of the last `REGISTRATION_DAYS` days, zeros included, oldest first.
    pub registrations_by_day: Vec<(Date, i64)>,
    /// Every band of `AGE_BANDS`, zeros included.
    pub age_bands: Vec<(&'static str, i64)>,
}

/// Completed years between `birth` and `today`, as people count them: a birthday on 29 February is
/// kept on 1 March in a common year. Never negative.
pub fn age_on(birth: Date, today: Date) -> i32 {
    let had_birthday = (u8::from(today.month()), today.day()) >= (u8::from(birth.month()), birth.day());
    (today.year() - birth.year() - i32::from(!had_birthday)).max(0)
}

/// The summary of `counts` on `today`.
pub fn summarize(counts: &Counts, today: Date) -> Summary {
    let count_of =
        |event_type| counts.by_event_type.iter().find(|(t, _)| *t == event_type).map_or(0, |(_, n)| *n);
    let first_day = today - ::time::Duration::days(REGISTRATION_DAYS - 1);
    let registrations_by_day = (0..REGISTRATION_DAYS)
        .map(|n| {
            let day = first_day + ::time::Duration::days(n);
            (day, counts.registrations.iter().find(|(d, _)| *d == day).map_or(0, |(_, n)| *n))
        })
        .collect();
    let age_bands = AGE_BANDS
        .into_iter()
        .map(|(name, from, to)| {
            let in_band = |birth: Date| (from..=to).contains(&age_on(birth, today));
            (name, counts.births.iter().filter(|(birth, _)| in_band(*birth)).map(|(_, n)| n).sum())
        })
        .collect();
    Summary {
        total_patients: count_of(EventType::Created) - count_of(EventType::Deleted),
        by_event_type: EventType::ALL.into_iter().map(|t| (t, count_of(t))).collect(),
        registrations_by_day,
        age_bands,
    }
}

#[cfg(test)]
mod tests {
    use ::time::macros::date;

    use super::*;

    #[test]
    fn age_changes_on_the_birthday() {
        assert_eq!(age_on(date!(2000 - 06 - 15), date!(2018 - 06 - 14)), 17);
        assert_eq!(age_on(date!(2000 - 06 - 15), date!(2018 - 06 - 15)), 18);
        assert_eq!(age_on(date!(2000 - 02 - 29), date!(2018 - 02 - 28)), 17);
        assert_eq!(age_on(date!(2000 - 02 - 29), date!(2018 - 03 - 01)), 18);
        assert_eq!(age_on(date!(2030 - 01 - 01), date!(2018 - 03 - 01)), 0);
    }

    #[test]
    fn summary_shows_zeros_and_drops_what_is_too_old() {
        let today = date!(2026 - 03 - 31);
        let counts = Counts {
            by_event_type: vec![(EventType::Created, 5), (EventType::Deleted, 2)],
            registrations: vec![(date!(2026 - 03 - 01), 9), (date!(2026 - 03 - 02), 1), (today, 4)],
            births: vec![(date!(2008 - 03 - 31), 1), (date!(2008 - 04 - 01), 1), (date!(1940 - 01 - 01), 1)],
        };
        let summary = summarize(&counts, today);
        assert_eq!(summary.total_patients, 3);
        assert_eq!(summary.by_event_type[1], (EventType::Updated, 0));
        assert_eq!(summary.registrations_by_day.len(), 30);
        assert_eq!(summary.registrations_by_day[0], (date!(2026 - 03 - 02), 1));
        assert_eq!(summary.registrations_by_day[29], (today, 4));
        assert_eq!(
            summary.age_bands,
            vec![("0-17", 1), ("18-34", 1), ("35-49", 0), ("50-64", 0), ("65-79", 0), ("80+", 1)]
        );
    }
}
