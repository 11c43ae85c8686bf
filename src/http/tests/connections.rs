//! Tests of connection limits, and of how connections end.

use super::*;

const OPEN: &str = "GET /open HTTP/1.1\r\nhost: x\r\n\r\n";
const OPEN_AND_CLOSE: &str = "GET /open HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// Reads one response head; these responses have no body.
async fn read_head(connection: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte =
            tokio::time::timeout(PATIENCE, connection.read_u8()).await.expect("an answer").expect("open");
        head.push(byte);
    }
    String::from_utf8(head).expect("ASCII")
}

#[tokio::test]
async fn a_port_in_use_is_a_clear_error() {
    let bench = Bench::start(settings()).await;
    let again = Listener::bind(Settings { listen: bench.address, ..settings() }).await;
    let error = again.err().expect("in use").to_string();
    assert!(error.contains(&bench.address.to_string()) && error.contains("in use"), "{error}");
    assert!(error.contains("HYGEIA__HTTP__LISTEN"), "{error}");
}

#[tokio::test]
async fn slow_heads_and_idle_connections_are_ended() {
    let bench = Bench::start(Settings { header_timeout_ms: 100, ..settings() }).await;
    let mut silent = TcpStream::connect(bench.address).await.expect("connected");
    let mut slow = TcpStream::connect(bench.address).await.expect("connected");
    slow.write_all(b"GET /open HTTP/1.1\r\nx-slow: ").await.expect("sent");
    let mut idle = TcpStream::connect(bench.address).await.expect("connected");
    idle.write_all(OPEN.as_bytes()).await.expect("sent");
    assert!(read_head(&mut idle).await.starts_with("HTTP/1.1 200 "));
    for connection in [&mut silent, &mut slow, &mut idle] {
        let rest = read_all(connection).await;
        assert!(!rest.contains("200"), "{rest}");
    }
}

#[tokio::test]
async fn heads_have_a_limit() {
    let bench = Bench::start(Settings { header_max_bytes: 8192, headers_max: 16, ..settings() }).await;
    let long = format!("GET /open HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(10_000));
    let many = format!("GET /open HTTP/1.1\r\nhost: x\r\n{}\r\n", "x-many: 1\r\n".repeat(20));
    for request in [long, many, "no HTTP at all\r\n\r\n".to_owned()] {
        let answer = bench.raw(&request).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert!(bench.raw(OPEN_AND_CLOSE).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn beyond_the_cap_connections_wait() {
    let bench = Bench::start(Settings { connections_max: 1, ..settings() }).await;
    let mut first = TcpStream::connect(bench.address).await.expect("connected");
    first.write_all(b"GET /hold HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("sent");
    bench.until("the first is held", |s| s.held.load(Ordering::SeqCst) == 1).await;
    let mut second = TcpStream::connect(bench.address).await.expect("the kernel takes it");
    second.write_all(b"GET /hold HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("sent");
    // However long the wait, the second is not served while the first is open.
    let early = tokio::time::timeout(Duration::from_millis(100), second.read_u8()).await;
    assert!(early.is_err());
    assert_eq!(bench.switches.held.load(Ordering::SeqCst), 1);
    bench.switches.gate.add_permits(2);
    assert!(read_all(&mut first).await.starts_with("HTTP/1.1 200 "));
    assert!(read_all(&mut second).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn the_kernels_queue_is_as_long_as_it_is_told() {
    let listener = Listener::bind(Settings { queued_connections_max: 4, ..settings() }).await.expect("bound");
    // No task accepts these connections. Linux lets in one more than the configured length.
    let mut queued = Vec::new();
    for _ in 0..=4 {
        let connected = tokio::time::timeout(PATIENCE, TcpStream::connect(listener.local_addr())).await;
        queued.push(connected.expect("there is room").expect("connected"));
    }
    // The kernel repeats an unanswered SYN after a second, so the attempt does not finish earlier.
    let beyond =
        tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(listener.local_addr())).await;
    assert!(beyond.is_err(), "there is no room: {beyond:?}");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let bench = Bench::start(Settings { write_stall_ms: 200, ..settings() }).await;
    let mut stalled = TcpStream::connect(bench.address).await.expect("connected");
    stalled.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    bench.until("the body is let go", |s| s.big_let_go.load(Ordering::SeqCst)).await;
}

#[tokio::test]
async fn draining_ends_what_is_in_flight_and_nothing_new_comes_in() {
    let bench = Bench::start(settings()).await;
    let mut fresh = TcpStream::connect(bench.address).await.expect("connected");
    let mut idle = TcpStream::connect(bench.address).await.expect("connected");
    idle.write_all(OPEN.as_bytes()).await.expect("sent");
    read_head(&mut idle).await;
    let mut busy = TcpStream::connect(bench.address).await.expect("connected");
    busy.write_all(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    bench.until("one is held", |s| s.held.load(Ordering::SeqCst) == 1).await;

    bench.stop.cancel();
    assert_eq!(read_all(&mut idle).await, "");
    assert_eq!(read_all(&mut fresh).await, "");
    assert!(TcpStream::connect(bench.address).await.is_err(), "nobody listens any more");
    assert!(!bench.serving.is_finished(), "one is still held");
    bench.switches.gate.add_permits(1);
    let answer = read_all(&mut busy).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    let drained = tokio::time::timeout(PATIENCE, bench.serving).await.expect("over").expect("joined");
    assert_eq!(drained, Drained { cut_off: 0 });
}

#[tokio::test]
async fn who_asks_over_an_idle_connection_while_the_node_stops_is_answered() {
    let bench =
        Bench::start(Settings { drain_timeout_ms: 60_000, drain_idle_ms: 60_000, ..settings() }).await;
    let mut idle = TcpStream::connect(bench.address).await.expect("connected");
    idle.write_all(OPEN.as_bytes()).await.expect("sent");
    read_head(&mut idle).await;
    bench.stop.cancel();
    let began = Instant::now();
    while TcpStream::connect(bench.address).await.is_ok() {
        assert!(began.elapsed() < PATIENCE, "it goes on listening");
    }
    idle.write_all(OPEN.as_bytes()).await.expect("sent");
    let answer = read_all(&mut idle).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn who_has_connected_before_the_end_is_answered() {
    let bench = Bench::start(settings()).await;
    let connect = || {
        // Blocking calls, so that the server cannot run in between.
        let mut stream = std::net::TcpStream::connect(bench.address).expect("the kernel takes it");
        std::io::Write::write_all(&mut stream, OPEN.as_bytes()).expect("sent");
        stream.set_nonblocking(true).expect("set");
        TcpStream::from_std(stream).expect("registered")
    };
    let waiting: Vec<_> = (0..30).map(|_| connect()).collect();
    bench.stop.cancel();
    for mut stream in waiting {
        let answer = read_all(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    }
    let drained = tokio::time::timeout(PATIENCE, bench.serving).await.expect("over").expect("joined");
    assert_eq!(drained, Drained { cut_off: 0 });
}

#[tokio::test]
async fn draining_has_an_end() {
    let bench = Bench::start(Settings { drain_timeout_ms: 100, ..settings() }).await;
    let mut busy = TcpStream::connect(bench.address).await.expect("connected");
    busy.write_all(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    bench.until("one is held", |s| s.held.load(Ordering::SeqCst) == 1).await;
    bench.stop.cancel();
    let drained = tokio::time::timeout(PATIENCE, bench.serving).await.expect("over").expect("joined");
    assert_eq!(drained, Drained { cut_off: 1 });
    assert_eq!(read_all(&mut busy).await, "");
}

#[tokio::test]
async fn connections_are_used_again() {
    let bench = Bench::start(settings()).await;
    let mut connection = TcpStream::connect(bench.address).await.expect("connected");
    for _ in 0..5 {
        connection.write_all(OPEN.as_bytes()).await.expect("sent");
        assert!(read_head(&mut connection).await.starts_with("HTTP/1.1 200 "));
    }
}

#[test]
fn bad_settings_are_named() {
    assert!(Settings::default().problems().is_empty());
    let cors_origins = vec!["https://app.example.org".to_owned(), "*".to_owned()];
    let bad = Settings { in_flight_max: 0, header_max_bytes: 10, cors_origins, ..Settings::default() };
    let keys: Vec<_> = bad.problems().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["in_flight_max", "header_max_bytes", "cors_origins"]);
}
