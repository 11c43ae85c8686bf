//! Answers in gzip or brotli (RFC 9110, section 8.4), for who accepts them.
//!
//! What is not compressed:
//! - What is short: it would save no packet, and cost more time than it saves.
//! - Answers about tokens (`/auth/…`), and those with an `ETag`: that names the bytes, and these would be others.
//!
//! BREACH (a compressed answer's length tells of a secret in it, if the attacker chooses a part of it) needs requests
//! in the victim's name with content of the attacker's choice. A foreign page cannot make them: callers are known by a
//! header that only their own program sets, never by a cookie. And no answer holds a secret beside what its caller
//! sent: tokens are given out by `/auth` alone.

use http::header::ETAG;
use http::{Extensions, HeaderMap, StatusCode, Version};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{And, Predicate, SizeAbove};

/// Higher levels take several times as long for a few per cent.
const LEVEL: CompressionLevel = CompressionLevel::Precise(4);

/// Without an `ETag`.
pub(super) type Unnamed = fn(StatusCode, Version, &HeaderMap, &Extensions) -> bool;

fn unnamed(_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions) -> bool {
    !headers.contains_key(ETAG)
}

/// Compresses the answers of the route `path` from `min_bytes` on. None: never.
pub(super) fn layer(path: &str, min_bytes: u16) -> Option<CompressionLayer<And<SizeAbove, Unnamed>>> {
    if min_bytes == 0 || path.starts_with("/auth/") {
        return None;
    }
    let worthwhile = SizeAbove::new(min_bytes).and(unnamed as Unnamed);
    Some(CompressionLayer::new().gzip(true).br(true).quality(LEVEL).compress_when(worthwhile))
}
