//! Parses the URL of a PostgreSQL database.
//!
//! Invariant: every parameter of a URL is either applied or refused. A parameter that is silently ignored
//! might be the one that asks for TLS.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

/// The accepted parameters, each with its spellings.
const PARAMETERS: [&[&str]; 10] = [
    &["sslmode", "ssl-mode"],
    &["sslrootcert", "ssl-root-cert", "ssl-ca"],
    &["sslcert", "ssl-cert"],
    &["sslkey", "ssl-key"],
    &["statement-cache-capacity"],
    &["host", "hostaddr"],
    &["port"],
    &["dbname"],
    &["user"],
    &["password"],
];

/// The accepted values of `sslmode`.
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// Parses `url`.
///
/// # Errors
/// Returns the reason, which quotes no value of the URL.
pub(super) fn postgres(url: &str) -> Result<PgConnectOptions, String> {
    if url.contains('#') {
        return Err("this one has a `#`, which ends a URL: in a password it is written %23".to_owned());
    }
    check_parameters(url)?;
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| "this one is not a URL of PostgreSQL, or a value in it is not allowed".to_owned())?;
    // RFC 3986, section 3.2.2: an IPv6 address stands in brackets, which are not part of the address.
    let host = options.get_host();
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).map(str::to_owned) {
        Some(host) => Ok(options.host(&host)),
        None => Ok(options),
    }
}

fn check_parameters(url: &str) -> Result<(), String> {
    let mut seen = [false; PARAMETERS.len()];
    let query = url.split_once('?').map_or("", |(_, query)| query);
    // The text may be the rest of a password, so the error does not quote it.
    if query.contains('@') {
        return Err(
            "this one has a `?` before an `@`: in a password it is written %3F, and an `@` %40".to_owned()
        );
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // `options` carries session settings with names of the server's own.
        if name == "options" || (name.starts_with("options[") && name.ends_with(']')) {
            continue;
        }
        let Some(at) = PARAMETERS.iter().position(|names| names.contains(&name)) else {
            let known: Vec<&str> = PARAMETERS.iter().map(|names| names[0]).collect();
            return Err(format!("there is no parameter {name:?}; allowed: {}, options", known.join(", ")));
        };
        if std::mem::replace(&mut seen[at], true) {
            return Err(format!("the parameter {name:?} is there twice"));
        }
        if PARAMETERS[at][0] == "sslmode" && !SSL_MODES.contains(&value) {
            return Err(format!("{name}: allowed: {}", SSL_MODES.join(", ")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ipv6_is_reached_without_its_brackets() {
        for (url, host) in [
            ("postgres://ada@[::1]:5433/clinic", "::1"),
            ("postgres://ada:x@[2001:db8::7]/clinic?sslmode=require", "2001:db8::7"),
            ("postgres://ada@db/clinic?host=[::1]", "::1"),
            ("postgres://ada@db.example:5433/clinic", "db.example"),
            ("postgres://ada@127.0.0.1/clinic", "127.0.0.1"),
        ] {
            assert_eq!(postgres(url).expect(url).get_host(), host, "{url}");
        }
    }

    #[test]
    fn a_parameter_that_nobody_reads_is_refused() {
        for (query, said) in [
            ("sslmod=verify-full", "no parameter \"sslmod\"; allowed: sslmode, "),
            ("SSLMODE=verify-full", "no parameter"),
            ("sslmode%20=require", "no parameter"),
            ("channel_binding=require", "no parameter"),
            ("application_name=x", "no parameter"),
            ("sslmode=disable&sslmode=verify-full", "there twice"),
            ("sslmode=disable&ssl-mode=verify-full", "there twice"),
            ("sslmode=verify_full", "sslmode: allowed: disable"),
            ("sslmode", "sslmode: allowed: disable"),
            ("port=many", "not allowed"),
        ] {
            let refused = postgres(&format!("postgres://ada:hunter2@db/clinic?{query}")).expect_err(query);
            assert!(refused.contains(said) && !refused.contains("hunter2"), "{query}: {refused}");
        }
        for (sign, written) in [("#", "%23"), ("?", "%3F"), ("?a&b", "%3F")] {
            let cut = postgres(&format!("postgres://ada:hun{sign}ter2@db/clinic")).expect_err(sign);
            assert!(cut.contains(written) && !cut.contains("ter"), "{cut}");
        }
        let many =
            "sslmode=verify-full&sslrootcert=/ca.pem&options=-c%20geqo%3Doff&options[work_mem]=4MB&port=5433";
        assert_eq!(postgres(&format!("postgres://ada@db/clinic?{many}")).expect("allowed").get_port(), 5433);
    }
}
