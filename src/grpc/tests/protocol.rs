//! Tests of gRPC over HTTP/2: requests that are not calls, codings, metadata, and ill-behaved peers.

use std::io::Write;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::codec::CompressionEncoding;

use super::*;

/// Returns a length-prefixed message with the compression flag `flag`.
fn framed(flag: u8, message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[flag], &length[..], message].concat().into()
}

fn message() -> Vec<u8> {
    asking(NAME).into_inner().encode_to_vec()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(plain).expect("in memory");
    encoder.finish().expect("in memory")
}

/// Sends a request over HTTP/2, and returns the status with the fields of header and trailers.
async fn send(
    running: &Running,
    method: Method,
    fields: &[(&str, &str)],
    body: Bytes,
) -> (StatusCode, HeaderMap) {
    let tcp = TcpStream::connect(running.address).await.expect("connects");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp));
    let (mut sender, connection) = handshake.await.expect("HTTP/2");
    let driven = AbortOnDropHandle::new(tokio::spawn(connection));
    let uri = format!("http://{}/BillingService/CreateBillingAccount", running.address);
    let mut request = http::Request::builder().method(method).uri(uri).header("te", "trailers");
    for (name, value) in [("authorization", &*format!("Bearer {TOKEN}"))].iter().chain(fields) {
        request = request.header(*name, *value);
    }
    let answer =
        sender.send_request(request.body(Full::new(body)).expect("a request")).await.expect("an answer");
    let (parts, body) = answer.into_parts();
    let mut fields = parts.headers;
    fields.extend(body.collect().await.expect("whole").trailers().cloned().unwrap_or_default());
    drop(driven);
    (parts.status, fields)
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");

fn grpc_status(fields: &HeaderMap) -> &str {
    fields.get("grpc-status").map_or("none", |status| status.to_str().expect("digits"))
}

#[tokio::test]
async fn what_is_no_call_is_refused_in_http() {
    let running = start(settings()).await;
    let body = || framed(0, &message());
    let none: &[(&str, &str)] = &[];
    let of = |named: &'static str| vec![("content-type", named)];
    for fields in [
        none.to_vec(),
        of(""),
        of("application/json"),
        of("application/grpc-web"),
        of("application/grpc+json"),
        of("application/grpcx"),
    ] {
        let (status, answered) = send(&running, Method::POST, &fields, body()).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{fields:?}");
        assert_eq!(answered["accept"], "application/grpc");
        assert_eq!((answered["trace-id"].len(), grpc_status(&answered)), (32, "none"));
    }
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS, Method::PATCH] {
        let (status, answered) = send(&running, method.clone(), &[GRPC], body()).await;
        assert_eq!(
            (status, &answered["allow"]),
            (StatusCode::METHOD_NOT_ALLOWED, &"POST".parse().unwrap()),
            "{method}"
        );
    }
    assert!(running.fake.asked.lock().unwrap().is_empty(), "nothing of it was worked on");
    for named in ["application/grpc", "application/grpc+proto", "application/grpc; a=b", "Application/gRPC"] {
        let (status, answered) = send(&running, Method::POST, &of(named), body()).await;
        assert_eq!((status, grpc_status(&answered)), (StatusCode::OK, "0"), "{named}");
    }
}

#[tokio::test]
async fn a_compressed_message_is_read_or_it_is_told_which_would_be() {
    let running = start(settings()).await;
    let mut client = running.client().await.send_compressed(CompressionEncoding::Gzip);
    client.create_billing_account(asking(NAME)).await.expect("read");
    let bomb = gzip(&vec![0; 16 << 20]);
    assert!(bomb.len() < running_message_max(), "short on the wire");
    for (coding, body, expected) in [
        (Some("gzip"), framed(1, &gzip(&message())), "0"),
        // Only a message whose flag says so is compressed.
        (Some("gzip"), framed(0, &message()), "0"),
        (Some("identity"), framed(0, &message()), "0"),
        (Some("deflate"), framed(1, &message()), "12"),
        (Some("zstd"), framed(0, &message()), "12"),
        (Some("x"), framed(0, &message()), "12"),
        (None, framed(1, &gzip(&message())), "13"),
        (Some("identity"), framed(1, &gzip(&message())), "13"),
        (None, framed(2, &message()), "13"),
        // Decompressed, the message is larger than allowed.
        (Some("gzip"), framed(1, &bomb), "8"),
    ] {
        let coded = coding.map(|coding| ("grpc-encoding", coding));
        let fields: Vec<_> = [GRPC].into_iter().chain(coded).collect();
        let (status, answered) = send(&running, Method::POST, &fields, body).await;
        assert_eq!((status, grpc_status(&answered)), (StatusCode::OK, expected), "{coding:?} {answered:?}");
        if expected == "12" {
            let codings = answered["grpc-accept-encoding"].to_str().expect("text");
            assert!(codings.split(',').any(|coding| coding.trim() == "gzip"), "{codings}");
            assert_eq!(answered["error-code"], "UNSUPPORTED_MEDIA_TYPE");
        }
    }
}

fn running_message_max() -> usize {
    settings().message_max_bytes
}

#[tokio::test]
async fn metadata_over_the_limit_is_told_in_grpcs_terms() {
    let running = start(settings()).await;
    let most = settings().metadata_max_bytes as usize;
    for (bytes, expected) in [(most / 2, "0"), (most + 1, "8"), (4 * most, "8"), (12 * most, "8")] {
        let long = "x".repeat(bytes);
        let fields = [GRPC, ("x-long", &*long)];
        let (status, answered) = send(&running, Method::POST, &fields, framed(0, &message())).await;
        assert_eq!((status, grpc_status(&answered)), (StatusCode::OK, expected), "{bytes}");
    }
    assert_eq!(running.fake.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_flood_of_pings_is_told_to_go_away_and_cut_off() {
    const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    const PING: &[u8] = b"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678";
    const SETTINGS: &[u8] = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    let running = start(settings()).await;
    for frame in [PING, SETTINGS] {
        let (mut reads, mut writes) = TcpStream::connect(running.address).await.unwrap().into_split();
        writes.write_all(OPENING).await.unwrap();
        let flood = AbortOnDropHandle::new(tokio::spawn(async move {
            // Ends when the other side has closed the connection.
            while writes.write_all(&frame.repeat(10)).await.is_ok() {}
        }));
        let mut told = Vec::new();
        // Unread data may end the connection with a reset.
        _ = timeout(PATIENCE, reads.read_to_end(&mut told)).await.expect("cut off");
        let (mut rest, mut last) = (&told[..], (0, &[][..]));
        while let [a, b, c, kind, _, _, _, _, _, after @ ..] = rest {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            last = (*kind, &after[..length]);
            rest = &after[length..];
        }
        let (goaway, too_many) = (7, 11);
        assert_eq!((last.0, last.1.get(7)), (goaway, Some(&too_many)), "{last:?}");
        drop(flood);
    }
    // Other clients are served meanwhile, and a client that measures its connection may continue.
    let mut client = running.client().await;
    client.create_billing_account(asking(NAME)).await.expect("served");
}
