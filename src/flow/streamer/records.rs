//! Rows for the publish history: of the lanes, and of dead letters.
//!
//! Comes in: which rows are durable, and whether the table takes any. Goes out: batches of rows, one at a time of each book.

use super::Streamer;
use crate::flow::history::{Batch, HistorySource};

impl Streamer {
    /// Rows for the publish history, to be written; of each book one batch at a time. To be given back to
    /// [`Streamer::recorded`] once they are durable. Rows whose sequence has to be looked up come only from lanes whose
    /// stream `can_be_asked`.
    pub fn take_history(&mut self, can_be_asked: impl Fn(usize) -> bool) -> Vec<(HistorySource, Batch)> {
        let lanes = self.out.lanes.iter_mut().enumerate();
        let of_lanes = lanes.filter_map(|(index, lane)| {
            let history = lane.history();
            let batch = (!history.asks() || can_be_asked(index)).then(|| history.take())??;
            Some((HistorySource::Lane(index), batch))
        });
        let mut batches: Vec<_> = of_lanes.collect();
        batches.extend(self.out.history.take().map(|batch| (HistorySource::DeadLetters, batch)));
        batches
    }

    /// The rows of this batch are durable, or will never be and are given up.
    pub fn recorded(&mut self, source: HistorySource, batch: Batch) {
        match source {
            HistorySource::Lane(index) => self.out.lanes[index].history().recorded(batch),
            HistorySource::DeadLetters => self.out.history.recorded(batch),
        }
        self.settle();
    }

    /// Says whether the history's table takes no rows at present. Then delivery goes on without: rows that there is no
    /// room for are left out, and hold the confirmation until the slot is read again ([`Streamer::left_out`]).
    pub fn set_history_stuck(&mut self, is_stuck: bool) {
        self.out.history.set_stuck(is_stuck);
        for lane in &mut self.out.lanes {
            lane.history().set_stuck(is_stuck);
        }
    }
}
