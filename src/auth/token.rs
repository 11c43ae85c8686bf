//! Tokens: signing, verifying, and a bounded memory of those verified, so that a caller's second request
//! costs one hash of the token instead of a signature and three parses.
//!
//! Invariants:
//! - A header names the algorithm that is configured, our type, and for EdDSA a key; one that holds anything
//!   else (`jku`, `x5u`, `jwk`, `crit`, …) is refused before anything is verified. Keys are never taken from a token.
//! - What is remembered is asked anew for its end, and for whether its key still holds.
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

/// How far the clocks of the nodes may differ.
const LEEWAY_SECONDS: u64 = 2;
/// No token of ours is longer.
const TOKEN_MAX_BYTES: usize = 2048;
/// The type of access tokens (RFC 9068, section 2.1), so that no other JWT is taken for one.
const TYPE: &str = "at+jwt";

#[derive(Serialize, Deserialize)]
struct Claims<'a> {
    iss: Cow<'a, str>,
    aud: Cow<'a, str>,
    sub: Cow<'a, str>,
    role: Cow<'a, str>,
    /// The session that it belongs to.
    sid: Uuid,
    /// The generation of the user that the session is of. A node of an older version leaves it out.
    #[serde(rename = "gen", default, skip_serializing_if = "Option::is_none")]
    generation: Option<i64>,
    jti: Uuid,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
    exp: u64,
}

/// All that a header may hold.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head<'a> {
    alg: &'a str,
    typ: &'a str,
    kid: Option<&'a str>,
}

/// A token that holds.
#[derive(Clone)]
pub(super) struct Verified {
    pub(super) subject: Arc<str>,
    pub(super) session: SessionId,
    /// The generation of the user that its session is of. Where it does not say, the whole second in which it was given.
    pub(super) user_generation: Timestamp,
    /// The first second in which it no longer holds, leeway included.
    ends: u64,
    /// Of the key that signed it.
    generation: Option<i64>,
}

/// What signs.
enum Keying {
    Shared(Box<Shared>),
    Rotated(Box<Keys>),
}

/// What is made of the secret that all nodes share.
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
    /// Seals before the keys are known, and never known again: better than none.
    own_seals: hmac::Key,
    /// By the SHA-256 of the token: the tokens themselves are not kept.
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
        // Times are checked here, against the clock that was handed in.
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

    /// The keys, where there are any to rotate.
    pub(super) fn keys(&self) -> Option<&Keys> {
        match &self.keying {
            Keying::Rotated(keys) => Some(keys),
            Keying::Shared(_) => None,
        }
    }

    /// A token for `subject` in the session of `grant`, from now on, and not beyond the session's end.
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

    /// What `token` says, if it holds now.
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
                // Boxed: it is large and rare, and each request would have room for it.
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

    /// Whether the key that signed what is remembered has not been given up since.
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
        // The database says what a user may do now; the token must still name a role there is.
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
        // The zero byte keeps a seal from ever being a token's signature, whose message is base64.
        let mut sealing = hmac::Context::with_key(key);
        sealing.update(purpose.as_bytes());
        sealing.update(&[0]);
        sealing.update(message);
        let mut seal = [0; 16];
        seal.copy_from_slice(&sealing.sign().as_ref()[..16]);
        seal
    }

    /// The public keys as a JSON Web Key Set (RFC 7517, RFC 8037). Empty where a secret is shared.
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

/// The public keys that tokens may be verified with, youngest first.
#[derive(Clone, Debug, Serialize)]
pub struct KeySet {
    /// One entry per key.
    pub keys: Vec<PublicKey>,
}

/// A public key as JSON Web Key.
#[derive(Clone, Debug, Serialize)]
pub struct PublicKey {
    /// `OKP`
    pub kty: &'static str,
    /// `Ed25519`
    pub crv: &'static str,
    /// `EdDSA`
    pub alg: &'static str,
    /// `sig`
    pub r#use: &'static str,
    /// Its name in the tokens' header.
    pub kid: String,
    /// The key, in base64url.
    pub x: String,
}

/// What is said of every token that does not hold.
pub(super) fn refused() -> Error {
    Error::new(ErrorCode::Unauthenticated, "The token does not hold")
}
