//! Every code that a finding may have, and what the documentation says of it.
//!
//! In: nothing. Out: the table from which `docs/check.md` has its reference (`tests/servers/check.rs` compares them). A code never changes its
//! meaning: monitors know it.

/// Which part of the world a check looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The check itself.
    Check,
    /// The PostgreSQL server, the role and the slot.
    Postgres,
    /// walhook's objects in the database and the links.
    SetUp,
    /// NATS and its streams.
    Nats,
    /// The receivers, with `--deliver`.
    Deliver,
}

/// One kind of finding.
#[derive(Debug, Clone, Copy)]
pub struct Code {
    /// Its name.
    pub code: &'static str,
    /// Whose it is.
    pub side: Side,
    /// What is found, for the reference.
    pub found: &'static str,
    /// Why it matters.
    pub why: &'static str,
}

const fn code(code: &'static str, side: Side, found: &'static str, why: &'static str) -> Code {
    Code { code, side, found, why }
}

use Side::{Check, Deliver, Nats, Postgres, SetUp};

/// The code of a finding of `rule_cdc_check`, by its name there.
pub fn of_name(name: &str) -> Option<&'static Code> {
    // The same by two names, both of which monitors may know.
    of(if name == "function_replaced" { "functions_replaced" } else { name })
}

/// All of them, in the order of the reference.
pub const CODES: &[Code] = &[
    code("not_checked", Check, "something could not be looked at", "What is not looked at may be wrong."),
    code(
        "setup",
        Check,
        "the database knows a finding that this walhook does not know",
        "The schema is newer than this walhook.",
    ),
    code(
        "mask_key",
        Check,
        "a mask needs a key that walhook does not have",
        "The link is set aside: its events become dead letters without their rows, for nothing may leave unmasked.",
    ),
    code(
        "seal_key",
        Check,
        "a webhook seals its payloads with a key that walhook does not have",
        "Its events wait, and all that were committed after them, for nothing may leave unsealed.",
    ),
    code("http", Check, "the settings of HTTP cannot be used", "walhook run does not start with them."),
    // The server.
    code(
        "postgres_connection",
        Postgres,
        "PostgreSQL cannot be reached or refuses the login",
        "walhook cannot start without its database.",
    ),
    code(
        "pooler",
        Postgres,
        "a connection pooler stands between walhook and PostgreSQL",
        "A pooler does not pass a replication connection on, and gives one session's settings to another.",
    ),
    code(
        "replication_connection",
        Postgres,
        "PostgreSQL refuses the replication connection",
        "Changes arrive only over a replication connection.",
    ),
    code("standby", Postgres, "the server is a standby", "walhook writes its own tables, so it needs the primary."),
    code(
        "read_only",
        Postgres,
        "transactions are read-only by a setting",
        "walhook cannot write checkpoints, dead letters and history.",
    ),
    code(
        "postgres_minor_version",
        Postgres,
        "this minor version has a known error with slots",
        "The error can lose changes or stop the slot.",
    ),
    code("wal_level", Postgres, "`wal_level` is not `logical`", "The WAL has no changes that a slot can decode."),
    code(
        "slots_left",
        Postgres,
        "`max_replication_slots` is used up",
        "walhook cannot create its slot, an anchor, or the temporary slot of a replay.",
    ),
    code("senders_left", Postgres, "`max_wal_senders` is used up", "walhook cannot open its replication connection."),
    code(
        "slot_wal_limit",
        Postgres,
        "`max_slot_wal_keep_size` is unlimited",
        "While walhook is stopped its slot keeps WAL until the disk is full, and a full disk stops PostgreSQL.",
    ),
    code(
        "slot_wal_status",
        Postgres,
        "the slot has used up its WAL allowance",
        "PostgreSQL removes the WAL at one of the next checkpoints. The changes in it are lost then.",
    ),
    code(
        "slot_headroom",
        Postgres,
        "how many hours the slot may lag at the present rate of WAL",
        "An outage of walhook or NATS that lasts longer costs the slot or fills the disk.",
    ),
    code(
        "wal_sender_timeout",
        Postgres,
        "`wal_sender_timeout` is off, very short or very long",
        "It decides how soon PostgreSQL frees the slot of a walhook that died, and how soon it gives up one that is slow.",
    ),
    code(
        "idle_replication_slot_timeout",
        Postgres,
        "`idle_replication_slot_timeout` is set (PostgreSQL 18)",
        "PostgreSQL invalidates the slot of a walhook that is stopped for longer. The changes since then are lost.",
    ),
    code(
        "synchronous_standby",
        Postgres,
        "`synchronous_standby_names` would take walhook for a standby",
        "Every commit of the database would wait until walhook has stored its events.",
    ),
    code(
        "role_replication",
        Postgres,
        "the role may not use replication",
        "PostgreSQL refuses the replication connection of such a role.",
    ),
    code(
        "privileges",
        Postgres,
        "the role lacks rights on walhook's tables or functions",
        "walhook ends with exit code 4 at the first statement that needs them.",
    ),
    code(
        "owners",
        Postgres,
        "walhook's objects belong to several roles",
        "The next walhook setup cannot replace what belongs to another role.",
    ),
    code(
        "functions_replaced",
        Postgres,
        "functions of walhook were replaced by others",
        "Calls do something else than the documentation says, such as nothing.",
    ),
    code(
        "schema_version",
        Postgres,
        "the schema and this walhook have different versions",
        "walhook refuses to work with tables of another version.",
    ),
    code(
        "identity",
        Postgres,
        "the identity of the database is missing or another's",
        "Two databases with one identity would write into each other's streams.",
    ),
    code(
        "publication_newer",
        Postgres,
        "a publication was dropped and made again while the slot had changes to publish",
        "PostgreSQL decodes a change by the publications that were there when it was made, and refuses where one was missing.",
    ),
    code(
        "checkpoints",
        Postgres,
        "the checkpoints in `rule_nats_checkpoints` are of another PostgreSQL or cannot be read",
        "walhook cannot tell by them what the streams have to have.",
    ),
    code(
        "slot_held",
        Postgres,
        "another process holds the slot",
        "walhook run waits until it is free. That is as it should be where two are started and one takes over.",
    ),
    code(
        "slot_lag",
        Postgres,
        "the slot is further behind than `--max-lag` of `walhook status --check`",
        "Events are late, and the slot keeps WAL.",
    ),
    code(
        "not_streaming",
        Postgres,
        "no walhook run streams from the slot",
        "Nothing is published, and the slot keeps WAL.",
    ),
    code(
        "history_blocked",
        Postgres,
        "a lock keeps rows out of `rule_nats_publish_history`",
        "Events are published and not confirmed, so the slot keeps WAL.",
    ),
    code(
        "dead_letters",
        Postgres,
        "dead letters wait to be retried or dropped",
        "These events have reached no stream, or no receiver.",
    ),
    // The set-up: rule_cdc_check.
    code("slot_missing", SetUp, "the slot does not exist", "Changes from before it is made are not published."),
    code("slot_not_ours", SetUp, "the slot is another kind, plugin or database", "walhook cannot decode from it."),
    code(
        "slot_lost",
        SetUp,
        "PostgreSQL has invalidated the slot",
        "What was committed after its position cannot be published from it any more.",
    ),
    code(
        "slot_two_phase",
        SetUp,
        "the slot decodes prepared transactions",
        "walhook publishes a transaction only when it is committed.",
    ),
    code("publication_missing", SetUp, "a publication does not exist", "Without it nothing can be decoded."),
    code(
        "publication_all_tables",
        SetUp,
        "a publication is FOR ALL TABLES",
        "It would publish secrets, and the history of its own publishing.",
    ),
    code(
        "publication_schema",
        SetUp,
        "a publication publishes a whole schema",
        "It takes in tables that nobody linked.",
    ),
    code(
        "publication_options",
        SetUp,
        "a publication has other options than walhook gave it",
        "Events would be missing, or would name a partition instead of its table.",
    ),
    code(
        "publication_own_table",
        SetUp,
        "a publication lacks a table of walhook's own",
        "What is written into that table has no effect.",
    ),
    code(
        "publication_denied_table",
        SetUp,
        "a publication has a table that must never be published",
        "It would publish secrets.",
    ),
    code(
        "publication_row_filter",
        SetUp,
        "a publication has a row filter",
        "Rows outside the filter are not published.",
    ),
    code("publication_columns", SetUp, "a publication has a list of columns", "The other columns are not published."),
    code(
        "shard_slot_missing",
        SetUp,
        "the slot of another shard does not exist",
        "The events of its tables and webhooks are published by nobody and kept by no slot.",
    ),
    code(
        "shard_idle",
        SetUp,
        "nobody streams for another shard",
        "The events of its tables and webhooks wait, and PostgreSQL keeps their WAL.",
    ),
    code(
        "publication_not_linked",
        SetUp,
        "a publication has a table that no link names",
        "PostgreSQL decodes and sends its changes for nothing.",
    ),
    code(
        "own_table_unlogged",
        SetUp,
        "a table of walhook's own is unlogged",
        "What is written into it does not reach walhook.",
    ),
    code(
        "own_table_identity",
        SetUp,
        "a table of walhook's own has no replica identity",
        "UPDATE and DELETE on it fail.",
    ),
    code(
        "row_invalid",
        SetUp,
        "a configuration row has values that walhook cannot use",
        "Its events become dead letters; other events go on.",
    ),
    code(
        "row_security",
        SetUp,
        "row-level security is on for a table of walhook's own",
        "Hidden rows are webhooks that nobody publishes.",
    ),
    code(
        "walsender_sync",
        SetUp,
        "commits wait for walhook as for a standby",
        "Every commit of this server waits until walhook has stored its events.",
    ),
    code("link_disabled", SetUp, "a link is disabled", "Changes of its table are not published by it."),
    code(
        "webhook_not_called",
        SetUp,
        "`walhook deliver` does not call a webhook: its receiver answered 410, or somebody set `disabled_at`",
        "Its events wait in their stream, as long as the stream keeps them.",
    ),
    code("webhook_disabled", SetUp, "a linked webhook is disabled", "Its events are not published."),
    code("webhook_not_published", SetUp, "a linked webhook does not publish to NATS", "Its events are not published."),
    code("config_missing", SetUp, "a webhook has no NATS configuration", "Its events have nowhere to go."),
    code("config_disabled", SetUp, "a NATS configuration is disabled", "Events of its webhooks are not published."),
    code("stream_missing", SetUp, "no stream takes a link's subject", "Its events become dead letters or wait."),
    code(
        "stream_ambiguous",
        SetUp,
        "more than one stream takes a subject",
        "The first one gets the events, which may not be the one that consumers read.",
    ),
    code(
        "stream_partial",
        SetUp,
        "a stream takes only a part of a link's subjects",
        "Events outside that part become dead letters or wait.",
    ),
    code(
        "table_missing",
        SetUp,
        "a linked table does not exist",
        "Nothing is published of it, and nothing of a table that has taken its place.",
    ),
    code(
        "table_unfit",
        SetUp,
        "a linked table cannot be published",
        "Its changes are not in the WAL, or must not be published.",
    ),
    code("table_not_published", SetUp, "a linked table is in no publication", "Its changes are not decoded."),
    code(
        "table_published_twice",
        SetUp,
        "a linked table is in both publications",
        "PostgreSQL does more work than it needs to.",
    ),
    code("partition_foreign", SetUp, "a partition is a foreign table", "Its changes are not in this server's WAL."),
    code("partition_unlogged", SetUp, "a partition is unlogged", "Its changes are not in the WAL."),
    code("operations", SetUp, "a link names an operation that does not exist", "The link publishes nothing for it."),
    code(
        "schema_trigger_missing",
        SetUp,
        "schemas are linked and the event trigger is not there",
        "A table that is created there is not published until somebody links it.",
    ),
    code("schema_table_missing", SetUp, "a table of a linked schema is not linked", "Its changes are not published."),
    code(
        "column_changes_not_enabled",
        SetUp,
        "a webhook asks for events of changed columns, and `rule_webhook_emit` is not enabled",
        "No such event can be written.",
    ),
    code(
        "column_changes_trigger_missing",
        SetUp,
        "a webhook asks for events of changed columns, and the event trigger is not there",
        "A change is an event only when `rule_cdc_column_changes_emit` is called.",
    ),
    code(
        "column_changes_stream_missing",
        SetUp,
        "no stream takes the subject of a link's events of changed columns",
        "The events become dead letters or wait.",
    ),
    code(
        "column_changes_elsewhere",
        SetUp,
        "the events of changed columns of a link go into another stream than its rows",
        "Consumers cannot tell which rows are from before a change.",
    ),
    code(
        "column_change_missed",
        SetUp,
        "the columns of a link have changed without an event",
        "Its consumers do not know about the change.",
    ),
    code("schema_missing", SetUp, "a linked schema does not exist", "Nothing can join its link."),
    code(
        "partition_linked",
        SetUp,
        "a linked table is a partition of a linked table",
        "PostgreSQL sends its changes as those of that table: its own links get no events.",
    ),
    code(
        "mask_broken",
        SetUp,
        "the columns of a table are not those for which a link's mask was set",
        "The link is set aside: its events become dead letters without their rows, for a masked column may have another name now.",
    ),
    code(
        "mask_refused",
        SetUp,
        "a link's mask cannot be applied",
        "The link is set aside: its events become dead letters, and what the mask keeps back is not in them.",
    ),
    code(
        "mask_new_column",
        SetUp,
        "a column has come since a link's mask was set",
        "It is left out of the messages until somebody says that it may leave.",
    ),
    code(
        "rename_refused",
        SetUp,
        "the names that a link gives to columns cannot be used",
        "Two values of a message cannot have one name: events become dead letters.",
    ),
    code("rename_missing", SetUp, "a link renames a column that does not exist", "Events go on without that column."),
    code("columns_missing", SetUp, "a link names a column that does not exist", "Events go on without that column."),
    code(
        "column_missing",
        SetUp,
        "a filter, `when_changed` or a subject names a column that does not exist",
        "The link publishes nothing, or not what it says.",
    ),
    code("columns_empty", SetUp, "a link names no column", "Its events would be empty."),
    code(
        "message_settings",
        SetUp,
        "a link whose message is a column has settings that such a link cannot have",
        "Its events become dead letters.",
    ),
    code(
        "message_format",
        SetUp,
        "a link whose message is a column belongs to a webhook with another `payload_format` than `data`",
        "Its events become dead letters.",
    ),
    code(
        "message_column",
        SetUp,
        "a column that is a link's message, its id or a header does not exist, or has a type that is no message",
        "Its events become dead letters.",
    ),
    code(
        "message_nullable",
        SetUp,
        "the column that is a link's message may be NULL",
        "The event of such a row becomes a dead letter.",
    ),
    code("filter_kind", SetUp, "a link's filter cannot be read", "The link publishes nothing."),
    code("when_changed_empty", SetUp, "`when_changed` names no column", "No update would be published."),
    code("template_braces", SetUp, "a subject template has braces that do not match", "No subject can be made of it."),
    code("template_subject", SetUp, "a subject template makes no valid subject", "NATS refuses such events."),
    code(
        "identity_missing",
        SetUp,
        "a linked table has no replica identity",
        "The application's own UPDATE and DELETE on it fail.",
    ),
    code(
        "identity_generated",
        SetUp,
        "a replica identity has a generated column",
        "UPDATE fails (PostgreSQL 18), or deletes come without their key.",
    ),
    code(
        "identity_when_changed",
        SetUp,
        "`when_changed` needs the old row, which the WAL does not have",
        "Updates are published whether or not the column has changed.",
    ),
    code(
        "identity_filter",
        SetUp,
        "a filter needs columns of the old row that the WAL does not have",
        "Deletes are judged by the key alone.",
    ),
    code(
        "identity_old",
        SetUp,
        "`include_old` needs the old row, which the WAL does not have",
        "Events carry only the key of the old row.",
    ),
    // NATS.
    code(
        "nats_settings",
        Nats,
        "a NATS configuration cannot be used as it is written",
        "walhook cannot connect by it, or its secrets are in danger.",
    ),
    code(
        "nats_connection",
        Nats,
        "NATS cannot be reached or refuses the login",
        "Events wait in the slot, which keeps WAL meanwhile.",
    ),
    code(
        "nats_jetstream",
        Nats,
        "JetStream does not answer",
        "Without JetStream nothing is stored, so nothing is confirmed.",
    ),
    code(
        "nats_permissions",
        Nats,
        "the user in NATS lacks a right",
        "What walhook may not do fails, or it goes on with less safety.",
    ),
    code("database_copy", Nats, "a copy of this database runs or has run", "Both would publish the same events."),
    code(
        "stream_rows",
        Nats,
        "a row of `rule_nats_streams` is set aside or does not take effect",
        "Events of its subjects go elsewhere or nowhere.",
    ),
    code(
        "stream_lost",
        Nats,
        "a stream that had acknowledged events was deleted, recreated or set back",
        "Acknowledged events are missing from it. walhook run ends with exit code 3.",
    ),
    code(
        "stream_full",
        Nats,
        "a stream with `discard_policy = 'new'` has reached its limit",
        "It refuses every event, and the slot keeps WAL meanwhile.",
    ),
    code("stream_new", Nats, "a stream does not exist yet", "Until then its events wait."),
    code("stream_changes", Nats, "a stream differs from its row", "The stream and its row differ until then."),
    code("stream_row_impossible", Nats, "a row wants what JetStream cannot change", "The stream stays as it is."),
    code(
        "stream_unusable",
        Nats,
        "an acknowledgement of the stream does not mean that an event is stored",
        "Events would be lost.",
    ),
    code(
        "stream_properties",
        Nats,
        "a stream has a property that can lose or delay events",
        "An acknowledged event may be lost, or order may be broken.",
    ),
    code("stream_owner", Nats, "a stream belongs to another database", "Two databases must not write into one stream."),
    code(
        "stream_tail",
        Nats,
        "a stream does not end where this database's events end",
        "Acknowledged events are missing there, or another history was published: walhook run does not go on behind it.",
    ),
    code(
        "stream_writers",
        Nats,
        "a strict stream has messages of another writer",
        "A message in the place of an event makes walhook read the stream again, and may make that event a dead letter.",
    ),
    code(
        "stream_subjects_taken",
        Nats,
        "another stream takes the subjects already",
        "JetStream refuses to create the stream.",
    ),
    code(
        "stream_retention",
        Nats,
        "the stream's limits delete events, read or not",
        "A consumer that is away for longer misses events.",
    ),
    code(
        "stream_unread",
        Nats,
        "a consumer lags so far that it will lose unread events",
        "The stream's limits delete the oldest events, whether or not this consumer has read them.",
    ),
    code("stream_replicas", Nats, "a stream has one copy", "The loss of one server is the loss of the stream."),
    code(
        "duplicate_window",
        Nats,
        "the duplicate window does not fit",
        "It costs memory for each message, and in a shared stream it is what prevents duplicates.",
    ),
    code(
        "consumer_schemas",
        Nats,
        "the bucket of schemas for consumers cannot be used",
        "Events of the configuration wait in the slot: each names a schema, which has to be there before.",
    ),
    code(
        "nats_max_payload",
        Nats,
        "rows are larger than a message may be",
        "Such events become dead letters or stop the stream, as on_error says.",
    ),
    code(
        "nats_fsync",
        Nats,
        "the server acknowledges before it writes to disk",
        "A power cut of the server can lose the last two minutes of acknowledged events (sync_interval).",
    ),
    code(
        "nats_storage",
        Nats,
        "the account's storage is nearly full",
        "A full account refuses every event, and the slot keeps WAL meanwhile.",
    ),
    // The last mile.
    code("webhook_url", Deliver, "a webhook's URL cannot be called", "walhook deliver calls http and https only."),
    code(
        "webhook_network",
        Deliver,
        "a webhook's address is in a network that is not allowed",
        "walhook deliver refuses to call it.",
    ),
    code("webhook_dns", Deliver, "a webhook's host has no address", "Every call fails until it has one."),
    code("webhook_connect", Deliver, "a webhook's server cannot be reached", "Every call fails and is tried again."),
    code(
        "webhook_tls",
        Deliver,
        "the TLS handshake with a webhook's server fails",
        "Every call fails and is tried again.",
    ),
    code("webhook_certificate", Deliver, "a webhook's certificate expires soon", "Calls fail from then on."),
    code("webhook_signing", Deliver, "a signed webhook has no usable secret", "walhook deliver does not call it."),
    code(
        "webhook_ping",
        Deliver,
        "a webhook does not answer a test request with 2xx (with `--ping`)",
        "Events would be tried again and end as failed.",
    ),
];

/// The code of this name.
pub fn of(name: &str) -> Option<&'static Code> {
    CODES.iter().find(|code| code.code == name)
}

/// The reference table of `docs/check.md`.
pub fn reference() -> String {
    let mut table = String::new();
    for (side, title) in [
        (Check, "The check itself"),
        (Postgres, "PostgreSQL: server, role, slot"),
        (SetUp, "walhook's set-up in the database"),
        (Nats, "NATS"),
        (Deliver, "The last mile (`--deliver`)"),
    ] {
        table.push_str(&format!("### {title}\n\n| code | found | why it matters |\n|---|---|---|\n"));
        for code in CODES.iter().filter(|code| code.side == side) {
            table.push_str(&format!("| `{}` | {} | {} |\n", code.code, code.found, code.why));
        }
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_stands_once_in_the_table_and_its_texts_are_whole() {
        for (at, code) in CODES.iter().enumerate() {
            assert!(CODES[..at].iter().all(|other| other.code != code.code), "{} twice", code.code);
            assert!(code.why.ends_with('.') && !code.found.ends_with('.'), "{}", code.code);
            assert!(code.code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{}", code.code);
        }
    }

    /// So that no finding of the database's own check lacks its place in the reference.
    #[test]
    fn every_name_that_the_sql_gives_is_in_the_table() {
        let sql = [
            include_str!("../../../sql/008_walhook.sql"),
            include_str!("../../../sql/014_check.sql"),
            include_str!("../../../sql/022_masks_and_schemas.sql"),
        ]
        .concat();
        let names = sql.split("name := '").skip(1).filter_map(|rest| rest.split('\'').next());
        let missing: Vec<_> = names.filter(|name| of(name).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
