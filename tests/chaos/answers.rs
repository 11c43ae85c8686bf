//! What the answers of a front mean for a history, by the codes of the documentation.

use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use super::history::{Call, Email, Outcome, Part, Record, Tag};

/// How the name of a record begins, before the tag.
const NAME: &str = "Patient ";
/// How its postal address ends, after the tag.
const STREET: &str = " High Street";
/// The host of every e-mail address.
const HOST: &str = "@example.com";

/// The meaning of an answer.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) outcome: Outcome,
    /// The patient that the answer names.
    pub(crate) patient: Option<Uuid>,
    /// What was answered, if no documented code explains it.
    pub(crate) surprise: Option<String>,
}

impl Told {
    /// An answer of which only the outcome is known.
    pub(crate) const fn plain(outcome: Outcome) -> Self {
        Told { outcome, patient: None, surprise: None }
    }

    /// An answer that no documented code explains: it may have done anything.
    pub(crate) const fn strange(what: String) -> Self {
        Told { outcome: Outcome::Unknown, patient: None, surprise: Some(what) }
    }
}

/// An e-mail address as text; `made_by` is the registration of its patient.
pub(crate) fn email_text(email: Email, made_by: Tag) -> String {
    match email {
        Email::Own => format!("patient-{made_by}{HOST}"),
        Email::Second => format!("patient-{made_by}-second{HOST}"),
        // The same address, however it is written.
        Email::Contested(number) if made_by.is_multiple_of(2) => format!("contested-{number}{HOST}"),
        Email::Contested(number) => format!("Contested-{number}{HOST}"),
    }
}

/// The e-mail address that a text means, and the registration that it was derived from, if it was derived from one.
fn email_of(text: &str) -> Option<(Email, Option<Tag>)> {
    let text = text.to_lowercase();
    let name = text.strip_suffix(HOST)?;
    if let Some(number) = name.strip_prefix("contested-") {
        return Some((Email::Contested(number.parse().ok()?), None));
    }
    let name = name.strip_prefix("patient-")?;
    match name.strip_suffix("-second") {
        Some(made_by) => Some((Email::Second, Some(made_by.parse().ok()?))),
        None => Some((Email::Own, Some(name.parse().ok()?))),
    }
}

/// The name that carries a tag.
pub(crate) fn name(tag: Tag) -> String {
    format!("{NAME}{tag}")
}

fn street(tag: Tag) -> String {
    format!("{tag}{STREET}")
}

/// The tag of a name.
pub(crate) fn tag_of(name: &str) -> Option<Tag> {
    name.strip_prefix(NAME)?.parse().ok()
}

/// Details that pass all rules and carry `tag`.
pub(crate) fn form(email: &str, tag: Tag) -> Value {
    json!({
        "name": name(tag),
        "email": email,
        "address": street(tag),
        "dateOfBirth": "1980-05-17",
        "registeredDate": "2024-01-10",
    })
}

/// The body of a patch.
pub(crate) fn patch_form(part: Part, tag: Tag, made_by: Tag) -> Value {
    match part {
        Part::Name => json!({"name": name(tag)}),
        Part::Address => json!({"address": street(tag)}),
        Part::Email(email) => json!({"address": street(tag), "email": email_text(email, made_by)}),
    }
}

/// The record that a body shows, with its id. None if it is no record, or has the address of another patient than
/// `made_by` registered, if that is given.
pub(crate) fn record(body: &Value, made_by: Option<Tag>) -> Option<(Uuid, Record)> {
    let text = |field: &str| body[field].as_str();
    let (email, of) = email_of(text("email")?)?;
    if made_by.is_some() && of.is_some() && of != made_by {
        return None;
    }
    let record = Record {
        version: body["version"].as_i64()?,
        name: tag_of(text("name")?)?,
        address: text("address")?.strip_suffix(STREET)?.parse().ok()?,
        email,
        restricted: body["restricted"].as_bool().unwrap_or_default(),
    };
    Some((text("id")?.parse().ok()?, record))
}

/// The newest version that a page of a history shows, and whether it is the end of the record.
pub(crate) fn newest(page: &Value) -> Option<Outcome> {
    let last = page.as_array()?.last()?;
    let (version, kind) = (last["version"].as_i64()?, last["type"].as_str()?);
    Some(Outcome::At { version, ended: kind == "PATIENT_DELETED" })
}

/// The meaning of the answer to `call` about the patient that `made_by` registered. Only `OUTCOME_UNKNOWN` leaves open
/// whether a change was made.
pub(crate) fn told(call: Call, made_by: Tag, status: StatusCode, body: &Value) -> Told {
    let patient = body["patientId"].as_str().and_then(|id| id.parse().ok());
    let plain = |outcome| Told { outcome, patient, surprise: None };
    let registers = matches!(call, Call::Register { .. });
    let shows = matches!(call, Call::Register { .. } | Call::Put { .. } | Call::Patch { .. } | Call::Look(_));
    let expected = if registers { StatusCode::CREATED } else { StatusCode::OK };
    if shows && status == expected {
        return match record(body, Some(made_by)) {
            Some((id, record)) => {
                Told { outcome: Outcome::Record(record), patient: Some(id), surprise: None }
            }
            None => Told::strange(format!("{call:?} was answered with what is not the record")),
        };
    }
    match (status.as_u16(), body["code"].as_str().unwrap_or_default()) {
        (204, _) if matches!(call, Call::Delete { .. }) => plain(Outcome::Ended),
        (204, _) if matches!(call, Call::Restrict { .. }) => plain(Outcome::Done),
        (404, "NOT_FOUND") if !registers => plain(Outcome::Missing),
        (409, "ALREADY_EXISTS") if call.email().is_some() => plain(Outcome::Taken),
        (412, "PRECONDITION_FAILED") if call.expected().is_some() => plain(Outcome::Stale),
        (503, "OVERLOADED" | "UNAVAILABLE") | (504, "DEADLINE_EXCEEDED") | (408, "REQUEST_TIMEOUT") => {
            plain(Outcome::NotDone)
        }
        (502 | 504, "OUTCOME_UNKNOWN") if call.is_change() => plain(Outcome::Unknown),
        // A balancer whose front broke off.
        (502, "OUTCOME_UNKNOWN") => plain(Outcome::NotDone),
        (status, code) => {
            Told { patient, ..Told::strange(format!("{call:?} was answered with {status} {code}")) }
        }
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the program has no harness that would run them: `it` does")]
mod tests {
    use super::super::history::Look;
    use super::*;

    const REGISTER: Call = Call::Register { tag: 7, email: Email::Own };
    const PUT: Call = Call::Put { tag: 7, email: Email::Own, expected: None };
    const PUT_IF: Call = Call::Put { tag: 7, email: Email::Own, expected: Some(3) };
    const PATCH: Call = Call::Patch { tag: 7, part: Part::Name, expected: None };
    const DELETE: Call = Call::Delete { expected: None };
    const RESTRICT: Call = Call::Restrict { on: true };
    const GET: Call = Call::Look(Look::Get);

    fn body() -> Value {
        let mut body = form("patient-7@example.com", 7);
        body["id"] = json!("00000000-0000-0000-0000-000000000001");
        body["version"] = json!(3);
        body
    }

    #[test]
    fn answers_mean_what_the_documentation_says() {
        let record = Record { version: 3, name: 7, address: 7, email: Email::Own, restricted: false };
        let seen = Outcome::Record(record);
        let problem = |code: &str| json!({ "code": code });
        for (call, status, body, expected) in [
            (REGISTER, 201, body(), Some(seen)),
            (GET, 200, body(), Some(seen)),
            (PUT, 200, body(), Some(seen)),
            (PATCH, 200, body(), Some(seen)),
            (PUT, 409, problem("ALREADY_EXISTS"), Some(Outcome::Taken)),
            (PUT_IF, 412, problem("PRECONDITION_FAILED"), Some(Outcome::Stale)),
            (GET, 404, problem("NOT_FOUND"), Some(Outcome::Missing)),
            (DELETE, 204, Value::Null, Some(Outcome::Ended)),
            (RESTRICT, 204, Value::Null, Some(Outcome::Done)),
            (PUT, 503, problem("UNAVAILABLE"), Some(Outcome::NotDone)),
            (PUT, 503, problem("OVERLOADED"), Some(Outcome::NotDone)),
            (PUT, 504, problem("DEADLINE_EXCEEDED"), Some(Outcome::NotDone)),
            (PUT, 504, problem("OUTCOME_UNKNOWN"), Some(Outcome::Unknown)),
            (PUT, 502, problem("OUTCOME_UNKNOWN"), Some(Outcome::Unknown)),
            (GET, 502, problem("OUTCOME_UNKNOWN"), Some(Outcome::NotDone)),
            // What no fault explains.
            (PUT, 500, problem("INTERNAL"), None),
            (PUT, 204, Value::Null, None),
            (GET, 504, problem("OUTCOME_UNKNOWN"), None),
            (REGISTER, 404, problem("NOT_FOUND"), None),
            (PATCH, 409, problem("ALREADY_EXISTS"), None),
            (PUT, 412, problem("PRECONDITION_FAILED"), None),
            (GET, 401, problem("UNAUTHENTICATED"), None),
            (REGISTER, 200, body(), None),
            (GET, 200, json!({}), None),
        ] {
            let told = told(call, 7, StatusCode::from_u16(status).expect("a status"), &body);
            match expected {
                Some(outcome) => {
                    assert_eq!((told.outcome, told.surprise), (outcome, None), "{call:?} {status}")
                }
                None => {
                    assert!(told.surprise.is_some() && told.outcome == Outcome::Unknown, "{call:?} {status}")
                }
            }
        }
        let other = told(GET, 8, StatusCode::OK, &body());
        assert!(other.surprise.is_some(), "the record has the address of another patient");
    }

    #[test]
    fn what_is_written_is_read_again() {
        for email in [Email::Own, Email::Second, Email::Contested(4)] {
            let mut body = body();
            body["email"] = json!(email_text(email, 9).to_uppercase());
            body["restricted"] = json!(true);
            let read = record(&body, Some(9)).expect("a record").1;
            assert_eq!(read, Record { version: 3, name: 7, address: 7, email, restricted: true });
        }
        let patched = patch_form(Part::Email(Email::Second), 8, 9);
        assert_eq!(patched, json!({"address": "8 High Street", "email": "patient-9-second@example.com"}));
        assert_eq!(tag_of("Somebody else"), None);
        let page =
            json!([{"version": 1, "type": "PATIENT_CREATED"}, {"version": 2, "type": "PATIENT_DELETED"}]);
        assert_eq!(newest(&page), Some(Outcome::At { version: 2, ended: true }));
        assert_eq!(newest(&json!([])), None);
    }
}
