//! Texts that callers send, against nodes over both databases: what no database holds is the caller's mistake, what looks
//! the same is the same, and what is written in another case is found.

use hygeia::proto::BillingRequest;
use hygeia::proto::billing_service_client::BillingServiceClient;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{Node, Site, patient};
use crate::postgres::Postgres;

/// Whether a request with a body `of` a text gets the answer that names the field.
async fn refused(node: &Node, token: &str, (method, path): (&str, &str), body: Option<Value>, field: &str) {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let media_type =
        if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let mut request = node.client().request(method, format!("{}{path}", node.http_url()));
    if let Some(body) = &body {
        request = request.header("content-type", media_type).body(body.to_string());
    }
    let answer = request.bearer_auth(token).send().await.expect("an answer");
    let status = answer.status();
    let problem: Value = answer.json().await.expect("JSON");
    let said = format!("{path} {body:?}: {status} {problem}");
    assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
    assert!(problem["errors"][field].is_string(), "{field}: {said}");
}

async fn a_nul_is_refused_on_every_route(node: &Node) {
    let token = node.login().await;
    let token = &*token;
    let created = node.post_patient(token, &patient("nul")).await.expect("an answer");
    let created: Value = created.json().await.expect("JSON");
    let record = format!("/api/patients/{}", created["id"].as_str().expect("an id"));
    for nul in ["a\0@example.org", "\0", "a@example.org\0"] {
        let login = json!({"email": nul, "password": "password123"});
        refused(node, token, ("POST", "/auth/login"), Some(login), "email").await;
        let user = json!({"email": nul, "password": "correct horse battery", "role": "ANALYST"});
        refused(node, token, ("POST", "/api/users"), Some(user), "email").await;
        for field in ["name", "email", "address", "dateOfBirth", "registeredDate"] {
            let mut form = patient("other");
            form[field] = json!(nul);
            refused(node, token, ("POST", "/api/patients"), Some(form.clone()), field).await;
            refused(node, token, ("PUT", &record), Some(form), field).await;
            refused(node, token, ("PATCH", &record), Some(json!({field: nul})), field).await;
        }
    }
    let secrets = json!({"email": "nobody@example.org", "password": "a\0b"});
    refused(node, token, ("POST", "/auth/login"), Some(secrets), "password").await;
    refused(node, token, ("POST", "/auth/refresh"), Some(json!({"refreshToken": "\0"})), "refreshToken")
        .await;
    let own = json!({"oldPassword": "\0", "newPassword": "correct horse battery"});
    refused(node, token, ("POST", "/api/users/me/password"), Some(own), "oldPassword").await;
    refused(node, token, ("PATCH", "/api/users/a%00@example.org"), Some(json!({"disabled": true})), "email")
        .await;
    for (query, field) in [
        ("/api/users?after=%00", "after"),
        ("/api/users?after=a%00b", "after"),
        ("/api/patients?q=a%00", "q"),
        ("/api/patients?email=a%00%40example.org", "email"),
        ("/api/patients?cursor=%00", "cursor"),
    ] {
        refused(node, token, ("GET", query), None, field).await;
    }
    let mut client = BillingServiceClient::connect(node.grpc_url().to_owned()).await.expect("it listens");
    for (name, email) in
        [("a\0b", "ada@example.org"), ("Ada", "a\0@example.org"), ("Ada", "ada@example.org\0")]
    {
        let patient_id = uuid::Uuid::now_v7().to_string();
        let asked = BillingRequest { patient_id, name: name.into(), email: email.into() };
        let mut request = tonic::Request::new(asked);
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("ASCII"));
        let status = client.create_billing_account(request).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
}

async fn what_is_the_same_address_is_taken_once(node: &Node) {
    let token = node.login().await;
    let register = |n: &str, email: &str| {
        let mut form = patient(n);
        form["email"] = json!(email);
        let token = &token;
        async move { node.post_patient(token, &form).await.expect("an answer") }
    };
    let first = register("first", "noa@b\u{fc}cher.example").await;
    assert_eq!(first.status(), StatusCode::CREATED);
    let first: Value = first.json().await.expect("JSON");
    assert_eq!(first["email"], json!("noa@b\u{fc}cher.example"), "shown as it was given");
    for same in [
        "NOA@B\u{dc}CHER.example",
        "noa@bu\u{308}cher.example",
        "noa@xn--bcher-kva.example",
        "\u{feff}noa@b\u{fc}cher.example\u{200b}",
    ] {
        assert_eq!(register("same", same).await.status(), StatusCode::CONFLICT, "{same}");
    }
    for none in
        ["noa@b\u{fc}\u{ad}cher.example", "noa@b\u{fc}cher\u{3002}example", "noa@b\u{fc}cher.\u{ff45}xample"]
    {
        assert_eq!(register("none", none).await.status(), StatusCode::BAD_REQUEST, "{none}");
    }
    for asked in ["email=noa@xn--bcher-kva.example", "q=NOA@b%C3%BCcher.example", "q=noa@xn"] {
        let found = node.get_json(&token, &format!("/api/patients?{asked}")).await;
        assert_eq!(found[0]["id"], first["id"], "{asked}: {found}");
    }
    // Given up, it is free in every spelling.
    let record = format!("{}/api/patients/{}", node.http_url(), first["id"].as_str().expect("an id"));
    let gone = node.client().delete(record).bearer_auth(&token).send().await.expect("an answer");
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert_eq!(register("again", "noa@xn--bcher-kva.example").await.status(), StatusCode::CREATED);
}

async fn names_are_found_in_any_case(node: &Node) {
    let token = node.login().await;
    for (n, name, asked) in [
        (
            "greek",
            "\u{3a3}\u{38a}\u{3a3}\u{3a5}\u{3a6}\u{39f}\u{3a3}",
            "\u{3c3}\u{3af}\u{3c3}\u{3c5}\u{3c6}\u{3bf}\u{3c2}",
        ),
        ("german", "Quellstra\u{df}e", "QUELLSTRASSE"),
        ("led", "\u{200b}\u{2060}Xanthippe", "xanthippe"),
        (
            "joined",
            "\u{646}\u{627}\u{645}\u{647}\u{200c}\u{627}\u{6cc}",
            "\u{646}\u{627}\u{645}\u{647}\u{627}\u{6cc}",
        ),
    ] {
        let mut form = patient(n);
        form["name"] = json!(name);
        let made = node.post_patient(&token, &form).await.expect("an answer");
        assert_eq!(made.status(), StatusCode::CREATED, "{name}");
        let request = node.client().get(format!("{}/api/patients", node.http_url())).query(&[("q", asked)]);
        let found: Value =
            request.bearer_auth(&token).send().await.expect("an answer").json().await.expect("JSON");
        assert_eq!(found[0]["email"], form["email"], "{asked}: {found}");
    }
}

#[tokio::test]
async fn texts_over_sqlite() {
    let (_site, node) = Node::fresh().await;
    a_nul_is_refused_on_every_route(&node).await;
    what_is_the_same_address_is_taken_once(&node).await;
    names_are_found_in_any_case(&node).await;
}

#[tokio::test]
async fn texts_over_postgresql() {
    let database = Postgres::shared_fast().create_database().await;
    let site = Site::on_postgres(database.url());
    let node = site.start().await;
    a_nul_is_refused_on_every_route(&node).await;
    what_is_the_same_address_is_taken_once(&node).await;
    names_are_found_in_any_case(&node).await;
    // The command line has the same rules, and says what it did.
    let added =
        site.run(&["user", "add", "Eve@b\u{fc}cher.example", "--role", "ANALYST"], "correct horse battery");
    assert_eq!(added, "added Eve@b\u{fc}cher.example with the role ANALYST\n");
    let password = site.path().join("password");
    std::fs::write(&password, "correct horse battery").expect("written");
    for (address, told) in [
        ("eve@XN--BCHER-KVA.example", "There is a user"),
        ("eve@b\u{fc}cher.example\u{200b}", "There is a user"),
        ("eve@\u{ff45}xample.org", "email"),
        (".eve@example.org", "email"),
        ("eve@example.123", "email"),
    ] {
        let mut command = site.command();
        let input = std::fs::File::open(&password).expect("readable");
        command.args(["user", "add", address, "--role", "ANALYST"]).stdin(input);
        let output = command.output().expect("it ran");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(told), "{address}: {said}");
    }
    let login = json!({"email": "eve@xn--bcher-kva.example", "password": "correct horse battery"});
    let answer = node.client().post(format!("{}/auth/login", node.http_url())).json(&login).send().await;
    assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
}
