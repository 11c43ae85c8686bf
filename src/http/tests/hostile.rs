//! Tests with hostile peers: hundreds of slow connections, heads that never end, and messages that two
//! parsers would understand differently.

use super::*;

const ASK: &str = "GET /open HTTP/1.1\r\nhost: x\r\n\r\n";

/// Opens a connection that sends `part` of a request, and nothing more.
async fn slow(bench: &Bench, part: &str) -> TcpStream {
    let mut connection = TcpStream::connect(bench.address).await.expect("connected");
    connection.write_all(part.as_bytes()).await.expect("sent");
    connection
}

/// Reads one response without a body.
async fn answer(connection: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = tokio::time::timeout(PATIENCE, connection.read_u8()).await.expect("an answer");
        head.push(byte.expect("open"));
    }
    String::from_utf8(head).expect("ASCII")
}

/// The head time limit is far longer than the test, so that it closes no connection.
fn crowded(connections_max: usize) -> Settings {
    Settings { connections_max, waiting_grace_ms: 200, header_timeout_ms: 600_000, ..settings() }
}

#[tokio::test]
async fn slow_connections_make_room_for_those_that_ask() {
    const PLACES: usize = 8;
    let bench = Bench::start(crowded(PLACES)).await;
    let mut steady = slow(&bench, ASK).await;
    answer(&mut steady).await;
    // A connection in use, which must never be closed.
    let stop = CancellationToken::new();
    let until = stop.clone();
    let steady = tokio::spawn(async move {
        let mut answers = 0;
        while !until.is_cancelled() {
            steady.write_all(ASK.as_bytes()).await.expect("open");
            assert!(answer(&mut steady).await.starts_with("HTTP/1.1 200 "));
            answers += 1;
        }
        answers
    });
    let half_a_head = "GET /open HTTP/1.1\r\nx-slow: ";
    let half_a_body = "POST /open HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n1";
    let parts = [half_a_head, half_a_body, "", ASK];
    let mut others = Vec::new();
    for part in parts {
        for _ in 0..PLACES {
            others.push(slow(&bench, part).await);
        }
        // A new connection is accepted nevertheless, once the earlier ones have had their grace period.
        let mut fresh = slow(&bench, ASK).await;
        assert!(answer(&mut fresh).await.starts_with("HTTP/1.1 200 "));
    }
    stop.cancel();
    assert!(steady.await.expect("it was never ended") > 0);
    // The remaining connections hold slots; all others were closed.
    let mut ended = 0;
    for mut connection in others {
        let rest =
            tokio::time::timeout(Duration::from_millis(20), connection.read_to_end(&mut Vec::new())).await;
        ended += usize::from(rest.is_ok());
    }
    assert!(ended >= (parts.len() - 1) * PLACES, "{ended}");
}

#[tokio::test]
async fn nobody_is_ended_while_being_answered_or_within_the_grace() {
    let bench = Bench::start(crowded(2)).await;
    let mut held = slow(&bench, "GET /hold HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let mut read = slow(&bench, "GET /big HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    bench.until("one is held", |s| s.held.load(Ordering::SeqCst) == 1).await;
    read.read_u8().await.expect("its answer has begun");
    // Both slots stay in use for several grace periods.
    let mut third = slow(&bench, ASK).await;
    assert!(tokio::time::timeout(Duration::from_millis(600), third.read_u8()).await.is_err());
    bench.switches.gate.add_permits(1);
    assert!(read_all(&mut held).await.starts_with("HTTP/1.1 200 "));
    assert!(answer(&mut third).await.starts_with("HTTP/1.1 200 "));
    let mut rest = 0;
    let mut piece = vec![0; 1 << 20];
    while let Ok(Ok(count @ 1..)) = tokio::time::timeout(PATIENCE, read.read(&mut piece)).await {
        rest += count;
    }
    assert!(rest >= 256 << 20, "a long answer is not cut off: {rest} bytes");

    let patient = Bench::start(Settings { waiting_grace_ms: 600_000, ..crowded(1) }).await;
    let mut first = slow(&patient, "GET /open HTTP/1.1\r\n").await;
    let mut second = slow(&patient, ASK).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), second.read_u8()).await.is_err());
    first.write_all(b"host: x\r\nconnection: close\r\n\r\n").await.expect("open");
    assert!(read_all(&mut first).await.starts_with("HTTP/1.1 200 "));
    assert!(answer(&mut second).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn heads_over_the_limit_are_refused_however_they_come() {
    let bench = Bench::start(Settings { header_max_bytes: 8192, headers_max: 16, ..settings() }).await;
    let long = "x".repeat(9000);
    for head in [
        format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n"),
        format!("GET /open HTTP/1.1\r\nhost: x\r\nx: {long}\r\n\r\n"),
        format!("GET /open HTTP/1.1\r\nhost: x\r\n{long}: x\r\n\r\n"),
        format!("{long} /open HTTP/1.1\r\nhost: x\r\n\r\n"),
        format!("GET /open HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(1000)),
        // This head does not even end.
        format!("GET /open HTTP/1.1\r\nhost: x\r\nx: {long}{long}"),
    ] {
        let answer = bench.raw(&head).await;
        let shown = &answer[..answer.len().min(80)];
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{shown}");
        assert!(!answer.contains("200 OK"), "{shown}");
    }
}

/// Messages that one parser may read as one request and another as two. The second, `/hold`, must never be
/// processed.
#[tokio::test]
async fn no_message_is_taken_for_two() {
    let bench = Bench::start(Settings { header_timeout_ms: 200, ..settings() }).await;
    let hidden = "GET /hold HTTP/1.1\r\nhost: x\r\n\r\n";
    let length = hidden.len();
    let post = |fields: &str, body: &str| {
        format!("POST /open HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{fields}\r\n\r\n{body}")
    };
    let chunked = format!("0\r\n\r\n{hidden}");
    for message in [
        // Both length fields, in either order: the bytes that are a second request for one parser are not
        // processed.
        post(&format!("content-length: {}\r\ntransfer-encoding: chunked", chunked.len()), &chunked),
        post(&format!("transfer-encoding: chunked\r\ncontent-length: {}", chunked.len()), &chunked),
        // Several lengths, and invalid lengths.
        post(&format!("content-length: 0\r\ncontent-length: {length}"), hidden),
        post(&format!("content-length: {length}\r\ncontent-length: 0"), hidden),
        post("content-length: 0, 33", hidden),
        post("content-length: +0", hidden),
        post("content-length: -0", hidden),
        post("content-length: 0x0", hidden),
        post("content-length: 00 0", hidden),
        post("content-length: 99999999999999999999999999", hidden),
        post("content-length : 0", hidden),
        // Codings with chunked not last, hidden codings, and codings in an older protocol version.
        post("transfer-encoding: xchunked", &chunked),
        post("transfer-encoding: chunked, identity", &chunked),
        post("transfer-encoding: identity", &chunked),
        post("transfer-encoding : chunked", &chunked),
        post("transfer-encoding:\r\n chunked", &chunked),
        post("x: y\rtransfer-encoding: chunked", &chunked),
        post("transfer-encoding: chunked\r\ntransfer-encoding: cow", &chunked),
        post("transfer-encoding: chunked", &chunked).replace("HTTP/1.1", "HTTP/1.0"),
        // Invalid chunk sizes.
        post("transfer-encoding: chunked", &format!("0x0\r\n\r\n{hidden}")),
        post("transfer-encoding: chunked", &format!("-0\r\n\r\n{hidden}")),
        post("transfer-encoding: chunked", &format!("FFFFFFFFFFFFFFFFFF\r\n\r\n{hidden}")),
        post("transfer-encoding: chunked", &format!("1\r\nab\r\n0\r\n\r\n{hidden}")),
        // Folded fields, and field names with a space or a NUL.
        post("x: 1\r\n content-length: 0", hidden),
        post("content-length\0: 0", hidden),
        format!("GET /open HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{hidden}"),
        format!("GET /open HTTP/1.1\nhost: x\n\n{hidden}").replace("GET /open", "GET /open /hold"),
    ] {
        let answers = bench.raw(&message).await;
        let told = answers.matches("HTTP/1.1 ").count() + answers.matches("HTTP/1.0 ").count();
        assert!(told <= 1, "two answers to\n{message}\n{answers}");
        assert_eq!(
            bench.switches.held.load(Ordering::SeqCst),
            0,
            "the hidden request was seen in\n{message}"
        );
    }
    let usual = post("content-length: 2\r\nconnection: close", "{}");
    assert!(bench.raw(&usual).await.starts_with("HTTP/1.1 200 "));
}
