//! The counts of events, and the summary computed from them.

use ::time::Date;

use super::event::EventType;
use super::ids::{PatientId, Version};
use super::time::Timestamp;

/// The data of a published event that the projection needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The patient.
    pub patient_id: PatientId,
    /// The patient's version after the event, by which a repeat is recognized.
    pub version: Version,
    /// The type of the event.
    pub event_type: EventType,
    /// When the event was decided. A registration counts on this UTC day.
    pub at: Timestamp,
    /// The date of birth after the event. `None` for a deletion.
    pub date_of_birth: Option<Date>,
}

/// The stored counts, before they are grouped into age bands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The number of events of each type.
    pub by_event_type: Vec<(EventType, i64)>,
    /// Registrations per requested day, oldest first. Days without registrations are left out.
    pub registrations: Vec<(Date, i64)>,
    /// The number of patients that are not deleted.
    pub living: i64,
    /// For each requested day, earliest first, the number of such patients born on or before it.
    pub born_by: Vec<(Date, i64)>,
}

/// The age bands: name, first and last year of age, both included. Each band begins where the previous one
/// ends, and the first begins at birth.
pub const AGE_BANDS: [(&str, i32, i32); 6] = [
    ("0-17", 0, 17),
    ("18-34", 18, 34),
    ("35-49", 35, 49),
    ("50-64", 50, 64),
    ("65-79", 65, 79),
    ("80+", 80, i32::MAX),
];

/// The number of days that `registrationsByDay` covers, today included.
pub const REGISTRATION_DAYS: i64 = 30;

/// The summary shown to callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Registrations minus deletions.
    pub total_patients: i64,
    /// Events of every type, zeros included.
    pub by_event_type: Vec<(EventType, i64)>,
    /// Registrations on each of the last `REGISTRATION_DAYS` days, zeros included, oldest first.
    pub registrations_by_day: Vec<(Date, i64)>,
    /// Patients in every band of `AGE_BANDS`, zeros included.
    pub age_bands: Vec<(&'static str, i64)>,
}

/// Returns the completed years between `birth` and `today`. A birthday on 29 February counts as 1 March in a
/// common year. Never negative.
pub fn age_on(birth: Date, today: Date) -> i32 {
    let had_birthday = (u8::from(today.month()), today.day()) >= (u8::from(birth.month()), birth.day());
    (today.year() - birth.year() - i32::from(!had_birthday)).max(0)
}

/// Returns the latest date of birth of a person who is at least `age` years old on `today`.
pub fn latest_birth(age: i32, today: Date) -> Date {
    let in_year = |day| Date::from_calendar_date(today.year() - age, today.month(), day);
    // If `today` is 29 February and the year of birth is a common year, the latest date is the 28th.
    in_year(today.day()).or_else(|_| in_year(today.day() - 1)).unwrap_or(Date::MIN)
}

/// Returns the days for which `Counts::born_by` is requested on `today`: for each band of `AGE_BANDS` except
/// the first, the latest date of birth that is old enough for it.
pub fn band_births(today: Date) -> Vec<Date> {
    AGE_BANDS.iter().skip(1).map(|(_, from, _)| latest_birth(*from, today)).collect()
}

/// Returns the summary of `counts` on `today`. The counts must be for the days of `band_births(today)`.
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
    let old_enough = |from: i32| match from {
        0 => counts.living,
        from => {
            let day = latest_birth(from, today);
            counts.born_by.iter().find(|(born_by, _)| *born_by == day).map_or(0, |(_, n)| *n)
        }
    };
    let age_bands = AGE_BANDS
        .into_iter()
        .map(|(name, from, to)| {
            let older = to.checked_add(1).map_or(0, old_enough);
            (name, old_enough(from) - older)
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
    fn the_latest_birth_of_an_age_is_the_last_day_that_gives_it() {
        let mut today = date!(2023 - 12 - 25);
        while today < date!(2028 - 03 - 05) {
            for age in [1, 18, 35, 50, 65, 80, 100] {
                let birth = latest_birth(age, today);
                let next = birth.next_day().expect("a day");
                assert!(
                    age_on(birth, today) >= age && age_on(next, today) < age,
                    "{age} on {today}: {birth}"
                );
            }
            today = today.next_day().expect("a day");
        }
    }

    #[test]
    fn summary_shows_zeros_and_drops_what_is_too_old() {
        let today = date!(2026 - 03 - 31);
        let counts = Counts {
            by_event_type: vec![(EventType::Created, 5), (EventType::Deleted, 2)],
            registrations: vec![(date!(2026 - 03 - 01), 9), (date!(2026 - 03 - 02), 1), (today, 4)],
            living: 3,
            // One patient turns 18 today, one turns 18 tomorrow, and one was born in 1940.
            born_by: band_births(today).into_iter().zip([2, 1, 1, 1, 1]).collect(),
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
