//! The filter of log lines.

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterFn, LevelFilter, filter_fn};

/// The directives that apply unless the filter overrides them. `ractor_cluster` warns about each ended
/// session and slow pings without the name of the peer; `hygeia::peers` logs the same with the name.
const BUILT_IN: &str = "info,ractor=warn,ractor_cluster=error,rdkafka=warn,librdkafka=warn,sqlx=warn,hyper=warn,hyper_util=warn,h2=warn,\
     tonic=warn,tower=warn,rustls=warn";

/// Blocks `debug` and `trace` lines of `ractor_cluster`, whatever the directives say, because they print
/// message payloads, which contain patient data.
pub(super) fn no_payloads() -> FilterFn<fn(&Metadata<'_>) -> bool> {
    filter_fn(|line| *line.level() <= Level::INFO || !line.target().starts_with("ractor_cluster"))
}

/// Parses directives (the syntax of `tracing_subscriber::EnvFilter`).
pub(super) fn parse(directives: &str) -> Result<EnvFilter, String> {
    let silent = directives
        .split(',')
        .map(str::trim)
        .filter(|directive| !directive.is_empty())
        .filter_map(|directive| directive.parse::<LevelFilter>().ok())
        .any(|level| level < LevelFilter::WARN);
    // A filter for errors only, or for nothing, also suppresses the warnings of libraries.
    let all = if silent { directives.to_owned() } else { format!("{BUILT_IN},{directives}") };
    EnvFilter::builder().with_regex(false).parse(all).map_err(|e| {
        format!("{e}; allowed: target=level after commas, or a level (off, error, warn, info, debug, trace)")
    })
}

#[cfg(test)]
mod tests {
    use tracing::level_filters::LevelFilter;
    use tracing::subscriber::with_default;
    use tracing_subscriber::layer::SubscriberExt;

    use super::{no_payloads, parse};

    /// Returns the most verbose level enabled for a target.
    macro_rules! level_of {
        ($filter:expr, $target:literal) => {{
            let registry = tracing_subscriber::registry().with(parse($filter).unwrap()).with(no_payloads());
            with_default(registry, || {
                if tracing::enabled!(target: $target, tracing::Level::TRACE) {
                    LevelFilter::TRACE
                } else if tracing::enabled!(target: $target, tracing::Level::DEBUG) {
                    LevelFilter::DEBUG
                } else if tracing::enabled!(target: $target, tracing::Level::INFO) {
                    LevelFilter::INFO
                } else if tracing::enabled!(target: $target, tracing::Level::WARN) {
                    LevelFilter::WARN
                } else if tracing::enabled!(target: $target, tracing::Level::ERROR) {
                    LevelFilter::ERROR
                } else {
                    LevelFilter::OFF
                }
            })
        }};
    }

    #[test]
    fn chatty_libraries_stay_at_warn_unless_named() {
        assert_eq!(level_of!("info", "hygeia::message"), LevelFilter::INFO);
        assert_eq!(level_of!("info", "ractor_cluster::node"), LevelFilter::ERROR);
        assert_eq!(level_of!("trace", "hygeia::message"), LevelFilter::TRACE);
        assert_eq!(level_of!("trace", "ractor_cluster::node"), LevelFilter::ERROR);
        assert_eq!(level_of!("trace,ractor=debug", "ractor::actor"), LevelFilter::DEBUG);
        assert_eq!(level_of!("trace,ractor=debug", "ractor_cluster::node"), LevelFilter::ERROR);
    }

    #[test]
    fn payloads_of_messages_between_nodes_are_never_printed() {
        for filter in
            ["ractor_cluster=debug", "ractor_cluster::net::session=trace", "trace,ractor_cluster=trace"]
        {
            assert_eq!(level_of!(filter, "ractor_cluster::net::session"), LevelFilter::INFO, "{filter}");
        }
    }

    #[test]
    fn one_target_can_be_set_apart() {
        assert_eq!(level_of!("hygeia::message=off", "hygeia::message"), LevelFilter::OFF);
        assert_eq!(level_of!("hygeia::message=off", "hygeia::http"), LevelFilter::INFO);
        assert_eq!(level_of!("error", "sqlx::query"), LevelFilter::ERROR);
        assert_eq!(level_of!("off", "sqlx::query"), LevelFilter::OFF);
        assert_eq!(level_of!("", "hygeia::http"), LevelFilter::INFO);
    }

    #[test]
    fn what_does_not_parse_is_refused() {
        for bad in ["hygeia=loud", "=", "a=b=c", "[{"] {
            let reason = parse(bad).map(|_| ()).expect_err(bad);
            assert!(reason.contains("allowed:"), "{reason}");
        }
    }
}
