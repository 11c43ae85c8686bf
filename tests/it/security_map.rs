//! The tables at the end of `docs/SECURITY.md` name what shows each safeguard. What they name has to be there: a test
//! that was renamed, a setting that is gone, a paragraph that nobody speaks of any more are told here.

use std::collections::BTreeSet;
use std::path::Path;

/// Where the tables begin.
const HEADING: &str = "## What standards ask, and what shows it";

/// Fewer than there are: that the tables are read at all.
const TESTS_MIN: usize = 120;
const SETTINGS_MIN: usize = 25;
const ROWS_MIN: usize = 90;

/// Every paragraph of 45 CFR 164.312 has a row.
const PARAGRAPHS: [&str; 12] = [
    "(a)(1)",
    "(a)(2)(i)",
    "(a)(2)(ii)",
    "(a)(2)(iii)",
    "(a)(2)(iv)",
    "(b)",
    "(c)(1)",
    "(c)(2)",
    "(d)",
    "(e)(1)",
    "(e)(2)(i)",
    "(e)(2)(ii)",
];

/// How many sections each of the chapters 1 to 17 of ASVS 5.0.0 has.
const SECTIONS: [u8; 17] = [5, 4, 7, 4, 4, 8, 6, 4, 2, 7, 7, 3, 4, 3, 4, 5, 3];

/// What the tables name.
#[derive(Debug, Default)]
struct Named {
    tests: BTreeSet<(String, String)>,
    settings: BTreeSet<String>,
    rows: usize,
    faults: Vec<String>,
}

/// What there is to be named.
struct Present<'a> {
    /// The text of a file of the package, if it is there.
    file: &'a dyn Fn(&str) -> Option<String>,
    settings: BTreeSet<String>,
}

fn of_the_package(path: &str) -> Option<String> {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

/// Every key of `cluster.toml`, those behind a `#` too; a test beside the configuration holds that file to the code.
fn settings() -> BTreeSet<String> {
    let text = of_the_package("cluster.toml").expect("the file");
    let mut keys = BTreeSet::new();
    let mut section = String::new();
    for line in text.lines().take_while(|line| !line.starts_with("[[")) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ")
            && is_word(key)
        {
            keys.insert(format!("{section}{key}"));
        }
    }
    keys
}

/// Reads the tables of `text`.
fn read(text: &str, present: &Present<'_>) -> Named {
    let mut named = Named::default();
    let Some((_, tables)) = text.split_once(HEADING) else {
        named.faults.push(format!("there is no heading {HEADING:?}"));
        return named;
    };
    let mut told = BTreeSet::new();
    for line in tables.lines().filter(|line| line.starts_with("| ") && !is_head(line)) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let &["", item, _asks, shown, met, operator, ""] = cells.as_slice() else {
            named.faults.push(format!("not five columns: {line}"));
            continue;
        };
        named.rows += 1;
        evidence(item, shown, present, &mut named);
        for token in code(operator).filter(|token| is_setting(token)) {
            setting(item, token, present, &mut named);
        }
        match met.split([' ', '.', ':', ',']).next().unwrap_or_default() {
            "Met" | "Partly" if code(shown).next().is_none() => {
                named.faults.push(format!("{item}: nothing shows it"))
            }
            "Met" | "Partly" => {}
            "Not" if met.starts_with("Not met") => {}
            _ => named.faults.push(format!("{item}: whether it is met is not said: {met}")),
        }
        for item in item.split(", ") {
            if !told.insert(item.trim_end_matches([' ', 'R', 'A']).to_owned()) {
                named.faults.push(format!("{item} stands there twice"));
            }
            if !item.starts_with('(') && !is_item(item) {
                named.faults.push(format!("{item} is no item of ASVS 5.0.0"));
            }
        }
    }
    for missing in PARAGRAPHS.iter().filter(|paragraph| !told.contains(**paragraph)) {
        named.faults.push(format!("45 CFR 164.312 {missing} has no row"));
    }
    named
}

/// Looks at each thing that stands in backquotes: a file, a test in the file named last, or a setting.
fn evidence(item: &str, shown: &str, present: &Present<'_>, named: &mut Named) {
    let mut source = None;
    for token in code(shown) {
        if let Some(text) = (present.file)(token) {
            source = Some((token, text));
        } else if is_setting(token) {
            source = None;
            setting(item, token, present, named);
        } else if let (true, Some((path, text))) = (is_word(token), &source) {
            if is_test(text, token) {
                named.tests.insert(((*path).to_owned(), token.to_owned()));
            } else {
                named.faults.push(format!("{item}: {path} has no test {token}"));
            }
        } else {
            named.faults.push(format!("{item}: {token} is no file, no setting, and no test of a file"));
        }
    }
}

fn setting(item: &str, token: &str, present: &Present<'_>, named: &mut Named) {
    if present.settings.contains(token) {
        named.settings.insert(token.to_owned());
    } else {
        named.faults.push(format!("{item}: there is no setting {token}"));
    }
}

/// Whether `source` has a test of that name which is not switched off.
fn is_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let begins = |line: &str| {
        let rest = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        rest.and_then(|rest| rest.strip_prefix(name)).is_some_and(|rest| rest.starts_with('('))
    };
    lines.iter().enumerate().filter(|(_, line)| begins(line)).any(|(at, _)| {
        let above = || lines[..at].iter().rev().take_while(|line| line.starts_with("#["));
        above().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
            && !above().any(|line| line.starts_with("#[ignore"))
    })
}

fn code(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

fn is_head(line: &str) -> bool {
    line.starts_with("| paragraph ") || line.starts_with("| item ")
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// `section.key`, and no path.
fn is_setting(text: &str) -> bool {
    text.contains('.') && text.split('.').all(is_word) && !text.ends_with(".rs")
}

/// `V6.2.1`: a chapter and a section that there are, and a number.
fn is_item(text: &str) -> bool {
    let Some(numbers) = text.strip_prefix('V') else { return false };
    let numbers: Vec<Option<u8>> = numbers.split('.').map(|number| number.parse().ok()).collect();
    let &[Some(chapter), Some(section), Some(1..)] = numbers.as_slice() else { return false };
    let sections = usize::from(chapter).checked_sub(1).and_then(|at| SECTIONS.get(at));
    sections.is_some_and(|sections| (1..=*sections).contains(&section))
}

#[test]
fn what_the_tables_name_is_there() {
    let text = of_the_package("docs/SECURITY.md").expect("the file");
    let named = read(&text, &Present { file: &of_the_package, settings: settings() });
    assert!(named.faults.is_empty(), "docs/SECURITY.md:\n{}", named.faults.join("\n"));
    let found = (named.tests.len(), named.settings.len(), named.rows);
    assert!(
        found.0 >= TESTS_MIN && found.1 >= SETTINGS_MIN && found.2 >= ROWS_MIN,
        "tests, settings and rows read: {found:?}"
    );
}

#[test]
fn every_slip_in_the_tables_is_found() {
    let source = "#[test]\nfn there() {}\nfn helper() {}\n#[test]\n#[ignore]\nfn off() {}\n\
                  #[tokio::test(flavor = \"multi_thread\")]\nasync fn later() {}\n";
    let file = |path: &str| (path == "src/a.rs").then(|| source.to_owned());
    let present = Present { file: &file, settings: BTreeSet::from(["auth.issuer".to_owned()]) };
    let read_row = |row: &str| {
        let paragraphs: String =
            PARAGRAPHS.iter().map(|p| format!("| {p} R | x | `src/a.rs` `there` | Met. | |\n")).collect();
        read(
            &format!("{HEADING}\n| item | x | x | x | x |\n|---|---|---|---|---|\n{paragraphs}{row}\n"),
            &present,
        )
    };
    let good = "| V6.2.1, V6.2.2 | x | `src/a.rs` `there` `later`; `auth.issuer` | Partly: x. | `auth.issuer` `hygeia x` |";
    let named = read_row(good);
    assert_eq!((named.faults, named.rows, named.tests.len()), (Vec::<String>::new(), 13, 2));
    assert_eq!(named.settings, BTreeSet::from(["auth.issuer".to_owned()]));
    for (row, fault) in [
        ("| V6.2.1 | x | `src/a.rs` `gone` | Met. | |", "V6.2.1: src/a.rs has no test gone"),
        ("| V6.2.1 | x | `src/a.rs` `helper` | Met. | |", "V6.2.1: src/a.rs has no test helper"),
        ("| V6.2.1 | x | `src/a.rs` `off` | Met. | |", "V6.2.1: src/a.rs has no test off"),
        ("| V6.2.1 | x | `src/a.rs` `the` | Met. | |", "V6.2.1: src/a.rs has no test the"),
        (
            "| V6.2.1 | x | `src/b.rs` | Met. | |",
            "V6.2.1: src/b.rs is no file, no setting, and no test of a file",
        ),
        ("| V6.2.1 | x | `there` | Met. | |", "V6.2.1: there is no file, no setting, and no test of a file"),
        ("| V6.2.1 | x | `auth.gone` | Met. | |", "V6.2.1: there is no setting auth.gone"),
        ("| V6.2.1 | x | `auth.issuer` | Met. | `http.gone` |", "V6.2.1: there is no setting http.gone"),
        ("| V6.2.1 | x | | Met. | |", "V6.2.1: nothing shows it"),
        ("| V6.2.1 | x | `auth.issuer` | Perhaps. | |", "V6.2.1: whether it is met is not said: Perhaps."),
        ("| V6.9.1 | x | `auth.issuer` | Met. | |", "V6.9.1 is no item of ASVS 5.0.0"),
        ("| V18.1.1 | x | `auth.issuer` | Met. | |", "V18.1.1 is no item of ASVS 5.0.0"),
        ("| (d) | x | `auth.issuer` | Met. | |", "(d) stands there twice"),
        ("| V6.2.1 | x | Met. |", "not five columns: | V6.2.1 | x | Met. |"),
    ] {
        assert_eq!(read_row(row).faults, [fault], "{row}");
    }
    assert_eq!(read("nothing", &present).faults.len(), 1);
    assert_eq!(read(HEADING, &present).faults.len(), PARAGRAPHS.len());
    let known = settings();
    for key in ["data_dir", "auth.key_secret", "cluster.tls.ca_file", "telemetry.otlp"] {
        assert!(known.contains(key), "{key}");
    }
}
