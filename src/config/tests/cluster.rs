//! The section `cluster`: the settings of the chosen node, and every refusal.

use super::*;

/// A file with three nodes that together have every role, preceded by the text `more`.
fn nodes(more: &str) -> String {
    format!(
        "[store]\nurl = \"postgres://hygeia@127.0.0.1/hygeia\"\n[kafka]\nbrokers = \"127.0.0.1:9092\"\n{more}\n\
         [[cluster.nodes]]\nname = \"front\"\naddress = \"127.0.0.1:7101\"\nroles = [\"front\"]\n\
         set = {{ http.listen = \"127.0.0.1:8181\", data_dir = \"of-front\" }}\n\
         [[cluster.nodes]]\nname = \"patient-1\"\naddress = \"127.0.0.1:7102\"\nroles = [\"patient\"]\n\
         [[cluster.nodes]]\nname = \"rest\"\naddress = \"127.0.0.1:7103\"\n\
         roles = [\"billing\", \"bridge\", \"analytics\"]\n"
    )
}

/// Inputs with that file and the secrets that its nodes need.
fn given_nodes(more: &str) -> Given {
    given().file(&nodes(more)).env("HYGEIA__CLUSTER__SECRET", SECRET).env("HYGEIA__AUDIT__SECRET", SECRET)
}

impl Given {
    fn node(mut self, name: &str) -> Self {
        self.inputs.node = Some(name.to_owned());
        self
    }
}

#[test]
fn each_node_of_cluster_toml_may_serve() {
    let secrets =
        |given: Given| given.env("HYGEIA__CLUSTER__SECRET", SECRET).env("HYGEIA__AUDIT__SECRET", SECRET);
    let file = || secrets(given().file(effective::DEFAULTS));
    let names = file().load().nodes_to_choose();
    assert_eq!(names, ["front", "patient-1", "patient-2", "billing", "analytics"]);
    let (mut listens, mut places) = (std::collections::BTreeSet::new(), Vec::new());
    for name in &names {
        let loaded = file().node(name).load();
        loaded.check().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(loaded.nodes_to_choose().is_empty() && !loaded.config.is_embedded_demo());
        assert_eq!(loaded.config.node.name, *name);
        assert!(listens.insert(loaded.config.http.listen) && loaded.config.data_dir.ends_with(name));
        places.push(loaded.config.place().unwrap());
    }
    assert_eq!(places[1].listen.to_string(), "127.0.0.1:7102");
    assert_eq!(places[1].advertise.as_deref(), Some("127.0.0.1:7102"));
    assert_eq!(places[1].others.len(), 4);
    assert!(!places[1].others.iter().any(|(name, _)| name == "patient-1"));
    assert!(given().load().config.place().is_none(), "a node alone has no place in a cluster");
}

#[test]
fn a_nodes_own_settings_lie_over_the_file_and_under_the_environment() {
    let given = || given_nodes("[http]\nlisten = \"127.0.0.1:9191\"\nin_flight_max = 7\n");
    let front = given().node("front").load();
    assert_eq!(front.config.http.listen.port(), 8181);
    assert_eq!(front.config.http.in_flight_max, 7);
    assert_eq!(front.config.data_dir, Path::new("of-front"));
    let effective = front.effective();
    for line in [
        "node.name = \"front\"  # ",
        "cluster.listen = \"127.0.0.1:7101\"  # ",
        "cluster.nodes[2].name = \"rest\"",
    ] {
        assert!(effective.lines().any(|l| l.starts_with(line)), "{line} in\n{effective}");
    }
    assert!(effective.contains("cluster.secret = (hidden)"), "{effective}");
    let other = given().node("patient-1").load().config;
    assert_eq!((other.http.listen.port(), other.roles_text()), (9191, "patient".to_owned()));
    let over = given().node("front").env("HYGEIA__HTTP__LISTEN", "127.0.0.1:1").load().config;
    assert_eq!(over.http.listen.port(), 1);
    let by_variable = given().env("HYGEIA_NODE", "rest").load().config;
    assert_eq!(by_variable.node.name, "rest");
    let by_argument = given().env("HYGEIA_NODE", "rest").node("front").load().config;
    assert_eq!(by_argument.node.name, "front");
}

impl Config {
    fn roles_text(&self) -> String {
        self.node.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(",")
    }
}

#[test]
fn only_the_chosen_nodes_secret_files_are_read() {
    let file = nodes("").replace(
        "roles = [\"patient\"]\n",
        "roles = [\"patient\"]\nset = { cluster.secret_file = \"/nowhere/secret\" }\n",
    );
    let given = || given().file(&file).env("HYGEIA__AUDIT__SECRET", SECRET);
    given().env("HYGEIA__CLUSTER__SECRET", SECRET).node("front").load().check().unwrap();
    let refusal = given().node("patient-1").refusal();
    assert!(
        refusal.starts_with(
            "cluster.secret_file = \"/nowhere/secret\", from node.toml:15: the file cannot be read"
        ),
        "{refusal}"
    );
    let kept = super::given();
    let path = kept.content("secret", &format!("{SECRET}\n"));
    let kept = kept.file(&nodes("")).env("HYGEIA__CLUSTER__SECRET_FILE", path).node("patient-1");
    let kept = kept.env("HYGEIA__AUDIT__SECRET", SECRET).load();
    assert_eq!(kept.config.cluster.secret.as_ref().unwrap().reveal(), SECRET);
    kept.check().expect("a node with neither HTTP routes nor gRPC needs no secret for tokens");
}

#[test]
fn a_slip_in_any_nodes_settings_is_told_with_its_line() {
    let slip = |from: &str, to: &str| {
        let file = nodes("").replacen(from, to, 1);
        assert_ne!(file, nodes(""), "{from}");
        given().file(&file).node("patient-1").refusal()
    };
    let allowed = "allowed: front, patient, billing, bridge, analytics";
    for (from, to, refusal) in [
        ("http.listen", "http.lissen", "http.lissen, from node.toml:10: unknown key; allowed here: listen,"),
        (
            "roles = [\"billing\"",
            "roles = [\"nurse\"",
            &format!("cluster.nodes[2].roles = \"nurse\", from node.toml:18: {allowed}"),
        ),
        (
            "name = \"rest\"",
            "nam = \"rest\"",
            "cluster.nodes[2].nam, from node.toml:16: unknown key; allowed here: name, address, roles, set",
        ),
        (
            "\"rest\"",
            "3",
            "cluster.nodes[2].name = 3, from node.toml:16: expected text in quotes, not a whole number",
        ),
        (
            "\"rest\"",
            "\"The Rest\"",
            "cluster.nodes[2].name = \"The Rest\", from node.toml:16: allowed: 1 to 63 small letters",
        ),
        (
            "\"rest\"",
            "\"front\"",
            "cluster.nodes[2].name = \"front\", from node.toml:16: cluster.nodes[0].name has the same name",
        ),
        (
            "127.0.0.1:7103",
            "127.0.0.1:7101",
            "cluster.nodes[2].address = \"127.0.0.1:7101\", from node.toml:17: cluster.nodes[0].address has the same address",
        ),
        (
            "127.0.0.1:7103",
            "7103",
            "cluster.nodes[2].address = \"7103\", from node.toml:17: allowed: host:port",
        ),
        (
            "address = \"127.0.0.1:7103\"\n",
            "",
            "cluster.nodes[2].address, from node.toml:15: allowed: host:port",
        ),
        (
            "[\"billing\", \"bridge\", \"analytics\"]",
            "[]",
            "cluster.nodes[2].roles = [], from node.toml:18: at least one of",
        ),
        ("set = {", "set = 3 # {", "cluster.nodes.set = 3, from node.toml:10: expected a section with keys"),
        (
            "[\"front\"]",
            "[\"patient\"]",
            "cluster.nodes = [{…}, {…}, {…}], from node.toml:6: no node has the role front; a cluster needs each role once",
        ),
    ] {
        let told = slip(from, to);
        assert!(told.starts_with(refusal), "{told}\nwanted {refusal}");
    }
}

#[test]
fn which_node_to_run_must_be_said_and_be_there() {
    let refusal = given_nodes("").serving_refusal();
    assert_eq!(
        refusal,
        "cluster.nodes: which of the nodes to run is not said: --node NAME or HYGEIA_NODE=NAME, and NAME one of \
         front, patient-1, rest; another node joins with --join"
    );
    assert_eq!(
        given_nodes("").node("patient-2").refusal(),
        "cluster.nodes, from argument --node: there is no node \"patient-2\"; allowed: front, patient-1, rest"
    );
    let refusal = given().env("HYGEIA_NODE", "front").refusal();
    assert!(
        refusal.starts_with("cluster.nodes, from environment variable HYGEIA_NODE: there is no node \"front\"; no nodes are named"),
        "{refusal}"
    );
    let refusal = given_nodes("").node("front").set("node.name", "other").serving_refusal();
    assert!(
        refusal.contains("a node of the file keeps its name; allowed: front, patient-1, rest"),
        "{refusal}"
    );
}

/// Inputs of a node that joins, with everything it needs.
fn joining(join: &str) -> Given {
    given()
        .env("HYGEIA__CLUSTER__SECRET", SECRET)
        .env("HYGEIA__AUDIT__SECRET", SECRET)
        .env("HYGEIA__STORE__URL", "postgres://hygeia@db/hygeia")
        .env("HYGEIA__KAFKA__BROKERS", "broker:9092")
        .set("cluster.join", join)
}

#[test]
fn a_node_that_joins_says_who_it_is() {
    let taken = joining("127.0.0.1:7101,[::1]:7102")
        .set("node.name", "patient-9")
        .env("HYGEIA__NODE__ROLES", "patient");
    let loaded = taken.load();
    loaded.check().unwrap();
    let place = loaded.config.place().unwrap();
    assert_eq!((place.listen.to_string(), place.advertise), ("127.0.0.1:0".to_owned(), None));
    assert_eq!(place.join, ["127.0.0.1:7101", "[::1]:7102"]);
    let refusal = joining("127.0.0.1:7101").serving_refusal();
    assert_eq!(
        refusal,
        "node.name: a node that joins says it: --name\nnode.roles: a node that joins says it: --roles"
    );
    let refusal = joining("7101").refusal();
    assert!(
        refusal.starts_with(
            "cluster.join = \"7101\", from argument --set: \"7101\" is no address; allowed: host:port"
        ),
        "{refusal}"
    );
    let in_file =
        joining("127.0.0.1:7101").file(&nodes("")).set("node.name", "rest").set("node.roles", "patient");
    assert!(
        in_file
            .serving_refusal()
            .starts_with("node.name = \"rest\", from argument --set: it is a node of the file")
    );
    let far = joining("front:7100").set("node.name", "p").set("node.roles", "patient").serving_refusal();
    assert!(
        far.contains("cluster.listen: not set, and a node elsewhere cannot reach one on loopback"),
        "{far}"
    );
    assert!(far.contains("cluster.join = \"front:7100\", from argument --set: leaves this machine"), "{far}");
}

#[test]
fn what_one_process_has_to_itself_is_refused_for_many() {
    let with = |key: &str, value: &str| given_nodes("").node("patient-1").set(key, value).serving_refusal();
    let refusal = with("store.url", "sqlite:hygeia.db");
    assert_eq!(
        refusal,
        "store.url = \"sqlite:hygeia.db\", from argument --set: SQLite is for one process alone, and this node is \
         one of a cluster; use postgres://user@host:port/database"
    );
    let refusal = with("kafka.brokers", "embedded");
    assert!(refusal.contains("the embedded broker is for one process alone"), "{refusal}");
    // A node that has every role but lets others join is also in a cluster.
    let refusal = given()
        .set("cluster.listen", "127.0.0.1:7100")
        .env("HYGEIA__CLUSTER__SECRET", SECRET)
        .serving_refusal();
    assert!(refusal.contains("store.url: SQLite is for one process alone"), "{refusal}");
    assert!(refusal.contains("kafka.brokers: the embedded broker is for one process alone"), "{refusal}");
}

#[test]
fn the_clusters_secret_must_be_there_and_long_enough() {
    let file = || given().file(&nodes("")).env("HYGEIA__AUDIT__SECRET", SECRET).node("patient-1");
    assert_eq!(
        file().serving_refusal(),
        "cluster.secret: not set, and nodes show it to each other; set HYGEIA__CLUSTER__SECRET, or \
         HYGEIA__CLUSTER__SECRET_FILE to a file that holds it"
    );
    let bytes = "f3a91c07e64bd2588e1f6a40c97db35";
    assert_eq!(
        file().env("HYGEIA__CLUSTER__SECRET", bytes).refusal(),
        "cluster.secret = (hidden), from environment variable HYGEIA__CLUSTER__SECRET: at least 32 bytes are needed, \
         and it has 31; `openssl rand -base64 48` makes some"
    );
    file().env("HYGEIA__CLUSTER__SECRET", format!("{bytes}f")).load().check().unwrap();
    let refusal = file().set("cluster.secret", SECRET).refusal();
    assert!(refusal.contains("every process can read a command line"), "{refusal}");
    // Front and billing check tokens.
    for (name, needed) in [("front", true), ("rest", true), ("patient-1", false)] {
        let given = given().file(&nodes("")).env("HYGEIA__CLUSTER__SECRET", SECRET).node(name);
        let given = given.env("HYGEIA__AUDIT__SECRET", SECRET).env("HYGEIA__AUTH__TOKEN_ALGORITHM", "HS256");
        assert_eq!(given.load().check().is_err(), needed, "{name}");
    }
}

#[test]
fn what_seals_the_audit_must_be_there_and_long_enough() {
    let file = || given().file(&nodes("")).env("HYGEIA__CLUSTER__SECRET", SECRET).node("patient-1");
    assert_eq!(
        file().serving_refusal(),
        "audit.secret: not set; set HYGEIA__AUDIT__SECRET, or HYGEIA__AUDIT__SECRET_FILE to a file that holds it: at \
         least 32 bytes, such as `openssl rand -base64 48` makes (only a node with the embedded database and broker \
         on loopback makes its own)"
    );
    file().set("audit.enabled", "false").load().check().unwrap();
    file().env("HYGEIA__AUDIT__SECRET", SECRET).load().check().unwrap();
    let short = file().env("HYGEIA__AUDIT__SECRET", "canary").refusal();
    assert!(
        short.starts_with("audit.secret = (hidden), from environment variable HYGEIA__AUDIT__SECRET: "),
        "{short}"
    );
    assert!(short.ends_with("at least 32 bytes") && !short.contains("canary"), "{short}");
}

#[test]
fn limits_have_bounds() {
    let refusal =
        given().set("cluster.misses_max", "0").set("cluster.heartbeat_timeout_ms", "60001").refusal();
    assert_eq!(
        refusal,
        "cluster.heartbeat_timeout_ms = \"60001\", from argument --set: allowed: 10 to 60000\n\
         cluster.misses_max = \"0\", from argument --set: allowed: 1 to 100"
    );
    let many = given_nodes("").node("front").set("cluster.peers_max", "1").serving_refusal();
    assert_eq!(many, "cluster.peers_max = \"1\", from argument --set: cluster.nodes names 2 other nodes");
    given_nodes("").node("front").set("cluster.peers_max", "2").load().check().unwrap();
}

#[test]
fn nothing_of_the_cluster_leaves_the_machine_without_certificates() {
    let open = given_nodes("").node("front").set("cluster.listen", "0.0.0.0:7101");
    assert_eq!(
        open.serving_refusal(),
        "cluster.listen = \"0.0.0.0:7101\", from argument --set: 0.0.0.0:7101 leaves this machine, which needs \
         certificates: set cluster.tls.ca_file, cert_file and key_file, or stay on loopback"
    );
    let elsewhere = nodes("").replace("127.0.0.1:7103", "10.0.0.3:7103");
    let elsewhere = given_nodes("").file(&elsewhere).node("front").serving_refusal();
    assert!(
        elsewhere.starts_with(
            "cluster.nodes[2].address = \"10.0.0.3:7103\", from node.toml:17: leaves this machine"
        ),
        "{elsewhere}"
    );
    let named = nodes("").replace("127.0.0.1:7101", "front:7101");
    let named = given_nodes("").file(&named).node("front").serving_refusal();
    assert!(named.starts_with("cluster.listen: not set, and the node's address is a name"), "{named}");
    let nowhere = joining("127.0.0.1:1")
        .set("node.name", "p")
        .set("node.roles", "patient")
        .set("cluster.listen", "0.0.0.0:1");
    assert!(nowhere.serving_refusal().contains("cluster.advertise: not set, and nobody can reach 0.0.0.0:1"));
}

#[test]
fn certificates_must_be_there_and_be_certificates() {
    let with_tls = |ca: &str, cert: &str, key: &str| {
        let given = given_nodes("").node("front").set("cluster.listen", "0.0.0.0:7101");
        let mut set = Vec::new();
        for (name, content) in [("ca_file", ca), ("cert_file", cert), ("key_file", key)] {
            if !content.is_empty() {
                set.push((format!("cluster.tls.{name}"), given.content(name, content).display().to_string()));
            }
        }
        set.into_iter().fold(given, |given, (key, path)| given.set(&key, &path))
    };
    let (cert, key) = ("-----BEGIN CERTIFICATE-----\n", "-----BEGIN EC PRIVATE KEY-----\n");
    with_tls(cert, cert, key).load().check().unwrap();
    let refusal = with_tls(cert, cert, "").serving_refusal();
    assert_eq!(refusal, "cluster.tls.key_file: not set; certificates need ca_file, cert_file and key_file");
    let refusal = with_tls(key, "canary", cert).serving_refusal();
    assert_eq!(refusal.lines().count(), 3, "{refusal}");
    assert!(refusal.contains("the file has no PEM section with BEGIN CERTIFICATE"), "{refusal}");
    assert!(refusal.contains("the file has no PEM section with PRIVATE KEY"), "{refusal}");
    let gone = with_tls(cert, cert, key).set("cluster.tls.ca_file", "/nowhere/ca.pem").serving_refusal();
    assert!(gone.starts_with("cluster.tls.ca_file = \"/nowhere/ca.pem\", from argument --set: the file cannot be read: No such file"), "{gone}");
    let refusal = with_tls(cert, cert, key).set("cluster.tls.allowed_suffix", "org").serving_refusal();
    assert!(refusal.contains("a part of a name that begins with a dot"), "{refusal}");
}

#[test]
fn the_hosts_name_stands_where_the_placeholder_was() {
    let joining = |host: Option<&str>| {
        let mut given = given_nodes("")
            .set("node.name", "{host}")
            .set("node.roles", "patient")
            .set("cluster.join", "127.0.0.1:7101")
            .set("cluster.advertise", "{host}:7100");
        given.inputs.host = host.map(str::to_owned);
        given
    };
    let config = joining(Some("3F2A90d1c0de")).load().config;
    assert_eq!(config.node.name, "3f2a90d1c0de");
    assert_eq!(config.cluster.advertise.as_deref(), Some("3f2a90d1c0de:7100"));
    let refused = joining(None).refusal();
    assert!(refused.contains("node.name") && refused.contains("this host has no name"), "{refused}");
    let refused = joining(Some("a host.example")).refusal();
    assert!(refused.contains("allowed: 1 to 63 small letters"), "{refused}");
}
