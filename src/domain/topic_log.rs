//! Detects whether a topic still has the known log, or another log under the same name.
//!
//! A topic that was deleted and recreated, or a broker that lost its volume, shows a new log under the old
//! cluster id and topic name. The client library does not report the topic's id, and an id would not reveal a
//! log that lost its end. So a log is identified by its content: the last event known to be in each
//! partition. If a partition ends before that event, or has another message in its place, the log is another
//! one.

use super::ids::EventId;

/// A message, usually of an event, that is known to be in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogAnchor {
    /// The partition.
    pub partition: i32,
    /// The offset of the message.
    pub offset: i64,
    /// The event in the message; `None` if only the presence of the message is known.
    pub event_id: Option<EventId>,
}

/// The offsets of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionSight {
    /// The partition.
    pub partition: i32,
    /// The oldest offset that the partition still holds.
    pub low: i64,
    /// The offset that the next message will get.
    pub high: i64,
}

/// A message that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageSight {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The event in the message, if it holds one.
    pub event_id: Option<EventId>,
}

/// Returns the anchors whose messages must be read: those that the partitions should still hold.
pub fn worth_reading(anchors: &[LogAnchor], partitions: &[PartitionSight]) -> Vec<LogAnchor> {
    let holds = |anchor: &&LogAnchor| {
        let sight = partitions.iter().find(|p| p.partition == anchor.partition);
        anchor.event_id.is_some() && sight.is_some_and(|p| p.low <= anchor.offset && anchor.offset < p.high)
    };
    anchors.iter().filter(holds).copied().collect()
}

/// Returns the reason why this is another log than that of the anchors, or `None` if there is no sign of it.
/// An anchor that retention or compaction has removed is no sign.
pub fn departure(
    anchors: &[LogAnchor],
    partitions: &[PartitionSight],
    messages: &[MessageSight],
) -> Option<String> {
    anchors.iter().find_map(|anchor| {
        let LogAnchor { partition, offset, event_id } = *anchor;
        let Some(sight) = partitions.iter().find(|p| p.partition == partition) else {
            return Some(format!("partition {partition} is gone"));
        };
        if sight.high <= offset {
            let high = sight.high;
            return Some(format!("partition {partition} ends before offset {high}, and had offset {offset}"));
        }
        let found = messages.iter().find(|m| m.partition == partition && m.offset == offset)?;
        (event_id.is_some() && found.event_id != event_id)
            .then(|| format!("partition {partition} has another message at offset {offset}"))
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn event(n: u128) -> Option<EventId> {
        Some(EventId(Uuid::from_u128(n)))
    }

    fn at(partition: i32, offset: i64, event_id: Option<EventId>) -> LogAnchor {
        LogAnchor { partition, offset, event_id }
    }

    fn from_to(partition: i32, low: i64, high: i64) -> PartitionSight {
        PartitionSight { partition, low, high }
    }

    #[test]
    fn a_log_that_has_what_it_had_is_the_same() {
        let anchors = [at(0, 9, event(1)), at(1, 4, event(2)), at(1, 7, None)];
        let grown = [from_to(0, 0, 12), from_to(1, 0, 8), from_to(2, 0, 0)];
        assert_eq!(worth_reading(&anchors, &grown), anchors[..2]);
        let found = [
            MessageSight { partition: 0, offset: 9, event_id: event(1) },
            MessageSight { partition: 1, offset: 4, event_id: event(2) },
        ];
        assert_eq!(departure(&anchors, &grown, &found), None);
        assert_eq!(departure(&[], &grown, &[]), None, "nothing is known of a log that is new to us");
        // Retention has removed the anchored messages, which is no sign of another log.
        let trimmed = [from_to(0, 10, 12), from_to(1, 8, 8)];
        assert_eq!(worth_reading(&anchors, &trimmed), []);
        assert_eq!(departure(&anchors, &trimmed, &[]), None);
        // Compaction has removed the messages, so they are not found.
        assert_eq!(departure(&anchors, &grown, &[]), None);
    }

    #[test]
    fn a_log_that_is_shorter_or_has_something_else_is_another() {
        let anchors = [at(0, 9, event(1))];
        let reason = |partitions: &[PartitionSight], event_id| {
            let found = [MessageSight { partition: 0, offset: 9, event_id }];
            departure(&anchors, partitions, &found)
        };
        let longer = [from_to(0, 0, 40)];
        assert!(reason(&longer, event(2)).expect("another event").contains("another message at offset 9"));
        assert!(reason(&longer, None).is_some(), "a message of somebody else");
        assert!(reason(&[from_to(0, 0, 9)], event(1)).expect("shorter").contains("ends before offset 9"));
        assert!(reason(&[from_to(0, 0, 0)], event(1)).is_some());
        assert!(reason(&[from_to(1, 0, 40)], event(1)).expect("fewer").contains("partition 0 is gone"));
        // Anchors that only the offsets of a reader provide.
        assert!(departure(&[at(0, 9, None)], &[from_to(0, 0, 9)], &[]).is_some());
        assert_eq!(departure(&[at(0, 9, None)], &longer, &[]), None);
    }
}
