//! Callers who go away: whatever moment they choose, no change is left without its entry in the audit.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::*;

/// Accounts and records of each kind of change.
const EACH: usize = 24;

/// One request on a connection of its own, which is given up after `after`.
struct Cut<'a> {
    method: &'a str,
    path: String,
    headers: &'a str,
    body: String,
    after: Duration,
}

async fn send(clinic: &Clinic, role: Role, cut: Cut<'_>) {
    let Cut { method, path, headers, body, after } = cut;
    let address = clinic.node.http_url().trim_start_matches("http://");
    let mut connection = TcpStream::connect(address).await.expect("connects");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: hygeia\r\nauthorization: Bearer {}\r\n{headers}content-length: {}\r\n\r\n",
        clinic.tokens[&role],
        body.len()
    );
    connection.write_all(format!("{head}{body}").as_bytes()).await.expect("sent");
    tokio::time::sleep(after).await;
    // Half of them end what they send, the others the whole connection.
    if fastrand::bool() {
        connection.shutdown().await.ok();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Up to `most`: about as long as the change takes.
fn a_moment(most: Duration) -> Duration {
    most.mul_f64(fastrand::f64())
}

const JSON: &str = "content-type: application/json\r\n";
const PATCH: &str = "content-type: application/merge-patch+json\r\n";
const QUICK: Duration = Duration::from_millis(6);
/// A password is hashed meanwhile.
const SLOW: Duration = Duration::from_millis(20);

/// Waits until what was under way has ended: a change that comes by itself afterwards would be missed.
async fn settled(clinic: &Clinic) {
    crate::harness::eventually("nothing is under way", || async {
        let metrics = clinic.node.client().get(format!("{}/metrics", clinic.node.http_url())).send().await;
        let text = metrics.expect("an answer").text().await.expect("text");
        let busy = text.lines().find(|line| line.starts_with("hygeia_http_in_flight "));
        busy.is_none_or(|line| line.ends_with(" 0")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_who_goes_away_leaves_no_change_without_a_row() {
    let seed = std::env::var("HYGEIA_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("HYGEIA_TEST_SEED={seed}");
    fastrand::seed(seed);
    let clinic = Clinic::open(Site::fresh().set_up().with("HYGEIA__AUTH__BCRYPT_COST", "4")).await;
    // Users to be changed, and records to be changed, restricted and ended.
    let mut records = Vec::new();
    for n in 0..EACH {
        let body =
            json!({"email": format!("old{n}@clinic.example"), "password": PASSWORD, "role": "CLINICIAN"});
        let made = clinic.ask(Role::Admin, Method::POST, "/api/users", Some(&body)).await;
        assert_eq!(made.status(), StatusCode::CREATED);
        records.push(clinic.register(Role::FrontDesk, &format!("cut{n}")).await);
    }
    for (n, id) in records.iter().enumerate() {
        let of = |method, path: String, headers, body: Value, most| Cut {
            method,
            path,
            headers,
            body: if body.is_null() { String::new() } else { body.to_string() },
            after: a_moment(most),
        };
        let account = format!("new{n}@clinic.example");
        let new = json!({"email": account, "password": PASSWORD, "role": "BILLING"});
        send(&clinic, Role::Admin, of("POST", "/api/users".into(), JSON, new, SLOW)).await;
        let path = format!("/api/users/old{n}@clinic.example");
        send(&clinic, Role::Admin, of("PATCH", path, PATCH, json!({"role": "ANALYST"}), QUICK)).await;
        let path = format!("/api/patients/{id}");
        let moved = json!({"address": "2 Cut Road"});
        send(&clinic, Role::Clinician, of("PATCH", path.clone(), PATCH, moved, QUICK)).await;
        let mark = format!("{path}/restriction");
        send(&clinic, Role::Clinician, of("PUT", mark, "", Value::Null, QUICK)).await;
        let form = patient(format!("late{n}"));
        send(&clinic, Role::FrontDesk, of("POST", "/api/patients".into(), JSON, form, QUICK)).await;
        let reason = "x-break-glass: cut off\r\n";
        send(&clinic, Role::Clinician, of("DELETE", path, reason, Value::Null, QUICK)).await;
    }
    settled(&clinic).await;

    let rows = async |action: &str| clinic.audit(&format!("action={action}"), 1000).await;
    let (created, changed) = (rows("USER_CREATE").await, rows("USER_CHANGE").await);
    let about = |rows: &[Value], account: &str| {
        rows.iter().filter(|row| row["account"] == account && row["outcome"] == "DONE").count()
    };
    let users = clinic.ask(Role::Admin, Method::GET, "/api/users?limit=1000", None).await;
    let users: Vec<Value> = users.json().await.expect("JSON");
    let (mut made, mut moved, mut missing) = (0, 0, Vec::new());
    for user in &users {
        let account = user["email"].as_str().expect("a text");
        if account.starts_with("new") {
            made += 1;
            missing.extend((about(&created, account) != 1).then(|| format!("USER_CREATE {account}")));
        } else if account.starts_with("old") && user["role"] == "ANALYST" {
            moved += 1;
            missing.extend((about(&changed, account) != 1).then(|| format!("USER_CHANGE {account}")));
        }
    }
    println!("{made} made and {moved} changed of {EACH} each");
    assert!(moved > 0, "none came through: no moment was late enough");
    for id in &records {
        let history = clinic.audit(&format!("patient={id}&outcome=DONE"), 100).await;
        let versions: BTreeSet<i64> = history.iter().filter_map(|row| row["version"].as_i64()).collect();
        let path = format!("/api/patients/{id}/history");
        let mut request = clinic.node.client().get(format!("{}{path}", clinic.node.http_url()));
        request = request.bearer_auth(&clinic.tokens[&Role::Clinician]).header("X-Break-Glass", "a test");
        let told: Vec<Value> = request.send().await.expect("an answer").json().await.expect("JSON");
        for version in told.iter().filter_map(|entry| entry["version"].as_i64()) {
            missing.extend((!versions.contains(&version)).then(|| format!("version {version} of {id}")));
        }
    }
    assert!(missing.is_empty(), "{} changes without a row: {missing:#?}", missing.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_cancelled_leaves_no_account_without_a_row() {
    let clinic =
        Clinic::open(Site::fresh().set_up().with("HYGEIA__GRPC__UNKNOWN_PATIENTS_ALLOWED", "true")).await;
    let client = BillingServiceClient::connect(clinic.node.grpc_url().to_owned()).await.expect("connects");
    // In the original system's manner: there is nobody for whom the relay would open an account as well.
    let mut opened = Vec::new();
    for _ in 0..4 * EACH {
        let patient = Uuid::now_v7();
        let asked = BillingRequest {
            patient_id: patient.to_string(),
            name: "Ada Lovelace".into(),
            email: "ada@example.com".into(),
        };
        let mut request = tonic::Request::new(asked);
        let token = format!("Bearer {}", clinic.tokens[&Role::Billing]).parse().expect("ASCII");
        request.metadata_mut().insert("authorization", token);
        let mut client = client.clone();
        // Dropped, a call is cancelled.
        let _ = tokio::time::timeout(a_moment(QUICK), client.create_billing_account(request)).await;
        opened.push(patient);
    }
    let mut count = 0;
    for patient in opened {
        let path = format!("/api/billing/accounts/{patient}");
        let there = clinic.ask(Role::Billing, Method::GET, &path, None).await.status() == StatusCode::OK;
        if !there {
            continue;
        }
        count += 1;
        crate::harness::eventually("the opening has its row", || async {
            let rows = clinic.audit(&format!("patient={patient}&action=ACCOUNT_OPEN"), 10).await;
            (rows.len() == 1).then_some(())
        })
        .await;
    }
    println!("{count} opened");
    assert!(count > 0, "none came through: no moment was late enough");
}
