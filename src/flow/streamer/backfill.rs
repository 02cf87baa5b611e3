//! Rows of a backfill, taken as changes of their own table at their own place in the WAL.
//!
//! In: the parts of a chunk. Out: events of op `snapshot` in the same lanes as all others, with ids from their own position; so
//! they come once, in order with the live ones, and again after a restart, for nothing of them is kept from one transaction to the
//! next.

use super::Streamer;
use crate::{
    error::{Error, Result},
    route::chunk::Chunk,
    wal::change::{Change, Op},
};

impl Streamer {
    /// The head of a chunk.
    pub(super) fn begin_chunk(&mut self, head: &[u8]) -> Result<()> {
        let at = self.out.transaction.row_lsn;
        let chunk = Chunk::parse(head).map_err(|error| {
            Error::protocol(format!("read the head of a backfill's chunk in rule_cdc_backfill_rows at {at}"))
                .caused_by(error)
                .hint("only rule_cdc_backfill_chunk writes there")
        })?;
        self.awaits_types |= !chunk.is_known(&self.router.types);
        self.chunk = Some(chunk);
        Ok(())
    }

    /// One of its rows, which came as `change`.
    pub(super) fn chunk_row(&mut self, bytes: &[u8], change: &Change<'_>) -> Result<()> {
        let at = self.out.transaction.row_lsn;
        let attempted = || Error::protocol(format!("read a row of a backfill in rule_cdc_backfill_rows at {at}"));
        let hint = "only rule_cdc_backfill_chunk writes there";
        let Some(chunk) = &mut self.chunk else {
            return Err(attempted().caused_by("its chunk has no head").hint(hint));
        };
        chunk.take(bytes).map_err(|error| attempted().caused_by(error).hint(hint))?;
        let router = &mut self.router;
        let Some((table, links, row)) = chunk.row(&router.rules, &router.types, &mut router.notices) else {
            return Ok(());
        };
        let change = Change { op: Op::Snapshot, new: Some(row), old: None, ..*change };
        self.out.row(&router.rules, table, &change, Some(links))
    }
}
