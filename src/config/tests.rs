//! The layers, every refusal with its text, and the defaults in `cluster.toml`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::*;

mod cluster;
mod secrets;
mod values;

const SECRET: &str = "canary-7f3Q9zKx2mVb8TsLw5RdYc4N-canary";

/// Inputs that a test builds up. Files are in a temporary directory.
struct Given {
    inputs: Inputs,
    dir: tempfile::TempDir,
}

fn given() -> Given {
    Given { inputs: Inputs::default(), dir: tempfile::tempdir().unwrap() }
}

impl Given {
    fn file(mut self, text: &str) -> Self {
        self.inputs.file = Some(self.content("node.toml", text));
        self
    }

    fn content(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.inputs.environment.push((name.into(), value.into()));
        self
    }

    fn set(mut self, key: &str, value: &str) -> Self {
        let argument = Argument { name: "--set".into(), key: key.into(), value: value.into() };
        self.inputs.arguments.push(argument);
        self
    }

    fn load(&self) -> Loaded {
        load(&self.inputs).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Returns the refusal of these inputs, without the name of the directory.
    fn refusal(&self) -> String {
        let error = load(&self.inputs).map(|_| ()).expect_err("it was taken");
        self.without_dir(&error)
    }

    /// Returns the refusal of a node that is to serve with these inputs.
    fn serving_refusal(&self) -> String {
        self.without_dir(&self.load().check().expect_err("it was taken"))
    }

    fn without_dir(&self, error: &Error) -> String {
        let text = error.to_string();
        assert!(!text.contains("canary"), "a secret is told: {text}");
        text.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

#[test]
fn cluster_toml_has_every_key_with_its_default() {
    let defaults = effective::defaults();
    for key in effective::keys() {
        let name = key.rsplit('.').next().unwrap();
        let commented = effective::DEFAULTS.lines().any(|line| line.starts_with(&format!("# {name} = ")));
        assert!(defaults.contains_key(&key) || commented, "cluster.toml does not have {key}");
    }
    let mut alone = given().file(effective::DEFAULTS);
    for (key, default) in effective::OF_CLUSTERS {
        let name = key.rsplit('.').next().unwrap();
        let told = format!("Default: {name} = \"{default}\"\n{name} = ");
        assert!(effective::DEFAULTS.contains(&told), "cluster.toml does not tell the default of {key}");
        alone = alone.set(key, default);
    }
    let mut config = alone.load().config;
    assert_eq!(config.cluster.nodes.len(), 5);
    config.cluster.nodes.clear();
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    same_store(config.store, store::Settings::default());
}

/// Compares field by field, because the `Debug` of this section omits some. A new field does not compile
/// until it is listed here.
fn same_store(one: store::Settings, other: store::Settings) {
    let fields = |settings: store::Settings| {
        let store::Settings {
            url,
            connections_max,
            read_connections_max,
            connect_timeout_ms,
            acquire_timeout_ms,
            statement_timeout_ms,
            lock_timeout_ms,
            migrate_timeout_ms,
            migrate_on_start,
            fsync_off_allowed,
        } = settings;
        let waits = [connect_timeout_ms, acquire_timeout_ms, statement_timeout_ms, lock_timeout_ms];
        let switches = [migrate_on_start, fsync_off_allowed];
        (url, connections_max, read_connections_max, waits, migrate_timeout_ms, switches)
    };
    assert_eq!(fields(one), fields(other));
}

#[test]
fn every_key_is_found_by_asking_the_structs() {
    let keys = effective::keys();
    for key in [
        "data_dir",
        "node.name",
        "node.roles",
        "http.listen",
        "auth.jwt_secret",
        "actors.restart.pause_ms",
        "kafka.properties",
    ] {
        assert!(keys.iter().any(|k| k == key), "{key} in {keys:?}");
    }
    assert!(!keys.iter().any(|key| key == "http" || key == "actors.restart"), "{keys:?}");
}

#[test]
fn the_layers_go_over_each_other() {
    let file = "data_dir = \"of-file\"\n[http]\nlisten = \"127.0.0.1:1\"\n[grpc]\nlisten = \"127.0.0.1:1\"\n\
                [telemetry]\nflush_max_ms = 1\n";
    let given = given()
        .file(file)
        .env("HYGEIA__HTTP__LISTEN", "127.0.0.1:2")
        .env("HYGEIA__GRPC__LISTEN", "127.0.0.1:2")
        .env("HYGEIA__NODE__NAME", "of-env")
        .env("PATH", "/bin")
        .set("grpc.listen", "127.0.0.1:3");
    let config = given.load().config;
    assert_eq!(config.data_dir, Path::new("of-file"));
    assert_eq!(config.telemetry.flush_max_ms, 1);
    assert_eq!(config.telemetry.line_max_bytes, 16_384, "a default beside a set key");
    assert_eq!((config.http.listen.port(), config.grpc.listen.port()), (2, 3));
    assert_eq!(config.node.name, "of-env");
    let effective = given.load().effective();
    for line in [
        "http.listen = \"127.0.0.1:2\"  # environment variable HYGEIA__HTTP__LISTEN",
        "grpc.listen = \"127.0.0.1:3\"  # argument --set",
        "store.url = \"sqlite:hygeia.db\"  # default",
        "# auth.jwt_secret is not set",
    ] {
        assert!(effective.lines().any(|l| l == line), "{line} in\n{effective}");
    }
    assert!(effective.contains("node.toml:1\n") && effective.contains("node.toml:7\n"), "{effective}");
}

#[test]
fn text_of_the_environment_takes_the_type_that_is_asked_for() {
    let config = given()
        .env("HYGEIA__NODE__NAME", "12")
        .env("HYGEIA__NODE__ROLES", "front, patient,")
        .env("HYGEIA__GRPC__REQUIRE_TOKEN", "false")
        .env("HYGEIA__TELEMETRY__BUFFER_MAX_BYTES", "1_000_000")
        .env("HYGEIA__TELEMETRY__FORMAT", "text")
        .env("HYGEIA__AUTH__JWT_SECRET", "12345")
        .env("HYGEIA_LOG", "debug,hygeia::message=off")
        .load()
        .config;
    assert_eq!(config.node.name, "12");
    assert_eq!(config.node.roles.into_iter().collect::<Vec<_>>(), [Role::Front, Role::Patient]);
    assert!(!config.grpc.require_token);
    assert_eq!(config.telemetry.buffer_max_bytes, 1_000_000);
    assert_eq!(config.telemetry.format, crate::telemetry::Format::Text);
    assert_eq!(config.auth.jwt_secret.unwrap().reveal(), "12345");
    assert_eq!(config.telemetry.filter, "debug,hygeia::message=off");
}

#[test]
fn an_unknown_key_is_refused_with_those_there_are_and_without_its_value() {
    // In the order of the struct, which is the order of the documentation.
    let keys = "listen, require_token, unknown_patients_allowed, reflection, timeout_ms, in_flight_max, \
                concurrency_per_connection_max, streams_per_connection_max, message_max_bytes, metadata_max_bytes, connections_max, \
                opening_timeout_ms, keepalive_interval_ms, keepalive_timeout_ms, drain_timeout_ms, \
                rate_limit_per_s, rate_limit_burst, rate_limit_subjects_max";
    assert_eq!(
        given().file("[grpc]\n\nlissen = \"canary\"\n").refusal(),
        format!("grpc.lissen, from node.toml:3: unknown key; allowed here: {keys}")
    );
    assert_eq!(
        given().env("HYGEIA__GRPC__LISSEN", "canary").refusal(),
        format!(
            "grpc.lissen, from environment variable HYGEIA__GRPC__LISSEN: unknown key; allowed here: {keys}"
        )
    );
    assert_eq!(
        given().set("grpc.lissen", "canary").refusal(),
        format!("grpc.lissen, from argument --set: unknown key; allowed here: {keys}")
    );
    let refusal = given().file("[grcp]\nlisten = \"canary\"\n").refusal();
    assert!(
        refusal
            .starts_with("grcp, from node.toml:1: unknown key; allowed here: data_dir, node, cluster, http,"),
        "{refusal}"
    );
}

#[test]
fn a_bad_value_is_refused_with_key_value_origin_and_what_is_allowed() {
    let listen = "invalid socket address syntax; allowed: an address and a port, such as 127.0.0.1:8080 (port 0: any free one)";
    let numbers = "allowed: 0 to 60000";
    for (given, refusal) in [
        (
            given().env("HYGEIA__HTTP__LISTEN", "localhost"),
            format!("http.listen = \"localhost\", from environment variable HYGEIA__HTTP__LISTEN: {listen}"),
        ),
        (
            given().file("[http]\nlisten = 8080\n"),
            "http.listen = 8080, from node.toml:2: expected text in quotes, not a whole number; allowed: an address and a port, such as 127.0.0.1:8080 (port 0: any free one)".to_owned(),
        ),
        (
            given().set("telemetry.flush_max_ms", "-1"),
            format!("telemetry.flush_max_ms = \"-1\", from argument --set: {numbers}"),
        ),
        (
            given().file("[telemetry]\nflush_max_ms = \"2000\"\n"),
            format!("telemetry.flush_max_ms = \"2000\", from node.toml:2: {numbers}"),
        ),
        (
            given().file("[telemetry]\nflush_max_ms = 0.5\n"),
            format!("telemetry.flush_max_ms = 0.5, from node.toml:2: {numbers}"),
        ),
        (
            given().env("HYGEIA__TELEMETRY__FORMAT", "xml"),
            "telemetry.format = \"xml\", from environment variable HYGEIA__TELEMETRY__FORMAT: allowed: auto, json, text".to_owned(),
        ),
        (
            given().file("[grpc]\nrequire_token = \"yes\"\n"),
            "grpc.require_token = \"yes\", from node.toml:2: expected true or false".to_owned(),
        ),
        (
            given().file("[node]\nroles = [\"front\",\n  \"nurse\"]\n"),
            "node.roles = \"nurse\", from node.toml:3: allowed: front, patient, billing, bridge, analytics".to_owned(),
        ),
        (
            given().file("node = 3\n"),
            "node = 3, from node.toml:1: expected a section with keys, not a whole number".to_owned(),
        ),
        (
            given().env("HYGEIA__NODE__NAME__X", "a"),
            "node.name = {…}, from environment variable HYGEIA__NODE__NAME__X: expected text in quotes, not a section".to_owned(),
        ),
        (
            given().set("node.name", "Node_1"),
            "node.name = \"Node_1\", from argument --set: allowed: 1 to 63 small letters, digits and hyphens, no hyphen first or last".to_owned(),
        ),
        (
            given().env("HYGEIA__NODE__ROLES", ""),
            "node.roles = \"\", from environment variable HYGEIA__NODE__ROLES: at least one of: front, patient, billing, bridge, analytics".to_owned(),
        ),
        (
            given().env("HYGEIA__DATA_DIR", ""),
            "data_dir = \"\", from environment variable HYGEIA__DATA_DIR: expected the path of a directory".to_owned(),
        ),
        (
            given().set("telemetry.line_max_bytes", "1"),
            "telemetry.line_max_bytes = \"1\", from argument --set: at least 512 is needed".to_owned(),
        ),
    ] {
        assert_eq!(given.refusal(), refusal);
    }
    let refusal = given().env("HYGEIA_LOG", "hygeia=loud").refusal();
    let start = "telemetry.filter = \"hygeia=loud\", from environment variable HYGEIA_LOG: ";
    assert!(refusal.starts_with(start) && refusal.contains("allowed: target=level"), "{refusal}");
}

#[test]
fn a_layer_that_cannot_be_read_is_refused() {
    let mut missing = given();
    missing.inputs.file = Some(missing.dir.path().join("none.toml"));
    assert!(missing.refusal().starts_with("the configuration file none.toml cannot be read: No such file"));
    let refusal = given().file("[auth]\njwt_secret = canary\n").refusal();
    assert!(refusal.starts_with("node.toml:2: not TOML: "), "{refusal}");
    let refusal = given().file("a = 1\na = 2\n").refusal();
    assert!(refusal.starts_with("node.toml:2: not TOML: duplicate key"), "{refusal}");
    let refusal = given().file(&"#\n".repeat(600_000)).refusal();
    assert!(refusal.contains("larger than 1048576 bytes"), "{refusal}");
    let refusal = given().file("[telemetry]\nflush_max_ms = 99999999999999999999\n").refusal();
    assert_eq!(
        refusal,
        "telemetry.flush_max_ms, from node.toml:2: so large a number does not fit any setting"
    );
}

#[test]
fn misspelt_and_repeated_variables_are_refused() {
    assert_eq!(
        given().env("HYGEIA_HTTP__LISTEN", "x").refusal(),
        "environment variable HYGEIA_HTTP__LISTEN: no such setting; is HYGEIA__HTTP__LISTEN meant?"
    );
    assert_eq!(
        given().env("HYGEIA__HTTP____LISTEN", "x").refusal(),
        "environment variable HYGEIA__HTTP____LISTEN: no such setting; the form is HYGEIA__SECTION__KEY"
    );
    assert_eq!(
        given().env("HYGEIA_LOG", "info").env("HYGEIA__TELEMETRY__FILTER", "warn").refusal(),
        "telemetry.filter, from environment variable HYGEIA__TELEMETRY__FILTER: set twice, also by environment \
         variable HYGEIA_LOG"
    );
    assert_eq!(
        given().env("HYGEIA__HTTP", "x").env("HYGEIA__HTTP__LISTEN", "127.0.0.1:1").refusal(),
        "http = \"x\", from environment variable HYGEIA__HTTP: environment variable HYGEIA__HTTP__LISTEN sets a key \
         in it: either http is a value, or it has keys"
    );
    use std::os::unix::ffi::OsStringExt;
    let refusal = given().env("HYGEIA__NODE__NAME", OsString::from_vec(vec![0xff])).refusal();
    assert_eq!(refusal, "node.name, from environment variable HYGEIA__NODE__NAME: the value is not UTF-8");
    given().env("HYGEIA_PORT", "tcp://10.0.0.1:8080").env("HYGEIA_LOG", "info").load();
}

#[test]
fn a_secret_may_come_from_a_file_and_is_never_shown() {
    let given_file = given();
    let path = given_file.content("jwt", &format!("{SECRET}\n"));
    let url = given_file.content("url", "postgres://joe:canary@db/hygeia\r\n");
    let given_file = given_file
        .env("HYGEIA__AUTH__JWT_SECRET_FILE", &path)
        .env("HYGEIA__AUDIT__SECRET", SECRET)
        .env("HYGEIA__STORE__URL_FILE", &url)
        .set("kafka.brokers", "broker:9092");
    let loaded = given_file.load();
    loaded.check().unwrap();
    assert_eq!(loaded.config.auth.jwt_secret.as_ref().unwrap().reveal(), SECRET);
    assert_eq!(loaded.config.store.url, "postgres://joe:canary@db/hygeia");
    let effective = loaded.effective();
    assert!(effective.contains("auth.jwt_secret = (hidden)  # "), "{effective}");
    assert!(effective.contains("store.url = \"postgres://joe:***@db/hygeia\"  # "), "{effective}");
    assert!(effective.contains("/jwt (named by environment variable HYGEIA__AUTH__JWT_SECRET_FILE)"));
    assert!(!effective.contains("canary") && !format!("{:?}", loaded.config).contains("canary"));

    let file = format!("[auth]\njwt_secret_file = \"{}\"\n", path.display());
    assert_eq!(given().file(&file).load().config.auth.jwt_secret.unwrap().reveal(), SECRET);
    let over = given().file(&file).env("HYGEIA__AUTH__JWT_SECRET", "of the environment").load();
    assert_eq!(over.config.auth.jwt_secret.unwrap().reveal(), "of the environment");
}

#[test]
fn secrets_that_cannot_be_taken_are_refused_without_showing_them() {
    let name = "HYGEIA__AUTH__JWT_SECRET_FILE";
    let both = given();
    let path = both.content("jwt", SECRET);
    assert!(both.env(name, &path).env("HYGEIA__AUTH__JWT_SECRET", SECRET).refusal().ends_with(
        "auth.jwt_secret is set as well, by environment variable HYGEIA__AUTH__JWT_SECRET: set one of them"
    ));
    let refusal = given().env(name, "/nowhere/jwt").refusal();
    assert!(refusal.starts_with("auth.jwt_secret_file = \"/nowhere/jwt\", from environment variable HYGEIA__AUTH__JWT_SECRET_FILE: the file cannot be read: No such file"), "{refusal}");
    let empty = given();
    let path = empty.content("jwt", "\n");
    assert!(empty.env(name, &path).refusal().ends_with("the file cannot be used: it is empty"));
    let large = given();
    let path = large.content("jwt", &"canary".repeat(20_000));
    assert!(large.env(name, &path).refusal().ends_with("it is larger than 65536 bytes"));

    let refusal = given().set("auth.jwt_secret", SECRET).refusal();
    assert_eq!(
        refusal,
        "auth.jwt_secret, from argument --set: every process can read a command line; use the variable \
         HYGEIA__AUTH__JWT_SECRET or HYGEIA__AUTH__JWT_SECRET_FILE"
    );
    let refusal = given().set("store.url", "postgres://joe:canary@db/hygeia").refusal();
    assert!(refusal.contains("every process can read"), "{refusal}");
    given().set("store.url", "postgres://joe@db/hygeia").load();
    assert_eq!(
        given().file("[auth]\njwt_secret = [\"canary\"]\n").refusal(),
        "auth.jwt_secret = (hidden), from node.toml:2: it cannot be read as what it should be"
    );
    let refusal =
        given().env("HYGEIA__AUTH__JWT_SECRET", "canary").set("http.listen", "0.0.0.0:80").serving_refusal();
    assert!(refusal.starts_with("auth.jwt_secret = (hidden), from environment variable HYGEIA__AUTH__JWT_SECRET: at least 32 bytes"), "{refusal}");
}

#[test]
fn only_the_embedded_node_on_loopback_needs_no_secret() {
    assert!(given().load().config.is_embedded_demo());
    given().set("http.listen", "127.0.0.1:0").set("grpc.listen", "[::1]:0").load().check().unwrap();
    for (key, value) in [
        ("http.listen", "0.0.0.0:8080"),
        ("grpc.listen", "[::]:9001"),
        ("kafka.brokers", "broker:9092"),
        ("store.url", "sqlite:other.db"),
    ] {
        let refusal = given().set(key, value).serving_refusal();
        assert!(refusal.starts_with("audit.secret: not set; set HYGEIA__AUDIT__SECRET, or"), "{refusal}");
        let given_one = given().set(key, value).env("HYGEIA__AUDIT__SECRET", SECRET);
        given_one.load().check().unwrap();
        let given_one = given_one.set("auth.token_algorithm", "HS256");
        assert!(!given_one.load().config.is_embedded_demo(), "{key}");
        let refusal = given_one.serving_refusal();
        let how = "auth.jwt_secret: not set, and auth.token_algorithm is HS256; set HYGEIA__AUTH__JWT_SECRET, or \
                   HYGEIA__AUTH__JWT_SECRET_FILE";
        assert!(refusal.starts_with(how), "{refusal}");
        given_one.env("HYGEIA__AUTH__JWT_SECRET", SECRET).load().check().unwrap();
    }
}

#[test]
fn the_demo_secret_is_made_kept_and_made_for_no_other_node() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data").display().to_string();
    let secret = |given: Given| {
        let given = given.set("data_dir", &data_dir).set("auth.token_algorithm", "HS256");
        let mut config = given.load().config;
        config.ensure_secrets().unwrap();
        config.auth.jwt_secret.map(|secret| secret.reveal().to_owned())
    };
    let made = secret(given()).unwrap();
    assert!(made.len() >= 32);
    assert_eq!(secret(given()), Some(made));
    assert_eq!(secret(given().env("HYGEIA__AUTH__JWT_SECRET", SECRET)).as_deref(), Some(SECRET));
    assert_eq!(secret(given().set("http.listen", "0.0.0.0:1")), None);
}

#[test]
fn rules_between_sections_are_all_told_at_once() {
    let given_open = given().set("grpc.listen", "0.0.0.0:9001").set("grpc.require_token", "false");
    let given_open = given_open.env("HYGEIA__AUDIT__SECRET", SECRET);
    assert_eq!(
        given_open.serving_refusal(),
        "grpc.require_token = \"false\", from argument --set: allowed only if grpc.listen is a loopback address, \
         and it is 0.0.0.0:9001"
    );
    let hs256 = given().set("auth.token_algorithm", "HS256").env("HYGEIA__AUDIT__SECRET", SECRET);
    let refusal = hs256.set("node.roles", "front,patient").serving_refusal();
    let lines: Vec<_> = refusal.lines().collect();
    assert_eq!(lines.len(), 4, "{refusal}");
    assert!(lines[0].starts_with("auth.jwt_secret: not set"));
    assert!(
        lines[1].starts_with(
            "node.roles = \"front,patient\", from argument --set: billing, bridge, analytics would run nowhere"
        ),
        "{refusal}"
    );
    assert!(lines[2].starts_with("store.url: SQLite is for one node that has every role"));
    assert!(lines[3].starts_with("kafka.brokers: the embedded broker is for one node that has every role"));
}
