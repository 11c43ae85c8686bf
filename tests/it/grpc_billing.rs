//! Billing over gRPC, against a node as it is run.

use std::collections::HashSet;

use bytes::{Buf, BufMut};
use hygeia::proto::billing_service_client::BillingServiceClient;
use hygeia::proto::{BillingRequest, BillingResponse};
use reqwest::StatusCode;
use serde_json::Value;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::harness::{Node, Site, patient};

async fn channel(node: &Node) -> Channel {
    let endpoint = Endpoint::from_shared(node.grpc_url().to_owned()).expect("an address");
    endpoint.connect().await.expect("the node listens")
}

/// A request with `token`.
fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().expect("ASCII");
    request.metadata_mut().insert("authorization", value);
    request
}

fn holder(patient: Uuid) -> BillingRequest {
    BillingRequest {
        patient_id: patient.to_string(),
        name: "Grace Hopper".into(),
        email: "grace@example.com".into(),
    }
}

/// A patient of this test's own.
async fn registered(node: &Node, token: &str) -> Uuid {
    let made = node.post_patient(token, &patient(Uuid::now_v7())).await.expect("an answer");
    let made: Value = made.json().await.expect("JSON");
    made["id"].as_str().expect("an id").parse().expect("a UUID")
}

async fn open(
    client: &mut BillingServiceClient<Channel>,
    token: &str,
    request: BillingRequest,
) -> Result<BillingResponse, Status> {
    client.create_billing_account(with_token(token, request)).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn the_same_patient_has_the_same_account_on_both_edges() {
    let (_site, node) = Node::fresh().await;
    let token = node.login().await;
    let mut client = BillingServiceClient::new(channel(&node).await);
    let patient = registered(&node, &token).await;

    let first = open(&mut client, &token, holder(patient)).await.expect("opened");
    assert_eq!(first.status, "ACTIVE");
    let other_name = BillingRequest { name: "Another Name".into(), ..holder(patient) };
    let second = open(&mut client, &token, other_name).await.expect("the one there is");
    assert_eq!(first, second);

    let url = format!("{}/api/billing/accounts/{patient}", node.http_url());
    let answer = node.client().get(url).bearer_auth(&token).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    let account: Value = answer.json().await.expect("JSON");
    assert_eq!(account["id"], first.account_id.as_str());
    assert_eq!(account["status"], "ACTIVE");

    let other = registered(&node, &token).await;
    let other = open(&mut client, &token, holder(other)).await.expect("opened");
    assert_ne!(other.account_id, first.account_id);
}

#[tokio::test]
async fn fifty_at_once_open_one_account() {
    let (_site, node) = Node::fresh().await;
    let token = node.login().await;
    let (one, other) = (channel(&node).await, channel(&node).await);
    let patient = registered(&node, &token).await;
    let calls: Vec<_> = (0..50)
        .map(|n| {
            let mut client = BillingServiceClient::new(if n % 2 == 0 { one.clone() } else { other.clone() });
            let token = token.clone();
            tokio::spawn(async move { open(&mut client, &token, holder(patient)).await })
        })
        .collect();
    let mut accounts = HashSet::new();
    for call in calls {
        accounts.insert(call.await.expect("no panic").expect("opened").account_id);
    }
    assert_eq!(accounts.len(), 1);
}

#[tokio::test]
async fn nobody_who_is_no_patient_gets_an_account() {
    let (_site, node) = Node::fresh().await;
    let token = node.login().await;
    let mut client = BillingServiceClient::new(channel(&node).await);
    let gone = registered(&node, &token).await;
    let url = format!("{}/api/patients/{gone}", node.http_url());
    let deleted = node.client().delete(url).bearer_auth(&token).send().await.expect("an answer");
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    for patient in [Uuid::now_v7(), gone] {
        let refused = open(&mut client, &token, holder(patient)).await.expect_err("no patient");
        assert_eq!(refused.code(), Code::NotFound);
        assert_eq!(refused.metadata().get("error-code").expect("a name"), "NOT_FOUND");
    }
}

#[tokio::test]
async fn a_setting_opens_accounts_as_the_original_system_did() {
    let node = Site::fresh().with("HYGEIA__GRPC__UNKNOWN_PATIENTS_ALLOWED", "true").start().await;
    let token = node.login().await;
    let mut client = BillingServiceClient::new(channel(&node).await);
    open(&mut client, &token, holder(Uuid::now_v7())).await.expect("opened");
}

#[tokio::test]
async fn a_stranger_is_refused_and_a_mistake_is_named() {
    let (_site, node) = Node::fresh().await;
    let mut client = BillingServiceClient::new(channel(&node).await);
    let none = client.create_billing_account(holder(Uuid::now_v7())).await.expect_err("no token");
    assert_eq!(none.code(), Code::Unauthenticated);
    let bad = open(&mut client, "not.a.token", holder(Uuid::now_v7())).await.expect_err("a bad token");
    assert_eq!(bad.code(), Code::Unauthenticated);

    let token = node.login().await;
    let request = BillingRequest { patient_id: "7".into(), ..holder(Uuid::now_v7()) };
    let invalid = open(&mut client, &token, request).await.expect_err("no UUID");
    assert_eq!(invalid.code(), Code::InvalidArgument);
    assert!(invalid.message().contains("patientId"), "{}", invalid.message());
    assert_eq!(invalid.metadata().get("error-code").expect("a name"), "INVALID");
    assert_eq!(invalid.metadata().get("trace-id").expect("a trace").len(), 32);
}

/// Messages as they are on the wire, without any schema of ours.
struct AsBytes;

impl Codec for AsBytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = AsBytes;
    type Decoder = AsBytes;

    fn encoder(&mut self) -> AsBytes {
        AsBytes
    }

    fn decoder(&mut self) -> AsBytes {
        AsBytes
    }
}

impl Encoder for AsBytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for AsBytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

/// The bytes that clients in the field send and expect: three texts in the fields 1 to 3, answered by
/// two in the fields 1 and 2, under a service name without a package.
#[tokio::test]
async fn clients_in_the_field_are_understood() {
    let (_site, node) = Node::fresh().await;
    let token = node.login().await;
    let mut request = Vec::new();
    request.extend(b"\x0a\x24");
    request.extend(registered(&node, &token).await.to_string().bytes());
    request.extend(b"\x12\x08John Doe");
    request.extend(b"\x1a\x14john.doe@example.com");
    // A field that a newer client may send.
    request.extend(b"\x22\x03new");
    let mut grpc = tonic::client::Grpc::new(channel(&node).await);
    grpc.ready().await.expect("connected");
    let path = http::uri::PathAndQuery::from_static("/BillingService/CreateBillingAccount");
    let answer = grpc.unary(with_token(&token, request), path, AsBytes).await.expect("opened").into_inner();
    assert_eq!(&answer[..2], b"\x0a\x24", "field 1 is a text of 36 bytes");
    let account = std::str::from_utf8(&answer[2..38]).expect("ASCII");
    assert!(Uuid::try_parse(account).is_ok(), "{account}");
    assert_eq!(&answer[38..], b"\x12\x06ACTIVE");
}
