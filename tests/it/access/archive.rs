//! Archiving the audit with the program: rows of last month go, the chains verify, and changes of either are found.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use hygeia::audit::{Chains, Growth, Key};
use hygeia::domain::access::Caller;
use hygeia::domain::audit::{Access, Outcome};
use hygeia::domain::ids::PatientId;
use hygeia::domain::time::{Clock, MonoTime, Timestamp};
use hygeia::store::{self, AuditStore, Settings, Store, Use};
use time::{Date, OffsetDateTime};

use super::*;

/// As `Site::set_up` has it.
const SECRET: &[u8] = b"a secret of the tests, at least 32 bytes long";

/// A clock that stands. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Then(Arc<AtomicI64>);

impl Then {
    /// An hour into `day`.
    pub(super) fn at(day: Date) -> Self {
        let then = Then(Arc::default());
        then.set(day);
        then
    }

    pub(super) fn set(&self, day: Date) {
        let hour = day.midnight().assume_utc().unix_timestamp() + 3_600;
        self.0.store(hour * 1_000_000, Ordering::SeqCst);
    }
}

impl Clock for Then {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }

    fn mono(&self) -> MonoTime {
        MonoTime::default()
    }
}

/// Of this month, or of the last one in the first hours of this: what is younger than an hour is not archived.
pub(super) fn first_of_month() -> Date {
    (OffsetDateTime::now_utc() - Duration::from_secs(7_200)).date().replace_day(1).expect("a day")
}

pub(super) fn some_access(at: Timestamp, patient: PatientId, n: u128) -> Access {
    Access {
        at,
        action: Action::PatientRead,
        outcome: Outcome::Done,
        caller: Caller { role: Role::Clinician, ..Caller::system("canary") },
        patients: vec![patient],
        trace_id: n,
        reason: None,
        change: None,
        detail: None,
    }
}

/// Chains that a node with the tests' secret would write.
pub(super) fn chains_of(store: &Arc<dyn Store>, writer: &str, then: &Then) -> Chains {
    let (store, clock) = (Arc::clone(store) as _, Arc::new(then.clone()) as _);
    Chains::new(Key::of(SECRET), writer.to_owned(), store, clock, Duration::from_secs(60), Growth::default())
}

/// Writes `rows` rows of two accesses each.
pub(super) async fn append(
    store: &dyn AuditStore,
    chains: &Chains,
    then: &Then,
    patient: PatientId,
    rows: u128,
) {
    for n in 0..rows {
        let chain = chains.take();
        let batch = chains.seal(&chain, [n, n + 1].map(|n| some_access(then.now(), patient, n)).into());
        let result = store.append_audit(&batch).await;
        chains.ended(chain, &batch, &result);
        result.expect("added");
    }
}

/// Writes rows of last month, as a node would have: 20 of each of two chains.
async fn fill(url: &str) -> PatientId {
    // The servers of the tests do not wait for their disks.
    let settings = Settings { url: url.to_owned(), fsync_off_allowed: true, ..Settings::default() };
    let store: Arc<dyn Store> = store::open(&settings, Use::Tool).await.expect("a database");
    let then = Then::at(first_of_month().previous_day().expect("a day"));
    let patient = PatientId(Uuid::now_v7());
    for writer in ["old#1/edge", "old#2/edge"] {
        append(&*store, &chains_of(&store, writer, &then), &then, patient, 20).await;
    }
    store.close().await;
    patient
}

/// Runs `hygeia audit …`: exit code, standard output, standard error.
fn audit(clinic: &Clinic, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = clinic.site.command().arg("audit").args(arguments).output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The way of an archive: made, checked, read, and what it leaves. `tamper` runs a statement in the database.
async fn the_archive_holds(clinic: &Clinic, patient: PatientId, tamper: impl AsyncFn(&'static str)) {
    let read = async |path: String| clinic.ask(Role::Clinician, Method::GET, &path, None).await.status();
    let id = clinic.register(Role::FrontDesk, "present").await;
    assert_eq!(read(format!("/api/patients/{id}")).await, StatusCode::OK);
    let of_old = format!("patient={}", patient.0);
    assert_eq!(clinic.audit(&of_old, 7).await.len(), 80);

    let (file, before) = (clinic.site.path().join("archive"), first_of_month().to_string());
    let file = file.to_str().expect("UTF-8");
    let (code, said, error) = audit(clinic, &["archive", "--before", &before, "--out", file]);
    assert_eq!(code, Some(0), "{said}{error}");
    assert!(said.contains("80 entries in 40 rows, 2 chains"), "{said}");
    assert_eq!(
        audit(clinic, &["archive", "--before", &before, "--out", file]).0,
        Some(1),
        "the file is there"
    );
    let other = format!("{file}.other");
    let (code, _, error) = audit(clinic, &["archive", "--before", &before, "--out", &other]);
    assert_eq!(code, Some(1), "there is nothing left");
    assert!(error.contains("nothing to archive") && !Path::new(&other).exists(), "{error}");

    // What is left verifies, alone and with the file; it is searched, and goes on.
    assert_eq!(audit(clinic, &["verify"]).0, Some(0));
    let (code, said, error) = audit(clinic, &["verify", "--archive", file]);
    assert_eq!(code, Some(0), "{said}{error}");
    assert!(said.contains("2 anchors"), "{said}");
    assert!(clinic.audit(&of_old, 7).await.is_empty());
    assert_eq!(read(format!("/api/patients/{id}")).await, StatusCode::OK);
    assert_eq!(clinic.audit(&format!("patient={id}&action=PATIENT_READ"), 9).await.len(), 2);
    assert_eq!(clinic.audit("action=AUDIT_ARCHIVE", 9).await.len(), 1);
    // What is in the file is read.
    let (code, shown, _) = audit(clinic, &["show", file]);
    assert_eq!((code, shown.lines().count()), (Some(0), 80));
    for line in shown.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!((&line["action"], &line["patientIds"][0]), (&json!("PATIENT_READ"), &json!(patient.0)));
    }

    // A file of which a byte is another.
    let bytes = std::fs::read(file).expect("there");
    let mut changed = bytes.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    std::fs::write(file, changed).expect("written");
    assert_eq!(audit(clinic, &["verify", "--archive", file]).0, Some(1));
    std::fs::write(file, bytes).expect("written");
    // Anchors that were changed or removed.
    for (change, back) in [
        ("UPDATE audit_anchors SET seq = seq - 1", "UPDATE audit_anchors SET seq = seq + 1"),
        (
            "CREATE TABLE kept AS SELECT * FROM audit_anchors; DELETE FROM audit_anchors",
            "INSERT INTO audit_anchors SELECT * FROM kept; DROP TABLE kept",
        ),
    ] {
        tamper(change).await;
        let (code, said, _) = audit(clinic, &["verify"]);
        assert_eq!(code, Some(1), "{change}: {said}");
        assert!(said.matches("chain ").count() >= 2, "{said}");
        tamper(back).await;
        assert_eq!(audit(clinic, &["verify"]).0, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_rows_are_archived_and_the_rest_verifies() {
    let site = Site::bare().set_up();
    let file = site.path().join("data/hygeia.db");
    let url = format!("sqlite:{}", file.display());
    let site = tokio::task::spawn_blocking(move || {
        site.run(&["migrate"], "");
        site
    });
    let site = site.await.expect("a site");
    let patient = fill(&url).await;
    let clinic = Clinic::open(site).await;
    let tamper = async |sql: &'static str| {
        let mut database = sqlx::SqliteConnection::connect(&url).await.expect("connects");
        sqlx::raw_sql(sql).execute(&mut database).await.expect("changed");
    };
    the_archive_holds(&clinic, patient, tamper).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_months_are_archived_from_postgres() {
    let database = Postgres::shared_fast().create_database().await;
    let url = database.url().to_owned();
    let site = tokio::task::spawn_blocking(move || Site::on_postgres(&url)).await.expect("a site");
    // As if the months had come a month ago.
    let mut session = sqlx::PgConnection::connect(database.url()).await.expect("connects");
    let this = first_of_month().midnight().assume_utc().unix_timestamp() * 1_000_000;
    let aged = format!(
        "DO $$ DECLARE this bigint := {this}; BEGIN
            ALTER TABLE audit_batches DETACH PARTITION audit_batches_before;
            EXECUTE format('ALTER TABLE audit_batches ATTACH PARTITION audit_batches_before
                FOR VALUES FROM (MINVALUE) TO (%s)', this);
            UPDATE settings SET value = this WHERE name = 'audit_months_from';
            PERFORM audit_make_months(3);
        END $$"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(aged)).execute(&mut session).await.expect("aged");
    let patient = fill(database.url()).await;
    let clinic = Clinic::open(site).await;
    let url = database.url().to_owned();
    let tamper = async |sql: &'static str| {
        let mut database = sqlx::PgConnection::connect(&url).await.expect("connects");
        sqlx::raw_sql(sql).execute(&mut database).await.expect("changed");
    };
    the_archive_holds(&clinic, patient, tamper).await;
    let parts = "SELECT count(*) FROM pg_class WHERE relname = 'audit_batches_before'";
    let (parts,): (i64,) = sqlx::query_as(parts).fetch_one(&mut session).await.expect("a count");
    assert_eq!(parts, 0, "the month is gone as a whole");
}
