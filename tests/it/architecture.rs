//! Who may import whom. The rules are those of the design: a room that reaches past them is found here
//! and not in a review.

mod paths;

use std::path::{Path, PathBuf};

use self::paths::{Named, paths};

/// A room, the rooms it may name (a whole room, or one path in it), and the guarded crates.
struct Room {
    name: &'static str,
    rooms: &'static [&'static str],
    crates: &'static [&'static str],
}

/// May name every room.
const ANY: &[&str] = &["*"];

/// The edges speak to actors through handles.
const EDGE: &[&str] = &["actors", "auth", "domain", "error", "context", "health", "clock", "proto", "rate"];

/// Every room there is.
const ROOMS: [Room; 18] = [
    Room { name: "domain", rooms: &[], crates: &[] },
    Room { name: "error", rooms: &["domain"], crates: &[] },
    Room { name: "clock", rooms: &["domain"], crates: &[] },
    Room { name: "context", rooms: &["domain"], crates: &[] },
    Room { name: "health", rooms: &[], crates: &[] },
    Room { name: "proto", rooms: &[], crates: &[] },
    Room { name: "rate", rooms: &["domain"], crates: &[] },
    Room {
        name: "telemetry",
        rooms: &["domain", "clock"],
        crates: &["tokio", "tonic", "opentelemetry_proto"],
    },
    Room { name: "store", rooms: &["domain", "clock"], crates: &["sqlx", "tokio"] },
    Room { name: "audit", rooms: &["domain", "clock", "proto", "store"], crates: &[] },
    Room { name: "kafka", rooms: &["domain", "clock", "context", "proto"], crates: &["rdkafka", "tokio"] },
    Room { name: "auth", rooms: &["domain", "error", "clock", "store"], crates: &["tokio"] },
    Room {
        name: "actors",
        rooms: &["domain", "error", "context", "health", "clock", "store", "audit", "kafka", "proto"],
        crates: &["ractor", "ractor_cluster", "tokio"],
    },
    Room { name: "http", rooms: EDGE, crates: &["axum", "tokio"] },
    Room {
        name: "grpc",
        rooms: EDGE,
        crates: &["tonic", "tonic_health", "tonic_prost", "tonic_reflection", "tonic_types", "tokio"],
    },
    Room { name: "config", rooms: ANY, crates: &["tokio"] },
    Room { name: "cli", rooms: ANY, crates: &["tokio"] },
    Room { name: "node", rooms: ANY, crates: &["ractor", "ractor_cluster", "axum", "tonic", "tokio"] },
];

/// Crates that only the rooms that list them may name.
const GUARDED: [&str; 12] = [
    "sqlx",
    "rdkafka",
    "ractor",
    "ractor_cluster",
    "axum",
    "tonic",
    "tonic_health",
    "tonic_prost",
    "tonic_reflection",
    "opentelemetry_proto",
    "tonic_types",
    "tokio",
];

const FILE_LINES_MAX: usize = 500;

/// What is wrong with a file of `src`, whose path is relative to it.
fn faults(file: &Path, source: &str) -> Vec<String> {
    let mut faults = form_faults(file, source);
    let modules: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let tests = modules.iter().any(|module| module == "tests");
    if tests || matches!(modules[0].as_str(), "lib" | "main") {
        return faults;
    }
    let Some(room) = ROOMS.iter().find(|room| room.name == modules[0]) else {
        faults.push(format!("the room {} is not in the table of this test", modules[0]));
        return faults;
    };
    for named in paths(source, modules.len()) {
        match named {
            Named::Room(path) => {
                let target = path.split("::").next().unwrap_or_default();
                let allowed = |rule: &&str| *rule == "*" || *rule == target || path == **rule;
                if target != room.name && !room.rooms.iter().any(allowed) {
                    faults.push(format!("{} names crate::{path}", room.name));
                }
            }
            Named::Crate(name) if GUARDED.contains(&name.as_str()) => {
                if !room.crates.contains(&name.as_str()) {
                    faults.push(format!("{} names the crate {name}", room.name));
                }
            }
            Named::Crate(_) => {}
        }
    }
    faults
}

/// What is wrong with a file's form, wherever it is.
fn form_faults(file: &Path, source: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let lines = source.lines().count();
    if lines > FILE_LINES_MAX {
        faults.push(format!("{lines} lines, more than {FILE_LINES_MAX}"));
    }
    if !source.starts_with("//!") {
        faults.push("it does not begin with //! and what it is".to_owned());
    }
    if file.ends_with("mod.rs") {
        faults.push("mod.rs: the file is named after the module".to_owned());
    }
    faults
}

/// The Rust files below `dir`.
fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Says what is wrong below `dir` of the package.
fn check(dir: &str, faults: impl Fn(&Path, &str) -> Vec<String>) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let files = rust_files(&dir);
    assert!(!files.is_empty(), "no file in {}", dir.display());
    let mut told = Vec::new();
    for file in files {
        let source = std::fs::read_to_string(&file).unwrap();
        let relative = file.strip_prefix(&dir).unwrap();
        told.extend(faults(relative, &source).into_iter().map(|f| format!("{}: {f}", relative.display())));
    }
    assert!(told.is_empty(), "\n{}", told.join("\n"));
}

#[test]
fn the_source_keeps_the_rules() {
    check("src", faults);
}

#[test]
fn tests_and_benches_have_the_form_of_the_source() {
    check("tests", form_faults);
    check("benches", form_faults);
}

#[test]
fn every_way_of_breaking_a_rule_is_found() {
    let told = |file: &str, source: &str| faults(Path::new(file), &format!("//! Made up.\n{source}"));
    let none: [&str; 0] = [];
    for (file, source, expected) in [
        ("http/patients.rs", "use crate::grpc::Server;", &["http names crate::grpc::Server"][..]),
        (
            "http.rs",
            "use super::grpc::{self, Server};",
            &["http names crate::grpc", "http names crate::grpc::Server"],
        ),
        ("http/a/b.rs", "use super::super::super::grpc;", &["http names crate::grpc"]),
        ("http/a/b.rs", "use super::super::grpc;", &none),
        (
            "domain/patient.rs",
            "fn f() { let x = crate::clock::SystemClock; }",
            &["domain names crate::clock::SystemClock"],
        ),
        ("domain.rs", "mod inner { use super::super::store; }", &["domain names crate::store"]),
        ("domain.rs", "mod inner { use super::store; }", &none),
        ("domain.rs", "async fn f() { tokio::task::yield_now().await }", &["domain names the crate tokio"]),
        (
            "actors/shard.rs",
            "use {crate::domain::{ids, event}, sqlx::Row};",
            &["actors names the crate sqlx"],
        ),
        ("actors.rs", "#[derive(Debug, ::sqlx::FromRow)] struct X;", &["actors names the crate sqlx"]),
        ("actors.rs", "macro_rules! m { () => { $crate::http::f() } }", &["actors names crate::http::f"]),
        ("actors.rs", "extern crate axum;", &["actors names the crate axum"]),
        ("store.rs", "use rdkafka as broker;", &["store names the crate rdkafka"]),
        (
            "store.rs",
            "use crate::{domain, error::{Error, ErrorCode}};",
            &["store names crate::error::Error", "store names crate::error::ErrorCode"],
        ),
        ("http.rs", "use crate::store::Store;", &["http names crate::store::Store"]),
        ("http.rs", "use crate::store::*;", &["http names crate::store::*"]),
        ("new_room.rs", "", &["the room new_room is not in the table of this test"]),
        // What is no path, or tests alone.
        (
            "domain.rs",
            "pub(crate) fn f() {} // crate::store\nconst S: &str = \"crate::store, sqlx::query\";",
            &none,
        ),
        ("domain.rs", "/// See `crate::store`.\nfn f(x: X) { x.sqlx(); y::sqlx::z() }", &none),
        ("domain.rs", "#[cfg(test)]\nmod tests { use crate::store::Store; use tokio::spawn; }", &none),
        ("domain/patient/tests.rs", "use crate::clock::SystemClock;", &none),
        ("node.rs", "use crate::http; use crate::store;", &none),
    ] {
        assert_eq!(told(file, source), expected, "{file}: {source}");
    }
    assert_eq!(
        faults(Path::new("store.rs"), "use std::fmt;\n"),
        ["it does not begin with //! and what it is"]
    );
    assert_eq!(told("store.rs", &"\n".repeat(499)).len(), 0);
    assert_eq!(told("store.rs", &"\n".repeat(500)), ["501 lines, more than 500"]);
    assert_eq!(told("store/mod.rs", "").len(), 1);
}
