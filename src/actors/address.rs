//! Where an actor can be reached, across its restarts.
//!
//! A supervised actor gets a new reference at every start. An `Address` names the place, not the
//! incarnation: the supervisor puts the newest reference into it, senders read it without a lock.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ractor::{ActorRef, Message};

/// The place of one actor. Cloning is cheap and keeps naming the same place.
pub struct Address<M: Message> {
    current: Arc<ArcSwapOption<ActorRef<M>>>,
}

impl<M: Message> Clone for Address<M> {
    fn clone(&self) -> Self {
        Address { current: Arc::clone(&self.current) }
    }
}

impl<M: Message> Default for Address<M> {
    fn default() -> Self {
        Address { current: Arc::new(ArcSwapOption::empty()) }
    }
}

impl<M: Message> Address<M> {
    /// From now on messages go to `actor`.
    pub fn set(&self, actor: ActorRef<M>) {
        self.current.store(Some(Arc::new(actor)));
    }

    /// Sends `message`. False if nobody is there: the message, with any reply port in it, is dropped,
    /// so that whoever waits for the reply learns of it.
    pub fn cast(&self, message: M) -> bool {
        self.current.load().as_ref().is_some_and(|actor| actor.send_message(message).is_ok())
    }

    /// The newest incarnation, if one was started.
    pub fn actor(&self) -> Option<ActorRef<M>> {
        self.current.load().as_ref().map(|actor| ActorRef::clone(actor))
    }
}
