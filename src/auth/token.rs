//! Tokens: signing, verifying, and a bounded memory of those verified, so that a caller's second request
//! costs one hash of the token instead of a signature and two parses.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use lru::LruCache;
use serde::{Deserialize, Serialize};

use crate::domain::access::Role;
use crate::domain::time::Clock;
use crate::error::{Error, ErrorCode, Result};

use super::{Settings, Token};

/// How far the clocks of the nodes may differ.
const LEEWAY_SECONDS: u64 = 2;
/// No token of ours is longer.
const TOKEN_MAX_BYTES: usize = 2048;
const SECRET_MIN_BYTES: usize = 32;

#[derive(Serialize, Deserialize)]
struct Claims<'a> {
    sub: std::borrow::Cow<'a, str>,
    role: std::borrow::Cow<'a, str>,
    iss: std::borrow::Cow<'a, str>,
    iat: u64,
    exp: u64,
}

struct Verified {
    subject: Arc<str>,
    /// The first second in which it no longer holds, leeway included.
    ends: u64,
}

/// Signs tokens and verifies them.
pub(super) struct Signer {
    signs: EncodingKey,
    verifies: DecodingKey,
    seals: hmac::Key,
    validation: Validation,
    issuer: String,
    ttl: Duration,
    clock: Arc<dyn Clock>,
    /// By the SHA-256 of the token: the tokens themselves are not kept.
    verified: Mutex<LruCache<[u8; 32], Verified>>,
}

impl Signer {
    pub(super) fn new(settings: &Settings, clock: Arc<dyn Clock>) -> std::result::Result<Self, super::Error> {
        let secret = secret_bytes(settings)?;
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        validation.set_issuer(&[&settings.issuer]);
        // The end is checked here, against the clock that was handed in.
        validation.validate_exp = false;
        let capacity = NonZeroUsize::new(settings.tokens_cached_max).unwrap_or(NonZeroUsize::MIN);
        Ok(Signer {
            signs: EncodingKey::from_secret(&secret),
            verifies: DecodingKey::from_secret(&secret),
            seals: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            validation,
            issuer: settings.issuer.clone(),
            ttl: Duration::from_secs(settings.token_ttl_seconds),
            clock,
            verified: Mutex::new(LruCache::new(capacity)),
        })
    }

    /// A token for `subject`, from now on.
    pub(super) fn sign(&self, subject: &str, role: Role) -> Result<Token> {
        let now = self.now_seconds();
        let claims = Claims {
            sub: subject.into(),
            role: role.as_str().into(),
            iss: self.issuer.as_str().into(),
            iat: now,
            exp: now.saturating_add(self.ttl.as_secs()),
        };
        let text = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.signs)
            .map_err(|_| Error::new(ErrorCode::Internal, "No token could be made"))?;
        Ok(Token { text, expires_in: self.ttl })
    }

    /// The subject of `token`, if it holds now.
    pub(super) fn verify(&self, token: &str) -> Result<Arc<str>> {
        if token.len() > TOKEN_MAX_BYTES {
            return Err(refused());
        }
        let mut key = [0; 32];
        key.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
        let now = self.now_seconds();
        let known = {
            let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
            verified.get(&key).map(|known| (Arc::clone(&known.subject), known.ends))
        };
        let (subject, ends) = match known {
            Some(known) => known,
            None => self.verify_anew(token, key)?,
        };
        if now >= ends {
            return Err(Error::new(ErrorCode::Unauthenticated, "The token has expired"));
        }
        Ok(subject)
    }

    fn verify_anew(&self, token: &str, key: [u8; 32]) -> Result<(Arc<str>, u64)> {
        let claims = jsonwebtoken::decode::<Claims<'static>>(token, &self.verifies, &self.validation)
            .map_err(|_| refused())?
            .claims;
        // The database says what a user may do now; the token must still name a role there is.
        Role::parse(&claims.role).ok_or_else(refused)?;
        let (subject, ends) = (Arc::<str>::from(claims.sub), claims.exp.saturating_add(LEEWAY_SECONDS));
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        verified.put(key, Verified { subject: Arc::clone(&subject), ends });
        Ok((subject, ends))
    }

    pub(super) fn seal(&self, purpose: &str, message: &[u8]) -> [u8; 16] {
        // The zero byte keeps a seal from ever being a token's signature, whose message is base64.
        let mut sealing = hmac::Context::with_key(&self.seals);
        sealing.update(purpose.as_bytes());
        sealing.update(&[0]);
        sealing.update(message);
        let mut seal = [0; 16];
        seal.copy_from_slice(&sealing.sign().as_ref()[..16]);
        seal
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn now_seconds(&self) -> u64 {
        u64::try_from(self.clock.now().0 / 1_000_000).unwrap_or(0)
    }
}

/// What is said of every token that does not hold.
pub(super) fn refused() -> Error {
    Error::new(ErrorCode::Unauthenticated, "The token does not hold")
}

/// The key in the settings.
pub(super) fn secret_bytes(settings: &Settings) -> std::result::Result<Vec<u8>, super::Error> {
    let text = settings.jwt_secret.as_ref().map_or("", |secret| secret.reveal().trim());
    if text.is_empty() {
        return Err(super::Error::SecretMissing);
    }
    let bytes = STANDARD.decode(text).unwrap_or_else(|_| text.as_bytes().to_vec());
    if bytes.len() < SECRET_MIN_BYTES {
        return Err(super::Error::SecretTooShort { bytes: bytes.len() });
    }
    Ok(bytes)
}
