//! The end of a stream: the checkpoint.
//!
//! In: a stream's name and how to tell a message of ours. Out: the last sequence and our last message. `STREAM.MSG.GET`
//! only, which the stream's leader answers; Direct Get may be answered by a replica that lags behind. It refuses to know
//! what our ids mean.

use std::ops::RangeInclusive;

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use super::{
    ack::SEQUENCE_MAX,
    codes::named::NO_MESSAGE_FOUND,
    control::Control,
    streams::{self, StreamState},
};
use crate::{
    error::{Error, Result},
    route::streams::is_same_stream,
};

/// Foreign messages read at most on the way back to one of ours, where nobody knows what comes before them; and how many messages
/// are listed around a place.
pub const STEPS_MAX: u64 = 4096;

/// The same where the stream's order rests on our last message: some seconds of reading.
pub const STRICT_STEPS_MAX: u64 = 16 * STEPS_MAX;

/// Requests in flight while we look: each answer may hold a message of `max_payload`, in base64.
const IN_FLIGHT_MAX: u64 = 16;

/// A message in a stream, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// When the server stored it, in nanoseconds since 1970.
    pub time_ns: i64,
    /// The header block as it stands.
    headers: String,
}

impl Stored {
    /// The first value of the header `name`, spelled as it was published.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

/// Where a stream ends.
#[derive(Debug, Clone)]
pub struct Tail {
    /// The last sequence the stream has given, to whatever message, whether or not it is still there.
    pub last_sequence: u64,
    /// The first sequence that may still be there; `last_sequence + 1` where all were purged.
    pub first_sequence: u64,
    /// When the stream was created, in nanoseconds since 1970: another time, another stream.
    pub created_ns: i64,
    /// Our last message; `None` where there is none.
    pub ours: Option<Stored>,
    /// The message that is where ours was last known to be ([`Reach::known`]), and is not ours.
    pub stranger: Option<Stored>,
}

/// The message at `sequence`; `None` where it is deleted.
pub async fn message(control: &Control, stream: &str, sequence: u64) -> Result<Option<Stored>> {
    get(control, stream, sequence, &json!({ "seq": sequence })).await
}

/// The first message from `sequence` on that is there; `None` where there is none.
pub async fn next_message(control: &Control, stream: &str, sequence: u64) -> Result<Option<Stored>> {
    next_message_of(control, stream, sequence, ">").await
}

/// The same of the messages on `subject`, which may be a pattern.
pub async fn next_message_of(control: &Control, stream: &str, sequence: u64, subject: &str) -> Result<Option<Stored>> {
    get(control, stream, sequence, &json!({ "seq": sequence, "next_by_subj": subject })).await
}

async fn get(control: &Control, stream: &str, sequence: u64, request: &Value) -> Result<Option<Stored>> {
    let attempted = || format!("read message {sequence} of stream {stream:?}");
    match control.api(&format!("STREAM.MSG.GET.{stream}"), request).await? {
        Ok(answer) => match stored(&answer) {
            // A search that believed it would go back, and never end.
            Ok(stored) if stored.sequence < sequence => {
                Err(Error::protocol(format!("{}: JetStream answers with message {}", attempted(), stored.sequence)))
            }
            Ok(stored) => Ok(Some(stored)),
            Err(error) => Err(error.context(attempted())),
        },
        Err(error) if error.err_code == NO_MESSAGE_FOUND => Ok(None),
        Err(error) => Err(streams::api_error(attempted(), stream, error)),
    }
}

/// How to look for our last message.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    /// Where it was last known to be, and since when that stream is: nothing before it need be looked at, unless another message is
    /// there.
    pub known: Option<(u64, i64)>,
    /// Only we publish there: not to find it among too many foreign messages is an error. In a shared stream it is not, for ids tell
    /// there what is stored.
    pub is_strict: bool,
}

/// The stream's end and the last message for which `is_ours` holds.
///
/// Foreign messages are stepped over backwards, and holes (deleted, expired, acknowledged away) by bisection, whatever their size.
/// Where a strict stream has more than [`STRICT_STEPS_MAX`] foreign ones there, it is [`crate::error::Kind::Untrusted`], since
/// what lies before them we cannot know.
pub async fn last_of_ours(
    control: &Control,
    stream: &str,
    reach: Reach,
    is_ours: impl Fn(&Stored) -> bool,
) -> Result<Tail> {
    let state = streams::state(control, stream).await?;
    let (ours, stranger) = search(control, &state, reach, is_ours).await?;
    Ok(Tail {
        last_sequence: state.last_sequence,
        first_sequence: state.first_sequence,
        created_ns: state.created_ns,
        ours,
        stranger,
    })
}

/// Our messages behind sequence `behind`, up to `last`, the newest first: of the last [`STEPS_MAX`], and of as many on both sides of
/// `known`, behind which others may have written any number since.
pub async fn ours_behind(
    control: &Control,
    stream: &str,
    behind: u64,
    last: u64,
    known: Option<u64>,
    is_ours: impl Fn(&Stored) -> bool,
) -> Result<Vec<Stored>> {
    let lowest = (behind + 1).max((last + 1).saturating_sub(STEPS_MAX));
    let mut ours = listed(control, stream, lowest, last, &is_ours).await?;
    if let Some(known) = known {
        let from = (behind + 1).max((known + 1).saturating_sub(STEPS_MAX));
        let upto = known.saturating_add(STEPS_MAX).min(lowest - 1);
        ours.extend(listed(control, stream, from, upto, &is_ours).await?);
    }
    Ok(ours)
}

/// Our messages in `range`, the newest first, down to the first of them for which `is_before` holds.
pub async fn ours_until(
    control: &Control,
    stream: &str,
    range: RangeInclusive<u64>,
    is_ours: impl Fn(&Stored) -> bool,
    is_before: impl Fn(&Stored) -> bool,
) -> Result<Vec<Stored>> {
    let mut ours = Vec::new();
    let (lowest, mut next) = ((*range.start()).max(1), *range.end());
    while next >= lowest {
        let until = next.saturating_sub(IN_FLIGHT_MAX - 1).max(lowest);
        for stored in listed(control, stream, until, next, &is_ours).await? {
            if is_before(&stored) {
                return Ok(ours);
            }
            ours.push(stored);
        }
        next = until - 1;
    }
    Ok(ours)
}

async fn listed(
    control: &Control,
    stream: &str,
    lowest: u64,
    last: u64,
    is_ours: &impl Fn(&Stored) -> bool,
) -> Result<Vec<Stored>> {
    let mut ours = Vec::new();
    let mut next = last;
    while next >= lowest {
        let until = next.saturating_sub(IN_FLIGHT_MAX - 1).max(lowest);
        let batch = (until..=next).rev().map(|sequence| message(control, stream, sequence));
        ours.extend(try_join_all(batch).await?.into_iter().flatten().filter(is_ours));
        next = until - 1;
    }
    Ok(ours)
}

/// Our last message, and the one that is not ours where it was last known to be.
async fn search(
    control: &Control,
    state: &StreamState,
    reach: Reach,
    is_ours: impl Fn(&Stored) -> bool,
) -> Result<(Option<Stored>, Option<Stored>)> {
    let mut stranger = None;
    if state.messages == 0 {
        return Ok((None, stranger));
    }
    let is_same = |created_ns: i64| is_same_stream(created_ns, state.created_ns);
    let known = reach.known.filter(|(_, created_ns)| is_same(*created_ns)).map_or(0, |(sequence, _)| sequence);
    let mut first = state.first_sequence.max(1).max(known);
    let most = if reach.is_strict { STRICT_STEPS_MAX } else { STEPS_MAX };
    let (mut next, mut foreign) = (state.last_sequence, 0);
    // The last message is ours nearly always: one request first, then ever more at a time.
    let mut stride = 1;
    while next >= first && foreign < most {
        let until = next.saturating_sub(stride - 1).max(first);
        let batch = (until..=next).rev().map(|sequence| message(control, &state.name, sequence));
        let there: Vec<_> = try_join_all(batch).await?.into_iter().flatten().collect();
        foreign += there.len() as u64;
        let is_hole = there.is_empty();
        let at_known = there.last().filter(|stored| stored.sequence == known && !is_ours(stored)).cloned();
        if let Some(ours) = there.into_iter().find(&is_ours) {
            return Ok((Some(ours), stranger));
        }
        if at_known.is_some() {
            // What the server has lost may have been more than this one.
            (stranger, first) = (at_known, state.first_sequence.max(1));
        }
        next = until - 1;
        if is_hole {
            let Some(before) = last_there(control, &state.name, first, next).await? else {
                return Ok((None, stranger));
            };
            next = before;
        }
        stride = (stride * 2).min(IN_FLIGHT_MAX);
    }
    if next < first || !reach.is_strict {
        return Ok((None, stranger));
    }
    let name = &state.name;
    Err(Error::untrusted(format!("the last {foreign} messages of stream {name:?} are not ours")).hint(format!(
        "A strict stream must have no other writer: give walhook a stream of its own, or UPDATE rule_nats_streams \
         SET ordering = 'shared' WHERE stream_name = '{}'",
        name.replace('\'', "''")
    )))
}

/// The last sequence from `low` to `high` at which a message is, however large the holes: by bisection.
async fn last_there(control: &Control, stream: &str, mut low: u64, mut high: u64) -> Result<Option<u64>> {
    let mut found = None;
    while low <= high {
        let middle = low + (high - low) / 2;
        match next_message(control, stream, middle).await?.map(|next| next.sequence).filter(|next| *next <= high) {
            Some(sequence) => {
                found = Some(sequence);
                low = sequence + 1;
            }
            None => high = middle - 1,
        }
    }
    Ok(found)
}

fn stored(answer: &Value) -> Result<Stored> {
    let wrong = |what: &str| Error::protocol(format!("JetStream's answer has no {what}"));
    let text = |key: &'static str| answer["message"][key].as_str();
    let headers = match text("hdrs") {
        None => String::new(),
        Some(hdrs) => {
            let bytes = STANDARD.decode(hdrs).map_err(|_| wrong("readable headers"))?;
            // Ours are ASCII; what a stranger wrote must not stop us.
            String::from_utf8_lossy(&bytes).into_owned()
        }
    };
    Ok(Stored {
        sequence: answer["message"]["seq"]
            .as_u64()
            .filter(|sequence| *sequence <= SEQUENCE_MAX)
            .ok_or_else(|| wrong("sequence"))?,
        subject: text("subject").ok_or_else(|| wrong("subject"))?.to_owned(),
        time_ns: streams::unix_ns(text("time").ok_or_else(|| wrong("time"))?)?,
        headers,
    })
}

fn header<'a>(block: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':').map(str::trim);
    block.split("\r\n").skip(1).find_map(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_found_by_its_whole_name() {
        let block = "NATS/1.0\r\nNats-Msg-Id: pg-0-1\r\nWalhook-Op:insert\r\nEmpty:\r\n\r\n";
        assert_eq!(header(block, "Nats-Msg-Id"), Some("pg-0-1"));
        assert_eq!(header(block, "Walhook-Op"), Some("insert"));
        assert_eq!(header(block, "Empty"), Some(""));
        for absent in ["Walhook", "nats-msg-id", "NATS/1.0", ""] {
            assert_eq!(header(block, absent), None, "{absent}");
        }
        assert_eq!(header("", "A"), None);
    }

    #[test]
    fn an_answer_that_lacks_something_is_an_error() {
        let whole =
            json!({ "message": { "seq": 7, "subject": "a", "time": "2026-11-23T00:00:01.5Z", "hdrs": "AA==" } });
        assert_eq!(stored(&whole).unwrap().time_ns, 1_795_392_001_500_000_000);
        for key in ["seq", "subject", "time"] {
            let mut part = whole.clone();
            part["message"].as_object_mut().unwrap().remove(key);
            assert!(stored(&part).is_err(), "{key}");
        }
        let mut beyond = whole.clone();
        beyond["message"]["seq"] = u64::MAX.into();
        assert!(stored(&beyond).is_err() && stored(&json!(null)).is_err());
    }
}
