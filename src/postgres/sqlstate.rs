//! What each SQLSTATE means for walhook (manual, appendix A).
//!
//! In comes the code of an error, and nothing of its text: texts are translated and change from version to version. Out
//! goes one class, and what to try. The longest prefix in the table decides; every class of the manual has its row.

use crate::error::Kind;

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It passes without anybody acting, or as soon as somebody has acted on the server: the same is tried again.
    Wait,
    /// Somebody must act first: the process ends, with the exit code of this kind.
    End(Kind),
    /// This statement alone is at fault, for the values it was given: others go on.
    Statement,
}

use Class::{End, Statement, Wait};
use Kind::{Config, Permission, Protocol, Untrusted};

const SETUP: &str = "bring the database up to date with: walhook setup";
const POOLER: &str =
    "a connection pooler in transaction mode seems to be in between: use session mode, or PostgreSQL itself";

/// Prefix, class, what to try; docs/reference/sqlstates.md shows it.
pub const TABLE: [(&str, Class, &str); 62] = [
    ("00", End(Protocol), ""), // success, warnings and "no data" are no errors
    ("01", End(Protocol), ""),
    ("02", End(Protocol), ""),
    ("03", End(Protocol), ""), // a statement that is not complete yet
    ("08", Wait, ""),          // the connection
    ("09", Statement, ""),     // a trigger of the user's
    ("0A", End(Config), "the server does not support this; see which versions the documentation names"),
    ("0B", End(Protocol), ""),
    ("0F", End(Protocol), ""),
    ("0L", End(Permission), "grant the role what the message asks for, or connect as another role"),
    ("0P", End(Permission), "check the role that ALTER ROLE … SET role names"),
    ("0Z", Statement, ""),
    ("10", Statement, ""),
    ("20", Statement, ""),
    ("21", Statement, ""),
    ("22", Statement, ""), // a value
    ("23", Statement, ""), // a constraint
    ("24", End(Protocol), ""),
    ("25", End(Protocol), ""),
    (
        "25006", // a read-only transaction
        Wait,
        "the server is a standby (target_session_attrs=primary picks the primary), or default_transaction_read_only is on for \
         the server, the database or the role: ALTER ROLE … RESET default_transaction_read_only",
    ),
    ("25P03", Wait, ""),         // idle_in_transaction_session_timeout
    ("25P04", Wait, ""),         // transaction_timeout
    ("26", End(Config), POOLER), // a prepared statement that is not there
    ("27", Statement, ""),
    (
        "28", // who we are is not believed
        End(Permission),
        "check that the role exists and may log in, and that the server's pg_hba.conf has a line for this user, database, \
         address and encryption; where that line asks for a certificate, set sslcert and sslkey to one the server trusts",
    ),
    ("28P01", End(Permission), "check the user and its password (PGPASSWORD, password file, .pgpass)"),
    ("2B", End(Config), ""),
    ("2D", End(Protocol), ""),
    ("2F", Statement, ""),
    ("34", End(Protocol), ""),
    ("38", Statement, ""),
    ("39", Statement, ""),
    ("3B", End(Protocol), ""),
    ("3D", End(Config), "check dbname (PGDATABASE)"),
    ("3F", End(Config), SETUP),
    ("40", Wait, ""),         // a deadlock, or a serialization that failed
    ("40002", Statement, ""), // an integrity constraint at the commit
    ("42", End(Config), ""),
    (
        "42501", // a privilege
        End(Permission),
        "grant the role what the message asks for, or connect as another role; where it names row-level security: ALTER TABLE … \
         DISABLE ROW LEVEL SECURITY, or ALTER ROLE … BYPASSRLS",
    ),
    ("42P01", End(Config), SETUP),
    ("42703", End(Config), SETUP),
    ("42883", End(Config), SETUP),
    ("42P05", End(Config), POOLER),
    (
        "42704", // a slot, a publication, a setting, a type
        End(Config),
        "create what the message names with: walhook setup",
    ),
    ("44", Statement, ""),
    ("53", Wait, ""), // disk, memory
    ("53300", Wait, "raise max_connections on the server, or end other connections"),
    ("53400", End(Config), "raise max_replication_slots on the server, or drop a slot nobody reads"),
    ("54", Statement, ""), // larger than the server can
    ("55", End(Config), ""),
    ("55000", End(Config), "SELECT * FROM rule_cdc_check() names what is wrong with slot, publications and links"),
    ("55006", Wait, ""), // in use by another session
    ("55P03", Wait, ""), // lock_timeout
    ("57", Wait, ""),    // a shutdown, a cancelled statement, pg_terminate_backend
    ("57P04", End(Config), "the database was dropped: check dbname (PGDATABASE)"),
    ("58", Wait, ""), // a system call of the server's that failed
    (
        "58P01", // a file that is not there: WAL that the slot needs
        End(Untrusted),
        "WAL this slot needed is gone: changes are lost; docs/recovery.md says what is left to do",
    ),
    ("72", Wait, ""), // a snapshot that is too old
    ("F0", Wait, ""), // the server's configuration file is being edited
    ("HV", Statement, ""),
    ("P0", Statement, ""), // raised by somebody's PL/pgSQL
    ("XX", End(Protocol), ""),
];

/// The row of this code: the one with the longest prefix of it.
fn row(code: &str) -> (Class, &'static str) {
    let rows = TABLE.iter().filter(|(prefix, ..)| code.starts_with(prefix));
    rows.max_by_key(|(prefix, ..)| prefix.len()).map_or((End(Protocol), ""), |(_, class, hint)| (*class, hint))
}

/// What to do about an error with this code.
pub fn class(code: &str) -> Class {
    row(code).0
}

/// What to try; empty where there is nothing to say.
pub(super) fn hint(code: &str) -> &'static str {
    row(code).1
}

/// The kind of our own error.
pub(super) fn kind(code: &str) -> Kind {
    match class(code) {
        Wait => Kind::Unavailable,
        End(kind) => kind,
        // Whoever knows what one statement is worth asks for the class.
        Statement => Protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every class of appendix A, of versions 14 to 18.
    const CLASSES: [&str; 44] = [
        "00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "22", "23", "24",
        "25", "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40", "42", "44", "53", "54",
        "55", "57", "58", "72", "F0", "HV", "P0", "XX",
    ];

    #[test]
    fn every_class_of_the_manual_has_a_row_and_no_row_is_there_twice() {
        for class in CLASSES {
            assert!(TABLE.iter().any(|(prefix, ..)| *prefix == class), "{class} has no row");
        }
        for (index, (prefix, ..)) in TABLE.iter().enumerate() {
            assert!(CLASSES.contains(&&prefix[..2]), "{prefix} is in no class of the manual");
            assert!(prefix.len() == 2 || prefix.len() == 5, "{prefix}");
            assert!(!TABLE[..index].iter().any(|(other, ..)| other == prefix), "{prefix} is there twice");
        }
    }

    #[test]
    fn each_row_has_the_meaning_that_was_decided() {
        // Row by row, so that a change of the table is one of this list too. A code is given where a class has more rows.
        let waited_for = [
            "08000", "08006", "08P01", "25006", "25P03", "25P04", "40001", "40P01", "53000", "53100", "53200", "53300",
            "55006", "55P03", "57000", "57014", "57P01", "57P02", "57P03", "57P05", "58000", "58030", "72000", "F0000",
        ];
        let ends = [
            (Protocol, &["00000", "01000", "02000", "03000", "0B000", "0F000", "24000", "25001", "25P01", "25P02"][..]),
            (Protocol, &["2D000", "34000", "3B000", "XX000", "XX001", "XX002", "zz000", ""]),
            (Config, &["0A000", "26000", "2BP01", "3D000", "3F000", "42601", "42P01", "42703", "42883", "42P05"]),
            (Config, &["42704", "42710", "53400", "55000", "55P02", "55P04", "57P04"]),
            (Permission, &["0L000", "0P000", "28000", "28P01", "42501"]),
            (Untrusted, &["58P01"]),
        ];
        let of_the_statement = [
            "09000", "0Z000", "10608", "20000", "21000", "22001", "22021", "22P02", "22P05", "23502", "23503", "23505",
            "23514", "27000", "2F000", "38000", "39000", "40002", "44000", "54000", "HV000", "P0001", "P0002",
        ];
        let ends = ends.iter().flat_map(|(kind, codes)| codes.iter().map(|code| (*code, End(*kind))));
        let all = waited_for.map(|code| (code, Wait)).into_iter();
        let all: Vec<_> = all.chain(ends).chain(of_the_statement.map(|code| (code, Statement))).collect();
        for (code, wanted) in &all {
            assert_eq!(class(code), *wanted, "{code}");
        }
        for (prefix, ..) in TABLE {
            let decided = |code: &str| {
                TABLE.iter().filter(|(other, ..)| code.starts_with(other)).map(|(other, ..)| other.len()).max()
            };
            let is_tested = all.iter().any(|(code, _)| code.starts_with(prefix) && decided(code) == Some(prefix.len()));
            assert!(is_tested, "no code of row {prefix} is in the lists above");
        }
    }
}
