//! What the WAL still holds, decoded once more beside the live flow.
//!
//! In: the anchor slot, which stays behind the live one ([`Start::find`]), and two points. Out: the events from there on, given
//! to [`Copy`]. They are made by the same pure code as the first time and by the rules in force at each commit, so bodies,
//! subjects and ids are the same; or, where the user asks for it, by the rules as they are now. Always: a temporary copy of the anchor
//! is read, which goes with its connection; neither the anchor nor the live slot moves.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::FutureExt;
use tokio_postgres::Client;

use super::{
    Bounds, Point, RulesOf, failed,
    point::written,
    publish::{Copy, Destination, Event},
    read::id_of,
};
use crate::{
    commands::{
        delaying_interval, masks,
        run::{rules, state_store},
        seal_keys,
    },
    config::Config,
    error::{Error, Result},
    flow::{
        event_id::EventPosition,
        lane::Tail,
        streamer::{Amendment, Received, Streamer},
    },
    postgres::{
        self,
        replication::{Connection, Stream},
        sql,
    },
    wal::{frame::StandbyStatus, lsn::Lsn},
};

/// How often the server hears from us; a `wal_sender_timeout` is at least some seconds where it is sensible.
const STATUS: Duration = Duration::from_secs(1);

/// Its name in the progress.
pub const PART: &str = "wal";

/// Where decoding begins and ends.
#[derive(Debug, Clone)]
pub struct Start {
    anchor: String,
    /// No transaction that commits before it is decoded.
    pub from: Lsn,
    /// The WAL's end when the replay began.
    pub end: Lsn,
}

const ANCHOR: &str = "SELECT anchor_name, wal_status, reaches_lsn::text, \
    (extract(epoch FROM reaches_time) * 1000000)::bigint - 946684800000000 \
    FROM public.rule_cdc_anchors WHERE slot_name = $1";
/// The last noted place before a time, in µs since 2000-01-01; some seconds of disorder allowed for.
const PLACE: &str = "SELECT lsn::text FROM walhook.rule_cdc_anchor_places WHERE slot_name = $1 \
    AND seen_at <= timestamptz '2000-01-01 00:00:00+00' + ($2::bigint / 1000) * interval '1 millisecond' - interval '5 s' \
    ORDER BY seen_at DESC LIMIT 1";
const END: &str = "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                           ELSE pg_catalog.pg_current_wal_flush_lsn() END)::text";

impl Start {
    /// Where in the WAL that lies which `bounds` begin with.
    ///
    /// # Errors
    /// There is no anchor, or it does not reach back so far: then with what it reaches.
    pub async fn find(client: &Client, slot: &str, bounds: &Bounds) -> Result<Start> {
        let attempted = format!("go back to {} in the WAL", bounds.from);
        let row = client.query_opt(ANCHOR, &[&slot]).await.map_err(|error| failed(&attempted, error))?;
        let Some(row) = row else {
            return Err(Error::config(format!("{attempted}: slot {slot:?} has no anchor, which would keep it")).hint(
                format!(
                    "SELECT rule_cdc_anchor_create(p_slot => '{slot}') keeps the WAL from now on; rows that are still in a table \
                     can be sent by `walhook backfill --table TABLE`"
                ),
            ));
        };
        let anchor: String = row.get(0);
        let (Some(reached), status) = (row.get::<_, Option<&str>>(2), row.get::<_, Option<&str>>(1)) else {
            return Err(Error::config(format!("{attempted}: its slot {anchor:?} is gone")).hint(format!(
                "SELECT rule_cdc_anchor_create(p_slot => '{slot}') makes another one, which keeps the WAL from now on"
            )));
        };
        if status == Some("lost") {
            return Err(Error::config(format!("{attempted}: PostgreSQL has removed WAL that slot {anchor:?} needed"))
                .hint(format!(
                    "PostgreSQL has removed WAL beyond max_slot_wal_keep_size; to keep WAL from now on: SELECT \
                     rule_cdc_anchor_drop('{slot}'); SELECT rule_cdc_anchor_create(p_slot => '{slot}')"
                )));
        }
        let reached: Lsn = read(&attempted, reached)?;
        let from = match bounds.from {
            Point::Lsn(lsn) => Some(lsn).filter(|lsn| *lsn >= reached),
            Point::Time(time) => {
                let row = client.query_opt(PLACE, &[&slot, &time]).await.map_err(|error| failed(&attempted, error))?;
                row.map(|row| read(&attempted, row.get(0))).transpose()?
            }
        };
        let Some(from) = from else {
            let since = row.get::<_, Option<i64>>(3).map(|time| format!(" of {}", written(time))).unwrap_or_default();
            return Err(Error::config(format!("{attempted}: slot {anchor:?} keeps it from {reached}{since} on")).hint(
                format!("--from {reached} is the earliest; rows that are still in a table can be sent by `walhook backfill --table TABLE`"),
            ));
        };
        let row = client.query_one(END, &[]).await.map_err(|error| failed(&attempted, error))?;
        let end: Lsn = read(&attempted, row.get(0))?;
        Ok(Start { anchor, from: from.max(reached), end })
    }

    /// Where decoding stops for a replay up to `to`: what commits behind that is not decoded.
    fn stop(&self, to: Option<Point>) -> Lsn {
        match to {
            Some(Point::Lsn(to)) => self.end.min(Lsn(to.0.saturating_add(1))),
            _ => self.end,
        }
    }

    /// The same up to where an earlier run of the replay would have ended.
    pub fn ending_at(self, end: Lsn) -> Start {
        Start { end, ..self }
    }
}

fn read(attempted: &str, lsn: &str) -> Result<Lsn> {
    lsn.parse().map_err(|error| Error::protocol(attempted).caused_by(error))
}

/// Decodes from `start` on and sends what is wanted, to the destination of its NATS configuration. Returns whether it was all, or
/// else it was told to stop.
///
/// # Errors
/// The anchor cannot be copied or decoded; a stream refuses; progress cannot be noted.
pub async fn copy(
    copy: &mut Copy<'_>,
    config: &Config,
    start: &Start,
    id: i64,
    rules: RulesOf,
    destinations: Vec<(i32, Destination)>,
) -> Result<bool> {
    let (mut decoder, mut stream) = Decoder::start(config, start, id, rules).await?;
    let mut lanes = Vec::new();
    decoder.open_lanes(&mut lanes, &destinations)?;
    let stop = start.stop(copy.bounds.to);
    copy.begin(PART, start.from.0, start.end.0);
    let shutdown = copy.shutdown();
    let mut stopping = shutdown.clone();
    let mut tick = delaying_interval(STATUS);
    let is_whole = 'all: loop {
        while let Some(copy_data) = stream.next_copy_data()? {
            decoder.receive(copy_data).await?;
            decoder.open_lanes(&mut lanes, &destinations)?;
            for (lane, to) in lanes.iter().enumerate() {
                decoder.store_schemas(lane, *to).await?;
                for Message { subject, headers, payload } in decoder.take(lane)? {
                    let Some(to) = to else {
                        copy.without_server += 1;
                        continue;
                    };
                    let Some(id) = id_of(Some(&headers)) else { continue };
                    let Some(position) = EventPosition::parse(id, &config.source) else { continue };
                    if copy.bounds.end_before(&position) {
                        break 'all true;
                    }
                    // Behind it there may be more of its transaction, with which a killed replay begins.
                    let upto = position.commit_lsn.0;
                    let headers = Some(&headers);
                    copy.offer(to, Event { position, id, subject: &subject, headers, payload, upto }).await?;
                    copy.breathe(upto).await?;
                    // A slow replay is a live one still.
                    if tick.tick().now_or_never().is_some() {
                        decoder.report(&mut stream);
                        let _ = stream.drive(false).now_or_never().transpose()?;
                    }
                    if *shutdown.borrow() {
                        break 'all false;
                    }
                }
            }
            copy.impossible += decoder.impossible();
            // All that is received whole was offered.
            copy.breathe(decoder.streamer.confirmed().0).await?;
            if decoder.streamer.confirmed() >= stop || decoder.streamer.known_wal() > stop {
                break 'all true;
            }
        }
        let is_due = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => break false,
            _ = tick.tick() => true,
            outcome = stream.drive(true) => outcome.map(|()| false)?,
        };
        if is_due {
            decoder.report(&mut stream);
            copy.breathe(decoder.streamer.confirmed().0).await?;
        }
    };
    copy.end(is_whole.then_some(start.end.0)).await?;
    // The temporary slot goes with the connection, be it ended in peace or not.
    if let Err(error) = stream.finish().await {
        tracing::debug!("{error}");
    }
    Ok(is_whole)
}

/// WAL in, messages out, by the streamer of the live flow.
struct Decoder {
    streamer: Streamer,
    /// Of a connection that lives as long.
    client: Client,
}

/// A message as the streamer wrote it.
struct Message {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

impl Decoder {
    async fn start(config: &Config, start: &Start, id: i64, rules: RulesOf) -> Result<(Decoder, Stream)> {
        let mut client = sql::connect(&config.postgres).await?;
        let mut connection = Connection::connect(&config.postgres).await?;
        let system = connection.identify_system().await?;
        let (mut tables, amendments, types) = match rules {
            RulesOf::Commit => {
                let at =
                    rules::At { source: &config.source, system_identifier: &system.system_id, confirmed: start.from };
                let rules::Begin { tables, amendments, types, .. } = rules::begin_replay(&mut client, at).await?;
                (tables, amendments, types)
            }
            RulesOf::Now => {
                let newest = rules::newest(&client).await?;
                let types = state_store::types(&client, None).await?;
                let tables = newest.tables.clone();
                // In force from the beginning: changes that were read are not followed again.
                (tables, vec![Amendment { commit_lsn: Lsn::ZERO, ordinal: 0, rules: newest }], types)
            }
        };
        tables.shard = config.shard_name();
        tables.mask_key = masks::key(config);
        tables.seal_keys = seal_keys::keys(config);
        tables.adapt_to_replay();
        let slot = format!("walhook_replay_{id}_{:08x}", fastrand::u32(..));
        let copied = format!(
            "SELECT pg_catalog.pg_copy_logical_replication_slot('{}', '{slot}', true)",
            start.anchor.replace('\'', "''")
        );
        connection.query(&copied).await.map_err(|error| {
            let is_full = postgres::sqlstate(&error) == Some("53400");
            let error = error.context(format!("copy slot {:?} for the time of the replay", start.anchor));
            if is_full {
                error.hint("raise max_replication_slots, or drop a slot that is not used any more")
            } else {
                error
            }
        })?;
        let names =
            ["inserts", "changes"].map(|part| format!("\"{}_{part}\"", config.publication.replace('"', "\"\"")));
        let options = [("proto_version", "1"), ("publication_names", &names.join(",")), ("messages", "true")];
        let stream = connection.start_replication(&slot, start.from, &options).await?;
        let inbox = "_INBOX.walhook.replay";
        let mut streamer = Streamer::new(&config.source, 0, inbox, config.limits, tables, types, start.from);
        streamer.set_database(&config.postgres.dbname);
        streamer.set_amendments(amendments);
        streamer.set_emit_keys(state_store::emit_keys(&client).await?, true)?;
        Ok((Decoder { streamer, client }, stream))
    }

    /// Decodes what PostgreSQL has sent. Types that are new to it are read from the catalog first.
    async fn receive(&mut self, copy_data: &[u8]) -> Result<()> {
        if self.streamer.receive(copy_data)? == Received::UnknownTypes {
            let types = state_store::types(&self.client, None).await?;
            self.streamer.set_types(types);
        }
        Ok(())
    }

    /// Opens the lanes that have come since: rules of another time may lead to other configurations.
    fn open_lanes<'d>(
        &mut self,
        lanes: &mut Vec<Option<&'d Destination>>,
        destinations: &'d [(i32, Destination)],
    ) -> Result<()> {
        for lane in lanes.len()..self.streamer.lane_count() {
            let of = self.streamer.lane_settings(lane).map(|settings| settings.config.config_id);
            let to = destinations.iter().find(|(config_id, _)| Some(*config_id) == of).map(|(_, to)| to);
            let max_payload = to.map_or(usize::MAX, Destination::max_payload);
            let subjects = vec![">".to_owned()];
            let lane = self.streamer.lane_mut(lane);
            let (listing, listed) = (lane.listing(), Vec::new());
            lane.open(&Tail {
                last_sequence: 0,
                ours: None,
                in_stream: None,
                listing,
                listed,
                subjects,
                max_payload,
                batch_max: 1,
            })?;
            lanes.push(to);
        }
        Ok(())
    }

    /// Stores the schemas that a lane's messages name: nothing is taken from it before.
    async fn store_schemas(&mut self, lane: usize, to: Option<&Destination>) -> Result<()> {
        let lane = self.streamer.lane_mut(lane);
        while let Some((nth, schema)) = lane.schema_to_store() {
            if let Some(to) = to {
                to.store_schema(schema).await?;
            }
            lane.schema_stored(nth);
        }
        Ok(())
    }

    /// The messages that a lane has; they count as settled.
    fn take(&mut self, lane: usize) -> Result<Vec<Message>> {
        let lane = self.streamer.lane_mut(lane);
        let mut messages = Vec::new();
        loop {
            let bytes = lane.unsent();
            if bytes.is_empty() {
                break;
            }
            let (message, length) = Message::parse(bytes)?;
            messages.push(message);
            lane.mark_sent(length);
        }
        if lane.wants_ping() {
            lane.pinged();
            lane.ponged();
        }
        self.streamer.settle();
        Ok(messages)
    }

    /// How many events more can never be published; the first time they became dead letters.
    fn impossible(&mut self) -> u64 {
        // Nothing of a replay is kept for later sessions.
        if let Some(last) = self.streamer.rule_commits().last().map(|commit| commit.number) {
            self.streamer.rules_written(last);
        }
        let letters: Vec<_> = self.streamer.dead_letters().map(|letter| letter.event_id.clone()).collect();
        for event in &letters {
            self.streamer.dead_letter_written(event);
        }
        letters.len() as u64
    }

    /// Tells the server that we are alive, and asks how far it is.
    fn report(&self, stream: &mut Stream) {
        let received = self.streamer.received();
        let status = StandbyStatus {
            written: received,
            flushed: received,
            applied: received,
            sent_at: postgres::now(),
            reply_requested: true,
        };
        let _ = stream.queue_copy_data(|out| status.write(out));
    }
}

impl Message {
    /// Reads the first of these messages, and how many bytes it has.
    fn parse(bytes: &[u8]) -> Result<(Message, usize)> {
        Self::read(bytes).ok_or_else(|| Error::protocol("read a message that was just written"))
    }

    fn read(bytes: &[u8]) -> Option<(Message, usize)> {
        let line_end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
        let line = std::str::from_utf8(bytes.get(..line_end)?).ok()?;
        let mut words = line.strip_prefix("HPUB ")?.split_ascii_whitespace();
        let subject = words.next()?.to_owned();
        let (header_length, total): (usize, usize) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let body = bytes.get(line_end + 2..)?.get(..total)?;
        let (block, payload) = body.split_at_checked(header_length)?;
        let mut headers = HeaderMap::new();
        for line in std::str::from_utf8(block).ok()?.split("\r\n").skip(1).filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            headers.append(name, value.trim_start());
        }
        let message = Message { subject, headers, payload: Bytes::copy_from_slice(payload) };
        Some((message, line_end + 2 + total + 2))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let bytes = b"HPUB   a.b 000037 000000042\r\nNATS/1.0\r\nNats-Msg-Id: x:y\r\nB:  c\r\n\r\nh\r\nlo\r\nHPUB z";
        let (message, length) = Message::parse(bytes).unwrap();
        assert_eq!((message.subject.as_str(), message.payload.as_ref()), ("a.b", b"h\r\nlo".as_slice()));
        assert_eq!(message.headers.get("Nats-Msg-Id").unwrap().as_str(), "x:y");
        assert_eq!(&bytes[length..], b"HPUB z");
        assert!(Message::parse(&bytes[..40]).is_err(), "it is cut off");
    }
}
