//! Password hashing: BCrypt (Provos and Mazières, 1999) on a bounded pool of low-priority threads.
//!
//! Invariants: at most `hashing_threads_max` threads hash, and at most `hashing_queue_max` callers wait. A
//! check costs at least as much as a new hash, whatever the stored hash is. It costs more only if the stored
//! hash has a higher cost than `bcrypt_cost`.

use std::hint::black_box;
use std::str::FromStr;
use std::sync::Arc;

use bcrypt::{BcryptError, HashParts};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::{Error, ErrorCode, Result};

use super::Settings;
pub(super) use super::common::is_common;
use super::pool::Pool;

/// The shortest allowed password, in bytes.
pub const PASSWORD_MIN_BYTES: usize = 8;
/// The longest allowed password, in bytes. BCrypt ignores any further bytes.
pub const PASSWORD_MAX_BYTES: usize = 72;

/// The rules for a password, for messages about settings.
pub(super) const PASSWORD_RULE: &str = "8 to 72 bytes, none of the most common passwords, and no NUL in it";
/// Not allowed in passwords. BCrypt terminates its key with NUL and then repeats the key, so a password with
/// NUL can match the hash of another.
const NUL: char = '\0';

/// The lowest cost that BCrypt allows.
pub(super) const COST_LEAST: u32 = 4;
/// The highest accepted cost. A login at this cost takes seconds. A stored hash of a higher cost is treated
/// as damaged, because it could occupy a thread for hours.
pub(super) const COST_MOST: u32 = 16;

/// Checks that `password` may be chosen.
///
/// # Errors
/// Which rule the password breaks, for the person who chose it.
pub fn validate_password(password: &str) -> std::result::Result<(), &'static str> {
    match password.len() {
        0 => Err("Password is required"),
        1..PASSWORD_MIN_BYTES => Err("Password must have at least 8 bytes"),
        PASSWORD_MIN_BYTES..=PASSWORD_MAX_BYTES if password.contains(NUL) => {
            Err("Password cannot contain the character NUL")
        }
        PASSWORD_MIN_BYTES..=PASSWORD_MAX_BYTES if is_common(password) => {
            Err("Password is one of the most common ones")
        }
        PASSWORD_MIN_BYTES..=PASSWORD_MAX_BYTES => Ok(()),
        _ => Err("Password cannot exceed 72 bytes"),
    }
}

/// Hashes and checks passwords, a bounded number at once.
pub(super) struct Hasher {
    cost: u32,
    pool: Pool,
    /// One permit per caller that hashes or waits to hash.
    places: Arc<Semaphore>,
}

/// The permission to hash once, or to wait for it.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Hasher {
    pub(super) fn new(settings: &Settings) -> Self {
        let places = settings.hashing_threads_max + settings.hashing_queue_max;
        Hasher {
            cost: settings.bcrypt_cost,
            pool: Pool::new(settings.hashing_threads_max, places, settings.hashing_niceness),
            places: Arc::new(Semaphore::new(places)),
        }
    }

    /// Reserves a place.
    ///
    /// # Errors
    /// `Overloaded`: no place is free.
    pub(super) fn place(&self) -> Result<Place> {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => Ok(Place { _permit: permit }),
            Err(_) => Err(Error::new(ErrorCode::Overloaded, "Too many log in at once")),
        }
    }

    /// Returns the hash of a new password, `$2b$…`.
    pub(super) async fn hash(&self, password: &str) -> Result<String> {
        let (password, cost) = (password.to_owned(), self.cost);
        self.run(self.place()?, move || bcrypt::hash(password, cost)).await
    }

    /// Returns whether `password` matches `hash`. Without a hash, or if the password is too long or contains
    /// a NUL, the result is false at the same cost.
    pub(super) async fn verify(&self, place: Place, password: &str, hash: Option<String>) -> Result<bool> {
        let known = hash.is_some() && password.len() <= PASSWORD_MAX_BYTES && !password.contains(NUL);
        let hash = hash.unwrap_or_else(|| hash_of_nothing(self.cost));
        // BCrypt ignores any further bytes.
        let seen = password.len().min(PASSWORD_MAX_BYTES);
        let (password, cost) = (password.as_bytes()[..seen].to_vec(), self.cost);
        let fits = self.run(place, move || check(&password, &hash, cost)).await?;
        Ok(known && fits)
    }

    async fn run<T: Send + 'static>(
        &self,
        place: Place,
        work: impl FnOnce() -> std::result::Result<T, BcryptError> + Send + 'static,
    ) -> Result<T> {
        let broken = || Error::new(ErrorCode::Internal, "Passwords cannot be checked");
        let (done, result) = oneshot::channel();
        // The place moves into the job: a caller that gives up does not free a thread that still hashes. A
        // job whose caller gave up before it started is skipped.
        let hashing = move || {
            if !done.is_closed() {
                let hashed = work();
                drop(place);
                // The caller may have stopped waiting.
                let _ = done.send(hashed);
            }
        };
        if !self.pool.submit(Box::new(hashing)) {
            return Err(broken());
        }
        match result.await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                tracing::error!(%error, "a stored password hash is damaged, or there is no randomness");
                Err(broken())
            }
            Err(_) => Err(broken()),
        }
    }
}

fn check(password: &[u8], hash: &str, cost: u32) -> std::result::Result<bool, BcryptError> {
    let of = HashParts::from_str(hash)?.get_cost();
    let known_form = ["$2a$", "$2b$", "$2y$"].iter().any(|form| hash.starts_with(form));
    if !known_form || of > COST_MOST {
        return Err(BcryptError::InvalidHash("the form or the cost is none of ours"));
    }
    let fits = bcrypt::verify(password, hash)?;
    // A check of an older, cheaper hash must not be faster, because that would reveal that the user exists.
    // The work doubles with each step of the cost: 2^of + 2^of + 2^(of+1) + … + 2^(cost-1) equals the 2^cost
    // of a new hash.
    for missing in of..cost {
        black_box(bcrypt::hash_with_salt(password, missing, [0; 16])?);
    }
    Ok(fits)
}

/// Returns a well-formed hash that was not computed from any password.
fn hash_of_nothing(cost: u32) -> String {
    format!("$2b${cost:02}${:.<53}", "")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::*;

    fn hasher(cost: u32, threads: usize, queue: usize) -> Hasher {
        Hasher::new(&Settings {
            bcrypt_cost: cost,
            hashing_threads_max: threads,
            hashing_queue_max: queue,
            ..Settings::default()
        })
    }

    async fn verify(hasher: &Hasher, password: &str, hash: Option<String>) -> Result<bool> {
        hasher.verify(hasher.place().expect("a place"), password, hash).await
    }

    #[test]
    fn the_commonest_are_refused_in_any_case() {
        for common in ["password123", "Password123", "12345678", "QWERTYUIOP", "Iloveyou1", "Hygeia123"] {
            assert_eq!(validate_password(common), Err("Password is one of the most common ones"), "{common}");
        }
        assert!(validate_password("correct horse battery").is_ok());
    }

    #[test]
    fn a_password_has_8_to_72_bytes() {
        assert!(validate_password("").is_err());
        assert!(validate_password("1234567").is_err());
        assert!(validate_password("8 bytes!").is_ok());
        let long = "violet anchor ".repeat(6);
        assert!(validate_password(&long[..72]).is_ok());
        assert!(validate_password(&long[..73]).is_err());
        assert!(validate_password(&"ö".repeat(37)).is_err(), "bytes count, not characters");
    }

    #[tokio::test]
    async fn new_hashes_are_2b_of_the_cost_set_and_verify() {
        let hasher = hasher(5, 1, 1);
        let hash = hasher.hash("correct horse").await.expect("hashed");
        assert!(hash.starts_with("$2b$05$"), "{}", &hash[..7]);
        assert!(verify(&hasher, "correct horse", Some(hash.clone())).await.expect("checked"));
        assert!(!verify(&hasher, "wrong horse", Some(hash)).await.expect("checked"));
        assert!(!verify(&hasher, "correct horse", None).await.expect("checked"));
    }

    #[tokio::test]
    async fn older_forms_and_costs_verify() {
        let hasher = hasher(6, 1, 1);
        let parts = bcrypt::hash_with_result("password123", 4).expect("hashed");
        for version in [bcrypt::Version::TwoA, bcrypt::Version::TwoB, bcrypt::Version::TwoY] {
            let hash = parts.format_for_version(version);
            assert!(verify(&hasher, "password123", Some(hash)).await.expect("checked"));
        }
        let broken_form = parts.format_for_version(bcrypt::Version::TwoX);
        let error = verify(&hasher, "password123", Some(broken_form)).await.expect_err("not ours");
        assert_eq!(error.code, ErrorCode::Internal);
    }

    #[tokio::test]
    async fn a_hash_that_would_take_hours_is_refused() {
        let hash = bcrypt::hash("password123", 4).expect("hashed").replacen("$04$", "$31$", 1);
        let error = verify(&hasher(4, 1, 1), "password123", Some(hash)).await.expect_err("refused");
        assert_eq!(error.code, ErrorCode::Internal);
    }

    #[tokio::test]
    async fn what_lies_beyond_72_bytes_does_not_make_a_password_fit() {
        let hasher = hasher(4, 1, 1);
        let longest = "x".repeat(72);
        let hash = hasher.hash(&longest).await.expect("hashed");
        assert!(verify(&hasher, &longest, Some(hash.clone())).await.expect("checked"));
        assert!(!verify(&hasher, &"x".repeat(73), Some(hash)).await.expect("checked"));
    }

    #[tokio::test]
    async fn what_follows_a_nul_does_not_make_a_password_fit() {
        let hasher = hasher(4, 1, 1);
        let hash = hasher.hash("violet anchor").await.expect("hashed");
        for repeated in ["violet anchor\0violet anchor", "violet anchor\0violet anchor\0violet anchor"] {
            let bcrypt = bcrypt::verify(repeated, &hash).expect("checked");
            assert!(bcrypt, "BCrypt itself takes it: else nothing is tested here");
            assert!(!verify(&hasher, repeated, Some(hash.clone())).await.expect("checked"), "{repeated:?}");
            assert!(validate_password(repeated).is_err());
        }
        assert!(validate_password("violet\0anchor").is_err());
    }

    #[test]
    fn the_work_of_a_check_does_not_depend_on_what_is_checked() {
        // Measures in one thread and takes the best of several runs, so that a busy machine does not matter.
        // The bound is far from the factor of 64 that an unpadded cheap hash would show.
        let old = bcrypt::hash("password123", 4).expect("hashed");
        let best = |hash: &str| {
            let one = |_| {
                let began = Instant::now();
                check(b"password123", hash, 10).expect("checked");
                began.elapsed()
            };
            (0..5).map(one).min().unwrap_or_default()
        };
        let (old, nothing) = (best(&old), best(&hash_of_nothing(10)));
        assert!(old < nothing * 3 && nothing < old * 3, "{old:?} and {nothing:?}");
    }

    #[tokio::test]
    async fn beyond_threads_and_queue_a_caller_is_refused_and_places_come_back() {
        let hasher = Arc::new(hasher(4, 1, 1));
        let (go, gate) = mpsc::channel::<()>();
        let started = Arc::new(AtomicUsize::new(0));
        let first = {
            let (hasher, started) = (Arc::clone(&hasher), Arc::clone(&started));
            tokio::spawn(async move {
                let work = move || {
                    started.fetch_add(1, Ordering::SeqCst);
                    gate.recv_timeout(Duration::from_secs(10)).ok();
                    Ok(())
                };
                hasher.run(hasher.place()?, work).await
            })
        };
        let second = {
            let hasher = Arc::clone(&hasher);
            tokio::spawn(async move { hasher.run(hasher.place()?, || Ok(())).await })
        };
        while started.load(Ordering::SeqCst) == 0 || hasher.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let error = hasher.place().map(drop).expect_err("full");
        assert_eq!(error.code, ErrorCode::Overloaded);
        go.send(()).expect("the first waits");
        first.await.expect("joined").expect("hashed");
        second.await.expect("joined").expect("hashed");
        hasher.run(hasher.place().expect("room again"), || Ok(())).await.expect("hashed");
    }
}
