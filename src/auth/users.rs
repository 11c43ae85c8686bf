//! Users as an administrator handles them: what `/api/users` and the command line call.

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

/// Who makes and changes users.
#[derive(Clone, Copy, Debug)]
pub enum By<'a> {
    /// Whoever can run the program on the database.
    Operator,
    /// The set-up of a database without users.
    SetUp,
    /// A user, whose right to it is judged again in the transaction of the change.
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

/// Makes and changes users. Needs no secret for tokens.
pub struct Users {
    store: Arc<dyn UserStore>,
    clock: Arc<dyn Clock>,
    hasher: Hasher,
    common_passwords: bool,
    turns: Turns,
    /// What this node remembers of users, if it lets callers in.
    callers: Option<Callers>,
}

/// Makes requests that add a user of the same address wait for each other: the second finds the user of the first
/// before it hashes a password. There are no more turns than requests that wait.
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
    /// The users in `store`.
    pub fn new(settings: &Settings, store: Arc<dyn UserStore>, clock: Arc<dyn Clock>) -> Self {
        let hasher = Hasher::new(settings);
        Users { store, clock, hasher, common_passwords: false, turns: Turns::default(), callers: None }
    }

    /// Has `auth` forget what it remembers of a user who is changed: the change holds on this node at once.
    #[must_use]
    pub fn seen_by(self, auth: &Auth) -> Self {
        Users { callers: Some(auth.inner.callers.clone()), ..self }
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
    /// address has a user, or `by` is `SetUp` and there is a user. `Forbidden`: the caller is not permitted to any more.
    /// `Unavailable`, `OutcomeUnknown`, `Internal`: the database's.
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
        // Hashing is costly, and only so many passwords may wait for it.
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

    /// Sets a new password. No session and no token given before holds any more: on other running nodes within
    /// `user_cache_ms`.
    ///
    /// # Errors
    /// As `create`; `NotFound`: there is no such user.
    pub async fn set_password(&self, email: &str, password: &str) -> Result<()> {
        if let Err(message) = validate_password(password) {
            return Err(Error::invalid_fields(FieldErrors::from([("password", message)])));
        }
        match self.replace_password(&sought(email)?, password, None).await? {
            true => Ok(()),
            false => Err(nobody()),
        }
    }

    /// False if there is no such user, or with `judged`, if that is not the user's hash any more.
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

    /// Sets a new password for `caller`, who knows the old one; `auth` looks at that as at a login's. No session and no
    /// token given before holds any more.
    ///
    /// # Errors
    /// `Forbidden`: the old password is wrong, or was changed meanwhile. `TooManyRequests`: too many logins of that account or address have
    /// failed. Else as `set_password`.
    pub async fn change_password(&self, auth: &Auth, caller: &Caller, old: &str, new: &str) -> Result<()> {
        if let Err(message) = validate_password(new) {
            return Err(Error::invalid_fields(FieldErrors::from([("newPassword", message)])));
        }
        // The token holds: this caller need not log in again.
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

    /// Changes what a user may do, and whether, at once. A disabling ends all sessions of the user for good. On other
    /// running nodes it holds within `user_cache_ms`.
    ///
    /// # Errors
    /// `NotFound`: there is no such user. `Forbidden`: the caller is not permitted to any more, or no enabled ADMIN
    /// would be left; an operator may leave none. Else the database's.
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

    /// Disables a user, or lets one in again.
    ///
    /// # Errors
    /// As `change` by an operator.
    pub async fn set_disabled(&self, email: &str, disabled: bool) -> Result<()> {
        let change = Change { disabled: Some(disabled), ..Change::default() };
        self.change(&sought(email)?, change, By::Operator).await.map(drop)
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
    Error::new(ErrorCode::Unavailable, error.to_string())
}

fn taken() -> Error {
    Error::new(ErrorCode::AlreadyExists, "There is a user of this e-mail address")
}

fn no_longer_permitted() -> Error {
    Error::new(ErrorCode::Forbidden, "The caller is not permitted to change users any more")
}

/// A failed write, in the words of the database: the caller is the administrator.
fn written(error: &store::Error) -> Error {
    let code = match error {
        store::Error::Unavailable(_) | store::Error::Broken(_) => ErrorCode::Unavailable,
        store::Error::Unknown(_) => ErrorCode::OutcomeUnknown,
    };
    Error::new(code, error.to_string())
}
