//! Signs and verifies tokens, with a bounded cache of verified tokens. A cached token costs one hash instead
//! of a signature check and three parses.
//!
//! Invariants:
//! - A header names the configured algorithm, the type `at+jwt`, and for EdDSA a key. Any other header field
//!   (`jku`, `x5u`, `jwk`, `crit`, …) is refused before the signature is verified. Keys are never taken from
//!   a token.
//! - For a cached token, the expiry and the validity of its key are checked at each use.
//! - A token does not outlive its session.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use lru::LruCache;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::access::Role;
use crate::domain::ids::SessionId;
use crate::domain::time::{Clock, Timestamp};
use crate::error::{Error, ErrorCode, Result};
use crate::store::CallerStore;

use super::keys::{Keys, broken};
use super::sessions::Grant;
use super::{Settings, TokenAlgorithm};

/// The tolerated difference between the clocks of the nodes.
const LEEWAY_SECONDS: u64 = 2;
/// The longest accepted token. No issued token is longer.
const TOKEN_MAX_BYTES: usize = 2048;
/// The type of access tokens (RFC 9068, section 2.1). It prevents any other JWT from being accepted as an
/// access token.
const TYPE: &str = "at+jwt";

#[derive(Serialize, Deserialize)]
struct Claims<'a> {
    iss: Cow<'a, str>,
    aud: Cow<'a, str>,
    sub: Cow<'a, str>,
    role: Cow<'a, str>,
    /// The session of the token.
    sid: Uuid,
    /// The generation of the user when the token was granted. Nodes of older versions omit it.
    #[serde(rename = "gen", default, skip_serializing_if = "Option::is_none")]
    generation: Option<i64>,
    jti: Uuid,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    exp: u64,
}

/// The only allowed header fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head<'a> {
    alg: &'a str,
    typ: &'a str,
    kid: Option<&'a str>,
}

/// The content of a valid token.
#[derive(Clone)]
pub(super) struct Verified {
    pub(super) subject: Arc<str>,
    pub(super) session: SessionId,
    /// The generation of the user when the token was granted. If the token has none: its time of issue, in
    /// whole seconds.
    pub(super) user_generation: Timestamp,
    /// The first second after the expiry, leeway included.
    ends: u64,
    /// The generation of the key that signed the token; `None` under HS256.
    generation: Option<i64>,
}

/// The source of the signing keys.
enum Keying {
    Shared(Box<Shared>),
    Rotated(Box<Keys>),
}

/// The keys derived from the shared secret.
struct Shared {
    signs: EncodingKey,
    verifies: DecodingKey,
    seals: hmac::Key,
}

/// Signs tokens and verifies them.
pub(super) struct Tokens {
    keying: Keying,
    algorithm: Algorithm,
    validation: Validation,
    issuer: String,
    audience: String,
    ttl: Duration,
    clock: Arc<dyn Clock>,
    /// A random key for seals before the keys are known. Seals made with it cannot be verified later.
    own_seals: hmac::Key,
    /// Verified tokens by their SHA-256. The tokens themselves are not stored.
    verified: Mutex<LruCache<[u8; 32], Verified>>,
}

impl Tokens {
    pub(super) fn new(
        settings: &Settings,
        store: Arc<dyn CallerStore>,
        clock: Arc<dyn Clock>,
    ) -> std::result::Result<Self, super::Error> {
        settings.check_secret()?;
        let (algorithm, keying) = match settings.token_algorithm {
            TokenAlgorithm::EdDSA => {
                (Algorithm::EdDSA, Keying::Rotated(Box::new(Keys::new(settings, store, Arc::clone(&clock))?)))
            }
            TokenAlgorithm::HS256 => {
                let secret = settings.jwt_secret.as_ref().ok_or(super::Error::SecretMissing)?;
                let secret = secret.bytes("jwt_secret")?;
                let shared = Shared {
                    signs: EncodingKey::from_secret(&secret),
                    verifies: DecodingKey::from_secret(&secret),
                    seals: hmac::Key::new(hmac::HMAC_SHA256, &secret),
                };
                let keying = Keying::Shared(Box::new(shared));
                (Algorithm::HS256, keying)
            }
        };
        let mut validation = Validation::new(algorithm);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&settings.issuer]);
        validation.set_audience(&[&settings.audience]);
        // Times are checked in this module, against `clock`.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|_| super::Error::NoRandomness)?;
        let capacity = NonZeroUsize::new(settings.tokens_cached_max).unwrap_or(NonZeroUsize::MIN);
        Ok(Tokens {
            keying,
            algorithm,
            validation,
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            ttl: settings.token_ttl(),
            clock,
            own_seals: hmac::Key::new(hmac::HMAC_SHA256, &random),
            verified: Mutex::new(LruCache::new(capacity)),
        })
    }

    /// Returns the rotated keys; `None` under HS256.
    pub(super) fn keys(&self) -> Option<&Keys> {
        match &self.keying {
            Keying::Rotated(keys) => Some(keys),
            Keying::Shared(_) => None,
        }
    }

    /// Returns a token for `subject` in the session of `grant`, valid from now on, at most until the end of
    /// the session.
    pub(super) async fn sign(&self, subject: &str, role: Role, grant: &Grant) -> Result<super::Token> {
        let now = self.now_seconds();
        let session_ends = u64::try_from(grant.ends_at.0).unwrap_or(0) / 1_000_000;
        let ends = now.saturating_add(self.ttl.as_secs()).min(session_ends);
        let claims = Claims {
            iss: self.issuer.as_str().into(),
            aud: self.audience.as_str().into(),
            sub: subject.into(),
            role: role.as_str().into(),
            sid: grant.session.0,
            generation: Some(grant.generation.0),
            jti: Uuid::now_v7(),
            iat: now,
            nbf: None,
            exp: ends,
        };
        let mut header = Header { typ: Some(TYPE.to_owned()), ..Header::new(self.algorithm) };
        let text = match &self.keying {
            Keying::Shared(shared) => jsonwebtoken::encode(&header, &claims, &shared.signs),
            Keying::Rotated(keys) => {
                let ring = keys.ring().await?;
                let key = ring.signer(self.clock.now()).ok_or_else(broken)?;
                header.kid = Some(key.kid.clone());
                jsonwebtoken::encode(&header, &claims, key.signs()?)
            }
        };
        let expires_in = Duration::from_secs(ends.saturating_sub(now));
        Ok(super::Token { text: text.map_err(|_| broken())?, expires_in })
    }

    /// Returns the content of `token` if it is valid now.
    pub(super) async fn verify(&self, token: &str) -> Result<Verified> {
        if token.len() > TOKEN_MAX_BYTES {
            return Err(refused());
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        let known = self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(&hash).cloned();
        let verified = match known.filter(|known| self.key_holds(known)) {
            Some(known) => known,
            None => {
                // Boxed, because this future is large and rarely needed; inline it would enlarge the future
                // of every request.
                let fresh = Box::pin(self.verify_anew(token)).await?;
                self.verified.lock().unwrap_or_else(PoisonError::into_inner).put(hash, fresh.clone());
                fresh
            }
        };
        if self.now_seconds() >= verified.ends {
            return Err(Error::new(ErrorCode::Unauthenticated, "The token has expired"));
        }
        Ok(verified)
    }

    /// Returns whether the key of a cached token is still valid.
    fn key_holds(&self, known: &Verified) -> bool {
        match (&self.keying, known.generation) {
            (Keying::Rotated(keys), Some(generation)) => {
                keys.known().is_some_and(|ring| ring.has(generation, self.clock.now()))
            }
            (Keying::Shared(_), None) => true,
            _ => false,
        }
    }

    async fn verify_anew(&self, token: &str) -> Result<Verified> {
        let head = token.split('.').next().unwrap_or_default();
        let head = URL_SAFE_NO_PAD.decode(head).map_err(|_| refused())?;
        let head: Head<'_> = serde_json::from_slice(&head).map_err(|_| refused())?;
        let (algorithm, with_kid) = match self.algorithm {
            Algorithm::EdDSA => ("EdDSA", true),
            _ => ("HS256", false),
        };
        if head.alg != algorithm || head.typ != TYPE || head.kid.is_some() != with_kid {
            return Err(refused());
        }
        match &self.keying {
            Keying::Shared(shared) => self.claims(token, &shared.verifies, None),
            Keying::Rotated(keys) => {
                let kid = head.kid.unwrap_or_default();
                let mut ring = keys.ring().await?;
                if ring.named(kid, self.clock.now()).is_none() {
                    ring = keys.ring_after_unknown().await?;
                }
                let key = ring.named(kid, self.clock.now()).ok_or_else(refused)?;
                self.claims(token, &key.verifies, Some(key.generation))
            }
        }
    }

    fn claims(&self, token: &str, key: &DecodingKey, generation: Option<i64>) -> Result<Verified> {
        let claims = jsonwebtoken::decode::<Claims<'static>>(token, key, &self.validation)
            .map_err(|_| refused())?
            .claims;
        let latest = self.now_seconds().saturating_add(LEEWAY_SECONDS);
        if claims.iat > latest || claims.nbf.is_some_and(|begins| begins > latest) || claims.sub.is_empty() {
            return Err(refused());
        }
        let given_at = i64::try_from(claims.iat).unwrap_or(0).saturating_mul(1_000_000);
        // The database decides the user's role. The role in the token only has to be a known one.
        Role::parse(&claims.role).ok_or_else(refused)?;
        Ok(Verified {
            subject: Arc::from(claims.sub),
            session: SessionId(claims.sid),
            user_generation: Timestamp(claims.generation.unwrap_or(given_at)),
            ends: claims.exp.saturating_add(LEEWAY_SECONDS),
            generation,
        })
    }

    pub(super) fn seal(&self, purpose: &str, message: &[u8]) -> [u8; 16] {
        let ring = self.keys().and_then(Keys::known);
        let key = match (&self.keying, &ring) {
            (Keying::Shared(shared), _) => &shared.seals,
            (_, Some(ring)) => &ring.seals,
            _ => &self.own_seals,
        };
        // The zero byte separates seals from token signatures: those sign base64 text, which has no zero
        // byte.
        let mut sealing = hmac::Context::with_key(key);
        sealing.update(purpose.as_bytes());
        sealing.update(&[0]);
        sealing.update(message);
        let mut seal = [0; 16];
        seal.copy_from_slice(&sealing.sign().as_ref()[..16]);
        seal
    }

    /// Returns the public keys as a JSON Web Key Set (RFC 7517, RFC 8037). Empty under HS256.
    pub(super) async fn key_set(&self) -> Result<KeySet> {
        let Some(keys) = self.keys() else { return Ok(KeySet { keys: Vec::new() }) };
        let (ring, now) = (keys.ring().await?, self.clock.now());
        let told = |key: &super::keys::Key| PublicKey {
            kty: "OKP",
            crv: "Ed25519",
            alg: "EdDSA",
            r#use: "sig",
            kid: key.kid.clone(),
            x: URL_SAFE_NO_PAD.encode(&key.public),
        };
        Ok(KeySet { keys: ring.holding(now).map(told).collect() })
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn now_seconds(&self) -> u64 {
        let Timestamp(now) = self.clock.now();
        u64::try_from(now / 1_000_000).unwrap_or(0)
    }
}

/// The public keys that verify tokens, youngest first.
#[derive(Clone, Debug, Serialize)]
pub struct KeySet {
    /// One entry per key.
    pub keys: Vec<PublicKey>,
}

/// A public key as a JSON Web Key.
#[derive(Clone, Debug, Serialize)]
pub struct PublicKey {
    /// The key type: `OKP`.
    pub kty: &'static str,
    /// The curve: `Ed25519`.
    pub crv: &'static str,
    /// The algorithm: `EdDSA`.
    pub alg: &'static str,
    /// The use of the key: `sig`, signatures.
    pub r#use: &'static str,
    /// The id of the key, as in the header of tokens.
    pub kid: String,
    /// The public key in base64url.
    pub x: String,
}

/// Returns the one error for every token that is not valid.
pub(super) fn refused() -> Error {
    Error::new(ErrorCode::Unauthenticated, "The token does not hold")
}
