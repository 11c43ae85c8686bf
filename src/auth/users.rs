//! Users as an administrator handles them: what the command line calls.

use std::sync::Arc;

use crate::domain::access::{Caller, Role};
use crate::domain::email::{EmailAddress, EmailKey};
use crate::domain::time::{Clock, Timestamp};
use crate::domain::validate::FieldErrors;
use crate::error::{Error, ErrorCode, Result};
use crate::store::{self, UserRow, UserStore};

use super::password::{self, Hasher};
use super::{Auth, Settings, sought, validate_password};

/// A user without what is secret.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// The name one logs in with.
    pub email: String,
    /// `Role::as_str`
    pub role: String,
    /// Cannot log in, and tokens already given no longer hold.
    pub disabled: bool,
    /// When the user was made.
    pub created_at: Timestamp,
}

/// Never prints the address.
impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("role", &self.role)
            .field("disabled", &self.disabled)
            .finish_non_exhaustive()
    }
}

/// What is changed of a user; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// What the user may do.
    pub role: Option<Role>,
    /// Whether the user is kept out.
    pub disabled: Option<bool>,
}

/// Makes and changes users. Needs no secret for tokens.
pub struct Users {
    store: Arc<dyn UserStore>,
    clock: Arc<dyn Clock>,
    hasher: Hasher,
    common_passwords: bool,
}

impl Users {
    /// The users in `store`.
    pub fn new(settings: &Settings, store: Arc<dyn UserStore>, clock: Arc<dyn Clock>) -> Self {
        Users { store, clock, hasher: Hasher::new(settings), common_passwords: false }
    }

    /// For the demo's user, whose password everyone knows: the list of common ones is not looked at.
    #[must_use]
    pub fn allowing_common_passwords(self) -> Self {
        Users { common_passwords: true, ..self }
    }

    /// Makes a user.
    ///
    /// # Errors
    /// `Invalid`: the address is none, or the password breaks `validate_password`. `AlreadyExists`: the
    /// address has a user. `Unavailable`, `OutcomeUnknown`, `Internal`: the database's.
    pub async fn create(&self, email: &str, password: &str, role: Role) -> Result<User> {
        let mut errors = FieldErrors::new();
        let email = EmailAddress::parse(email).map_or_else(
            |message| {
                errors.insert("email", message);
                String::new()
            },
            |email| email.key().to_string(),
        );
        let known = self.common_passwords && password::is_common(password);
        if let (false, Err(message)) = (known, validate_password(password)) {
            errors.insert("password", message);
        }
        if !errors.is_empty() {
            return Err(Error::invalid_fields(errors));
        }
        let user = UserRow {
            email,
            password_hash: self.hasher.hash(password).await?,
            role: role.as_str().into(),
            disabled: false,
            created_at: self.clock.now(),
            sessions_not_before: Timestamp::default(),
        };
        match self.store.add_user(&user).await {
            Ok(true) => Ok(shown(user)),
            Ok(false) => Err(Error::new(ErrorCode::AlreadyExists, "There is a user of this e-mail address")),
            Err(error) => Err(written(&error)),
        }
    }

    /// Sets a new password. Tokens already given no longer hold: on a running node within `user_cache_ms`.
    ///
    /// # Errors
    /// As `create`; `NotFound`: there is no such user.
    pub async fn set_password(&self, email: &str, password: &str) -> Result<()> {
        if let Err(message) = validate_password(password) {
            return Err(Error::invalid_fields(FieldErrors::from([("password", message)])));
        }
        let hash = self.hasher.hash(password).await?;
        found(self.store.set_password_hash(&sought(email)?, &hash, self.clock.now()).await)
    }

    /// Sets a new password for `caller`, who knows the old one; `auth` looks at that as at a login's. Tokens already
    /// given no longer hold.
    ///
    /// # Errors
    /// `Forbidden`: the old password is another. `TooManyRequests`: too many logins of that account or address have
    /// failed. Else as `set_password`.
    pub async fn change_password(&self, auth: &Auth, caller: &Caller, old: &str, new: &str) -> Result<()> {
        if let Err(message) = validate_password(new) {
            return Err(Error::invalid_fields(FieldErrors::from([("newPassword", message)])));
        }
        auth.confirm(caller, old).await.map_err(|failure| match failure.code {
            // The token holds: this caller need not log in again.
            ErrorCode::Unauthenticated => Error::new(ErrorCode::Forbidden, "The old password is another"),
            _ => failure,
        })?;
        self.set_password(&caller.subject, new).await
    }

    /// Changes what a user may do, and whether.
    ///
    /// # Errors
    /// `NotFound`: there is no such user; else the database's.
    pub async fn change(&self, email: &EmailKey, change: Change) -> Result<User> {
        if let Some(role) = change.role {
            found(self.store.set_user_role(email, role.as_str()).await)?;
        }
        if let Some(disabled) = change.disabled {
            found(self.store.set_user_disabled(email, disabled).await)?;
        }
        let user = self.store.find_user(email).await.map_err(|error| read(&error))?;
        user.map(shown).ok_or_else(nobody)
    }

    /// Disables a user, or lets one in again. On a running node it holds within `user_cache_ms`.
    ///
    /// # Errors
    /// `NotFound`: there is no such user; else the database's.
    pub async fn set_disabled(&self, email: &str, disabled: bool) -> Result<()> {
        found(self.store.set_user_disabled(&sought(email)?, disabled).await)
    }

    /// Users in the order of their addresses, after `after`, at most `limit_rows`.
    ///
    /// # Errors
    /// `Invalid`: `after` can be nobody's address. Else the database's.
    pub async fn list(&self, after: Option<&str>, limit_rows: u32) -> Result<Vec<User>> {
        let after = after.map(EmailKey::place).transpose();
        let after =
            after.map_err(|message| Error::invalid_fields(FieldErrors::from([("after", message)])))?;
        let rows = self.store.list_users(after.as_deref(), limit_rows).await.map_err(|error| read(&error))?;
        Ok(rows.into_iter().map(shown).collect())
    }
}

fn shown(row: UserRow) -> User {
    User { email: row.email, role: row.role, disabled: row.disabled, created_at: row.created_at }
}

fn nobody() -> Error {
    Error::new(ErrorCode::NotFound, "There is no user of this e-mail address")
}

/// A failed read, in the words of the database: the caller is the administrator.
fn read(error: &store::Error) -> Error {
    let code = match error {
        store::Error::Broken(_) => ErrorCode::Internal,
        _ => ErrorCode::Unavailable,
    };
    Error::new(code, error.to_string())
}

fn found(changed: store::Result<bool>) -> Result<()> {
    match changed {
        Ok(true) => Ok(()),
        Ok(false) => Err(nobody()),
        Err(error) => Err(written(&error)),
    }
}

/// A failed write, in the words of the database: the caller is the administrator.
fn written(error: &store::Error) -> Error {
    let code = match error {
        store::Error::Unavailable(_) => ErrorCode::Unavailable,
        store::Error::Unknown(_) => ErrorCode::OutcomeUnknown,
        store::Error::Broken(_) => ErrorCode::Internal,
    };
    Error::new(code, error.to_string())
}
