//! In the steady state an event costs no allocation, from the read buffer to its confirmation.

#![allow(clippy::unwrap_used)]

#[path = "../benches/stages/feed.rs"]
mod feed;

use feed::{Frames, Sink};

/// Enough that every buffer has its size.
const WARM_UP: u64 = 20_000;
const ROWS: u64 = 20_000;

#[test]
fn an_event_in_the_steady_state_allocates_nothing() {
    allocates_nothing(Sink::new);
}

#[test]
fn a_message_that_is_a_column_allocates_nothing() {
    allocates_nothing(Sink::of_column);
}

#[test]
fn a_row_with_masks_and_other_names_allocates_nothing() {
    allocates_nothing(Sink::masked);
}

#[test]
fn a_sealed_event_allocates_nothing() {
    allocates_nothing(Sink::sealed);
}

fn allocates_nothing(make: fn(&str) -> Sink) {
    for (in_each, history) in [(1, "off"), (1000, "off"), (1, "full"), (1000, "full")] {
        let frames = Frames::of(WARM_UP + ROWS, in_each);
        let mut frames = frames.iter();
        let mut sink = make(history);
        take(&mut sink, &mut frames, WARM_UP);
        let allocated = allocation_counter::measure(|| take(&mut sink, &mut frames, WARM_UP + ROWS));
        // A window that is settled as a whole gives segments of some hundred messages back.
        let most = ROWS / 100;
        assert!(
            allocated.count_total <= most,
            "{} allocations for {ROWS} events, {in_each} in a transaction, history {history}",
            allocated.count_total
        );
    }
}

#[test]
fn an_allocation_is_counted() {
    let allocated = allocation_counter::measure(|| drop(std::hint::black_box(vec![1u8; 100])));
    assert_eq!(allocated.count_total, 1);
}

fn take<'a>(sink: &mut Sink, frames: &mut impl Iterator<Item = &'a [u8]>, upto: u64) {
    while sink.made() < upto {
        sink.take(frames.next().expect("frames for all rows"));
    }
    sink.store();
    assert_eq!(sink.stored(), upto, "every event is stored");
}
