//! The id of an event: `<source>-<commit_lsn hex16>-<commit_time hex>-<ordinal>-<webhook_id>`, a function of the WAL
//! and the webhook only, so that every run gives an event the same.

use crate::wal::lsn::Lsn;

/// What to do where stream and database tell different histories.
pub const REWRITTEN: &str = "the database was restored or failed over to an earlier point, or is a copy: a copy gets an identity of its \
                         own by `walhook adopt`; otherwise decide which events of the stream are valid, then start with \
                         another source (WALHOOK_SOURCE) or another stream";

/// Where an event stands: events of one lane are published in the order of their positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventPosition {
    /// Where the commit record starts.
    pub commit_lsn: Lsn,
    /// µs since 2000-01-01. No part of the order: it tells apart transactions that reuse an LSN.
    pub commit_time: i64,
    /// Row operations of the transaction before this one.
    pub ordinal: u64,
    /// The webhook.
    pub webhook_id: i32,
}

impl EventPosition {
    /// What it is ordered by.
    pub fn rank(&self) -> (Lsn, u64, i32) {
        (self.commit_lsn, self.ordinal, self.webhook_id)
    }

    /// Whether both name the same place in the WAL but different transactions: history was rewritten in between.
    pub fn contradicts(&self, other: &EventPosition) -> bool {
        self.commit_lsn == other.commit_lsn && self.commit_time != other.commit_time
    }

    /// The event's id in the feed `source`.
    pub fn id(&self, source: &str) -> String {
        let EventPosition { commit_lsn, commit_time, ordinal, webhook_id } = self;
        format!("{source}-{:016x}-{commit_time:x}-{ordinal}-{webhook_id}", commit_lsn.0)
    }

    /// Reads an id back; `None` if it is not one of ours, or of another source.
    pub fn parse(id: &str, source: &str) -> Option<EventPosition> {
        let mut parts = id.strip_prefix(source)?.strip_prefix('-')?.split('-');
        let lsn = parts.next().filter(|lsn| lsn.len() == 16)?;
        let position = EventPosition {
            commit_lsn: Lsn(u64::from_str_radix(lsn, 16).ok()?),
            // Written as the bits of the number, which for times before 2000 are those of a negative one.
            commit_time: u64::from_str_radix(parts.next()?, 16).ok()?.cast_signed(),
            ordinal: parts.next()?.parse().ok()?,
            webhook_id: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(position)
    }
}

impl EventPosition {
    /// Whether this event comes no later than `other`.
    pub fn is_at_or_before(&self, other: &EventPosition) -> bool {
        self.rank() <= other.rank()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_by_its_own_source_only() {
        let position =
            EventPosition { commit_lsn: Lsn(0x16B_3748), commit_time: 0x2c8f_0a1b, ordinal: 12, webhook_id: 7 };
        let id = "my-shop-00000000016b3748-2c8f0a1b-12-7";
        assert_eq!(EventPosition::parse(id, "my-shop"), Some(position));
        for other in ["my", "shop", "my-shop-0", "", "MY-SHOP"] {
            assert_eq!(EventPosition::parse(id, other), None, "{other}");
        }
        for bad in ["my-shop-16b3748-2c8f0a1b-12-7", "my-shop-00000000016b3748-2c8f0a1b-12", "my-shop-", "order-17"] {
            assert_eq!(EventPosition::parse(bad, "my-shop"), None, "{bad}");
        }
    }

    #[test]
    fn the_commit_time_does_not_order_but_contradicts() {
        let a = EventPosition { commit_lsn: Lsn(5), commit_time: 1, ordinal: 0, webhook_id: 1 };
        let b = EventPosition { commit_time: 2, ..a };
        assert!(a.contradicts(&b) && a.is_at_or_before(&b) && b.is_at_or_before(&a));
        let next = EventPosition { ordinal: 1, ..a };
        assert!(a.is_at_or_before(&next) && !next.is_at_or_before(&a) && !a.contradicts(&next));
    }
}
