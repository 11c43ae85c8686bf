//! Builds a page of a list from scans of one index each. Both databases scan with the same statements.
//!
//! Invariant: a scan reads its index in order and stops at its limit, whatever the table holds.

use std::ops::ControlFlow;

use async_trait::async_trait;
use time::Date;
use time::macros::date;
use uuid::Uuid;

use super::{Error, Result};
use crate::domain::ids::PatientId;
use crate::domain::patient::Patient;
use crate::domain::search::{Filter, Key, PatientPage, PatientSearch, Place, Sort};
use crate::domain::text::{LAST, prefix_end, search_key};

/// Maximum number of rounds of a search by the beginning of names and addresses, when too few of the found
/// patients are new. After that the page is returned incomplete, with a position to resume from.
const ROUNDS_MAX: usize = 8;

/// Number of rows without a key that are filled in at a time.
pub(super) const KEYED_AT_ONCE: u32 = 500;

/// Logs that keys of e-mail addresses could not be converted because another row has the same key.
pub(super) fn warn_of_taken(what: &'static str, taken: u64) {
    if taken > 0 {
        tracing::warn!(
            target: "hygeia::store",
            taken,
            "{what} have the e-mail address of another, written in another way: give them other addresses"
        );
    }
}

/// Bounds outside of all days that a record may have.
const FIRST_DAY: Date = date!(0000 - 01 - 01);
const LAST_DAY: Date = date!(9999 - 12 - 31);

/// A range of an index between two positions, both exclusive.
pub(super) struct Span<K> {
    pub(super) lower: (K, Uuid),
    pub(super) upper: (K, Uuid),
    pub(super) descending: bool,
    pub(super) limit_rows: u32,
}

/// An index and the range to read from it.
pub(super) enum Scan {
    Created(Span<i64>),
    Name(Span<String>),
    Birth(Span<Date>),
    Registered(Span<Date>),
    /// The addresses of patients that are not deleted; never descending.
    Email(Span<String>),
}

/// The SQL of a scan, which leaves restricted records out. `$1` to `$4` are the two positions, `$5` is the
/// limit.
macro_rules! scan_sql {
    ($living:literal, $key:literal, $order:literal) => {
        concat!(
            "SELECT id, version, created_at, name, email, address, date_of_birth, registered_date, restricted \
             FROM patients WHERE ",
            $living,
            " AND (",
            $key,
            ", id) > ($1, $2) AND (",
            $key,
            ", id) < ($3, $4) ORDER BY ",
            $key,
            " ",
            $order,
            ", id ",
            $order,
            " LIMIT $5"
        )
    };
    ($living:literal, $key:literal, by $descending:expr) => {
        if $descending { scan_sql!($living, $key, "DESC") } else { scan_sql!($living, $key, "ASC") }
    };
}

/// The SQL of `Scan::Email`. An address is unique, so the id adds nothing to the order.
pub(super) const SCAN_EMAILS: &str = "
SELECT p.id, p.version, p.created_at, p.name, p.email, p.address, p.date_of_birth, p.registered_date,
    p.restricted
FROM patient_emails e JOIN patients p ON p.id = e.patient_id
WHERE (e.email_key, e.patient_id) > ($1, $2) AND (e.email_key, e.patient_id) < ($3, $4)
    AND NOT p.restricted
ORDER BY e.email_key LIMIT $5";

impl Scan {
    /// The SQL of this scan; `$living` selects patients that are neither deleted nor restricted.
    pub(super) fn sql(&self, dialect: Dialect) -> &'static str {
        macro_rules! of {
            ($living:literal) => {
                match self {
                    Scan::Created(span) => scan_sql!($living, "created_at", by span.descending),
                    Scan::Name(span) => scan_sql!($living, "name_key", by span.descending),
                    Scan::Birth(span) => scan_sql!($living, "date_of_birth", by span.descending),
                    Scan::Registered(span) => scan_sql!($living, "registered_date", by span.descending),
                    Scan::Email(_) => SCAN_EMAILS,
                }
            };
        }
        match dialect {
            Dialect::Postgres => of!("NOT deleted AND NOT restricted"),
            Dialect::Sqlite => of!("deleted = 0 AND restricted = 0"),
        }
    }
}

/// The SQL dialect: how a database writes the condition of its partial indexes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dialect {
    Postgres,
    Sqlite,
}

/// A database that can scan.
#[async_trait]
pub(super) trait Scans: Sync {
    /// Returns the patients of `scan` that are neither deleted nor restricted, in the scan's order.
    async fn scan(&self, scan: Scan) -> Result<Vec<Patient>>;
}

/// Returns the page that `search` asks for.
///
/// # Errors
/// The errors of a scan. `Broken`: the position in `search` belongs to another sort order.
pub(super) async fn search(database: &impl Scans, search: &PatientSearch) -> Result<PatientPage> {
    if let Filter::Begins(prefix) = &search.filter {
        return begins(database, prefix, search).await;
    }
    let patients = database.scan(scan_of(search)?).await?;
    Ok(PatientPage { patients, resume: None })
}

fn scan_of(search: &PatientSearch) -> Result<Scan> {
    let PatientSearch { filter, sort, after, limit_rows, .. } = search;
    let after = after.as_ref();
    let scan = match (filter, sort) {
        (Filter::Email(key), _) => {
            let (lower, upper) = ((key.to_string(), Uuid::nil()), (key.to_string(), Uuid::max()));
            // An address has at most one patient, so nothing follows a position.
            let limit_rows = if after.is_some() { 0 } else { *limit_rows };
            return Ok(Scan::Email(Span { lower, upper, descending: false, limit_rows }));
        }
        (Filter::NameBegins(prefix), _) => {
            let end = prefix_end(prefix).unwrap_or_else(|| LAST.to_string());
            let after = after.map(|place| (place, text_of(&place.key)));
            let mut span = span(search, (prefix.to_string(), end), after)?;
            // A name equal to the end itself does not begin with the prefix.
            span.upper.1 = Uuid::nil();
            Scan::Name(span)
        }
        (_, Sort::Created) => {
            let time = |key: &Key| if let Key::Time(time) = key { Some(time.0) } else { None };
            Scan::Created(span(search, (i64::MIN, i64::MAX), after.map(|p| (p, time(&p.key))))?)
        }
        (_, Sort::Name) => {
            let (first, last) = (String::new(), LAST.to_string());
            Scan::Name(span(search, (first, last), after.map(|p| (p, text_of(&p.key))))?)
        }
        (_, Sort::Born) => Scan::Birth(days(search, after)?),
        (_, Sort::Registered) => Scan::Registered(days(search, after)?),
    };
    Ok(scan)
}

fn text_of(key: &Key) -> Option<String> {
    if let Key::Text(text) = key { Some(text.to_string()) } else { None }
}

/// The range of an index from the `first` to the `last` key, or what remains of it behind `after`.
fn span<K>(
    search: &PatientSearch,
    (first, last): (K, K),
    after: Option<(&Place, Option<K>)>,
) -> Result<Span<K>> {
    let (descending, limit_rows) = (search.descending, search.limit_rows);
    let mut span = Span { lower: (first, Uuid::nil()), upper: (last, Uuid::max()), descending, limit_rows };
    if let Some((place, key)) = after {
        let key = key.ok_or_else(|| Error::Broken("a place of another order".to_owned()))?;
        let end = if descending { &mut span.upper } else { &mut span.lower };
        *end = (key, place.id.0);
    }
    Ok(span)
}

fn days(search: &PatientSearch, after: Option<&Place>) -> Result<Span<Date>> {
    let day = |key: &Key| if let Key::Day(day) = key { Some(*day) } else { None };
    let (from, to) = match search.filter {
        Filter::Born { after, before } => (after, before),
        Filter::RegisteredAfter(after) => (Some(after), None),
        _ => (None, None),
    };
    let mut whole = span(search, (FIRST_DAY, LAST_DAY), None)?;
    // The bounds are exclusive: patients of the day itself are left out.
    whole.lower = from.map_or(whole.lower, |day| (day, Uuid::max()));
    whole.upper = to.map_or(whole.upper, |day| (day, Uuid::nil()));
    if let Some(place) = after {
        let left = span(search, (FIRST_DAY, LAST_DAY), Some((place, day(&place.key))))?;
        whole.lower = whole.lower.max(left.lower);
        whole.upper = whole.upper.min(left.upper);
    }
    Ok(whole)
}

/// Returns patients whose name or address begins with `prefix`, in the order of the matching text: two index
/// scans, merged. A patient found by both scans is listed by name only, so that no patient is listed twice.
async fn begins(database: &impl Scans, prefix: &str, search: &PatientSearch) -> Result<PatientPage> {
    let limit = search.limit_rows as usize;
    let end = prefix_end(prefix).unwrap_or_else(|| LAST.to_string());
    let mut after = match &search.after {
        None => (prefix.to_owned(), Uuid::nil()),
        Some(place) => {
            let key =
                text_of(&place.key).ok_or_else(|| Error::Broken("a place of another order".to_owned()))?;
            (key, place.id.0)
        }
    };
    let mut found = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let span = || Span {
            lower: after.clone(),
            upper: (end.clone(), Uuid::nil()),
            descending: false,
            limit_rows: search.limit_rows,
        };
        let names = database.scan(Scan::Name(span())).await?;
        let emails = database.scan(Scan::Email(span())).await?;
        match merge(prefix, (names, emails), limit, &mut found) {
            ControlFlow::Continue(horizon) if found.len() < limit => after = horizon,
            _ => return Ok(PatientPage { patients: found, resume: None }),
        }
    }
    let (key, id) = after;
    let resume = Place { key: Key::Text(key.into()), id: PatientId(id) };
    Ok(PatientPage { patients: found, resume: Some(resume) })
}

/// Merges two scans of the same range, each of at most `limit` rows, into `found`, up to `limit`. `Continue`
/// holds the position up to which the merge is complete, if more rows may follow.
fn merge(
    prefix: &str,
    (names, emails): (Vec<Patient>, Vec<Patient>),
    limit: usize,
    found: &mut Vec<Patient>,
) -> ControlFlow<(), (String, Uuid)> {
    let full = (names.len() >= limit, emails.len() >= limit);
    let by_name = names.into_iter().map(|p| ((search_key(&p.details.name), p.id.0), p)).collect::<Vec<_>>();
    let by_email = emails.into_iter().map(|p| ((p.details.email_key(), p.id.0), p)).collect::<Vec<_>>();
    // A scan that reached its limit may have further rows that belong in between.
    let last = |rows: &[((String, Uuid), Patient)], full: bool| {
        rows.last().filter(|_| full).map(|row| row.0.clone())
    };
    let horizon = match (last(&by_name, full.0), last(&by_email, full.1)) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    let known = |p: &Patient| search_key(&p.details.name).starts_with(prefix);
    let by_email = by_email.into_iter().filter(|(_, p)| !known(p));
    let mut all: Vec<_> = by_name.into_iter().chain(by_email).collect();
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    let seen = all.into_iter().take_while(|(place, _)| horizon.as_ref().is_none_or(|end| place <= end));
    found.extend(seen.map(|(_, patient)| patient).take(limit - found.len()));
    match horizon {
        Some(horizon) if limit > 0 => ControlFlow::Continue(horizon),
        _ => ControlFlow::Break(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns a scan of every kind and direction, with its index and the type of its key in PostgreSQL.
    pub(in crate::store) fn every_scan() -> Vec<(Scan, &'static str, &'static str)> {
        fn span<K: Default>(descending: bool, key: K) -> Span<K> {
            Span { lower: (K::default(), Uuid::nil()), upper: (key, Uuid::max()), descending, limit_rows: 1 }
        }
        let days = |descending| Span {
            lower: (FIRST_DAY, Uuid::nil()),
            upper: (LAST_DAY, Uuid::max()),
            descending,
            limit_rows: 1,
        };
        let mut all = vec![(Scan::Email(span(false, String::new())), "patient_emails_pkey", "text")];
        for descending in [false, true] {
            all.extend([
                (Scan::Created(span(descending, 1)), "patients_list", "int8"),
                (Scan::Name(span(descending, String::new())), "patients_by_name", "text"),
                (Scan::Birth(days(descending)), "patients_by_birth", "date"),
                (Scan::Registered(days(descending)), "patients_by_registration", "date"),
            ]);
        }
        all
    }
}
