//! Tests of the headers of every response: ids, security headers, OPTIONS, quotas, CORS, compression.

use std::io::Read;

use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder};

use super::*;

const PAGE: &str = "https://app.example.org";

async fn sent(request: RequestBuilder) -> reqwest::Response {
    request.send().await.expect("answered")
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().expect("ASCII"))
}

#[tokio::test]
async fn a_request_id_is_taken_up_or_made() {
    let bench = Bench::start(settings()).await;
    let client = Client::new();
    for path in ["/open", "/named/1", "/nothing"] {
        let given = sent(client.get(bench.url(path)).header("x-request-id", "order-7/retry.2")).await;
        assert_eq!(text(given.headers(), "x-request-id"), Some("order-7/retry.2"), "{path}");
    }
    for bad in ["", "two words", "ada@example.com", &"x".repeat(65)] {
        let made = sent(client.get(bench.url("/open")).header("x-request-id", bad)).await;
        let trace = text(made.headers(), "traceparent").expect("a trace").split('-').nth(1);
        assert_eq!(text(made.headers(), "x-request-id"), trace, "{bad}");
    }
}

#[tokio::test]
async fn every_answer_tells_browsers_to_leave_it_alone() {
    let bench = Bench::start(settings()).await;
    let client = Client::new();
    let get = |path: &str| client.get(bench.url(path));
    for request in
        [get("/open"), get("/nothing"), get("/named/1"), client.request(Method::OPTIONS, bench.url("/open"))]
    {
        let answer = sent(request).await;
        let headers = answer.headers();
        for (name, value) in [
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(text(headers, name), Some(value), "{}", answer.status());
        }
        assert!(!headers.contains_key("strict-transport-security"));
        assert!(!headers.contains_key("access-control-allow-origin") && !headers.contains_key("server"));
    }
    let behind_tls = Bench::start(Settings { hsts_max_age_s: 31_536_000, ..settings() }).await;
    let answer = sent(client.get(behind_tls.url("/open"))).await;
    assert_eq!(text(answer.headers(), "strict-transport-security"), Some("max-age=31536000"));
}

#[tokio::test]
async fn every_route_says_what_it_takes() {
    let bench = Bench::start(settings()).await;
    let client = Client::new();
    for (path, allow) in [
        ("/open", "GET, HEAD, OPTIONS, POST"),
        ("/never", "GET, HEAD, OPTIONS, PUT"),
        ("/register/late", "OPTIONS, POST"),
    ] {
        let told = sent(client.request(Method::OPTIONS, bench.url(path))).await;
        assert_eq!((told.status(), text(told.headers(), "allow")), (StatusCode::NO_CONTENT, Some(allow)));
        assert!(
            !told.headers().contains_key("content-length"),
            "no content, no length (RFC 9110, section 8.6)"
        );
        let refused = sent(client.request(Method::PATCH, bench.url(path))).await;
        assert_eq!(
            (refused.status(), text(refused.headers(), "allow")),
            (StatusCode::METHOD_NOT_ALLOWED, Some(allow))
        );
    }
    let missing = sent(client.request(Method::OPTIONS, bench.url("/nothing"))).await;
    assert_eq!((missing.status(), text(missing.headers(), "allow")), (StatusCode::NOT_FOUND, None));
    let server = bench.raw("OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(
        server.starts_with("HTTP/1.1 204 ")
            && server.contains("allow: GET, HEAD, OPTIONS, PATCH, POST, PUT\r\n"),
        "{server}"
    );
}

#[tokio::test]
async fn a_subject_may_ask_so_often_and_is_told() {
    let limited = Settings { rate_limit_per_s: 1, rate_limit_burst: 3, ..settings() };
    let bench = Bench::start(limited).await;
    let client = Client::new();
    let ask = |path: &str| client.get(bench.url(path)).bearer_auth(&bench.token);
    for left in [2, 1, 0] {
        let answer = sent(ask("/named/1")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(text(answer.headers(), "ratelimit-policy"), Some("\"subject\";q=3;w=3"));
        let told = text(answer.headers(), "ratelimit").expect("what is left").to_owned();
        assert!(told.starts_with(&format!("\"subject\";r={left};t=")), "{told}");
    }
    let refused = sent(ask("/named/1")).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(text(refused.headers(), "retry-after"), Some("1"));
    assert!(text(refused.headers(), "ratelimit").is_some_and(|told| told.starts_with("\"subject\";r=0;t=")));
    let problem: serde_json::Value = refused.json().await.expect("JSON");
    assert_eq!(problem["code"], "RATE_LIMITED");
    // An unauthenticated caller has no quota, and uses nobody else's.
    for path in ["/open", "/exempt"] {
        let open = sent(ask(path)).await;
        assert_eq!(
            (open.status(), open.headers().contains_key("ratelimit")),
            (StatusCode::OK, false),
            "{path}"
        );
    }
    let stranger = sent(client.get(bench.url("/named/1")).bearer_auth("a.b.c")).await;
    assert_eq!(stranger.status(), StatusCode::UNAUTHORIZED);
    let began = Instant::now();
    while sent(ask("/named/1")).await.status() != StatusCode::OK {
        assert!(began.elapsed() < PATIENCE, "the bucket fills");
    }
    let unlimited = Bench::start(Settings { rate_limit_per_s: 0, rate_limit_burst: 1, ..settings() }).await;
    for _ in 0..5 {
        let answer = sent(client.get(unlimited.url("/named/1")).bearer_auth(&unlimited.token)).await;
        assert_eq!((answer.status(), answer.headers().contains_key("ratelimit")), (StatusCode::OK, false));
    }
}

#[tokio::test]
async fn pages_of_other_origins_ask_only_if_they_are_named() {
    let bench = Bench::start(Settings { cors_origins: vec![PAGE.into()], ..settings() }).await;
    let client = Client::new();
    let preflight = |origin: &'static str| {
        let request = client.request(Method::OPTIONS, bench.url("/named/1")).header("origin", origin);
        sent(request.header("access-control-request-method", "POST"))
    };
    let let_in = preflight(PAGE).await;
    assert_eq!(let_in.status(), StatusCode::NO_CONTENT);
    assert_eq!(text(let_in.headers(), "access-control-allow-origin"), Some(PAGE));
    assert_eq!(text(let_in.headers(), "access-control-allow-methods"), Some("GET, HEAD, OPTIONS, POST"));
    let may_send = text(let_in.headers(), "access-control-allow-headers").expect("headers");
    for field in ["authorization", "content-type", "if-match", "traceparent", "tracestate", "x-break-glass"] {
        assert!(may_send.split(", ").any(|may| may == field), "{field}: {may_send}");
    }
    assert!(!let_in.headers().contains_key("access-control-allow-credentials"));
    for stranger in
        ["https://evil.example.org", "https://app.example.org.evil.org", "null", "http://app.example.org"]
    {
        let refused = preflight(stranger).await;
        assert_eq!(text(refused.headers(), "vary"), Some("origin"));
        assert!(
            !refused.headers().keys().any(|name| name.as_str().starts_with("access-control-")),
            "{stranger}"
        );
    }
    // The page may read responses, including failures. A request without an origin gets no CORS permission.
    for (path, status) in [("/open", 200), ("/named/1", 401), ("/nothing", 404)] {
        let answer = sent(client.get(bench.url(path)).header("origin", PAGE)).await;
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(text(answer.headers(), "access-control-allow-origin"), Some(PAGE), "{path}");
        assert!(
            text(answer.headers(), "access-control-expose-headers")
                .is_some_and(|e| e.contains("x-request-id"))
        );
        let plain = sent(client.get(bench.url(path))).await;
        assert_eq!(text(plain.headers(), "vary"), Some("origin"));
        assert!(!plain.headers().contains_key("access-control-allow-origin"));
    }
    let plain = sent(client.request(Method::OPTIONS, bench.url("/open"))).await;
    assert_eq!(text(plain.headers(), "allow"), Some("GET, HEAD, OPTIONS, POST"));
    assert!(!plain.headers().contains_key("access-control-allow-methods"));
}

#[tokio::test]
async fn long_answers_are_compressed_for_who_takes_it() {
    let bench = Bench::start(settings()).await;
    let client = Client::new();
    let ask = |method: Method, path: &str, coding: &'static str| {
        let request = client.request(method, bench.url(path)).bearer_auth(&bench.token);
        sent(if coding.is_empty() { request } else { request.header("accept-encoding", coding) })
    };
    let get = |path, coding| ask(Method::GET, path, coding);
    let plain = get("/long", "").await;
    assert_eq!(
        (text(plain.headers(), "content-encoding"), text(plain.headers(), "vary")),
        (None, Some("accept-encoding"))
    );
    let plain = plain.bytes().await.expect("a body");
    let gzip = get("/long", "gzip").await;
    assert_eq!(text(gzip.headers(), "content-encoding"), Some("gzip"));
    let gzip = gzip.bytes().await.expect("a body");
    assert!(gzip.len() < plain.len() / 2, "{} of {}", gzip.len(), plain.len());
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&*gzip).read_to_end(&mut unpacked).expect("gzip");
    assert_eq!(unpacked, plain);
    for (coding, chosen) in [
        ("br", Some("br")),
        ("gzip, br", Some("br")),
        ("gzip;q=1, br;q=0", Some("gzip")),
        ("identity", None),
        ("zstd", None),
    ] {
        let answer = get("/long", coding).await;
        assert_eq!(text(answer.headers(), "content-encoding"), chosen, "{coding}");
    }
    // HEAD returns the headers of GET without the body, here too.
    let head = ask(Method::HEAD, "/long", "gzip").await;
    assert_eq!(text(head.headers(), "content-encoding"), Some("gzip"));
    assert_eq!(text(head.headers(), "content-length"), Some(&*gzip.len().to_string()));
    for path in ["/named/1", "/auth/long", "/long/tagged"] {
        let answer = get(path, "gzip, br").await;
        assert_eq!(
            (answer.status(), text(answer.headers(), "content-encoding")),
            (StatusCode::OK, None),
            "{path}"
        );
    }
    let never = Bench::start(Settings { compress_min_bytes: 0, ..settings() }).await;
    let answer = sent(client.get(never.url("/long")).header("accept-encoding", "gzip")).await;
    assert_eq!((text(answer.headers(), "content-encoding"), text(answer.headers(), "vary")), (None, None));
}
