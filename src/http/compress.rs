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

use std::convert::Infallible;
use std::future::ready;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::header::{ACCEPT_ENCODING, ETAG};
use http::{Extensions, HeaderMap, HeaderValue, StatusCode, Version};
use tower::{Layer, Service, service_fn};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{And, Predicate, SizeAbove};

/// Higher levels take several times as long for a few per cent.
const LEVEL: CompressionLevel = CompressionLevel::Precise(4);

/// Without an `ETag`.
type Unnamed = fn(StatusCode, Version, &HeaderMap, &Extensions) -> bool;

fn unnamed(_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions) -> bool {
    !headers.contains_key(ETAG)
}

/// Compresses the answers of a route.
#[derive(Clone, Copy)]
pub(super) struct Compression {
    worthwhile: And<SizeAbove, Unnamed>,
}

impl Compression {
    /// For the answers of `path`, from `min_bytes` on. None: never.
    pub(super) fn of_route(path: &str, min_bytes: u16) -> Option<Self> {
        if min_bytes == 0 || path.starts_with("/auth/") {
            return None;
        }
        Some(Compression { worthwhile: SizeAbove::new(min_bytes).and(unnamed as Unnamed) })
    }

    /// `answer`, compressed if that is worthwhile and its caller takes it.
    pub(super) async fn apply(&self, accepted: Accepted, answer: Response) -> Response {
        // The library's body has room for an encoder, 6 KiB, whether it encodes or not. Around every answer it was a
        // fifteenth of what a read of a record in memory costs.
        if !self.worthwhile.should_compress(&answer) {
            return answer;
        }
        Box::pin(self.compress(accepted, answer)).await
    }

    async fn compress(&self, accepted: Accepted, answer: Response) -> Response {
        let mut request = http::Request::new(answer);
        for value in accepted.0 {
            request.headers_mut().append(ACCEPT_ENCODING, value);
        }
        let answered =
            service_fn(|request: http::Request<Response>| ready(Ok::<_, Infallible>(request.into_body())));
        let layer = CompressionLayer::new().gzip(true).br(true).quality(LEVEL);
        let Ok(compressed) = layer.compress_when(self.worthwhile).layer(answered).call(request).await;
        compressed.map(Body::new)
    }
}

/// What codings a caller takes: the values of `Accept-Encoding`.
pub(super) struct Accepted(Vec<HeaderValue>);

impl Accepted {
    /// By the sender of `request`.
    pub(super) fn by(request: &Request) -> Self {
        Accepted(request.headers().get_all(ACCEPT_ENCODING).iter().cloned().collect())
    }
}
