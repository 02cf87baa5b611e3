//! The streaming replication protocol inside CopyData (manual, section 55.4).
//!
//! In: the payload of one CopyData message from the walsender. Out: what it carries, borrowed. The other way round only
//! [`StandbyStatus`] is ever sent. All times are microseconds since 2000-01-01 00:00 UTC, PostgreSQL's own epoch; whose
//! clock it is and what the WAL data means is not known here.

use std::fmt;

use bytes::BufMut;

use super::{
    cursor::{Cursor, DecodeError},
    lsn::Lsn,
};

/// What the walsender sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// One message of the output plugin.
    XLogData {
        /// Where in the WAL the message stands; zero or out of order for some kinds (streamed transactions).
        start: Lsn,
        /// The end of WAL on the server when it sent this.
        end: Lsn,
        /// The server's clock, in µs since 2000-01-01.
        sent_at: i64,
        /// The message itself: see [`super::pgoutput`].
        data: &'a [u8],
    },
    /// A sign of life.
    Keepalive {
        /// How far the server has read the WAL: all changes before it have been sent.
        end: Lsn,
        /// The server's clock, in µs since 2000-01-01.
        sent_at: i64,
        /// The server wants a [`StandbyStatus`] at once, or it may soon end the connection.
        reply_requested: bool,
    },
}

impl Frame<'_> {
    /// Reads the payload of one CopyData message.
    ///
    /// # Errors
    /// When it is no frame of the protocol, too short or too long.
    #[inline]
    pub fn parse(copy_data: &[u8]) -> Result<Frame<'_>, DecodeError> {
        let mut cursor = Cursor::new("replication message", copy_data);
        match cursor.choice("kind", |kind| matches!(kind, b'w' | b'k').then_some(kind))? {
            b'w' => {
                cursor.rename("XLogData");
                Ok(Frame::XLogData {
                    start: cursor.lsn("start")?,
                    end: cursor.lsn("end of WAL")?,
                    sent_at: cursor.i64("time")?,
                    data: cursor.take_remaining(),
                })
            }
            _ => {
                cursor.rename("Primary keepalive");
                let frame = Frame::Keepalive {
                    end: cursor.lsn("end of WAL")?,
                    sent_at: cursor.i64("time")?,
                    reply_requested: cursor.flag("reply requested")?,
                };
                cursor.finish()?;
                Ok(frame)
            }
        }
    }
}

/// Without the data, which is the user's.
impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Frame::XLogData { start, end, sent_at, data } => f
                .debug_struct("XLogData")
                .field("start", start)
                .field("end", end)
                .field("sent_at", sent_at)
                .field("data", &format_args!("{} bytes", data.len()))
                .finish(),
            Frame::Keepalive { end, sent_at, reply_requested } => f
                .debug_struct("Keepalive")
                .field("end", end)
                .field("sent_at", sent_at)
                .field("reply_requested", reply_requested)
                .finish(),
        }
    }
}

/// What we tell the walsender of our progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyStatus {
    /// All before this has been received; it shows in `pg_stat_replication` only.
    pub written: Lsn,
    /// All before this is safe with us: a logical slot moves here and the server may forget what is older.
    pub flushed: Lsn,
    /// All before this has been applied; it shows in `pg_stat_replication` only.
    pub applied: Lsn,
    /// Our clock, in µs since 2000-01-01.
    pub sent_at: i64,
    /// The server shall answer with a keepalive at once.
    pub reply_requested: bool,
}

impl StandbyStatus {
    /// Bytes that [`StandbyStatus::write`] appends.
    pub const SIZE: usize = 34;

    /// Appends the payload of a CopyData message.
    pub fn write(&self, out: &mut impl BufMut) {
        out.put_u8(b'r');
        out.put_u64(self.written.0);
        out.put_u64(self.flushed.0);
        out.put_u64(self.applied.0);
        out.put_i64(self.sent_at);
        out.put_u8(u8::from(self.reply_requested));
    }

    /// Reads what [`StandbyStatus::write`] wrote; the server's side, for tests.
    ///
    /// # Errors
    /// When it is no standby status update.
    pub fn parse(copy_data: &[u8]) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new("Standby status update", copy_data);
        cursor.choice("kind", |kind| (kind == b'r').then_some(()))?;
        let status = StandbyStatus {
            written: cursor.lsn("written")?,
            flushed: cursor.lsn("flushed")?,
            applied: cursor.lsn("applied")?,
            sent_at: cursor.i64("time")?,
            reply_requested: cursor.flag("reply requested")?,
        };
        cursor.finish()?;
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(data: &[u8], expected: Result<&str, &str>) {
        let got = Frame::parse(data).map(|frame| format!("{frame:?}")).map_err(|e| e.to_string());
        assert_eq!(got.as_deref().map_err(String::as_str), expected, "{}", data.escape_ascii());
    }

    #[test]
    fn a_frame_carries_data_or_a_sign_of_life() {
        check(
            b"w\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03data",
            Ok("XLogData { start: 0/1, end: 0/2, sent_at: 3, data: 4 bytes }"),
        );
        check(
            b"k\0\0\0\x01\0\0\0\x02\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            Ok("Keepalive { end: 1/2, sent_at: -1, reply_requested: true }"),
        );
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        check(b"", Err("replication message: kind at byte 0: takes 1 bytes, 0 are left"));
        check(b"r", Err("replication message: kind at byte 0: unknown value 0x72 ('r')"));
        check(b"w\0\0", Err("XLogData: start at byte 1: takes 8 bytes, 2 are left"));
        check(
            b"k\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x02",
            Err("Primary keepalive: reply requested at byte 17: unknown value 0x02 ('\\x02')"),
        );
        check(
            b"k\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\x01!",
            Err("Primary keepalive: end at byte 18: 1 bytes too many"),
        );
    }
}
