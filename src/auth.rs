//! Who a caller is: passwords at login, tokens afterwards. Both edges ask here and nowhere else.
//!
//! Invariants:
//! - A token is a JWT (RFC 7519) under the one algorithm that is configured; type, issuer, audience, subject, role,
//!   session and an end are required of it.
//! - A token holds only while its session is not revoked, and while its user exists, is not disabled, and is of the
//!   generation of the token's session. The former is known within 5 s, the latter anew at least every `user_cache_ms`,
//!   and at once on the node that changes the user. If the database cannot be asked, nobody is refused as unknown: it is
//!   `Unavailable`.
//! - What was judged is looked at again in the transaction that acts on it: the hash and the generation when a session
//!   begins or goes on, the hash when a password is changed, the right of an administrator when a user is.
//! - A login that fails says and costs the same whether the user is unknown, disabled, or the password
//!   wrong or too long. Where `bcrypt_cost` was lowered, hashes made before still cost more to check, and so
//!   tell their users from unknown ones until the passwords are set anew.
//! - Memory is bounded: the caches have a capacity, and hashing has a queue with an end.
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

/// How far the clocks of nodes may differ, and how long a change may take to be seen in the database, where what
/// one node wrote is judged by another.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(60);

/// Why callers cannot be told apart with these settings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no secret, and none is made up: every node of a cluster needs the same one.
    #[error(
        "auth.jwt_secret is not set: set HYGEIA__AUTH__JWT_SECRET to a secret of at least 32 bytes, such as `openssl rand -base64 48` makes"
    )]
    SecretMissing,
    /// A secret shorter than the hash it keys (RFC 7518, section 3.2).
    #[error(
        "auth.{key} is {bytes} bytes long (after decoding base64): at least 32 are needed; `openssl rand -base64 48` makes some"
    )]
    SecretTooShort {
        /// Its name.
        key: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    NoRandomness,
}

/// A token just given.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What the caller shows as `Bearer`.
    pub text: String,
    /// How long it holds.
    pub expires_in: Duration,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

/// What a login or a refresh gives.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// For requests.
    pub token: Token,
    /// For the next token, once.
    pub refresh_token: String,
    /// For how long `refresh_token` is good.
    pub refresh_expires_in: Duration,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("token", &self.token).finish_non_exhaustive()
    }
}

/// Answers who a caller is. Cloning is cheap.
#[derive(Clone)]
pub struct Auth {
    inner: Arc<Inner>,
}

/// What a password was found to fit.
struct Judged {
    role: Role,
    password_hash: String,
    /// `UserRow::sessions_not_before`
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
    /// Callers as `store` knows them.
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

    /// A session for the user of `email` if `password` is theirs; `from` is the address of who asks. To be told that
    /// it is not costs one hash, too.
    ///
    /// # Errors
    /// `Invalid`: a control character is in `email`. `Unauthenticated`: they do not fit, without a word on which. `TooManyRequests`: too many logins of that
    /// account or address have failed. `Overloaded`: too many log in. `Unavailable`: the database cannot say.
    /// `OutcomeUnknown`: whether the session was stored is not known. `Internal`: the stored hash is damaged.
    pub async fn login(&self, email: &str, password: &str, from: Option<IpAddr>) -> Result<Login> {
        let outcome = self.try_login(email, password, from).await;
        note_login(outcome.as_ref().map_or_else(|failure| failure.code.as_str(), |_| "ok"));
        outcome
    }

    async fn try_login(&self, email: &str, password: &str, from: Option<IpAddr>) -> Result<Login> {
        // What no address can be costs as much as a wrong one, but for what no statement takes.
        let email = EmailKey::of_any_length(email).map_err(invalid_email)?;
        let judged = self.recognise(&email, password, from).await?;
        // A password that was changed meanwhile was wrong.
        let grant = self.inner.sessions.start(&email, &judged).await?.ok_or_else(wrong_password)?;
        self.granted(&email, judged.role, grant).await
    }

    /// The hash that `password`, that of a caller who is known already, fits, as before a change of it. Tried and
    /// counted as a login is: else whoever has a token could guess without end.
    ///
    /// # Errors
    /// As `login`, but for what concerns sessions and keys.
    async fn confirm(&self, caller: &Caller, password: &str) -> Result<String> {
        let outcome = self.recognise(&caller.subject, password, caller.from).await;
        // A password that fits is not yet a login, a wrong one is a guess all the same.
        outcome.map(|judged| judged.password_hash).inspect_err(|failure| note_login(failure.code.as_str()))
    }

    /// The user of `email`, as `EmailKey` writes it, if `password` is theirs.
    async fn recognise(&self, email: &str, password: &str, from: Option<IpAddr>) -> Result<Judged> {
        let inner = &*self.inner;
        let attempt = Attempt::new(email, from);
        inner.limits.check(&attempt)?;
        // Before the database is asked: a flood is turned away here.
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

    /// The next tokens of a session for its refresh token, which is good once.
    ///
    /// # Errors
    /// `Unauthenticated`: it does not hold, or its user is no longer let in; if it was used before, its session is
    /// over. `Unavailable`: the database cannot say. `OutcomeUnknown`: it may be used now.
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

    /// Ends the session of `bearer_token`.
    ///
    /// # Errors
    /// As `authenticate`; `OutcomeUnknown`: it may be over.
    pub async fn logout(&self, bearer_token: &str) -> Result<()> {
        let verified = self.inner.tokens.verify(bearer_token).await?;
        self.inner.sessions.revoke(verified.session).await
    }

    /// Ends all sessions of `subject`, such as after a change of password; answers how many there were.
    ///
    /// # Errors
    /// `Unavailable`: the database cannot do it now. `OutcomeUnknown`: they may be over.
    pub async fn logout_all(&self, subject: &str) -> Result<usize> {
        let ended = self.inner.sessions.revoke_all(subject).await;
        self.inner.callers.forget(subject);
        ended
    }

    /// The caller who shows `bearer_token`, as the database knows them now.
    ///
    /// # Errors
    /// `Unauthenticated`: the token does not hold, or its user is no longer let in. `Unavailable`: the
    /// database cannot say. `Overloaded`: more sessions are revoked than can be remembered.
    pub async fn authenticate(&self, bearer_token: &str) -> Result<Caller> {
        let token::Verified { subject, session, user_generation, .. } =
            self.inner.tokens.verify(bearer_token).await?;
        self.inner.sessions.check(session).await?;
        match self.inner.callers.standing(&subject).await? {
            // Not `==`: the generation that is remembered here may be the one before.
            Some((role, generation)) if user_generation >= generation => {
                Ok(Caller { subject, role, from: None, break_glass: None })
            }
            _ => Err(token::refused()),
        }
    }

    /// The public keys that tokens are verified with (RFC 7517).
    ///
    /// # Errors
    /// `Unavailable`: the database cannot say.
    pub async fn key_set(&self) -> Result<KeySet> {
        self.inner.tokens.key_set().await
    }

    /// A mark that only nodes of the cluster can make on `message`, for `purpose`: for texts that are
    /// handed out and come back, such as the cursor of a list. The same on every node.
    pub fn seal(&self, purpose: &str, message: &[u8]) -> [u8; 16] {
        self.inner.tokens.seal(purpose, message)
    }

    /// From now on `announce` is told which sessions are revoked here, for other nodes. To be called once.
    pub fn announce_with(&self, announce: Announce) {
        self.inner.sessions.announce_with(announce);
    }

    /// Another node says that `sessions` were revoked.
    pub fn revoked_elsewhere(&self, sessions: &[SessionId]) {
        self.inner.sessions.revoked_elsewhere(sessions);
    }

    /// Asks the database which sessions were revoked.
    ///
    /// # Errors
    /// Why they are not known, for an operator.
    pub async fn read_revocations(&self) -> std::result::Result<(), String> {
        self.inner.sessions.read().await.map_err(|fault| fault.to_string())
    }

    /// Asks the database which keys there are, and makes the next one if it is time.
    ///
    /// # Errors
    /// Why they are not known, for an operator.
    pub async fn read_keys(&self) -> std::result::Result<(), String> {
        match self.inner.tokens.keys() {
            Some(keys) => keys.read().await.map_err(|fault| fault.to_string()),
            None => Ok(()),
        }
    }

    /// When the next key for tokens should be made, as far as that is known and nodes make it by themselves.
    pub fn key_due(&self) -> Option<Timestamp> {
        self.inner.tokens.keys()?.due()
    }

    /// Why no token can be signed though the keys are known, for an operator; `None` if tokens can be signed.
    pub fn why_unsigned(&self) -> Option<String> {
        self.inner.tokens.keys()?.why_unsigned()
    }

    /// Forgets in the database what no longer matters: sessions, keys and failed logins, so many at a time.
    ///
    /// # Errors
    /// `Unavailable`: it cannot be done now.
    pub async fn delete_dead(&self) -> Result<()> {
        self.inner.sessions.delete_dead().await?;
        self.inner.limits.delete_dead().await?;
        match self.inner.tokens.keys() {
            Some(keys) => keys.delete_dead().await,
            None => Ok(()),
        }
    }
}

/// The form of an address that a caller names somebody by: the only one that reaches the database.
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

/// Waits for the database at most so long. What comes too late may happen still.
async fn timed<T>(limit: Duration, call: impl Future<Output = store::Result<T>>) -> store::Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result,
        Err(_) => Err(store::Error::Unknown("no answer in time".into())),
    }
}

/// What is told of a failed look at `what`.
fn lookup_failed(what: &'static str, error: &store::Error) -> Failure {
    Fault::of_database(what, error).into()
}

/// The token in an `Authorization` header or metadata entry (RFC 6750, section 2.1; the scheme's name
/// in any case: RFC 9110, section 11.1).
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, rest) = authorization.split_once(' ')?;
    let token = rest.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
