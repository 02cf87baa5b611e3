//! The walsender connection: commands, then the stream (manual, section 55.4).
//!
//! In come settings and a slot; out come the payloads of CopyData messages, borrowed from the read buffer, and in go
//! those of our own. What the payloads say (WAL, keepalives, status) is not known here. Nothing here has a clock but
//! [`Stream::finish`].

use std::{future::poll_fn, ops::Range, sync::Arc, task::Poll, time::Duration};

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;
use tokio::time::timeout;

use super::{
    OBJECT_NOT_IN_PREREQUISITE_STATE, PROTOCOL_VIOLATION, ServerError, UNDEFINED_OBJECT, UNTRANSLATABLE_CHARACTER,
    auth::{self, Startup},
    dial, encoding, server_error, session,
    settings::Settings,
    wire::{Fields, Wire, is_aside, parse_error},
};
use crate::{
    error::{Error, Result},
    wal::{
        lsn::Lsn,
        transcode::{Encoding, bytes},
    },
};

/// How long a server may take to end the stream after we have. It may be busy decoding a large transaction; then the
/// connection is dropped, which frees the slot as well, a moment later.
const FINISH: Duration = Duration::from_secs(5);

/// A buffer for converted payloads that has grown larger than this is let go.
const CONVERTED_KEPT: usize = 1024 * 1024;

/// What IDENTIFY_SYSTEM answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Identifies the cluster; the same on its physical standbys.
    pub system_id: String,
    /// Rises with each promotion.
    pub timeline: u32,
    /// How far the server's WAL is flushed.
    pub flushed: Lsn,
    /// The database of this connection.
    pub dbname: String,
}

/// A walsender connection on which no stream has begun.
#[derive(Debug)]
pub struct Connection {
    wire: Wire,
    /// Of the database, if it is neither UTF-8 nor `SQL_ASCII`.
    encoding: Option<Arc<Encoding>>,
}

/// A database in `SQL_ASCII` has text of any bytes. Asked for UTF-8 the server ends the stream at the first value that is none, and
/// again at every attempt.
const RAW_BYTES: &str = "SELECT pg_catalog.set_config('client_encoding', 'SQL_ASCII', false) \
    WHERE pg_catalog.getdatabaseencoding() OPERATOR(pg_catalog.=) 'SQL_ASCII'";

impl Connection {
    /// Connects with `replication=database` and logs in.
    ///
    /// # Errors
    /// Unavailable where waiting may help; Permission and Config where somebody must act.
    pub async fn connect(settings: &Settings) -> Result<Connection> {
        let log_in = |startup| dial::connect(settings, move |dialled| auth::log_in(dialled, settings, startup));
        let wire = match log_in(Startup::Whole).await {
            Err(error) if super::sqlstate(&error) == Some(PROTOCOL_VIOLATION) => {
                match log_in(Startup::Replication).await {
                    // So it is the word `replication`, or the pooler has no server now: then a plain login fails too.
                    Err(error) if super::sqlstate(&error) == Some(PROTOCOL_VIOLATION) => {
                        return Err(match log_in(Startup::Plain).await {
                            Ok(_) => no_replication(settings, &error),
                            Err(_) => error,
                        });
                    }
                    outcome => outcome?,
                }
            }
            outcome => outcome.map_err(not_let_in)?,
        };
        let mut connection = Connection { wire, encoding: None };
        let statements = session::replication_statement() + &session::statements() + "; " + RAW_BYTES;
        connection.run(&statements, "prepare the session").await?;
        connection.encoding = connection.read_encoding().await?;
        Ok(connection)
    }

    /// The characters of the database's encoding; `None` where text needs no conversion, or the server has to convert it.
    async fn read_encoding(&mut self) -> Result<Option<Arc<Encoding>>> {
        let rows = self.run(encoding::WHICH, "read the database's encoding").await?;
        let Some(which) = rows.first().and_then(|row| row.first()?.as_deref()) else { return Ok(None) };
        if let Some(known) = encoding::known(self.wire.target(), which) {
            return Ok(Some(known));
        }
        let rows = match self.run(encoding::TABLE, "read the characters of the database's encoding").await {
            // A role that may not use PL/pgSQL: then the server converts, and ends the stream at a character that it cannot.
            Err(error) if super::sqlstate(&error).is_some() => {
                tracing::warn!(
                    error = %error,
                    "PostgreSQL converts texts: a text with a character that has no UTF-8 ends the stream. Hint: GRANT USAGE ON \
                     LANGUAGE plpgsql TO the role of walhook, and start walhook again"
                );
                Vec::new()
            }
            outcome => outcome?,
        };
        let table = rows.first().and_then(|row| Encoding::parse(row.first()?.as_deref()?)).map(Arc::new);
        if let Some(table) = &table {
            encoding::remember(self.wire.target(), which, table);
        }
        Ok(table)
    }

    /// Who the server is and how far its WAL goes.
    ///
    /// # Errors
    /// The connection's.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity> {
        let rows = self.query("IDENTIFY_SYSTEM").await?;
        let strange = || Error::protocol(format!("IDENTIFY_SYSTEM at {} has a strange answer", self.wire.target()));
        let [row] = rows.as_slice() else { return Err(strange()) };
        match row.as_slice() {
            [Some(system_id), Some(timeline), Some(flushed), Some(dbname), ..] => Ok(SystemIdentity {
                system_id: system_id.clone(),
                timeline: timeline.parse().map_err(|_| strange())?,
                flushed: flushed.parse().map_err(|_| strange())?,
                dbname: dbname.clone(),
            }),
            _ => Err(strange()),
        }
    }

    /// Where timelines before `timeline` were left, oldest first: the end of what is still true of each.
    ///
    /// # Errors
    /// The server's, which may have removed the file that tells, and the connection's.
    pub async fn timelines_left(&mut self, timeline: u32) -> Result<Vec<(u32, Lsn)>> {
        if timeline <= 1 {
            return Ok(Vec::new());
        }
        let rows = self.query(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let text = rows.first().and_then(|row| row.get(1)?.as_deref()).unwrap_or_default();
        // `parent <tab> where it was left <tab> why`; lines may be empty or comments.
        let left = |line: &str| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        };
        Ok(text.lines().filter_map(left).collect())
    }

    /// How long the server waits for a sign of life from us before it closes the stream; `None`: for ever. It asks for
    /// one after half of this.
    ///
    /// # Errors
    /// The connection's.
    pub async fn wal_sender_timeout(&mut self) -> Result<Option<Duration>> {
        let rows = self.query("SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'").await?; // in ms
        match rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok()) {
            None => Err(Error::protocol(format!("wal_sender_timeout at {} is no number", self.wire.target()))),
            Some(0) => Ok(None),
            Some(milliseconds) => Ok(Some(Duration::from_millis(milliseconds))),
        }
    }

    /// Runs SQL or a replication command by the simple protocol: the rows as text. The connection remains usable
    /// after an error of the server's.
    ///
    /// # Errors
    /// The server's, with its [`sqlstate`](super::sqlstate), and the connection's.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        self.run(sql, &format!("run {sql:?}")).await
    }

    async fn run(&mut self, sql: &str, doing: &str) -> Result<Vec<Vec<Option<String>>>> {
        frontend::query(sql, &mut self.wire.outbox).map_err(|e| Error::config(doing).caused_by(e))?;
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            let (tag, body) = match self.wire.reply().await {
                Ok(frame) => frame,
                // A FATAL error's connection ends without ReadyForQuery; the error says more than the end.
                Err(lost) => return Err(error.unwrap_or(lost)),
            };
            let body = self.wire.inbox.body(body);
            match tag {
                b'Z' => return error.map_or(Ok(rows), Err),
                b'D' => rows.push(data_row(body)?),
                b'E' => error = Some(server_error(format!("{doing} at {}", self.wire.target()), parse_error(body)?)),
                b'T' | b'C' | b'I' => {}
                tag => return Err(unexpected(tag, doing)),
            }
        }
    }

    /// Begins the stream of `slot` at `start` (or at what the slot has confirmed, if that is later), with the plugin's
    /// options. From now on the slot is ours.
    ///
    /// # Errors
    /// The server's, with its [`sqlstate`](super::sqlstate): [`OBJECT_IN_USE`](super::OBJECT_IN_USE) where another
    /// session has the slot (retryable), [`UNDEFINED_OBJECT`](super::UNDEFINED_OBJECT) where there is none.
    pub async fn start_replication(mut self, slot: &str, start: Lsn, options: &[(&str, &str)]) -> Result<Stream> {
        let doing = format!("start replication from slot {slot:?} at {}", self.wire.target());
        let command = start_command(slot, start, options);
        if self.encoding.is_some() {
            // From here on the server converts nothing, also not what this command says.
            let literal = command.replace('\'', "''");
            let asked = format!(
                "SELECT pg_catalog.encode(pg_catalog.convert_to('{literal}', pg_catalog.getdatabaseencoding()), 'hex')"
            );
            let rows = self.run(&asked, "convert the publication's name to the database's encoding").await?;
            let command = rows.first().and_then(|row| bytes(row.first()?.as_deref()?)).unwrap_or_default();
            self.run("SET client_encoding = 'SQL_ASCII'", "have text sent as it is").await?;
            let out = &mut self.wire.outbox;
            out.put_u8(b'Q');
            out.put_u32(u32::try_from(command.len() + 5).map_err(|e| Error::config(doing.clone()).caused_by(e))?);
            out.put_slice(&command);
            out.put_u8(0);
        } else {
            frontend::query(&command, &mut self.wire.outbox).map_err(|e| Error::config(doing.clone()).caused_by(e))?;
        }
        let (tag, body) = self.wire.reply().await.map_err(|e| e.context(&doing))?;
        match tag {
            b'W' => {
                self.wire.inbox.expect_rows();
                Ok(Stream { wire: self.wire, encoding: self.encoding, converted: Vec::new() })
            }
            b'E' => Err(not_started(server_error(doing, parse_error(self.wire.inbox.body(body))?))),
            tag => Err(unexpected(tag, &doing)),
        }
    }
}

/// What a code means where a role logs in for replication.
fn not_let_in(error: Error) -> Error {
    match super::sqlstate(&error) {
        Some("42501") => error.hint("give the role the right to replicate: ALTER ROLE … REPLICATION"),
        Some("53300") => {
            error.hint("raise max_wal_senders or max_connections on the server, or end another connection")
        }
        _ => error,
    }
}

/// What a code means where a slot is asked for.
fn not_started(error: Error) -> Error {
    match super::sqlstate(&error) {
        Some(UNDEFINED_OBJECT) => error.hint("create the slot with: walhook setup"),
        _ => not_let_in(error),
    }
}

/// What a code means amid the stream: a publication is looked up at each change, as it was at that time.
fn not_decoded(error: Error) -> Error {
    match super::sqlstate(&error) {
        Some(UNDEFINED_OBJECT | OBJECT_NOT_IN_PREREQUISITE_STATE) => error.hint(
            "create the publication with: walhook setup; it must be older than the slot's position, so if it was dropped, \
             the slot must be made anew",
        ),
        Some(UNTRANSLATABLE_CHARACTER) => error.hint(
            "walhook converts such texts itself if its role may use PL/pgSQL: GRANT USAGE ON LANGUAGE plpgsql TO that role, and \
             start walhook again",
        ),
        _ => error,
    }
}

fn no_replication(settings: &Settings, error: &Error) -> Error {
    Error::config(format!("connect to PostgreSQL at {} for replication: {error}", settings.target())).hint(
        "a connection pooler that does not pass replication on seems to be in between: connect to PostgreSQL itself",
    )
}

fn start_command(slot: &str, start: Lsn, options: &[(&str, &str)]) -> String {
    let quoted = |text: &str, quote: &str| format!("{quote}{}{quote}", text.replace(quote, &quote.repeat(2)));
    let mut command = format!("START_REPLICATION SLOT {} LOGICAL {start}", quoted(slot, "\""));
    let options: Vec<String> =
        options.iter().map(|(name, value)| format!("{} {}", quoted(name, "\""), quoted(value, "'"))).collect();
    if !options.is_empty() {
        command.push_str(&format!(" ({})", options.join(", ")));
    }
    command
}

fn data_row(body: &[u8]) -> Result<Vec<Option<String>>> {
    let mut fields = Fields::new(body, "DataRow");
    let columns = fields.i16()?;
    (0..columns)
        .map(|_| match fields.i32()? {
            -1 => Ok(None),
            length => {
                let bytes = fields.bytes(usize::try_from(length).map_err(|_| fields.short())?)?;
                Ok(Some(String::from_utf8_lossy(bytes).into_owned()))
            }
        })
        .collect()
}

fn unexpected(tag: u8, doing: &str) -> Error {
    Error::protocol(format!("{doing}: the server sent an unexpected frame (tag {tag:#04x})"))
}

/// A logical replication stream: both sides send CopyData.
#[derive(Debug)]
pub struct Stream {
    wire: Wire,
    encoding: Option<Arc<Encoding>>,
    /// The last payload, in UTF-8.
    converted: Vec<u8>,
}

impl Stream {
    /// Which server it comes from: `user@host:port/db`.
    pub fn target(&self) -> &str {
        self.wire.target()
    }

    /// Sends what is queued and, if `read`, reads what the socket has. Returns when something was read; with `read`
    /// false it only sends, and never returns but by an error. So one `select!` arm can hold it always.
    ///
    /// Cancel-safe: bytes are in the buffers, not in the future. Take all that
    /// [`next_copy_data`](Self::next_copy_data) gives before reading again: a full buffer with a whole message in it
    /// takes no more.
    ///
    /// # Errors
    /// The connection is lost (retryable).
    pub async fn drive(&mut self, read: bool) -> Result<()> {
        poll_fn(|cx| match read {
            true => self.wire.poll_exchange(cx),
            false => match self.wire.poll_flush(cx) {
                Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
                _ => Poll::Pending,
            },
        })
        .await
    }

    /// The next whole CopyData payload in the buffer; `None`: read more.
    ///
    /// # Errors
    /// The server's error, or its end of the stream (retryable: it is shutting down), or bytes that are no frame.
    pub fn next_copy_data(&mut self) -> Result<Option<&[u8]>> {
        let Some(place) = self.next_payload()? else { return Ok(None) };
        let payload = self.wire.inbox.body(place);
        let Some(encoding) = &self.encoding else { return Ok(Some(payload)) };
        if self.converted.capacity() > CONVERTED_KEPT {
            self.converted = Vec::new();
        }
        encoding.convert(payload, &mut self.converted);
        Ok(Some(&self.converted))
    }

    fn next_payload(&mut self) -> Result<Option<Range<usize>>> {
        loop {
            let Some((tag, body)) = self.wire.inbox.next()? else { return Ok(None) };
            match tag {
                b'd' => return Ok(Some(body)),
                b'N' => self.on_notice(parse_error(self.wire.inbox.body(body))?)?,
                tag if is_aside(tag) => {}
                b'E' => {
                    let error = parse_error(self.wire.inbox.body(body))?;
                    return Err(not_decoded(server_error(format!("replicate from {}", self.wire.target()), error)));
                }
                b'c' | b'C' => {
                    return Err(Error::unavailable(format!(
                        "replicate from {}: the server ended the stream; it may be shutting down",
                        self.wire.target()
                    )));
                }
                tag => return Err(unexpected(tag, "replicate")),
            }
        }
    }

    /// From version 18 on a missing publication is a warning, and what it would have published is left out. To us
    /// that is as much an end as the error of the versions before: nothing is skipped in silence. The code is that of an
    /// object which is not as it must be, whatever the language of the text.
    fn on_notice(&self, notice: ServerError) -> Result<()> {
        let doing = format!("replicate from {}", self.wire.target());
        if notice.sqlstate == OBJECT_NOT_IN_PREREQUISITE_STATE {
            return Err(not_decoded(server_error(doing, notice)));
        }
        tracing::debug!(%notice, "PostgreSQL's remark on the stream");
        Ok(())
    }

    /// Queues one CopyData message whose payload `write` appends; [`drive`](Self::drive) sends it. Says whether it
    /// was taken: while much is unsent already nothing is added, as a later status update tells what this one would
    /// have.
    pub fn queue_copy_data(&mut self, write: impl FnOnce(&mut BytesMut)) -> bool {
        if self.wire.is_clogged() {
            return false;
        }
        let out = &mut self.wire.outbox;
        out.put_u8(b'd');
        let start = out.len();
        out.put_u32(0);
        write(out);
        let length = u32::try_from(out.len() - start).expect("a payload of ours is far below 4 GiB");
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        true
    }

    /// Sends what is queued, ends the stream on both sides and closes: the slot is free when this returns.
    ///
    /// # Errors
    /// The connection is lost, or the server has not ended the stream in time; either frees the slot too, only later.
    pub async fn finish(mut self) -> Result<()> {
        frontend::copy_done(&mut self.wire.outbox);
        let doing = format!("end replication from {}", self.wire.target());
        let ended = async {
            loop {
                // A row on its way is dropped: it is not confirmed, so it comes again.
                let (tag, body) = self.wire.reply().await?;
                match tag {
                    b'd' | b'c' | b'C' => {}
                    b'Z' => return self.wire.terminate().await,
                    b'E' => return Err(server_error(&doing, parse_error(self.wire.inbox.body(body))?)),
                    tag => return Err(unexpected(tag, &doing)),
                }
            }
        };
        match timeout(FINISH, ended).await {
            Ok(ended) => ended,
            Err(_) => Err(Error::unavailable(format!("{doing}: the server did not end it within {FINISH:?}"))),
        }
    }
}
