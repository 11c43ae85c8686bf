//! The table of SECURITY.md that says what of a database that somebody has changed is found, line by line: each is done
//! to a copy of a node's database, and `hygeia audit verify` finds it, or not, as the line says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hygeia::audit::read;
use hygeia::domain::ids::PatientId;
use hygeia::store::{self, Settings, Use};

use super::archive::{Then, append, chains_of, first_of_month};
use super::*;

/// The lines of the table: what is done, and what is said to be found.
fn lines() -> BTreeMap<String, String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/SECURITY.md");
    let text = std::fs::read_to_string(file).expect("the file");
    let mut lines =
        text.lines().skip_while(|line| !line.starts_with("| somebody with access to the database"));
    assert!(lines.next().is_some() && lines.next().is_some(), "a head");
    let rows = lines.take_while(|line| line.starts_with('|')).map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [done, found] = cells[..] else { panic!("two cells: {line}") };
        (done.to_owned(), found.to_owned())
    });
    rows.collect()
}

/// A database as a node has left it, and copies of it.
struct Original {
    clinic: Clinic,
    file: PathBuf,
    /// What was archived, if anything was.
    archive: Option<PathBuf>,
}

/// What somebody does.
enum Attack {
    /// Statements in the database.
    Sql(String),
    /// Statements, after the rows of last month were archived.
    Archived(&'static str),
    /// To the archive's file. It is verified with it.
    Archive(fn(&mut Vec<u8>)),
    /// The archive is gone.
    ArchiveLost,
    /// Rows that are sealed with the secret.
    Sealed,
}

fn sql(text: &str) -> Attack {
    Attack::Sql(text.to_owned())
}

impl Original {
    /// Whether `hygeia audit verify` finds what was done.
    async fn finds(&self, attack: &Attack) -> bool {
        let copy = self.clinic.site.path().join("copy.db");
        std::fs::copy(&self.file, &copy).expect("a copy");
        let url = format!("sqlite:{}", copy.display());
        let mut arguments = vec!["verify".to_owned()];
        match attack {
            Attack::Sql(text) => change(&url, text).await,
            Attack::Archived(text) => change(&url, text).await,
            Attack::Archive(tamper) => {
                let archive = self.archive.as_ref().expect("an archive");
                let mut bytes = std::fs::read(archive).expect("there");
                tamper(&mut bytes);
                let changed = archive.with_extension("changed");
                std::fs::write(&changed, bytes).expect("written");
                arguments.extend(["--archive".to_owned(), changed.display().to_string()]);
            }
            Attack::ArchiveLost => {}
            Attack::Sealed => {
                let settings = Settings { url: url.clone(), ..Settings::default() };
                let store = store::open(&settings, Use::Tool).await.expect("a database");
                let then = Then::at(first_of_month());
                append(&*store, &chains_of(&store, "forged#1/edge", &then), &then, somebody(), 2).await;
                store.close().await;
            }
        }
        let mut command = self.clinic.site.command();
        let output = command.env("HYGEIA__STORE__URL", &url).arg("audit").args(&arguments).output();
        let output = output.expect("it runs");
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        for suffix in ["", "-wal", "-shm"] {
            // The two last may not be there.
            let _ = std::fs::remove_file(format!("{}{suffix}", copy.display()));
        }
        match output.status.code() {
            Some(0) => false,
            Some(1) if ["chain ", "archive", "the index"].iter().any(|word| said.contains(word)) => true,
            code => panic!("{code:?}: {said}"),
        }
    }
}

fn somebody() -> PatientId {
    PatientId(Uuid::now_v7())
}

async fn change(url: &str, text: &str) {
    let mut database = sqlx::SqliteConnection::connect(url).await.expect("connects");
    // Whoever has the database is stopped by no constraint.
    let text = format!("PRAGMA ignore_check_constraints = ON; {text}");
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(text.clone())).execute(&mut database).await;
    done.unwrap_or_else(|error| panic!("{text}: {error}"));
    database.close().await.expect("closed");
}

/// The change that was submitted and refused: its patient, event and version, as the audit has them.
async fn refused(url: &str) -> (Uuid, Uuid, i64) {
    let settings = Settings { url: url.to_owned(), ..Settings::default() };
    let store = store::open(&settings, Use::Tool).await.expect("a database");
    for head in store.audit_heads(None, 100).await.expect("heads") {
        for batch in store.audit_batches(head.chain, 0, 100).await.expect("rows") {
            for access in read(&batch.body, batch.at).expect("ours").entries {
                let Some((patient, change)) = access.patients.first().zip(access.change) else { continue };
                if store.changes_made(&[(*patient, change)]).await == Ok(vec![false]) {
                    store.close().await;
                    return (patient.0, change.event.0, change.version);
                }
            }
        }
    }
    panic!("nothing was refused");
}

/// A node that has recorded, with rows of last month, that was stopped; and a clinic's worth of changes.
async fn original() -> (Clinic, PathBuf, String) {
    let site = Site::bare().set_up();
    let file = site.path().join("data/hygeia.db");
    let url = format!("sqlite:{}", file.display());
    let site = tokio::task::spawn_blocking(move || {
        site.run(&["migrate"], "");
        site
    });
    let site = site.await.expect("a site");
    let settings = Settings { url: url.clone(), ..Settings::default() };
    let store = store::open(&settings, Use::Tool).await.expect("a database");
    // One chain that ended last month, and one that goes on in this.
    let then = Then::at(first_of_month().previous_day().expect("a day"));
    append(&*store, &chains_of(&store, "old#1/edge", &then), &then, somebody(), 6).await;
    let goes_on = chains_of(&store, "old#2/edge", &then);
    append(&*store, &goes_on, &then, somebody(), 6).await;
    then.set(first_of_month());
    append(&*store, &goes_on, &then, somebody(), 6).await;
    store.close().await;
    let mut clinic = Clinic::open(site).await;
    for n in ["one", "two"] {
        let id = clinic.register(Role::FrontDesk, n).await;
        for name in ["Changed", "Changed again"] {
            let mut changed = patient(n);
            changed["name"] = json!(name);
            let path = format!("/api/patients/{id}");
            let answer = clinic.ask(Role::FrontDesk, Method::PUT, &path, Some(&changed)).await;
            assert_eq!(answer.status(), StatusCode::OK);
        }
        let taken = clinic.ask(Role::FrontDesk, Method::POST, "/api/patients", Some(&patient(n))).await;
        assert_eq!(taken.status(), StatusCode::CONFLICT);
    }
    // Nobody writes any more: what is at the ends of the chains is noted as the node stops.
    clinic.node.terminate();
    assert!(clinic.node.ended().await.success());
    // Copies are of the file alone.
    change(&url, "PRAGMA wal_checkpoint(TRUNCATE)").await;
    (clinic, file, url)
}

fn attacks(refused: (Uuid, Uuid, i64)) -> Vec<(&'static str, Vec<Attack>)> {
    const LAST: &str = "(SELECT chain FROM audit_batches WHERE terms <> x'' ORDER BY chain DESC LIMIT 1)";
    const MIDDLE: &str = "WHERE seq = 2 AND chain = (SELECT min(chain) FROM audit_batches)";
    let (patient, event, version) = refused;
    let hex = |id: Uuid| format!("x'{}'", id.simple());
    let month = first_of_month().midnight().assume_utc().unix_timestamp() * 1_000_000;
    let columns = "command_id, kind, shard, at, subject, traceparent, body";
    vec![
        (
            "changes a row, its time, its terms of search, or its place",
            vec![
                sql(&format!("UPDATE audit_batches SET body = CAST(x'00' || substr(body, 2) AS BLOB) {MIDDLE}")),
                sql(&format!("UPDATE audit_batches SET at = at + 1 {MIDDLE}")),
                sql(&format!("UPDATE audit_batches SET terms = substr(terms, 5) {MIDDLE}")),
                sql(&format!("UPDATE audit_batches SET seq = 99 {MIDDLE}")),
                sql(&format!("UPDATE audit_batches SET mac = zeroblob(32) {MIDDLE}")),
                sql(&format!("UPDATE audit_batches SET chain = randomblob(16) {MIDDLE}")),
            ],
        ),
        (
            "takes a row out of the index that searches go by, or moves it there (SQLite; PostgreSQL's is its own)",
            vec![
                sql("INSERT INTO audit_terms (audit_terms) VALUES ('delete-all')"),
                sql(&format!("INSERT INTO audit_terms (audit_terms, rowid, terms)
                    SELECT 'delete', id, hex(substr(terms, 1, 4)) FROM audit_batches {MIDDLE}")),
                sql(&format!("UPDATE audit_batches SET id = id + 10240 {MIDDLE}")),
            ],
        ),
        (
            "deletes a row from the middle of a chain, or puts one in",
            vec![
                sql(&format!("DELETE FROM audit_batches {MIDDLE}")),
                sql(&format!("INSERT INTO audit_batches (chain, seq, at, mac, terms, body)
                    SELECT chain, 6, at, mac, terms, body FROM audit_batches {MIDDLE}")),
                sql(&format!("INSERT INTO audit_batches (chain, seq, at, mac, terms, body)
                    SELECT randomblob(16), 0, at, mac, terms, body FROM audit_batches {MIDDLE}")),
                sql(&format!("INSERT INTO audit_batches (chain, seq, at, mac, terms, body)
                    SELECT chain, -1, at, mac, terms, body FROM audit_batches {MIDDLE}")),
                sql(&format!("INSERT INTO audit_batches (chain, seq, at, mac, terms, body)
                    SELECT x'ffffffffffffffffffffffffffffffff', 0, at, mac, terms, body FROM audit_batches {MIDDLE}")),
            ],
        ),
        (
            "deletes the end of a chain, or all of it",
            vec![
                sql(&format!("DELETE FROM audit_batches WHERE chain = {LAST} AND seq =
                    (SELECT max(seq) FROM audit_batches WHERE chain = {LAST})")),
                sql(&format!("DELETE FROM audit_batches WHERE chain = {LAST}")),
                sql("DELETE FROM audit_batches WHERE chain = (SELECT min(chain) FROM audit_batches)"),
            ],
        ),
        (
            "deletes the ends of all chains at once, that of the note too, or puts the whole table back to an earlier state",
            // All that the node has written.
            vec![sql(
                "DELETE FROM audit_batches WHERE chain > (SELECT max(chain) FROM audit_batches WHERE seq = 11)",
            )],
        ),
        ("deletes the whole table", vec![sql("DELETE FROM audit_batches")]),
        (
            "changes or removes an anchor, puts an older one back, or brings one from another chain",
            vec![
                Attack::Archived("UPDATE audit_anchors SET seal = randomblob(32)"),
                Attack::Archived("UPDATE audit_anchors SET seq = seq - 1"),
                Attack::Archived("DELETE FROM audit_anchors"),
                Attack::Archived("UPDATE audit_anchors SET seal = (SELECT max(seal) FROM audit_anchors)"),
            ],
        ),
        (
            "deletes the rows right after an anchor, or puts rows back before it",
            vec![
                Attack::Archived("DELETE FROM audit_batches WHERE seq = 6 AND chain IN (SELECT chain FROM audit_anchors)"),
                Attack::Archived("INSERT INTO audit_batches (chain, seq, at, mac, terms, body)
                    SELECT chain, 5, at, mac, terms, body FROM audit_batches WHERE seq = 6 AND chain IN (SELECT chain FROM audit_anchors)"),
            ],
        ),
        (
            "drops a month of rows without archiving it",
            vec![sql(&format!("DELETE FROM audit_batches WHERE at < {month}"))],
        ),
        (
            "changes an archive, cuts it, or offers one of another database",
            vec![
                Attack::Archive(|bytes| {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                }),
                Attack::Archive(|bytes| bytes.truncate(bytes.len() - 8)),
            ],
        ),
        ("loses an archive", vec![Attack::ArchiveLost]),
        (
            "changes the id of an event in the history, or deletes one, so that the entry of the change is not shown any more",
            vec![
                sql("UPDATE patient_events SET event_id = randomblob(16) WHERE version = 2"),
                sql("DELETE FROM patient_events WHERE version = 2"),
                sql("DELETE FROM patient_events WHERE version = 3"),
            ],
        ),
        (
            "puts in an event with the id of a change that was refused, so that it is shown as done",
            vec![sql(&format!(
                "INSERT INTO patient_events (patient_id, version, event_id, {columns})
                 SELECT {}, {version}, {}, {columns} FROM patient_events LIMIT 1",
                hex(patient),
                hex(event)
            ))],
        ),
        (
            "does either, and changes the record to fit",
            vec![sql("DELETE FROM patient_events WHERE version = 3; UPDATE patients SET version = 2 WHERE version = 3")],
        ),
        ("has the secret too", vec![Attack::Sealed]),
        (
            "changes a patient's record in the database, past the program",
            vec![sql("UPDATE patients SET name = 'Somebody else'")],
        ),
        ("reads the database past the program", vec![sql("SELECT * FROM patients")]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_of_the_table_is_as_it_says() {
    let (clinic, file, url) = original().await;
    let refused = refused(&url).await;
    let mut original = Original { clinic, file, archive: None };
    assert!(!original.finds(&sql("SELECT 1")).await, "nothing was done");
    let (mut lines, attacks) = (lines(), attacks(refused));
    let (archived, plain): (Vec<_>, Vec<_>) =
        attacks.into_iter().partition(|(_, attacks)| !matches!(attacks[0], Attack::Sql(_) | Attack::Sealed));
    for (n, (line, attacks)) in plain.into_iter().chain(archived).enumerate() {
        let found = lines.remove(line).unwrap_or_else(|| panic!("{line} is not in the table"));
        let expected = match found.split([',', ':', ';', ' ']).next() {
            Some("yes") => true,
            Some("no" | "not") => false,
            _ => panic!("{line}: neither yes nor no: {found}"),
        };
        let needs_archive = !matches!(attacks[0], Attack::Sql(_) | Attack::Sealed);
        if needs_archive && original.archive.is_none() {
            let archive = original.clinic.site.path().join("archive");
            let before = first_of_month().to_string();
            let file = archive.to_str().expect("UTF-8");
            original.clinic.site.run(&["audit", "archive", "--before", &before, "--out", file], "");
            change(&url, "PRAGMA wal_checkpoint(TRUNCATE)").await;
            original.archive = Some(archive);
            assert!(!original.finds(&Attack::Archive(|_| {})).await, "nothing was done");
        }
        for (at, attack) in attacks.iter().enumerate() {
            assert_eq!(original.finds(attack).await, expected, "{n}.{at}: {line}: {found}");
        }
    }
    assert!(lines.is_empty(), "not tried: {lines:?}");
}

/// What was put in is not shown, whatever its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_were_put_in_are_not_shown() {
    let clinic = Clinic::open(Site::bare().set_up()).await;
    let id = clinic.register(Role::FrontDesk, "seen").await;
    let query = format!("patient={id}");
    let before = clinic.audit(&query, 100).await;
    assert_eq!(before.len(), 1);
    let url = format!("sqlite:{}", clinic.site.path().join("data/hygeia.db").display());
    for (chain, seq) in [
        ("randomblob(16)", 0),
        ("chain", 1_000),
        ("chain", -1000),
        ("x'ffffffffffffffffffffffffffffffff'", 0),
    ] {
        let copy = format!(
            "INSERT INTO audit_batches (chain, seq, at, mac, terms, body)
             SELECT {chain}, {seq}, at, mac, terms, body FROM audit_batches WHERE terms <> x'' ORDER BY chain, seq LIMIT 1"
        );
        change(&url, &copy).await;
    }
    assert_eq!(clinic.audit(&query, 100).await, before);
    let metrics = clinic.ask(Role::Admin, Method::GET, "/metrics", None).await.text().await.expect("text");
    let unsealed =
        metrics.lines().find(|line| line.starts_with("hygeia_audit_unsealed_total")).expect("counted");
    assert!(!unsealed.ends_with(" 0"), "{unsealed}");
}
