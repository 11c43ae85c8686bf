//! The rules for secrets, whatever their source.

use super::*;

const NAME: &str = "HYGEIA__AUTH__KEY_SECRET";

fn of_file(content: &str) -> Given {
    let given = given();
    let path = given.content("secret", content);
    given.env(&format!("{NAME}_FILE"), path)
}

#[test]
fn what_an_editor_puts_around_a_secret_is_no_part_of_it() {
    for content in
        [SECRET.to_owned(), format!("{SECRET}\n"), format!("{SECRET}\r\n"), format!("\u{feff}{SECRET}\n")]
    {
        let loaded = of_file(&content).load();
        assert_eq!(loaded.config.auth.key_secret.unwrap().reveal(), SECRET, "{content:?}");
    }
}

#[test]
fn stray_characters_and_what_repeats_itself_are_refused() {
    let weak = "it repeats itself";
    let stray = "it begins or ends with a blank";
    for (content, reason) in [
        (format!("{SECRET} \n"), stray),
        (format!(" {SECRET}"), stray),
        (format!("\u{feff}\u{feff}{SECRET}"), stray),
        (format!("{SECRET}\u{200b}"), stray),
        (" ".repeat(40), stray),
        (format!("{SECRET}\n\n"), "it has more than one line"),
        (format!("{SECRET}\n{SECRET}\n"), "it has more than one line"),
        ("canary-".repeat(8), weak),
        ("0".repeat(64), weak),
        (String::new(), "it is empty"),
    ] {
        let refusal = of_file(&content).refusal();
        assert!(refusal.contains(reason), "{content:?}: {refusal}");
    }
    for (name, key) in [
        (NAME, "auth.key_secret"),
        ("HYGEIA__AUTH__JWT_SECRET", "auth.jwt_secret"),
        ("HYGEIA__AUDIT__SECRET", "audit.secret"),
        ("HYGEIA__CLUSTER__SECRET", "cluster.secret"),
    ] {
        for (value, reason) in [(format!(" {SECRET}"), stray), ("canary-".repeat(8), weak)] {
            let refusal = given().env(name, value).refusal();
            assert!(
                refusal.starts_with(&format!("{key} = (hidden), from environment variable {name}: {reason}")),
                "{refusal}"
            );
        }
    }
    let url = given().env("HYGEIA__STORE__URL", "postgres://joe@db/hygeia ").refusal();
    assert!(url.contains(stray), "{url}");
}

#[test]
fn a_password_may_begin_with_a_blank_where_it_is_seen() {
    let email = |given: Given| given.env("HYGEIA__AUTH__FIRST_ADMIN_EMAIL", "ada@example.org");
    let name = "HYGEIA__AUTH__FIRST_ADMIN_PASSWORD";
    email(given()).env(name, " violet anchor").load();
    let given_file = given();
    let path = given_file.content("password", " violet anchor\n");
    let refusal = email(given_file).env(&format!("{name}_FILE"), path).refusal();
    assert!(refusal.contains("it begins or ends with a blank"), "{refusal}");
    for bad in ["password123", "violet\0anchor", "short"] {
        let refusal = email(given())
            .file(&format!("[auth]\nfirst_admin_password = {bad:?}\n").replace("\\0", "\\u0000"))
            .refusal();
        let rule = "allowed: 8 to 72 bytes, none of the most common passwords, and no NUL in it";
        assert!(refusal.ends_with(rule), "{refusal}");
    }
}
