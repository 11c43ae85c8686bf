//! Every route, as the interface's own description has them, by every role, against restricted records: nothing of a
//! record comes out to whoever may not see it. A new route is walked by itself; a new parameter or body has to be given
//! a value here.

use super::*;

/// In every field of a restricted record, and in nothing that is sent while it is restricted.
const MARKS: [&str; 5] = ["Markby", "markby@secret.example", "Markby Lane", "1903-11-07", "2003-09-05"];

/// A way to ask for what a route has.
struct Step {
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Option<Value>,
}

/// A restricted record, and the keys under which it was registered and changed before.
struct Record {
    id: String,
    /// Its own e-mail address.
    email: String,
    registered_under: String,
    changed_under: String,
    form: Value,
}

const CHANGED: &str = "9 Markby Lane";

/// What is sent to change it, or to register another one.
fn other_form(email: &str) -> Value {
    json!({"name": "Somebody Else", "email": email, "address": "1 Other Road", "dateOfBirth": "1950-01-01"})
}

fn json_body(method: &Method) -> &'static str {
    if *method == Method::PATCH { "application/merge-patch+json" } else { "application/json" }
}

impl Clinic {
    async fn send(&self, role: Role, step: &Step) -> Response {
        let url = format!("{}{}", self.node.http_url(), step.path);
        let mut request =
            self.node.client().request(step.method.clone(), url).bearer_auth(&self.tokens[&role]);
        for (name, value) in &step.headers {
            request = request.header(*name, value);
        }
        if let Some(body) = &step.body {
            request = request.body(body.to_string());
        }
        request.send().await.expect("an answer")
    }

    /// Registered and changed under keys of `by`, opened for billing, and then restricted: three versions.
    async fn marked(&self, by: Role, n: usize) -> Record {
        let [name, mail, address, born, registered] = MARKS;
        let email = format!("{n}.{mail}");
        let form = json!({
            "name": format!("{name} {n}"), "email": email, "address": format!("{n} {address}"),
            "dateOfBirth": born, "registeredDate": registered
        });
        let (registered_under, changed_under) = (format!("register-{n}"), format!("change-{n}"));
        let keyed = |method: Method, key: &str| {
            vec![("content-type", json_body(&method).to_owned()), ("Idempotency-Key", key.to_owned())]
        };
        let step = Step {
            method: Method::POST,
            path: "/api/patients".into(),
            headers: keyed(Method::POST, &registered_under),
            body: Some(form.clone()),
        };
        let made = self.send(by, &step).await;
        assert_eq!(made.status(), StatusCode::CREATED);
        let made: Value = made.json().await.expect("JSON");
        let id = made["id"].as_str().expect("an id").to_owned();
        let step = Step {
            method: Method::PATCH,
            path: format!("/api/patients/{id}"),
            headers: keyed(Method::PATCH, &changed_under),
            body: Some(json!({"address": CHANGED})),
        };
        assert_eq!(self.send(by, &step).await.status(), StatusCode::OK);
        let mark = format!("/api/patients/{id}/restriction");
        assert_eq!(
            self.ask(Role::Clinician, Method::PUT, &mark, None).await.status(),
            StatusCode::NO_CONTENT
        );
        Record { id, email, registered_under, changed_under, form }
    }
}

/// The values of a query parameter that could bring `record` out.
fn values_of(parameter: &str, record: &Record) -> Vec<String> {
    let texts: &[&str] = match parameter {
        "version" => &["1", "2", "3", "4"],
        "after" => &["0", "1", "2"],
        "limit" => &["1", "200"],
        "q" => &["markby", "markby lane"],
        "email" => return vec![record.email.clone()],
        "bornAfter" => &["1903-11-06"],
        "bornBefore" => &["1903-11-08"],
        "registeredAfter" => &["2003-09-04"],
        "sort" => &["created", "-created", "name", "-name", "born", "-born", "registered", "-registered"],
        "patient" => return vec![record.id.clone()],
        "subject" => return vec![super::email(Role::FrontDesk)],
        "action" => &["PATIENT_REGISTER", "PATIENT_UPDATE", "PATIENT_READ"],
        "outcome" => &["DONE", "DENIED"],
        "from" => &["2020-01-01T00:00:00Z"],
        "until" => &["2100-01-01T00:00:00Z"],
        "cursor" => &["nothing"],
        other => panic!("the query parameter {other} is new: say which of its values could show a record"),
    };
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// The values of a header that could bring `record` out.
fn header_values(header: &str, method: &Method, record: &Record) -> Vec<String> {
    match header {
        "If-Match" | "If-None-Match" => ["\"1\"", "\"3\"", "*"].map(str::to_owned).to_vec(),
        "Idempotency-Key" if *method == Method::POST => vec![record.registered_under.clone()],
        "Idempotency-Key" => vec![record.changed_under.clone()],
        // Of a reason that is none.
        "X-Break-Glass" => vec!["  ".to_owned(), "x".repeat(501)],
        other => panic!("the header {other} is new: say which of its values could show a record"),
    }
}

fn bodies(method: &Method, path: &str, record: &Record) -> Vec<Option<Value>> {
    let of_nobody = json!({"email": "nobody@clinic.example", "password": "not the password"});
    let bodies = match (method, path) {
        (&Method::POST, "/api/patients") => {
            vec![record.form.clone(), other_form(&record.email), other_form("not one"), json!({})]
        }
        (&Method::PUT, "/api/patients/{id}") => {
            vec![record.form.clone(), other_form("somebody.else@example.com"), json!({"name": ""})]
        }
        (&Method::PATCH, "/api/patients/{id}") => {
            vec![
                json!({}),
                json!({"address": CHANGED}),
                json!({"address": "1 Other Road"}),
                json!({"name": null}),
            ]
        }
        (&Method::POST, "/api/users") => {
            vec![json!({"email": record.email, "password": "short", "role": "NURSE"})]
        }
        (&Method::PATCH, "/api/users/{email}") => vec![json!({"disabled": false})],
        (&Method::POST, "/api/users/me/password") => {
            vec![json!({"oldPassword": "not the password", "newPassword": "another password"})]
        }
        (&Method::POST, "/auth/login") => vec![of_nobody],
        (&Method::POST, "/auth/refresh") => vec![json!({"refreshToken": "none"})],
        (method, path) => panic!("{method} {path} takes a body: say which could show a record"),
    };
    bodies.into_iter().map(Some).collect()
}

/// Every way to ask an operation of the description about `record`, one parameter at a time, and in the end all.
fn steps(method: &Method, template: &str, operation: &Value, record: &Record) -> Vec<Step> {
    let path = template
        .replace("{id}", &record.id)
        .replace("{patientId}", &record.id)
        .replace("{email}", &record.email)
        .replace("{file}", "index.css");
    assert!(!path.contains('{'), "{template} has a new parameter");
    let takes_body = operation["requestBody"].is_object();
    let bodies = if takes_body { bodies(method, template, record) } else { vec![None] };
    let none = Vec::new();
    let parameters = operation["parameters"].as_array().unwrap_or(&none);
    let mut ways = vec![(path.clone(), Vec::new())];
    for parameter in parameters {
        let name = parameter["name"].as_str().expect("a name");
        match parameter["in"].as_str() {
            Some("query") => ways.extend(values_of(name, record).into_iter().map(|value| {
                let query =
                    form_urlencoded::Serializer::new(String::new()).append_pair(name, &value).finish();
                (format!("{path}?{query}"), Vec::new())
            })),
            Some("header") => {
                let name = ["If-Match", "If-None-Match", "Idempotency-Key", "X-Break-Glass"]
                    .into_iter()
                    .find(|known| known.eq_ignore_ascii_case(name))
                    .unwrap_or_else(|| panic!("the header {name} is new"));
                let values = header_values(name, method, record);
                ways.extend(values.into_iter().map(|value| (path.clone(), vec![(name, value)])));
            }
            Some("path") => {}
            other => panic!("{template}: a parameter in {other:?}"),
        }
    }
    let with_bodies = ways.into_iter().flat_map(|(path, headers)| {
        bodies.iter().map(move |body| {
            let mut headers = headers.clone();
            if body.is_some() {
                let users = path.starts_with("/api/users");
                let media_type = if users { "application/json" } else { json_body(method) };
                headers.push(("content-type", media_type.to_owned()));
            }
            Step { method: method.clone(), path: path.clone(), headers, body: body.clone() }
        })
    });
    with_bodies.collect()
}

/// Whether something of a record stands in an answer. `sent`: the caller knows it, and may read it there again.
async fn marks_in(answer: Response) -> (StatusCode, Vec<&'static str>, bool) {
    let status = answer.status();
    let tagged = answer.headers().contains_key("etag");
    let headers = format!("{:?}", answer.headers());
    let text = without_questions(answer.text().await.expect("text"));
    let found = MARKS.iter().filter(|mark| headers.contains(**mark) || text.contains(**mark)).copied();
    (status, found.collect(), tagged)
}

/// An answer without what rows of the audit say of questions: a search, or an account, has what its caller knew.
fn without_questions(text: String) -> String {
    let Ok(Value::Array(mut rows)) = serde_json::from_str(&text) else { return text };
    for row in rows.iter_mut().filter_map(Value::as_object_mut).filter(|row| row.contains_key("traceId")) {
        row.remove("search");
        row.remove("account");
    }
    Value::Array(rows).to_string()
}

/// What a route may do to the record that it is asked about: then the next step needs another one.
fn may_change(status: StatusCode, method: &Method) -> bool {
    status.is_success() && *method != Method::GET
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route_shows_anything_of_a_restricted_record_to_whoever_may_not_see_it() {
    let mut clinic = Clinic::open(Site::fresh().set_up()).await;
    let described: Value = serde_json::from_str(&clinic.site.run(&["openapi"], "")).expect("JSON");
    let mut operations = Vec::new();
    for (path, methods) in described["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("operations") {
            let method: Method = method.to_uppercase().parse().expect("a method");
            operations.push((method, path.clone(), operation.clone()));
        }
    }
    let (mut n, mut walked, mut refused) = (0, 0, 0);
    for role in Role::ALL {
        let registers = if Action::PatientRegister.permits(*role) { *role } else { Role::FrontDesk };
        let mut record = clinic.marked(registers, n).await;
        for (method, path, operation) in &operations {
            let mut turn = 0;
            while let Some(step) = steps(method, path, operation, &record).into_iter().nth(turn) {
                let (status, found, tagged) = marks_in(clinic.send(*role, &step).await).await;
                let Step { method, path: asked, headers, body } = &step;
                let said = format!("{} {method} {asked} {headers:?} {body:?}: {status}", role.as_str());
                assert!(!matches!(status.as_u16(), 429 | 500..), "{said}");
                assert!(found.is_empty(), "{said} shows {found:?}");
                assert!(!(tagged && path.contains("{id}")), "{said} tells the version");
                walked += 1;
                refused += usize::from(status == StatusCode::FORBIDDEN && path.contains("{id}"));
                turn += 1;
                if may_change(status, method) {
                    // The caller may have logged out. The record may have been ended, or opened: then it is marked again.
                    n += 1;
                    let fresh = login(&clinic.node, &email(*role), PASSWORD).await.expect("a token");
                    clinic.tokens.insert(*role, fresh);
                    let mark = format!("/api/patients/{}/restriction", record.id);
                    let marked = clinic.ask(Role::Clinician, Method::PUT, &mark, None).await.status();
                    assert!(matches!(marked.as_u16(), 204 | 404), "{marked}");
                    record = clinic.marked(registers, n).await;
                }
            }
        }
        let told = account_of(&clinic, *role, &record).await;
        assert!(MARKS.iter().all(|mark| !told.contains(mark)), "{role:?} over gRPC: {told}");
        n += 1;
    }
    assert!(walked > 6 * operations.len(), "{walked} steps over {} operations", operations.len());
    assert!(refused > 100, "{refused} refusals: most of what is asked about a record is refused");

    // The marks are found where they are shown.
    let record = clinic.marked(Role::FrontDesk, n).await;
    let reason = vec![("X-Break-Glass", "unconscious, allergies unknown".to_owned())];
    let path = format!("/api/patients/{}", record.id);
    let step = Step { method: Method::GET, path, headers: reason, body: None };
    let (status, found, tagged) = marks_in(clinic.send(Role::Clinician, &step).await).await;
    assert_eq!((status, found.len(), tagged), (StatusCode::OK, MARKS.len(), true), "{found:?}");

    let log = clinic.node.log();
    let metrics = clinic.node.client().get(format!("{}/metrics", clinic.node.http_url())).send().await;
    let metrics = metrics.expect("an answer").text().await.expect("text");
    for mark in MARKS {
        assert!(!log.contains(mark), "{mark} in the log");
        assert!(!metrics.contains(mark), "{mark} in the metrics");
    }
}

/// What `role` is told of the account of `record`, over gRPC.
async fn account_of(clinic: &Clinic, role: Role, record: &Record) -> String {
    let mut client =
        BillingServiceClient::connect(clinic.node.grpc_url().to_owned()).await.expect("connects");
    let asked = BillingRequest {
        patient_id: record.id.clone(),
        name: "Somebody Else".into(),
        email: "somebody.else@example.com".into(),
    };
    let mut request = tonic::Request::new(asked);
    let token = format!("Bearer {}", clinic.tokens[&role]).parse().expect("ASCII");
    request.metadata_mut().insert("authorization", token);
    format!("{:?}", client.create_billing_account(request).await)
}
