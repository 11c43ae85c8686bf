//! Which metrics and labels an expression of PromQL names, and whether a program exports them.

use std::collections::{BTreeMap, BTreeSet};

/// What is exported: names, each with its labels.
pub(super) type Exported = BTreeMap<String, BTreeSet<String>>;

/// Labels that Prometheus gives each series of a target.
const OF_TARGETS: [&str; 3] = ["job", "instance", "service"];
/// Words that stand before a list of labels.
const LABEL_LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words that are neither functions nor metrics.
const WORDS: [&str; 7] = ["and", "or", "unless", "bool", "offset", "inf", "nan"];

/// What an expression names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    /// Each metric with the labels of its selector.
    pub(super) metrics: Vec<(String, Vec<String>)>,
    /// The labels by which is grouped.
    pub(super) grouped: Vec<String>,
}

/// The names in `text`, which is what `/metrics` answers.
pub(super) fn exported(text: &str, all: &mut Exported) {
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let labels = all.entry(name.to_owned()).or_default();
        let list = line.strip_prefix(name).and_then(|rest| rest.strip_prefix('{')).unwrap_or_default();
        labels.extend(labels_of(&mut Text::of(list)));
    }
}

/// What is wrong with `expr`. `recorded` are names that rules make.
pub(super) fn faults(expr: &str, exported: &Exported, recorded: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let named = named(expr);
    if named.metrics.is_empty() {
        faults.push(format!("no metric is named in {expr}"));
    }
    for (metric, selected) in &named.metrics {
        if metric == "up" || recorded.contains(metric) {
            continue;
        }
        let Some(labels) = exported.get(metric) else {
            faults.push(format!("{metric} is not exported; named in {expr}"));
            continue;
        };
        for label in selected.iter().chain(&named.grouped) {
            if !labels.contains(label) && !OF_TARGETS.contains(&label.as_str()) {
                faults.push(format!("{metric} has no label {label}; named in {expr}"));
            }
        }
    }
    faults
}

/// Reads `expr` word by word.
pub(super) fn named(expr: &str) -> Named {
    let mut named = Named::default();
    let mut text = Text::of(expr);
    while let Some(next) = text.peek() {
        match next {
            '"' | '\'' => text.skip_quoted(next),
            '[' => text.skip_past(']'),
            c if c.is_ascii_digit() || c == '.' => drop(text.word()),
            c if is_word(c) => {
                let word = text.word();
                let follows = text.peek_past_spaces();
                if LABEL_LISTS.contains(&word.as_str()) {
                    named.grouped.extend(text.listed());
                } else if follows == Some('(')
                    || text.is_before(&["by", "without"])
                    || WORDS.contains(&word.to_ascii_lowercase().as_str())
                {
                    continue;
                } else if follows == Some('{') {
                    text.skip_past('{');
                    named.metrics.push((word, labels_of(&mut text)));
                } else {
                    named.metrics.push((word, Vec::new()));
                }
            }
            _ => text.skip(),
        }
    }
    named
}

/// The labels of `a="b",c=~"d"}`, up to the brace.
fn labels_of(text: &mut Text<'_>) -> Vec<String> {
    let mut labels = Vec::new();
    while let Some(next) = text.peek() {
        match next {
            '}' => {
                text.skip();
                break;
            }
            '"' | '\'' => text.skip_quoted(next),
            c if is_word(c) => labels.push(text.word()),
            _ => text.skip(),
        }
    }
    labels
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    fn of(text: &'a str) -> Self {
        Text(text)
    }

    fn peek(&self) -> Option<char> {
        self.0.chars().next()
    }

    fn peek_past_spaces(&self) -> Option<char> {
        self.0.trim_start().chars().next()
    }

    /// Whether one of these words comes next: the one before is an aggregation.
    fn is_before(&self, words: &[&str]) -> bool {
        let next = Text(self.0.trim_start()).word();
        words.contains(&next.as_str())
    }

    fn skip(&mut self) {
        let mut rest = self.0.chars();
        rest.next();
        self.0 = rest.as_str();
    }

    fn skip_past(&mut self, end: char) {
        self.0 = self.0.split_once(end).map_or("", |(_, rest)| rest);
    }

    fn skip_quoted(&mut self, quote: char) {
        self.skip();
        while let Some(c) = self.peek() {
            self.skip();
            match c {
                '\\' => self.skip(),
                c if c == quote => return,
                _ => {}
            }
        }
    }

    fn word(&mut self) -> String {
        let end = self.0.find(|c| !is_word(c) && c != '.').unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        word.to_owned()
    }

    /// The labels of `(a, b)`.
    fn listed(&mut self) -> Vec<String> {
        let Some((list, rest)) = self.0.trim_start().strip_prefix('(').and_then(|l| l.split_once(')')) else {
            return Vec::new();
        };
        self.0 = rest;
        list.split(',').map(str::trim).filter(|label| !label.is_empty()).map(str::to_owned).collect()
    }
}

#[test]
fn names_labels_and_groups_are_found() {
    let found = named(
        "histogram_quantile(0.99, sum by (route, le) (rate(a_bucket{route=~\"/api/.*|}\", x!=\"by(z)\"}[5m]))) \
         / on (kind) group_left () b_total offset 5m > 1e3 and vector(0) or c:d",
    );
    let metric = |name: &str, labels: &[&str]| {
        (name.to_owned(), labels.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(
        found.metrics,
        [metric("a_bucket", &["route", "x"]), metric("b_total", &[]), metric("c:d", &[])]
    );
    assert_eq!(found.grouped, ["route", "le", "kind"]);
}

#[test]
fn what_is_not_exported_is_found() {
    let mut all = Exported::new();
    exported("# HELP a x\n# TYPE a gauge\na{kind=\"x\",le=\"0.5\"} 1\nb 2\n", &mut all);
    let recorded = BTreeSet::from(["c:d".to_owned()]);
    for good in ["a", "sum by (kind) (a{le=\"1\"})", "b{instance=\"x\"}", "c:d > 1", "count(up{job=\"x\"})"] {
        assert_eq!(faults(good, &all, &recorded), Vec::<String>::new(), "{good}");
    }
    for (bad, told) in [
        ("aa", "aa is not exported"),
        ("rate(b_total[5m])", "b_total is not exported"),
        ("a{kinds=\"x\"}", "a has no label kinds"),
        ("sum by (kind) (b)", "b has no label kind"),
        ("vector(1)", "no metric is named"),
    ] {
        let found = faults(bad, &all, &recorded);
        assert!(found.len() == 1 && found[0].contains(told), "{bad}: {found:?}");
    }
}
