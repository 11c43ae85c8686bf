//! Lists: the patients found, their order, and that pages fit together.

use std::sync::Arc;

use time::macros::date;
use time::{Date, Duration};

use super::world::{Region, START, id};
use crate::domain::ids::PatientId;
use crate::domain::patient::{Patient, PatientEvent};
use crate::domain::search::{Filter, Key, PatientSearch, Place, Sort};
use crate::domain::text::search_key;
use crate::domain::time::Timestamp;
use crate::store::{Error, Store};

const ORDERS: [(Sort, bool); 8] = [
    (Sort::Created, false),
    (Sort::Created, true),
    (Sort::Name, false),
    (Sort::Name, true),
    (Sort::Born, false),
    (Sort::Born, true),
    (Sort::Registered, false),
    (Sort::Registered, true),
];

/// The patients of these tests: number, name, e-mail address. Days and times repeat.
const PEOPLE: [(u128, &str, &str); 12] = [
    (7, "Ada Lovelace", "ada@example.com"),
    (2, "ada byron", "byron@example.com"),
    (9, "\u{c1}da Nagy", "ada.nagy@example.com"),
    (4, "Grace Hopper", "hopper@example.com"),
    (1, "Grace Hopper", "grace@example.com"),
    (8, "Zo\u{eb} Ada", "Adam@example.com"),
    (3, "Bob", "zoe@example.com"),
    (6, "A\u{10ffff}", "last@example.com"),
    (5, "Ad", "x_ad%@example.com"),
    (10, "% wild _", "wild@example.com"),
    (11, "ad astra", "ad@astra.example"),
    (12, "Adb", "adb@example.com"),
];

fn day(n: u128, first: Date) -> Date {
    first + Duration::days(i64::try_from(n % 4).expect("small"))
}

/// Registers all of `PEOPLE`.
async fn people(region: &Region) -> Vec<Patient> {
    let mut all = Vec::new();
    for (n, name, email) in PEOPLE {
        let mut row = region.register(n, email);
        if let PatientEvent::Registered(patient) = &mut row.recorded.event {
            let patient = Arc::make_mut(patient);
            patient.created_at = Timestamp(START + i64::try_from(n % 3).expect("small"));
            patient.details.name = name.into();
            patient.details.date_of_birth = day(n, date!(1980 - 01 - 01));
            patient.details.registered_date = day(n / 2, date!(2020 - 01 - 01));
        }
        all.push(region.done(row).await);
    }
    all
}

/// Returns all patients of a list, read `limit_rows` at a time. No page may be larger.
async fn walk(store: &Arc<dyn Store>, search: &PatientSearch, limit_rows: u32) -> Vec<PatientId> {
    let mut search = PatientSearch { limit_rows, ..search.clone() };
    let mut seen = Vec::new();
    for _ in 0..1000 {
        let page = store.search(&search).await.expect("a page");
        assert!(page.patients.len() <= limit_rows as usize);
        seen.extend(page.patients.iter().map(|patient| patient.id));
        let last = page.patients.last().map(|last| search.place_of(last));
        let full = page.patients.len() == limit_rows as usize;
        let Some(next) = page.resume.or(last.filter(|_| full)) else { return seen };
        search.after = Some(next);
    }
    panic!("the pages lead in a circle");
}

fn in_order(mut patients: Vec<Patient>, sort: Sort, descending: bool) -> Vec<PatientId> {
    patients.sort_by_key(|patient| {
        let details = &patient.details;
        let text = if sort == Sort::Name { search_key(&details.name) } else { String::new() };
        let number = match sort {
            Sort::Created => patient.created_at.0,
            Sort::Name => 0,
            Sort::Born => details.date_of_birth.to_julian_day().into(),
            Sort::Registered => details.registered_date.to_julian_day().into(),
        };
        (text, number, patient.id)
    });
    if descending {
        patients.reverse();
    }
    patients.iter().map(|patient| patient.id).collect()
}

pub(super) async fn every_order_goes_page_by_page(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let mut all = people(&region).await;
    let gone = all.swap_remove(3);
    region.done(region.delete(&gone)).await;
    for (sort, descending) in ORDERS {
        let search = PatientSearch { sort, descending, ..PatientSearch::all(None, 0) };
        let expected = in_order(all.clone(), sort, descending);
        for limit_rows in [1, 3, 11, 12] {
            assert_eq!(
                walk(&store, &search, limit_rows).await,
                expected,
                "{sort:?} {descending} {limit_rows}"
            );
        }
        assert_eq!(store.search(&search).await.expect("a page").patients, [], "none are asked for");
    }
}

pub(super) async fn a_filter_finds_those_it_says(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let all = people(&region).await;
    let (first, last) = (date!(1980 - 01 - 01), date!(1980 - 01 - 04));
    let born = |after, before| (Filter::Born { after, before }, Sort::Born);
    for (filter, sort) in [
        born(Some(first), None),
        born(None, Some(last)),
        born(Some(first), Some(last)),
        born(Some(last), None),
        born(Some(last), Some(first)),
        (Filter::RegisteredAfter(date!(2020 - 01 - 02)), Sort::Registered),
    ] {
        let fits = |patient: &&Patient| match &filter {
            Filter::Born { after, before } => {
                let birth = patient.details.date_of_birth;
                after.is_none_or(|day| birth > day) && before.is_none_or(|day| birth < day)
            }
            _ => patient.details.registered_date > date!(2020 - 01 - 02),
        };
        let found: Vec<Patient> = all.iter().filter(fits).cloned().collect();
        for descending in [false, true] {
            let search =
                PatientSearch { filter: filter.clone(), sort, descending, ..PatientSearch::all(None, 0) };
            let expected = in_order(found.clone(), sort, descending);
            for limit_rows in [1, 2, 100] {
                assert_eq!(walk(&store, &search, limit_rows).await, expected, "{search:?}");
            }
        }
    }
    for (key, found) in [("adam@example.com", &[8][..]), ("adam@example.co", &[]), ("zoe@example.com", &[3])]
    {
        let search = PatientSearch { filter: Filter::Email(key.into()), ..PatientSearch::all(None, 0) };
        let expected: Vec<PatientId> = found.iter().map(|n| id(*n)).collect();
        assert_eq!(walk(&store, &search, 1).await, expected, "{key}");
        assert_eq!(walk(&store, &search, 10).await, expected, "{key}");
    }
    let broken = Place { key: Key::Text("x".into()), id: id(1) };
    let refused = store.search(&PatientSearch::all(Some(broken), 1)).await;
    assert!(matches!(refused, Err(Error::Broken(_))), "{refused:?}");
}

fn begins(prefix: &str) -> PatientSearch {
    let filter = Filter::Begins(search_key(prefix).into());
    PatientSearch { filter, sort: Sort::Name, ..PatientSearch::all(None, 0) }
}

pub(super) async fn who_begins_with_it_is_found_once(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let all = people(&region).await;
    for prefix in [
        "ada",
        "AD",
        "a",
        "g",
        "grace hopper",
        "z",
        "zo\u{eb}",
        "%",
        "_",
        "x_",
        "adb",
        "\u{e1}",
        "nobody",
        "ad@",
    ] {
        let search = begins(prefix);
        let key = search_key(prefix);
        let mut found: Vec<_> = all
            .iter()
            .filter_map(|patient| {
                let (name, email) = (search_key(&patient.details.name), patient.details.email_key());
                [name, email].into_iter().find(|text| text.starts_with(&key)).map(|text| (text, patient.id))
            })
            .collect();
        found.sort();
        let expected: Vec<PatientId> = found.into_iter().map(|(_, id)| id).collect();
        for limit_rows in [1, 2, 3, 100] {
            assert_eq!(walk(&store, &search, limit_rows).await, expected, "{prefix}, {limit_rows} at a time");
        }
    }
}

pub(super) async fn whose_name_begins_with_it_is_found_by_that_alone(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let all = people(&region).await;
    for prefix in ["ada", "AD", "a", "g", "grace hopper", "zo\u{eb}", "%", "\u{e1}", "nobody", "ad@"] {
        let key = search_key(prefix);
        let named = all.iter().map(|patient| (search_key(&patient.details.name), patient.id));
        let mut found: Vec<_> = named.filter(|(name, _)| name.starts_with(&key)).collect();
        found.sort();
        let expected: Vec<PatientId> = found.into_iter().map(|(_, id)| id).collect();
        let search = PatientSearch { filter: Filter::NameBegins(key.into()), ..begins(prefix) };
        for limit_rows in [1, 2, 100] {
            assert_eq!(walk(&store, &search, limit_rows).await, expected, "{prefix}, {limit_rows} at a time");
        }
    }
}

/// Patients found by name are found again by address. A page scans only a bounded number of them.
pub(super) async fn a_page_is_bounded_whatever_is_found_twice(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    for n in 1..=40 {
        let mut row = region.register(n, &format!("dup-{n}@example.com"));
        if let PatientEvent::Registered(patient) = &mut row.recorded.event {
            Arc::make_mut(patient).details.name = format!("Dup {n}").into();
        }
        region.done(row).await;
    }
    let search = begins("dup");
    for limit_rows in [1, 3, 40, 100] {
        let mut seen = walk(&store, &search, limit_rows).await;
        seen.sort();
        assert_eq!(seen, (1..=40).map(id).collect::<Vec<_>>(), "{limit_rows} at a time");
    }
    let after = Some(Place { key: Key::Text("dup!".into()), id: id(1) });
    let page = store.search(&PatientSearch { after, limit_rows: 1, ..search }).await.expect("a page");
    assert!(page.patients.is_empty() && page.resume.is_some(), "{page:?}");
}

pub(super) async fn pages_fit_together_whoever_comes_and_goes(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let all = people(&region).await;
    for (nth, (sort, descending)) in (1..).zip(ORDERS) {
        let mut search = PatientSearch { sort, descending, ..PatientSearch::all(None, 3) };
        let mut seen = Vec::new();
        let mut n = 100 * nth;
        loop {
            let page = store.search(&search).await.expect("a page").patients;
            seen.extend(page.iter().map(|patient| patient.id));
            let Some(last) = page.last() else { break };
            search.after = Some(search.place_of(last));
            // One patient is added at the place where the page ended, and one of the page is deleted.
            for copied in [last, &page[0]] {
                n += 1;
                let mut row = region.register(n, &format!("new-{n}@example.com"));
                if let PatientEvent::Registered(patient) = &mut row.recorded.event {
                    let email = patient.details.email.clone();
                    let patient = Arc::make_mut(patient);
                    (patient.created_at, patient.details) = (copied.created_at, copied.details.clone());
                    patient.details.email = email;
                }
                let come = region.done(row).await;
                if seen.len() > 6 {
                    region.done(region.delete(&come)).await;
                }
            }
            assert!(seen.len() < 1000, "who comes is found for ever");
        }
        let old: Vec<PatientId> = seen.iter().copied().filter(|id| id.0.as_u128() < 100).collect();
        assert_eq!(old, in_order(all.clone(), sort, descending), "{sort:?} {descending}");
        let mut once = seen.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), seen.len(), "nobody is seen twice");
    }
}
