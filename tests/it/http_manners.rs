//! The manners of the patients' API, against a node as it is run: conditions, patches, keys, lists, histories.

use futures::future::join_all;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Node, Site, patient};

struct Api<'a> {
    node: &'a Node,
    token: String,
}

impl<'a> Api<'a> {
    async fn of(node: &'a Node) -> Self {
        Api { node, token: node.login().await }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/api/patients{path}", self.node.http_url());
        self.node.client().request(method, url).bearer_auth(&self.token)
    }

    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.expect("an answer")
    }

    async fn patch(&self, id: &str, patch: &Value, headers: &[(&str, &str)]) -> Response {
        let mut request = self.request(Method::PATCH, &format!("/{id}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = patch.to_string();
        request
            .header("content-type", "application/merge-patch+json")
            .body(body)
            .send()
            .await
            .expect("an answer")
    }

    async fn post(&self, patient: &Value, key: &str) -> Response {
        let request = self.request(Method::POST, "").header("idempotency-key", key);
        request.json(patient).send().await.expect("an answer")
    }

    async fn put_if(&self, id: &str, patient: &Value, tag: &str) -> Response {
        let request = self.request(Method::PUT, &format!("/{id}")).header("if-match", tag);
        request.json(patient).send().await.expect("an answer")
    }

    /// Registers a patient; its id.
    async fn registered(&self, patient: &Value) -> String {
        let created = self.request(Method::POST, "").json(patient).send().await.expect("an answer");
        assert_eq!(created.status(), StatusCode::CREATED);
        body(created).await["id"].as_str().expect("an id").to_owned()
    }

    /// The names on all pages from `path` on, and how many pages there are.
    async fn names(&self, path: &str) -> (Vec<String>, usize) {
        let (mut names, mut pages, mut next) = (Vec::new(), 0, Some(path.to_owned()));
        while let Some(path) = next {
            let response = self.get(&path).await;
            assert_eq!(response.status(), StatusCode::OK, "{path}");
            next = response.headers().get("link").map(|link| {
                let link = link.to_str().expect("ASCII");
                let path =
                    link.strip_prefix("</api/patients").and_then(|rest| rest.strip_suffix(">; rel=\"next\""));
                path.unwrap_or_else(|| panic!("no link: {link}")).to_owned()
            });
            let page = body(response).await;
            names.extend(
                page.as_array()
                    .expect("a page")
                    .iter()
                    .map(|p| p["name"].as_str().expect("a name").to_owned()),
            );
            pages += 1;
            assert!(pages < 1000, "the links lead in a circle");
        }
        (names, pages)
    }
}

async fn body(response: Response) -> Value {
    response.json().await.expect("JSON")
}

fn tag(response: &Response) -> &str {
    response.headers()["etag"].to_str().expect("ASCII")
}

async fn problem(response: Response, status: u16, code: &str) -> Value {
    assert_eq!(response.status().as_u16(), status);
    let problem = body(response).await;
    assert_eq!(problem["code"], json!(code), "{problem}");
    problem
}

#[tokio::test]
async fn a_condition_is_judged_where_the_record_is_written() {
    let (_site, node) = Node::fresh().await;
    let api = Api::of(&node).await;
    let ada = patient("conditional");
    let created = api.request(Method::POST, "").json(&ada).send().await.expect("an answer");
    assert_eq!(tag(&created), "\"1\"");
    let id = body(created).await["id"].as_str().expect("an id").to_owned();

    let path = format!("/{id}");
    let unless = |tags: &'static str| api.request(Method::GET, &path).header("if-none-match", tags);
    for known in ["\"1\"", "W/\"1\"", "\"7\", \"1\"", "*"] {
        let same = unless(known).send().await.expect("an answer");
        assert_eq!((same.status(), tag(&same)), (StatusCode::NOT_MODIFIED, "\"1\""), "{known}");
        assert_eq!(same.text().await.expect("text"), "");
    }
    let other = unless("\"2\"").send().await.expect("an answer");
    assert_eq!((other.status(), tag(&other)), (StatusCode::OK, "\"1\""));

    let moved = |to: &str| {
        let mut moved = ada.clone();
        moved["address"] = json!(format!("{to} Road"));
        moved
    };
    assert_eq!(tag(&api.put_if(&id, &moved("2"), "\"1\"").await), "\"2\"");
    for stale in ["\"1\"", "W/\"2\"", "\"x\"", "\"1\", \"3\""] {
        problem(api.put_if(&id, &ada, stale).await, 412, "PRECONDITION_FAILED").await;
        problem(api.patch(&id, &json!({}), &[("if-match", stale)]).await, 412, "PRECONDITION_FAILED").await;
        let deleted = api.request(Method::DELETE, &path).header("if-match", stale).send().await;
        problem(deleted.expect("an answer"), 412, "PRECONDITION_FAILED").await;
    }
    for bad in ["2", "\"2", "*, \"2\""] {
        let said = problem(api.put_if(&id, &ada, bad).await, 400, "INVALID").await;
        assert!(said["errors"]["If-Match"].is_string(), "{said}");
    }
    assert_eq!(tag(&api.put_if(&id, &moved("3"), "\"1\", \"2\"").await), "\"3\"");
    assert_eq!(tag(&api.put_if(&id, &moved("4"), "*").await), "\"4\"");
    // What is not there comes before what it should be like.
    let nobody = uuid::Uuid::now_v7().to_string();
    problem(api.put_if(&nobody, &ada, "\"1\"").await, 404, "NOT_FOUND").await;

    // Of many who saw the same version one is first, in every round.
    let (api, id) = (&api, &*id);
    for version in 4..9 {
        let seen = format!("\"{version}\"");
        let seen = &seen;
        let tries = (0..12).map(|n| {
            let form = moved(&format!("{version}-{n}"));
            async move { api.put_if(id, &form, seen).await.status() }
        });
        let statuses = join_all(tries).await;
        let of = |status| statuses.iter().filter(|s| **s == status).count();
        assert_eq!((of(StatusCode::OK), of(StatusCode::PRECONDITION_FAILED)), (1, 11), "{statuses:?}");
    }
    let deleted =
        api.request(Method::DELETE, &path).header("if-match", "\"9\"").send().await.expect("an answer");
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_patch_changes_what_it_names() {
    let (_site, node) = Node::fresh().await;
    let api = Api::of(&node).await;
    let mut expected = patient("patched");
    let id = api.registered(&expected).await;
    let patched = api.patch(&id, &json!({"address": "2 Other Road", "dateOfBirth": "1990-02-03"}), &[]).await;
    assert_eq!((patched.status(), tag(&patched)), (StatusCode::OK, "\"2\""));
    expected["address"] = json!("2 Other Road");
    expected["dateOfBirth"] = json!("1990-02-03");
    expected["id"] = json!(id);
    expected["version"] = json!(2);
    assert_eq!(body(patched).await, expected);

    let said = problem(api.patch(&id, &json!({"name": null, "email": "x"}), &[]).await, 400, "INVALID").await;
    assert_eq!(
        said["errors"],
        json!({"name": "Cannot be null: leave it out to keep it as it is", "email": "Email should be valid"})
    );
    let said = problem(api.patch(&id, &json!({"version": 3}), &[]).await, 400, "INVALID").await;
    assert_eq!(said["errors"], json!({"version": "Unknown field"}));
    for media_type in ["application/json", "application/json-patch+json"] {
        let request = api.request(Method::PATCH, &format!("/{id}")).header("content-type", media_type);
        let refused = request.body("{}").send().await.expect("an answer");
        assert_eq!(refused.headers()["accept-patch"], "application/merge-patch+json");
        problem(refused, 415, "UNSUPPORTED_MEDIA_TYPE").await;
    }
    let taken = patient("taken");
    api.registered(&taken).await;
    problem(api.patch(&id, &json!({"email": taken["email"]}), &[]).await, 409, "ALREADY_EXISTS").await;
    problem(api.patch(&uuid::Uuid::now_v7().to_string(), &json!({}), &[]).await, 404, "NOT_FOUND").await;

    // Changes of different fields at the same time do not undo each other.
    for round in 0..5 {
        let (name, address) = (format!("Name {round}"), format!("{round} New Road"));
        let (one, other) = (json!({"name": name}), json!({"address": address}));
        let both = tokio::join!(api.patch(&id, &one, &[]), api.patch(&id, &other, &[]));
        assert_eq!((both.0.status(), both.1.status()), (StatusCode::OK, StatusCode::OK));
        let now = body(api.get(&format!("/{id}")).await).await;
        assert_eq!((&now["name"], &now["address"]), (&json!(name), &json!(address)));
    }
}

#[tokio::test]
async fn what_changes_nothing_makes_no_version() {
    let (_site, node) = Node::fresh().await;
    let api = Api::of(&node).await;
    let form = patient("unchanged");
    let id = api.registered(&form).await;
    let record = body(api.get(&format!("/{id}")).await).await;
    let keyed = [("idempotency-key", "nothing")];
    let restriction = |method: Method| api.request(method, &format!("/{id}/restriction")).send();
    for round in 0..2 {
        for answer in [
            api.patch(&id, &json!({}), &[]).await,
            api.patch(&id, &json!({}), &keyed).await,
            api.patch(&id, &json!({"name": form["name"], "email": form["email"]}), &[("if-match", "\"1\"")])
                .await,
            api.put_if(&id, &form, "*").await,
        ] {
            assert_eq!((answer.status(), tag(&answer)), (StatusCode::OK, "\"1\""), "round {round}");
            assert_eq!(body(answer).await, record);
        }
        problem(api.patch(&id, &json!({}), &[("if-match", "\"2\"")]).await, 412, "PRECONDITION_FAILED").await;
        let answer = restriction(Method::DELETE).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    }
    let history = body(api.get(&format!("/{id}/history")).await).await;
    assert_eq!(history.as_array().map(Vec::len), Some(1), "no event either: {history}");
    // What changed nothing under a key left nothing to be known by: the key is free for another request.
    let moved = api.patch(&id, &json!({"address": "2 Road"}), &keyed).await;
    assert_eq!((moved.status(), tag(&moved)), (StatusCode::OK, "\"2\""));
    for _ in 0..2 {
        assert_eq!(restriction(Method::PUT).await.expect("an answer").status(), StatusCode::NO_CONTENT);
    }
    problem(restriction(Method::DELETE).await.expect("an answer"), 403, "FORBIDDEN").await;
    let opened = api.request(Method::DELETE, &format!("/{id}/restriction"));
    let opened = opened.header("X-Break-Glass", "marked by mistake").send().await.expect("an answer");
    assert_eq!(opened.status(), StatusCode::NO_CONTENT);
    let answer = api.get(&format!("/{id}")).await;
    assert_eq!(tag(&answer), "\"4\"", "changed, restricted once, opened");
}

/// Status, Location and body.
async fn whole(response: Response) -> (StatusCode, Option<String>, Value) {
    let location = response.headers().get("location").map(|at| at.to_str().expect("ASCII").to_owned());
    (response.status(), location, body(response).await)
}

#[tokio::test]
async fn what_is_repeated_under_its_key_acts_once_and_is_answered_as_before() {
    let site = Site::fresh();
    let node = site.start().await;
    let api = Api::of(&node).await;
    let ada = patient("keyed");
    let first = whole(api.post(&ada, "\"key-1\"").await).await;
    assert_eq!(first.0, StatusCode::CREATED);
    assert_eq!(whole(api.post(&ada, "key-1").await).await, first, "with quotes or without");
    let id = first.2["id"].as_str().expect("an id").to_owned();
    let mut other = ada.clone();
    other["address"] = json!("elsewhere");
    problem(api.post(&other, "key-1").await, 422, "IDEMPOTENCY_KEY_REUSED").await;
    problem(api.post(&other, "key-2").await, 409, "ALREADY_EXISTS").await;
    // What was refused is not remembered: the key is free for what is right.
    assert_eq!(api.post(&patient("key-2"), "key-2").await.status(), StatusCode::CREATED);

    let patch = json!({"address": "3 New Road"});
    let keyed = [("idempotency-key", "key-1"), ("if-match", "\"1\"")];
    let patched = whole(api.patch(&id, &patch, &keyed).await).await;
    assert_eq!((patched.0, &patched.2["version"]), (StatusCode::OK, &json!(2)));
    assert_eq!(api.put_if(&id, &ada, "*").await.status(), StatusCode::OK);
    // The condition held then; the answer is that of then.
    assert_eq!(whole(api.patch(&id, &patch, &keyed).await).await, patched);
    assert_eq!(whole(api.post(&ada, "key-1").await).await, first, "as it was, not as it is");
    let reused = api.patch(&id, &json!({"address": "4 New Road"}), &keyed).await;
    problem(reused, 422, "IDEMPOTENCY_KEY_REUSED").await;
    assert_eq!(body(api.get(&format!("/{id}")).await).await["version"], json!(3));
    for bad in ["", "two words", "\"open"] {
        let said = problem(api.post(&ada, bad).await, 400, "INVALID").await;
        assert!(said["errors"]["Idempotency-Key"].is_string(), "{said}");
    }

    // Twins.
    let twin = patient("twin");
    let answers = join_all((0..16).map(|_| async { whole(api.post(&twin, "twins").await).await })).await;
    assert_eq!(answers[0].0, StatusCode::CREATED);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");

    // A crash in between.
    let token = api.token.clone();
    node.kill().await;
    let node = site.start().await;
    let api = Api { node: &node, token };
    assert_eq!(whole(api.post(&ada, "key-1").await).await, first);
    assert_eq!(whole(api.post(&twin, "twins").await).await, answers[0]);
    assert_eq!(whole(api.patch(&id, &patch, &keyed).await).await, patched);
    let deleted = api.request(Method::DELETE, &format!("/{id}")).send().await.expect("an answer");
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    assert_eq!(whole(api.post(&ada, "key-1").await).await, first);
}

#[tokio::test]
async fn lists_are_searched_and_sorted() {
    let (_site, node) = Node::fresh().await;
    let api = Api::of(&node).await;
    for (name, email, born, registered) in [
        ("Quentin \u{c9}mile", "q1@example.com", "1901-01-01", "2099-01-03"),
        ("quentin alpha", "q2@example.com", "1901-01-02", "2099-01-02"),
        ("Zelda", "QUENTIN.z@example.com", "1901-01-03", "2099-01-01"),
        ("Quentin Alpha", "q4@example.com", "1901-01-03", "2099-01-04"),
    ] {
        let one = json!({"name": name, "email": email, "address": "x", "dateOfBirth": born, "registeredDate": registered});
        api.registered(&one).await;
    }
    for (query, found) in [
        ("q=QUENTIN", &["quentin alpha", "Quentin Alpha", "Quentin \u{c9}mile", "Zelda"][..]),
        ("q=quentin%20e%CC%81", &["Quentin \u{c9}mile"]),
        ("q=q2%40", &["quentin alpha"]),
        ("q=nobody%20at%20all", &[]),
        ("email=quentin.Z%40example.com", &["Zelda"]),
        ("email=quentin", &[]),
        ("bornBefore=1901-01-03", &["Quentin \u{c9}mile", "quentin alpha"]),
        (
            "bornAfter=1901-01-01&bornBefore=1901-01-04&sort=-born",
            &["Quentin Alpha", "Zelda", "quentin alpha"],
        ),
        ("registeredAfter=2099-01-01", &["quentin alpha", "Quentin \u{c9}mile", "Quentin Alpha"]),
        (
            "registeredAfter=2099-01-01&sort=-registered",
            &["Quentin Alpha", "Quentin \u{c9}mile", "quentin alpha"],
        ),
    ] {
        let (names, _) = api.names(&format!("?{query}")).await;
        let mut sorted = (names.clone(), found.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        if query.contains("sort=-born") {
            // Two of one day: their ids decide, which are drawn.
            sorted.0[..2].sort();
            sorted.1[..2].sort();
        }
        assert_eq!(sorted.0, sorted.1, "{query}");
        let (by_one, pages) = api.names(&format!("?{query}&limit=1")).await;
        assert_eq!(by_one, names, "{query}");
        assert!(pages >= names.len().max(1), "{query}");
    }
    let (by_name, _) = api.names("?sort=name&limit=3").await;
    let (mut backwards, _) = api.names("?sort=-name&limit=4").await;
    backwards.reverse();
    assert_eq!(by_name, backwards);
    assert_eq!(by_name.len(), api.names("").await.0.len());

    for (query, field) in [
        ("q=a&bornAfter=2000-01-01", "q"),
        ("q=a&sort=-born", "sort"),
        ("bornafter=2000-01-01", "bornafter"),
        ("bornAfter=2000-13-01", "bornAfter"),
    ] {
        let said = problem(api.get(&format!("?{query}")).await, 400, "INVALID").await;
        assert!(said["errors"][field].is_string(), "{query}: {said}");
    }
    let first = api.get("?sort=name&limit=1").await;
    let link = first.headers()["link"].to_str().expect("ASCII").to_owned();
    let cursor = link.split_once("cursor=").and_then(|(_, rest)| rest.split_once('>')).expect("a cursor").0;
    assert_eq!(api.get(&format!("?sort=name&limit=2&cursor={cursor}")).await.status(), StatusCode::OK);
    for elsewhere in ["", "sort=-name", "sort=born", "q=a"] {
        let said = problem(
            api.get(&format!("?{elsewhere}&cursor={cursor}").replace("?&", "?")).await,
            400,
            "INVALID",
        )
        .await;
        assert!(said["errors"]["cursor"].is_string(), "{elsewhere}: {said}");
    }
}

#[tokio::test]
async fn a_record_tells_how_it_came_to_be() {
    let (_site, node) = Node::fresh().await;
    let api = Api::of(&node).await;
    let first = patient("remembered");
    let id = api.registered(&first).await;
    for n in 2..=5 {
        let address = json!({"address": format!("{n} Road")});
        assert_eq!(api.patch(&id, &address, &[]).await.status(), StatusCode::OK);
    }
    let deleted = api.request(Method::DELETE, &format!("/{id}")).send().await.expect("an answer");
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);

    let history = body(api.get(&format!("/{id}/history")).await).await;
    let entries = history.as_array().expect("a list");
    let versions: Vec<_> = entries.iter().map(|e| e["version"].as_i64().expect("a number")).collect();
    assert_eq!(versions, [1, 2, 3, 4, 5, 6]);
    assert_eq!(entries[0]["type"], json!("PATIENT_CREATED"));
    assert_eq!(entries[0]["changes"]["name"], json!({"from": null, "to": first["name"]}));
    assert_eq!(entries[1]["changes"], json!({"address": {"from": first["address"], "to": "2 Road"}}));
    assert_eq!(entries[5]["type"], json!("PATIENT_DELETED"));
    for entry in entries {
        assert_eq!(entry["by"], json!(crate::harness::USER));
        assert!(entry["at"].as_str().is_some_and(|at| at.ends_with('Z')));
    }
    let mut paged = Vec::new();
    let mut next = Some(format!("/{id}/history?limit=2"));
    while let Some(path) = next {
        let response = api.get(&path).await;
        next = response.headers().get("link").map(|link| {
            let link = link.to_str().expect("ASCII");
            link.strip_prefix("</api/patients")
                .and_then(|l| l.strip_suffix(">; rel=\"next\""))
                .expect("a link")
                .to_owned()
        });
        paged.extend(body(response).await.as_array().expect("a page").clone());
    }
    assert_eq!(&paged, entries);

    let third = api.get(&format!("/{id}?version=3")).await;
    assert_eq!((third.status(), tag(&third)), (StatusCode::OK, "\"3\""));
    assert_eq!(body(third).await["address"], json!("3 Road"));
    problem(api.get(&format!("/{id}")).await, 404, "NOT_FOUND").await;
    for (version, status) in [("6", 404), ("7", 404), ("0", 400), ("x", 400), ("1&version=2", 400)] {
        let answer = api.get(&format!("/{id}?version={version}")).await;
        assert_eq!(answer.status().as_u16(), status, "{version}");
    }
    let nobody = uuid::Uuid::now_v7();
    problem(api.get(&format!("/{nobody}/history")).await, 404, "NOT_FOUND").await;
    problem(api.get("/x/history").await, 400, "INVALID").await;
    problem(api.get(&format!("/{id}/history?limit=0")).await, 400, "INVALID").await;
}

#[tokio::test]
async fn text_is_taken_with_care() {
    let (_site, node) = Node::fresh().await;
    let api = Api::of(&node).await;
    let mut zoe = patient("unicode");
    zoe["name"] = json!("Zoe\u{308} \u{5d0}\u{5d1}");
    let id = api.registered(&zoe).await;
    assert_eq!(body(api.get(&format!("/{id}")).await).await["name"], json!("Zo\u{eb} \u{5d0}\u{5d1}"));
    for (field, value) in [
        ("name", "Ada\u{202e}ecalevoL"),
        ("name", "a\u{0}b"),
        ("name", "a\u{ffff}b"),
        ("email", "ada\u{200f}@example.com"),
        ("address", "a\u{0}b"),
    ] {
        let said = problem(api.patch(&id, &json!({field: value}), &[]).await, 400, "INVALID").await;
        assert!(said["errors"][field].is_string(), "{said}");
    }
    let long = format!("{}@example.com", "x".repeat(60_000));
    let said = problem(api.patch(&id, &json!({"email": long}), &[]).await, 400, "INVALID").await;
    assert_eq!(said["errors"]["email"], json!("Email cannot exceed 254 bytes"));
    for text in [
        r#"{"name": "Ada", "name": "Bob"}"#,
        r#"{"name": "\ud800"}"#,
        r#"{"name": 1e999}"#,
        &format!("{{\"name\": {}1{}}}", "[".repeat(20_000), "]".repeat(20_000)),
        &format!("{{\"x\": {}1{}}}", "[".repeat(20), "]".repeat(20)),
    ] {
        let request = api.request(Method::PATCH, &format!("/{id}"));
        let request = request.header("content-type", "application/merge-patch+json").body(text.to_owned());
        problem(request.send().await.expect("an answer"), 400, "INVALID").await;
    }
    assert_eq!(body(api.get(&format!("/{id}")).await).await["version"], json!(1));
}
