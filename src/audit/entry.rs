//! The encoding of entries, and the search terms of a batch.

use std::collections::HashMap;
use std::net::IpAddr;

use prost::Message;
use uuid::Uuid;

use super::Mac;
use super::chain::NOTHING_BEFORE;
use crate::domain::access::{Action, Caller, Role};
use crate::domain::audit::{Access, Change, Detail, Outcome};
use crate::domain::ids::{EventId, PatientId};
use crate::domain::time::Timestamp;
use crate::proto::audit as pb;
use crate::store::AuditHead;

/// The content of one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The seal of the previous batch; zeros in the first batch of a chain.
    pub before: Mac,
    /// In the first batch of a chain: the writer and the fingerprint of the secret.
    pub opening: Option<(String, Vec<u8>)>,
    /// The pinned heads of other chains.
    pub pins: Vec<AuditHead>,
    /// The recorded accesses.
    pub entries: Vec<Access>,
}

/// The error for a batch that this version cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its content cannot be read")]
pub struct Unreadable;

/// Encodes a batch that is sealed at `at`.
pub(super) fn write(content: &Content, at: Timestamp) -> Vec<u8> {
    let mut callers = Vec::new();
    let mut places: HashMap<(&str, Role, Option<IpAddr>), u32> = HashMap::new();
    let mut entries = Vec::with_capacity(content.entries.len());
    for access in &content.entries {
        // The reason for breaking the glass belongs to the access, and only if it was needed.
        let Caller { subject, role, from, break_glass: _ } = &access.caller;
        let next = u32::try_from(callers.len()).unwrap_or(u32::MAX);
        let who = *places.entry((subject, *role, *from)).or_insert_with(|| {
            callers.push(pb::Who {
                subject: subject.as_ref().to_owned(),
                role: role.as_str().to_owned(),
                from: from.map(address_bytes).unwrap_or_default(),
            });
            next
        });
        entries.push(pb::Entry {
            before_us: u64::try_from(at.0.saturating_sub(access.at.0)).unwrap_or_default(),
            action: access.action.code().into(),
            outcome: access.outcome.code().into(),
            who,
            patients: access.patients.iter().flat_map(|patient| *patient.0.as_bytes()).collect(),
            trace: access.trace_id.to_be_bytes().to_vec(),
            reason: access.reason.as_deref().unwrap_or_default().to_owned(),
            event: access.change.map(|change| change.event.0.as_bytes().to_vec()).unwrap_or_default(),
            version: access.change.map(|change| change.version).unwrap_or_default(),
            detail: access.detail.as_deref().map(written),
        });
    }
    let opening = content
        .opening
        .as_ref()
        .map(|(writer, mark)| pb::Opening { writer: writer.clone(), secret_mark: mark.clone() });
    let pins = content.pins.iter().map(|pin| pb::Pin {
        chain: pin.chain.as_bytes().to_vec(),
        seq: u64::try_from(pin.seq).unwrap_or_default(),
        mac: pin.mac.to_vec(),
    });
    let before = if content.before == NOTHING_BEFORE { Vec::new() } else { content.before.to_vec() };
    pb::Batch { opening, pins: pins.collect(), callers, entries, before }.encode_to_vec()
}

/// Decodes a batch that was sealed at `at`.
///
/// # Errors
/// The batch was not written by this version or an older one.
pub fn read(body: &[u8], at: Timestamp) -> Result<Content, Unreadable> {
    let batch = pb::Batch::decode(body).map_err(|_| Unreadable)?;
    let callers: Option<Vec<Caller>> = batch.callers.into_iter().map(caller).collect();
    let callers = callers.ok_or(Unreadable)?;
    let entries = batch.entries.into_iter().map(|entry| access(entry, at, &callers));
    let pins = batch.pins.into_iter().map(|pin| {
        Some(AuditHead {
            chain: Uuid::from_slice(&pin.chain).ok()?,
            seq: i64::try_from(pin.seq).ok()?,
            mac: Mac::try_from(pin.mac).ok()?,
        })
    });
    let before = match batch.before.is_empty() {
        true => NOTHING_BEFORE,
        false => Mac::try_from(batch.before).map_err(|_| Unreadable)?,
    };
    Ok(Content {
        before,
        opening: batch.opening.map(|opening| (opening.writer, opening.secret_mark)),
        pins: pins.collect::<Option<_>>().ok_or(Unreadable)?,
        entries: entries.collect::<Option<_>>().ok_or(Unreadable)?,
    })
}

fn written(detail: &Detail) -> pb::Detail {
    let Detail { account, role, disabled, restricted, search } = detail;
    pb::Detail {
        account: account.as_deref().unwrap_or_default().to_owned(),
        role: role.map_or("", Role::as_str).to_owned(),
        disabled: *disabled,
        restricted: *restricted,
        search: search.as_deref().unwrap_or_default().to_owned(),
    }
}

/// Returns `None` if the role is unknown.
fn detail(written: pb::Detail) -> Option<Detail> {
    let pb::Detail { account, role, disabled, restricted, search } = written;
    let text = |text: String| (!text.is_empty()).then(|| text.into());
    let role = match role.as_str() {
        "" => None,
        name => Some(Role::parse(name)?),
    };
    Some(Detail { account: text(account), role, disabled, restricted, search: text(search) })
}

fn caller(who: pb::Who) -> Option<Caller> {
    let from = match who.from.len() {
        0 => None,
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(who.from).ok()?)),
        _ => Some(IpAddr::from(<[u8; 16]>::try_from(who.from).ok()?)),
    };
    Some(Caller { subject: who.subject.into(), role: Role::parse(&who.role)?, from, break_glass: None })
}

fn access(entry: pb::Entry, at: Timestamp, callers: &[Caller]) -> Option<Access> {
    let change = match entry.event.is_empty() {
        true => None,
        false => {
            Some(Change { event: EventId(Uuid::from_slice(&entry.event).ok()?), version: entry.version })
        }
    };
    let (patients, rest) = entry.patients.as_chunks::<16>();
    if !rest.is_empty() {
        return None;
    }
    Some(Access {
        at: Timestamp(at.0.saturating_sub(i64::try_from(entry.before_us).ok()?)),
        action: Action::from_code(u8::try_from(entry.action).ok()?)?,
        outcome: Outcome::from_code(u8::try_from(entry.outcome).ok()?)?,
        caller: callers.get(usize::try_from(entry.who).ok()?)?.clone(),
        patients: patients.iter().map(|id| PatientId(Uuid::from_bytes(*id))).collect(),
        trace_id: u128::from_be_bytes(entry.trace.try_into().ok()?),
        reason: (!entry.reason.is_empty()).then(|| entry.reason.into()),
        change,
        detail: match entry.detail {
            Some(written) => Some(Box::new(detail(written)?)),
            None => None,
        },
    })
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// How much older than its batch an entry may be without making the batch late, in microseconds. Nearly every
/// entry is sealed within milliseconds; one that waits for a commit that hangs is not.
pub const PROMPT_US: i64 = 1_000_000;

/// The search terms of a batch: hashes by which the database finds it. Different values may have the same
/// term, so matches must be checked again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms(pub Vec<i32>);

impl Terms {
    /// Returns the terms of a batch of `entries` that is sealed at `at`, sorted and without duplicates.
    pub fn of(entries: &[Access], at: Timestamp) -> Self {
        let mut terms = Vec::with_capacity(entries.len() + 8);
        if entries.iter().any(|access| access.at.0 < at.0.saturating_sub(PROMPT_US)) {
            terms.push(Self::of_late());
        }
        for access in entries {
            terms.extend(access.patients.iter().map(|patient| term_of_patient(*patient)));
            terms.push(Self::of_subject(&access.caller.subject));
            terms.push(Self::of_action(access.action));
            terms.push(Self::of_outcome(access.outcome));
        }
        terms.sort_unstable();
        terms.dedup();
        Terms(terms)
    }

    /// Returns the term of a batch with an entry that is more than `PROMPT_US` older than the batch. A search for
    /// entries before some time reads only these batches of those that were sealed later.
    pub fn of_late() -> i32 {
        term(b'l', b"")
    }

    /// Returns the term of a caller.
    pub fn of_subject(subject: &str) -> i32 {
        term(b's', subject.as_bytes())
    }

    /// Returns the term of an action.
    pub fn of_action(action: Action) -> i32 {
        term(b'a', &[action.code()])
    }

    /// Returns the term of an outcome. A submitted change has the same term as a completed one.
    pub fn of_outcome(outcome: Outcome) -> i32 {
        let outcome = if outcome == Outcome::Submitted { Outcome::Done } else { outcome };
        term(b'o', &[outcome.code()])
    }
}

/// Returns the term of a patient.
pub fn term_of_patient(patient: PatientId) -> i32 {
    term(b'p', patient.0.as_bytes())
}

/// 32-bit FNV-1a (Fowler, Noll and Vo) over the kind and the bytes. Must stay the same in every version.
fn term(kind: u8, bytes: &[u8]) -> i32 {
    let hash = std::iter::once(&kind)
        .chain(bytes)
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash.cast_signed()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn some_access(n: u128) -> Access {
        Access {
            at: Timestamp(1_000_000),
            action: Action::PatientRead,
            outcome: Outcome::Done,
            caller: Caller {
                subject: format!("user-{}@example.com", n % 3).into(),
                role: Role::Clinician,
                from: Some(IpAddr::from([192, 0, 2, 1])),
                break_glass: None,
            },
            patients: vec![PatientId(Uuid::from_u128(n))],
            trace_id: n,
            reason: None,
            change: None,
            detail: None,
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let content = Content {
            before: [6; 32],
            opening: Some(("node#boot/edge".into(), vec![1, 2, 3])),
            pins: vec![AuditHead { chain: Uuid::from_u128(9), seq: 7, mac: [5; 32] }],
            entries: vec![
                some_access(1),
                Access {
                    patients: Vec::new(),
                    outcome: Outcome::Denied,
                    caller: Caller::system("x"),
                    ..some_access(2)
                },
                Access { detail: Some(Box::new(Detail::of_mark(false))), ..some_access(2) },
                Access {
                    detail: Some(Box::new(Detail {
                        role: Some(Role::Billing),
                        disabled: Some(true),
                        search: Some("q=ada".into()),
                        ..Detail::of_account("ada@example.com")
                    })),
                    ..some_access(2)
                },
                Access {
                    patients: (0..1000).map(|n| PatientId(Uuid::from_u128(n))).collect(),
                    reason: Some("an emergency".into()),
                    ..some_access(3)
                },
                Access {
                    outcome: Outcome::Submitted,
                    change: Some(Change { event: EventId(Uuid::from_u128(4)), version: 1 }),
                    caller: Caller {
                        from: Some("2001:db8::1".parse().expect("an address")),
                        ..Caller::system("y")
                    },
                    ..some_access(4)
                },
            ],
        };
        let at = Timestamp(1_000_500);
        assert_eq!(read(&write(&content, at), at), Ok(content));
    }

    #[test]
    fn what_is_no_batch_is_not_read() {
        assert_eq!(read(b"\xff\xff", Timestamp(0)), Err(Unreadable));
        let odd = pb::Batch {
            callers: vec![pb::Who { role: "ADMIN".into(), ..Default::default() }],
            entries: vec![pb::Entry {
                action: 1,
                outcome: 1,
                patients: vec![0; 15],
                trace: vec![0; 16],
                ..Default::default()
            }],
            ..Default::default()
        };
        assert_eq!(read(&odd.encode_to_vec(), Timestamp(0)), Err(Unreadable));
    }

    #[test]
    fn terms_are_pinned() {
        let entries = [some_access(1), some_access(1), some_access(4)];
        let oldest = entries[0].at.0;
        let terms = Terms::of(&entries, Timestamp(oldest + PROMPT_US));
        assert_eq!(terms.0.len(), 2 + 1 + 1 + 1, "two patients, one caller, one action, one outcome");
        assert!(terms.0.is_sorted() && terms.0.contains(&term_of_patient(PatientId(Uuid::from_u128(4)))));
        let late = Terms::of(&entries, Timestamp(oldest + PROMPT_US + 1));
        assert!(late.0.len() == terms.0.len() + 1 && late.0.contains(&Terms::of_late()));
        // A published test vector of FNV-1a: "a" is 0xe40c292c.
        assert_eq!(term(b'a', b""), 0xe40c_292c_u32.cast_signed());
    }
}
