//! Values that would be lost silently, and the messages about values that do not fit.

use super::*;

#[test]
fn a_key_that_is_set_both_as_a_value_and_as_a_section_is_refused() {
    let listen = "HYGEIA__HTTP__LISTEN";
    let reason = "either http.listen is a value, or it has keys";
    for refusal in [
        given().env(listen, "127.0.0.1:1").env("HYGEIA__HTTP__LISTEN__X", "1").refusal(),
        given().set("http.listen", "127.0.0.1:1").set("http.listen.x", "1").refusal(),
        given().set("http.listen.x", "1").set("http.listen", "127.0.0.1:1").refusal(),
        given().file("[http.listen]\nx = 1\n").env(listen, "127.0.0.1:1").refusal(),
        given().file("[http]\nlisten = \"127.0.0.1:1\"\n").env("HYGEIA__HTTP__LISTEN__X", "1").refusal(),
        given().env(listen, "127.0.0.1:1").set("http.listen.x", "1").refusal(),
    ] {
        assert!(
            refusal.starts_with("http.listen = \"127.0.0.1:1\", from ") && refusal.ends_with(reason),
            "{refusal}"
        );
    }
    let name = "HYGEIA__AUTH__JWT_SECRET";
    let refusal = given().env(name, SECRET).env("HYGEIA__AUTH__JWT_SECRET__X", SECRET).refusal();
    assert!(refusal.starts_with("auth.jwt_secret = (hidden), from"), "{refusal}");
}

#[test]
fn a_variable_that_begins_as_ours_do_and_sets_nothing_is_told() {
    let loaded = given()
        .env("HYGEIA_HTTP_LISTEN", "127.0.0.1:1")
        .env("HYGEIAX", "1")
        .env("hygeia__http__listen", "127.0.0.1:1")
        .env("HYGEIA_LOG", "info")
        .env("HYGEIA_CONFIG", "somewhere.toml")
        .env("HYGEIA_NODE", "")
        .env("HYGEIA__NODE__NAME", "front")
        .env("HYGEIA_SERVICE_HOST", "10.0.0.1")
        .env("HYGEIA_PORT", "tcp://10.0.0.1:8080")
        .env("HYGEIA_PORT_8080_TCP_ADDR", "10.0.0.1")
        .env("PATH", "/bin")
        .load();
    assert_eq!(loaded.ignored_variables, ["HYGEIAX", "HYGEIA_HTTP_LISTEN", "hygeia__http__listen"]);
    let told = "# environment variable HYGEIA_HTTP_LISTEN is no setting, and is ignored\n";
    assert!(loaded.effective().contains(told), "{}", loaded.effective());
}

#[test]
fn a_number_that_no_type_holds_is_told_the_range_of_its_setting() {
    assert_eq!(
        given().set("auth.hashing_niceness", "-1").refusal(),
        "auth.hashing_niceness = \"-1\", from argument --set: allowed: 0 to 19"
    );
    assert_eq!(
        given().file("[store]\nconnections_max = 99999999999\n").refusal(),
        "store.connections_max = 99999999999, from node.toml:2: allowed: 3 to 10000"
    );
    let two = given().set("auth.hashing_niceness", "300").set("telemetry.line_max_bytes", "many").refusal();
    assert_eq!(two.lines().count(), 2, "{two}");
    // Every number has its own range, so no message gives the range of its type.
    let told_of_type: Vec<String> = effective::keys()
        .into_iter()
        .filter(|key| {
            let refused = load(&given().set(key, "-1").inputs).map(drop);
            refused.is_err_and(|error| error.to_string().contains("expected a whole number"))
        })
        .collect();
    assert!(told_of_type.is_empty(), "{told_of_type:?}");
}

#[test]
fn an_unusable_data_directory_is_told_as_such() {
    let given = given();
    let path = given.dir.path().join("data");
    std::fs::create_dir(&path).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    for (path, reason) in
        [(path.as_path(), "everybody may write there"), (Path::new("/dev/null"), "cannot be made")]
    {
        let mut config = self::given().set("data_dir", &path.display().to_string()).load().config;
        let refusal = config.ensure_secrets().unwrap_err().to_string();
        assert!(refusal.starts_with("data_dir = ") && refusal.contains(reason), "{refusal}");
    }
}
