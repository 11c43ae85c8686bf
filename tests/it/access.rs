//! Who may what, and what the access audit keeps of it, against nodes as they are run.

mod archive;
mod cancelled;
mod details;
mod restricted;
mod table;
mod tampered;
mod walk;

use std::collections::{BTreeSet, HashMap};

use hygeia::domain::access::{Action, Role};
use hygeia::proto::BillingRequest;
use hygeia::proto::billing_service_client::BillingServiceClient;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, Executor};
use tonic::Code;
use uuid::Uuid;

use crate::harness::{Node, PASSWORD, Site, eventually, patient};
use crate::postgres::{Durability, Postgres, Stop};

/// A node with a user of each role, and a token for each of them.
struct Clinic {
    site: Site,
    node: Node,
    tokens: HashMap<Role, String>,
}

fn email(role: Role) -> String {
    format!("{}@clinic.example", role.as_str().to_lowercase())
}

impl Clinic {
    async fn open(site: Site) -> Self {
        let site = tokio::task::spawn_blocking(move || {
            for role in Role::ALL {
                site.run(&["user", "add", &email(*role), "--role", role.as_str()], PASSWORD);
            }
            site
        });
        let site = site.await.expect("users are made");
        let node = site.start().await;
        let mut tokens = HashMap::new();
        for role in Role::ALL {
            tokens.insert(*role, login(&node, &email(*role), PASSWORD).await.expect("a token"));
        }
        Clinic { site, node, tokens }
    }

    async fn ask(&self, role: Role, method: Method, path: &str, body: Option<&Value>) -> Response {
        let url = format!("{}{path}", self.node.http_url());
        let media_type =
            if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let mut request = self.node.client().request(method, url).bearer_auth(&self.tokens[&role]);
        if let Some(body) = body {
            request = request.header("content-type", media_type).body(body.to_string());
        }
        request.send().await.expect("an answer")
    }

    async fn register(&self, role: Role, n: &str) -> String {
        let answer = self.ask(role, Method::POST, "/api/patients", Some(&patient(n))).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let body: Value = answer.json().await.expect("JSON");
        body["id"].as_str().expect("an id").to_owned()
    }

    /// All accesses that fit `query`, over as many pages of `limit` as there are.
    async fn audit(&self, query: &str, limit: usize) -> Vec<Value> {
        let mut found = Vec::new();
        let mut next = Some(format!("/api/audit?{query}&limit={limit}"));
        while let Some(path) = next {
            let answer = self.ask(Role::Auditor, Method::GET, &path, None).await;
            assert_eq!(answer.status(), StatusCode::OK, "{path}");
            let link = answer.headers().get("link").map(|link| link.to_str().expect("ASCII").to_owned());
            next = link.map(|link| link[1..link.find('>').expect("a link")].to_owned());
            let page: Vec<Value> = answer.json().await.expect("JSON");
            assert!(page.len() <= limit);
            found.extend(page);
        }
        found
    }
}

async fn login(node: &Node, email: &str, password: &str) -> Option<String> {
    let body = json!({"email": email, "password": password});
    // A machine that is too busy answers too late; that is no answer.
    let answer = eventually("login is answered", || async {
        let answer = node.client().post(format!("{}/auth/login", node.http_url())).json(&body).send().await;
        let answer = answer.expect("login is answered");
        (!answer.status().is_server_error()).then_some(answer)
    })
    .await;
    let status = answer.status();
    let body: Value = answer.json().await.ok()?;
    (status == StatusCode::OK).then(|| body["token"].as_str().expect("a token").to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn billing_is_shown_names_alone() {
    let clinic = Clinic::open(Site::fresh().set_up()).await;
    let id = clinic.register(Role::FrontDesk, "named").await;
    let shown = json!({"id": id, "name": "Patient named"});
    let one = clinic.ask(Role::Billing, Method::GET, &format!("/api/patients/{id}"), None).await;
    assert_eq!(one.json::<Value>().await.expect("JSON"), shown);
    let list = clinic.ask(Role::Billing, Method::GET, "/api/patients?limit=1000", None).await;
    let list: Vec<Value> = list.json().await.expect("JSON");
    assert!(list.contains(&shown) && list.iter().all(|row| row.as_object().expect("an object").len() == 2));
}

/// As many rows as accesses, for each kind of them, on both databases; and pages of any size show the same.
async fn the_audit_counts(clinic: &Clinic) {
    let patients: Vec<String> = {
        let registered =
            (0..20).map(|n| async move { clinic.register(Role::FrontDesk, &format!("c{n}")).await });
        futures::future::join_all(registered).await
    };
    let reads = (0..100).map(|n| {
        let path = format!("/api/patients/{}", patients[n % patients.len()]);
        async move { clinic.ask(Role::Clinician, Method::GET, &path, None).await.status() }
    });
    assert!(futures::future::join_all(reads).await.iter().all(|status| *status == StatusCode::OK));
    let (first, path) = (&patients[0], format!("/api/patients/{}", patients[0]));
    let changed = clinic.ask(Role::Clinician, Method::PUT, &path, Some(&patient("changed"))).await;
    assert_eq!(changed.status(), StatusCode::OK);
    let taken = clinic.ask(Role::FrontDesk, Method::POST, "/api/patients", Some(&patient("c1"))).await;
    assert_eq!(taken.status(), StatusCode::CONFLICT);
    let invalid = clinic.ask(Role::FrontDesk, Method::POST, "/api/patients", Some(&json!({}))).await;
    assert_eq!(invalid.status(), StatusCode::BAD_REQUEST);
    let listed = clinic.ask(Role::Clinician, Method::GET, "/api/patients?limit=1000", None).await;
    let listed = listed.json::<Vec<Value>>().await.expect("JSON").len();
    assert_eq!(
        clinic.ask(Role::FrontDesk, Method::DELETE, &path, None).await.status(),
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        clinic.ask(Role::Clinician, Method::DELETE, &path, None).await.status(),
        StatusCode::NO_CONTENT
    );
    let gone = clinic.ask(Role::Clinician, Method::GET, &path, None).await;
    assert_eq!(gone.status(), StatusCode::NOT_FOUND);
    let trace = gone.headers()["traceparent"].to_str().expect("ASCII")[3..35].to_owned();

    let count = async |query: &str| clinic.audit(query, 1000).await.len();
    let by = |role: Role, rest: &str| format!("subject={}&{rest}", email(role));
    assert_eq!(count(&by(Role::FrontDesk, "action=PATIENT_REGISTER&outcome=DONE")).await, 20);
    assert_eq!(count(&by(Role::FrontDesk, "action=PATIENT_REGISTER&outcome=REFUSED")).await, 1);
    assert_eq!(count(&by(Role::FrontDesk, "")).await, 22, "and one denial");
    assert_eq!(count(&by(Role::Clinician, "action=PATIENT_READ&outcome=DONE")).await, 100);
    assert_eq!(count(&by(Role::Clinician, "")).await, 104, "reads, a change, a list, an end, one not there");
    // Of the first patient: registered, read five times, changed, listed, not ended, ended, not there.
    let of_first = clinic.audit(&format!("patient={first}"), 3).await;
    let done = of_first.iter().map(|row| format!("{} {}", row["action"], row["outcome"]));
    let done: Vec<String> = done.map(|text| text.replace('"', "")).collect();
    assert_eq!(
        done,
        [
            "PATIENT_READ REFUSED",
            "PATIENT_DELETE DONE",
            "PATIENT_DELETE DENIED",
            "PATIENT_LIST DONE",
            "PATIENT_UPDATE DONE",
            "PATIENT_READ DONE",
            "PATIENT_READ DONE",
            "PATIENT_READ DONE",
            "PATIENT_READ DONE",
            "PATIENT_READ DONE",
            "PATIENT_REGISTER DONE"
        ]
    );
    let newest = &of_first[0];
    assert_eq!((&newest["traceId"], &newest["from"]), (&json!(trace), &json!("127.0.0.1")));
    assert_eq!(of_first[3]["patientIds"].as_array().expect("ids").len(), listed);
    // The same by any page, by time, and each row once.
    let all = clinic.audit(&by(Role::Clinician, ""), 1000).await;
    for limit in [1, 7, 104] {
        assert_eq!(clinic.audit(&by(Role::Clinician, ""), limit).await, all, "pages of {limit}");
    }
    let ids: BTreeSet<_> = all.iter().map(|row| row["id"].as_str().expect("an id")).collect();
    assert_eq!(ids.len(), all.len());
    let at = of_first[4]["at"].as_str().expect("a moment");
    let later = count(&format!("patient={first}&from={at}")).await;
    let earlier = count(&format!("patient={first}&until={at}")).await;
    assert_eq!((later, earlier), (5, 6));

    let said = clinic.site.run(&["audit", "verify", "--heads"], "");
    assert!(said.contains("intact: "), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_audit_has_a_row_for_each_access() {
    let clinic = Clinic::open(Site::fresh().set_up()).await;
    the_audit_counts(&clinic).await;

    // Nothing of it is anywhere else.
    let metrics = clinic.node.client().get(format!("{}/metrics", clinic.node.http_url())).send().await;
    let metrics = metrics.expect("an answer").text().await.expect("text");
    let log = clinic.node.log();
    for canary in ["clinic.example", "Patient c1", "patient-c1@", "c1 High Street", "Patient changed"] {
        assert!(!log.contains(canary), "{canary} in the log");
        assert!(!metrics.contains(canary), "{canary} in the metrics");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_too_and_a_changed_row_is_found() {
    let database = Postgres::shared_fast().create_database().await;
    let url = database.url().to_owned();
    let site = tokio::task::spawn_blocking(move || Site::on_postgres(&url)).await.expect("a site");
    let clinic = Clinic::open(site).await;
    the_audit_counts(&clinic).await;

    let mut database = sqlx::PgConnection::connect(database.url()).await.expect("connects");
    // What is cut from the end of a chain shows once another has seen it, at the next start of a node: so none of these
    // is the last of its chain.
    let rows: Vec<(Uuid, i64)> = sqlx::query_as(
        "SELECT chain, seq FROM audit_batches AS one WHERE EXISTS \
         (SELECT FROM audit_batches AS later WHERE later.chain = one.chain AND later.seq > one.seq) \
         ORDER BY random() LIMIT 4",
    )
    .fetch_all(&mut database)
    .await
    .expect("rows");
    assert_eq!(rows.len(), 4, "a row for each way to change one");
    let verify = || {
        let mut command = clinic.site.command();
        let output = command.args(["audit", "verify"]).output().expect("it runs");
        (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
    };
    assert_eq!(verify().0, Some(0));
    for (n, (chain, seq)) in rows.into_iter().enumerate() {
        database.execute("CREATE TABLE kept AS TABLE audit_batches").await.expect("kept");
        let change = match n {
            0 => "DELETE FROM audit_batches",
            1 => "UPDATE audit_batches SET body = set_byte(body, 0, get_byte(body, 0) # 1)",
            2 => "UPDATE audit_batches SET at = at + 1",
            _ => "UPDATE audit_batches SET terms = terms[2:]",
        };
        let change = format!("{change} WHERE chain = '{chain}' AND seq = {seq}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(change.clone())).execute(&mut database).await.expect("changed");
        let (status, said) = verify();
        assert_eq!(status, Some(1), "{change}: {said}");
        assert!(said.contains(&format!("chain {chain} row {seq}: ")), "{change}: {said}");
        database
            .execute("TRUNCATE audit_batches; INSERT INTO audit_batches TABLE kept; DROP TABLE kept")
            .await
            .expect("as before");
        assert_eq!(verify().0, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_shown_that_cannot_be_recorded() {
    let server =
        tokio::task::spawn_blocking(|| Postgres::start_private(Durability::None)).await.expect("a server");
    let database = server.create_database().await;
    let url = database.url().to_owned();
    let site = tokio::task::spawn_blocking(move || Site::on_postgres(&url)).await.expect("a site");
    let clinic = Clinic::open(site).await;
    let id = clinic.register(Role::Clinician, "hot").await;
    let path = format!("/api/patients/{id}");
    let read = async || clinic.ask(Role::Clinician, Method::GET, &path, None).await;
    let audited = clinic.audit(&format!("patient={id}"), 100).await.len();
    assert_eq!(read().await.status(), StatusCode::OK);
    let server = tokio::task::spawn_blocking(move || {
        server.stop(Stop::Fast);
        server
    });
    let server = server.await.expect("stopped");
    // One that is answered from memory, and all others that would show the record, by every role that may.
    let changed = patient("hot");
    let (version, history) = (format!("{path}?version=1"), format!("{path}/history"));
    let asked = [
        (Method::GET, &*path, None),
        (Method::GET, &version, None),
        (Method::GET, &history, None),
        (Method::GET, "/api/patients?q=patient", None),
        (Method::PUT, &path, Some(&changed)),
    ];
    for role in [Role::Clinician, Role::FrontDesk, Role::Admin] {
        for (method, path, body) in &asked {
            let answer = clinic.ask(role, method.clone(), path, *body).await;
            let status = answer.status();
            let away = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT);
            assert!(away, "{role:?} {method} {path}: {status}");
            let text = answer.text().await.expect("text");
            assert!(!text.contains("Patient hot"), "{role:?} {method} {path}: {text}");
        }
    }
    let server = tokio::task::spawn_blocking(move || {
        server.start();
        server
    });
    let _server = server.await.expect("started");
    crate::harness::eventually("it is shown again", || async {
        (read().await.status() == StatusCode::OK).then_some(())
    })
    .await;
    let rows = clinic.audit(&format!("patient={id}&outcome=DONE"), 100).await;
    assert!(rows.len() >= audited + 2, "what was shown before and after is recorded: {rows:?}");
}

/// The answer of each kind of access waits for its record: while the audit cannot be written nothing leaves the node,
/// though nothing else keeps it from answering.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_shown_before_it_is_recorded() {
    let database = Postgres::shared_fast().create_database().await;
    let url = database.url().to_owned();
    let site = tokio::task::spawn_blocking(move || Site::on_postgres(&url)).await.expect("a site");
    let clinic = Clinic::open(site).await;
    let id = clinic.register(Role::Clinician, "waits").await;
    let path = format!("/api/patients/{id}");
    let mut other = sqlx::PgConnection::connect(database.url()).await.expect("connects");
    let watcher = sqlx::PgPool::connect(database.url()).await.expect("connects");
    let mut moved = patient("waits");
    moved["address"] = json!("2 Other Road");
    for (role, method, path, body) in [
        (Role::Clinician, Method::GET, path.clone(), None),
        (Role::Billing, Method::GET, "/api/patients?q=patient".to_owned(), None),
        (Role::Clinician, Method::GET, format!("{path}/history"), None),
        (Role::Clinician, Method::PUT, path.clone(), Some(patient("waits"))),
        (Role::Clinician, Method::PUT, path.clone(), Some(moved)),
        (Role::FrontDesk, Method::DELETE, path.clone(), None),
        (Role::Admin, Method::GET, format!("/api/patients/{}", Uuid::now_v7()), None),
    ] {
        other.execute("BEGIN; LOCK TABLE audit_batches IN SHARE MODE").await.expect("locked");
        let answer = clinic.ask(role, method.clone(), &path, body.as_ref());
        tokio::pin!(answer);
        let writing = crate::harness::eventually("the record is being written", || async {
            let waiting: (i64,) = sqlx::query_as(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'audit_batches'::regclass",
            )
            .fetch_one(&watcher)
            .await
            .expect("an answer");
            (waiting.0 > 0).then_some(())
        });
        tokio::select! {
            answer = &mut answer => panic!("{method} {path}: {} before it was recorded", answer.status()),
            () = writing => {}
        }
        // Had the answer been on its way meanwhile, it would have come before these.
        for _ in 0..20 {
            tokio::select! {
                answer = &mut answer => panic!("{method} {path}: {} before it was recorded", answer.status()),
                ready = clinic.node.readiness() => assert_eq!(ready, Some(StatusCode::OK)),
            }
        }
        other.execute("ROLLBACK").await.expect("unlocked");
        let status = answer.await.status();
        assert!(status.is_success() || matches!(status.as_u16(), 403 | 404), "{method} {path}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn administrators_make_change_and_disable_users() {
    let clinic = Clinic::open(Site::fresh().set_up()).await;
    let ask = async |method: Method, path: &str, body: Value| {
        clinic.ask(Role::Admin, method, path, Some(&body)).await
    };
    let new = json!({"email": "Nurse@Clinic.example", "password": "a long password", "role": "CLINICIAN"});
    let made = ask(Method::POST, "/api/users", new.clone()).await;
    assert_eq!(made.status(), StatusCode::CREATED);
    assert_eq!(made.headers()["location"], "/api/users/nurse@clinic.example");
    let body: Value = made.json().await.expect("JSON");
    assert_eq!((&body["email"], &body["role"]), (&json!("nurse@clinic.example"), &json!("CLINICIAN")));
    assert_eq!(ask(Method::POST, "/api/users", new).await.status(), StatusCode::CONFLICT);
    let wrong = json!({"email": "nobody", "password": "short", "role": "NURSE"});
    assert_eq!(ask(Method::POST, "/api/users", wrong).await.status(), StatusCode::BAD_REQUEST);

    let token = login(&clinic.node, "nurse@clinic.example", "a long password").await.expect("a token");
    let get = async |token: &str, path: &str| clinic.node.get(token, path).await.status();
    assert_eq!(get(&token, "/api/patients").await, StatusCode::OK);
    let path = "/api/users/nurse@clinic.example";
    let changed = ask(Method::PATCH, path, json!({"role": "ANALYST"})).await;
    assert_eq!(changed.status(), StatusCode::OK);
    assert_eq!(changed.json::<Value>().await.expect("JSON")["role"], "ANALYST");
    crate::harness::eventually("the new role holds", || async {
        (get(&token, "/api/patients").await == StatusCode::FORBIDDEN).then_some(())
    })
    .await;
    assert_eq!(ask(Method::PATCH, path, json!({"disabled": true})).await.status(), StatusCode::OK);
    crate::harness::eventually("the token no longer holds", || async {
        (get(&token, "/auth/validate").await == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    for wrong in [json!({"disabled": "yes"}), json!({"role": null})] {
        assert_eq!(ask(Method::PATCH, path, wrong).await.status(), StatusCode::BAD_REQUEST);
    }
    let nobody = ask(Method::PATCH, "/api/users/nobody@clinic.example", json!({"disabled": true})).await;
    assert_eq!(nobody.status(), StatusCode::NOT_FOUND);
    let own = format!("/api/users/{}", email(Role::Admin));
    assert_eq!(ask(Method::PATCH, &own, json!({"disabled": true})).await.status(), StatusCode::FORBIDDEN);

    let mut users = Vec::new();
    let mut next = Some("/api/users?limit=3".to_owned());
    while let Some(path) = next {
        let page = clinic.ask(Role::Admin, Method::GET, &path, None).await;
        let link = page.headers().get("link").map(|link| link.to_str().expect("ASCII").to_owned());
        next = link.map(|link| link[1..link.find('>').expect("a link")].to_owned());
        users.extend(page.json::<Vec<Value>>().await.expect("JSON"));
    }
    let emails: Vec<_> = users.iter().map(|user| user["email"].as_str().expect("a text")).collect();
    assert!(emails.is_sorted() && emails.len() >= 7 && emails.contains(&"nurse@clinic.example"));
    assert!(users.iter().all(|user| user.as_object().expect("an object").len() == 4), "and no hash");
    let kept = clinic.audit(&format!("subject={}&action=USER_CHANGE", email(Role::Admin)), 100).await;
    let outcomes: Vec<_> = kept.iter().map(|row| row["outcome"].as_str().expect("a text")).collect();
    assert_eq!(outcomes, ["DENIED", "REFUSED", "DONE", "DONE"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_password_ends_what_was_given_before() {
    let clinic = Clinic::open(Site::fresh().set_up()).await;
    let change = async |old: &str, new: &str| {
        let body = json!({"oldPassword": old, "newPassword": new});
        clinic.ask(Role::Clinician, Method::POST, "/api/users/me/password", Some(&body)).await.status()
    };
    assert_eq!(change("not it at all", "a newer password").await, StatusCode::FORBIDDEN);
    assert_eq!(change(PASSWORD, "short").await, StatusCode::BAD_REQUEST);
    assert_eq!(change(PASSWORD, "a newer password").await, StatusCode::NO_CONTENT);
    let old = &clinic.tokens[&Role::Clinician];
    // A login right after the change holds, though tokens are dated by the second.
    let new = login(&clinic.node, &email(Role::Clinician), "a newer password").await.expect("a token");
    crate::harness::eventually("the old token no longer holds", || async {
        let status = clinic.node.get(old, "/auth/validate").await.status();
        (status == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    assert_eq!(clinic.node.get(&new, "/auth/validate").await.status(), StatusCode::OK);
    assert!(login(&clinic.node, &email(Role::Clinician), PASSWORD).await.is_none());
    assert!(!clinic.node.log().contains("a newer password"));
}
