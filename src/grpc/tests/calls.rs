//! Tests of the responses to calls, and of what is logged about them.

use super::*;

#[tokio::test]
async fn an_account_is_opened_within_the_callers_trace_and_deadline() {
    let running = start(Settings { timeout_ms: 3_600_000, ..settings() }).await;
    let before = SystemClock.mono();
    let request = with(with(asking(NAME), "traceparent", TRACEPARENT), "grpc-timeout", "100S");
    let answer = running.client().await.create_billing_account(request).await.expect("opened");
    let trace_id = answer.metadata().get("trace-id").expect("a trace id");
    assert_eq!(trace_id, "0af7651916cd43dd8448eb211c80319c");
    let BillingResponse { account_id, status } = answer.into_inner();
    assert_eq!((account_id.len(), &*status), (36, "ACTIVE"));
    let asked = running.fake.asked.lock().unwrap();
    let [ctx] = &asked[..] else { panic!("one call") };
    assert_eq!(ctx.trace.parent_id, 0xb7ad_6b71_6920_3331);
    assert_eq!(&*ctx.caller.subject, "system:test");
    let budget = ctx.deadline.since(before);
    assert!(budget > Duration::from_secs(99) && budget < Duration::from_secs(200), "{budget:?}");
}

#[tokio::test]
async fn nobody_is_served_without_a_token_that_holds() {
    let running = start(settings()).await;
    let mut client = running.client().await;
    let mut none = asking(NAME);
    none.metadata_mut().remove("authorization");
    let cases = [
        (none, Code::Unauthenticated, "UNAUTHENTICATED"),
        (with(asking(NAME), "authorization", "Bearer other"), Code::Unauthenticated, "UNAUTHENTICATED"),
        (with(asking(NAME), "authorization", "Basic abc"), Code::Unauthenticated, "UNAUTHENTICATED"),
        (with(asking(NAME), "authorization", "Bearer away"), Code::Unavailable, "UNAVAILABLE"),
    ];
    for (request, code, name) in cases {
        let status = client.create_billing_account(request).await.expect_err("refused");
        assert_eq!((status.code(), error_code(&status)), (code, name));
    }
    assert!(running.fake.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn without_required_tokens_a_token_given_must_still_hold() {
    let running = start(Settings { require_token: false, ..settings() }).await;
    let mut client = running.client().await;
    let mut none = asking(NAME);
    none.metadata_mut().remove("authorization");
    client.create_billing_account(none).await.expect("open to loopback");
    assert_eq!(&*running.fake.asked.lock().unwrap()[0].caller.subject, "system:grpc-without-token");
    let bad = with(asking(NAME), "authorization", "Bearer other");
    assert_eq!(client.create_billing_account(bad).await.expect_err("refused").code(), Code::Unauthenticated);
}

#[tokio::test]
async fn what_is_not_valid_is_named() {
    let running = start(settings()).await;
    let mut client = running.client().await;
    let long = "x".repeat(101);
    for (field, value, message) in [
        ("patientId", "7", "patientId: Patient id should be a UUID"),
        ("patientId", "", "patientId: Patient id is required"),
        ("name", " ", "name: Name is required"),
        ("name", &long, "name: Name cannot exceed 100 characters"),
        ("email", "nobody", "email: Email should be valid"),
    ] {
        let mut request = asking(NAME);
        let asked = request.get_mut();
        match field {
            "patientId" => asked.patient_id = value.into(),
            "name" => asked.name = value.into(),
            _ => asked.email = value.into(),
        }
        let status = client.create_billing_account(request).await.expect_err("refused");
        assert_eq!((status.code(), error_code(&status)), (Code::InvalidArgument, "INVALID"));
        assert_eq!(status.message(), format!("Some fields are not valid: {message}"));
    }
}

/// The request message with a name that need not be UTF-8.
#[derive(Clone, PartialEq, prost::Message)]
struct Raw {
    #[prost(string, tag = "1")]
    patient_id: String,
    #[prost(bytes = "vec", tag = "2")]
    name: Vec<u8>,
}

async fn raw(channel: Channel, path: &'static str, name: Vec<u8>) -> std::result::Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.expect("connected");
    let codec = tonic_prost::ProstCodec::<Raw, BillingResponse>::default();
    let request = Request::new(Raw { patient_id: PATIENT.into(), name });
    grpc.unary(request, http::uri::PathAndQuery::from_static(path), codec).await.map(drop)
}

#[tokio::test]
async fn what_the_library_refuses_is_told_in_our_terms() {
    let running = start(Settings { message_max_bytes: 1_000, ..settings() }).await;
    const PATH: &str = "/BillingService/CreateBillingAccount";
    let cases = [
        (PATH, vec![b'x'; 2_000], Code::ResourceExhausted, "PAYLOAD_TOO_LARGE"),
        (PATH, vec![0xff], Code::InvalidArgument, "INVALID"),
        ("/BillingService/Other", vec![], Code::Unimplemented, "METHOD_NOT_ALLOWED"),
        ("/Other/Other", vec![], Code::Unimplemented, "METHOD_NOT_ALLOWED"),
    ];
    for (path, name, code, told) in cases {
        let status = raw(running.channel().await, path, name).await.expect_err("refused");
        assert_eq!((status.code(), error_code(&status)), (code, told), "{path}");
    }
}

#[tokio::test]
async fn a_panic_ends_its_call_alone() {
    let running = start(settings()).await;
    let mut client = running.client().await;
    let status = client.create_billing_account(asking("panic")).await.expect_err("a fault");
    assert_eq!((status.code(), error_code(&status)), (Code::Internal, "INTERNAL"));
    assert!(!status.message().contains("on purpose"));
    client.create_billing_account(asking(NAME)).await.expect("the same connection still serves");
}

#[tokio::test]
async fn the_handles_refusals_pass() {
    let running = start(settings()).await;
    let status =
        running.client().await.create_billing_account(asking("overloaded")).await.expect_err("refused");
    assert_eq!((status.code(), error_code(&status)), (Code::ResourceExhausted, "OVERLOADED"));
}

async fn serving(channel: &Channel, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.into() };
    HealthClient::new(channel.clone()).check(request).await.expect("health answers").into_inner().status()
}

#[tokio::test]
async fn the_health_service_says_what_the_parts_say() {
    let running = start(settings()).await;
    let channel = running.channel().await;
    for service in ["", "BillingService"] {
        running.health.report("store", PartStatus::Ready);
        until("serving", async || serving(&channel, service).await == ServingStatus::Serving).await;
        running.health.report("store", PartStatus::NotReady("away on purpose".into()));
        until("not serving", async || serving(&channel, service).await == ServingStatus::NotServing).await;
        running.health.report("store", PartStatus::Explained("slow on purpose".into()));
        until("serving again", async || serving(&channel, service).await == ServingStatus::Serving).await;
    }
    let request = HealthCheckRequest { service: "Other".into() };
    let status = HealthClient::new(channel).check(request).await.expect_err("unknown");
    assert_eq!((status.code(), error_code(&status)), (Code::NotFound, "NOT_FOUND"));
}

#[tokio::test]
async fn both_versions_of_reflection_list_the_services() {
    let running = start(Settings { reflection: true, ..settings() }).await;
    let channel = running.channel().await;
    macro_rules! services {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
            };
            let request = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::ListServices(String::new())),
            };
            let mut client = ServerReflectionClient::new(channel.clone());
            let asked = futures::stream::iter([request]);
            let mut answers = client.server_reflection_info(asked).await.expect("answers").into_inner();
            match answers.message().await.expect("an answer").and_then(|answer| answer.message_response) {
                Some(MessageResponse::ListServicesResponse(list)) => {
                    list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
                }
                other => panic!("no list: {other:?}"),
            }
        }};
    }
    for services in [services!(v1), services!(v1alpha)] {
        for service in ["BillingService", "grpc.health.v1.Health"] {
            assert!(services.iter().any(|name| name == service), "{service} in {services:?}");
        }
    }
}

#[tokio::test]
async fn reflection_is_not_served_unasked() {
    use tonic_reflection::pb::{v1, v1alpha};
    let running = start(settings()).await;
    let channel = running.channel().await;
    let mut new = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let mut old = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let refused =
        new.server_reflection_info(futures::stream::empty()).await.map(drop).expect_err("not served");
    assert_eq!(refused.code(), Code::Unimplemented);
    let refused =
        old.server_reflection_info(futures::stream::empty()).await.map(drop).expect_err("not served");
    assert_eq!(refused.code(), Code::Unimplemented);
}

/// The output of a subscriber.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs on one thread, so that the subscriber sees the lines of this server and of no other test.
#[tokio::test]
async fn each_call_is_one_line_that_tells_no_secret() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_writer(move || writer.clone())
        .with_max_level(tracing::Level::TRACE);
    let _listening = crate::telemetry::testing::listen(subscriber.finish());
    let running = start(settings()).await;
    let mut client = running.client().await;
    client.create_billing_account(with(asking(NAME), "traceparent", TRACEPARENT)).await.expect("opened");
    let mut bad = asking(NAME);
    bad.get_mut().email = "canary-no-address".into();
    client.create_billing_account(bad).await.expect_err("invalid");
    client
        .create_billing_account(with(asking(NAME), "authorization", "Bearer canary-bad"))
        .await
        .expect_err("refused");

    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let calls: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &serde_json::Value| {
            line["target"] == "hygeia::grpc" && line["fields"]["method"].is_string()
        })
        .collect();
    let codes: Vec<_> = calls.iter().map(|line| line["fields"]["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["OK", "INVALID", "UNAUTHENTICATED"]);
    let fields = &calls[0]["fields"];
    assert_eq!(fields["method"], "BillingService/CreateBillingAccount");
    assert_eq!(fields["trace"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(fields["parent"], "b7ad6b7169203331");
    assert!(fields["duration_us"].is_u64() && fields["span"].as_str().unwrap().len() == 16);
    let telling = text.lines().find(|line| line.to_lowercase().contains("canary"));
    assert_eq!(telling, None, "a line tells too much");
}

#[test]
fn the_messages_are_those_of_the_wire() {
    let request = BillingRequest { patient_id: "p-1".into(), name: "Ada".into(), email: "a@b.c".into() };
    let golden = b"\x0a\x03p-1\x12\x03Ada\x1a\x05a@b.c";
    assert_eq!(request.encode_to_vec(), golden);
    assert_eq!(BillingRequest::decode(&golden[..]), Ok(request));
    let response = BillingResponse { account_id: "acc".into(), status: "ACTIVE".into() };
    let golden = b"\x0a\x03acc\x12\x06ACTIVE";
    assert_eq!(response.encode_to_vec(), golden);
    assert_eq!(BillingResponse::decode(&golden[..]), Ok(response));
}

#[tokio::test]
async fn metadata_of_one_value_is_given_once() {
    let running = start(settings()).await;
    let mut client = running.client().await;
    for (name, value) in [("authorization", "Bearer other"), ("authorization", "x"), ("grpc-timeout", "1S")] {
        let mut request = with(asking(NAME), "grpc-timeout", "9S");
        request.metadata_mut().append(name, value.parse().unwrap());
        let status = client.create_billing_account(request).await.expect_err("refused");
        assert_eq!((status.code(), error_code(&status)), (Code::InvalidArgument, "INVALID"), "{name}");
        assert!(status.message().contains(name), "{}", status.message());
    }
    assert!(running.fake.asked.lock().unwrap().is_empty());
    let mut request = with(asking(NAME), "traceparent", TRACEPARENT);
    request.metadata_mut().append("traceparent", TRACEPARENT.parse().unwrap());
    let answer = client.create_billing_account(request).await.expect("opened");
    assert_ne!(answer.metadata().get("trace-id").unwrap(), "0af7651916cd43dd8448eb211c80319c", "a new trace");
}
