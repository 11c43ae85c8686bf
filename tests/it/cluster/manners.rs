//! Keys, conditions and cursors over two fronts and two nodes that hold patients, one of which is killed.

use futures::future::join_all;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::fleet::{Fleet, holders};
use crate::harness::{Node, eventually, patient};

async fn ask(
    front: &Node,
    token: &str,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Response {
    let mut request =
        front.client().request(method, format!("{}{path}", front.http_url())).bearer_auth(token);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.to_string()).send().await.expect("an answer")
}

/// Status, tag and body.
async fn whole(response: Response) -> (StatusCode, Option<String>, Value) {
    let tag = response.headers().get("etag").map(|tag| tag.to_str().expect("ASCII").to_owned());
    (response.status(), tag, response.json().await.expect("JSON"))
}

#[tokio::test]
async fn keys_conditions_and_cursors_hold_over_all_nodes() {
    let nodes = [
        ("front-1", "front"),
        ("front-2", "front"),
        ("patient-1", "patient"),
        ("patient-2", "patient"),
        ("rest", "billing,bridge,analytics"),
    ];
    let fleet = Fleet::of(&nodes).await;
    let [one, two, patient_1, _patient_2, _rest] = fleet.start_all(nodes.map(|(name, _)| name)).await;
    let token = one.login().await;
    eventually("both hold shards", || async { (holders(&one, &token).await.len() == 2).then_some(()) }).await;
    let fronts = [&one, &two];
    let json_type = ("content-type", "application/json");

    // Every key of twelve, sent to both fronts twice at the same time.
    let people: Vec<Value> = (0..12).map(|n| patient(format!("over-{n}"))).collect();
    let post = |nth: usize, front: usize| {
        let (key, person, token) = (format!("key-{nth}"), &people[nth], &token);
        let front = fronts[front % 2];
        async move {
            let headers = [json_type, ("idempotency-key", key.as_str())];
            whole(ask(front, token, Method::POST, "/api/patients", &headers, person).await).await
        }
    };
    let mut first = Vec::new();
    for nth in 0..people.len() {
        let answers = join_all((0..4).map(|n| post(nth, n))).await;
        assert_eq!((answers[0].0, answers[0].1.as_deref()), (StatusCode::CREATED, Some("\"1\"")));
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
        first.push(answers[0].clone());
    }

    // Of those who saw the same version, through whichever front, one is first.
    let path = format!("/api/patients/{}", first[0].2["id"].as_str().expect("an id"));
    for version in 1..5 {
        let tag = format!("\"{version}\"");
        let tries = (0..8).map(|n| {
            let (front, token, path, tag) = (fronts[n % 2], &token, &path, &tag);
            let mut change = people[0].clone();
            change["address"] = json!(format!("{version}-{n} Road"));
            async move {
                let headers = [json_type, ("if-match", tag.as_str())];
                ask(front, token, Method::PUT, path, &headers, &change).await.status()
            }
        });
        let statuses = join_all(tries).await;
        let of = |status| statuses.iter().filter(|s| **s == status).count();
        assert_eq!((of(StatusCode::OK), of(StatusCode::PRECONDITION_FAILED)), (1, 7), "{statuses:?}");
    }
    let patch_type = ("content-type", "application/merge-patch+json");
    let keyed = [patch_type, ("if-match", "\"5\""), ("idempotency-key", "patch")];
    let patch = json!({"address": "over the nodes"});
    let patched = whole(ask(&one, &token, Method::PATCH, &path, &keyed, &patch).await).await;
    assert_eq!((patched.0, patched.1.as_deref()), (StatusCode::OK, Some("\"6\"")));

    // What was done by a node that is dead is answered by the next.
    patient_1.kill().await;
    for (nth, answer) in first.iter().enumerate() {
        assert_eq!(post(nth, nth).await, *answer, "as it was then");
    }
    assert_eq!(whole(ask(&two, &token, Method::PATCH, &path, &keyed, &patch).await).await, patched);

    // A list begun at one front goes on at the other.
    let (mut names, mut next) = (Vec::new(), Some("/api/patients?q=patient%20over&limit=5".to_owned()));
    for turn in 0.. {
        let Some(path) = next else { break };
        let response = fronts[turn % 2].get(&token, &path).await;
        assert_eq!(response.status(), StatusCode::OK);
        next = response.headers().get("link").map(|link| {
            let link = link.to_str().expect("ASCII");
            link.strip_prefix('<').and_then(|l| l.strip_suffix(">; rel=\"next\"")).expect("a link").to_owned()
        });
        let page: Value = response.json().await.expect("JSON");
        names.extend(
            page.as_array().expect("a page").iter().map(|p| p["name"].as_str().expect("a name").to_owned()),
        );
    }
    let mut expected: Vec<String> = (0..12).map(|n| format!("Patient over-{n}")).collect();
    expected.sort();
    assert_eq!(names, expected);
    let history = two.get_json(&token, &format!("{path}/history")).await;
    assert_eq!(history.as_array().expect("a list").len(), 6);
}
