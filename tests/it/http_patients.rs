//! Patients over REST, against a node as it is run.

use futures::future::join_all;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Node, patient};

async fn body(response: Response) -> Value {
    response.json().await.expect("JSON")
}

/// A problem of `status`, whole.
async fn problem(response: Response, status: u16, code: &str) -> Value {
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem = body(response).await;
    assert_eq!((&problem["status"], &problem["code"]), (&json!(status), &json!(code)), "{problem}");
    for field in ["type", "title", "detail", "traceId"] {
        assert!(problem[field].is_string(), "{field}: {problem}");
    }
    problem
}

/// The patients' part of a node, with a token.
struct Api<'a> {
    node: &'a Node,
    token: String,
}

impl<'a> Api<'a> {
    async fn of(node: &'a Node) -> Self {
        Api { node, token: node.login().await }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.node.http_url())
    }

    async fn post(&self, patient: &Value) -> Response {
        self.node.post_patient(&self.token, patient).await.expect("an answer")
    }

    async fn put(&self, id: &str, patient: &Value) -> Response {
        let request =
            self.node.client().put(self.url(&format!("/api/patients/{id}"))).bearer_auth(&self.token);
        request.json(patient).send().await.expect("an answer")
    }

    async fn delete(&self, id: &str) -> Response {
        let request = self.node.client().delete(self.url(&format!("/api/patients/{id}")));
        request.bearer_auth(&self.token).send().await.expect("an answer")
    }

    async fn get(&self, id: &str) -> Response {
        self.node.get(&self.token, &format!("/api/patients/{id}")).await
    }

    /// Posts `text` as it is.
    async fn post_text(&self, text: &str, content_type: Option<&str>) -> Response {
        let mut request = self.node.client().post(self.url("/api/patients")).bearer_auth(&self.token);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        request.body(text.to_owned()).send().await.expect("an answer")
    }
}

#[tokio::test]
async fn a_record_from_its_beginning_to_its_end() {
    let (_site, node) = Node::fresh().await;
    let api = Api::of(&node).await;
    let ada = json!({
        "name": "Ada Lovelace", "email": "Ada@Example.com", "address": "12 St James's Square\nLondon",
        "dateOfBirth": "1915-12-10", "registeredDate": "2026-01-02"
    });
    let created = api.post(&ada).await;
    assert_eq!(created.status(), StatusCode::CREATED);
    let location = created.headers()["location"].to_str().expect("ASCII").to_owned();
    let created = body(created).await;
    let id = created["id"].as_str().expect("an id").to_owned();
    assert!(Uuid::parse_str(&id).is_ok());
    assert_eq!(location, format!("/api/patients/{id}"));
    let mut expected = ada.clone();
    expected["id"] = json!(id);
    expected["version"] = json!(1);
    assert_eq!(created, expected);
    assert_eq!(body(node.get(&api.token, &location).await).await, expected);

    // A change without the registered date keeps it; the address may be written otherwise.
    let mut change = ada.clone();
    change["name"] = json!("Ada King");
    change["email"] = json!("ADA@example.com");
    change.as_object_mut().expect("an object").remove("registeredDate");
    let changed = api.put(&id, &change).await;
    assert_eq!(changed.status(), StatusCode::OK);
    expected["name"] = json!("Ada King");
    expected["email"] = json!("ADA@example.com");
    expected["version"] = json!(2);
    assert_eq!(body(changed).await, expected);
    change["registeredDate"] = json!("2026-01-03");
    expected["registeredDate"] = json!("2026-01-03");
    expected["version"] = json!(3);
    assert_eq!(body(api.put(&id, &change).await).await, expected);
    // A record may be sent back as it was read, and then changed nobody else has it.
    let mut record = body(api.get(&id).await).await;
    assert_eq!(body(api.put(&id, &record).await).await, expected);
    let version = record["version"].as_i64().expect("a version");
    record["version"] = json!(version - 1);
    problem(api.put(&id, &record).await, 412, "PRECONDITION_FAILED").await;
    record["version"] = json!(version);
    record["id"] = json!(Uuid::now_v7());
    let told = problem(api.put(&id, &record).await, 400, "INVALID").await;
    assert!(told["errors"]["id"].is_string(), "{told}");
    assert_eq!(body(api.get(&id).await).await, expected);
    assert_eq!(body(api.get(&id).await).await, expected);

    let deleted = api.delete(&id).await;
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    assert_eq!(deleted.text().await.expect("text"), "");
    problem(api.get(&id).await, 404, "NOT_FOUND").await;
    problem(api.put(&id, &change).await, 404, "NOT_FOUND").await;
    problem(api.delete(&id).await, 404, "NOT_FOUND").await;
    // The address is free again, under another id.
    let again = api.post(&ada).await;
    assert_eq!(again.status(), StatusCode::CREATED);
    assert_ne!(body(again).await["id"], json!(id));
}

#[tokio::test]
async fn what_is_not_there_or_taken_or_no_id() {
    let (_site, node) = Node::fresh().await;
    let api = Api::of(&node).await;
    let nobody = Uuid::now_v7().to_string();
    problem(api.get(&nobody).await, 404, "NOT_FOUND").await;
    problem(api.put(&nobody, &patient("nobody")).await, 404, "NOT_FOUND").await;
    problem(api.delete(&nobody).await, 404, "NOT_FOUND").await;
    problem(node.get(&api.token, &format!("/api/billing/accounts/{nobody}")).await, 404, "NOT_FOUND").await;
    for no_id in ["1", "123e4567-e89b-12d3-a456-42661417400x", "123e4567e89b12d3a456426614174000", "%00"] {
        let said = problem(api.get(no_id).await, 400, "INVALID").await;
        assert_eq!(said["errors"], json!({"id": "Should be a UUID"}));
        problem(api.put(no_id, &patient("x")).await, 400, "INVALID").await;
        problem(api.delete(no_id).await, 400, "INVALID").await;
        let account = node.get(&api.token, &format!("/api/billing/accounts/{no_id}")).await;
        assert_eq!(
            problem(account, 400, "INVALID").await["errors"],
            json!({"patientId": "Should be a UUID"})
        );
    }

    let first = body(api.post(&patient("first")).await).await;
    let second = body(api.post(&patient("second")).await).await;
    let mut taken = patient("third");
    taken["email"] = json!(first["email"].as_str().expect("an address").to_uppercase());
    problem(api.post(&taken).await, 409, "ALREADY_EXISTS").await;
    let second = second["id"].as_str().expect("an id");
    problem(api.put(second, &taken).await, 409, "ALREADY_EXISTS").await;
    assert_eq!(body(api.get(second).await).await["version"], json!(1));
}

#[tokio::test]
async fn every_rule_says_its_own_words() {
    let (_site, node) = Node::fresh().await;
    let api = Api::of(&node).await;
    let nothing = problem(api.post(&json!({})).await, 400, "INVALID").await;
    let all = json!({
        "name": "Name is required", "email": "Email is required", "address": "Address is required",
        "dateOfBirth": "Date of birth is required", "registeredDate": "Registered date is required"
    });
    assert_eq!(nothing["errors"], all);
    let nulls = json!({"name": null, "email": " ", "address": "", "dateOfBirth": null, "registeredDate": ""});
    assert_eq!(problem(api.post(&nulls).await, 400, "INVALID").await["errors"], all);

    let existing = body(api.post(&patient("ruled")).await).await;
    let id = existing["id"].as_str().expect("an id");
    for (field, value, message) in [
        ("name", json!("x".repeat(101)), "Name cannot exceed 100 characters"),
        ("name", json!("a\u{0}b"), "Name cannot contain control characters"),
        ("name", json!(7), "Should be a text"),
        ("email", json!("not-an-address"), "Email should be valid"),
        ("email", json!(["a@b.c"]), "Should be a text"),
        ("address", json!("x".repeat(501)), "Address cannot exceed 500 characters"),
        ("address", json!(true), "Should be a text"),
        ("dateOfBirth", json!("2026-02-30"), "Date of birth is not a calendar date: there is no such day"),
        ("dateOfBirth", json!("10.12.1985"), "Date of birth must be a date of the form YYYY-MM-DD"),
        ("dateOfBirth", json!("2999-01-01"), "Date of birth cannot be in the future"),
        ("registeredDate", json!("soon"), "Registered date must be a date of the form YYYY-MM-DD"),
        ("registeredDate", json!({"y": 1}), "Should be a text"),
        ("restricted", json!(true), "Unknown field"),
    ] {
        let mut wrong = patient("wrong");
        wrong[field] = value;
        for answer in [api.post(&wrong).await, api.put(id, &wrong).await] {
            let said = problem(answer, 400, "INVALID").await;
            assert_eq!(said["errors"], json!({field: message}));
        }
    }
    for (field, value) in [("id", json!(id)), ("version", json!(1))] {
        let mut wrong = patient("wrong");
        wrong[field] = value;
        let said = problem(api.post(&wrong).await, 400, "INVALID").await;
        assert_eq!(said["errors"], json!({field: "Unknown field"}), "a patient who is not there has neither");
    }
    assert_eq!(body(api.get(id).await).await, existing);
}

#[tokio::test]
async fn bodies_that_are_not_what_they_should_be() {
    let (_site, node) = Node::fresh().await;
    let api = Api::of(&node).await;
    let json_type = Some("application/json");
    for text in ["", "{", "[]", "null", "\"x\"", "{} {}", "{\"name\": }", "\u{feff}{}"] {
        problem(api.post_text(text, json_type).await, 400, "INVALID").await;
    }
    let twice = patient("twice").to_string().replacen('{', "{\"name\": \"Other\", ", 1);
    let said = problem(api.post_text(&twice, json_type).await, 400, "INVALID").await;
    assert_eq!(said["errors"], json!({"name": "Given more than once"}));

    let valid = patient("typed").to_string();
    for content_type in
        [None, Some("text/plain"), Some("application/xml"), Some("application/json; charset=latin1")]
    {
        problem(api.post_text(&valid, content_type).await, 415, "UNSUPPORTED_MEDIA_TYPE").await;
    }
    let mut large = patient("large");
    large["address"] = json!("x".repeat(70_000));
    problem(api.post(&large).await, 413, "PAYLOAD_TOO_LARGE").await;
    let mut huge = patient("huge");
    huge["address"] = json!("x".repeat(1_000_000));
    problem(api.post(&huge).await, 413, "PAYLOAD_TOO_LARGE").await;

    let taken = api.post_text(&valid, Some("application/json; charset=utf-8")).await;
    assert_eq!(taken.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn of_many_who_want_one_address_one_gets_it() {
    let (_site, node) = Node::fresh().await;
    let api = Api::of(&node).await;
    for round in 0..3 {
        let tries = (0..50).map(|n| {
            let mut one = patient(format!("{round}-{n}"));
            let address = format!("wanted-{round}@example.com");
            one["email"] = json!(if n % 2 == 0 { address } else { address.to_uppercase() });
            let api = &api;
            async move { api.post(&one).await.status() }
        });
        let statuses = join_all(tries).await;
        let of = |status| statuses.iter().filter(|s| **s == status).count();
        assert_eq!((of(StatusCode::CREATED), of(StatusCode::CONFLICT)), (1, 49), "round {round}");
    }
}

/// Follows the links from `path` to the end.
async fn pages(api: &Api<'_>, path: &str) -> Vec<Vec<Value>> {
    let (mut pages, mut next) = (Vec::new(), Some(path.to_owned()));
    while let Some(path) = next {
        let response = api.node.get(&api.token, &path).await;
        assert_eq!(response.status(), StatusCode::OK);
        next = response.headers().get("link").map(|link| {
            let link = link.to_str().expect("ASCII");
            let path = link.strip_prefix('<').and_then(|rest| rest.strip_suffix(">; rel=\"next\""));
            path.unwrap_or_else(|| panic!("no link: {link}")).to_owned()
        });
        pages.push(body(response).await.as_array().expect("a bare array").clone());
        assert!(pages.len() < 1000, "the links lead in a circle");
    }
    pages
}

#[tokio::test]
async fn a_list_has_pages_and_an_order() {
    let (_site, node) = Node::fresh().await;
    let api = Api::of(&node).await;
    let before = pages(&api, "/api/patients").await.concat();
    let mut made = Vec::new();
    for n in 0..7 {
        made.push(body(api.post(&patient(format!("listed-{n}"))).await).await);
    }
    let whole = pages(&api, "/api/patients?limit=1000").await;
    assert_eq!(whole.len(), 1);
    let whole = whole.concat();
    assert_eq!(whole[..before.len()], before[..], "the oldest first");
    assert_eq!(whole[before.len()..], made[..], "the newest last");
    let by_three = pages(&api, "/api/patients?limit=3").await;
    assert!(by_three.iter().rev().skip(1).all(|page| page.len() == 3));
    assert_eq!(by_three.concat(), whole);
    // A page that ends with the last record has no next one.
    let exact = pages(&api, &format!("/api/patients?limit={}", whole.len())).await;
    assert_eq!(exact.len(), 1);

    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=many", "limit"),
        ("limit=1&limit=2", "limit"),
        ("cursor=tampered", "cursor"),
        ("cursor=", "cursor"),
    ] {
        let said =
            problem(node.get(&api.token, &format!("/api/patients?{query}")).await, 400, "INVALID").await;
        assert!(said["errors"][field].is_string(), "{query}: {said}");
    }
    let response = node.get(&api.token, "/api/patients?limit=1").await;
    let link = response.headers()["link"].to_str().expect("ASCII").to_owned();
    let (_, cursor) = link.split_once("cursor=").expect("a cursor");
    let cursor = cursor.split('>').next().expect("a link");
    let tampered = format!("{}{}", if cursor.starts_with('B') { 'C' } else { 'B' }, &cursor[1..]);
    let refused = node.get(&api.token, &format!("/api/patients?limit=1&cursor={tampered}")).await;
    problem(refused, 400, "INVALID").await;
}
