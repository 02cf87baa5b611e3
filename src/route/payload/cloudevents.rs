//! CloudEvents 1.0.2 in both modes of its NATS binding: structured, where the payload is the event in JSON, and binary,
//! where the attributes are headers `ce-…` and the payload is the data.

use std::ops::Range;

use super::{Body, TransactionText, write_data, write_header_type, write_table, write_type};
use crate::route::headers::push_encoded;

/// Appends the event, structured. Returns where its data is.
pub fn write(
    body: Body<'_>,
    source: &str,
    transaction: &TransactionText,
    id: &[u8],
    out: &mut Vec<u8>,
) -> Range<usize> {
    out.extend_from_slice(b"{\"specversion\":\"1.0\",\"id\":\"");
    out.extend_from_slice(id);
    out.extend_from_slice(b"\",\"source\":\"/walhook/");
    out.extend_from_slice(source.as_bytes());
    out.extend_from_slice(b"\",\"type\":\"");
    write_type(body, out);
    out.extend_from_slice(b"\",\"time\":\"");
    out.extend_from_slice(&transaction.timestamp);
    // The attribute is optional, and such a message is about no table.
    if !matches!(body, Body::Emitted(_)) {
        out.extend_from_slice(b"\",\"subject\":\"");
        write_table(body, out);
    }
    out.extend_from_slice(b"\",\"datacontenttype\":\"application/json\",\"data\":");
    let data = write_data(body, out);
    out.push(b'}');
    data
}

/// Appends the attributes that differ from event to event, as headers. Source and id have no character to encode.
pub fn write_headers(body: Body<'_>, source: &str, transaction: &TransactionText, id: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\nce-id: ");
    out.extend_from_slice(id);
    out.extend_from_slice(b"\r\nce-source: /walhook/");
    out.extend_from_slice(source.as_bytes());
    out.extend_from_slice(b"\r\nce-type: ");
    write_header_type(body, out);
    out.extend_from_slice(b"\r\nce-time: ");
    out.extend_from_slice(&transaction.timestamp);
    if matches!(body, Body::Emitted(_)) {
        return;
    }
    out.extend_from_slice(b"\r\nce-subject: ");
    match body {
        Body::Row { table, .. } => push_encoded(table.unescaped.as_bytes(), out),
        Body::Columns { table, .. } => push_encoded(table.unescaped.as_bytes(), out),
        Body::Call { .. } | Body::Emitted(_) => write_table(body, out),
    }
}
