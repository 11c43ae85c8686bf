//! How tokens are made, how long sessions last, and how passwords are hashed.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use super::{Error, first_admin, password};
use crate::domain::secret::SECRET_BYTES_MIN;

/// The least BCrypt cost for a node that others can reach.
pub const BCRYPT_COST_MIN: u32 = 12;

/// What tokens are signed with. No other algorithm than the one configured is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum TokenAlgorithm {
    /// Ed25519 (RFC 8037), with keys that are kept in the database and rotated.
    EdDSA,
    /// HMAC with SHA-256, with the secret `jwt_secret`.
    HS256,
}

/// How tokens are made, how long sessions last, and how passwords are hashed. Of a cluster's nodes all have
/// the same.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What tokens are signed with: EdDSA, with keys in the database, or HS256, with jwt_secret.
    pub token_algorithm: TokenAlgorithm,
    /// The secret that signs tokens under HS256: at least 32 bytes, the same on every node of a cluster. Text that
    /// is well-formed base64 (RFC 4648, section 4, with padding) stands for the bytes it encodes, any other
    /// text for its own bytes.
    pub jwt_secret: Option<SecretText>,
    /// The secret that encrypts the keys of EdDSA in the database: written as jwt_secret, the same on every node.
    /// Without, whoever can read the database can sign tokens.
    pub key_secret: Option<SecretText>,
    /// The `iss` of tokens; one of another issuer does not hold.
    pub issuer: String,
    /// The `aud` of tokens; one for another audience does not hold.
    pub audience: String,
    /// How long a token holds, but never beyond the end of its session. From then on the session must be refreshed.
    pub token_ttl_seconds: u64,
    /// How long a session lasts after its login, however often it is refreshed.
    pub session_ttl_seconds: u64,
    /// How long a session may go without being refreshed: then it is over. No less than token_ttl_seconds, so that no
    /// token outlives it.
    pub session_idle_seconds: u64,
    /// Sessions that a user may have at once; a further login ends the oldest.
    pub sessions_per_user_max: u32,
    /// How often a node asks the database which sessions were revoked; it is told of most at once.
    pub revocations_poll_ms: u64,
    /// Revoked sessions that are remembered, for as long as a token of them may be about. While there are more, no
    /// token is accepted.
    pub revocations_max: usize,
    /// How often a node asks the database which keys there are.
    pub keys_poll_ms: u64,
    /// How long a new key is known before tokens are signed with it. At least twice keys_poll_ms.
    pub key_publish_ms: u64,
    /// The age at which a key is replaced by itself; zero: only `hygeia keys rotate` does it.
    pub key_rotation_hours: u64,
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
    /// How much less than others the hashing threads get of a busy processor (`nice`): 0 as much, 5 a third, 10 a
    /// tenth. It counts against everything on the machine: where other programs keep it busy, less is more.
    pub hashing_niceness: u8,
    /// Failed logins of one account within login_window_seconds, over all nodes; further ones are refused unseen.
    /// A wrong old password, when one is changed, counts as one.
    pub login_account_failures_max: u32,
    /// The same of one address (of IPv6: of one network of 64 bits).
    pub login_address_failures_max: u32,
    /// For how long failed logins are counted, from the first on.
    pub login_window_seconds: u64,
    /// Accounts and addresses that a node remembers to be at their limit.
    pub login_blocked_cached_max: usize,
    /// How many users' standing is remembered.
    pub users_cached_max: usize,
    /// How long a user's standing is taken as still true: a disabled user is out after at most this long.
    pub user_cache_ms: u64,
    /// How long the database may take to say who a user is, which keys there are, or what becomes of a session.
    pub user_lookup_timeout_ms: u64,
    /// Who is made an administrator where there is no user at all: `make_first_admin`.
    pub first_admin_email: Option<String>,
    /// That user's first password.
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
    /// The keys whose values are not allowed, each with what is. `weak_hashes` allows a BCrypt cost below
    /// `BCRYPT_COST_MIN`.
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
        // That there is none is no matter of this file: a node for trying out makes one.
        let secrets = [("jwt_secret", &self.jwt_secret), ("key_secret", &self.key_secret)];
        let short = secrets.into_iter().filter_map(|(key, secret)| {
            let error = secret.as_ref()?.bytes(key).err()?;
            Some((key, error.to_string()))
        });
        broken.chain(short).chain(first_admin::problems(self)).collect()
    }

    /// Whether the first administrator, if one is named, has a password.
    ///
    /// # Errors
    /// What to set.
    pub fn check_first_admin(&self) -> Result<(), &'static str> {
        first_admin::check(self)
    }

    /// Whether tokens can be signed with these settings: EdDSA makes its own keys.
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

/// A secret as configured. Never printed.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// The text, for those who need it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// The bytes that it stands for; `key` is its name in `auth`.
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
