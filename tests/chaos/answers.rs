//! What the answers of a front mean for a history, by the codes of the documentation.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::history::{Outcome, Tag};

/// What a patient's name says before the tag.
const NAME: &str = "Patient ";

/// An answer, and whom it names.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) outcome: Outcome,
    pub(crate) patient: Option<Uuid>,
    /// Of an answer that must not be: what it was.
    pub(crate) surprise: Option<String>,
}

/// Details that pass all rules and carry `tag`.
pub(crate) fn form(email: &str, tag: Tag) -> Value {
    json!({
        "name": format!("{NAME}{tag}"),
        "email": email,
        "address": "1 High Street",
        "dateOfBirth": "1980-05-17",
        "registeredDate": "2024-01-10",
    })
}

/// The tag of details.
pub(crate) fn tag_of(name: &str) -> Option<Tag> {
    name.strip_prefix(NAME)?.parse().ok()
}

/// The record that an answer shows.
pub(crate) fn record(body: &Value) -> Option<(Uuid, i64, Tag)> {
    let id = body["id"].as_str()?.parse().ok()?;
    Some((id, body["version"].as_i64()?, tag_of(body["name"].as_str()?)?))
}

/// What an answer means. The codes are those of the documentation: only `OUTCOME_UNKNOWN` may have done something.
pub(crate) fn told(method: Method, status: StatusCode, body: &Value) -> Told {
    let patient = body["patientId"].as_str().and_then(|id| id.parse().ok());
    let plain = |outcome| Told { outcome, patient, surprise: None };
    let expected = if method == Method::POST { StatusCode::CREATED } else { StatusCode::OK };
    if let Some((id, version, tag)) = record(body).filter(|_| status == expected) {
        return Told { outcome: Outcome::Record { version, tag }, patient: Some(id), surprise: None };
    }
    match (status.as_u16(), body["code"].as_str().unwrap_or_default()) {
        (404, "NOT_FOUND") if method != Method::POST => plain(Outcome::Missing),
        (409, "ALREADY_EXISTS") if method == Method::POST || method == Method::PUT => plain(Outcome::Taken),
        (412, "PRECONDITION_FAILED") if method == Method::PUT => plain(Outcome::Stale),
        (503, "OVERLOADED" | "UNAVAILABLE") | (504, "DEADLINE_EXCEEDED") | (408, "REQUEST_TIMEOUT") => {
            plain(Outcome::NotDone)
        }
        (504, "OUTCOME_UNKNOWN") if method != Method::GET => plain(Outcome::Unknown),
        (_, code) => {
            let surprise = Some(format!("{method} was answered with {status} {code}"));
            Told { outcome: Outcome::Unknown, patient, surprise }
        }
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the program has no harness that would run them: `it` does")]
mod tests {
    use super::*;

    #[test]
    fn answers_mean_what_the_documentation_says() {
        let record = json!({"id": "00000000-0000-0000-0000-000000000001", "version": 3, "name": "Patient 7"});
        let seen = Outcome::Record { version: 3, tag: 7 };
        let problem = |code: &str| json!({ "code": code });
        for (method, status, body, expected) in [
            (Method::POST, 201, record.clone(), Some(seen)),
            (Method::GET, 200, record.clone(), Some(seen)),
            (Method::PUT, 200, record.clone(), Some(seen)),
            (Method::PUT, 409, problem("ALREADY_EXISTS"), Some(Outcome::Taken)),
            (Method::PUT, 412, problem("PRECONDITION_FAILED"), Some(Outcome::Stale)),
            (Method::GET, 404, problem("NOT_FOUND"), Some(Outcome::Missing)),
            (Method::PUT, 503, problem("UNAVAILABLE"), Some(Outcome::NotDone)),
            (Method::PUT, 503, problem("OVERLOADED"), Some(Outcome::NotDone)),
            (Method::PUT, 504, problem("DEADLINE_EXCEEDED"), Some(Outcome::NotDone)),
            (Method::PUT, 504, problem("OUTCOME_UNKNOWN"), Some(Outcome::Unknown)),
            // What no fault explains.
            (Method::PUT, 500, problem("INTERNAL"), None),
            (Method::GET, 504, problem("OUTCOME_UNKNOWN"), None),
            (Method::POST, 404, problem("NOT_FOUND"), None),
            (Method::GET, 412, problem("PRECONDITION_FAILED"), None),
            (Method::GET, 401, problem("UNAUTHENTICATED"), None),
            (Method::POST, 200, record.clone(), None),
            (Method::GET, 200, json!({}), None),
        ] {
            let told = told(method.clone(), StatusCode::from_u16(status).expect("a status"), &body);
            match expected {
                Some(outcome) => {
                    assert_eq!((told.outcome, told.surprise), (outcome, None), "{method} {status}")
                }
                // It may have done anything.
                None => {
                    assert!(told.surprise.is_some() && told.outcome == Outcome::Unknown, "{method} {status}")
                }
            }
        }
    }

    #[test]
    fn a_form_carries_its_tag() {
        let form = form("somebody@example.com", 42);
        assert_eq!(tag_of(form["name"].as_str().expect("text")), Some(42));
        assert_eq!(tag_of("Somebody else"), None);
    }
}
