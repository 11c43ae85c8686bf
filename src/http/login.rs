//! `/auth`: passwords for tokens.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::validate::FieldErrors;

use super::fields::Fields;
use super::pipeline::{Call, OpenCall};
use super::problem::Failure;
use super::{AppState, reply};

/// A token just given.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Token, example = json!({
    "token": "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJzdWIi…", "tokenType": "Bearer", "expiresIn": 3600
}))]
pub(super) struct TokenBody<'a> {
    /// To be shown as `Authorization: Bearer <token>`.
    token: &'a str,
    #[schema(value_type = String)]
    token_type: &'static str,
    /// For how many seconds it holds.
    expires_in: u64,
}

/// Who one is.
#[derive(ToSchema)]
#[schema(as = Login, example = json!({"email": "testuser@test.com", "password": "password123"}))]
#[allow(dead_code, reason = "describes the body; `Fields` reads it, so that all mistakes are told at once")]
pub(super) struct LoginForm {
    /// Without regard to case.
    #[schema(format = "email")]
    email: String,
    #[schema(format = "password")]
    password: String,
}

/// The e-mail address and the password in a login's body.
pub(super) fn credentials(body: &[u8]) -> Result<(String, String), Failure> {
    let mut fields = Fields::read(body, ["email", "password"])?;
    let mut errors = FieldErrors::new();
    let [email, password] =
        fields.values.each_mut().map(|value| value.take().unwrap_or_default().into_owned());
    if email.trim().is_empty() {
        errors.insert("email", "Email is required");
    }
    if password.is_empty() {
        errors.insert("password", "Password is required");
    }
    fields.checked(if errors.is_empty() { Ok((email, password)) } else { Err(errors) })
}

/// Gives a token.
///
/// Whether the user is unknown, disabled, or the password wrong is not told apart.
#[utoipa::path(post, path = "/auth/login", operation_id = "login", tag = "auth",
    request_body = LoginForm,
    responses((status = 200, description = "A token.", body = TokenBody)))]
pub(super) async fn login(app: Arc<AppState>, call: OpenCall) -> Result<Response, Failure> {
    let (email, password) = credentials(&call.body)?;
    let token = app.auth.login(&email, &password).await?;
    let body = TokenBody { token: &token.text, token_type: "Bearer", expires_in: token.expires_in.as_secs() };
    reply::json(StatusCode::OK, &body)
}

/// Says whether a token holds: for gateways that ask before they let a request through.
#[utoipa::path(get, path = "/auth/validate", operation_id = "validate", tag = "auth",
    responses((status = 200, description = "It holds.")))]
pub(super) async fn validate(_: Arc<AppState>, _: Call) -> Result<Response, Failure> {
    // Whoever comes this far has shown a token that holds.
    Ok(reply::empty(StatusCode::OK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_fields_are_needed() {
        let (email, password) = credentials(br#"{"email": "a@b.c", "password": " x "}"#).expect("both");
        assert_eq!((&*email, &*password), ("a@b.c", " x "));
        let failure = credentials(br#"{"email": " ", "password": 1, "x": 1}"#).expect_err("wrong");
        assert_eq!(failure.error.fields["email"], "Email is required");
        assert_eq!(failure.error.fields["password"], "Should be a text");
        assert_eq!(failure.other_fields["x"], "Unknown field");
    }
}
