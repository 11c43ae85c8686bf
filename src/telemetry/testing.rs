//! Subscribers of one test, beside other tests that run on other threads of the process.

use tracing::dispatcher::{self, DefaultGuard};
use tracing::{Dispatch, Subscriber};

/// While it lives, the subscriber hears everything that this thread logs.
pub(crate) struct Listening {
    _here: DefaultGuard,
    _second: Dispatch,
}

/// Makes `subscriber` this thread's own.
///
/// `tracing` remembers for the whole process whether anybody wants a line. While there is a single subscriber, it
/// asks the one of whichever thread meets the line first, and a thread of another test has none: the line would be
/// lost here as well. With a second subscriber about, it asks them all.
pub(crate) fn listen(subscriber: impl Subscriber + Send + Sync + 'static) -> Listening {
    let second = Dispatch::new(tracing_subscriber::registry());
    let here = dispatcher::set_default(&Dispatch::new(subscriber));
    // What others met before, when nobody wanted it.
    tracing::callsite::rebuild_interest_cache();
    Listening { _here: here, _second: second }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::{Context, SubscriberExt};

    use super::*;

    #[derive(Clone, Default)]
    struct Counts(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Counts {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            if event.metadata().target() == "hygeia::test::met_elsewhere" {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[test]
    fn a_line_that_another_thread_met_first_is_heard() {
        let counts = Counts::default();
        let _listening = listen(tracing_subscriber::registry().with(counts.clone()));
        let log = || tracing::info!(target: "hygeia::test::met_elsewhere", "here");
        std::thread::spawn(log).join().expect("no panic");
        log();
        assert_eq!(counts.0.load(Ordering::Relaxed), 1);
    }
}
