//! Tests of messages that hyper accepts but RFC 9110 and 9112 require servers to refuse, and of what
//! responses must not say.

use super::*;

/// Sends a request with the request line `line` and these `fields`, and returns everything until the
/// connection ends.
async fn told(bench: &Bench, line: &str, fields: &str) -> String {
    bench.raw(&format!("{line}\r\n{fields}connection: close\r\n\r\n")).await
}

#[tokio::test]
async fn a_host_is_named_whatever_is_asked() {
    let bench = Bench::start(settings()).await;
    for (line, otherwise) in [
        ("GET /open HTTP/1.1", "200"),
        ("HEAD /open HTTP/1.1", "200"),
        ("GET /named/1 HTTP/1.1", "401"),
        ("GET /exempt HTTP/1.1", "200"),
        ("GET /nothing HTTP/1.1", "404"),
        ("DELETE /open HTTP/1.1", "405"),
        ("OPTIONS /open HTTP/1.1", "204"),
        ("OPTIONS * HTTP/1.1", "204"),
        ("GET http://x/open HTTP/1.1", "200"),
    ] {
        for fields in
            ["", "host: x\r\nhost: x\r\n", "host: a b\r\n", "host:\r\n", "host: x:y\r\n", "host: u@x\r\n"]
        {
            let answer = told(&bench, line, fields).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{line} {fields:?}: {answer}");
        }
        let answer = told(&bench, line, "host: x\r\n").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {otherwise} ")), "{line}: {answer}");
    }
    let old = told(&bench, "GET /open HTTP/1.0", "").await;
    assert!(old.starts_with("HTTP/1.0 200 "), "HTTP/1.0 has no Host: {old}");
}

#[tokio::test]
async fn a_transfer_coding_that_nobody_reads_is_told() {
    let bench = Bench::start(settings()).await;
    for coding in ["gzip, chunked", "gzip\r\ntransfer-encoding: chunked", "chunked, chunked"] {
        let fields =
            format!("host: x\r\ncontent-type: application/json\r\ntransfer-encoding: {coding}\r\n\r\n0");
        let answer = bench.raw(&format!("POST /open HTTP/1.1\r\n{fields}\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 501 "), "{coding}: {answer}");
        assert!(answer.contains("connection: close\r\n") && answer.contains("NOT_IMPLEMENTED"), "{answer}");
    }
}

#[tokio::test]
async fn what_has_not_changed_has_no_length() {
    let bench = Bench::start(settings()).await;
    for method in ["GET", "HEAD"] {
        let answer = told(&bench, &format!("{method} /same HTTP/1.1"), "host: x\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 304 "), "{answer}");
        assert!(!answer.contains("content-length") && answer.ends_with("\r\n\r\n"), "{answer}");
    }
    let head = told(&bench, "HEAD /long HTTP/1.1", "host: x\r\n").await;
    assert!(!head.contains("content-length: 0\r\n") && head.contains("content-length: "), "{head}");
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_body_ends_the_connection() {
    let bench = Bench::start(Settings { body_max_bytes: 1024, ..settings() }).await;
    let json = "content-type: application/json\r\n";
    let named = format!("{json}authorization: Bearer {}\r\n", bench.token);
    for (path, fields, status) in [
        ("/named/1", format!("{json}content-length: 9\r\nexpect: 100-continue\r\n"), "401"),
        ("/named/1", format!("{named}content-length: 2000\r\nexpect: 100-continue\r\n"), "413"),
        ("/named/1", "content-length: 9\r\n".to_owned(), "401"),
        (
            "/open",
            "content-type: text/plain\r\ncontent-length: 9\r\nexpect: 100-continue\r\n".to_owned(),
            "415",
        ),
        ("/nothing", "content-length: 9\r\nexpect: 100-continue\r\n".to_owned(), "404"),
        ("/bodiless", "content-length: 9\r\n".to_owned(), "200"),
    ] {
        let answer = bench.raw(&format!("POST {path} HTTP/1.1\r\nhost: x\r\n{fields}\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path} {fields}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{path} {fields}: {answer}");
    }
    // A refusal does not close the connection if the body has arrived whole.
    let mut connection = TcpStream::connect(bench.address).await.expect("connected");
    for _ in 0..2 {
        let refused = "POST /named/1 HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}";
        connection.write_all(refused.as_bytes()).await.expect("sent");
    }
    let last = "GET /open HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    connection.write_all(last.as_bytes()).await.expect("sent");
    let answers = read_all(&mut connection).await;
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 3, "{answers}");
}

#[tokio::test]
async fn options_names_the_patches_that_are_taken() {
    let bench = Bench::start(settings()).await;
    let taken = "accept-patch: application/merge-patch+json\r\n";
    assert!(told(&bench, "OPTIONS /patch HTTP/1.1", "host: x\r\n").await.contains(taken));
    assert!(!told(&bench, "OPTIONS /open HTTP/1.1", "host: x\r\n").await.contains("accept-patch"));
    let refused = "host: x\r\ncontent-type: application/json\r\ncontent-length: 0\r\n";
    let answer = told(&bench, "PATCH /patch HTTP/1.1", refused).await;
    assert!(answer.starts_with("HTTP/1.1 415 ") && answer.contains(taken), "{answer}");
}

#[tokio::test]
async fn a_field_of_one_value_is_given_once() {
    let bench = Bench::start(settings()).await;
    let token = format!("authorization: Bearer {}\r\n", bench.token);
    let ask =
        async |fields: &str| told(&bench, "GET /named/1 HTTP/1.1", &format!("host: x\r\n{fields}")).await;
    assert!(ask(&token).await.starts_with("HTTP/1.1 200 "));
    for twice in [
        token.repeat(2),
        format!("{token}Authorization: Bearer other\r\n"),
        format!("{token}x-break-glass: a\r\nX-Break-Glass: b\r\n"),
        format!("{token}x-request-id: a\r\nx-request-id: a\r\n"),
        format!("{token}idempotency-key: a\r\nidempotency-key: a\r\n"),
        format!("{token}content-type: a/b\r\ncontent-type: a/b\r\n"),
        format!("{token}origin: a\r\norigin: a\r\n"),
    ] {
        let answer = ask(&twice).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("Given more than once"), "{answer}");
    }
    let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    assert!(ask(&format!("{token}{trace}")).await.contains("00-0af7651916cd43dd8448eb211c80319c-"));
    let answer = ask(&format!("{token}{}", trace.repeat(2))).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && !answer.contains("0af7651916cd43dd8448eb211c80319c"),
        "{answer}"
    );
}

#[tokio::test]
async fn queries_are_read_strictly_on_every_route() {
    let bench = Bench::start(settings()).await;
    let token = format!("host: x\r\nauthorization: Bearer {}\r\n", bench.token);
    for path in ["/open", "/exempt", "/named/1", "/long"] {
        for (query, status) in [
            ("", "200"),
            ("?", "200"),
            ("?canary=1", "200"),
            ("?canary=%ff", "400"),
            ("?canary=%zz", "400"),
            ("?canary=%00", "400"),
            ("?canary=1&canary=2", "400"),
            ("?Canary=1", "400"),
            ("?other", "400"),
        ] {
            let answer = told(&bench, &format!("GET {path}{query} HTTP/1.1"), &token).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}{query}: {answer}");
        }
    }
    let stranger = told(&bench, "GET /named/1?other=1 HTTP/1.1", "host: x\r\n").await;
    assert!(stranger.starts_with("HTTP/1.1 401 "), "who asks comes first: {stranger}");
}
