//! `/api/patients/{id}/history`: the versions of a record. The event table is the history, so it is complete.
//! The history of an ended record stays readable, because a clinic has to account for what it knew.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::response::Response;
use http::header::LINK;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::event::EventType;
use crate::domain::ids::{PatientId, Version};
use crate::domain::patient::{Patient, PatientDetails};
use crate::domain::search::HistoryEntry;
use crate::domain::validate::format_date;
use crate::error::ErrorCode;

use super::docs::names::EventName;
use super::pipeline::Call;
use super::problem::Failure;
use super::query::Query;
use super::{AppState, patients, reply};

/// Default number of versions on a page.
const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: u32 = 200;

/// One version of a record, and the event that created it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = HistoryEntry, example = json!({
    "version": 2, "type": "PATIENT_UPDATED", "at": "2026-01-15T09:30:00.000001Z", "by": "admin@example.com",
    "changes": {"address": {"from": "1 Harbour Road", "to": "2 Harbour Road"}}
}))]
pub(super) struct EntryBody {
    /// The version of the record after the event.
    version: i64,
    #[schema(value_type = EventName)]
    r#type: &'static str,
    /// When the change was decided.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    at: time::OffsetDateTime,
    /// The user or part of the system that caused the change.
    by: String,
    /// The fields that changed. A registration lists all fields, from null; the end of a record lists all
    /// fields, to null.
    changes: BTreeMap<&'static str, FieldChange>,
}

/// The old and the new value of a field.
#[derive(Serialize, ToSchema, Debug, PartialEq, Eq)]
#[schema(example = json!({"from": "1 Harbour Road", "to": "2 Harbour Road"}))]
pub(super) struct FieldChange {
    from: Option<String>,
    to: Option<String>,
}

/// Lists the versions of a record.
///
/// Returns the oldest version first, one page at a time; the `Link` header leads to the next page, if there
/// is more. An ended record keeps its history. The history of a restricted record is shown only to a
/// CLINICIAN who states the reason in `X-Break-Glass`. The audit records the reason.
#[utoipa::path(get, path = "/api/patients/{id}/history", operation_id = "getPatientHistory", tag = "patients",
    params(
        ("id" = Uuid, Path, description = "The patient's id."),
        ("after" = Option<i64>, Query, description = "Versions after this one.", minimum = 0, example = 0),
        ("limit" = Option<u32>, Query, description = "Versions on the page.", minimum = 1, maximum = 200, example = 50),
        ("X-Break-Glass" = Option<String>, Header, description = "Why a restricted record is needed: 2 to 500 characters."),
    ),
    responses((status = 200, description = "A page of versions.", body = Vec<EntryBody>,
        headers(("Link", description = "`<path>; rel=\"next\"` (RFC 8288), if there is more.")))))]
pub(super) async fn history(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let id = patients::id_of(&call, "id")?;
    let (after, limit) = page_of(&call)?;
    // Read one version before the page, to compare the first entry with, and one after it, to know whether
    // there is more.
    let mut entries = call.open(app.patients.history(&call.ctx, id, (after - 1).max(0), limit + 2).await?);
    if entries.is_empty() {
        return Err(Failure::new(
            ErrorCode::NotFound,
            "There is no version of a record with this id after this",
        ));
    }
    let before = (entries[0].version() <= after).then(|| entries.remove(0));
    let more = entries.len() > limit as usize;
    entries.truncate(limit as usize);
    let shown = told(before.as_ref(), &entries);
    let mut response = reply::json(StatusCode::OK, &shown)?;
    if let Some(last) = entries.last().filter(|_| more) {
        let link =
            format!("</api/patients/{id}/history?after={}&limit={limit}>; rel=\"next\"", last.version());
        response.headers_mut().extend(HeaderValue::try_from(link).ok().map(|link| (LINK, link)));
    }
    Ok(response)
}

/// Query parameters of a history.
pub(super) const PARAMETERS: [&str; 2] = ["after", "limit"];

/// Returns the requested page: the versions after the first number, at most as many as the second.
fn page_of(call: &Call) -> Result<(Version, u32), Failure> {
    let query = Query::read(call.parts.uri.query(), &PARAMETERS)?;
    let after = query.get("after").map_or(Some(0), |text| text.parse().ok().filter(|after| *after >= 0));
    let limit = query.get("limit").map_or(Some(LIMIT_DEFAULT), |text| {
        text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit))
    });
    match (after, limit) {
        (Some(after), Some(limit)) => Ok((after, limit)),
        (None, _) => Err(Failure::field("after", "After should be a version, or 0")),
        (_, None) => Err(Failure::field("limit", "Limit should be a number from 1 to 200")),
    }
}

/// Returns the record as of `version`, whatever happened to it since.
///
/// # Errors
/// - `NotFound`: the record has no such version, or ended with it.
/// - `Forbidden`: the record is restricted now, or was when it ended, and the caller may not see it.
pub(super) async fn as_of(
    app: &AppState,
    call: &Call,
    id: PatientId,
    version: Version,
) -> Result<Arc<Patient>, Failure> {
    let entries = call.open(app.patients.history(&call.ctx, id, version - 1, 1).await?);
    match entries.into_iter().next() {
        Some(entry) if entry.version() == version && entry.event_type() != EventType::Deleted => {
            Ok(Arc::clone(entry.event.patient()))
        }
        _ => Err(Failure::new(ErrorCode::NotFound, "There is no record with this id and version")),
    }
}

fn told(before: Option<&HistoryEntry>, entries: &[HistoryEntry]) -> Vec<EntryBody> {
    let mut known = before;
    let told = entries.iter().map(|entry| {
        let old = known.map(|known| &known.event.patient().details);
        let new = &entry.event.patient().details;
        known = Some(entry);
        EntryBody {
            version: entry.version(),
            r#type: entry.event_type().as_str(),
            at: entry.at.to_offset(),
            by: entry.subject.to_string(),
            changes: match entry.event_type() {
                EventType::Created => changes(None, Some(new)),
                EventType::Updated => changes(old, Some(new)),
                EventType::Deleted => changes(Some(new), None),
            },
        }
    });
    told.collect()
}

fn changes(
    old: Option<&PatientDetails>,
    new: Option<&PatientDetails>,
) -> BTreeMap<&'static str, FieldChange> {
    let (mut old, mut new) = (old.map(texts), new.map(texts));
    let take = |texts: &mut Option<[String; 5]>, at: usize| {
        texts.as_mut().map(|texts| std::mem::take(&mut texts[at]))
    };
    let of = |(at, name): (usize, &'static str)| {
        let (from, to) = (take(&mut old, at), take(&mut new, at));
        (from != to).then_some((name, FieldChange { from, to }))
    };
    patients::FIELDS.into_iter().enumerate().filter_map(of).collect()
}

/// Returns the fields in the order of `patients::FIELDS`. The pattern has no `..`, so that a new field does
/// not compile until it is part of the history.
fn texts(details: &PatientDetails) -> [String; 5] {
    let PatientDetails { name, email, address, date_of_birth, registered_date } = details;
    [
        name.to_string(),
        email.to_string(),
        address.to_string(),
        format_date(*date_of_birth),
        format_date(*registered_date),
    ]
}

#[cfg(test)]
mod tests {
    use ::time::macros::date;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::domain::time::Timestamp;

    fn entry(version: Version, event_type: EventType, address: &str) -> HistoryEntry {
        let details = PatientDetails {
            name: "Ada".into(),
            email: "ada@example.com".into(),
            address: address.into(),
            date_of_birth: date!(1985 - 12 - 10),
            registered_date: date!(2026 - 01 - 02),
        };
        let patient = Patient {
            id: PatientId(Uuid::nil()),
            version,
            created_at: Timestamp(0),
            restricted: false,
            details,
        };
        let at = Timestamp(1_700_000_000_000_000 + version);
        HistoryEntry { event: event_type.event(Arc::new(patient)), at, subject: "admin@example.com".into() }
    }

    #[test]
    fn each_version_tells_what_changed() {
        let life = [
            entry(1, EventType::Created, "one"),
            entry(2, EventType::Updated, "two"),
            entry(3, EventType::Updated, "two"),
            entry(4, EventType::Deleted, "two"),
        ];
        let told = serde_json::to_value(told(None, &life)).expect("JSON");
        let all = |from: bool| {
            let fields = [
                ("name", "Ada"),
                ("email", "ada@example.com"),
                ("address", if from { "two" } else { "one" }),
                ("dateOfBirth", "1985-12-10"),
                ("registeredDate", "2026-01-02"),
            ];
            let one = |value: &str| {
                if from { json!({"from": value, "to": null}) } else { json!({"from": null, "to": value}) }
            };
            serde_json::Value::Object(
                fields.iter().map(|(name, value)| ((*name).to_owned(), one(value))).collect(),
            )
        };
        assert_eq!(
            told,
            json!([
                {"version": 1, "type": "PATIENT_CREATED", "at": "2023-11-14T22:13:20.000001Z",
                 "by": "admin@example.com", "changes": all(false)},
                {"version": 2, "type": "PATIENT_UPDATED", "at": "2023-11-14T22:13:20.000002Z",
                 "by": "admin@example.com", "changes": {"address": {"from": "one", "to": "two"}}},
                {"version": 3, "type": "PATIENT_UPDATED", "at": "2023-11-14T22:13:20.000003Z",
                 "by": "admin@example.com", "changes": {}},
                {"version": 4, "type": "PATIENT_DELETED", "at": "2023-11-14T22:13:20.000004Z",
                 "by": "admin@example.com", "changes": all(true)},
            ])
        );
    }

    #[test]
    fn the_first_of_a_page_is_told_from_the_one_before() {
        let told = told(Some(&entry(6, EventType::Updated, "six")), &[entry(7, EventType::Updated, "seven")]);
        let change = FieldChange { from: Some("six".into()), to: Some("seven".into()) };
        assert_eq!(told[0].changes, BTreeMap::from([("address", change)]));
    }
}
