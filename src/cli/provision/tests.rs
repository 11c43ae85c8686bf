//! The files that are created for a cluster, and the refusals.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use super::*;

const FILE: &str = r#"
[store]
url = "postgres://hygeia@postgres:5432/hygeia"
[kafka]
brokers = "kafka:9092"
[cluster.tls]
allowed_suffix = ".joining.example"
[[cluster.nodes]]
name = "front"
address = "front:7100"
roles = ["front"]
[[cluster.nodes]]
name = "rest"
address = "rest:7100"
roles = ["patient", "billing", "bridge", "analytics"]
[[cluster.nodes]]
name = "patient-1"
address = "patient-1:7100"
roles = ["patient"]
"#;

struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new(file: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cluster.toml"), file).unwrap();
        Site { dir }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn run(&self, more: impl FnOnce(&mut Args)) -> Result<String, Failure> {
        let settings = SettingArgs::of_file(Some(self.dir.path().join("cluster.toml")), Vec::new());
        let mut args = Args {
            out: self.out(),
            joining: Some("joining".to_owned()),
            owner: None,
            database_owner: None,
            days: 1,
            renew: false,
            show: None,
            settings,
        };
        more(&mut args);
        let mut told = Vec::new();
        run(args, Vec::new(), &mut told).map(|()| String::from_utf8(told).unwrap())
    }

    fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.out().join(file)).unwrap()
    }

    fn files(&self, directory: &str) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.out().join(directory)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn names(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn each_place_has_what_it_needs_and_nothing_else() {
    let site = Site::new(FILE);
    let told = site.run(|_| {}).unwrap();
    let patient = names("ca.pem node.pem node.key cluster.secret database.url audit.secret");
    let with_tokens = names("ca.pem node.pem node.key cluster.secret database.url audit.secret keys.secret");
    assert_eq!(site.files("front"), with_tokens);
    assert_eq!(site.files("rest"), with_tokens);
    assert_eq!(site.files("patient-1"), patient);
    assert_eq!(site.files("joining"), patient);
    assert_eq!(site.files("database"), names("password"));
    assert_eq!(site.files("jobs"), names("database.url admin.password"));
    let password = site.text("database/password");
    assert!(password.len() >= 64 && !told.contains(&password));
    assert_eq!(site.text("front/database.url"), format!("postgres://hygeia:{password}@postgres:5432/hygeia"));
    for (file, mode) in [
        ("front/node.key", 0o400),
        ("front/cluster.secret", 0o400),
        ("joining/database.url", 0o400),
        ("jobs/admin.password", 0o400),
        ("authority/ca.key", 0o600),
        ("authority/admin.password", 0o600),
        ("database/password", 0o400),
    ] {
        let found = std::fs::metadata(site.out().join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{file}");
    }
    assert_ne!(site.text("jobs/admin.password"), password, "no secret is used twice");
}

#[test]
fn what_is_there_stays_and_what_was_put_there_is_used() {
    let site = Site::new(FILE);
    std::fs::create_dir_all(site.out().join("authority")).unwrap();
    std::fs::write(site.out().join("authority/database.password"), "pass word/1\n").unwrap();
    site.run(|_| {}).unwrap();
    assert!(site.text("rest/database.url").starts_with("postgres://hygeia:pass%20word%2F1@postgres"));
    assert_eq!(site.run(|args| args.show = Some(DATABASE_PASSWORD.to_owned())).unwrap(), "pass word/1\n");
    let key = site.text("front/node.key");
    assert_eq!(site.run(|_| {}).unwrap(), "", "nothing is left to do");
    let opened = site.out().join("database/password");
    std::fs::set_permissions(&opened, std::fs::Permissions::from_mode(0o444)).unwrap();
    assert_eq!(site.run(|_| {}).unwrap(), format!("{}\n", opened.display()), "others could read it");
    assert_eq!(std::fs::metadata(&opened).unwrap().permissions().mode() & 0o777, 0o400);
    let renewed = site.run(|args| args.renew = true).unwrap();
    assert_eq!(renewed.lines().count(), 8, "two for each of three nodes and those that join: {renewed}");
    assert_ne!(site.text("front/node.key"), key);
    std::fs::write(site.out().join("authority/cluster.secret"), "another secret of thirty-two bytes")
        .unwrap();
    assert_eq!(site.run(|_| {}).unwrap().lines().count(), 4, "it is handed on");
    assert_eq!(site.text("joining/cluster.secret"), "another secret of thirty-two bytes");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let refused = |file: &str| Site::new(file).run(|_| {}).unwrap_err().message;
    let without_suffix = refused(&FILE.replace("allowed_suffix = \".joining.example\"", ""));
    assert!(without_suffix.contains("cluster.tls.allowed_suffix is not set"), "{without_suffix}");
    let one_label = refused(&FILE.replace(".joining.example", ".joining"));
    assert!(one_label.contains("needs two labels"), "{one_label}");
    let without_nodes = refused("[store]\nurl = \"postgres://hygeia@postgres/hygeia\"\n");
    assert!(without_nodes.contains("cluster.nodes"), "{without_nodes}");
    let without_user = refused(&FILE.replace("hygeia@", ""));
    assert!(without_user.contains("it names no user"), "{without_user}");
    let with_password = refused(&FILE.replace("hygeia@", "hygeia:canary@"));
    assert!(with_password.contains("has a password already") && !with_password.contains("canary"));
    let site = Site::new(FILE);
    std::fs::create_dir_all(site.out().join("authority")).unwrap();
    std::fs::write(site.out().join("authority/keys.secret"), "\n").unwrap();
    let empty = site.run(|_| {}).unwrap_err().message;
    assert!(empty.contains("authority/keys.secret: it is empty"), "{empty}");
}

#[test]
fn a_secret_that_nobody_would_take_is_refused_before_anything_is_handed_on() {
    for (name, text, reason) in [
        (ADMIN_PASSWORD, "password123", "most common"),
        (ADMIN_PASSWORD, "short", "at least 8 bytes"),
        (ADMIN_PASSWORD, "a long password\0", "NUL"),
        (ADMIN_PASSWORD, "one\ntwo lines", "more than one line"),
        (KEYS_SECRET, "canary", "at least 32 bytes"),
        (AUDIT_SECRET, &" ".repeat(40), "a blank"),
        (CLUSTER_SECRET, &"canary".repeat(8), "repeats itself"),
        (DATABASE_PASSWORD, "canary\0", "cannot be seen"),
        (DATABASE_PASSWORD, " canary", "a blank"),
    ] {
        let site = Site::new(FILE);
        std::fs::create_dir_all(site.out().join("authority")).unwrap();
        std::fs::write(site.out().join("authority").join(name), text).unwrap();
        let refused = site.run(|_| {}).unwrap_err().message;
        assert!(refused.contains(&format!("authority/{name}: ")) && refused.contains(reason), "{refused}");
        assert!(!refused.contains("canary") && !site.out().join("jobs").exists(), "{refused}");
    }
}
