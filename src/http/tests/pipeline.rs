//! Tests of the responses of the pipeline.

use metrics_exporter_prometheus::PrometheusBuilder;
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;

use super::*;
use crate::telemetry::testing::{Lines, listen};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

async fn problem(response: reqwest::Response, status: u16, code: &str) -> Value {
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let trace = response.headers()["traceparent"].to_str().expect("ASCII").to_owned();
    let problem: Value = response.json().await.expect("JSON");
    assert_eq!((&problem["status"], &problem["code"]), (&Value::from(status), &Value::from(code)));
    assert_eq!(problem["traceId"].as_str(), trace.split('-').nth(1));
    problem
}

#[tokio::test]
async fn unknown_routes_and_methods_are_problems_too() {
    let bench = Bench::start(settings()).await;
    let client = Client::new();
    for path in ["/", "/nothing", "/open/", "/named/", "/named/1/2"] {
        problem(client.get(bench.url(path)).send().await.expect("sent"), 404, "NOT_FOUND").await;
    }
    for method in [Method::DELETE, Method::PATCH] {
        let response = client.request(method, bench.url("/named/1")).send().await.expect("sent");
        assert_eq!(response.headers()["allow"], "GET, HEAD, OPTIONS, POST");
        problem(response, 405, "METHOD_NOT_ALLOWED").await;
    }
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let bench = Bench::start(settings()).await;
    let client = Client::new();
    let asked = |method| {
        client
            .request(method, bench.url("/named/1"))
            .bearer_auth(&bench.token)
            .send()
            .map(|r| r.expect("sent"))
    };
    let (get, head) = (asked(Method::GET).await, asked(Method::HEAD).await);
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(head.headers()["content-length"], get.headers()["content-length"]);
    assert_eq!(get.text().await.expect("text"), format!("\"{EMAIL}\""));
    assert_eq!(head.text().await.expect("text"), "");
    let missing = client.head(bench.url("/nothing")).send().await.expect("sent");
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    assert_eq!(missing.text().await.expect("text"), "");
}

#[tokio::test]
async fn who_shows_no_token_that_holds_is_refused_before_the_body_is_looked_at() {
    let bench = Bench::start(settings()).await;
    let client = Client::new();
    let post =
        || client.post(bench.url("/named/1")).header("content-type", "text/plain").body("x".repeat(100_000));
    let none = post().send().await.expect("sent");
    assert_eq!(none.headers()["www-authenticate"], "Bearer");
    problem(none, 401, "UNAUTHENTICATED").await;
    for shown in ["Bearer garbage", "bearer a.b.c"] {
        let refused = post().header("authorization", shown).send().await.expect("sent");
        assert_eq!(refused.headers()["www-authenticate"], r#"Bearer error="invalid_token""#);
        problem(refused, 401, "UNAUTHENTICATED").await;
    }
    for shown in ["Basic YTpi", "Bearer", ""] {
        let refused = post().header("authorization", shown).send().await.expect("sent");
        assert_eq!(refused.headers()["www-authenticate"], "Bearer");
    }
    let named = client.get(bench.url("/named/1")).header("authorization", format!("bearer {}", bench.token));
    assert_eq!(named.send().await.expect("sent").status(), StatusCode::OK);
}

#[tokio::test]
async fn bodies_have_a_limit_and_a_type() {
    let bench = Bench::start(Settings { body_max_bytes: 1024, ..settings() }).await;
    let client = Client::new();
    let post = |body: reqwest::Body, content_type: &'static str| {
        let request = client.post(bench.url("/named/1")).bearer_auth(&bench.token);
        request.header("content-type", content_type).body(body).send().map(|r| r.expect("answered"))
    };
    let fits = post("x".repeat(1024).into(), "application/json; charset=utf-8").await;
    assert_eq!(fits.text().await.expect("text"), "1024");
    problem(post("x".repeat(1025).into(), "application/json").await, 413, "PAYLOAD_TOO_LARGE").await;
    problem(post("x".repeat(1025).into(), "text/plain").await, 413, "PAYLOAD_TOO_LARGE").await;
    problem(post("{}".into(), "text/plain").await, 415, "UNSUPPORTED_MEDIA_TYPE").await;
    // The client is still sending when it is refused, and must be able to read the response.
    for _ in 0..20 {
        problem(post("x".repeat(500_000).into(), "application/json").await, 413, "PAYLOAD_TOO_LARGE").await;
    }
    let head = format!(
        "POST /named/1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n",
        bench.token
    );
    let chunk = "x".repeat(1000);
    let chunked =
        format!("{head}transfer-encoding: chunked\r\n\r\n3e8\r\n{chunk}\r\n3e8\r\n{chunk}\r\n0\r\n\r\n");
    let answer = bench.raw(&chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // A client that asks before it sends is refused at once.
    let asking = format!("{head}content-length: 2000\r\nexpect: 100-continue\r\n\r\n");
    let answer = bench.raw(&asking).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn the_deadline_tells_what_is_known_of_the_outcome() {
    let bench = Bench::start(Settings { request_deadline_ms: 150, ..settings() }).await;
    let client = Client::new();
    let began = Instant::now();
    let read = client.get(bench.url("/never")).bearer_auth(&bench.token).send().await.expect("answered");
    problem(read, 504, "DEADLINE_EXCEEDED").await;
    let write =
        client.put(bench.url("/never")).bearer_auth(&bench.token).json(&1).send().await.expect("answered");
    problem(write, 504, "OUTCOME_UNKNOWN").await;
    assert!(began.elapsed() < PATIENCE);
    let slow = format!(
        "PUT /never HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n1",
        bench.token
    );
    let answer = bench.raw(&slow).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn an_unknown_registration_tells_the_id_to_look_for() {
    let bench = Bench::start(Settings { request_deadline_ms: 150, ..settings() }).await;
    let client = Client::new();
    for path in ["/register/late", "/register/unknown"] {
        let sent = client.post(bench.url(path)).bearer_auth(&bench.token).json(&1).send().await;
        let told = problem(sent.expect("answered"), 504, "OUTCOME_UNKNOWN").await;
        assert_eq!(told["patientId"], PATIENT.0.to_string(), "{path}");
    }
    let other = client.put(bench.url("/never")).bearer_auth(&bench.token).json(&1).send().await;
    let told = problem(other.expect("answered"), 504, "OUTCOME_UNKNOWN").await;
    assert!(told.get("patientId").is_none(), "{told}");
}

#[tokio::test]
async fn slow_senders_take_no_place_from_others() {
    let bench = Bench::start(Settings { in_flight_max: 1, ..settings() }).await;
    let named = format!("authorization: Bearer {}\r\n", bench.token);
    let mut slow = Vec::new();
    for (path, token) in [("/open", ""), ("/open", ""), ("/named/1", &*named)] {
        let mut sender = TcpStream::connect(bench.address).await.expect("connected");
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\n{token}content-type: application/json\r\n");
        let rest = "content-length: 9\r\nexpect: 100-continue\r\n\r\n";
        sender.write_all((head + rest).as_bytes()).await.expect("sent");
        // The server asks for the body, so it has accepted the request and waits.
        let mut asked = [0; 12];
        tokio::time::timeout(PATIENCE, sender.read_exact(&mut asked)).await.expect("asked").expect("open");
        assert_eq!(&asked, b"HTTP/1.1 100");
        slow.push(sender);
    }
    let others = Client::new().get(bench.url("/open")).send().await.expect("answered");
    assert_eq!(others.status(), StatusCode::OK);
}

#[tokio::test]
async fn beyond_the_limit_requests_are_shed_but_operators_are_answered() {
    let bench = Bench::start(Settings { in_flight_max: 2, ..settings() }).await;
    let client = Client::new();
    let held: Vec<_> = (0..2).map(|_| tokio::spawn(client.get(bench.url("/hold")).send())).collect();
    bench.until("both are held", |s| s.held.load(Ordering::SeqCst) == 2).await;
    let shed = client.get(bench.url("/open")).send().await.expect("answered");
    assert_eq!(shed.headers()["retry-after"], "1");
    problem(shed, 503, "OVERLOADED").await;
    assert_eq!(client.get(bench.url("/exempt")).send().await.expect("answered").status(), StatusCode::OK);
    bench.switches.gate.add_permits(2);
    for one in held {
        assert_eq!(one.await.expect("joined").expect("answered").status(), StatusCode::OK);
    }
    assert_eq!(client.get(bench.url("/open")).send().await.expect("answered").status(), StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_its_place() {
    let bench = Bench::start(Settings { in_flight_max: 1, ..settings() }).await;
    let mut gone = TcpStream::connect(bench.address).await.expect("connected");
    gone.write_all(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
    bench.until("it is held", |s| s.held.load(Ordering::SeqCst) == 1).await;
    drop(gone);
    let began = Instant::now();
    while Client::new().get(bench.url("/open")).send().await.expect("answered").status() != StatusCode::OK {
        assert!(began.elapsed() < PATIENCE);
    }
}

#[tokio::test]
async fn a_panic_is_an_answer_and_not_an_end() {
    let bench = Bench::start(settings()).await;
    let client = Client::new();
    for _ in 0..3 {
        let response = client.get(bench.url("/panic")).send().await.expect("answered");
        let problem = problem(response, 500, "INTERNAL").await;
        assert!(!problem.to_string().contains("canary"));
    }
    assert_eq!(client.get(bench.url("/open")).send().await.expect("answered").status(), StatusCode::OK);
}

#[tokio::test]
async fn a_trace_is_taken_up_or_begun() {
    let bench = Bench::start(settings()).await;
    let client = Client::new();
    let traced = |traceparent: &'static str| {
        let request = client.get(bench.url("/open")).header("traceparent", traceparent).send();
        request.map(|r| r.expect("answered").headers()["traceparent"].to_str().expect("ASCII").to_owned())
    };
    let answered = traced(PARENT).await;
    assert!(
        answered.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && answered.ends_with("-01"),
        "{answered}"
    );
    assert_ne!(answered, PARENT, "the hop is our own");
    let (one, other) = (traced("nonsense").await, traced("nonsense").await);
    assert_eq!((one.len(), other.len()), (55, 55));
    assert_ne!(one, other);
}

#[tokio::test]
async fn each_request_leaves_one_line_without_what_was_sent() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().json().with_writer(lines.clone()).finish();
    let bench = Bench::start(settings()).await;
    // The runtime of this test has one thread, so the subscriber sees the server.
    let _listening = listen(subscriber);
    let client = Client::new();
    let named = client.post(bench.url("/named/canary-path?canary=query")).bearer_auth(&bench.token);
    let named = named.header("x-request-id", "order-7");
    let named = named.header("traceparent", PARENT).json(&"canary-body").send().await.expect("answered");
    assert_eq!(named.status(), StatusCode::OK);
    let unnamed = client.get(bench.url("/canary-unmatched")).header("x-request-id", "canary@example.com");
    unnamed.bearer_auth("canary-token").send().await.expect("answered");
    client.get(bench.url("/named/1")).bearer_auth("canary-token").send().await.expect("answered");
    client.get(bench.url("/panic?canary")).send().await.expect("answered");

    let text = lines.text();
    assert!(!text.contains("canary") && !text.contains(&bench.token) && !text.contains(EMAIL), "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let requests: Vec<&Value> =
        lines.iter().filter(|line| line["target"] == "hygeia::http" && line["level"] == "INFO").collect();
    let told = |line: &Value| (line["method"].clone(), line["route"].clone(), line["status"].clone());
    assert_eq!(
        requests.iter().map(|line| told(&line["fields"])).collect::<Vec<_>>(),
        [
            ("POST".into(), "/named/{id}".into(), 200.into()),
            ("OTHER".into(), "unmatched".into(), 404.into()),
            ("GET".into(), "/named/{id}".into(), 401.into()),
            ("GET".into(), "/panic".into(), 500.into()),
        ]
    );
    let first = &requests[0]["fields"];
    assert_eq!(first["trace"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(first["parent"], "b7ad6b7169203331");
    assert_eq!(first["span"].as_str().map(str::len), Some(16));
    assert!(first["duration_us"].is_u64());
    assert_eq!((&first["request"], requests[1]["fields"].get("request")), (&"order-7".into(), None));
}

#[tokio::test]
async fn metrics_have_bounded_labels() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _here = metrics::set_default_local_recorder(&recorder);
    let bench = Bench::start(settings()).await;
    let client = Client::new();
    for n in 0..5 {
        client.get(bench.url(&format!("/named/{n}"))).send().await.expect("answered");
        client.get(bench.url(&format!("/nothing-{n}"))).send().await.expect("answered");
        let odd = Method::from_bytes(format!("ODD{n}").as_bytes()).expect("a method");
        client.request(odd, bench.url("/open")).send().await.expect("answered");
    }
    let text = recorder.handle().render();
    let counts: Vec<&str> =
        text.lines().filter(|line| line.starts_with("hygeia_http_requests_total{")).collect();
    let count = |labels: &str| format!("hygeia_http_requests_total{{{labels}}} 5");
    for labels in [
        r#"method="GET",route="/named/{id}",status="4xx""#,
        r#"method="OTHER",route="unmatched",status="4xx""#,
        r#"method="OTHER",route="/open",status="4xx""#,
    ] {
        assert!(counts.contains(&count(labels).as_str()), "{labels}: {counts:?}");
    }
    assert_eq!(counts.len(), 3, "{counts:?}");
    assert!(
        text.contains(r#"hygeia_http_failures_total{route="/named/{id}",code="UNAUTHENTICATED"} 5"#),
        "{text}"
    );
    assert!(text.contains("hygeia_http_in_flight 0"), "{text}");
}
