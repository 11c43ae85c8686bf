//! What holds for every route: who is let in, what is not there, how it is described and watched.

use std::collections::BTreeSet;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Node, Site, USER};

const SECRET: &str = "a secret of the tests, at least 32 bytes long";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// A patient of the demo.
const JOHN: &str = "/api/patients/123e4567-e89b-12d3-a456-426614174000";

/// Every route with its methods.
const ROUTES: [(&str, &[&str]); 28] = [
    ("/", &["get"]),
    ("/auth/login", &["post"]),
    ("/auth/refresh", &["post"]),
    ("/auth/logout", &["post"]),
    ("/auth/logout-all", &["post"]),
    ("/.well-known/jwks.json", &["get"]),
    ("/auth/validate", &["get"]),
    ("/api/patients", &["get", "post"]),
    ("/api/patients/{id}", &["get", "put", "patch", "delete"]),
    ("/api/patients/{id}/history", &["get"]),
    ("/api/patients/{id}/restriction", &["put", "delete"]),
    ("/api/users", &["get", "post"]),
    ("/api/users/{email}", &["patch"]),
    ("/api/users/me/password", &["post"]),
    ("/api/audit", &["get"]),
    ("/api/analytics/summary", &["get"]),
    ("/api/billing/accounts/{patientId}", &["get"]),
    ("/health/live", &["get"]),
    ("/health/ready", &["get"]),
    ("/metrics", &["get"]),
    ("/cluster", &["get"]),
    ("/openapi.json", &["get"]),
    ("/api-docs/patients", &["get"]),
    ("/api-docs/auth", &["get"]),
    ("/swagger-ui", &["get"]),
    ("/swagger-ui/", &["get"]),
    ("/swagger-ui/{file}", &["get"]),
    ("/nothing", &[]),
];

fn concrete(template: &str) -> String {
    let id = "123e4567-e89b-12d3-a456-426614174000";
    template
        .replace("{file}", "index.html")
        .replace("{id}", id)
        .replace("{patientId}", id)
        .replace("{email}", "nobody@example.com")
}

fn guarded(path: &str) -> bool {
    path.starts_with("/api/")
        || matches!(path, "/auth/validate" | "/auth/logout" | "/auth/logout-all" | "/cluster")
}

async fn node_with_known_secret() -> (Site, Node) {
    let site =
        Site::demo().with("HYGEIA__AUTH__TOKEN_ALGORITHM", "HS256").with("HYGEIA__AUTH__JWT_SECRET", SECRET);
    let node = site.start().await;
    (site, node)
}

async fn ask(node: &Node, method: &str, path: &str) -> Response {
    let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
    node.client().request(method, format!("{}{path}", node.http_url())).send().await.expect("an answer")
}

fn signed(algorithm: Algorithm, secret: &str, claims: &Value) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    let header = Header { typ: Some("at+jwt".into()), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, &key).expect("signed")
}

#[tokio::test]
async fn a_login_gives_a_token_or_says_nothing_of_why_not() {
    let (site, node) = Node::fresh().await;
    let password = site.password();
    let login = |body: Value| {
        let request = node.client().post(format!("{}/auth/login", node.http_url())).json(&body);
        async move { request.send().await.expect("an answer") }
    };
    let given = login(json!({"email": USER.to_uppercase(), "password": password})).await;
    assert_eq!(given.status(), StatusCode::OK);
    assert_eq!(given.headers()["cache-control"], "no-store");
    let given: Value = given.json().await.expect("JSON");
    assert_eq!(
        (&given["tokenType"], given["expiresIn"].is_u64()),
        (&json!("Bearer"), true),
        "the token's frame"
    );
    let token = given["token"].as_str().expect("a token");
    assert_eq!(node.get(token, "/auth/validate").await.status(), StatusCode::OK);

    let mut said = BTreeSet::new();
    for (email, password) in
        [(USER, "wrong-password"), ("nobody@example.com", password), (USER, &*"x".repeat(73))]
    {
        let refused = login(json!({"email": email, "password": password})).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        assert!(refused.headers().contains_key("www-authenticate"));
        let refused: Value = refused.json().await.expect("JSON");
        said.insert(refused["detail"].as_str().expect("a detail").to_owned());
    }
    assert_eq!(said.len(), 1, "{said:?}");

    let empty: Value = login(json!({"passwort": "x"})).await.json().await.expect("JSON");
    assert_eq!(
        empty["errors"],
        json!({"email": "Email is required", "password": "Password is required", "passwort": "Unknown field"})
    );
    let url = format!("{}/auth/login", node.http_url());
    let typed = node.client().post(&url).header("content-type", "text/plain").body("{}").send().await;
    assert_eq!(typed.expect("an answer").status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let large = login(json!({"email": USER, "password": "x".repeat(100_000)})).await;
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn nobody_comes_in_without_a_token_that_holds() {
    let (_site, node) = node_with_known_secret().await;
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = json!({
        "sub": USER, "role": "ADMIN", "iss": "hygeia", "aud": "hygeia", "iat": now, "exp": now + 600,
        "sid": uuid::Uuid::now_v7(), "jti": uuid::Uuid::now_v7(),
    });
    let with = |key: &str, value: Value| {
        let mut changed = claims.clone();
        changed[key] = value;
        changed
    };
    let good = signed(Algorithm::HS256, SECRET, &claims);
    assert_eq!(node.get(&good, JOHN).await.status(), StatusCode::OK, "the pattern itself holds");

    let payload = good.split('.').nth(1).expect("three parts").to_owned();
    let wrong = [
        "garbage".to_owned(),
        "a.b.c".to_owned(),
        format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}."),
        signed(Algorithm::HS256, "another secret, long enough to be one", &claims),
        signed(Algorithm::HS512, SECRET, &claims),
        signed(Algorithm::HS256, SECRET, &with("exp", json!(now - 30))),
        signed(Algorithm::HS256, SECRET, &with("iss", json!("elsewhere"))),
        signed(Algorithm::HS256, SECRET, &with("aud", json!("elsewhere"))),
        signed(Algorithm::HS256, SECRET, &with("sub", json!("nobody@example.com"))),
    ];
    for (path, methods) in ROUTES.into_iter().filter(|(path, _)| guarded(path)) {
        for method in methods {
            let refused = ask(&node, method, &concrete(path)).await;
            assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
            assert_eq!(refused.headers()["www-authenticate"], "Bearer");
            let refused: Value = refused.json().await.expect("JSON");
            assert_eq!(refused["code"], "UNAUTHENTICATED");
        }
    }
    for (n, token) in wrong.iter().enumerate() {
        let refused = node.get(token, JOHN).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "token {n}");
        assert_eq!(refused.headers()["www-authenticate"], r#"Bearer error="invalid_token""#);
    }
}

#[tokio::test]
async fn routes_methods_and_head() {
    let (_site, node) = Node::demo().await;
    for path in ["/api", "/api/patients/", "/api/patients/1/2", "/nothing"] {
        let missing = ask(&node, "get", path).await;
        assert_eq!(missing.status(), StatusCode::NOT_FOUND, "{path}");
        assert_eq!(missing.headers()["content-type"], "application/problem+json");
    }
    for (path, methods) in ROUTES.into_iter().filter(|(_, methods)| !methods.is_empty()) {
        let refused = ask(&node, "trace", &concrete(path)).await;
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let allow = refused.headers()["allow"].to_str().expect("ASCII").to_lowercase();
        let allowed: BTreeSet<&str> =
            allow.split(',').map(str::trim).filter(|method| !matches!(*method, "head" | "options")).collect();
        assert_eq!(allowed, methods.iter().copied().collect(), "{path}");
        let refused: Value = refused.json().await.expect("JSON");
        assert_eq!(refused["code"], "METHOD_NOT_ALLOWED");
    }
    let token = node.login().await;
    let head = node.client().head(format!("{}{JOHN}", node.http_url())).bearer_auth(&token).send().await;
    let (head, get) = (head.expect("an answer"), node.get(&token, JOHN).await);
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(head.headers()["content-length"], get.headers()["content-length"]);
    assert_eq!(head.text().await.expect("text"), "");
}

#[tokio::test]
async fn a_problem_names_the_trace_it_was_asked_in() {
    let (_site, node) = Node::fresh().await;
    let request = node.client().get(format!("{}{JOHN}", node.http_url())).header("traceparent", PARENT);
    let refused = request.send().await.expect("an answer");
    let hop = refused.headers()["traceparent"].to_str().expect("ASCII").to_owned();
    assert!(hop.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && hop != PARENT, "{hop}");
    let refused: Value = refused.json().await.expect("JSON");
    assert_eq!(refused["traceId"], "0af7651916cd43dd8448eb211c80319c");
    let mut fields: Vec<&str> = refused.as_object().expect("an object").keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["code", "detail", "status", "title", "traceId", "type"]);
}

#[tokio::test]
async fn the_interface_is_described_whole() {
    let (site, node) = Node::fresh().await;
    let mut served = BTreeSet::new();
    for part in ["patients", "auth"] {
        let answer = ask(&node, "get", &format!("/api-docs/{part}")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let document: Value = answer.json().await.expect("JSON");
        assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")), "{part}");
        assert!(document["components"]["schemas"]["Problem"].is_object(), "{part}");
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("methods") {
                let secured = operation["security"].is_array();
                assert_eq!(secured, guarded(path), "{method} {path}");
                assert!(operation["responses"]["500"].is_object(), "{method} {path}");
                served.insert((path.clone(), method.clone()));
            }
        }
    }
    let known: BTreeSet<_> = ROUTES
        .iter()
        .flat_map(|(path, methods)| methods.iter().map(|method| ((*path).to_owned(), (*method).to_owned())))
        .collect();
    assert_eq!(served, known);
    let whole: Value = serde_json::from_str(&site.run(&["openapi"], "")).expect("JSON");
    let paths: BTreeSet<&String> = whole["paths"].as_object().expect("paths").keys().collect();
    assert_eq!(paths, known.iter().map(|(path, _)| path).collect());
}

#[tokio::test]
async fn the_description_can_be_looked_at() {
    let (_site, node) = Node::fresh().await;
    for path in ["/swagger-ui", "/swagger-ui/", "/swagger-ui/index.html"] {
        let page = ask(&node, "get", path).await;
        assert_eq!(page.status(), StatusCode::OK, "{path}");
        assert!(page.headers()["content-type"].to_str().expect("ASCII").starts_with("text/html"));
        assert!(page.text().await.expect("text").contains("swagger-ui"));
    }
    let setup = ask(&node, "get", "/swagger-ui/swagger-initializer.js").await.text().await.expect("text");
    assert!(
        setup.contains("/openapi.json")
            && setup.contains("/api-docs/patients")
            && setup.contains("/api-docs/auth"),
        "{setup}"
    );
    assert_eq!(ask(&node, "get", "/swagger-ui/swagger-ui.css").await.status(), StatusCode::OK);
    let missing = ask(&node, "get", "/swagger-ui/../../etc/passwd").await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn operators_see_health_and_metrics() {
    let (_site, node) = Node::demo().await;
    let live: Value = ask(&node, "get", "/health/live").await.json().await.expect("JSON");
    assert_eq!(live, json!({"status": "live"}));
    let ready: Value = ask(&node, "get", "/health/ready").await.json().await.expect("JSON");
    assert_eq!(ready["status"], "ready");
    assert_eq!(ready["parts"]["http"]["status"], "ready");
    for (part, status) in ready["parts"].as_object().expect("parts") {
        let word = status["status"].as_str().expect("a word");
        assert!(word == "ready" || (word == "explained" && status["reason"].is_string()), "{part}: {status}");
    }

    let token = node.login().await;
    for n in 0..3 {
        node.get(&token, JOHN).await;
        ask(&node, "get", &format!("/nothing-{n}")).await;
    }
    let answer = ask(&node, "get", "/metrics").await;
    assert!(answer.headers()["content-type"].to_str().expect("ASCII").starts_with("text/plain"));
    let metrics = answer.text().await.expect("text");
    for line in [
        r#"hygeia_http_requests_total{method="GET",route="/api/patients/{id}",status="2xx"} 3"#,
        r#"hygeia_http_requests_total{method="OTHER",route="unmatched",status="4xx"} 3"#,
    ] {
        assert!(metrics.lines().any(|have| have == line), "{line}\n{metrics}");
    }
    assert!(metrics.contains("hygeia_http_request_duration_seconds"), "{metrics}");
    assert!(!metrics.contains("nothing-") && !metrics.contains("123e4567"), "{metrics}");
}
