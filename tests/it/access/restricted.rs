//! What restricted records, roles and the audit mean to searches, conditions, versions, histories and keys.

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::{Clinic, email};
use crate::harness::{Site, patient};
use crate::postgres::Postgres;
use hygeia::domain::access::Role;

const WHY: &str = "unconscious, allergies unknown";

impl Clinic {
    async fn with(
        &self,
        role: Role,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Response {
        let url = format!("{}{path}", self.node.http_url());
        let mut request = self.node.client().request(method, url).bearer_auth(&self.tokens[&role]);
        for (name, value) in headers {
            request = request.header(*name, value.as_bytes());
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        request.send().await.expect("an answer")
    }

    async fn get(&self, role: Role, path: &str, headers: &[(&str, &str)]) -> Response {
        self.with(role, Method::GET, path, headers, None).await
    }

    /// What the audit has of a patient, the newest first: action and outcome.
    async fn kept_of(&self, id: &str) -> Vec<String> {
        let rows = self.audit(&format!("patient={id}"), 100).await;
        let said = rows.iter().map(|row| format!("{} {} {}", row["role"], row["action"], row["outcome"]));
        said.map(|text| text.replace('"', "")).collect()
    }
}

async fn json_of(response: Response) -> Value {
    assert_eq!(response.status(), StatusCode::OK);
    response.json().await.expect("JSON")
}

/// Registered, changed, then marked: three versions.
async fn restricted(clinic: &Clinic, name: &str) -> String {
    let id = clinic.register(Role::FrontDesk, name).await;
    let path = format!("/api/patients/{id}");
    let mut form = patient(name);
    form["address"] = json!("3 Harbour Road");
    let changed = clinic.ask(Role::FrontDesk, Method::PUT, &path, Some(&form)).await;
    assert_eq!(changed.status(), StatusCode::OK);
    let marked = clinic.ask(Role::Clinician, Method::PUT, &format!("{path}/restriction"), None).await;
    assert_eq!(marked.status(), StatusCode::NO_CONTENT);
    id
}

async fn found_by_nobody(clinic: &Clinic) {
    let id = restricted(clinic, "hidden").await;
    let open = clinic.register(Role::FrontDesk, "hidden-not").await;
    for query in [
        "limit=1000",
        "limit=1000&sort=-created",
        "limit=1000&sort=name",
        "limit=1000&sort=-name",
        "limit=1000&sort=born",
        "limit=1000&sort=-registered",
        "limit=1000&bornAfter=1900-01-01",
        "limit=1000&registeredAfter=1900-01-01",
        "q=patient%20hidden",
        "q=patient-hidden",
        "q=patient",
        "email=patient-hidden@example.com",
    ] {
        let list = json_of(clinic.get(Role::Clinician, &format!("/api/patients?{query}"), &[]).await).await;
        let ids: Vec<&str> =
            list.as_array().expect("a page").iter().filter_map(|p| p["id"].as_str()).collect();
        assert!(!ids.contains(&&*id), "{query}");
        assert_eq!(ids.contains(&&*open), !query.starts_with("email"), "{query}: {ids:?}");
    }
    assert_eq!(
        clinic.kept_of(&id).await,
        [
            "CLINICIAN PATIENT_RESTRICT DONE",
            "FRONT_DESK PATIENT_UPDATE DONE",
            "FRONT_DESK PATIENT_REGISTER DONE"
        ],
        "no list has shown it"
    );
    let listed = clinic.audit(&format!("patient={open}&action=PATIENT_LIST&outcome=DONE"), 100).await;
    assert_eq!(listed.len(), 11, "each list that shows a record is an access to it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_search_finds_a_restricted_record() {
    found_by_nobody(&Clinic::open(Site::fresh().set_up()).await).await;
    let database = Postgres::shared_fast().create_database().await;
    let url = database.url().to_owned();
    let site = tokio::task::spawn_blocking(move || Site::on_postgres(&url)).await.expect("a site");
    found_by_nobody(&Clinic::open(site).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restricted_record_is_for_those_who_break_the_glass() {
    let clinic = Clinic::open(Site::fresh().set_up()).await;
    let id = clinic.register(Role::FrontDesk, "restricted").await;
    let (path, mark) = (format!("/api/patients/{id}"), format!("/api/patients/{id}/restriction"));
    assert_eq!(clinic.ask(Role::Clinician, Method::PUT, &mark, None).await.status(), StatusCode::NO_CONTENT);
    let read = async |role: Role, reason: Option<&str>| {
        let mut request = clinic.node.client().get(format!("{}{path}", clinic.node.http_url()));
        if let Some(reason) = reason {
            request = request.header("X-Break-Glass", reason);
        }
        request.bearer_auth(&clinic.tokens[&role]).send().await.expect("an answer")
    };
    let long = "x".repeat(501);
    for (role, reason) in [
        (Role::Clinician, None),
        (Role::Clinician, Some("  ")),
        (Role::Clinician, Some(&*long)),
        (Role::Admin, Some("I am an administrator")),
        (Role::FrontDesk, Some("let me")),
        (Role::Billing, Some("let me")),
    ] {
        let answer = read(role, reason).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{role:?} {reason:?}");
        assert!(!answer.text().await.expect("text").contains("Patient restricted"));
    }
    let shown = read(Role::Clinician, Some("unconscious, allergies unknown")).await;
    assert_eq!(shown.status(), StatusCode::OK);
    let shown: Value = shown.json().await.expect("JSON");
    assert_eq!((&shown["name"], &shown["restricted"]), (&json!("Patient restricted"), &json!(true)));
    let list = clinic.ask(Role::Clinician, Method::GET, "/api/patients?limit=1000", None).await;
    assert!(!list.text().await.expect("text").contains("Patient restricted"), "lists leave it out");
    let rows = clinic.audit(&format!("patient={id}"), 100).await;
    let reasons: Vec<_> = rows.iter().filter_map(|row| row["reason"].as_str()).collect();
    assert_eq!(reasons, ["unconscious, allergies unknown"]);
    let denied = rows.iter().filter(|row| row["outcome"] == "DENIED").count();
    assert_eq!((denied, rows.len()), (6, 9), "registered, restricted, shown; and the denials: {rows:?}");
    assert!(!clinic.node.log().contains("unconscious"));

    // Nobody opens it without a word, and what was done to the mark stands in the audit.
    for reason in ["", ".", "\u{200b}\u{2060}", "\u{3164}\u{3164}\u{3164}"] {
        for role in [Role::Admin, Role::Clinician] {
            let headers = [("X-Break-Glass", reason)];
            let refused = clinic.with(role, Method::DELETE, &mark, &headers, None).await;
            assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{role:?} {reason:?}");
        }
    }
    let why = [("X-Break-Glass", "marked by mistake")];
    let mark_off = clinic.with(Role::Admin, Method::DELETE, &mark, &why, None).await;
    assert_eq!(mark_off.status(), StatusCode::NO_CONTENT);
    assert_eq!(read(Role::FrontDesk, None).await.status(), StatusCode::OK);
    let denied = clinic.ask(Role::FrontDesk, Method::PUT, &mark, None).await;
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    let rows = clinic.audit(&format!("patient={id}&action=PATIENT_RESTRICT"), 100).await;
    let said = |row: &Value| (row["outcome"].clone(), row["restricted"].clone(), row["reason"].clone());
    let said: Vec<_> = rows.iter().map(said).collect();
    let (on, off, none) = (json!(true), json!(false), Value::Null);
    let expected =
        [(json!("DENIED"), on.clone(), none.clone()), (json!("DONE"), off.clone(), json!(why[0].1))];
    assert_eq!(said[..2], expected);
    assert_eq!(said[said.len() - 1], (json!("DONE"), on, none.clone()));
    assert_eq!(said[2..said.len() - 1], vec![(json!("DENIED"), off, none); 8]);
}

/// Whoever may not see a restricted record does not change it unseen either, and is shown it by no answer to a change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_a_restricted_record_is_refused_as_a_read_of_it_is() {
    let clinic = Clinic::open(Site::fresh().set_up()).await;
    let id = restricted(&clinic, "unseen").await;
    let path = format!("/api/patients/{id}");
    let (reason, merge) = (("X-Break-Glass", WHY), ("content-type", "application/merge-patch+json"));
    let json = ("content-type", "application/json");
    let mut form = patient("unseen");
    form["address"] = json!("4 Harbour Road");
    let (nothing, address) = (json!({}), json!({"address": "5 Harbour Road"}));
    let changes = [
        (Method::PATCH, merge, Some(&nothing)),
        (Method::PATCH, merge, Some(&address)),
        (Method::PUT, json, Some(&form)),
        (Method::DELETE, json, None),
    ];
    for (method, media_type, body) in &changes {
        for (role, headers) in [
            (Role::Admin, &[*media_type][..]),
            (Role::Admin, &[*media_type, reason]),
            (Role::FrontDesk, &[*media_type, reason]),
            (Role::Clinician, &[*media_type]),
            (Role::Clinician, &[*media_type, ("X-Break-Glass", " ")]),
        ] {
            let answer = clinic.with(role, method.clone(), &path, headers, *body).await;
            let said = format!("{role:?} {method} {headers:?}");
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{said}");
            assert!(!answer.headers().contains_key("etag"), "{said}");
            assert!(!answer.text().await.expect("text").contains("unseen"), "{said}");
        }
    }
    // Nothing has come of all that: the record is as it was, and each try is a row.
    let read = clinic.get(Role::Clinician, &path, &[reason]).await;
    assert_eq!(read.headers()["etag"], "\"3\"");
    assert_eq!(json_of(read).await["address"], "3 Harbour Road");
    let denied = clinic.audit(&format!("patient={id}&outcome=DENIED"), 100).await;
    assert_eq!(denied.len(), 4 * 5);

    // With a reason each is done, and the reason stands beside it.
    for (n, (method, media_type, body)) in changes.iter().enumerate() {
        let answer = clinic.with(Role::Clinician, method.clone(), &path, &[*media_type, reason], *body).await;
        assert!(answer.status().is_success(), "{method}: {}", answer.status());
        let expected = ["\"3\"", "\"4\"", "\"5\""].get(n).copied();
        let tag = answer.headers().get("etag").map(|tag| tag.to_str().expect("ASCII").to_owned());
        assert_eq!(tag.as_deref(), expected, "{method}");
    }
    let rows = clinic.audit(&format!("patient={id}&outcome=DONE"), 100).await;
    let with_reason =
        |action: &str| rows.iter().filter(|row| row["action"] == action && row["reason"] == WHY).count();
    assert_eq!((with_reason("PATIENT_UPDATE"), with_reason("PATIENT_DELETE")), (3, 1), "{rows:#?}");
    assert_eq!(with_reason("PATIENT_READ"), 1);
}

/// A record that was marked between a change and its repetition is shown again to those who break the glass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repetition_shows_a_record_that_was_marked_since_as_a_read_does() {
    let clinic = Clinic::open(Site::fresh().set_up()).await;
    for (role, name) in [(Role::Admin, "by-admin"), (Role::Clinician, "by-clinician")] {
        let keyed = [("content-type", "application/json"), ("Idempotency-Key", name)];
        let form = patient(name);
        let post = async |more: &[(&str, &str)]| {
            let headers = [&keyed[..], more].concat();
            clinic.with(role, Method::POST, "/api/patients", &headers, Some(&form)).await
        };
        let first = post(&[]).await;
        assert_eq!(first.status(), StatusCode::CREATED);
        let first: Value = first.json().await.expect("JSON");
        let id = first["id"].as_str().expect("an id").to_owned();
        let mark = format!("/api/patients/{id}/restriction");
        assert_eq!(clinic.ask(role, Method::PUT, &mark, None).await.status(), StatusCode::NO_CONTENT);
        let refused = post(&[]).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{role:?}");
        assert!(!refused.text().await.expect("text").contains(&format!("Patient {name}")));
        let with_reason = post(&[("X-Break-Glass", WHY)]).await;
        if role == Role::Admin {
            assert_eq!(with_reason.status(), StatusCode::FORBIDDEN);
            continue;
        }
        assert_eq!(with_reason.status(), StatusCode::CREATED);
        assert_eq!(with_reason.json::<Value>().await.expect("JSON"), first);
        let rows = clinic.audit(&format!("patient={id}&action=PATIENT_REGISTER"), 100).await;
        let kept: Vec<_> = rows.iter().map(|row| (&row["outcome"], row["reason"].as_str())).collect();
        let (done, denied) = (json!("DONE"), json!("DENIED"));
        assert_eq!(kept, [(&done, Some(WHY)), (&denied, None), (&done, None)]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_version_and_no_history_without_breaking_the_glass() {
    let clinic = Clinic::open(Site::fresh().set_up()).await;
    let id = restricted(&clinic, "past").await;
    let path = format!("/api/patients/{id}");
    let paths = ["?version=1", "?version=3", "?version=99", "/history", "/history?after=99"]
        .map(|rest| format!("{path}{rest}"));
    let broken = [("X-Break-Glass", WHY)];
    for path in &paths {
        for (role, headers) in [
            (Role::Clinician, &[][..]),
            (Role::Admin, &broken),
            (Role::FrontDesk, &broken),
            (Role::Billing, &broken),
        ] {
            let refused = clinic.get(role, path, headers).await;
            assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{role:?} {path}");
            assert!(!refused.text().await.expect("text").contains("Patient past"));
        }
        let expected = if path.ends_with("=99") { StatusCode::NOT_FOUND } else { StatusCode::OK };
        assert_eq!(clinic.get(Role::Clinician, path, &broken).await.status(), expected, "{path}");
    }
    // The version is not told either: neither by a 304 nor by a 412.
    for (header, tag) in [("If-None-Match", "\"3\""), ("If-None-Match", "*"), ("If-Match", "\"2\"")] {
        let refused = clinic.get(Role::Clinician, &path, &[(header, tag)]).await;
        assert_eq!(
            (refused.status(), refused.headers().get("etag")),
            (StatusCode::FORBIDDEN, None),
            "{header} {tag}"
        );
    }
    let same = clinic.get(Role::Clinician, &path, &[("If-None-Match", "\"3\""), broken[0]]).await;
    assert_eq!(same.status(), StatusCode::NOT_MODIFIED);
    let patch = json!({"address": "2 Harbour Road"});
    let merge = ("content-type", "application/merge-patch+json");
    let silent = ("X-Break-Glass", "");
    for (role, reason, tag, status) in [
        (Role::FrontDesk, broken[0], "\"3\"", StatusCode::FORBIDDEN),
        (Role::FrontDesk, broken[0], "\"1\"", StatusCode::FORBIDDEN),
        (Role::Clinician, silent, "\"1\"", StatusCode::FORBIDDEN),
        (Role::Clinician, broken[0], "\"1\"", StatusCode::PRECONDITION_FAILED),
        (Role::Clinician, broken[0], "\"3\"", StatusCode::OK),
    ] {
        let headers = [merge, reason, ("If-Match", tag)];
        let answer = clinic.with(role, Method::PATCH, &path, &headers, Some(&patch)).await;
        assert_eq!(answer.status(), status, "{role:?} {reason:?} {tag}");
    }
    // Each of them is a row.
    let kept = clinic.kept_of(&id).await;
    let count = |said: &str| kept.iter().filter(|row| *row == said).count();
    let read = count("CLINICIAN PATIENT_READ DENIED");
    assert_eq!(read, 3 + 3, "{kept:#?}");
    assert_eq!(count("CLINICIAN PATIENT_READ DONE"), 2 + 1, "two versions, and what has not changed");
    assert_eq!(count("CLINICIAN PATIENT_READ REFUSED"), 1);
    assert_eq!((count("CLINICIAN PATIENT_HISTORY DENIED"), count("CLINICIAN PATIENT_HISTORY DONE")), (2, 1));
    assert_eq!(count("CLINICIAN PATIENT_HISTORY REFUSED"), 1);
    for role in ["ADMIN", "FRONT_DESK", "BILLING"] {
        assert_eq!(count(&format!("{role} PATIENT_READ DENIED")), 3);
        assert_eq!(count(&format!("{role} PATIENT_HISTORY DENIED")), 2);
    }
    assert_eq!(count("FRONT_DESK PATIENT_UPDATE DENIED"), 2);
    assert_eq!((count("CLINICIAN PATIENT_UPDATE REFUSED"), count("CLINICIAN PATIENT_UPDATE DONE")), (1, 1));
    assert_eq!(count("CLINICIAN PATIENT_UPDATE DENIED"), 1);
    let reasons = clinic.audit(&format!("patient={id}"), 100).await;
    assert_eq!(reasons.iter().filter(|row| row["reason"] == WHY).count(), 6 + 1, "reads, and the change");

    // Its end does not open it.
    let ended = clinic.with(Role::Clinician, Method::DELETE, &path, &broken, None).await;
    assert_eq!(ended.status(), StatusCode::NO_CONTENT);
    for path in [format!("{path}?version=1"), format!("{path}/history")] {
        assert_eq!(clinic.get(Role::Clinician, &path, &[]).await.status(), StatusCode::FORBIDDEN, "{path}");
        assert_eq!(clinic.get(Role::Clinician, &path, &broken).await.status(), StatusCode::OK, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn billing_finds_names_alone() {
    let clinic = Clinic::open(Site::fresh().set_up()).await;
    let id = clinic.register(Role::FrontDesk, "billed").await;
    let shown = json!({"id": id, "name": "Patient billed"});
    for query in ["q=patient%20bil", "sort=name&limit=1000", "sort=-created&limit=1000"] {
        let list = json_of(clinic.get(Role::Billing, &format!("/api/patients?{query}"), &[]).await).await;
        let list = list.as_array().expect("a page");
        assert!(list.contains(&shown), "{query}");
        assert!(list.iter().all(|row| row.as_object().expect("an object").len() == 2), "{query}");
    }
    let version = clinic.get(Role::Billing, &format!("/api/patients/{id}?version=1"), &[]).await;
    assert_eq!(json_of(version).await, shown);
    let history = clinic.get(Role::Billing, &format!("/api/patients/{id}/history"), &[]).await;
    assert_eq!(history.status(), StatusCode::FORBIDDEN);
    assert_eq!(
        clinic.kept_of(&id).await,
        [
            "BILLING PATIENT_HISTORY DENIED",
            "BILLING PATIENT_READ DONE",
            "BILLING PATIENT_LIST DONE",
            "BILLING PATIENT_LIST DONE",
            "BILLING PATIENT_LIST DONE",
            "FRONT_DESK PATIENT_REGISTER DONE",
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_answered_again_is_an_access_of_its_own() {
    let clinic = Clinic::open(Site::fresh().set_up()).await;
    let headers = [("content-type", "application/json"), ("Idempotency-Key", "once")];
    let form = patient("again");
    let post =
        async || clinic.with(Role::FrontDesk, Method::POST, "/api/patients", &headers, Some(&form)).await;
    let first = post().await;
    assert_eq!(first.status(), StatusCode::CREATED);
    let first: Value = first.json().await.expect("JSON");
    let id = first["id"].as_str().expect("an id").to_owned();
    assert_eq!(clinic.kept_of(&id).await, ["FRONT_DESK PATIENT_REGISTER DONE"], "kept with its change");
    for n in 2..=3 {
        let again = post().await;
        assert_eq!(again.status(), StatusCode::CREATED);
        assert_eq!(again.json::<Value>().await.expect("JSON"), first);
        assert_eq!(clinic.kept_of(&id).await, vec!["FRONT_DESK PATIENT_REGISTER DONE"; n]);
    }
    let path = format!("/api/patients/{id}");
    let keyed = [("content-type", "application/merge-patch+json"), ("Idempotency-Key", "change")];
    let patch = async |role: Role| {
        let patch = json!({"address": "2 Harbour Road"});
        clinic.with(role, Method::PATCH, &path, &keyed, Some(&patch)).await.status()
    };
    assert_eq!(
        (patch(Role::FrontDesk).await, patch(Role::FrontDesk).await),
        (StatusCode::OK, StatusCode::OK)
    );
    assert_eq!(clinic.kept_of(&id).await[..2], ["FRONT_DESK PATIENT_UPDATE DONE"; 2]);

    // A record that was marked meanwhile is not shown again to those who may not change it any more.
    let mark = clinic.ask(Role::Clinician, Method::PUT, &format!("{path}/restriction"), None).await;
    assert_eq!(mark.status(), StatusCode::NO_CONTENT);
    assert_eq!(
        (post().await.status(), patch(Role::FrontDesk).await),
        (StatusCode::FORBIDDEN, StatusCode::FORBIDDEN)
    );
    assert_eq!(
        clinic.kept_of(&id).await[..2],
        ["FRONT_DESK PATIENT_UPDATE DENIED", "FRONT_DESK PATIENT_REGISTER DENIED"]
    );
    let by = clinic.audit(&format!("subject={}", email(Role::FrontDesk)), 100).await;
    assert_eq!(by.len(), 7, "each answer has one row: {by:?}");
}
