//! Encrypts secrets in the database under `key_secret`, if one is set.
//!
//! AES-256-GCM (NIST SP 800-38D) with a key that HKDF (RFC 5869) derives from `key_secret`. The random nonce
//! precedes the ciphertext. The purpose of a secret is authenticated as additional data, so that one secret
//! cannot be put in the place of another.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};

use super::{Error, Settings};

/// The purpose of the derived key.
const INFO: &[u8] = b"hygeia keys at rest 1";

/// Why a secret from the database cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Locked {
    /// The secret is encrypted, and `key_secret` is not set.
    #[error("the keys for tokens are encrypted, and auth.key_secret is not set")]
    NoSecret,
    /// Decryption failed.
    #[error("the keys for tokens are encrypted under another auth.key_secret, or damaged")]
    OtherSecret,
}

pub(super) struct Vault {
    key: Option<LessSafeKey>,
}

impl Vault {
    pub(super) fn new(settings: &Settings) -> Result<Self, Error> {
        let Some(secret) = &settings.key_secret else { return Ok(Vault { key: None }) };
        let secret = secret.bytes("key_secret")?;
        let pseudorandom = Salt::new(HKDF_SHA256, &[]).extract(&secret);
        let key = pseudorandom.expand(&[INFO], &AES_256_GCM).map(UnboundKey::from);
        Ok(Vault { key: Some(LessSafeKey::new(key.map_err(|_| Error::NoRandomness)?)) })
    }

    /// Returns `secret` in its stored form, and whether it is encrypted.
    pub(super) fn close(&self, purpose: &str, secret: &[u8]) -> Result<(Vec<u8>, bool), Error> {
        let Some(key) = &self.key else { return Ok((secret.to_vec(), false)) };
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| Error::NoRandomness)?;
        let mut closed = secret.to_vec();
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(purpose.as_bytes()),
            &mut closed,
        )
        .map_err(|_| Error::NoRandomness)?;
        closed.splice(0..0, nonce);
        Ok((closed, true))
    }

    /// Returns the secret in `stored`.
    pub(super) fn open(&self, purpose: &str, stored: &[u8], sealed: bool) -> Result<Vec<u8>, Locked> {
        if !sealed {
            return Ok(stored.to_vec());
        }
        let key = self.key.as_ref().ok_or(Locked::NoSecret)?;
        let (nonce, closed) = stored.split_at_checked(NONCE_LEN).ok_or(Locked::OtherSecret)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Locked::OtherSecret)?;
        let mut opened = closed.to_vec();
        let aad = Aad::from(purpose.as_bytes());
        Ok(key.open_in_place(nonce, aad, &mut opened).map_err(|_| Locked::OtherSecret)?.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::SecretText;

    fn vault(secret: Option<&str>) -> Vault {
        let key_secret = secret.map(|text| SecretText::from(text.to_owned()));
        Vault::new(&Settings { key_secret, ..Settings::default() }).expect("a vault")
    }

    #[test]
    fn what_is_closed_opens_under_the_same_secret_for_the_same_purpose_alone() {
        let (one, other) = ("a".repeat(48), "b".repeat(48));
        let (stored, sealed) = vault(Some(&one)).close("kid-1", b"the secret").expect("closed");
        assert!(sealed && !stored.windows(10).any(|part| part == b"the secret"));
        assert_eq!(vault(Some(&one)).open("kid-1", &stored, true), Ok(b"the secret".to_vec()));
        assert_eq!(vault(Some(&one)).open("kid-2", &stored, true), Err(Locked::OtherSecret));
        assert_eq!(vault(Some(&other)).open("kid-1", &stored, true), Err(Locked::OtherSecret));
        assert_eq!(vault(None).open("kid-1", &stored, true), Err(Locked::NoSecret));
        for at in 0..stored.len() {
            let mut damaged = stored.clone();
            damaged[at] ^= 1;
            assert_eq!(vault(Some(&one)).open("kid-1", &damaged, true), Err(Locked::OtherSecret), "{at}");
        }
        assert_eq!(vault(Some(&one)).open("kid-1", &stored[..5], true), Err(Locked::OtherSecret));
    }

    #[test]
    fn without_a_secret_it_lies_open_and_is_told_so() {
        let (stored, sealed) = vault(None).close("kid-1", b"the secret").expect("closed");
        assert_eq!((&*stored, sealed), (&b"the secret"[..], false));
        assert_eq!(vault(Some(&"a".repeat(48))).open("kid-1", &stored, false), Ok(b"the secret".to_vec()));
    }
}
