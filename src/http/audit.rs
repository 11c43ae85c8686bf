//! `/api/audit`: the recorded accesses. For auditors only.

use std::borrow::Cow;
use std::sync::Arc;

use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::LINK;
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::actors::audit::{AuditPlace, AuditQuery};
use crate::auth::Auth;
use crate::domain::access::{Action, Role};
use crate::domain::audit::{Access, Outcome};
use crate::domain::email::EmailKey;
use crate::domain::ids::PatientId;
use crate::domain::time::Timestamp;
use crate::domain::validate::{FieldErrors, parse_date};
use crate::error::Error;

use super::docs::names::{ActionName, OutcomeName, RoleName};
use super::pipeline::Call;
use super::problem::Failure;
use super::query::{Query, searched};
use super::{AppState, reply};

/// Query parameters of the list.
pub(super) const PARAMETERS: [&str; 8] =
    ["patient", "subject", "action", "outcome", "from", "until", "limit", "cursor"];
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1000;
const PURPOSE: &str = "audit-cursor-1";

/// One access.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Access, example = json!({
    "id": "01a20381-f501-74ce-bf8f-56f2d3a82b06/7/0", "at": "2026-01-10T08:30:00.123456Z",
    "action": "PATIENT_READ", "outcome": "DONE", "subject": "ada@example.com", "role": "CLINICIAN",
    "from": "192.0.2.1", "patientIds": ["123e4567-e89b-12d3-a456-426614174000"],
    "traceId": "0af7651916cd43dd8448eb211c80319c"
}))]
pub(super) struct AccessBody<'a> {
    /// Position of the entry: chain, row, and place in the row.
    id: String,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    at: OffsetDateTime,
    /// The requested action.
    #[schema(value_type = ActionName)]
    action: &'static str,
    #[schema(value_type = OutcomeName)]
    outcome: &'static str,
    /// The caller: the e-mail address of a user, or the name of a part of the system.
    subject: &'a str,
    /// The caller's role at that time.
    #[schema(value_type = RoleName)]
    role: &'static str,
    /// The client address that the edge saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// The patients whose records were accessed.
    #[schema(value_type = Vec<String>)]
    patient_ids: Vec<Uuid>,
    trace_id: String,
    /// The stated reason of a break-glass access.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// For a change: the version of the patient after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<i64>,
    /// The user who was created or changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<&'a str>,
    /// The role of that user after the change, or the requested role.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<RoleName>, nullable = false)]
    account_role: Option<&'static str>,
    /// Whether that user is disabled after the change, or was to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    account_disabled: Option<bool>,
    /// For PATIENT_RESTRICT: whether the restriction was set (true) or removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    restricted: Option<bool>,
    /// For a list: the search that was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    search: Option<&'a str>,
}

impl<'a> AccessBody<'a> {
    fn of(place: &AuditPlace, access: &'a Access) -> Self {
        let detail = access.detail.as_deref();
        AccessBody {
            id: format!("{}/{}/{}", place.chain, place.seq, place.index),
            at: access.at.to_offset(),
            action: access.action.as_str(),
            outcome: access.outcome.as_str(),
            subject: &access.caller.subject,
            role: access.caller.role.as_str(),
            from: access.caller.from.map(|from| from.to_string()),
            patient_ids: access.patients.iter().map(|patient| patient.0).collect(),
            trace_id: format!("{:032x}", access.trace_id),
            reason: access.reason.as_deref(),
            version: access.change.map(|change| change.version),
            account: detail.and_then(|detail| detail.account.as_deref()),
            account_role: detail.and_then(|detail| detail.role).map(Role::as_str),
            account_disabled: detail.and_then(|detail| detail.disabled),
            restricted: detail.and_then(|detail| detail.restricted),
            search: detail.and_then(|detail| detail.search.as_deref()),
        }
    }
}

/// Lists accesses, the newest first.
///
/// Returns one page; the `Link` header leads to the next one. While there is a next page, a page may be short
/// or empty. Listing is an access too, and appears in the next list.
#[utoipa::path(get, path = "/api/audit", operation_id = "listAccesses", tag = "audit",
    params(
        ("patient" = Option<Uuid>, Query, description = "Whose record."),
        ("subject" = Option<String>, Query, description = "Who, without regard to case."),
        ("action" = Option<ActionName>, Query, description = "What was wanted, such as PATIENT_READ."),
        ("outcome" = Option<OutcomeName>, Query, description = "What came of it, such as DENIED."),
        ("from" = Option<String>, Query, description = "At this moment (RFC 3339) or later; of a day (2026-11-30), its beginning in UTC."),
        ("until" = Option<String>, Query, description = "Before this moment (RFC 3339); of a day (2026-11-30), its beginning in UTC."),
        ("limit" = Option<u32>, Query, description = "Entries on the page.", minimum = 1, maximum = 1000, example = 100),
        ("cursor" = Option<String>, Query, description = "Where the page begins: only as a `Link` gave it out."),
    ),
    responses((status = 200, description = "A page of accesses.", body = Vec<AccessBody>,
        headers(("Link", description = "`<path>; rel=\"next\"` (RFC 8288), if there may be more.")))))]
pub(super) async fn list(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    call.accessed.is_about(searched(call.parts.uri.query()));
    let given = Query::read(call.parts.uri.query(), &PARAMETERS)?;
    let wanted = Wanted::of(&given, |text| take_back(&app.auth, text)).map_err(Error::invalid_fields)?;
    let page = app.audit_reader.page(&wanted.query, wanted.after, wanted.limit).await?;
    let shown: Vec<AccessBody<'_>> =
        page.entries.iter().map(|(place, access)| AccessBody::of(place, access)).collect();
    let mut response = reply::json(StatusCode::OK, &shown)?;
    if let Some(next) = page.next {
        let same = call.parts.uri.query().unwrap_or_default().split('&');
        let mut query: Vec<Cow<'_, str>> =
            same.filter(|part| !part.is_empty() && !part.starts_with("cursor=")).map(Cow::from).collect();
        query.push(format!("cursor={}", give_out(&app.auth, next)).into());
        let link = format!("</api/audit?{}>; rel=\"next\"", query.join("&"));
        if let Ok(link) = HeaderValue::try_from(link) {
            response.headers_mut().insert(LINK, link);
        }
    }
    Ok(response)
}

/// The requested part of the audit.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    query: AuditQuery,
    after: Option<AuditPlace>,
    limit: usize,
}

impl Wanted {
    fn of(given: &Query, take_back: impl Fn(&str) -> Option<AuditPlace>) -> Result<Self, FieldErrors> {
        const MOMENT: &str = "Should be a moment or a day, such as 2026-01-10T08:30:00Z or 2026-01-10";
        let mut errors = FieldErrors::new();
        let query = AuditQuery {
            patient: read(given, &mut errors, "patient", "Should be a UUID", |text| {
                Uuid::try_parse(text).ok().map(PatientId)
            }),
            subject: read(given, &mut errors, "subject", "Should be an e-mail address", |text| {
                EmailKey::sought(text).ok().map(|key| key.to_string())
            }),
            action: read(
                given,
                &mut errors,
                "action",
                "Should be an action, such as PATIENT_READ",
                Action::parse,
            ),
            outcome: read(
                given,
                &mut errors,
                "outcome",
                "Should be DONE, DENIED, REFUSED, FAILED or UNKNOWN",
                |text| Outcome::parse(text).filter(|outcome| Outcome::SHOWN.contains(outcome)),
            ),
            from: read(given, &mut errors, "from", MOMENT, moment),
            until: read(given, &mut errors, "until", MOMENT, moment),
        };
        let limit = read(given, &mut errors, "limit", "Limit should be a number from 1 to 1000", |text| {
            text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit))
        });
        let after = read(given, &mut errors, "cursor", "Cursor should be as it was given out", take_back);
        if errors.is_empty() {
            Ok(Wanted { query, after, limit: limit.unwrap_or(LIMIT_DEFAULT) })
        } else {
            Err(errors)
        }
    }
}

/// Parses the parameter `name`, if it is given. If parsing fails, `rule` becomes the error of the parameter.
fn read<T>(
    given: &Query,
    errors: &mut FieldErrors,
    name: &'static str,
    rule: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    let parsed = parse(given.get(name)?);
    if parsed.is_none() {
        errors.insert(name, rule);
    }
    parsed
}

/// Parses a moment, or a day, which stands for its beginning in UTC.
fn moment(text: &str) -> Option<Timestamp> {
    let day = parse_date(text).ok().map(|day| day.midnight().assume_utc());
    let moment = day.or_else(|| OffsetDateTime::parse(text, &Rfc3339).ok())?;
    i64::try_from(moment.unix_timestamp_nanos() / 1_000).ok().map(Timestamp)
}

/// Returns `place` as text for a URL.
fn give_out(auth: &Auth, place: AuditPlace) -> String {
    let mut bytes = Vec::with_capacity(52);
    bytes.extend(place.sealed_at.0.to_be_bytes());
    bytes.extend(place.chain.as_bytes());
    bytes.extend(place.seq.to_be_bytes());
    bytes.extend(place.index.to_be_bytes());
    let seal = auth.seal(PURPOSE, &bytes);
    bytes.extend(seal);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Returns the place for which `text` was given out, or `None` if it was not.
fn take_back(auth: &Auth, text: &str) -> Option<AuditPlace> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (place, seal) = bytes.split_at_checked(36)?;
    if auth.seal(PURPOSE, place) != seal {
        return None;
    }
    let (at, rest) = place.split_at(8);
    let (chain, rest) = rest.split_at(16);
    let (seq, index) = rest.split_at(8);
    Some(AuditPlace {
        sealed_at: Timestamp(i64::from_be_bytes(at.try_into().ok()?)),
        chain: Uuid::from_slice(chain).ok()?,
        seq: i64::from_be_bytes(seq.try_into().ok()?),
        index: u32::from_be_bytes(index.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::fake::{FakeClock, FakeUsers, auth};

    #[test]
    fn a_cursor_comes_back_as_it_was_or_not_at_all() {
        let auth = auth(&FakeUsers::new(), &FakeClock::new());
        let place = AuditPlace { sealed_at: Timestamp(-5), chain: Uuid::from_u128(77), seq: 3, index: 9 };
        let text = give_out(&auth, place);
        assert_eq!(take_back(&auth, &text), Some(place));
        for bad in ["", "x", &text[1..], &format!("{text}AAAA")] {
            assert_eq!(take_back(&auth, bad), None, "{bad}");
        }
    }

    #[test]
    fn filters_are_read_and_slips_are_told() {
        let wanted = |text: &str| {
            let given = Query::read(Some(text), &PARAMETERS).map_err(|failure| failure.error.fields)?;
            Wanted::of(&given, |_| None)
        };
        let read = wanted(
            "patient=123e4567-e89b-12d3-a456-426614174000&subject=Ada@Example.com&action=PATIENT_READ\
             &outcome=DENIED&from=2026-01-10T08:30:00Z&limit=7",
        )
        .expect("well-formed");
        assert_eq!(read.query.subject.as_deref(), Some("ada@example.com"));
        assert_eq!(
            (read.query.action, read.query.outcome),
            (Some(Action::PatientRead), Some(Outcome::Denied))
        );
        assert_eq!((read.query.from, read.limit), (Some(Timestamp(1_768_033_800_000_000)), 7));
        let day = wanted("from=2026-11-30&until=2026-12-01").expect("days").query;
        assert_eq!(
            (day.from, day.until),
            (Some(Timestamp(1_795_996_800_000_000)), Some(Timestamp(1_796_083_200_000_000)))
        );
        for (text, field) in [
            ("from=2026-02-29", "from"),
            ("until=2026-11-30T", "until"),
            ("patient=7", "patient"),
            ("action=READ", "action"),
            ("outcome=SUBMITTED", "outcome"),
            ("from=yesterday", "from"),
            ("limit=1001", "limit"),
            ("cursor=made%20up", "cursor"),
            ("subject=a&subject=b", "subject"),
            ("subject=a%00", "subject"),
        ] {
            assert_eq!(wanted(text).expect_err(field).into_keys().collect::<Vec<_>>(), [field]);
        }
    }
}
