//! User administration for `/api/users` and the command line.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use crate::domain::access::{Caller, Role};
use crate::domain::email::{EmailAddress, EmailKey};
use crate::domain::time::{Clock, Timestamp};
use crate::domain::validate::FieldErrors;
use crate::error::{Error, ErrorCode, Result};
use crate::store::{self, ChangedBy, UserAdded, UserChange, UserChanged, UserRow, UserStore};

use super::callers::Callers;
use super::password::{self, Hasher};
use super::{Auth, Settings, sought, validate_password};

/// A user without secret data.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// The login name.
    pub email: String,
    /// The role, as `Role::as_str` writes it.
    pub role: String,
    /// Whether the user is disabled: logins are refused, and tokens issued before are no longer valid.
    pub disabled: bool,
    /// When the user was created.
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

/// A change of a user; `None` leaves a field unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The new role.
    pub role: Option<Role>,
    /// Whether the user is to be disabled.
    pub disabled: Option<bool>,
}

/// The originator of a change of users.
#[derive(Clone, Copy, Debug)]
pub enum By<'a> {
    /// An operator: anybody who can run the program on the database.
    Operator,
    /// The set-up of a database without users.
    SetUp,
    /// A user, whose permission is checked again in the transaction of the change.
    Caller(&'a Caller),
}

impl By<'_> {
    fn judged_again(self) -> ChangedBy {
        match self {
            By::Operator => ChangedBy::Operator,
            By::SetUp => ChangedBy::SetUp,
            By::Caller(caller) => ChangedBy::User {
                email: caller.subject.as_ref().to_owned(),
                role: caller.role.as_str().to_owned(),
            },
        }
    }
}

/// Creates and changes users. Needs no secret for tokens.
pub struct Users {
    store: Arc<dyn UserStore>,
    clock: Arc<dyn Clock>,
    hasher: Hasher,
    common_passwords: bool,
    turns: Turns,
    /// The user cache of this node, if the node authenticates callers.
    callers: Option<Callers>,
}

/// Serialises requests that create a user with the same address, so that the second finds the user before it
/// hashes a password. The map holds at most one entry per waiting request.
#[derive(Default)]
struct Turns(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    async fn of(&self, email: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let known = turns.get(email).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(email.to_owned(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

impl Users {
    /// Returns the administration of the users in `store`.
    pub fn new(settings: &Settings, store: Arc<dyn UserStore>, clock: Arc<dyn Clock>) -> Self {
        let hasher = Hasher::new(settings);
        Users { store, clock, hasher, common_passwords: false, turns: Turns::default(), callers: None }
    }

    /// Makes each change invalidate the user in the cache of `auth`, so that the change takes effect on this
    /// node at once.
    #[must_use]
    pub fn seen_by(self, auth: &Auth) -> Self {
        Users { callers: Some(auth.inner.callers.clone()), ..self }
    }

    /// Allows common passwords, for the user of the demo, whose password is public.
    #[must_use]
    pub fn allowing_common_passwords(self) -> Self {
        Users { common_passwords: true, ..self }
    }

    /// Creates a user.
    ///
    /// # Errors
    /// `Invalid`: `email` is not an address, or the password breaks `validate_password`. `AlreadyExists`: a
    /// user with the address exists, or `by` is `SetUp` and any user exists. `Forbidden`: the caller no
    /// longer has the permission. `Unavailable`, `OutcomeUnknown`, `Internal`: the database failed.
    pub async fn create(&self, email: &str, password: &str, role: Role, by: By<'_>) -> Result<User> {
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
        let _turn = self.turns.of(&email).await;
        // Look for the user first: hashing is costly, and its queue is bounded.
        if self.store.find_user(&email).await.map_err(|error| read(&error))?.is_some() {
            return Err(taken());
        }
        let user = UserRow {
            email,
            password_hash: self.hasher.hash(password).await?,
            role: role.as_str().into(),
            disabled: false,
            created_at: self.clock.now(),
            sessions_not_before: Timestamp::default(),
        };
        match self.store.add_user(&user, &by.judged_again()).await {
            Ok(UserAdded::Done) => Ok(shown(user)),
            Ok(UserAdded::Taken) => Err(taken()),
            Ok(UserAdded::NotPermitted) => Err(no_longer_permitted()),
            Err(error) => Err(written(&error)),
        }
    }

    /// Sets a new password. All sessions and tokens from before become invalid, on other running nodes within
    /// `user_cache_ms`.
    ///
    /// # Errors
    /// The errors of `create`. `NotFound`: the user does not exist.
    pub async fn set_password(&self, email: &str, password: &str) -> Result<()> {
        if let Err(message) = validate_password(password) {
            return Err(Error::invalid_fields(FieldErrors::from([("password", message)])));
        }
        match self.replace_password(&sought(email)?, password, None).await? {
            true => Ok(()),
            false => Err(nobody()),
        }
    }

    /// Returns false if the user does not exist, or if `judged` is given and is no longer the user's hash.
    async fn replace_password(&self, email: &str, password: &str, judged: Option<&str>) -> Result<bool> {
        let hash = self.hasher.hash(password).await?;
        let set = self.store.set_password_hash(email, &hash, judged, self.clock.now()).await;
        self.forget(email);
        set.map_err(|error| written(&error))
    }

    fn forget(&self, email: &str) {
        if let Some(callers) = &self.callers {
            callers.forget(email);
        }
    }

    /// Sets a new password for `caller` after `auth` has checked the current one, with the limits of a login.
    /// All sessions and tokens from before become invalid.
    ///
    /// # Errors
    /// `Forbidden`: the current password is wrong, or was changed in the meantime. `TooManyRequests`: too
    /// many logins of the account or the address have failed. Otherwise the errors of `set_password`.
    pub async fn change_password(&self, auth: &Auth, caller: &Caller, old: &str, new: &str) -> Result<()> {
        if let Err(message) = validate_password(new) {
            return Err(Error::invalid_fields(FieldErrors::from([("newPassword", message)])));
        }
        // Not `Unauthenticated`: the token is valid, so the caller need not log in again.
        let wrong = || Error::new(ErrorCode::Forbidden, "The current password is wrong");
        let judged = auth.confirm(caller, old).await.map_err(|failure| match failure.code {
            ErrorCode::Unauthenticated => wrong(),
            _ => failure,
        })?;
        match self.replace_password(&caller.subject, new, Some(&judged)).await? {
            true => Ok(()),
            false => Err(wrong()),
        }
    }

    /// Changes the role of a user, or disables or enables the user, at once. Disabling a user ends all of the
    /// user's sessions permanently. On other running nodes the change takes effect within `user_cache_ms`.
    ///
    /// # Errors
    /// `NotFound`: the user does not exist. `Forbidden`: the caller no longer has the permission, or no
    /// enabled ADMIN would remain. An operator may remove the last ADMIN. Otherwise the errors of the
    /// database.
    pub async fn change(&self, email: &EmailKey, change: Change, by: By<'_>) -> Result<User> {
        let Change { role, disabled } = change;
        let change = UserChange { role: role.map(|role| role.as_str().to_owned()), disabled };
        let changed = self.store.change_user(email, &change, &by.judged_again(), self.clock.now()).await;
        self.forget(email);
        match changed.map_err(|error| written(&error))? {
            UserChanged::Done(user) => Ok(shown(user)),
            UserChanged::Nobody => Err(nobody()),
            UserChanged::NotPermitted => Err(no_longer_permitted()),
            UserChanged::LastAdmin => {
                Err(Error::new(ErrorCode::Forbidden, "One enabled user of the role ADMIN has to be left"))
            }
        }
    }

    /// Disables or enables a user.
    ///
    /// # Errors
    /// The errors of `change` by an operator.
    pub async fn set_disabled(&self, email: &str, disabled: bool) -> Result<()> {
        let change = Change { disabled: Some(disabled), ..Change::default() };
        self.change(&sought(email)?, change, By::Operator).await.map(drop)
    }

    /// Returns at most `limit_rows` users in the order of their addresses, starting after `after`.
    ///
    /// # Errors
    /// `Invalid`: `after` cannot be an address. Otherwise the errors of the database.
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

/// Returns the error of a failed read with the text of the database, because the caller is an administrator.
fn read(error: &store::Error) -> Error {
    Error::new(ErrorCode::Unavailable, error.to_string())
}

fn taken() -> Error {
    Error::new(ErrorCode::AlreadyExists, "There is a user of this e-mail address")
}

fn no_longer_permitted() -> Error {
    Error::new(ErrorCode::Forbidden, "The caller is not permitted to change users any more")
}

/// Returns the error of a failed write with the text of the database, because the caller is an administrator.
fn written(error: &store::Error) -> Error {
    let code = match error {
        store::Error::Unavailable(_) | store::Error::Broken(_) => ErrorCode::Unavailable,
        store::Error::Unknown(_) => ErrorCode::OutcomeUnknown,
    };
    Error::new(code, error.to_string())
}
