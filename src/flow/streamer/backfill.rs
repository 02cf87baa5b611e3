//! Rows of a backfill, taken as changes of their own table at their own place in the WAL.
//!
//! In: the parts of a chunk. Out: events of op `snapshot` in the same lanes as all others, with ids from their own position; so
//! they come once, in order with the live ones, and again after a restart, for nothing of them is kept from one transaction to the
//! next.

use super::Streamer;
use crate::{
    error::Result,
    route::chunk::Chunk,
    wal::change::{Change, Op},
};

/// Who may have written what cannot be read.
const WRITERS: &str =
    "only rule_cdc_backfill_chunk writes there; was something inserted by hand, or by a newer walhook?";

impl Streamer {
    /// The head of a chunk. One that cannot be read is passed over with its rows, and reported: it is no event of anybody's.
    pub(super) fn begin_chunk(&mut self, head: &[u8]) {
        let at = self.out.transaction.row_lsn;
        let chunk = Chunk::parse(head).unwrap_or_else(|error| {
            self.router.notices.push(format!(
                "a chunk in rule_cdc_backfill_rows at {at} is passed over, for its head cannot be read: {error}; {WRITERS}"
            ));
            Chunk::unreadable()
        });
        self.awaits_types |= !chunk.is_known(&self.router.types);
        self.chunk = Some(chunk);
    }

    /// One of its rows, which came as `change`. One that cannot be read is passed over, and the first of a chunk reported.
    pub(super) fn chunk_row(&mut self, bytes: &[u8], change: &Change<'_>) -> Result<()> {
        let at = self.out.transaction.row_lsn;
        let router = &mut self.router;
        let chunk = self.chunk.get_or_insert_with(|| {
            router.notices.push(format!(
                "rows in rule_cdc_backfill_rows at {at} are passed over, for their chunk has no head; {WRITERS}"
            ));
            Chunk::unreadable()
        });
        if let Err(error) = chunk.take(bytes) {
            if chunk.is_first_misfit() {
                router.notices.push(format!(
                    "a row in rule_cdc_backfill_rows at {at} is passed over, for it cannot be read: {error}; {WRITERS}"
                ));
            }
            return Ok(());
        }
        let Some((table, links, row)) = chunk.row(&router.rules, &router.types, &mut router.notices) else {
            return Ok(());
        };
        let change = Change { op: Op::Snapshot, new: Some(row), old: None, ..*change };
        self.out.row(&router.rules, table, &change, Some(links))
    }
}
