//! The description of the HTTP interface against a node, by schemathesis: it makes requests from the description, good
//! and bad ones, and looks whether each answer is one that is described. `tests/setup.sh` installs it. What it has sent
//! is looked through afterwards: each operation must have been worked on, and not only refused at the door.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::Value;

use crate::harness::Site;

/// The same requests each time.
const SEED: &str = "20261122";
/// Requests made up for each operation, at most, beside those for the edges of each field.
const EXAMPLES_MAX: &str = "25";
/// How long all of it may take. A machine that has much else to do needs several times as long as an idle one.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is looked at in every answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance";

/// Where `tests/setup.sh` puts it: beside what cargo builds.
fn program() -> PathBuf {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let target = built.parent().expect("the target directory");
    std::env::var_os("HYGEIA_TEST_SCHEMATHESIS")
        .map_or_else(|| target.join("schemathesis/bin/schemathesis"), PathBuf::from)
}

/// How an operation answers a valid request: with what was asked for, that there is no such record, or that the e-mail
/// address is taken.
const WORKED_ON: [u16; 8] = [200, 201, 204, 303, 307, 308, 404, 409];

/// Operations that no request made up from the description can satisfy, with the answer that says why: the caller has
/// another role, does not know a password, or has no refresh token.
const NOT_TO_BE_MET: [(&str, u16); 3] =
    [("GET /api/audit", 403), ("POST /api/users/me/password", 403), ("POST /auth/refresh", 400)];

/// Whether `path` is one of `template`.
fn fits(template: &str, path: &str) -> bool {
    let (parts, given): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
    parts.len() == given.len()
        && parts.iter().zip(given).all(|(part, given)| part.starts_with('{') || *part == given)
}

/// How often each operation of the description was answered with each status.
fn statuses(described: &Value, archive: &Value) -> BTreeMap<String, BTreeMap<u16, usize>> {
    let mut operations: BTreeMap<String, BTreeMap<u16, usize>> = BTreeMap::new();
    let paths: Vec<&String> = described["paths"].as_object().expect("paths").keys().collect();
    for (path, methods) in described["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("operations").keys() {
            operations.entry(format!("{} {path}", method.to_uppercase())).or_default();
        }
    }
    for entry in archive["log"]["entries"].as_array().expect("entries") {
        let url = entry["request"]["url"].as_str().expect("a URL");
        let Ok(url) = url.parse::<reqwest::Url>() else { continue };
        // The template without a placeholder is meant where both fit.
        let of = paths.iter().filter(|template| fits(template, url.path()));
        let Some(template) = of.min_by_key(|template| template.matches('{').count()) else { continue };
        let method = entry["request"]["method"].as_str().expect("a method");
        let status = entry["response"]["status"].as_u64().and_then(|status| status.try_into().ok());
        if let (Some(counts), Some(status)) = (operations.get_mut(&format!("{method} {template}")), status) {
            *counts.entry(status).or_default() += 1;
        }
    }
    operations
}

#[test]
fn a_path_fits_its_template() {
    for (template, path, expected) in [
        ("/api/patients/{id}", "/api/patients/7", true),
        ("/api/patients/{id}", "/api/patients", false),
        ("/api/patients/{id}", "/api/patients/7/history", false),
        ("/api/patients/{id}/history", "/api/patients/7/history", true),
        ("/api/users/me/password", "/api/users/me/password", true),
    ] {
        assert_eq!(fits(template, path), expected, "{template} {path}");
    }
}

#[tokio::test]
async fn every_answer_is_one_that_is_described() {
    let program = program();
    assert!(
        program.exists(),
        "schemathesis is not at {}: run `make setup`, which installs it from PyPI (pip, python3-venv), or name it by \
         HYGEIA_TEST_SCHEMATHESIS",
        program.display()
    );
    // Logins are tried by the hundred; the cheapest hash that is allowed is as good here.
    let site = Site::demo().with("HYGEIA__AUTH__BCRYPT_COST", "4");
    let node = site.start().await;
    let token = node.login().await;
    let (document, archive) = (site.path().join("openapi.json"), site.path().join("archive.har"));
    let described = site.run(&["openapi"], "");
    std::fs::write(&document, &described).expect("written");
    let (out_path, began) = (site.path().join("schemathesis.log"), Instant::now());
    let out = std::fs::File::create(&out_path).expect("a file");
    let mut running = Command::new(&program)
        .current_dir(site.path())
        .args(["run", "--url", node.http_url(), "--checks", CHECKS, "--seed", SEED])
        .args(["--max-examples", EXAMPLES_MAX, "--phases", "examples,coverage,fuzzing"])
        .args(["--request-timeout", "20", "--continue-on-failure", "--no-shrink", "--no-color"])
        .args(["--suppress-health-check", "all", "--generation-database", "none", "--warnings", "off"])
        .arg("--report-har-path")
        .arg(&archive)
        .arg(&document)
        .env("SCHEMATHESIS_HOOKS", Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis.py"))
        .env("HYGEIA_URL", node.http_url())
        .env("HYGEIA_TOKEN", &token)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("cloned"))
        .stderr(out)
        .spawn()
        .expect("it can be started");
    let told = || std::fs::read_to_string(&out_path).unwrap_or_default();
    let status = loop {
        if let Some(status) = running.try_wait().expect("it can be waited for") {
            break status;
        }
        if began.elapsed() > PATIENCE {
            let _ = running.kill();
            let _ = running.wait();
            panic!("schemathesis took longer than {PATIENCE:?}:\n{}", told());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(status.success(), "schemathesis: {status}\n{}", told());
    // That it did look: a run in which everything is refused is a success too.
    let archive = std::fs::read(&archive).expect("what was sent");
    let archive: Value = serde_json::from_slice(&archive).expect("JSON");
    let described: Value = serde_json::from_str(&described).expect("JSON");
    let mut wrong = BTreeSet::new();
    for (operation, counts) in statuses(&described, &archive) {
        println!("{operation}: {counts:?}");
        let not_met = NOT_TO_BE_MET.iter().find(|(named, _)| *named == operation).map(|(_, status)| *status);
        let worked_on =
            |status: &u16| not_met.map_or(WORKED_ON.contains(status), |not_met| *status == not_met);
        if !counts.keys().any(worked_on) {
            wrong.insert(format!("{operation}: {counts:?}"));
        }
    }
    assert!(wrong.is_empty(), "never worked on: {wrong:#?}");
    assert_eq!(node.get(&token, "/auth/validate").await.status(), StatusCode::OK, "it has logged itself out");
    println!("schemathesis took {:?}", began.elapsed());
}
