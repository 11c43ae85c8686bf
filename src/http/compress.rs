//! Compresses responses with gzip or brotli (RFC 9110, section 8.4) for clients that accept it.
//!
//! Invariant: content that is the same for every client (`Document`) is compressed once. Every other response
//! is compressed on a blocking thread while its request still holds its slot. At most `AT_ONCE_PER_CORE` such
//! threads per core run at a time. If none is free, the response is sent uncompressed instead of waiting, so
//! a flood of requests cannot take more of the processor.
//!
//! Not compressed:
//! - Short responses: compression would save no packet, and takes longer than it saves.
//! - Failures and responses about tokens (`/auth/…`).
//! - Responses with an `ETag`: the tag identifies the exact bytes, which compression would change.
//!
//! BREACH attacks do not apply. They infer a secret from the length of compressed responses, and need
//! requests in the victim's name with content chosen by the attacker. A foreign page cannot send such
//! requests, because callers are authenticated by a header that only their own program sets, never by a
//! cookie. Besides, no response contains a secret next to content of the request: only `/auth` returns
//! tokens.

use std::io::Write;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderMap, VARY};
use http::{HeaderValue, StatusCode};
use tokio::sync::Semaphore;

/// Compression level per response. Higher levels take several times as long to save a few per cent more.
const LEVEL: u8 = 4;

/// Compression level of documents, which are compressed once.
const LEVEL_ONCE: u8 = 9;

/// Share of the cores that compression may use; the rest remains for everything else.
const AT_ONCE_PER_CORE: f64 = 0.5;

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Brotli,
    Gzip,
}

impl Coding {
    const fn as_str(self) -> &'static str {
        match self {
            Coding::Brotli => "br",
            Coding::Gzip => "gzip",
        }
    }

    /// Returns the coding that the client prefers (`Accept-Encoding`, RFC 9110, section 12.5.3), or `None`
    /// for no coding.
    pub(super) fn accepted(headers: &HeaderMap) -> Option<Self> {
        let values = || headers.get_all(ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
        let listed = |names: &[&str]| {
            let items = values().flat_map(|value| value.split(','));
            let mut weights = items.filter_map(|item| {
                let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
                names.iter().any(|known| name.trim().eq_ignore_ascii_case(known)).then(|| weight(parameters))
            });
            weights.next()
        };
        let any = listed(&["*"]);
        let of = |names: &[&str]| listed(names).or(any).unwrap_or(0.0);
        let (brotli, gzip) = (of(&["br"]), of(&["gzip", "x-gzip"]));
        let (coding, liked) = if brotli >= gzip { (Coding::Brotli, brotli) } else { (Coding::Gzip, gzip) };
        let plain = listed(&["identity"]).unwrap_or(0.0);
        (liked > 0.0 && liked >= plain).then_some(coding)
    }

    /// Compresses `plain`.
    fn encode(self, plain: &[u8], level: u8) -> std::io::Result<Vec<u8>> {
        let mut packed = Vec::with_capacity(plain.len() / 4);
        match self {
            Coding::Brotli => {
                let parameters =
                    brotli::enc::BrotliEncoderParams { quality: level.into(), ..Default::default() };
                brotli::BrotliCompress(&mut &*plain, &mut packed, &parameters)?;
            }
            Coding::Gzip => {
                let mut encoder = GzEncoder::new(&mut packed, Compression::new(level.into()));
                encoder.write_all(plain)?;
                encoder.finish()?;
            }
        }
        Ok(packed)
    }
}

/// Returns the weight `q` of a coding: 1 if it is absent, 0 (not acceptable) if it is not a number from 0 to
/// 1.
fn weight(parameters: &str) -> f32 {
    let said = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim())
    });
    let Some(said) = said else { return 1.0 };
    said.parse().ok().filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0)
}

/// Content that is the same for every client, in every coding.
#[derive(Clone)]
pub(super) struct Document {
    pub(super) media_type: &'static str,
    pub(super) plain: Bytes,
    pub(super) brotli: Option<Bytes>,
    pub(super) gzip: Option<Bytes>,
}

impl Document {
    /// Compresses `plain` in every coding. This is slow: call it once, on a blocking thread.
    pub(super) fn of(media_type: &'static str, plain: impl Into<Bytes>) -> Self {
        let plain = plain.into();
        let packed = |coding: Coding| coding.encode(&plain, LEVEL_ONCE).ok().map(Bytes::from);
        Document { media_type, brotli: packed(Coding::Brotli), gzip: packed(Coding::Gzip), plain }
    }

    /// Returns the response for a client that sent `headers`.
    pub(super) fn answer(&self, headers: &HeaderMap) -> Response {
        let of = |coding| match coding {
            Coding::Brotli => self.brotli.clone(),
            Coding::Gzip => self.gzip.clone(),
        };
        let chosen = Coding::accepted(headers).and_then(|coding| Some((coding, of(coding)?)));
        let (coding, bytes) = match chosen {
            Some((coding, bytes)) => (Some(coding), bytes),
            None => (None, self.plain.clone()),
        };
        let mut response = Response::new(Body::from(bytes));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.media_type));
        if self.brotli.is_some() || self.gzip.is_some() {
            name(response.headers_mut(), coding);
        }
        response
    }
}

/// Adds `Vary`, and the `Content-Encoding` of a response that exists in several codings.
fn name(headers: &mut HeaderMap, coding: Option<Coding>) {
    headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    let coding = coding.map(|coding| (CONTENT_ENCODING, HeaderValue::from_static(coding.as_str())));
    headers.extend(coding);
}

/// Compresses responses.
pub(super) struct Compressor {
    min_bytes: u16,
    free: Arc<Semaphore>,
}

impl Compressor {
    /// Creates a compressor for responses of at least `min_bytes` bytes. Zero disables compression.
    pub(super) fn new(min_bytes: u16) -> Self {
        let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
        let at_once = ((cores * AT_ONCE_PER_CORE) as usize).max(1);
        Compressor { min_bytes, free: Arc::new(Semaphore::new(at_once)) }
    }

    /// Returns whether compression is disabled.
    pub(super) fn is_off(&self) -> bool {
        self.min_bytes == 0
    }

    /// Compresses the `answer` of the route `path` if that is worthwhile, `accepted` has a coding, and a
    /// thread is free.
    pub(super) async fn apply(&self, path: &str, accepted: Option<Coding>, answer: Response) -> Response {
        // The future below is large. Boxing it only here keeps it out of the cost of a read from memory.
        if !self.is_worthwhile(path, &answer) {
            return answer;
        }
        Box::pin(self.compress(accepted, answer)).await
    }

    fn is_worthwhile(&self, path: &str, answer: &Response) -> bool {
        let is_long =
            || answer.body().size_hint().exact().is_some_and(|bytes| bytes >= self.min_bytes.into());
        let named = |name| answer.headers().contains_key(name);
        self.min_bytes > 0
            && answer.status() == StatusCode::OK
            && is_long()
            && !named(ETAG)
            && !named(VARY)
            && !path.starts_with("/auth/")
    }

    async fn compress(&self, accepted: Option<Coding>, answer: Response) -> Response {
        let thread =
            accepted.and_then(|coding| Some((coding, Arc::clone(&self.free).try_acquire_owned().ok()?)));
        let (mut head, body) = answer.into_parts();
        let Some((coding, thread)) = thread else {
            name(&mut head.headers, None);
            return Response::from_parts(head, body);
        };
        // The whole body is in memory, because its length is known.
        let Ok(plain) = axum::body::to_bytes(body, usize::MAX).await else {
            return super::reply::empty(StatusCode::INTERNAL_SERVER_ERROR);
        };
        let bytes = plain.clone();
        let packed = tokio::task::spawn_blocking(move || {
            let _held = thread;
            coding.encode(&bytes, LEVEL)
        });
        let (coding, bytes) = match packed.await {
            Ok(Ok(packed)) => (Some(coding), Bytes::from(packed)),
            Ok(Err(_)) | Err(_) => (None, plain),
        };
        name(&mut head.headers, coding);
        Response::from_parts(head, Body::from(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn accepting(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (ACCEPT_ENCODING, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_coding_is_the_one_that_the_caller_likes_best() {
        for (said, chosen) in [
            (&[][..], None),
            (&[""], None),
            (&["gzip"], Some(Coding::Gzip)),
            (&["X-GZIP"], Some(Coding::Gzip)),
            (&["gzip, deflate, br, zstd"], Some(Coding::Brotli)),
            (&["gzip", "br"], Some(Coding::Brotli)),
            (&["gzip;q=1, br;q=0"], Some(Coding::Gzip)),
            (&["br;q=0.5, gzip; q=0.8"], Some(Coding::Gzip)),
            (&["br;q=0,gzip;q=0.000"], None),
            (&["*"], Some(Coding::Brotli)),
            (&["br;q=0, *"], Some(Coding::Gzip)),
            (&["*;q=0, gzip"], Some(Coding::Gzip)),
            (&["identity, gzip;q=0.5"], None),
            (&["identity;q=0.5, gzip"], Some(Coding::Gzip)),
            (&["br;q=high"], None),
            (&["br;q=2"], None),
            (&["br;q=NaN"], None),
        ] {
            assert_eq!(Coding::accepted(&accepting(said)), chosen, "{said:?}");
        }
    }

    fn long() -> Response {
        Response::new(Body::from("much of the same ".repeat(500)))
    }

    fn coding(answer: &Response) -> Option<&str> {
        answer.headers().get(CONTENT_ENCODING).and_then(|value| value.to_str().ok())
    }

    /// However many responses are requested at once, the excess ones are sent uncompressed, without waiting.
    #[tokio::test]
    async fn an_answer_goes_as_it_is_where_no_thread_is_free() {
        let compressor = Compressor::new(1024);
        let at_once = compressor.free.available_permits();
        assert!(at_once <= std::thread::available_parallelism().expect("cores").get());
        let packed = compressor.apply("/x", Some(Coding::Gzip), long()).await;
        assert_eq!(coding(&packed), Some("gzip"));
        let taken = compressor.free.acquire_many(u32::try_from(at_once).expect("few")).await.expect("open");
        let plain = compressor.apply("/x", Some(Coding::Gzip), long()).await;
        assert_eq!((coding(&plain), plain.headers()[VARY].as_bytes()), (None, &b"accept-encoding"[..]));
        drop(taken);
        let packed = compressor.apply("/x", Some(Coding::Brotli), long()).await;
        assert_eq!(coding(&packed), Some("br"));
    }

    #[tokio::test]
    async fn a_document_is_compressed_once_and_is_what_it_was() {
        let text = "much of the same ".repeat(500);
        let document = Document::of("text/plain", text.clone());
        let body = async |said| {
            let answer = document.answer(&accepting(&[said]));
            assert_eq!(answer.headers()[VARY], "accept-encoding");
            axum::body::to_bytes(answer.into_body(), usize::MAX).await.expect("whole")
        };
        let (one, two) = (body("gzip").await, body("gzip").await);
        assert_eq!(one.as_ptr(), two.as_ptr(), "the same bytes, not others that are equal");
        assert_eq!(body("br").await.as_ptr(), body("br").await.as_ptr());
        assert_eq!(body("identity").await, text);
        let mut unpacked = String::new();
        flate2::read::GzDecoder::new(&*one).read_to_string(&mut unpacked).expect("gzip");
        assert_eq!(unpacked, text);
        let mut unpacked = Vec::new();
        brotli::BrotliDecompress(&mut &*body("br").await, &mut unpacked).expect("brotli");
        assert_eq!(unpacked, text.as_bytes());
    }
}
