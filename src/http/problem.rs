//! The response to a failed request: `application/problem+json` (RFC 9457).

use std::collections::BTreeMap;

use axum::body::Body;
use axum::response::Response;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::context::TraceContext;
use crate::domain::ids::PatientId;
use crate::domain::validate::FieldErrors;
use crate::error::{Error, ErrorCode};

use super::docs::names::CodeName;
use super::patch::MERGE_PATCH_JSON;

/// The response field that names the media types of patches (RFC 5789).
pub(super) const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");

/// The media type of problems.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// The required form of a body that was refused with 415.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// No content coding.
    Plain,
    /// JSON.
    Json,
    /// A JSON merge patch.
    MergePatch,
}

impl Wanted {
    /// Returns the response field that states the required form (RFC 9110, section 15.5.16; RFC 5789, section
    /// 2.2).
    pub(super) fn field(self) -> (HeaderName, HeaderValue) {
        let (name, taken) = match self {
            Wanted::Plain => (ACCEPT_ENCODING, "identity"),
            Wanted::Json => (ACCEPT, "application/json"),
            Wanted::MergePatch => (ACCEPT_PATCH, MERGE_PATCH_JSON),
        };
        (name, HeaderValue::from_static(taken))
    }
}

/// A failed request, before it becomes a response.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    /// Errors of unknown fields, in addition to `error.fields`.
    pub(super) other_fields: BTreeMap<String, &'static str>,
    /// Whether the request had a token that is not valid (RFC 6750, section 3.1).
    pub(super) token_shown: bool,
    /// For `OutcomeUnknown` of a registration: the id of the patient, if it was registered.
    pub(super) registers: Option<PatientId>,
    /// For `UnsupportedMediaType`: the required form.
    pub(super) wanted: Option<Wanted>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { error, other_fields: BTreeMap::new(), token_shown: false, registers: None, wanted: None }
    }
}

impl Failure {
    pub(super) fn new(code: ErrorCode, detail: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Error::new(code, detail).into()
    }

    /// Returns a failure for one invalid field.
    pub(super) fn field(name: &'static str, message: &'static str) -> Self {
        Error::invalid_fields(FieldErrors::from([(name, message)])).into()
    }

    /// Returns the response, in the trace `trace`.
    pub(super) fn into_response(self, trace: &TraceContext) -> Response {
        let code = self.error.code;
        let body = self.to_json(trace);
        let mut response = Response::new(Body::from(body));
        *response.status_mut() =
            StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if code == ErrorCode::Unauthenticated {
            let challenge = if self.token_shown { r#"Bearer error="invalid_token""# } else { "Bearer" };
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(wait) = self.error.retry_after() {
            // Round up to whole seconds, because a client that retries early is refused again.
            let seconds = wait.as_millis().div_ceil(1000).max(1);
            headers.insert(RETRY_AFTER, HeaderValue::from(u64::try_from(seconds).unwrap_or(u64::MAX)));
        }
        headers.extend(self.wanted.map(Wanted::field));
        // Close the connection: the unread rest of the body would be taken for a request.
        if matches!(code, ErrorCode::PayloadTooLarge | ErrorCode::RequestTimeout | ErrorCode::NotImplemented)
        {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn to_json(&self, trace: &TraceContext) -> Vec<u8> {
        let Error { code, detail, fields, .. } = &self.error;
        let errors: BTreeMap<&str, &str> = fields
            .iter()
            .map(|(name, message)| (*name, *message))
            .chain(self.other_fields.iter().map(|(name, message)| (name.as_str(), *message)))
            .collect();
        let problem = Problem {
            r#type: format!("urn:hygeia:problem:{}", code.as_str()),
            title: code.title(),
            status: code.http_status(),
            detail,
            code: code.as_str(),
            trace_id: format!("{:032x}", trace.trace_id),
            patient_id: self.registers.map(|id| id.0),
            errors,
        };
        serde_json::to_vec(&problem).unwrap_or_default()
    }
}

/// Why a request failed (RFC 9457).
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "type": "urn:hygeia:problem:INVALID", "title": "The request is not valid", "status": 400,
    "detail": "Some fields are not valid", "code": "INVALID", "traceId": "0af7651916cd43dd8448eb211c80319c",
    "errors": {"name": "Name is required"}
}))]
pub(super) struct Problem<'a> {
    /// Identifies the kind of problem. The URN is not a link.
    r#type: String,
    /// Short description of the kind of problem.
    title: &'a str,
    /// The HTTP status.
    status: u16,
    /// Description of this occurrence.
    detail: &'a str,
    #[schema(value_type = CodeName)]
    code: &'a str,
    /// Trace id of the request; quote it when reporting the problem.
    trace_id: String,
    /// With `OUTCOME_UNKNOWN` of a registration: the id that the patient has if it was registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Uuid)]
    patient_id: Option<Uuid>,
    /// Error message of each invalid field.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    errors: BTreeMap<&'a str, &'a str>,
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    async fn shown(failure: Failure) -> (Response<()>, Value) {
        let trace = TraceContext { trace_id: 0xabc, span_id: 1, parent_id: 0, sampled: true };
        let (parts, body) = failure.into_response(&trace).into_parts();
        let bytes = body.collect().await.expect("in memory").to_bytes();
        (Response::from_parts(parts, ()), serde_json::from_slice(&bytes).expect("JSON"))
    }

    #[tokio::test]
    async fn every_code_has_its_status_and_its_headers() {
        for code in ErrorCode::ALL {
            let (response, problem) = shown(Failure::new(code, "what happened")).await;
            assert_eq!(response.status().as_u16(), code.http_status());
            assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_JSON);
            let later = matches!(code.http_status(), 429 | 503);
            assert_eq!(response.headers().contains_key(RETRY_AFTER), later, "{code:?}");
            assert_eq!(response.headers().contains_key(WWW_AUTHENTICATE), code.http_status() == 401);
            assert_eq!(
                problem,
                json!({
                    "type": format!("urn:hygeia:problem:{}", code.as_str()),
                    "title": code.title(),
                    "status": code.http_status(),
                    "detail": "what happened",
                    "code": code.as_str(),
                    "traceId": "00000000000000000000000000000abc",
                })
            );
        }
    }

    #[tokio::test]
    async fn a_wait_that_is_known_is_told_in_whole_seconds() {
        for (wait_ms, told) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (299_500, "300")] {
            let wait = std::time::Duration::from_millis(wait_ms);
            let (response, _) = shown(Error::too_many_requests("too many", wait).into()).await;
            assert_eq!(response.headers()[RETRY_AFTER], told);
        }
    }

    #[tokio::test]
    async fn known_and_made_up_fields_stand_side_by_side() {
        let mut failure = Failure::field("name", "Name is required");
        failure.other_fields.insert("shoeSize".into(), "Unknown field");
        let (_, problem) = shown(failure).await;
        assert_eq!(problem["errors"], json!({"name": "Name is required", "shoeSize": "Unknown field"}));
    }

    #[tokio::test]
    async fn a_token_that_was_shown_is_said_to_be_invalid() {
        let mut failure = Failure::new(ErrorCode::Unauthenticated, "no");
        failure.token_shown = true;
        let (response, _) = shown(failure).await;
        assert_eq!(response.headers()[WWW_AUTHENTICATE], r#"Bearer error="invalid_token""#);
    }
}
