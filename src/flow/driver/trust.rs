//! Whether walhook may go on behind what a stream shows: is it this database's own history, is this run still the newest, does the
//! stream have what it acknowledged.
//!
//! In: a stream's end, this run's epoch, where PostgreSQL's history forked, and where earlier runs saw the stream. Out: our last
//! event in the stream, or the error that ends the run. Knows no server: `walhook check` uses the same functions.

use crate::{
    error::{Error, Kind, Result},
    flow::{
        delay::Retained,
        event_id::{EventPosition, REWRITTEN},
        lane::Tail,
    },
    route::{
        streams::is_same_stream,
        tables::{ConfigRow, ServerAlias, resolve},
    },
    text,
    wal::lsn::Lsn,
};

/// The run that publishes.
#[derive(Debug, Clone)]
pub struct RunIdentity {
    /// The name of the feed.
    pub source: String,
    /// The count of this run.
    pub epoch: u64,
    /// Where PostgreSQL's history parted from another one.
    pub fork: Option<Fork>,
    /// The database had runs before it had an identity, which noted no streams.
    pub is_upgraded: bool,
}

/// A standby was promoted, or the database restored: what the old timeline has beyond the fork never happened here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// Where the old timeline was left.
    pub at: Lsn,
    /// The first epoch on the new one.
    pub first_epoch: u64,
}

/// Where a lane's stream stood when it was last looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// The name of the `rule_nats_config` row.
    pub config_name: String,
    /// The stream.
    pub stream: String,
    /// The servers that the row named; empty where it is not known, or a setting of the process names them.
    pub servers: String,
    /// When the stream was created, in ns since 1970: another time, another stream.
    pub created_ns: i64,
    /// The last event stored.
    pub position: EventPosition,
    /// Its sequence.
    pub sequence: u64,
    /// Where confirming is delayed: behind this sequence the slot has all events still.
    pub retained_through: Option<u64>,
}

/// Where a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamEnd {
    /// The last sequence that the stream has given, to whatever message.
    pub last_sequence: u64,
    /// The first sequence that may still be there.
    pub first_sequence: u64,
    /// When the stream was created.
    pub created_ns: i64,
    /// Our last message; `None` where there is none.
    pub ours: Option<LastOfOurs>,
    /// The message that is in the place of our last one, where that is another.
    pub stranger: Option<Stranger>,
}

/// Another message where our last one was known to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stranger {
    /// Of another publisher.
    Foreign,
    /// An event of this source that core NATS brought.
    OfCore(EventPosition),
}

/// Our last message in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastOfOurs {
    /// Its event.
    pub position: EventPosition,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// The run that published it.
    pub epoch: u64,
}

/// Our last event in a stream, if what the stream's end shows can be our own history; `server_wal`: no event of ours is beyond it.
///
/// # Errors
/// [`Kind::Untrusted`]: it is not. [`Kind::Fenced`]: a newer run publishes.
pub fn judge_end(
    end: &StreamEnd,
    stream: &str,
    run: &RunIdentity,
    server_wal: Lsn,
) -> Result<Option<(EventPosition, u64)>> {
    let Some(LastOfOurs { position, sequence, epoch }) = end.ours else { return Ok(None) };
    if let Some(fork) = run.fork
        && position.commit_lsn >= fork.at
        && epoch < fork.first_epoch
    {
        return Err(Error::untrusted(format!(
            "go on in stream {stream:?}: its message {sequence} is of {}, on a timeline that PostgreSQL left at {}",
            position.commit_lsn, fork.at
        ))
        .hint(REWRITTEN));
    }
    if epoch > run.epoch {
        let text = format!("run {epoch} of source {:?} publishes already; this is run {}", run.source, run.epoch);
        return Err(Error::new(Kind::Fenced, text)
            .hint("another walhook took over this slot, or a copy of this database runs: stop this one"));
    }
    if position.commit_lsn > server_wal {
        return Err(Error::untrusted(format!(
            "go on in stream {stream:?}: its message {sequence} is of {}, beyond PostgreSQL's WAL, which ends at {server_wal}",
            position.commit_lsn
        ))
        .hint(REWRITTEN));
    }
    Ok(Some((position, sequence)))
}

/// Whether the database knows of a stream in which it saw events of its own, or may have seen some before it had an identity.
/// `known`: when the stream was created that it saw.
pub fn is_known(run: &RunIdentity, known: Option<i64>, created_ns: i64) -> bool {
    known.is_some_and(|known| is_same_stream(known, created_ns)) || run.is_upgraded
}

/// Which checkpoint is of the stream that a lane leads to.
pub fn checkpoint_of<'c>(
    checkpoints: &'c [Checkpoint],
    aliases: &[ServerAlias],
    config: &ConfigRow,
    stream: &str,
    servers: &str,
) -> Option<&'c Checkpoint> {
    let of_name =
        || checkpoints.iter().filter(|known| known.config_name == config.config_name && known.stream == stream);
    let leads_here = |known: &&Checkpoint| resolve(aliases, config.config_id, known.servers.clone()) == servers;
    let newest = of_name().filter(leads_here).max_by_key(|known| known.sequence);
    newest.or_else(|| of_name().find(|known| known.servers.is_empty()))
}

/// How a stream stands to what was known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TailTrust {
    /// It has all that it took.
    Whole,
    /// It has lost what it acknowledged last, and the slot has that still.
    SetBack,
}

/// Whether a stream is the one that was known and has kept what it acknowledged, as far as that is not in the slot any more.
/// What was removed from it in an orderly way still counts in its last sequence. `stranger`: see [`StreamEnd::stranger`].
///
/// # Errors
/// [`Kind::Untrusted`]: it is not, or has not.
pub fn trusted(
    source: &str,
    known: &Checkpoint,
    created_ns: i64,
    tail: &Tail,
    stranger: Option<Stranger>,
) -> Result<TailTrust> {
    let is_replaced = match stranger {
        None => false,
        Some(Stranger::Foreign) => true,
        // One that was there before may have had the same id of its caller: the stream knew ours as a repeat of it.
        Some(Stranger::OfCore(event)) => !event.is_at_or_before(&known.position),
    };
    let what = if !is_same_stream(known.created_ns, created_ns) {
        "it was made anew since".to_owned()
    } else if tail.last_sequence >= known.sequence && !is_replaced {
        return Ok(TailTrust::Whole);
    } else if tail.loses_nothing(known.retained_through) {
        return Ok(TailTrust::SetBack);
    } else if tail.last_sequence >= known.sequence {
        "it has another message in its place".to_owned()
    } else {
        format!("it ends at message {} now", tail.last_sequence)
    };
    Err(lost(source, known, &what))
}

/// The error of a stream that does not have what it acknowledged.
pub fn lost(source: &str, known: &Checkpoint, what: &str) -> Error {
    let Checkpoint { config_name, stream, servers, sequence, .. } = known;
    Error::untrusted(format!("go on in stream {stream:?}, which had taken message {sequence}: {what}"))
        .named("stream_lost")
        .hint(format!(
            "acknowledged events are missing from it: bring the old stream back, or accept the loss by DELETE FROM \
             rule_nats_checkpoints WHERE source = {} AND config_name = {} AND stream_name = {} AND servers = {};",
            text::sql_literal(source),
            text::sql_literal(config_name),
            text::sql_literal(stream),
            text::sql_literal(servers)
        ))
}

/// What a stream has to have still before more is confirmed: a server that is dead does not say that it has lost something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// The stream.
    pub stream: String,
    /// When it was created.
    pub created_ns: i64,
    /// The last event that it has to keep, and where.
    pub kept: Retained,
}

impl Retention {
    /// Which message of the stream, which goes from `first_sequence` to `last_sequence` now, tells the rest; `None`: nothing is lost.
    /// What somebody has deleted since is not lost.
    ///
    /// # Errors
    /// [`Kind::Unavailable`]: something is lost, and the slot still has it.
    pub fn look_at(&self, created_ns: i64, first_sequence: u64, last_sequence: u64) -> Result<Option<u64>> {
        let Retention { stream, kept, .. } = self;
        let is_another = created_ns != self.created_ns;
        let Some((_, sequence)) = kept.filter(|(_, sequence)| *sequence >= first_sequence) else {
            return if is_another {
                Err(Error::unavailable(format!("stream {stream:?} was made anew")))
            } else {
                Ok(None)
            };
        };
        if is_another || last_sequence < sequence {
            return Err(Error::unavailable(format!(
                "stream {stream:?} had acknowledged message {sequence} and ends at {last_sequence} now"
            )));
        }
        Ok(Some(sequence))
    }

    /// What that message is: `None` where it was deleted. Another message in its place: the server has forgotten it, and somebody
    /// else has written there.
    ///
    /// # Errors
    /// The same.
    pub fn judge(&self, there: Option<Option<EventPosition>>) -> Result<()> {
        let (Some((position, sequence)), Some(there)) = (self.kept, there) else { return Ok(()) };
        if there == Some(position) {
            return Ok(());
        }
        let named = |event: Option<EventPosition>| match event {
            Some(EventPosition { commit_lsn, ordinal, webhook_id, .. }) => {
                format!("event {ordinal} of the transaction at {commit_lsn} for webhook {webhook_id}")
            }
            None => "no event of this source".to_owned(),
        };
        Err(Error::unavailable(format!(
            "stream {:?} had acknowledged message {sequence} as {} and has {} there now",
            self.stream,
            named(Some(position)),
            named(there)
        )))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn position(commit_lsn: u64) -> EventPosition {
        EventPosition { commit_lsn: Lsn(commit_lsn), commit_time: 1, ordinal: 0, webhook_id: 1 }
    }

    fn run(epoch: u64, fork: Option<Fork>) -> RunIdentity {
        RunIdentity { source: "s".to_owned(), epoch, fork, is_upgraded: false }
    }

    fn outcome(commit_lsn: u64, epoch: u64, run: &RunIdentity) -> std::result::Result<u64, Kind> {
        let ours = Some(LastOfOurs { position: position(commit_lsn), sequence: 7, epoch });
        let end = StreamEnd { last_sequence: 9, first_sequence: 1, created_ns: 5, ours, stranger: None };
        let outcome = judge_end(&end, "S", run, Lsn(100));
        outcome.map(|ours| ours.unwrap().1).map_err(|error| error.kind())
    }

    #[test]
    fn an_end_is_ours_unless_it_is_of_a_newer_run_or_of_another_history() {
        assert_eq!(outcome(50, 3, &run(3, None)), Ok(7));
        assert_eq!(outcome(100, 2, &run(3, None)), Ok(7));
        assert_eq!(outcome(50, 4, &run(3, None)), Err(Kind::Fenced));
        assert_eq!(outcome(101, 3, &run(3, None)), Err(Kind::Untrusted), "beyond the WAL");
        let forked = run(1_000_003, Some(Fork { at: Lsn(60), first_epoch: 1_000_002 }));
        assert_eq!(outcome(59, 3, &forked), Ok(7), "both histories have it");
        assert_eq!(outcome(60, 3, &forked), Err(Kind::Untrusted), "the history that was left");
        assert_eq!(outcome(60, 1_000_002, &forked), Ok(7), "this history");
        let nothing = StreamEnd { last_sequence: 9, first_sequence: 1, created_ns: 5, ours: None, stranger: None };
        assert_eq!(judge_end(&nothing, "S", &run(1, None), Lsn(0)).unwrap(), None);
    }

    #[test]
    fn another_message_in_the_place_of_ours_is_a_loss_unless_ours_repeats_it() {
        let known = |retained_through| Checkpoint {
            config_name: "default".to_owned(),
            stream: "S".to_owned(),
            servers: String::new(),
            created_ns: 5,
            position: position(50),
            sequence: 7,
            retained_through,
        };
        let tail = Tail {
            last_sequence: 9,
            ours: Some((position(40), 4)),
            in_stream: Some((position(40), 4)),
            listing: None,
            listed: Vec::new(),
            subjects: Vec::new(),
            max_payload: 100,
            batch_max: 1,
        };
        let judged = |retained_through, stranger| trusted("s", &known(retained_through), 5, &tail, stranger).ok();
        assert_eq!(judged(None, None), Some(TailTrust::Whole), "removed in an orderly way");
        assert_eq!(judged(None, Some(Stranger::Foreign)), None, "of nobody we know");
        assert_eq!(judged(None, Some(Stranger::OfCore(position(60)))), None, "core NATS brought a later event");
        assert_eq!(judged(None, Some(Stranger::OfCore(position(40)))), Some(TailTrust::Whole), "ours repeated its id");
        assert_eq!(judged(Some(4), Some(Stranger::Foreign)), Some(TailTrust::SetBack), "the slot has what is lost");
        assert_eq!(judged(Some(5), Some(Stranger::Foreign)), None, "the slot has not all of it");
    }

    #[test]
    fn a_stream_keeps_what_it_acknowledged() {
        let kept = Some((position(50), 7));
        let retention = Retention { stream: "S".to_owned(), created_ns: 5, kept };
        assert_eq!(retention.look_at(5, 1, 9).unwrap(), Some(7));
        assert_eq!(retention.look_at(5, 8, 9).unwrap(), None, "deleted since");
        assert!(retention.look_at(5, 1, 6).is_err() && retention.look_at(6, 1, 9).is_err());
        assert!(retention.look_at(6, 8, 9).is_err(), "another stream");
        assert!(retention.judge(None).is_ok() && retention.judge(Some(Some(position(50)))).is_ok());
        assert!(retention.judge(Some(None)).is_err() && retention.judge(Some(Some(position(51)))).is_err());
    }
}
