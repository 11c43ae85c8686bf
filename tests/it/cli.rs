//! The program, run as a process: what it prints where, and its exit codes.

use std::process::{Command, Output, Stdio};

const SECRET: &str = "canary-7f3Q9zKx2mVb8TsLw5RdYc4N-canary";

/// Runs the program in a new directory with this environment alone.
fn hygeia(arguments: &[&str], environment: &[(&str, &str)]) -> (Output, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_hygeia"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output, dir)
}

/// The exit code, standard output and standard error.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let (output, _dir) = hygeia(arguments, environment);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn check_prints_what_a_node_would_use_and_makes_nothing() {
    let (output, dir) = hygeia(&["check"], &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("http.listen = \"127.0.0.1:8080\"  # default\n"), "{text}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a check leaves nothing behind");
}

#[test]
fn a_reader_who_has_seen_enough_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hygeia"));
    // More than a pipe holds.
    command.arg("openapi").env_clear().current_dir(dir.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn check_hides_secrets() {
    let environment = [
        ("HYGEIA__AUTH__JWT_SECRET", SECRET),
        ("HYGEIA__AUDIT__SECRET", SECRET),
        ("HYGEIA__STORE__URL", "postgres://joe:canary@db/hygeia"),
        ("HYGEIA__HTTP__LISTEN", "0.0.0.0:8080"),
    ];
    let (code, out, err) = run(&["check", "--kafka-brokers", "broker:9092"], &environment);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(
        out.contains("auth.jwt_secret = (hidden)  # environment variable HYGEIA__AUTH__JWT_SECRET\n"),
        "{out}"
    );
    assert!(out.contains("store.url = \"postgres://joe:***@db/hygeia\"") && !out.contains("canary"), "{out}");
    assert!(out.contains("kafka.brokers = \"broker:9092\"  # argument --kafka-brokers\n"), "{out}");
}

#[test]
fn a_wrong_configuration_is_told_with_exit_code_78_by_every_command() {
    let listen = "hygeia: http.listen = \"nowhere\", from environment variable HYGEIA__HTTP__LISTEN: invalid socket \
                  address syntax; allowed: an address and a port, such as 127.0.0.1:8080 (port 0: any free one)\n";
    let commands: [&[&str]; 7] = [
        &[],
        &["serve"],
        &["check"],
        &["migrate"],
        &["healthcheck"],
        &["user", "list"],
        &["user", "add", "joe@example.com", "--role", "ADMIN"],
    ];
    for command in commands {
        let (code, out, err) = run(command, &[("HYGEIA__HTTP__LISTEN", "nowhere")]);
        assert_eq!((code, out.as_str(), err.as_str()), (78, "", listen), "{command:?}");
    }
    for (arguments, environment, told) in [
        (
            &["check", "--set", "http.lissen=canary"][..],
            [("A", "b")],
            "http.lissen, from argument --set: unknown key",
        ),
        (&["check"], [("HYGEIA__AUTH__JWT_SECRET", "canary")], "at least 32 bytes are needed"),
        (
            &["--http-listen", "0.0.0.0:0"],
            [("HYGEIA__AUTH__TOKEN_ALGORITHM", "HS256")],
            "auth.jwt_secret: not set, and auth.token_algorithm is HS256; set HYGEIA__AUTH__JWT_SECRET",
        ),
        (&["check"], [("HYGEIA_CONFIG", "none.toml")], "the configuration file none.toml cannot be read"),
        (
            &["check", "--config", "none.toml"],
            [("A", "b")],
            "the configuration file none.toml cannot be read",
        ),
    ] {
        let (code, out, err) = run(arguments, &environment);
        assert_eq!((code, out.as_str()), (78, ""), "{err}");
        assert!(err.contains(told) && !err.contains("canary"), "{err}");
    }
}

#[test]
fn wrong_arguments_are_told_with_exit_code_64_and_help_is_no_failure() {
    for arguments in [
        &["fly"][..],
        &["serve", "--fly"],
        &["user"],
        &["user", "add", "joe@example.com"],
        &["check", "--set", "canary"],
    ] {
        let (code, out, err) = run(arguments, &[]);
        assert_eq!((code, out.as_str()), (64, ""), "{arguments:?}");
        assert!(!err.is_empty() && !err.contains("canary"), "{err}");
    }
    let (code, out, err) = run(&["--help"], &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("78  the configuration is wrong") && out.contains("healthcheck"), "{out}");
    let (code, out, _) = run(&["--version"], &[]);
    assert_eq!((code, out), (0, format!("hygeia {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn healthcheck_fails_when_no_node_runs() {
    let (code, out, err) = run(&["healthcheck", "--http-listen", "127.0.0.1:0"], &[]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("the node is not running"), "{err}");
    // Port 1 of loopback: nobody listens there.
    let (code, _, err) = run(&["healthcheck", "--http-listen", "127.0.0.1:1"], &[]);
    assert!(code == 1 && err.contains("the node at 127.0.0.1:1 does not answer"), "{err}");
}

/// The repository's own file.
fn cluster_toml() -> String {
    format!("{}/cluster.toml", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_node_of_a_cluster_is_refused_with_the_reason() {
    let file = cluster_toml();
    let secrets = [("HYGEIA__CLUSTER__SECRET", SECRET), ("HYGEIA__AUDIT__SECRET", SECRET)];
    for (arguments, told) in [
        (
            &["serve", "--config", &file, "--node", "patient-7"][..],
            "there is no node \"patient-7\"; allowed: front, patient-1,",
        ),
        (
            &["serve", "--config", &file],
            "which of the nodes to run is not said: --node NAME or HYGEIA_NODE=NAME",
        ),
        (
            &["serve", "--config", &file, "--node", "front", "--store-url", "sqlite:hygeia.db"],
            "store.url = \"sqlite:hygeia.db\", from argument --store-url: SQLite is for one process alone",
        ),
        (
            &["serve", "--config", &file, "--node", "front", "--kafka-brokers", "embedded"],
            "kafka.brokers = \"embedded\", from argument --kafka-brokers: the embedded broker is for one process alone",
        ),
        (&["serve", "--node", "front"], "no nodes are named: a file with [[cluster.nodes]] does that"),
        (&["serve", "--roles", "patient"], "front, billing, bridge, analytics would run nowhere"),
        (
            &["serve", "--roles", "nurse"],
            "node.roles = \"nurse\", from argument --roles: allowed: front, patient,",
        ),
        (&["serve", "--join", "here"], "\"here\" is no address; allowed: host:port"),
        (
            &["serve", "--join", "127.0.0.1:7101", "--roles", "patient"],
            "node.name: a node that joins says it: --name",
        ),
        (
            &[
                "serve",
                "--config",
                &file,
                "--join",
                "127.0.0.1:7101",
                "--roles",
                "patient",
                "--name",
                "patient-1",
            ],
            "it is a node of the file: --node runs it",
        ),
    ] {
        let (code, out, err) = run(arguments, &secrets);
        assert_eq!((code, out.as_str()), (78, ""), "{arguments:?}: {err}");
        assert!(err.contains(told) && !err.contains("canary"), "{arguments:?}: {err}");
    }
    let (code, _, err) = run(&["serve", "--config", &file, "--node", "front"], &secrets[1..]);
    assert!(code == 78 && err.contains("cluster.secret: not set, and nodes show it to each other"), "{err}");
    for usage in [&["serve", "--node", "a", "--join", "b:1"][..], &["serve", "--node", "a", "--name", "b"]] {
        assert_eq!(run(usage, &secrets).0, 64, "{usage:?}");
    }
}

#[test]
fn check_looks_at_every_node_of_a_cluster() {
    let file = cluster_toml();
    let secrets = [
        ("HYGEIA__CLUSTER__SECRET", SECRET),
        ("HYGEIA__AUDIT__SECRET", SECRET),
        ("HYGEIA__AUTH__TOKEN_ALGORITHM", "HS256"),
        ("HYGEIA__AUTH__JWT_SECRET", SECRET),
    ];
    let (code, out, err) = run(&["check", "--config", &file], &secrets);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("cluster.nodes[1].name = \"patient-1\"  # ") && !out.contains("canary"), "{out}");
    let (code, out, _) = run(&["check", "--config", &file, "--node", "billing"], &secrets);
    assert!(code == 0 && out.contains("grpc.listen = \"127.0.0.1:9001\"  # "), "{out}");
    let (code, _, err) = run(&["check", "--config", &file], &secrets[..3]);
    assert_eq!(code, 78, "{err}");
    assert_eq!(err.matches("auth.jwt_secret: not set, and").count(), 1, "once is enough: {err}");
}
