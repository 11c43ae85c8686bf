//! The clock of hyper's limits.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// The runtime has looked at the sockets by then: each time that it looks at the clock it looks at them first,
/// unless a signal has interrupted it.
const SECOND_LOOK: Duration = Duration::from_millis(1);

/// A timer whose sleeps end a little after their time, with all that has arrived before it noticed. A process
/// that was stopped and goes on finds its limits run out before it has looked at its sockets, and would take a
/// client for slow whose request has long been there.
pub(super) struct SecondLook;

struct Late {
    sleep: Pin<Box<tokio::time::Sleep>>,
    over: bool,
}

impl Late {
    fn until(deadline: Instant) -> Self {
        Late { sleep: Box::pin(tokio::time::sleep_until(deadline.into())), over: false }
    }
}

impl Future for Late {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        std::task::ready!(self.sleep.as_mut().poll(cx));
        if self.over {
            return Poll::Ready(());
        }
        self.over = true;
        self.sleep.as_mut().reset(tokio::time::Instant::now() + SECOND_LOOK);
        self.sleep.as_mut().poll(cx)
    }
}

impl Sleep for Late {}

impl Timer for SecondLook {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Late::until(deadline))
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into()
    }
}
