//! Settings of tokens, sessions and password hashing.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use super::{Error, first_admin, password};
use crate::domain::secret::SECRET_BYTES_MIN;

/// The lowest BCrypt cost for a node that is reachable from other machines.
pub const BCRYPT_COST_MIN: u32 = 12;

/// The algorithm that signs tokens. Tokens of any other algorithm are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum TokenAlgorithm {
    /// Ed25519 (RFC 8037), with keys that are stored in the database and rotated.
    EdDSA,
    /// HMAC with SHA-256, keyed by the secret `jwt_secret`.
    HS256,
}

/// Settings of tokens, sessions and password hashing. All nodes of a cluster must have the same values.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The algorithm that signs tokens: EdDSA, with keys in the database, or HS256, with jwt_secret.
    pub token_algorithm: TokenAlgorithm,
    /// The secret that signs tokens under HS256: at least 32 bytes, the same on every node of a cluster.
    /// Well-formed base64 (RFC 4648, section 4, with padding) is decoded; any other text is used as its own
    /// bytes.
    pub jwt_secret: Option<SecretText>,
    /// The secret that encrypts the EdDSA keys in the database. Same format as jwt_secret, the same on every
    /// node. Without it, anybody who can read the database can sign tokens.
    pub key_secret: Option<SecretText>,
    /// The `iss` of tokens. Tokens of another issuer are refused.
    pub issuer: String,
    /// The `aud` of tokens. Tokens for another audience are refused.
    pub audience: String,
    /// The lifetime of a token, limited by the end of its session. After that the session must be refreshed.
    pub token_ttl_seconds: u64,
    /// The lifetime of a session after its login, regardless of refreshes.
    pub session_ttl_seconds: u64,
    /// The longest time between two refreshes of a session; after that the session ends. At least
    /// token_ttl_seconds, so that no token outlives its session.
    pub session_idle_seconds: u64,
    /// The most sessions that a user may have at once. A further login ends the oldest session.
    pub sessions_per_user_max: u32,
    /// How often a node reads the revoked sessions from the database. Most revocations arrive earlier, as
    /// messages from other nodes.
    pub revocations_poll_ms: u64,
    /// The most revoked sessions that a node remembers. Each one is kept until its last token has expired.
    /// Beyond this number, no token is accepted.
    pub revocations_max: usize,
    /// How often a node reads the token keys from the database.
    pub keys_poll_ms: u64,
    /// How long a new key is published before it signs tokens. At least twice keys_poll_ms.
    pub key_publish_ms: u64,
    /// The age at which a key is replaced automatically; zero: only `hygeia keys rotate` replaces keys.
    pub key_rotation_hours: u64,
    /// The most verified tokens that a node caches, so that a token is not verified again for each request.
    pub tokens_cached_max: usize,
    /// The BCrypt cost of new hashes: the work is two to this power. A value below `BCRYPT_COST_MIN` is only
    /// for tests and for trials on loopback.
    pub bcrypt_cost: u32,
    /// The most passwords that are hashed at once. The default is half the processors, because hashing must
    /// not starve the actors.
    pub hashing_threads_max: usize,
    /// The most logins that may wait for a hashing thread. Further logins are refused as `Overloaded`.
    pub hashing_queue_max: usize,
    /// The niceness of the hashing threads (`nice`). On a busy processor 0 gets the same share as other
    /// threads, 5 a third, 10 a tenth. The niceness also applies against other programs: where they keep the
    /// processors busy, choose a lower value.
    pub hashing_niceness: u8,
    /// The most failed logins of one account within login_window_seconds, over all nodes. Further logins are
    /// refused without a check of the password. A wrong current password in a password change counts as a
    /// failed login.
    pub login_account_failures_max: u32,
    /// The most failed logins from one address (for IPv6: from one 64-bit network) within
    /// login_window_seconds.
    pub login_address_failures_max: u32,
    /// The period over which failed logins are counted, from the first one on.
    pub login_window_seconds: u64,
    /// The most accounts and addresses at their limit that a node remembers.
    pub login_blocked_cached_max: usize,
    /// The most users whose role and generation a node caches.
    pub users_cached_max: usize,
    /// How long a cached user is used without a read. A disabled user is refused after at most this time.
    pub user_cache_ms: u64,
    /// The time limit of each database access for users, keys and sessions.
    pub user_lookup_timeout_ms: u64,
    /// The e-mail address of the administrator that `make_first_admin` creates in a database without users.
    pub first_admin_email: Option<String>,
    /// The first password of that administrator.
    pub first_admin_password: Option<SecretText>,
}

impl Default for Settings {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Settings {
            token_algorithm: TokenAlgorithm::EdDSA,
            jwt_secret: None,
            key_secret: None,
            issuer: "hygeia".into(),
            audience: "hygeia".into(),
            token_ttl_seconds: 900,
            session_ttl_seconds: 43_200,
            session_idle_seconds: 1800,
            sessions_per_user_max: 32,
            revocations_poll_ms: 2000,
            revocations_max: 100_000,
            keys_poll_ms: 2000,
            key_publish_ms: 10_000,
            key_rotation_hours: 720,
            tokens_cached_max: 4096,
            bcrypt_cost: BCRYPT_COST_MIN,
            hashing_threads_max: (processors / 2).max(1),
            hashing_queue_max: 16,
            hashing_niceness: 5,
            login_account_failures_max: 20,
            login_address_failures_max: 100,
            login_window_seconds: 300,
            login_blocked_cached_max: 4096,
            users_cached_max: 1024,
            user_cache_ms: 1000,
            user_lookup_timeout_ms: 2000,
            first_admin_email: None,
            first_admin_password: None,
        }
    }
}

impl Settings {
    /// Returns the keys whose values are not allowed, each with the allowed values. `weak_hashes` allows a
    /// BCrypt cost below `BCRYPT_COST_MIN`.
    pub fn problems(&self, weak_hashes: bool) -> Vec<(&'static str, String)> {
        let least_cost = if weak_hashes { password::COST_LEAST } else { BCRYPT_COST_MIN };
        let within = |value: u64, least: u64, most: u64| {
            (!(least..=most).contains(&value)).then(|| format!("{least} to {most}"))
        };
        let size = |value: usize, least: u64, most: u64| within(value as u64, least, most);
        let named = |text: &str| text.is_empty().then(|| "a name".to_owned());
        let checks = [
            ("issuer", named(&self.issuer)),
            ("audience", named(&self.audience)),
            ("token_ttl_seconds", within(self.token_ttl_seconds, 1, 604_800)),
            ("session_ttl_seconds", within(self.session_ttl_seconds, 1, 31_536_000)),
            (
                "session_idle_seconds",
                within(self.session_idle_seconds, self.token_ttl_seconds, 31_536_000)
                    .map(|allowed| format!("{allowed}, from token_ttl_seconds on")),
            ),
            ("sessions_per_user_max", within(self.sessions_per_user_max.into(), 1, 1000)),
            ("revocations_poll_ms", within(self.revocations_poll_ms, 50, 4000)),
            ("revocations_max", size(self.revocations_max, 1, 10_000_000)),
            ("keys_poll_ms", within(self.keys_poll_ms, 50, 60_000)),
            (
                "key_publish_ms",
                within(self.key_publish_ms, self.keys_poll_ms.saturating_mul(2), 86_400_000)
                    .map(|allowed| format!("{allowed}, from twice keys_poll_ms on")),
            ),
            ("key_rotation_hours", within(self.key_rotation_hours, 0, 87_600)),
            ("tokens_cached_max", size(self.tokens_cached_max, 1, 10_000_000)),
            ("bcrypt_cost", within(self.bcrypt_cost.into(), least_cost.into(), password::COST_MOST.into())),
            ("hashing_threads_max", size(self.hashing_threads_max, 1, 256)),
            ("hashing_queue_max", size(self.hashing_queue_max, 0, 10_000)),
            ("hashing_niceness", within(self.hashing_niceness.into(), 0, 19)),
            ("login_account_failures_max", within(self.login_account_failures_max.into(), 1, 1_000_000)),
            ("login_address_failures_max", within(self.login_address_failures_max.into(), 1, 1_000_000)),
            ("login_window_seconds", within(self.login_window_seconds, 1, 86_400)),
            ("login_blocked_cached_max", size(self.login_blocked_cached_max, 1, 10_000_000)),
            ("users_cached_max", size(self.users_cached_max, 1, 10_000_000)),
            ("user_cache_ms", within(self.user_cache_ms, 0, 60_000)),
            ("user_lookup_timeout_ms", within(self.user_lookup_timeout_ms, 1, 60_000)),
        ];
        let broken = checks.into_iter().filter_map(|(key, allowed)| allowed.map(|allowed| (key, allowed)));
        // A missing secret is not a problem of this file: a trial node generates one.
        let secrets = [("jwt_secret", &self.jwt_secret), ("key_secret", &self.key_secret)];
        let short = secrets.into_iter().filter_map(|(key, secret)| {
            let error = secret.as_ref()?.bytes(key).err()?;
            Some((key, error.to_string()))
        });
        broken.chain(short).chain(first_admin::problems(self)).collect()
    }

    /// Checks that the first administrator, if configured, has a password.
    ///
    /// # Errors
    /// Which setting is missing.
    pub fn check_first_admin(&self) -> Result<(), &'static str> {
        first_admin::check(self)
    }

    /// Checks that tokens can be signed with these settings. EdDSA needs no configured secret.
    ///
    /// # Errors
    /// A secret is missing or too short.
    pub fn check_secret(&self) -> Result<(), Error> {
        self.key_secret.as_ref().map(|secret| secret.bytes("key_secret")).transpose()?;
        match &self.jwt_secret {
            Some(secret) => secret.bytes("jwt_secret").map(drop),
            None if self.token_algorithm == TokenAlgorithm::HS256 => Err(Error::SecretMissing),
            None => Ok(()),
        }
    }

    pub(super) fn lookup_timeout(&self) -> Duration {
        Duration::from_millis(self.user_lookup_timeout_ms)
    }

    pub(super) fn token_ttl(&self) -> Duration {
        Duration::from_secs(self.token_ttl_seconds)
    }
}

/// A configured secret. Never printed.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Returns the plain text.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns the bytes of the secret; `key` is its name in `auth`.
    pub(super) fn bytes(&self, key: &'static str) -> Result<Vec<u8>, Error> {
        use base64::Engine;
        use base64::engine::general_purpose::STANDARD;
        let text = self.0.trim();
        if text.is_empty() && key == "jwt_secret" {
            return Err(Error::SecretMissing);
        }
        let bytes = STANDARD.decode(text).unwrap_or_else(|_| text.as_bytes().to_vec());
        if bytes.len() < SECRET_BYTES_MIN {
            return Err(Error::SecretTooShort { key, bytes: bytes.len() });
        }
        Ok(bytes)
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
