//! `/auth`: login and sessions. `/.well-known`: the public keys.

use std::sync::Arc;

use axum::response::Response;
use http::header::{AUTHORIZATION, CACHE_CONTROL};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use crate::auth;
use crate::domain::validate::FieldErrors;

use super::fields::Fields;
use super::pipeline::{Call, OpenCall};
use super::problem::Failure;
use super::{AppState, reply};

/// The tokens of a session.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Token, example = json!({
    "token": "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFZERTQSIsImtpZCI6Ii…", "tokenType": "Bearer", "expiresIn": 900,
    "refreshToken": "m3ArpnGRdvvYxLvLmvLJvvV4LbQ5RNd2dpGcJtCFSx8", "refreshExpiresIn": 1800
}))]
pub(super) struct TokenBody<'a> {
    /// Access token, to be sent as `Authorization: Bearer <token>`.
    token: &'a str,
    #[schema(value_type = String)]
    token_type: &'static str,
    /// Lifetime of the access token in seconds.
    expires_in: u64,
    /// Refresh token for `/auth/refresh`; it can be used once. A second use ends the session.
    #[schema(format = "password")]
    refresh_token: &'a str,
    /// Lifetime of the refresh token in seconds. The session ends if the token is not used before.
    refresh_expires_in: u64,
}

impl TokenBody<'_> {
    fn answer(login: &auth::Login) -> Result<Response, Failure> {
        let body = TokenBody {
            token: &login.token.text,
            token_type: "Bearer",
            expires_in: login.token.expires_in.as_secs(),
            refresh_token: &login.refresh_token,
            refresh_expires_in: login.refresh_expires_in.as_secs(),
        };
        reply::json(StatusCode::OK, &body)
    }
}

/// The credentials of a user.
#[derive(ToSchema)]
#[schema(as = Login, example = json!({"email": "testuser@test.com", "password": "password123"}))]
#[allow(dead_code, reason = "describes the body; `Fields` reads it, so that all mistakes are told at once")]
pub(super) struct LoginForm {
    /// Case-insensitive.
    #[schema(format = "email")]
    email: String,
    #[schema(format = "password")]
    password: String,
}

/// Reads the e-mail address and the password from the body of a login.
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

/// The refresh token that continues a session.
#[derive(ToSchema)]
#[schema(as = Refresh, rename_all = "camelCase", example = json!({"refreshToken": "m3ArpnGRdvvYxLvLmvLJvvV4LbQ5RNd2dpGcJtCFSx8"}))]
#[allow(dead_code, reason = "describes the body; `Fields` reads it, so that all mistakes are told at once")]
pub(super) struct RefreshForm {
    /// The refresh token that was issued last.
    #[schema(format = "password")]
    refresh_token: String,
}

/// Reads the refresh token from a body.
fn refresh_token(body: &[u8]) -> Result<String, Failure> {
    let mut fields = Fields::read(body, ["refreshToken"])?;
    let [token] = fields.values.each_mut().map(|value| value.take().unwrap_or_default().into_owned());
    let errors = FieldErrors::from([("refreshToken", "Refresh token is required")]);
    fields.checked(if token.is_empty() { Err(errors) } else { Ok(token) })
}

/// Public keys (RFC 7517).
#[derive(ToSchema)]
#[schema(as = KeySet, example = json!({"keys": [{
    "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "Nc5yFvS8m1BvBl3v",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
}]}))]
#[allow(dead_code, reason = "describes the answer; `auth::KeySet` writes it")]
pub(super) struct KeySetBody {
    /// One key per signing key whose tokens are still valid, the newest first. Empty if tokens are signed
    /// with a shared secret.
    keys: Vec<std::collections::BTreeMap<String, String>>,
}

/// Starts a session, and returns its first tokens.
///
/// The response does not tell an unknown or disabled user from a wrong password. After too many failures,
/// further logins to the account, and from the address, are refused for a time.
#[utoipa::path(post, path = "/auth/login", operation_id = "login", tag = "auth",
    request_body = LoginForm,
    responses((status = 200, description = "The tokens.", body = TokenBody)))]
pub(super) async fn login(app: Arc<AppState>, call: OpenCall) -> Result<Response, Failure> {
    let (email, password) = credentials(&call.body)?;
    let from = call.from;
    TokenBody::answer(&app.auth.login(&email, &password, from).await?)
}

/// Returns the next tokens of a session in exchange for its refresh token.
///
/// A refresh token can be used once. A second use ends the session, because the token must have been copied.
#[utoipa::path(post, path = "/auth/refresh", operation_id = "refresh", tag = "auth",
    request_body = RefreshForm,
    responses((status = 200, description = "The next tokens.", body = TokenBody)))]
pub(super) async fn refresh(app: Arc<AppState>, call: OpenCall) -> Result<Response, Failure> {
    let token = refresh_token(&call.body)?;
    TokenBody::answer(&app.auth.refresh(&token).await?)
}

/// Ends the session of the token.
#[utoipa::path(post, path = "/auth/logout", operation_id = "logout", tag = "auth",
    responses((status = 204, description = "It is over: within five seconds no node takes its tokens.")))]
pub(super) async fn logout(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let shown = call.parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = shown.and_then(auth::bearer).unwrap_or_default();
    app.auth.logout(token).await?;
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

/// Ends all sessions of the caller.
#[utoipa::path(post, path = "/auth/logout-all", operation_id = "logoutAll", tag = "auth",
    responses((status = 204, description = "They are over: within five seconds no node takes their tokens.")))]
pub(super) async fn logout_all(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    app.auth.logout_all(&call.ctx.caller.subject).await?;
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

/// Returns the public keys of the keys that sign tokens.
#[utoipa::path(get, path = "/.well-known/jwks.json", operation_id = "keys", tag = "auth",
    responses((status = 200, description = "A JSON Web Key Set.", body = KeySetBody)))]
pub(super) async fn keys(app: Arc<AppState>, _: OpenCall) -> Result<Response, Failure> {
    let mut response = reply::json(StatusCode::OK, &app.auth.key_set().await?)?;
    // A new key is published for longer than `max-age` before tokens are signed with it.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=5"));
    Ok(response)
}

/// Checks the token of the request. For gateways that authenticate requests before they forward them.
#[utoipa::path(get, path = "/auth/validate", operation_id = "validate", tag = "auth",
    responses((status = 200, description = "It holds.")))]
pub(super) async fn validate(_: Arc<AppState>, _: Call) -> Result<Response, Failure> {
    // The pipeline has checked the token already.
    Ok(reply::empty(StatusCode::OK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_token_is_needed() {
        assert_eq!(refresh_token(br#"{"refreshToken": "abc"}"#).expect("given"), "abc");
        for bad in [&br#"{}"#[..], br#"{"refreshToken": ""}"#, br#"{"refreshToken": null}"#] {
            let failure = refresh_token(bad).expect_err("missing");
            assert_eq!(failure.error.fields["refreshToken"], "Refresh token is required");
        }
    }

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
