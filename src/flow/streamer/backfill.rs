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

impl Streamer {
    /// The head of a chunk. One that is not what our SQL writes is passed over with its rows: whoever may run a backfill may write
    /// into its table, and must not stop the stream by it.
    pub(super) fn begin_chunk(&mut self, head: &[u8]) {
        match Chunk::parse(head) {
            Ok(chunk) => {
                self.awaits_types |= !chunk.is_known(&self.router.types);
                self.chunk = Some(chunk);
            }
            Err(error) => {
                self.chunk = None;
                self.pass_over_chunk(&format!("the head of a chunk: {error}"));
            }
        }
    }

    /// One of its rows, which came as `change`.
    pub(super) fn chunk_row(&mut self, bytes: &[u8], change: &Change<'_>) -> Result<()> {
        // Told with its head, or in the midst of a chunk.
        let Some(chunk) = &mut self.chunk else {
            self.pass_over_chunk("a row without the head of its chunk");
            return Ok(());
        };
        if let Err(error) = chunk.take(bytes) {
            self.pass_over_chunk(&format!("a row of a chunk: {error}"));
            return Ok(());
        }
        let router = &mut self.router;
        let Some((table, links, row)) = chunk.row(&router.rules, &router.types, &mut router.notices) else {
            return Ok(());
        };
        let change = Change { op: Op::Snapshot, new: Some(row), old: None, ..*change };
        self.out.row(&router.rules, table, &change, Some(links))
    }

    /// Says so once for each transaction.
    fn pass_over_chunk(&mut self, what: &str) {
        if !std::mem::replace(&mut self.passed_over_chunk, true) {
            self.router.notices.push(format!(
                "cannot read {what}, written into rule_cdc_backfill_rows at {}: it is passed over; only \
                 rule_cdc_backfill_chunk writes there",
                self.out.transaction.row_lsn
            ));
        }
    }
}
