//! The settings of walhook's own sessions, replication and SQL alike.
//!
//! In comes nothing; out go start-up parameters and one statement that sets the same. Both are used: the parameters hold
//! from the first moment (a role's `statement_timeout` of a millisecond ends no login) and `RESET` goes back to them; the
//! statement holds where a pooler refused the parameters or dropped them (`ignore_startup_parameters`).
//!
//! A parameter of ours wins over `options` in the connection string, over ALTER ROLE and ALTER DATABASE.

/// A setting that every session of walhook has, whatever role and database say.
struct Pinned {
    name: &'static str,
    value: &'static str,
}

const fn pin(name: &'static str, value: &'static str) -> Pinned {
    Pinned { name, value }
}

/// What is pinned, each with its reason.
const PINNED: [Pinned; 17] = [
    // Text arrives as UTF-8; a server with another encoding converts. Also the one parameter that every pooler takes.
    pin("client_encoding", "UTF8"),
    // No function, operator or table that somebody made in another schema is taken for one that our statements mean.
    pin("search_path", "pg_catalog, pg_temp"),
    // A backslash in our own literals is a backslash.
    pin("standard_conforming_strings", "on"),
    // Row-level security ends a statement with an error (42501) where it would hide rows: of our own tables hidden rows
    // would be webhooks that nobody publishes, of a table that is backfilled rows that nobody gets.
    pin("row_security", "off"),
    // Our own commits wait for the local disk and for no standby. With synchronous_standby_names = '*' walhook is itself
    // the standby that PostgreSQL waits for, and would wait for its own confirmation for ever. What this costs: after a
    // failover the last rows of history, checkpoints, dead letters and status may be missing on the new primary.
    pin("synchronous_commit", "local"),
    // Waiting for locks mends itself, so it is waited for; where a statement must not wait it says so by SET LOCAL.
    pin("lock_timeout", "0"),
    // Backfill, replay and setup have statements that take as long as the table is large. A connection that is dead is
    // found by other means.
    pin("statement_timeout", "0"),
    // The history is copied in a transaction that waits for NATS; sessions rest between heartbeats and calls.
    pin("idle_in_transaction_session_timeout", "0"),
    pin("idle_session_timeout", "0"),
    // 40001 would end statements that lose against others; none of ours needs more than READ COMMITTED, or says so.
    pin("default_transaction_isolation", "read committed"),
    // Values are decoded from these forms, and rows that are backfilled must look like rows that are changed.
    pin("DateStyle", "ISO, MDY"),
    pin("IntervalStyle", "iso_8601"),
    pin("TimeZone", "UTC"),
    pin("bytea_output", "hex"),
    pin("extra_float_digits", "3"),
    // A text array's NULL is a null.
    pin("array_nulls", "on"),
    // Names in messages and remedies are quoted where they must be; constraint definitions are compared as text.
    pin("quote_all_identifiers", "off"),
];

/// What only a replication session has: from 18 on a missing publication is told by a warning. Other sessions may see notices:
/// those of `walhook setup` are for its user.
const PINNED_IN_REPLICATION: Pinned = pin("client_min_messages", "warning");

// What is deliberately left as role and database have it:
//
// - default_transaction_read_only: an owner or a provider who makes a database read-only (a full disk, a database that was
//   moved away) means walhook too; the error (25006) is waited for and names both causes.
// - session_replication_role: only a superuser may set it, even to what it is; nothing of walhook's relies on triggers and
//   foreign keys that it turns off.
// - role: ALTER ROLE … SET role gives objects another owner, which is what its author wants.
// - wal_sender_timeout: walhook reads it and reports often enough.
// - logical_decoding_work_mem, work_mem, enable_*, jit, default_tablespace and the like: memory, plans and places are the
//   server's owner's matter.

/// For the start-up message of a replication session.
pub(super) fn parameters<'a>() -> impl Iterator<Item = (&'a str, &'a str)> {
    PINNED.iter().chain([&PINNED_IN_REPLICATION]).map(|pinned| (pinned.name, pinned.value))
}

/// The same in the form of the parameter `options`, after what the user has there: the last one wins.
pub(super) fn options(own: Option<&str>) -> String {
    // The server splits at white space that no backslash protects.
    let protected = |value: &str| value.replace('\\', "\\\\").replace(' ', "\\ ");
    let mut options = own.unwrap_or_default().to_owned();
    for Pinned { name, value } in &PINNED {
        if !options.is_empty() {
            options.push(' ');
        }
        options.push_str(&format!("-c {name}={}", protected(value)));
    }
    options
}

/// What a replication session has besides, as a statement to put before [`statements`].
pub(super) fn replication_statement() -> String {
    format!("SET {} = '{}'; ", PINNED_IN_REPLICATION.name, PINNED_IN_REPLICATION.value)
}

/// The same as statements; also of what only some versions have. No name in it is looked up but in `pg_catalog`.
pub(super) fn statements() -> String {
    let mut text = String::new();
    for Pinned { name, value } in &PINNED {
        // A list of names is written without quotes, or it would be one name.
        let value = if *name == "search_path" { (*value).to_owned() } else { format!("'{value}'") };
        text.push_str(&format!("SET {name} = {value}; "));
    }
    // transaction_timeout (17 and newer) would end what statement_timeout may not.
    text.push_str(
        "SELECT pg_catalog.set_config(s.name, '0', false) FROM pg_catalog.pg_settings s \
         WHERE s.name OPERATOR(pg_catalog.=) 'transaction_timeout'",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_pinned_once() {
        let mut names: Vec<String> = parameters().map(|(name, _)| name.to_lowercase()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), PINNED.len() + 1);
    }

    #[test]
    fn options_of_the_users_come_first_and_spaces_are_protected() {
        let options = options(Some("-c work_mem=12MB -c row_security=on"));
        assert!(options.starts_with("-c work_mem=12MB -c row_security=on -c client_encoding=UTF8 "), "{options}");
        assert!(options.contains(" -c search_path=pg_catalog,\\ pg_temp "), "{options}");
    }
}
