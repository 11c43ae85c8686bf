//! Renders `/metrics`, which is open and answered at any load.
//!
//! Invariant: one text is rendered at a time, on a blocking thread, however many requests come. Requests that
//! arrive during a rendering share the next one, so the text of a response is never older than its request.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Renders the metrics as Prometheus text.
#[derive(Clone)]
pub struct MetricsText {
    render: Arc<dyn Fn() -> String + Send + Sync>,
    last: Arc<Mutex<Option<Made>>>,
}

struct Made {
    begun: Instant,
    text: Bytes,
}

impl MetricsText {
    /// Creates a renderer from `render`.
    pub fn new(render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        MetricsText { render: Arc::new(render), last: Arc::default() }
    }

    /// Returns the metrics as of now or later; `None` if rendering panicked.
    pub(super) async fn text(&self) -> Option<Bytes> {
        let came = Instant::now();
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some(made) = last.as_ref().filter(|made| made.begun >= came) {
            return Some(made.text.clone());
        }
        let render = Arc::clone(&self.render);
        // The lock moves to the thread, so that a client that disconnects does not allow a second rendering.
        let made = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let text = Bytes::from(render());
            *last = Some(Made { begun, text: text.clone() });
            text
        });
        made.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn however_many_ask_one_text_is_made_at_a_time_and_shared() {
        let made = Arc::new(AtomicUsize::new(0));
        let (go_on, gate) = mpsc::channel::<()>();
        let gate = std::sync::Mutex::new(gate);
        let metrics = {
            let made = Arc::clone(&made);
            MetricsText::new(move || {
                let no = made.fetch_add(1, Ordering::SeqCst) + 1;
                gate.lock().expect("one at a time").recv().expect("told to go on");
                no.to_string()
            })
        };
        let ask = || {
            let metrics = metrics.clone();
            tokio::spawn(async move { metrics.text().await.expect("made") })
        };
        let first = ask();
        while made.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..50).map(|_| ask()).collect();
        // On this one thread, all of them have run before this task continues.
        tokio::task::yield_now().await;
        go_on.send(()).expect("waited for");
        assert_eq!(&*first.await.expect("answered"), b"1");
        go_on.send(()).expect("waited for");
        for other in others {
            // No response shows a state from before its request.
            assert_eq!(&*other.await.expect("answered"), b"2");
        }
        assert_eq!(made.load(Ordering::SeqCst), 2);
    }
}
