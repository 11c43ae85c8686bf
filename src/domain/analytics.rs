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
    /// Living patients.
    pub living: i64,
    /// Living patients who were born on each day asked for or before it, the earliest day first.
    pub born_by: Vec<(Date, i64)>,
}

/// The ages that are counted together: the first and last year of age of a band, both included. Each band begins where
/// the one before it ends, and the first begins with birth.
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

/// The last date of birth of those who are at least `age` years old on `today`.
pub fn latest_birth(age: i32, today: Date) -> Date {
    let in_year = |day| Date::from_calendar_date(today.year() - age, today.month(), day);
    // On 29 February those are as old who were born on the 28th of a common year.
    in_year(today.day()).or_else(|_| in_year(today.day() - 1)).unwrap_or(Date::MIN)
}

/// The days that `Counts::born_by` is asked for on `today`: for each band of `AGE_BANDS` but the first, the last date
/// of birth of those who are old enough for it.
pub fn band_births(today: Date) -> Vec<Date> {
    AGE_BANDS.iter().skip(1).map(|(_, from, _)| latest_birth(*from, today)).collect()
}

/// The summary of `counts` on `today`, asked for with the days of `band_births(today)`.
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
            // One is 18 today, one will be tomorrow, and one was born in 1940.
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
