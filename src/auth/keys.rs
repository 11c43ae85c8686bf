//! The keys of EdDSA tokens. Keys are stored in the database, published to every node before use, and kept
//! until the last token that they signed has expired.
//!
//! ```text
//! made ──key_publish_ms──► signs ──until the next key signs──► only verifies ──token lifetime──► deleted
//! ```
//!
//! Invariants:
//! - If several nodes make the next key at once, the generation number decides: one insert succeeds, and all
//!   nodes use that key.
//! - A key signs only after every node has had time to read it twice. Two keys sign at once: the very first
//!   one, and one that revokes all others. A node that does not know such a key reads the keys when a token
//!   names it.
//! - A token with an unknown key makes a node read the database, at most once per second.
//! - At most one read is in flight, however many callers wait for the keys.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, EncodingKey};

use crate::domain::time::{Clock, MonoTime, Timestamp};
use crate::error::{Error, ErrorCode, Result};
use crate::store::{CallerStore, SharedSecret, SigningKeyRow};

use super::fault::Fault;
use super::together::Together;
use super::vault::{Locked, Vault};
use super::{CLOCKS_APART_MAX, Settings, timed};

type Read<T> = std::result::Result<T, Fault>;

/// The most keys in use at once.
const KEYS_MAX: u32 = 16;
/// The pause between two reads for unknown keys in tokens.
const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(1);
/// The number of random bytes in a key id.
const KID_BYTES: usize = 12;
/// The name of the shared secret for seals.
const SEALS: &str = "seals";

/// A key in usable form.
pub(super) struct Key {
    pub(super) generation: i64,
    pub(super) kid: String,
    pub(super) verifies: DecodingKey,
    pub(super) public: Vec<u8>,
    /// The private key, or why it cannot be decrypted on this node.
    signs: std::result::Result<EncodingKey, Locked>,
    pub(super) signs_from: Timestamp,
    pub(super) verifies_until: Option<Timestamp>,
}

impl Key {
    /// Returns the private key that signs tokens.
    pub(super) fn signs(&self) -> Read<&EncodingKey> {
        self.signs.as_ref().map_err(|reason| locked(&self.kid, *reason))
    }

    fn holds(&self, now: Timestamp) -> bool {
        self.verifies_until.is_none_or(|end| now < end)
    }
}

/// All keys, youngest first, and the key for seals.
pub(super) struct Ring {
    keys: Vec<Key>,
    pub(super) seals: hmac::Key,
}

impl Ring {
    pub(super) fn named(&self, kid: &str, now: Timestamp) -> Option<&Key> {
        self.keys.iter().find(|key| key.kid == kid && key.holds(now))
    }

    /// Returns whether tokens signed by the key `generation` are still valid.
    pub(super) fn has(&self, generation: i64, now: Timestamp) -> bool {
        self.keys.iter().any(|key| key.generation == generation && key.holds(now))
    }

    /// Returns the youngest key that every node knows; if there is none yet, the oldest key.
    pub(super) fn signer(&self, now: Timestamp) -> Option<&Key> {
        self.keys.iter().find(|key| key.signs_from <= now).or(self.keys.last())
    }

    /// Returns when the successor of the youngest key is due; `None` if keys are not rotated automatically.
    fn due(&self, rotation: Duration) -> Option<Timestamp> {
        let youngest = self.keys.first().filter(|_| !rotation.is_zero())?;
        Some(after(youngest.signs_from, rotation))
    }

    /// Returns the keys whose end has not passed, including keys that do not sign yet.
    pub(super) fn holding(&self, now: Timestamp) -> impl Iterator<Item = &Key> {
        self.keys.iter().filter(move |key| key.holds(now))
    }
}

pub(super) struct Keys {
    store: Arc<dyn CallerStore>,
    clock: Arc<dyn Clock>,
    vault: Vault,
    timeout: Duration,
    publish: Duration,
    /// The age at which a key is replaced. Zero: never automatically.
    rotation: Duration,
    /// The longest remaining lifetime of a token after its key last signed.
    outlives: Duration,
    ring: ArcSwapOption<Ring>,
    reading: Together,
    unknown_at: Mutex<Option<MonoTime>>,
}

/// A newly made key.
#[derive(Clone, Debug)]
pub struct MadeKey {
    /// The id of the key, as in tokens.
    pub kid: String,
    /// When the key starts to sign tokens.
    pub signs_from: Timestamp,
}

/// The public description of a key.
#[derive(Clone, Debug)]
pub struct KeyFacts {
    /// The id of the key, as in tokens.
    pub kid: String,
    /// When the key was made.
    pub created_at: Timestamp,
    /// When the key starts to sign tokens.
    pub signs_from: Timestamp,
    /// Until when tokens of the key are valid; `None` for the youngest key.
    pub verifies_until: Option<Timestamp>,
    /// Whether the private key is encrypted in the database.
    pub sealed: bool,
}

impl Keys {
    pub(super) fn new(
        settings: &Settings,
        store: Arc<dyn CallerStore>,
        clock: Arc<dyn Clock>,
    ) -> std::result::Result<Self, super::Error> {
        Ok(Keys {
            store,
            clock,
            vault: Vault::new(settings)?,
            timeout: settings.lookup_timeout(),
            publish: Duration::from_millis(settings.key_publish_ms),
            rotation: Duration::from_secs(settings.key_rotation_hours.saturating_mul(3600)),
            outlives: settings.token_ttl() + CLOCKS_APART_MAX,
            ring: ArcSwapOption::empty(),
            reading: Together::default(),
            unknown_at: Mutex::new(None),
        })
    }

    /// Returns the keys of the last read, if there was one.
    pub(super) fn known(&self) -> Option<Arc<Ring>> {
        self.ring.load_full()
    }

    /// Returns when the next key is due. `None` if the keys are not known yet or are not rotated
    /// automatically.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.known().and_then(|ring| ring.due(self.rotation))
    }

    /// Returns the keys; reads them if this has not happened yet.
    pub(super) async fn ring(&self) -> Result<Arc<Ring>> {
        if let Some(ring) = self.ring.load_full() {
            return Ok(ring);
        }
        self.read().await?;
        self.ring.load_full().ok_or_else(broken)
    }

    /// Returns why the current signing key cannot sign; `None` if it can, or if no key is known yet.
    pub(super) fn why_unsigned(&self) -> Option<String> {
        let ring = self.known()?;
        ring.signer(self.clock.now())?.signs().err().map(|fault| fault.to_string())
    }

    /// Reads the keys again because a token names an unknown key, and returns them. Returns the known keys
    /// without a read if the last such read was less than `UNKNOWN_KEY_PAUSE` ago.
    pub(super) async fn ring_after_unknown(&self) -> Result<Arc<Ring>> {
        let now = self.clock.mono();
        let may = {
            let mut last = self.unknown_at.lock().unwrap_or_else(PoisonError::into_inner);
            let may = last.is_none_or(|last| now.since(last) >= UNKNOWN_KEY_PAUSE);
            if may {
                *last = Some(now);
            }
            may
        };
        if may {
            self.read().await?;
        }
        self.ring().await
    }

    /// Reads the keys, and makes the next key if it is due. Callers that arrive during a read share the next
    /// one.
    pub(super) async fn read(&self) -> Read<()> {
        self.reading.look(self.read_now()).await
    }

    async fn read_now(&self) -> Read<()> {
        let mut rows = self.rows().await?;
        let now = self.clock.now();
        let due =
            |key: &SigningKeyRow| !self.rotation.is_zero() && now >= after(key.signs_from, self.rotation);
        let made = match rows.first() {
            None => Some(self.make(0, now, now).await?),
            // A node that cannot decrypt the keys must not make one: the other nodes could not use it.
            Some(youngest) if due(youngest) && self.open(youngest).is_ok() => {
                let signs_from = after(now, self.publish);
                Some(self.make(youngest.generation, signs_from, after(signs_from, self.outlives)).await?)
            }
            Some(_) => None,
        };
        if made.is_some() {
            rows = self.rows().await?;
        }
        let seals = match self.ring.load_full() {
            Some(ring) => ring.seals.clone(),
            None => self.seals().await?,
        };
        let keys = rows.into_iter().map(|row| self.key(row)).collect();
        let ring = Ring { keys, seals };
        if let Some(due) = ring.due(self.rotation) {
            metrics::gauge!("hygeia_token_key_due_timestamp_seconds").set(due.0 as f64 / 1e6);
        }
        self.ring.store(Some(Arc::new(ring)));
        Ok(())
    }

    /// Makes the next key. With `revoke`, tokens of all older keys are refused at once; otherwise they stay
    /// valid until they expire.
    pub(super) async fn rotate(&self, revoke: bool) -> Result<MadeKey> {
        let rows = self.rows().await?;
        if rows.len() >= KEYS_MAX as usize && !revoke {
            let detail = format!("{KEYS_MAX} keys are in use: wait until the tokens of the oldest are dead");
            return Err(Error::new(ErrorCode::Overloaded, detail));
        }
        if let Some((kid, reason)) = rows.first().and_then(|row| Some((&row.kid, self.open(row).err()?))) {
            // Unlike a caller, the administrator is told the reason.
            return Err(Error::new(ErrorCode::Unavailable, locked(kid, reason).to_string()));
        }
        let now = self.clock.now();
        let youngest = rows.first().map_or(0, |row| row.generation);
        let signs_from = if revoke || rows.is_empty() { now } else { after(now, self.publish) };
        let older_until = if revoke { now } else { after(signs_from, self.outlives) };
        let made = self.make(youngest, signs_from, older_until).await?;
        made.ok_or_else(|| {
            Error::new(ErrorCode::AlreadyExists, "Another node has made the next key just now")
        })
    }

    /// Deletes keys whose tokens have all expired.
    pub(super) async fn delete_dead(&self) -> Result<()> {
        let deleting = self.store.delete_signing_keys(self.clock.now(), KEYS_MAX);
        timed(self.timeout, deleting).await.map_err(|error| Fault::of_database("keys", &error))?;
        Ok(())
    }

    pub(super) async fn facts(&self) -> Result<Vec<KeyFacts>> {
        let told = |row: SigningKeyRow| KeyFacts {
            kid: row.kid,
            created_at: row.created_at,
            signs_from: row.signs_from,
            verifies_until: row.verifies_until,
            sealed: row.sealed,
        };
        Ok(self.rows().await?.into_iter().map(told).collect())
    }

    async fn rows(&self) -> Read<Vec<SigningKeyRow>> {
        let asking = self.store.signing_keys(KEYS_MAX);
        timed(self.timeout, asking).await.map_err(|error| Fault::of_database("keys", &error))
    }

    /// Makes the key after generation `youngest`. Returns `None` if another node has already made that
    /// generation.
    async fn make(
        &self,
        youngest: i64,
        signs_from: Timestamp,
        older_until: Timestamp,
    ) -> Read<Option<MadeKey>> {
        let pair = Ed25519KeyPair::generate().map_err(|_| Fault::NoRandomness)?;
        let private = pair.to_pkcs8().map_err(|_| Fault::NoRandomness)?;
        let mut name = [0; KID_BYTES];
        getrandom::fill(&mut name).map_err(|_| Fault::NoRandomness)?;
        let kid = URL_SAFE_NO_PAD.encode(name);
        let (private_key, sealed) =
            self.vault.close(&kid, private.as_ref()).map_err(|_| Fault::NoRandomness)?;
        let row = SigningKeyRow {
            generation: youngest + 1,
            created_at: self.clock.now(),
            signs_from,
            verifies_until: None,
            kid: kid.clone(),
            public_key: pair.public_key().as_ref().to_vec(),
            private_key,
            sealed,
        };
        let adding = self.store.add_signing_key(&row, older_until);
        let added = timed(self.timeout, adding).await.map_err(|error| Fault::of_database("keys", &error))?;
        if added {
            tracing::info!(kid, sealed, "made a key for tokens");
            metrics::counter!("hygeia_token_keys_made_total").increment(1);
        }
        Ok(added.then_some(MadeKey { kid, signs_from }))
    }

    async fn seals(&self) -> Read<hmac::Key> {
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|_| Fault::NoRandomness)?;
        let (value, sealed) = self.vault.close(SEALS, &random).map_err(|_| Fault::NoRandomness)?;
        let proposed = SharedSecret { value, sealed };
        let asking = self.store.shared_secret(SEALS, &proposed);
        let stored = timed(self.timeout, asking).await.map_err(|error| Fault::of_database("keys", &error))?;
        let secret = self.vault.open(SEALS, &stored.value, stored.sealed);
        let secret = secret
            .map_err(|reason| Fault::Locked { what: "the secret that seals cursors".to_owned(), reason })?;
        Ok(hmac::Key::new(hmac::HMAC_SHA256, &secret))
    }

    fn open(&self, row: &SigningKeyRow) -> std::result::Result<Vec<u8>, Locked> {
        self.vault.open(&row.kid, &row.private_key, row.sealed)
    }

    fn key(&self, row: SigningKeyRow) -> Key {
        // Log each unusable key once per node: only when the key is new.
        let news =
            self.ring.load().as_ref().is_none_or(|ring| !ring.keys.iter().any(|key| key.kid == row.kid));
        let signs = match self.open(&row) {
            Ok(private) => Ok(EncodingKey::from_ed_der(&private)),
            Err(reason) => {
                if news {
                    tracing::error!(kid = row.kid, %reason, "a key cannot sign tokens here");
                }
                Err(reason)
            }
        };
        Key {
            generation: row.generation,
            verifies: DecodingKey::from_ed_der(&row.public_key),
            public: row.public_key,
            kid: row.kid,
            signs,
            signs_from: row.signs_from,
            verifies_until: row.verifies_until,
        }
    }
}

fn locked(kid: &str, reason: Locked) -> Fault {
    Fault::Locked { what: format!("the key {kid}"), reason }
}

pub(super) fn broken() -> Error {
    Error::new(ErrorCode::Internal, "Tokens cannot be signed")
}

fn after(time: Timestamp, by: Duration) -> Timestamp {
    Timestamp(time.0.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
}

/// Key administration for the command line.
pub struct KeyAdmin {
    keys: Keys,
}

impl KeyAdmin {
    /// Returns the administration of the keys in `store`.
    ///
    /// # Errors
    /// `key_secret` is too short.
    pub fn new(
        settings: &Settings,
        store: Arc<dyn CallerStore>,
        clock: Arc<dyn Clock>,
    ) -> std::result::Result<Self, super::Error> {
        Ok(KeyAdmin { keys: Keys::new(settings, store, clock)? })
    }

    /// Makes the next key. Nodes sign with it after all of them have had time to read it, and tokens of older
    /// keys stay valid until they expire. With `revoke`, nodes sign with it at once, and tokens of older keys
    /// are refused at once.
    ///
    /// # Errors
    /// `Overloaded`: too many keys are in use. `AlreadyExists`: another process has just made the next key.
    /// `Unavailable`: the keys are encrypted under another secret, or the database cannot be read.
    pub async fn rotate(&self, revoke: bool) -> Result<MadeKey> {
        self.keys.rotate(revoke).await
    }

    /// Returns the keys, youngest first.
    ///
    /// # Errors
    /// The errors of the database.
    pub async fn list(&self) -> Result<Vec<KeyFacts>> {
        self.keys.facts().await
    }
}
