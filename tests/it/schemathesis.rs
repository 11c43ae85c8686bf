//! The description of the HTTP interface against a node, by schemathesis: it makes requests from the description, good
//! and bad ones, and looks whether each answer is one that is described. `tests/setup.sh` installs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
    let document = site.path().join("openapi.json");
    std::fs::write(&document, site.run(&["openapi"], "")).expect("written");
    let (out_path, began) = (site.path().join("schemathesis.log"), Instant::now());
    let out = std::fs::File::create(&out_path).expect("a file");
    let mut running = Command::new(&program)
        .current_dir(site.path())
        .args(["run", "--url", node.http_url(), "--checks", CHECKS, "--seed", SEED])
        .args(["--max-examples", EXAMPLES_MAX, "--phases", "examples,coverage,fuzzing"])
        .args(["--request-timeout", "20", "--continue-on-failure", "--no-shrink", "--no-color"])
        .args(["--suppress-health-check", "all", "--generation-database", "none", "--warnings", "off"])
        .args(["--header", &format!("Authorization: Bearer {token}")])
        .arg(&document)
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
    // That it did look: an empty run is a success too.
    let passed = told();
    assert!(passed.contains("test cases") || passed.contains("passed"), "{passed}");
    println!("schemathesis took {:?}", began.elapsed());
}
