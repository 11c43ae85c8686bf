//! The rate limit per subject in HTTP. Every response to an authenticated caller has the fields
//! `RateLimit-Policy` and `RateLimit` of the IETF draft "RateLimit header fields for HTTP"
//! (draft-ietf-httpapi-ratelimit-headers, revision 09). A caller with no requests left gets 429 with
//! `Retry-After`.
//!
//! The only policy is named `subject`. Its quota `q` is the size of the bucket; its window `w` is the number
//! of seconds in which an empty bucket fills. `r` is the number of requests left, `t` the number of seconds
//! until the bucket is full.

use std::io::Write;

use http::header::HeaderMap;
use http::{HeaderName, HeaderValue};

use crate::domain::access::Caller;
use crate::domain::time::MonoTime;
use crate::error::ErrorCode;
use crate::rate::{Limiter, Quota};

use super::Settings;
use super::problem::Failure;

pub(super) const RATE_LIMIT: &str = "ratelimit";
pub(super) const RATE_LIMIT_POLICY: &str = "ratelimit-policy";

/// Room for the longest `RateLimit`: its fixed part and two numbers of ten digits.
const VALUE_BYTES_MAX: usize = 48;

/// The limit, and the value of its policy field.
pub(super) struct Limit {
    limiter: Limiter,
    policy: HeaderValue,
}

impl Limit {
    /// Returns `None` if `settings` disable the limit.
    pub(super) fn new(settings: &Settings) -> Option<Self> {
        let Settings { rate_limit_per_s, rate_limit_burst, rate_limit_subjects_max, .. } = settings;
        let limiter = Limiter::new(*rate_limit_per_s, *rate_limit_burst, *rate_limit_subjects_max)?;
        let policy = format!("\"subject\";q={rate_limit_burst};w={}", limiter.window_s());
        Some(Limit { limiter, policy: HeaderValue::try_from(policy).ok()? })
    }

    /// Counts a request of `caller`. Returns the remaining quota, and whether the request may proceed.
    pub(super) fn take(&self, caller: &Caller, now: MonoTime) -> (Quota, Result<(), Failure>) {
        match self.limiter.take(&caller.subject, now) {
            Ok(quota) => (quota, Ok(())),
            Err(quota) => {
                let detail = "Too many requests of this caller in a short time";
                (quota, Err(Failure::new(ErrorCode::RateLimited, detail)))
            }
        }
    }

    /// Charges the caller's bucket the cost of a denial beyond the request itself.
    pub(super) fn charge_denial(&self, caller: &Caller, now: MonoTime) {
        self.limiter.charge_denial(&caller.subject, now);
    }

    /// Adds the fields with the remaining quota to `headers`.
    pub(super) fn tell(&self, quota: Quota, headers: &mut HeaderMap) {
        headers.insert(HeaderName::from_static(RATE_LIMIT_POLICY), self.policy.clone());
        let mut value = [0; VALUE_BYTES_MAX];
        let mut rest = &mut value[..];
        if write!(rest, "\"subject\";r={};t={}", quota.left, quota.full_in_s).is_ok() {
            let length = VALUE_BYTES_MAX - rest.len();
            if let Ok(value) = HeaderValue::from_bytes(&value[..length]) {
                headers.insert(HeaderName::from_static(RATE_LIMIT), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_value_has_room() {
        let limit = Limit::new(&Settings::default()).expect("on by default");
        let mut headers = HeaderMap::new();
        limit.tell(Quota { left: u32::MAX, full_in_s: u32::MAX }, &mut headers);
        assert_eq!(headers[RATE_LIMIT], "\"subject\";r=4294967295;t=4294967295");
        assert_eq!(headers[RATE_LIMIT_POLICY], "\"subject\";q=2000;w=2");
    }
}
