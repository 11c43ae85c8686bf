//! A change of every quiet patient at once: what the next holder of their leases must not miss.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::act::{BUSY, Slot};
use crate::driver::{CLIENTS, Driver};
use crate::machinery::history::{Call, Email};

/// How long the quiet patients are only read after all of them were changed at once. If the holder of the lease changed
/// one, it would learn of another node's change, and that this was missing from its memory would not be seen.
const READ_ONLY: Duration = Duration::from_secs(7);
/// The number of the client that changes all of them at once.
const WAVE_CLIENT: u32 = CLIENTS + 1;

/// Changes every quiet patient once, all at the same time, through all fronts. Then they are only read for a while.
pub(crate) async fn change_quiet(driver: &Driver) {
    let known = |slot: &Mutex<Slot>| {
        let mut slot = slot.lock().expect("sane");
        slot.read_only_until = Some(Instant::now() + READ_ONLY);
        slot.patient
    };
    let changes = driver.slots[BUSY..].iter().filter_map(known).zip(0..).map(|(known, n)| {
        let call = Call::Put { tag: driver.next_tag(), email: Email::Own, expected: None };
        driver.perform(WAVE_CLIENT, n % driver.api().fronts(), Some(known), call, false)
    });
    join_all(changes).await;
}
