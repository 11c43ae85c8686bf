//! An in-memory user store and a manual clock, for tests.

mod kept;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use crate::domain::access::Role;
use crate::domain::time::{Clock, MonoTime, Timestamp};
use crate::store::{ChangedBy, Error, Result, UserAdded, UserChange, UserChanged, UserRow, UserStore};

use super::{Auth, SecretText, Settings, TokenAlgorithm};
use kept::Kept;

/// A secret of the minimum length, as raw text.
pub(crate) const SECRET: &str = "raw-text-secret-of-32-bytes-----";

/// HS256 with `SECRET`, so that tests can sign tokens.
pub(crate) fn settings() -> Settings {
    Settings {
        token_algorithm: TokenAlgorithm::HS256,
        jwt_secret: Some(SecretText::from(SECRET.to_owned())),
        ..eddsa()
    }
}

/// The default settings with cheap hashes.
pub(crate) fn eddsa() -> Settings {
    Settings { bcrypt_cost: 4, ..Settings::default() }
}

/// A clock that stands still until `step` moves it.
pub(crate) struct FakeClock(AtomicI64);

impl FakeClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(FakeClock(AtomicI64::new(1_770_000_000_000_000)))
    }

    pub(crate) fn step(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_micros()).expect("small"), Ordering::SeqCst);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }

    fn mono(&self) -> MonoTime {
        MonoTime(self.0.load(Ordering::SeqCst).unsigned_abs() * 1000)
    }
}

/// An in-memory user store. Look-ups wait while `gate` has no permits; session starts wait while
/// `sessions_gate` has none.
pub(crate) struct FakeUsers {
    users: Mutex<BTreeMap<String, UserRow>>,
    failure: Mutex<Option<Error>>,
    pub(crate) lookups: AtomicUsize,
    pub(crate) key_reads: AtomicUsize,
    pub(crate) revocation_reads: AtomicUsize,
    kept: Mutex<Kept>,
    pub(crate) gate: Semaphore,
    pub(crate) sessions_begun: AtomicUsize,
    pub(crate) sessions_gate: Semaphore,
}

impl FakeUsers {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(FakeUsers {
            users: Mutex::default(),
            failure: Mutex::default(),
            lookups: AtomicUsize::new(0),
            key_reads: AtomicUsize::new(0),
            revocation_reads: AtomicUsize::new(0),
            kept: Mutex::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            sessions_begun: AtomicUsize::new(0),
            sessions_gate: Semaphore::new(Semaphore::MAX_PERMITS),
        })
    }

    /// Returns a store with one user, whose password is `password123`, hashed at the lowest cost.
    pub(crate) fn with(email: &str) -> Arc<Self> {
        let users = Self::new();
        users.put(email, "password123");
        users
    }

    pub(crate) fn put(&self, email: &str, password: &str) {
        let row = UserRow {
            email: email.into(),
            password_hash: bcrypt::hash(password, 4).expect("hashed"),
            role: Role::Admin.as_str().into(),
            disabled: false,
            created_at: Timestamp::default(),
            sessions_not_before: Timestamp::default(),
        };
        self.users.lock().expect("held briefly").insert(email.into(), row);
    }

    pub(crate) fn fail(&self, failure: Option<Error>) {
        *self.failure.lock().expect("held briefly") = failure;
    }

    pub(super) fn user(&self, email: &str) -> Option<UserRow> {
        self.users.lock().expect("held briefly").get(email).cloned()
    }

    /// Starts the user's next generation, as a logout from all sessions does.
    pub(super) fn next_generation(&self, email: &str, now: Timestamp) {
        if let Some(user) = self.users.lock().expect("held briefly").get_mut(email) {
            user.sessions_not_before = next_generation(user, now);
        }
    }

    /// Returns the other contents of the database.
    pub(crate) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("held briefly")
    }

    fn fails(&self) -> Result<()> {
        self.failure.lock().expect("held briefly").clone().map_or(Ok(()), Err)
    }
}

fn next_generation(user: &UserRow, now: Timestamp) -> Timestamp {
    now.max(Timestamp(user.sessions_not_before.0 + 1))
}

fn is_permitted(users: &BTreeMap<String, UserRow>, by: &ChangedBy) -> bool {
    let ChangedBy::User { email, role } = by else { return true };
    users.get(email).is_some_and(|user| !user.disabled && user.role == *role)
}

#[async_trait]
impl UserStore for FakeUsers {
    async fn find_user(&self, email: &str) -> Result<Option<UserRow>> {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        let _passed = self.gate.acquire().await;
        self.fails()?;
        Ok(self.users.lock().expect("held briefly").get(email).cloned())
    }

    async fn add_user(&self, user: &UserRow, by: &ChangedBy) -> Result<UserAdded> {
        self.fails()?;
        let mut users = self.users.lock().expect("held briefly");
        if !is_permitted(&users, by) {
            return Ok(UserAdded::NotPermitted);
        }
        if users.contains_key(&user.email) || matches!(by, ChangedBy::SetUp) && !users.is_empty() {
            return Ok(UserAdded::Taken);
        }
        users.insert(user.email.clone(), user.clone());
        Ok(UserAdded::Done)
    }

    async fn set_password_hash(
        &self,
        email: &str,
        password_hash: &str,
        judged: Option<&str>,
        now: Timestamp,
    ) -> Result<bool> {
        self.fails()?;
        let mut users = self.users.lock().expect("held briefly");
        let as_judged =
            |user: &UserRow| judged.is_none_or(|hash| !user.disabled && user.password_hash == hash);
        let Some(user) = users.get_mut(email).filter(|user| as_judged(user)) else { return Ok(false) };
        user.password_hash = password_hash.into();
        user.sessions_not_before = next_generation(user, now);
        Ok(true)
    }

    async fn change_user(
        &self,
        email: &str,
        change: &UserChange,
        by: &ChangedBy,
        now: Timestamp,
    ) -> Result<UserChanged> {
        self.fails()?;
        let mut users = self.users.lock().expect("held briefly");
        if !is_permitted(&users, by) {
            return Ok(UserChanged::NotPermitted);
        }
        let Some(user) = users.get_mut(email) else { return Ok(UserChanged::Nobody) };
        let before = user.clone();
        user.role = change.role.clone().unwrap_or_else(|| before.role.clone());
        user.disabled = change.disabled.unwrap_or(before.disabled);
        if change.disabled == Some(true) {
            user.sessions_not_before = next_generation(user, now);
        }
        let after = user.clone();
        let is_admin = |user: &UserRow| user.role == Role::Admin.as_str() && !user.disabled;
        if matches!(by, ChangedBy::User { .. }) && !users.values().any(is_admin) {
            users.insert(email.to_owned(), before);
            return Ok(UserChanged::LastAdmin);
        }
        Ok(UserChanged::Done(after))
    }

    async fn list_users(&self, after: Option<&str>, limit_rows: u32) -> Result<Vec<UserRow>> {
        self.fails()?;
        let users = self.users.lock().expect("held briefly");
        let later = users.values().filter(|user| after.is_none_or(|after| user.email.as_str() > after));
        Ok(later.take(limit_rows as usize).cloned().collect())
    }
}

pub(crate) fn auth(users: &Arc<FakeUsers>, clock: &Arc<FakeClock>) -> Auth {
    auth_with(&settings(), users, clock)
}

pub(crate) fn auth_with(settings: &Settings, users: &Arc<FakeUsers>, clock: &Arc<FakeClock>) -> Auth {
    let (users, clock): (Arc<FakeUsers>, Arc<FakeClock>) = (Arc::clone(users), Arc::clone(clock));
    Auth::new(settings, users, clock).expect("the secret is long enough")
}
