//! The destination of an answer: a caller on this node, or the node that sent the request over a link.

use tokio::sync::oneshot;

use super::entity::Failure;

/// Receives the answer for another node, or `None` if there will be no answer.
type Away<T> = Box<dyn FnOnce(Option<Result<T, Failure>>) + Send + Sync>;

/// The destination of one answer. If a `ReplyTo` is dropped unused, because an actor on the way died, the
/// caller is notified that there will be no answer. The outcome of the request is unknown then.
pub struct ReplyTo<T>(Option<Way<T>>);

enum Way<T> {
    Here(oneshot::Sender<Result<T, Failure>>),
    Away(Away<T>),
}

impl<T> ReplyTo<T> {
    /// Creates a destination on this node and the receiver of the answer. The channel closes if there will be
    /// no answer.
    pub fn here() -> (Self, oneshot::Receiver<Result<T, Failure>>) {
        let (sender, receiver) = oneshot::channel();
        (ReplyTo(Some(Way::Here(sender))), receiver)
    }

    /// Creates a destination on another node: `end` is called exactly once, with `None` if there will be no
    /// answer.
    pub fn away(end: impl FnOnce(Option<Result<T, Failure>>) + Send + Sync + 'static) -> Self {
        ReplyTo(Some(Way::Away(Box::new(end))))
    }

    /// Sends the answer. The result is discarded if the caller has given up.
    pub fn send(mut self, result: Result<T, Failure>) {
        match self.0.take() {
            Some(Way::Here(sender)) => drop(sender.send(result)),
            Some(Way::Away(end)) => end(Some(result)),
            None => {}
        }
    }
}

impl<T> Drop for ReplyTo<T> {
    fn drop(&mut self) {
        if let Some(Way::Away(end)) = self.0.take() {
            end(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn an_answer_is_told_once_and_its_loss_too() {
        let (reply, answer) = ReplyTo::here();
        reply.send(Ok(1));
        assert_eq!(answer.await, Ok(Ok(1)));
        let (reply, answer) = ReplyTo::<u8>::here();
        drop(reply);
        assert!(answer.await.is_err());

        let told = Arc::new(Mutex::new(Vec::new()));
        let away = || {
            let told = Arc::clone(&told);
            ReplyTo::away(move |end| told.lock().unwrap().push(end))
        };
        away().send(Ok(2));
        away().send(Err(Failure::Busy));
        drop(away());
        assert_eq!(*told.lock().unwrap(), [Some(Ok(2)), Some(Err(Failure::Busy)), None]);
    }
}
