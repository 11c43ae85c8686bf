//! Who a caller is: passwords at login, tokens afterwards. Both edges ask here and nowhere else.
//!
//! Invariants:
//! - A token is a JWT (RFC 7519) under HS256 and no other algorithm; issuer, subject, role and an end are
//!   required of it.
//! - A token holds only while its user exists and is not disabled; that is known anew at least every
//!   `user_cache_ms`. If the database cannot be asked, nobody is refused as unknown: it is `Unavailable`, or
//!   `Internal` if it is broken.
//! - A login that fails says and costs the same whether the user is unknown, disabled, or the password
//!   wrong or too long. Where `bcrypt_cost` was lowered, hashes made before still cost more to check, and so
//!   tell their users from unknown ones until the passwords are set anew.
//! - Memory is bounded: the caches have a capacity, and hashing has a queue with an end.
//! - No password, hash, token, secret or e-mail address is logged or printed.

mod callers;
#[cfg(test)]
pub(crate) mod fake;
mod password;
#[cfg(test)]
mod tests;
mod token;
mod users;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::domain::access::{Caller, Role};
use crate::domain::patient::email_key;
use crate::domain::time::Clock;
use crate::domain::validate::EMAIL_MAX_CHARS;
use crate::error::{Error as Failure, ErrorCode, Result};
use crate::store::UserStore;

use callers::Callers;
use password::Hasher;
use token::Signer;

pub use password::{PASSWORD_MAX_BYTES, PASSWORD_MIN_BYTES, validate_password};
pub use users::{User, Users};

/// The least BCrypt cost for a node that others can reach.
pub const BCRYPT_COST_MIN: u32 = 12;

/// How tokens are made and passwords are hashed.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The secret that signs tokens: at least 32 bytes, the same on every node of a cluster. Text that is
    /// well-formed base64 (RFC 4648, section 4, with padding) stands for the bytes it encodes, any other
    /// text for its own bytes.
    pub jwt_secret: Option<SecretText>,
    /// The `iss` of tokens; one of another issuer does not hold.
    pub issuer: String,
    /// How long a token holds.
    pub token_ttl_seconds: u64,
    /// How many verified tokens are remembered, so that they need not be verified for each request.
    pub tokens_cached_max: usize,
    /// The BCrypt cost of new hashes: the work is two to this power. Below `BCRYPT_COST_MIN` only for tests
    /// and for trying out on loopback.
    pub bcrypt_cost: u32,
    /// How many passwords are hashed at once. Half the processors by default: hashing must not keep the
    /// actors from running.
    pub hashing_threads_max: usize,
    /// How many more logins may wait for a thread; beyond, they are refused as `Overloaded`.
    pub hashing_queue_max: usize,
    /// How many users' standing is remembered.
    pub users_cached_max: usize,
    /// How long a user's standing is taken as still true: a disabled user is out after at most this long.
    pub user_cache_ms: u64,
    /// How long the database may take to say who a user is.
    pub user_lookup_timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Settings {
            jwt_secret: None,
            issuer: "hygeia".into(),
            token_ttl_seconds: 3600,
            tokens_cached_max: 4096,
            bcrypt_cost: BCRYPT_COST_MIN,
            hashing_threads_max: (processors / 2).max(1),
            hashing_queue_max: 16,
            users_cached_max: 1024,
            user_cache_ms: 1000,
            user_lookup_timeout_ms: 2000,
        }
    }
}

impl Settings {
    /// The keys whose values are not allowed, each with what is. `weak_hashes` allows a BCrypt cost below
    /// `BCRYPT_COST_MIN`.
    pub fn problems(&self, weak_hashes: bool) -> Vec<(&'static str, String)> {
        let least_cost = if weak_hashes { password::COST_LEAST } else { BCRYPT_COST_MIN };
        let at_least_one = |n: usize| n >= 1;
        let checks = [
            ("issuer", !self.issuer.is_empty(), "a name".to_owned()),
            ("token_ttl_seconds", (1..=604_800).contains(&self.token_ttl_seconds), "1 to 604800".into()),
            ("tokens_cached_max", at_least_one(self.tokens_cached_max), "at least 1".into()),
            (
                "bcrypt_cost",
                (least_cost..=password::COST_MOST).contains(&self.bcrypt_cost),
                format!("{least_cost} to {}", password::COST_MOST),
            ),
            ("hashing_threads_max", (1..=256).contains(&self.hashing_threads_max), "1 to 256".into()),
            ("hashing_queue_max", self.hashing_queue_max <= 10_000, "at most 10000".into()),
            ("users_cached_max", at_least_one(self.users_cached_max), "at least 1".into()),
            ("user_cache_ms", self.user_cache_ms <= 60_000, "at most 60000".into()),
            (
                "user_lookup_timeout_ms",
                (1..=60_000).contains(&self.user_lookup_timeout_ms),
                "1 to 60000".into(),
            ),
        ];
        let broken =
            checks.into_iter().filter(|(_, holds, _)| !holds).map(|(key, _, allowed)| (key, allowed));
        // That there is none is no matter of this file: a node for trying out makes one.
        let secret = self.jwt_secret.as_ref().and_then(|_| token::secret_bytes(self).err());
        broken.chain(secret.map(|error| ("jwt_secret", error.to_string()))).collect()
    }
}

impl Settings {
    /// Whether there is a secret that tokens can be signed with.
    ///
    /// # Errors
    /// The secret is missing or too short.
    pub fn check_secret(&self) -> std::result::Result<(), Error> {
        token::secret_bytes(self).map(drop)
    }
}

/// A secret as configured. Never printed.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// The text, for those who need it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        SecretText(text)
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

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
        "auth.jwt_secret is {bytes} bytes long (after decoding base64): at least 32 are needed; set HYGEIA__AUTH__JWT_SECRET to what `openssl rand -base64 48` makes"
    )]
    SecretTooShort {
        /// Its length.
        bytes: usize,
    },
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

/// Answers who a caller is. Cloning is cheap.
#[derive(Clone)]
pub struct Auth {
    inner: Arc<Inner>,
}

struct Inner {
    signer: Signer,
    hasher: Hasher,
    callers: Callers,
}

impl Auth {
    /// Callers as `store` knows them.
    ///
    /// # Errors
    /// The secret is missing or too short.
    pub fn new(
        settings: Settings,
        store: Arc<dyn UserStore>,
        clock: Arc<dyn Clock>,
    ) -> std::result::Result<Self, Error> {
        let signer = Signer::new(&settings, Arc::clone(&clock))?;
        let hasher = Hasher::new(&settings);
        let callers = Callers::new(&settings, store, clock);
        Ok(Auth { inner: Arc::new(Inner { signer, hasher, callers }) })
    }

    /// A token for the user of `email` if `password` is theirs. To be told that it is not costs one hash, too.
    ///
    /// # Errors
    /// `Unauthenticated`: they do not fit, without a word on which. `Overloaded`: too many log in.
    /// `Unavailable`: the database cannot say. `Internal`: the stored hash is damaged.
    pub async fn login(&self, email: &str, password: &str) -> Result<Token> {
        let outcome = self.try_login(email, password).await;
        let label = match &outcome {
            Ok(_) => "ok",
            Err(failure) => failure.code.as_str(),
        };
        metrics::counter!("hygeia_logins_total", "outcome" => label).increment(1);
        outcome
    }

    async fn try_login(&self, email: &str, password: &str) -> Result<Token> {
        let inner = &*self.inner;
        let email = email_key(email.trim());
        let user =
            if email.chars().count() <= EMAIL_MAX_CHARS { inner.callers.find(&email).await? } else { None };
        let user = user.filter(|user| !user.disabled);
        let role = user.as_ref().and_then(|user| Role::parse(&user.role));
        let hash = user.map(|user| user.password_hash);
        let fits = inner.hasher.verify(password, hash).await?;
        match role {
            Some(role) if fits => inner.signer.sign(&email, role),
            _ => Err(Failure::new(ErrorCode::Unauthenticated, "The e-mail address or the password is wrong")),
        }
    }

    /// The caller who shows `bearer_token`, as the database knows them now.
    ///
    /// # Errors
    /// `Unauthenticated`: the token does not hold, or its user is no longer let in. `Unavailable`: the
    /// database cannot say.
    pub async fn authenticate(&self, bearer_token: &str) -> Result<Caller> {
        let subject = self.inner.signer.verify(bearer_token)?;
        match self.inner.callers.role(&subject).await? {
            Some(role) => Ok(Caller { subject, role }),
            None => Err(token::refused()),
        }
    }

    /// A mark that only holders of the secret can make on `message`, for `purpose`: for texts that are
    /// handed out and come back, such as the cursor of a list. The same on every node.
    pub fn seal(&self, purpose: &str, message: &[u8]) -> [u8; 16] {
        self.inner.signer.seal(purpose, message)
    }
}

/// The token in an `Authorization` header or metadata entry (RFC 6750, section 2.1; the scheme's name
/// in any case: RFC 9110, section 11.1).
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, rest) = authorization.split_once(' ')?;
    let token = rest.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
