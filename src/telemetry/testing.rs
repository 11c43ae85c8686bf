//! Subscribers of one test, beside other tests that run on other threads of the process.

use std::io::Write;
use std::sync::{Arc, Mutex};

use tracing::dispatcher::{self, DefaultGuard};
use tracing::{Dispatch, Subscriber};
use tracing_subscriber::fmt::MakeWriter;

/// What was logged, as text: a writer for `tracing_subscriber::fmt`.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// All of it so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("held briefly")).into_owned()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("held briefly").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

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
