//! Per-test subscribers that work while other tests run on other threads of the process.

use std::io::Write;
use std::sync::{Arc, Mutex};

use tracing::dispatcher::{self, DefaultGuard};
use tracing::{Dispatch, Subscriber};
use tracing_subscriber::fmt::MakeWriter;

/// Collects log lines as text: a writer for `tracing_subscriber::fmt`.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// Returns the text so far.
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

/// Keeps the subscriber of `listen` installed until dropped.
pub(crate) struct Listening {
    _here: DefaultGuard,
    _second: Dispatch,
}

/// Installs `subscriber` for the current thread.
///
/// `tracing` caches for the whole process whether any subscriber wants a line. With a single subscriber, it
/// asks the subscriber of the thread that first reaches the line. A thread of another test has none, so the
/// line would be disabled in this thread too. With a second subscriber, `tracing` asks all of them.
pub(crate) fn listen(subscriber: impl Subscriber + Send + Sync + 'static) -> Listening {
    let second = Dispatch::new(tracing_subscriber::registry());
    let here = dispatcher::set_default(&Dispatch::new(subscriber));
    // Discard decisions cached while no subscriber was interested.
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
