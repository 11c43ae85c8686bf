//! The first administrator comes from a file with a secret, once.

use std::process::Stdio;

use reqwest::StatusCode;
use serde_json::json;

use crate::harness::{Node, PASSWORD, Site, USER, eventually};
use crate::postgres::Postgres;

const EMAIL: &str = "first@example.com";
const SECRET: &str = "the first password of all";

/// `site` with the first administrator, whose password is in a file.
fn named(site: Site, password: &str) -> Site {
    let file = site.path().join("first-admin");
    std::fs::write(&file, format!("{password}\n")).expect("written");
    let file = file.to_str().expect("UTF-8").to_owned();
    site.with("HYGEIA__AUTH__FIRST_ADMIN_EMAIL", EMAIL).with("HYGEIA__AUTH__FIRST_ADMIN_PASSWORD_FILE", &file)
}

async fn login(node: &Node, email: &str, password: &str) -> StatusCode {
    let body = json!({"email": email, "password": password});
    let answer = node.client().post(format!("{}/auth/login", node.http_url())).json(&body).send().await;
    answer.expect("an answer").status()
}

#[tokio::test]
async fn a_node_makes_it_where_there_is_nobody_and_never_again() {
    let site = named(Site::demo(), SECRET);
    let mut node = site.start().await;
    assert_eq!(login(&node, EMAIL, SECRET).await, StatusCode::OK);
    assert_eq!(login(&node, USER, PASSWORD).await, StatusCode::UNAUTHORIZED, "no user that everybody knows");
    // The banner waits for each part; where no demo is wanted, that part has nothing left to do.
    let is_ready = |line: &str| line.contains(r#""msg":"ready""#) && line.contains(r#""part":"demo""#);
    eventually("the part demo is ready", || async { node.log().lines().any(is_ready).then_some(()) }).await;
    let log = node.log();
    assert_eq!(log.matches("the first administrator was made").count(), 1);
    assert!(!log.contains(EMAIL) && !log.contains(SECRET), "{log}");
    node.terminate();
    assert!(node.ended().await.success());
    // Another password in the file changes nobody's.
    std::fs::write(site.path().join("first-admin"), "quite another password").expect("written");
    let node = site.start().await;
    assert_eq!(login(&node, EMAIL, SECRET).await, StatusCode::OK);
    assert_eq!(login(&node, EMAIL, "quite another password").await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_job_that_migrates_makes_it_once() {
    let database = Postgres::shared_fast().create_database().await;
    let site = named(Site::bare().with("HYGEIA__STORE__URL", database.url()).set_up(), SECRET);
    assert_eq!(site.run(&["migrate"], ""), "the database is up to date\nthe first administrator was made\n");
    assert_eq!(site.run(&["migrate"], ""), "the database is up to date\n");
    let users = site.run(&["user", "list"], "");
    assert!(users.lines().count() == 1 && users.starts_with(EMAIL) && users.contains("ADMIN"), "{users}");
    let node = site.start().await;
    assert_eq!(login(&node, EMAIL, SECRET).await, StatusCode::OK);
}

#[tokio::test]
async fn of_two_jobs_at_once_one_makes_it() {
    let database = Postgres::shared_fast().create_database().await;
    let plain = Site::bare().with("HYGEIA__STORE__URL", database.url()).set_up();
    plain.run(&["migrate"], "");
    let site = named(plain, SECRET);
    let jobs: Vec<_> = (0..2)
        .map(|_| site.command().arg("migrate").stdout(Stdio::piped()).spawn().expect("it runs"))
        .collect();
    let mut told = String::new();
    for job in jobs {
        let output = job.wait_with_output().expect("it ended");
        assert!(output.status.success());
        told += &String::from_utf8_lossy(&output.stdout);
    }
    assert_eq!(told.matches("the first administrator was made\n").count(), 1, "{told}");
    assert_eq!(site.run(&["user", "list"], "").lines().count(), 1);
}

#[test]
fn what_cannot_be_a_password_is_told_without_being_shown() {
    for (password, told) in
        [("short", "auth.first_admin_password"), ("", "the file cannot be used: it is empty")]
    {
        let site = named(Site::demo(), password);
        let output = site.command().arg("check").output().expect("it ran");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains(told) && !said.contains("short\""), "{said}");
    }
    let site = Site::demo().with("HYGEIA__AUTH__FIRST_ADMIN_EMAIL", EMAIL);
    let output = site.command().arg("check").output().expect("it ran");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("HYGEIA__AUTH__FIRST_ADMIN_PASSWORD_FILE"), "{said}");
}
