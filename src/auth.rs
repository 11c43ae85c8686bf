//! Stands in for the room of passwords and tokens until it is merged.

use crate::domain::access::Caller;
use crate::error::{Error, ErrorCode, Result};

/// Knows tokens.
#[derive(Clone)]
pub struct Auth {}

#[allow(clippy::unused_async, reason = "stands in for an asynchronous check")]
impl Auth {
    /// Who the caller with this token is.
    ///
    /// # Errors
    /// `Unauthenticated`, `Unavailable`.
    pub async fn authenticate(&self, _bearer_token: &str) -> Result<Caller> {
        Err(Error::new(ErrorCode::Unauthenticated, "The token does not hold"))
    }
}

/// The token in the value of an `Authorization` header, if it is a bearer token (RFC 6750).
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, rest) = authorization.split_once(' ')?;
    let token = rest.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
