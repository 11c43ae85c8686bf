//! The `Idempotency-Key` of a change (draft-ietf-httpapi-idempotency-key-header). A client that received no
//! response repeats the request, and the change is made once. No key is stored here: the command id is
//! derived from key, caller and target, and so is the patient id of a registration. A repetition therefore
//! reaches the same shard from any node, and the event table knows the command. A refused request left no
//! event, so its repetition is judged anew.
//!
//! A key is valid for a day (`KEY_LIFETIME_HOURS`). After that it can be used again, under new ids.

use std::future::Future;

use aws_lc_rs::digest::{Context, SHA256};
use http::header::HeaderMap;
use uuid::{Builder, Uuid};

use crate::context::RequestContext;
use crate::domain::access::Caller;
use crate::domain::ids::{CommandId, Fingerprint, PatientId};
use crate::error::{Error, ErrorCode};

use super::pipeline::Call;
use super::problem::Failure;

const HEADER: &str = "idempotency-key";
const KEY_MAX_CHARS: usize = 255;
/// How often a key can be used, each time at least a day after the last. The limit bounds the cost: each use
/// first has to look at all earlier ones.
const USES_MAX: u32 = 8;

/// How a change is requested: under a key, or without one.
pub(super) struct Keyed {
    key: Option<Key>,
}

struct Key {
    text: Box<str>,
    fingerprint: Fingerprint,
}

/// The ids of one use of a key.
pub(super) struct Turn {
    /// The context of the request, with the command id of this use.
    pub(super) ctx: RequestContext,
    /// The patient id for a registration.
    pub(super) id: PatientId,
}

impl Keyed {
    /// Reads the key in the headers of `call`.
    ///
    /// # Errors
    /// `Invalid`: the key cannot be parsed.
    pub(super) fn of(call: &Call) -> Result<Self, Failure> {
        let text = key_of(&call.parts.headers)?;
        let fingerprint = || Fingerprint(hash(&[b"request-1", &call.body]));
        Ok(Keyed { key: text.map(|text| Key { text, fingerprint: fingerprint() }) })
    }

    /// Returns the fingerprint of the request, if it has a key and may therefore be repeated.
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        self.key.as_ref().map(|key| key.fingerprint)
    }

    /// Runs `attempt` to make the change, under the ids of the first use of the key. If that use has expired,
    /// tries the ids of the next one. `target` is the existing patient, or `None` for a registration.
    ///
    /// # Errors
    /// Those of `attempt`. `KeyExpired`: the key was used too often.
    pub(super) async fn carry_out<T, F>(
        &self,
        ctx: &RequestContext,
        target: Option<PatientId>,
        attempt: impl Fn(Turn) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let Some(key) = &self.key else {
            return attempt(Turn { ctx: ctx.clone(), id: PatientId(Uuid::now_v7()) }).await;
        };
        let mut nth = 0;
        loop {
            match attempt(key.turn(ctx, target, nth)).await {
                Err(error) if error.code == ErrorCode::KeyExpired && nth + 1 < USES_MAX => nth += 1,
                outcome => return outcome,
            }
        }
    }
}

impl Key {
    fn turn(&self, ctx: &RequestContext, target: Option<PatientId>, nth: u32) -> Turn {
        let (command_id, id) = self.ids(&ctx.caller, target, nth);
        Turn { ctx: RequestContext { command_id, ..ctx.clone() }, id }
    }

    fn ids(&self, caller: &Caller, target: Option<PatientId>, nth: u32) -> (CommandId, PatientId) {
        let target = target.map_or(Uuid::nil(), |id| id.0);
        let made = |what: &[u8]| {
            let parts: [&[u8]; 5] = [
                what,
                caller.subject.as_bytes(),
                target.as_bytes(),
                self.text.as_bytes(),
                &nth.to_be_bytes(),
            ];
            hash(&parts)
        };
        (CommandId(made(b"command-1")), PatientId(made(b"patient-1")))
    }
}

/// Returns a UUID derived from `parts` (RFC 9562, section 5.8: version 8). The length prefixes keep different
/// parts from having the same input.
fn hash(parts: &[&[u8]]) -> Uuid {
    let mut hashing = Context::new(&SHA256);
    for part in parts {
        hashing.update(&(part.len() as u64).to_be_bytes());
        hashing.update(part);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hashing.finish().as_ref()[..16]);
    Builder::from_custom_bytes(bytes).into_uuid()
}

/// Reads the key, with quotes as in the draft (RFC 9651, section 3.3.3) or without.
fn key_of(headers: &HeaderMap) -> Result<Option<Box<str>>, Failure> {
    let refused = |message| Err(Failure::field("Idempotency-Key", message));
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return refused("Given more than once");
    }
    let text = value.to_str().unwrap_or_default().trim();
    let key = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    let good = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\');
    if key.is_empty() || key.len() > KEY_MAX_CHARS || !key.chars().all(good) {
        return refused("Should be 1 to 255 visible characters, in quotes or without");
    }
    Ok(Some(key.into()))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::context::TraceContext;

    fn key(values: &[&str]) -> Result<Option<Box<str>>, Failure> {
        let header = |value: &&str| {
            (HeaderName::from_static(HEADER), HeaderValue::from_bytes(value.as_bytes()).expect("a value"))
        };
        key_of(&values.iter().map(header).collect())
    }

    #[test]
    fn a_key_is_read_in_quotes_and_without() {
        assert_eq!(key(&[]).expect("none"), None);
        for given in ["\"8e03978e-40d5\"", "8e03978e-40d5", " \"8e03978e-40d5\" "] {
            assert_eq!(key(&[given]).expect("a key").as_deref(), Some("8e03978e-40d5"));
        }
        let long = "k".repeat(KEY_MAX_CHARS);
        assert_eq!(key(&[&long]).expect("as long as may be").as_deref(), Some(&*long));
        for bad in ["", "\"\"", "a b", "\"a", "a\"", "\"a\";x=1\"", "k\u{e9}", &format!("{long}k")] {
            assert!(key(&[bad]).is_err(), "{bad}");
        }
        assert!(key(&["a", "a"]).is_err());
    }

    #[tokio::test]
    async fn a_key_that_was_used_long_ago_stands_for_its_next_use() {
        let key = Key { text: "k".into(), fingerprint: Fingerprint(Uuid::nil()) };
        let keyed = Keyed { key: Some(key) };
        let (clock, budget) = (crate::clock::SystemClock, std::time::Duration::from_secs(5));
        let ctx = RequestContext::new(Caller::system("ada"), TraceContext::root(), &clock, budget);
        for uses in 0..USES_MAX {
            let tried = Mutex::new(Vec::new());
            let attempt = |turn: Turn| {
                let mut tried = tried.lock().expect("sane");
                tried.push((turn.ctx.command_id, turn.id));
                let expired = tried.len() <= uses as usize;
                let error = Error::new(ErrorCode::KeyExpired, "long ago");
                std::future::ready(if expired { Err(error) } else { Ok(turn.id) })
            };
            let made = keyed.carry_out(&ctx, None, attempt).await.expect("made");
            let mut tried = tried.into_inner().expect("sane");
            assert_eq!((tried.len(), tried.last().map(|(_, id)| *id)), (uses as usize + 1, Some(made)));
            tried.sort();
            tried.dedup_by_key(|(command, _)| *command);
            assert_eq!(tried.len(), uses as usize + 1, "each use has its own ids");
        }
        let tried = std::sync::atomic::AtomicU32::new(0);
        let never = |_: Turn| {
            tried.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            std::future::ready(Err::<(), _>(Error::new(ErrorCode::KeyExpired, "long ago")))
        };
        let refused = keyed.carry_out(&ctx, None, never).await.expect_err("used up");
        assert_eq!((refused.code, tried.into_inner()), (ErrorCode::KeyExpired, USES_MAX));
        // Without a key there is one attempt, and every request has its own ids.
        let once = Keyed { key: None };
        let ids = |turn: Turn| std::future::ready(Ok::<_, Error>(turn.id));
        let one = once.carry_out(&ctx, None, ids).await.expect("made");
        assert_ne!(once.carry_out(&ctx, None, ids).await, Ok(one));
    }

    #[test]
    fn ids_belong_to_caller_target_key_and_use() {
        let key = |text: &str| Key { text: text.into(), fingerprint: Fingerprint(Uuid::nil()) };
        let (ada, bob) = (Caller::system("ada"), Caller::system("bob"));
        let (none, some) = (None, Some(PatientId(Uuid::from_u128(1))));
        let first = key("k").ids(&ada, none, 0);
        assert_eq!(key("k").ids(&ada, none, 0), first, "the same on every node");
        assert_ne!(first.0.0, first.1.0);
        let others = [
            key("l").ids(&ada, none, 0),
            key("k").ids(&bob, none, 0),
            key("k").ids(&ada, some, 0),
            key("k").ids(&ada, none, 1),
        ];
        for other in others {
            assert!(other.0 != first.0 && other.1 != first.1);
        }
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
        assert_eq!(first.1.0.get_version_num(), 8);
    }
}
