//! `/api/users`: user accounts. For administrators, except that users change their own passwords.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::response::Response;
use http::header::{LINK, LOCATION};
use http::{HeaderValue, StatusCode};
use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::auth::{By, Change, User};
use crate::domain::access::Role;
use crate::domain::audit::Detail;
use crate::domain::email::{EmailKey, email_key};
use crate::domain::validate::FieldErrors;
use crate::error::{Error, ErrorCode};

use super::docs::names::RoleName;
use super::fields::Fields;
use super::patch::NOT_REMOVED;
use super::pipeline::Call;
use super::problem::Failure;
use super::query::Query;
use super::{AppState, reply};

/// Query parameters of the list.
pub(super) const PARAMETERS: [&str; 2] = ["limit", "after"];
const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MAX: u32 = 1000;

/// A user who can log in.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = User, example = json!({
    "email": "ada@example.com", "role": "CLINICIAN", "disabled": false, "createdAt": "2026-01-10T08:30:00Z"
}))]
pub(super) struct UserBody<'a> {
    #[schema(format = "email")]
    email: &'a str,
    #[schema(value_type = RoleName)]
    role: &'a str,
    /// Whether the user is locked out: no login is possible, and earlier tokens are not valid.
    disabled: bool,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
}

impl<'a> From<&'a User> for UserBody<'a> {
    fn from(user: &'a User) -> Self {
        UserBody {
            email: &user.email,
            role: &user.role,
            disabled: user.disabled,
            created_at: user.created_at.to_offset(),
        }
    }
}

/// The body for creating a user.
#[derive(ToSchema)]
#[schema(as = UserForm, example = json!({
    "email": "ada@example.com", "password": "correct horse battery", "role": "CLINICIAN"
}))]
#[allow(dead_code, reason = "describes the body; `Fields` reads it, so that all mistakes are told at once")]
pub(super) struct UserForm {
    #[schema(format = "email")]
    email: String,
    /// 8 to 72 bytes.
    #[schema(format = "password")]
    password: String,
    #[schema(value_type = RoleName)]
    role: String,
}

/// A change of a user, as a merge patch (RFC 7396): absent fields stay as they are, and no field can be
/// removed.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = UserChange, example = json!({"role": "AUDITOR", "disabled": true}))]
pub(super) struct ChangeForm {
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<RoleName>, nullable = false)]
    role: Option<Option<String>>,
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<bool>, nullable = false)]
    disabled: Option<Option<bool>>,
}

/// Deserializes a present field. Null is kept apart from an absent field.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(field: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(field).map(Some)
}

impl ChangeForm {
    fn read(body: &[u8]) -> Result<(Option<Role>, Option<bool>), Failure> {
        // The parser would also accept an array of values, and its message could repeat the input.
        let is_object = body.trim_ascii_start().starts_with(b"{");
        let form = serde_json::from_slice(body).ok().filter(|_| is_object);
        let Some(ChangeForm { role, disabled }) = form else {
            let known = "Known are role (a text) and disabled (true or false)";
            return Err(Failure::new(ErrorCode::Invalid, known));
        };
        let taken = [("role", role == Some(None)), ("disabled", disabled == Some(None))];
        let taken: FieldErrors =
            taken.into_iter().filter(|(_, null)| *null).map(|(field, _)| (field, NOT_REMOVED)).collect();
        if !taken.is_empty() {
            return Err(Error::invalid_fields(taken).into());
        }
        match role.flatten().as_deref().map(Role::parse) {
            Some(None) => Err(Failure::field("role", ROLES)),
            role => Ok((role.flatten(), disabled.flatten())),
        }
    }
}

/// The body for changing one's own password.
#[derive(ToSchema)]
#[schema(as = PasswordForm, rename_all = "camelCase", example = json!({
    "oldPassword": "correct horse battery", "newPassword": "staple correct horse"
}))]
#[allow(dead_code, reason = "describes the body; `Fields` reads it, so that all mistakes are told at once")]
pub(super) struct PasswordForm {
    #[schema(format = "password")]
    old_password: String,
    /// 8 to 72 bytes.
    #[schema(format = "password")]
    new_password: String,
}

/// Lists users, sorted by e-mail address.
///
/// Returns one page; the `Link` header leads to the next one, if there is more.
#[utoipa::path(get, path = "/api/users", operation_id = "listUsers", tag = "users",
    params(
        ("limit" = Option<u32>, Query, description = "Users on the page.", minimum = 1, maximum = 1000, example = 100),
        ("after" = Option<String>, Query, description = "The page begins after this e-mail address."),
    ),
    responses((status = 200, description = "A page of users.", body = Vec<UserBody>,
        headers(("Link", description = "`<path>; rel=\"next\"` (RFC 8288), if there is more.")))))]
pub(super) async fn list(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let query = Query::read(call.parts.uri.query(), &PARAMETERS)?;
    let limit = query
        .get("limit")
        .map_or(Some(LIMIT_DEFAULT), |text| text.parse().ok().filter(|n| (1..=LIMIT_MAX).contains(n)))
        .ok_or_else(|| Failure::field("limit", "Limit should be a number from 1 to 1000"))?;
    // Read one row more than the page, to know whether there is more.
    let mut users = app.users.list(query.get("after"), limit + 1).await?;
    let more = users.len() > limit as usize;
    users.truncate(limit as usize);
    let shown: Vec<UserBody<'_>> = users.iter().map(UserBody::from).collect();
    let mut response = reply::json(StatusCode::OK, &shown)?;
    if let Some(last) = users.last().filter(|_| more) {
        let link = format!("</api/users?limit={limit}&after={}>; rel=\"next\"", escaped(&last.email));
        if let Ok(link) = HeaderValue::try_from(link) {
            response.headers_mut().insert(LINK, link);
        }
    }
    Ok(response)
}

/// Creates a user.
#[utoipa::path(post, path = "/api/users", operation_id = "createUser", tag = "users",
    request_body = UserForm,
    responses((status = 201, description = "Made.", body = UserBody,
        headers(("Location", description = "The path of the user.")))))]
pub(super) async fn create(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let mut fields = Fields::read(&call.body, ["email", "password", "role"])?;
    let [email, password, role] =
        fields.values.each_mut().map(|value| value.take().unwrap_or_default().into_owned());
    let mut errors = FieldErrors::new();
    let role = Role::parse(&role);
    for (missing, field, message) in [
        (email.is_empty(), "email", "Email is required"),
        (password.is_empty(), "password", "Password is required"),
        (role.is_none(), "role", ROLES),
    ] {
        if missing {
            errors.insert(field, message);
        }
    }
    let role = fields.checked(role.filter(|_| errors.is_empty()).ok_or(errors))?;
    call.accessed.is_about(Detail { role: Some(role), ..Detail::of_account(&email_key(&email)) });
    let user = app.users.create(&email, &password, role, By::Caller(&call.ctx.caller)).await?;
    let mut response = reply::json(StatusCode::CREATED, &UserBody::from(&user))?;
    if let Ok(location) = HeaderValue::try_from(format!("/api/users/{}", escaped(&user.email))) {
        response.headers_mut().insert(LOCATION, location);
    }
    Ok(response)
}

const ROLES: &str = "Should be ADMIN, CLINICIAN, FRONT_DESK, BILLING, ANALYST or AUDITOR";

/// Changes the role of a user, or disables or enables the user.
///
/// The body is a JSON Merge Patch (RFC 7396); no field can be removed. Disabling a user ends all sessions of
/// the user for good, within `auth.user_cache_ms` at most. Administrators cannot change or disable
/// themselves, and the last enabled administrator cannot be disabled or get another role.
#[utoipa::path(patch, path = "/api/users/{email}", operation_id = "changeUser", tag = "users",
    params(("email" = String, Path, description = "The user's e-mail address.")),
    request_body(content = ChangeForm, content_type = "application/merge-patch+json"),
    responses((status = 200, description = "The user as it is now.", body = UserBody)))]
pub(super) async fn change(app: Arc<AppState>, mut call: Call) -> Result<Response, Failure> {
    let email = Path::<String>::from_request_parts(&mut call.parts, &())
        .await
        .map_err(|_| "Should be an e-mail address")
        .and_then(|path| EmailKey::sought(&path.0))
        .map_err(|message| Failure::field("email", message))?;
    let (role, disabled) = ChangeForm::read(&call.body)?;
    call.accessed.is_about(Detail { role, disabled, ..Detail::of_account(&email) });
    if *email == *call.ctx.caller.subject {
        return Err(Error::new(ErrorCode::Forbidden, "Nobody changes their own role or standing").into());
    }
    let change = Change { role, disabled };
    let user = app.users.change(&email, change, By::Caller(&call.ctx.caller)).await?;
    let is_now =
        Detail { role: Role::parse(&user.role), disabled: Some(user.disabled), ..Detail::of_account(&email) };
    call.accessed.is_about(is_now);
    reply::json(StatusCode::OK, &UserBody::from(&user))
}

/// Changes the caller's own password.
///
/// All earlier tokens of the user become invalid: log in again. A wrong old password counts as a failed
/// login. After too many, further attempts for the account, and from the address, are refused for a time.
#[utoipa::path(post, path = "/api/users/me/password", operation_id = "changePassword", tag = "users",
    request_body = PasswordForm,
    responses((status = 204, description = "Changed.")))]
pub(super) async fn password(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let mut fields = Fields::read(&call.body, ["oldPassword", "newPassword"])?;
    let [old, new] = fields.values.each_mut().map(|value| value.take().unwrap_or_default().into_owned());
    let mut errors = FieldErrors::new();
    for (missing, field, message) in [
        (old.is_empty(), "oldPassword", "Old password is required"),
        (new.is_empty(), "newPassword", "New password is required"),
    ] {
        if missing {
            errors.insert(field, message);
        }
    }
    fields.checked(if errors.is_empty() { Ok(()) } else { Err(errors) })?;
    app.users.change_password(&app.auth, &call.ctx.caller, &old, &new).await?;
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

/// Returns `email` percent-encoded for a path or a query (RFC 3986, section 2.1).
fn escaped(email: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~@".contains(byte);
    email
        .bytes()
        .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_a_merge_patch() {
        let read = |body: &str| {
            ChangeForm::read(body.as_bytes()).map_err(|failure| (failure.error.detail, failure.error.fields))
        };
        assert_eq!(read("{}"), Ok((None, None)), "what is left out stays");
        assert_eq!(read(r#"{"role": "AUDITOR"}"#), Ok((Some(Role::Auditor), None)));
        assert_eq!(read(r#"{"disabled": false}"#), Ok((None, Some(false))));
        let (_, fields) = read(r#"{"role": null, "disabled": null}"#).expect_err("nothing is taken away");
        assert_eq!(fields, FieldErrors::from([("role", NOT_REMOVED), ("disabled", NOT_REMOVED)]));
        let (_, fields) = read(r#"{"role": "NURSE"}"#).expect_err("no role");
        assert_eq!(fields["role"], ROLES);
        for wrong in ["", "[]", "null", r#"{"disabled": "yes"}"#, r#"{"email": "x"}"#] {
            let (detail, _) = read(wrong).expect_err(wrong);
            assert!(detail.contains("role") && !detail.contains("yes"), "{wrong}: {detail}");
        }
    }

    #[test]
    fn an_address_is_escaped_for_a_path() {
        assert_eq!(escaped("ada@example.com"), "ada@example.com");
        assert_eq!(escaped("a+b/c?d&e=\u{f6}@example.com"), "a%2Bb%2Fc%3Fd%26e%3D%C3%B6@example.com");
    }
}
