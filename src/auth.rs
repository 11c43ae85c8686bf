//! Authentication: passwords at login, tokens afterwards. Both edges authenticate callers here and nowhere
//! else.
//!
//! Invariants:
//! - A token is a JWT (RFC 7519) signed with the one configured algorithm. Type, issuer, audience, subject,
//!   role, session and expiry are required.
//! - A token is valid only while its session is not revoked and its user exists, is enabled, and has the
//!   generation of the token's session. A revocation is known on every node within 5 s. The user is read
//!   again at least every `user_cache_ms`, and at once on the node that changes the user. If the database
//!   cannot be read, the answer is `Unavailable`; the caller is not refused as unknown.
//! - A decision is checked again in the transaction that acts on it: the hash and the generation when a
//!   session starts or is refreshed, the hash when a password is changed, the administrator's permission when
//!   a user is changed.
//! - A failed login gives the same answer at the same cost whether the user is unknown, disabled, or the
//!   password is wrong or too long. Exception: after `bcrypt_cost` was lowered, older hashes cost more to
//!   check. Until these passwords are set again, the response time distinguishes their users from unknown
//!   ones.
//! - Memory is bounded: the caches have a capacity, and the hashing queue has a limit.
//! - No password, hash, token, secret or e-mail address is logged or printed.

mod callers;
mod common;
#[cfg(test)]
pub(crate) mod fake;
mod fault;
mod first_admin;
mod keys;
mod limits;
mod password;
mod pool;
mod sessions;
mod settings;
#[cfg(test)]
mod tests;
mod together;
mod token;
mod users;
mod vault;

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::access::{Caller, Role};
use crate::domain::email::{EMAIL_MAX_CHARS, EmailKey};
use crate::domain::ids::SessionId;
use crate::domain::time::{Clock, Timestamp};
use crate::domain::validate::FieldErrors;
use crate::error::{Error as Failure, ErrorCode, Result};
use crate::store::{self, CallerStore, UserRow};

use callers::Callers;
use fault::Fault;
use limits::{Attempt, Limits};
use password::Hasher;
use sessions::{Grant, Sessions};
use token::Tokens;

pub use first_admin::{FirstAdmin, make_first_admin};
pub use keys::{KeyAdmin, KeyFacts, MadeKey};
pub use password::{PASSWORD_MAX_BYTES, PASSWORD_MIN_BYTES, validate_password};
pub use sessions::Announce;
pub use settings::{BCRYPT_COST_MIN, SecretText, Settings, TokenAlgorithm};
pub use token::{KeySet, PublicKey};
pub use users::{By, Change, User, Users};

/// The largest difference between the clocks of two nodes, and the longest time until a change becomes
/// visible in the database. Applies wherever one node judges a row that another node wrote.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(60);

/// Why authentication cannot be set up with these settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The secret is not set. No default is generated, because every node of a cluster needs the same secret.
    #[error(
        "auth.jwt_secret is not set: set HYGEIA__AUTH__JWT_SECRET to a secret of at least 32 bytes, such as `openssl rand -base64 48` makes"
    )]
    SecretMissing,
    /// A secret shorter than the hash it keys (RFC 7518, section 3.2).
    #[error(
        "auth.{key} is {bytes} bytes long (after decoding base64): at least 32 are needed; `openssl rand -base64 48` makes some"
    )]
    SecretTooShort {
        /// The name of the setting.
        key: &'static str,
        /// The length of the secret in bytes.
        bytes: usize,
    },
    /// The operating system provides no random bytes.
    #[error("the system gives no random bytes")]
    NoRandomness,
}

/// A newly issued access token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The token that the caller sends as `Bearer`.
    pub text: String,
    /// The time until the token expires.
    pub expires_in: Duration,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

/// The result of a login or a refresh.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The access token for requests.
    pub token: Token,
    /// The refresh token, which can be exchanged once for the next tokens.
    pub refresh_token: String,
    /// The time until `refresh_token` expires.
    pub refresh_expires_in: Duration,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("token", &self.token).finish_non_exhaustive()
    }
}

/// Authenticates callers. Cloning is cheap.
#[derive(Clone)]
pub struct Auth {
    inner: Arc<Inner>,
}

/// The user whose password was checked.
struct Judged {
    role: Role,
    password_hash: String,
    /// The value of `UserRow::sessions_not_before` when the password was checked.
    generation: Timestamp,
}

struct Inner {
    tokens: Tokens,
    sessions: Sessions,
    limits: Limits,
    hasher: Hasher,
    callers: Callers,
}

impl Auth {
    /// Returns an authenticator for the users in `store`.
    ///
    /// # Errors
    /// A secret is missing or too short.
    pub fn new(
        settings: &Settings,
        store: Arc<dyn CallerStore>,
        clock: Arc<dyn Clock>,
    ) -> std::result::Result<Self, Error> {
        let shared = || (Arc::clone(&store), Arc::clone(&clock));
        let (keys, time) = shared();
        let tokens = Tokens::new(settings, keys, time)?;
        let (kept, time) = shared();
        let sessions = Sessions::new(settings, kept, time);
        let (counted, time) = shared();
        let limits = Limits::new(settings, counted, time);
        let hasher = Hasher::new(settings);
        let callers = Callers::new(settings, store, clock);
        Ok(Auth { inner: Arc::new(Inner { tokens, sessions, limits, hasher, callers }) })
    }

    /// Starts a session for the user `email` if `password` is correct. `from` is the address of the client. A
    /// refused login also costs one hash.
    ///
    /// # Errors
    /// `Invalid`: `email` contains a control character. `Unauthenticated`: the address or the password is
    /// wrong; the error does not say which. `TooManyRequests`: too many logins of the account or the client
    /// address have failed. `Overloaded`: too many logins are in progress. `Unavailable`: the database cannot
    /// answer. `OutcomeUnknown`: it is not known whether the session was stored. `Internal`: the stored hash
    /// is damaged.
    pub async fn login(&self, email: &str, password: &str, from: Option<IpAddr>) -> Result<Login> {
        let outcome = self.try_login(email, password, from).await;
        note_login(outcome.as_ref().map_or_else(|failure| failure.code.as_str(), |_| "ok"));
        outcome
    }

    async fn try_login(&self, email: &str, password: &str, from: Option<IpAddr>) -> Result<Login> {
        // Text that cannot be an address costs as much as a wrong password, except text that no database
        // statement accepts.
        let email = EmailKey::of_any_length(email).map_err(invalid_email)?;
        let judged = self.recognise(&email, password, from).await?;
        // If the password was changed after the check, the login fails as with a wrong password.
        let grant = self.inner.sessions.start(&email, &judged).await?.ok_or_else(wrong_password)?;
        self.granted(&email, judged.role, grant).await
    }

    /// Checks the password of an authenticated caller, such as before a password change, and returns the hash
    /// that matched. The attempt is limited and counted like a login. Otherwise anybody with a token could
    /// guess passwords without limit.
    ///
    /// # Errors
    /// The errors of `login`, except those about sessions and keys.
    async fn confirm(&self, caller: &Caller, password: &str) -> Result<String> {
        let outcome = self.recognise(&caller.subject, password, caller.from).await;
        // A correct password is not counted as a login; a wrong one is counted as a failed login.
        outcome.map(|judged| judged.password_hash).inspect_err(|failure| note_login(failure.code.as_str()))
    }

    /// Returns the user `email` (in the form of `EmailKey`) if `password` is correct.
    async fn recognise(&self, email: &str, password: &str, from: Option<IpAddr>) -> Result<Judged> {
        let inner = &*self.inner;
        let attempt = Attempt::new(email, from);
        inner.limits.check(&attempt)?;
        // Reserve a place before reading the database, so that a flood of logins is refused here.
        let place = inner.hasher.place()?;
        inner.limits.count(&attempt).await?;
        let user =
            if email.chars().count() <= EMAIL_MAX_CHARS { inner.callers.find(email).await? } else { None };
        let user = user.filter(|user| !user.disabled);
        let hash = user.as_ref().map(|user| user.password_hash.clone());
        let fits = inner.hasher.verify(place, password, hash).await?;
        let judged = user.and_then(|user| {
            let UserRow { role, password_hash, sessions_not_before: generation, .. } = user;
            Some(Judged { role: Role::parse(&role)?, password_hash, generation })
        });
        match judged {
            Some(judged) if fits => {
                inner.limits.forgive(&attempt).await;
                Ok(judged)
            }
            _ => Err(wrong_password()),
        }
    }

    /// Exchanges a refresh token, which is valid once, for the next tokens of its session.
    ///
    /// # Errors
    /// `Unauthenticated`: the refresh token is not valid, or its user is disabled; if the token was used
    /// before, its session is revoked. `Unavailable`: the database cannot answer. `OutcomeUnknown`: the
    /// refresh token may have been used up.
    pub async fn refresh(&self, refresh_token: &str) -> Result<Login> {
        let inner = &*self.inner;
        let (subject, role, grant) = inner.sessions.refresh(refresh_token).await?;
        match Role::parse(&role) {
            Some(role) => self.granted(&subject, role, grant).await,
            None => {
                inner.sessions.revoke(grant.session).await?;
                Err(token::refused())
            }
        }
    }

    async fn granted(&self, subject: &str, role: Role, grant: Grant) -> Result<Login> {
        let token = self.inner.tokens.sign(subject, role, &grant).await?;
        let Grant { refresh_token, refresh_expires_in, .. } = grant;
        Ok(Login { token, refresh_token, refresh_expires_in })
    }

    /// Revokes the session of `bearer_token`.
    ///
    /// # Errors
    /// The errors of `authenticate`. `OutcomeUnknown`: the session may be revoked.
    pub async fn logout(&self, bearer_token: &str) -> Result<()> {
        let verified = self.inner.tokens.verify(bearer_token).await?;
        self.inner.sessions.revoke(verified.session).await
    }

    /// Revokes all sessions of `subject` and returns their number.
    ///
    /// # Errors
    /// `Unavailable`: the database cannot do it now. `OutcomeUnknown`: the sessions may be revoked.
    pub async fn logout_all(&self, subject: &str) -> Result<usize> {
        let ended = self.inner.sessions.revoke_all(subject).await;
        self.inner.callers.forget(subject);
        ended
    }

    /// Returns the caller that `bearer_token` identifies, with the user's present role.
    ///
    /// # Errors
    /// `Unauthenticated`: the token is not valid, or its user is unknown or disabled. `Unavailable`: the
    /// database cannot answer. `Overloaded`: more sessions are revoked than this node can remember.
    pub async fn authenticate(&self, bearer_token: &str) -> Result<Caller> {
        let token::Verified { subject, session, user_generation, .. } =
            self.inner.tokens.verify(bearer_token).await?;
        self.inner.sessions.check(session).await?;
        match self.inner.callers.standing(&subject).await? {
            // Not `==`: this node may still have the previous generation in its cache.
            Some((role, generation)) if user_generation >= generation => {
                Ok(Caller { subject, role, from: None, break_glass: None })
            }
            _ => Err(token::refused()),
        }
    }

    /// Returns the public keys that verify tokens (RFC 7517).
    ///
    /// # Errors
    /// `Unavailable`: the database cannot answer.
    pub async fn key_set(&self) -> Result<KeySet> {
        self.inner.tokens.key_set().await
    }

    /// Returns a MAC of `message` for `purpose` that only nodes of the cluster can compute. It protects texts
    /// that clients send back, such as list cursors. Every node computes the same MAC.
    pub fn seal(&self, purpose: &str, message: &[u8]) -> [u8; 16] {
        self.inner.tokens.seal(purpose, message)
    }

    /// Registers `announce`, which is called with the sessions that this node revokes, for other nodes. Call
    /// it once.
    pub fn announce_with(&self, announce: Announce) {
        self.inner.sessions.announce_with(announce);
    }

    /// Records that another node revoked `sessions`.
    pub fn revoked_elsewhere(&self, sessions: &[SessionId]) {
        self.inner.sessions.revoked_elsewhere(sessions);
    }

    /// Reads the revoked sessions from the database.
    ///
    /// # Errors
    /// Why they cannot be read, for an operator.
    pub async fn read_revocations(&self) -> std::result::Result<(), String> {
        self.inner.sessions.read().await.map_err(|fault| fault.to_string())
    }

    /// Reads the keys from the database, and makes the next key if it is due.
    ///
    /// # Errors
    /// Why they cannot be read, for an operator.
    pub async fn read_keys(&self) -> std::result::Result<(), String> {
        match self.inner.tokens.keys() {
            Some(keys) => keys.read().await.map_err(|fault| fault.to_string()),
            None => Ok(()),
        }
    }

    /// Returns when the next token key is due. `None` if the keys are not known yet or are not rotated
    /// automatically.
    pub fn key_due(&self) -> Option<Timestamp> {
        self.inner.tokens.keys()?.due()
    }

    /// Returns why this node cannot sign tokens although the keys are known, for an operator; `None` if it
    /// can.
    pub fn why_unsigned(&self) -> Option<String> {
        self.inner.tokens.keys()?.why_unsigned()
    }

    /// Deletes ended sessions, expired keys and old failed logins from the database, a bounded number per
    /// call.
    ///
    /// # Errors
    /// `Unavailable`: the database cannot do it now.
    pub async fn delete_dead(&self) -> Result<()> {
        self.inner.sessions.delete_dead().await?;
        self.inner.limits.delete_dead().await?;
        match self.inner.tokens.keys() {
            Some(keys) => keys.delete_dead().await,
            None => Ok(()),
        }
    }
}

/// Returns the normalised form of an address in a request. Only this form reaches the database.
fn sought(email: &str) -> Result<EmailKey> {
    EmailKey::sought(email).map_err(invalid_email)
}

fn invalid_email(message: &'static str) -> Failure {
    Failure::invalid_fields(FieldErrors::from([("email", message)]))
}

fn wrong_password() -> Failure {
    Failure::new(ErrorCode::Unauthenticated, "The e-mail address or the password is wrong")
}

fn note_login(outcome: &'static str) {
    metrics::counter!("hygeia_logins_total", "outcome" => outcome).increment(1);
}

/// Waits at most `limit` for the database. A statement that times out may still take effect.
async fn timed<T>(limit: Duration, call: impl Future<Output = store::Result<T>>) -> store::Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result,
        Err(_) => Err(store::Error::Unknown("no answer in time".into())),
    }
}

/// Returns the error for a failed read of `what`.
fn lookup_failed(what: &'static str, error: &store::Error) -> Failure {
    Fault::of_database(what, error).into()
}

/// Returns the token in an `Authorization` header or metadata entry (RFC 6750, section 2.1). The name of the
/// scheme is case-insensitive (RFC 9110, section 11.1).
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, rest) = authorization.split_once(' ')?;
    let token = rest.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
