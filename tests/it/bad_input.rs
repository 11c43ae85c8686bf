//! A node that is given something wrong ends with one clear message, and starts once the cause is gone.

use std::process::{Command, Output};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::harness::Site;
use crate::postgres::Postgres;

/// What a command that is expected to fail says, in one line, and how it ends.
fn refusal(mut command: Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().expect("it ran");
    let said = String::from_utf8_lossy(&stderr).into_owned();
    let told: Vec<&str> = said.lines().filter(|line| line.starts_with("hygeia: ")).collect();
    assert_eq!(told.len(), 1, "one message: {said}");
    (status.code(), told[0].to_owned())
}

#[tokio::test]
async fn a_database_that_is_not_there_is_named_and_used_once_it_is() {
    let server = Postgres::shared_fast();
    let name = format!("hygeia_missing_{}", std::process::id());
    let url = server.url(&name);
    let site = Site::bare().with("HYGEIA__STORE__URL", &url).set_up();
    let (code, told) = refusal(site.command());
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains(&name) && told.contains("does not exist"), "{told}");
    let mut command = site.command();
    command.arg("migrate");
    let (code, told) = refusal(command);
    assert!(code == Some(1) && told.contains(&name) && told.contains("does not exist"), "{told}");

    let mut admin = PgConnection::connect(&server.url("postgres")).await.expect("a connection");
    admin.execute(AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE template0"))).await.expect("made");
    let (code, told) = refusal(site.command());
    assert!(code == Some(1) && told.contains("hygeia migrate"), "no tables: what to do is said: {told}");
    site.run(&["migrate"], "");
    let node = site.start().await;
    node.kill().await;
    admin.execute(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).await.expect("dropped");
}

#[tokio::test]
async fn a_secret_file_that_is_not_there_is_named_and_read_once_it_is() {
    let site = Site::demo();
    let file = site.path().join("jwt");
    let site = site.with("HYGEIA__AUTH__JWT_SECRET_FILE", file.to_str().expect("UTF-8"));
    let (code, told) = refusal(site.command());
    assert_eq!(code, Some(78), "{told}");
    assert!(told.contains("auth.jwt_secret_file") && told.contains("cannot be read"), "{told}");
    std::fs::write(&file, "a secret of the tests, at least 32 bytes long\n").expect("written");
    site.start().await;
}
