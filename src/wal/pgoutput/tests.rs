//! Messages byte by byte, as the manual describes them, and those that are none.

use super::*;

const IN_STREAM: Dialect = Dialect { version: 2, in_stream: true, parallel: false };

fn check_in(dialect: Dialect, data: &[u8], expected: Result<&str, &str>) {
    let got = Message::parse(data, dialect).map(|message| format!("{message:?}")).map_err(|e| e.to_string());
    assert_eq!(got.as_deref().map_err(String::as_str), expected, "{}", data.escape_ascii());
}

fn check(data: &[u8], expected: Result<&str, &str>) {
    check_in(Dialect::V1, data, expected);
}

#[test]
fn an_insert_shows_its_columns() {
    check(
        b"I\0\0\0\x07N\0\x04t\0\0\0\x02hinub\0\0\0\x01\xff",
        Ok(r#"Insert { xid: None, relation: 7, new: [Text("hi"), Null, Unchanged, Binary("\xff")] }"#),
    );
    check(b"I\0\0\0\x07N\0\0", Ok("Insert { xid: None, relation: 7, new: [] }"));
}

#[test]
fn an_update_tells_an_old_key_from_an_old_row() {
    check(
        b"U\0\0\0\x07K\0\x01nN\0\x01u",
        Ok("Update { xid: None, relation: 7, old: Some(Key([Null])), new: [Unchanged] }"),
    );
    check(
        b"U\0\0\0\x07O\0\x01nN\0\x01n",
        Ok("Update { xid: None, relation: 7, old: Some(Full([Null])), new: [Null] }"),
    );
    check(b"U\0\0\0\x07N\0\x01n", Ok("Update { xid: None, relation: 7, old: None, new: [Null] }"));
    check(b"U\0\0\0\x07K\0\x01nK\0\x01n", Err("Update: row's kind at byte 9: unknown value 0x4b ('K')"));
}

#[test]
fn in_a_stream_a_change_carries_its_transaction() {
    check_in(IN_STREAM, b"I\0\0\0\x09\0\0\0\x07N\0\0", Ok("Insert { xid: Some(9), relation: 7, new: [] }"));
    check(b"I\0\0\0\x09\0\0\0\x07N\0\0", Err("Insert: row's kind at byte 5: unknown value 0x00 ('\\x00')"));
}

#[test]
fn a_length_beyond_the_message_is_an_error_that_names_the_column() {
    check(
        b"I\0\0\0\x07N\0\x02nt\x7f\xff\xff\xffhi",
        Err("Insert: new row's column of number 2 at byte 14: takes 2147483647 bytes, 2 are left"),
    );
    check(
        b"D\0\0\0\x07K\0\x01t\xff\xff\xff\xffhi",
        Err("Delete: old key's column of number 1 at byte 9: -1 is below zero"),
    );
    check(b"I\0\0\0\x07N\xff\xffnn", Err("Insert: new row's column of number 3 at byte 10: takes 1 bytes, 0 are left"));
}

#[test]
fn a_count_of_relations_beyond_the_message_is_an_error() {
    check(b"T\x7f\xff\xff\xff\x01\0\0\0\x07", Err("Truncate: relations at byte 6: takes 8589934588 bytes, 4 are left"));
    check(b"T\x80\0\0\0\x01", Err("Truncate: number of relations at byte 1: -2147483648 is below zero"));
    check(b"T\0\0\0\0\x04", Err("Truncate: options at byte 5: unknown value 0x04 ('\\x04')"));
}

#[test]
fn a_delete_without_an_old_row_is_an_error() {
    check(b"D\0\0\0\x07N\0\x01n", Err("Delete: row's kind at byte 5: unknown value 0x4e ('N')"));
}

#[test]
fn names_end_with_a_zero_byte_and_bytes_that_are_no_utf8_are_written_out() {
    check(b"Y\0\0\0\x07public\0m\xc3\xb6od\0", Ok(r#"Type { xid: None, id: 7, namespace: "public", name: "möod" }"#));
    check(b"Y\0\0\0\x07public", Err("Type: namespace at byte 5: a string without its final zero byte"));
    check(
        b"Y\0\0\0\x07public\0m\xf6od\0",
        Ok("Type { xid: None, id: 7, namespace: \"public\", name: \"m\u{FFFD}F6od\" }"),
    );
}

#[test]
fn a_transaction_without_a_position_is_an_error() {
    check(&[&b"B"[..], &[0; 20]].concat(), Err("Begin: final LSN at byte 1: is zero"));
}

#[test]
fn what_the_manual_does_not_list_is_an_error() {
    check(b"", Err("pgoutput message: kind at byte 0: takes 1 bytes, 0 are left"));
    check(b"Z", Err("pgoutput message: kind at byte 0: unknown value 0x5a ('Z')"));
    check(b"C\x01", Err("Commit: flags at byte 1: unknown value 0x01 ('\\x01')"));
    check(b"I\0\0\0\x07N\0\x01x", Err("Insert: new row's column of number 1 at byte 8: unknown value 0x78 ('x')"));
    check_in(IN_STREAM, b"E!", Err("Stream Stop: end at byte 1: 1 bytes too many"));
}

#[test]
fn a_message_of_a_later_version_is_an_error() {
    check(b"E", Err("Stream Stop: kind at byte 0: belongs to protocol version 2, version 1 was asked for"));
    check_in(IN_STREAM, b"P", Err("Prepare: kind at byte 0: belongs to protocol version 3, version 2 was asked for"));
}

#[test]
fn an_abort_says_where_and_when_only_to_a_parallel_subscriber() {
    let long = b"A\0\0\0\x01\0\0\0\x02\0\0\0\x16\xB3\x74\xD8\x48\0\0\0\0\0\0\0\x05";
    let parallel = Dialect { version: 4, in_stream: false, parallel: true };
    check_in(
        parallel,
        long,
        Ok("StreamAbort { xid: 1, subxid: 2, aborted: Some(Aborted { lsn: 16/B374D848, time: 5 }) }"),
    );
    check_in(parallel, &long[..9], Err("Stream Abort: abort LSN at byte 9: takes 8 bytes, 0 are left"));
    check_in(IN_STREAM, &long[..9], Ok("StreamAbort { xid: 1, subxid: 2, aborted: None }"));
    check_in(IN_STREAM, long, Err("Stream Abort: end at byte 9: 16 bytes too many"));
}

#[test]
fn a_row_can_be_walked_twice_and_knows_what_is_left() {
    let Ok(Message::Insert { new, .. }) = Message::parse(b"I\0\0\0\x07N\0\x02nt\0\0\0\x01a", Dialect::V1) else {
        panic!("an insert")
    };
    let mut columns = new.iter();
    assert_eq!((new.len(), columns.len()), (2, 2));
    assert_eq!(columns.next(), Some(Column::Null));
    let again = columns.clone();
    assert_eq!(columns.next(), Some(Column::Text(b"a")));
    assert_eq!((columns.next(), columns.next(), columns.len()), (None, None, 0));
    assert!(again.eq([Column::Text(b"a")]));
}
