//! The streamer by literals: what keepalives and commits move.

#![allow(clippy::unwrap_used)]

use super::*;

fn streamer() -> Streamer {
    let limits = Limits { window_events: 10, window_bytes: 1 << 20, history_bytes: 1 << 20 };
    Streamer::new("src", 1, "_INBOX.i", limits, Tables::default(), TypeCatalog::new(), Lsn(100))
}

/// XLogData at `at` with a Begin or a Commit of the transaction that commits from 500 to 548.
fn frame(at: u64, kind: u8) -> Vec<u8> {
    let mut frame = vec![b'w'];
    frame.extend([at, at, 0].into_iter().flat_map(u64::to_be_bytes));
    frame.push(kind);
    match kind {
        b'B' => frame.extend([500u64, 7].into_iter().flat_map(u64::to_be_bytes).chain([0, 0, 2, 188])),
        _ => frame.extend([0].into_iter().chain([500u64, 548, 7].into_iter().flat_map(u64::to_be_bytes))),
    }
    frame
}

fn keepalive(end: u64, reply_requested: bool) -> Vec<u8> {
    let parts = [end, 0].into_iter().flat_map(u64::to_be_bytes);
    [b'k'].into_iter().chain(parts).chain([u8::from(reply_requested)]).collect()
}

#[test]
fn a_keepalive_moves_the_confirmed_position_only_between_transactions() {
    let mut streamer = streamer();
    let mut check = |frame: &[u8], asks: bool, received: u64, known: u64, confirmed: u64| {
        let asked = streamer.receive(frame).unwrap() == Received::ReplyRequested;
        streamer.settle();
        let positions = (streamer.received(), streamer.known_wal(), streamer.confirmed());
        assert_eq!((asked, positions), (asks, (Lsn(received), Lsn(known), Lsn(confirmed))));
    };
    check(&keepalive(120, true), true, 120, 120, 120);
    // The rows of a transaction lie before its commit; of that PostgreSQL has told nevertheless.
    check(&frame(300, b'B'), false, 300, 500, 120);
    check(&keepalive(400, true), true, 300, 500, 120);
    check(&frame(500, b'C'), false, 548, 548, 548);
    check(&keepalive(540, false), false, 548, 548, 548);
    check(&keepalive(600, false), false, 600, 600, 600);
}

#[test]
fn a_transaction_that_is_cut_off_is_not_confirmed() {
    let mut streamer = streamer();
    streamer.receive(&frame(300, b'B')).unwrap();
    streamer.settle();
    assert_eq!((streamer.confirmed(), streamer.is_drained()), (Lsn(100), false));
    assert!(streamer.receive(&frame(300, b'B')).is_err(), "a transaction within another");
}
