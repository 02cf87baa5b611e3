//! What a refusal of NATS means to us: one table for JetStream's error codes, one for the server's `-ERR`. Pure.
//!
//! In: a code, or the words of an `-ERR`, which has no code. Out: who must act, and what becomes of the event. What always holds: where
//! a code exists it decides, never the words; a code that is not in the table is waited for when a message is published, and
//! sorted by its HTTP-like class when something is asked. (`server/errors.json`, `server/client.go`)

use crate::error::Kind;

/// "insufficient storage", "no such stream" and the others that are handled apart, by their names in `errors.json`.
pub mod named {
    #![allow(missing_docs)]
    pub const CLUSTER_NO_PEERS: u64 = 10005;
    pub const CONSUMER_NOT_FOUND: u64 = 10014;
    pub const NO_MESSAGE_FOUND: u64 = 10037;
    pub const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;
    pub const STREAM_INVALID_CONFIG: u64 = 10052;
    pub const MESSAGE_EXCEEDS_MAXIMUM: u64 = 10054;
    pub const STREAM_NAME_EXIST: u64 = 10058;
    pub const STREAM_NOT_FOUND: u64 = 10059;
    pub const STREAM_SUBJECT_OVERLAP: u64 = 10065;
    pub const WRONG_LAST_SEQUENCE: u64 = 10071;
    pub const REPLICAS_NOT_SUPPORTED: u64 = 10074;
    pub const NOT_ENABLED: u64 = 10076;
    pub const HEADER_EXCEEDS_MAXIMUM: u64 = 10097;
    pub const STREAM_SEALED: u64 = 10109;
    pub const WRONG_LAST_SEQUENCE_CONSTANT: u64 = 10164;
    pub const BATCH_TOO_LARGE: u64 = 10199;
    pub const BATCH_CONTAINS_DUPLICATE: u64 = 10201;
}
use named::*;

/// The name of `walhook check` for what a refusal with this code says, where it says one thing.
pub fn finding(code: u64) -> Option<&'static str> {
    match code {
        10002 | 10023 | 10028 | 10047 => Some("nats_storage"),
        // "maximum messages exceeded", "maximum bytes exceeded" of a stream that discards new messages.
        10077 => Some("stream_full"),
        STREAM_NOT_FOUND => Some("stream_missing"),
        STREAM_SUBJECT_OVERLAP => Some("stream_subjects_taken"),
        NOT_ENABLED_FOR_ACCOUNT | NOT_ENABLED => Some("nats_jetstream"),
        _ => None,
    }
}

/// What a refused publish means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    /// Nothing was stored for its place: the stream's tail tells how to go on.
    Place,
    /// Not now: the stream is opened again, and what was refused is sent again, after ever longer waits.
    Wait,
    /// This event only, for good: its webhook's `on_error`.
    Event,
    /// This event only, for its size: the same, or a claim check.
    TooLarge,
    /// The messages of this batch go one by one.
    OneByOne,
    /// Smaller batches from here on.
    SmallerBatches,
}

/// One code.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// JetStream's `err_code`.
    pub code: u64,
    /// What becomes of a message that is refused with it.
    pub publish: Publish,
    /// Who must act where a request is refused with it.
    pub asked: Kind,
    /// What to try.
    pub hint: &'static str,
}

const fn row(code: u64, publish: Publish, asked: Kind, hint: &'static str) -> Row {
    Row { code, publish, asked, hint }
}

const LOG: &str = "See the server's log";
const ROW: &str = "Correct the row in rule_nats_streams";
const ROOM: &str = "Lower max_bytes, or give JetStream or the account more room";
const ENABLE: &str = "Enable JetStream for this account on the server; if it runs in another domain, set jetstream_domain of the row in \
                      rule_nats_config";

/// Every code that a publish or a request of ours can meet.
pub const CODES: &[Row] = &[
    row(10002, Publish::Wait, Kind::Config, ROOM),
    row(10003, Publish::Wait, Kind::Config, ROW),
    row(10004, Publish::Wait, Kind::Unavailable, LOG),
    row(
        CLUSTER_NO_PEERS,
        Publish::Wait,
        Kind::Config,
        "Lower replicas to the number of servers with JetStream and room",
    ),
    row(10006, Publish::Wait, Kind::Unavailable, LOG),
    row(10007, Publish::Wait, Kind::Unavailable, LOG),
    row(10008, Publish::Wait, Kind::Unavailable, LOG),
    row(10009, Publish::Wait, Kind::Unavailable, LOG),
    row(10010, Publish::Wait, Kind::Config, "Set replicas to 1, or connect to a cluster"),
    row(10011, Publish::Wait, Kind::Config, ROW),
    row(CONSUMER_NOT_FOUND, Publish::Wait, Kind::Config, "Create the consumer: it was there a moment ago, or never"),
    row(10023, Publish::Wait, Kind::Config, ROOM),
    row(10025, Publish::Wait, Kind::Config, ROW),
    row(10026, Publish::Wait, Kind::Config, "Raise max_consumers of the account or the stream, or remove a consumer"),
    row(10027, Publish::Wait, Kind::Config, "Raise the account's limit of streams, or remove a stream"),
    row(10028, Publish::Wait, Kind::Config, ROOM),
    row(10035, Publish::Wait, Kind::Config, ENABLE),
    row(NO_MESSAGE_FOUND, Publish::Wait, Kind::Config, "The message was there a moment ago, or never"),
    row(NOT_ENABLED_FOR_ACCOUNT, Publish::Wait, Kind::Config, ENABLE),
    row(10047, Publish::Wait, Kind::Config, ROOM),
    row(10049, Publish::Wait, Kind::Config, ROW),
    row(10050, Publish::Wait, Kind::Unavailable, LOG),
    row(
        STREAM_INVALID_CONFIG,
        Publish::Wait,
        Kind::Config,
        "Correct the row in rule_nats_streams; duplicate_window_seconds must not be longer than max_age_seconds",
    ),
    row(10053, Publish::Wait, Kind::Config, ROW),
    row(MESSAGE_EXCEEDS_MAXIMUM, Publish::TooLarge, Kind::Config, "Raise max_msg_size of the stream"),
    row(10055, Publish::Wait, Kind::Config, ROW),
    row(STREAM_NAME_EXIST, Publish::Wait, Kind::Config, ROW),
    row(STREAM_NOT_FOUND, Publish::Wait, Kind::Config, "Create the stream: it was there a moment ago, or never"),
    row(
        10060,
        Publish::Wait,
        Kind::Config,
        "The subject leads into another stream than its webhook's: narrow the subjects of one of them",
    ),
    row(10061, Publish::Wait, Kind::Config, ROW),
    row(
        STREAM_SUBJECT_OVERLAP,
        Publish::Wait,
        Kind::Config,
        "A subject goes to one stream: narrow the subjects of one of them, or name that stream in the row",
    ),
    row(10069, Publish::Wait, Kind::Config, ROW),
    row(WRONG_LAST_SEQUENCE, Publish::Place, Kind::Unavailable, LOG),
    row(REPLICAS_NOT_SUPPORTED, Publish::Wait, Kind::Config, "Set replicas to 1, or connect to a cluster"),
    row(NOT_ENABLED, Publish::Wait, Kind::Config, ENABLE),
    row(
        10077,
        Publish::Wait,
        Kind::Unavailable,
        "Raise max_messages or max_bytes of its row in rule_nats_streams, or free space on the server's disk",
    ),
    row(HEADER_EXCEEDS_MAXIMUM, Publish::Event, Kind::Config, "Shorten the headers"),
    row(STREAM_SEALED, Publish::Wait, Kind::Config, "A sealed stream takes no messages: use one of another name"),
    row(10110, Publish::Wait, Kind::Unavailable, LOG),
    row(10113, Publish::Wait, Kind::Config, "Set max_bytes in the row of every stream: the account requires it"),
    row(10118, Publish::Wait, Kind::Unavailable, "Start the stream's servers, or upgrade them: it is offline"),
    row(10120, Publish::Wait, Kind::Config, ENABLE),
    row(10122, Publish::Wait, Kind::Config, "Lower max_bytes to what the account allows a stream"),
    row(10123, Publish::Wait, Kind::Unavailable, LOG),
    row(10124, Publish::Wait, Kind::Unavailable, "Wait until the stream is moved"),
    row(10133, Publish::Wait, Kind::Config, ROW),
    row(10157, Publish::Wait, Kind::Config, ROW),
    row(10158, Publish::Wait, Kind::Unavailable, LOG), // an earlier copy of it is being stored
    row(10163, Publish::Wait, Kind::Unavailable, LOG),
    row(WRONG_LAST_SEQUENCE_CONSTANT, Publish::Place, Kind::Unavailable, LOG),
    row(10167, Publish::Wait, Kind::Unavailable, LOG),
    row(
        10174,
        Publish::Wait,
        Kind::Config,
        "Set allow_atomic of the stream, or transactions = 'streamed' and durability = 'default' in its row",
    ),
    row(10175, Publish::Wait, Kind::Unavailable, LOG),
    row(10176, Publish::Wait, Kind::Unavailable, LOG),
    row(10177, Publish::Wait, Kind::Unavailable, LOG),
    row(10179, Publish::Wait, Kind::Unavailable, LOG),
    row(BATCH_TOO_LARGE, Publish::SmallerBatches, Kind::Config, LOG),
    row(BATCH_CONTAINS_DUPLICATE, Publish::OneByOne, Kind::Config, LOG),
];

/// The row of a code.
pub fn of(code: u64) -> Option<&'static Row> {
    CODES.iter().find(|row| row.code == code)
}

/// What becomes of a message that is refused with this code.
pub fn publish(code: u64) -> Publish {
    of(code).map_or(Publish::Wait, |row| row.publish)
}

/// Who must act where a request is refused with this code, and what to try; `class` is as in HTTP.
pub fn asked(code: u64, class: u64) -> (Kind, &'static str) {
    match (of(code), class) {
        (Some(row), _) => (row.asked, row.hint),
        (None, 408 | 429 | 500..) => (Kind::Unavailable, LOG),
        (None, _) => (Kind::Config, ROW),
    }
}

/// What the server refuses by an `-ERR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// A subject; the connection goes on.
    Subject,
    /// Who we are. On a connection that stood, what was believed before is no longer: a new one shows the credentials as they are now.
    Login,
    /// A message larger than it takes: this event only.
    Payload,
    /// A command line longer than it takes: this event only.
    ControlLine,
    /// Something else, by who must act.
    Other(Kind),
}

/// The beginnings of what servers say, in lower case; the first that fits. They have no codes.
const WIRE: &[(&str, Wire, &str)] = &[
    ("permissions violation", Wire::Subject, "Grant the subject to this user"),
    (
        "authentication timeout",
        Wire::Other(Kind::Unavailable),
        "The server received no greeting in time: it or the network is overloaded",
    ),
    (
        "authorization timeout",
        Wire::Other(Kind::Unavailable),
        "The server received no greeting in time: it or the network is overloaded",
    ),
    ("authorization violation", Wire::Login, LOGIN),
    ("user authentication", Wire::Login, LOGIN),
    ("account authentication", Wire::Login, LOGIN),
    ("authentication", Wire::Login, LOGIN),
    ("credentials have been revoked", Wire::Login, LOGIN),
    ("account expired", Wire::Login, LOGIN),
    ("account missing", Wire::Login, LOGIN),
    ("bad account", Wire::Login, LOGIN),
    ("failed account registration", Wire::Login, LOGIN),
    ("secure connection - tls required", Wire::Other(Kind::Config), "Set tls_enabled, or use a tls:// URL"),
    ("maximum payload", Wire::Payload, "Raise max_payload on the server or the account"),
    ("maximum control line", Wire::ControlLine, "Raise max_control_line on the server, or shorten the subject"),
    ("maximum connections", Wire::Other(Kind::Unavailable), "Raise max_connections on the server"),
    ("maximum account active connections", Wire::Other(Kind::Unavailable), "Raise the account's limit of connections"),
    ("maximum subscriptions", Wire::Other(Kind::Unavailable), "Raise the limit of subscriptions"),
    ("maximum", Wire::Other(Kind::Unavailable), LOG),
    ("connection throttling", Wire::Other(Kind::Unavailable), LOG),
    ("stale connection", Wire::Other(Kind::Unavailable), LOG),
    ("slow consumer", Wire::Other(Kind::Unavailable), LOG),
    ("server shutdown", Wire::Other(Kind::Unavailable), LOG),
    ("server is not running", Wire::Other(Kind::Unavailable), LOG),
    ("message headers not supported", Wire::Other(Kind::Config), "Use nats-server 2.10 or newer, with headers"),
    ("no responders requires headers", Wire::Other(Kind::Config), "Use nats-server 2.10 or newer, with headers"),
    ("attempted to connect to", Wire::Other(Kind::Config), "Use the port for clients, 4222 unless it was changed"),
];

const LOGIN: &str =
    "Check auth_type and its column in rule_nats_config, or NATS_CREDS, NATS_NKEY, NATS_TOKEN, NATS_USER";

/// What an `-ERR` means, and what to try.
pub fn wire(text: &str) -> (Wire, Option<&'static str>) {
    let lower = text.trim().trim_matches('\'').to_ascii_lowercase();
    let known = WIRE.iter().find(|(words, ..)| lower.starts_with(words));
    known.map_or((Wire::Other(Kind::Protocol), None), |(_, wire, hint)| (*wire, Some(*hint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_one_row_and_each_row_its_class() {
        assert!(CODES.is_sorted_by(|a, b| a.code < b.code), "once each, by number");
        let of = |publish: Publish| {
            CODES.iter().filter(|row| row.publish == publish).map(|row| row.code).collect::<Vec<_>>()
        };
        assert_eq!(of(Publish::Place), [10071, 10164]);
        assert_eq!(of(Publish::TooLarge), [10054]);
        assert_eq!(of(Publish::Event), [10097]);
        assert_eq!(of(Publish::OneByOne), [10201]);
        assert_eq!(of(Publish::SmallerBatches), [10199]);
        let waited: Vec<_> = CODES.iter().filter(|row| row.asked == Kind::Unavailable).map(|row| row.code).collect();
        assert_eq!(
            waited,
            [
                10004, 10006, 10007, 10008, 10009, 10050, 10071, 10077, 10110, 10118, 10123, 10124, 10158, 10163,
                10164, 10167, 10175, 10176, 10177, 10179
            ]
        );
        assert!(CODES.iter().all(|row| matches!(row.asked, Kind::Unavailable | Kind::Config) && !row.hint.is_empty()));
    }

    #[test]
    fn a_code_that_nobody_knows_is_waited_for_or_sorted_by_its_class() {
        assert_eq!(publish(10999), Publish::Wait);
        for (class, kind) in
            [(400, Kind::Config), (404, Kind::Config), (408, Kind::Unavailable), (429, Kind::Unavailable)]
                .into_iter()
                .chain([(500, Kind::Unavailable), (503, Kind::Unavailable)])
        {
            assert_eq!(asked(10999, class).0, kind, "{class}");
        }
    }

    #[test]
    fn each_err_of_a_server_has_its_class() {
        for (text, expected) in [
            ("Permissions Violation for Publish to \"a\"", Wire::Subject),
            ("Permissions Violation for Subscription to \"_INBOX.a.*\"", Wire::Subject),
            ("Authorization Violation", Wire::Login),
            ("User Authentication Expired", Wire::Login),
            ("User Authentication Revoked", Wire::Login),
            ("Account Authentication Expired", Wire::Login),
            ("authentication error", Wire::Login),
            ("authentication expired", Wire::Login),
            ("credentials have been revoked", Wire::Login),
            ("Failed Account Registration", Wire::Login),
            ("Authentication Timeout", Wire::Other(Kind::Unavailable)),
            ("maximum connections exceeded", Wire::Other(Kind::Unavailable)),
            ("maximum account active connections exceeded", Wire::Other(Kind::Unavailable)),
            ("maximum subscriptions exceeded", Wire::Other(Kind::Unavailable)),
            ("Connection throttling is active. Please try again later.", Wire::Other(Kind::Unavailable)),
            ("Stale Connection", Wire::Other(Kind::Unavailable)),
            ("Slow Consumer", Wire::Other(Kind::Unavailable)),
            ("Server Shutdown", Wire::Other(Kind::Unavailable)),
            ("Secure Connection - TLS Required", Wire::Other(Kind::Config)),
            ("message headers not supported", Wire::Other(Kind::Config)),
            ("attempted to connect to route port", Wire::Other(Kind::Config)),
            ("Maximum Payload Violation", Wire::Payload),
            ("maximum control line exceeded", Wire::ControlLine),
            ("Unknown Protocol Operation", Wire::Other(Kind::Protocol)),
            ("Parser Error", Wire::Other(Kind::Protocol)),
            // Words that only mention others decide nothing.
            ("Unknown Operation near 'authorization violation'", Wire::Other(Kind::Protocol)),
        ] {
            assert_eq!(wire(text).0, expected, "{text}");
        }
        for (words, expected, _) in WIRE {
            assert_eq!(wire(&format!("'{}'", words.to_uppercase())).0, *expected, "an earlier row takes {words}");
        }
    }
}
