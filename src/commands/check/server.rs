//! The PostgreSQL server: its version and settings, slots, senders and publications.
//!
//! In: a connection. Out: findings. Each check is one function with a query of its own, so that what a role may not see hides nothing
//! else. Reads catalogs and statistics only.
//!
//! The role and whose walhook's objects are: `role`. How far the slot may lag: `slot_wal`. What a replication connection says, and
//! poolers: `connections`.

mod connections;
mod role;
mod slot_wal;

use tokio_postgres::{Client, Row, types::ToSql};

use super::{
    amounts::duration,
    finding::{Finding, How, Severity},
    provider::Provider,
};
use crate::{
    config::Config,
    error::Result,
    postgres::{self, sql},
    text,
};

pub use connections::{Replicated, pooled_sql, replication};

/// Minor versions before which an error with slots is known: major version, first good minor version.
struct Fixed {
    in_versions: &'static [(u32, u32)],
    error: &'static str,
}

/// From PostgreSQL's release notes (appendix E).
const FIXED: &[Fixed] = &[
    Fixed {
        in_versions: &[(14, 15), (15, 10), (16, 6), (17, 2)],
        error: "a slot's restart position could go backwards, to WAL that is removed already",
    },
    Fixed {
        in_versions: &[(14, 18), (15, 13), (16, 9), (17, 5)],
        error: "changes beside an ALTER PUBLICATION, such as linking a table makes, could be decoded by the old catalogs and be lost",
    },
    Fixed {
        in_versions: &[(14, 19), (15, 14), (16, 10), (17, 6)],
        error: "WAL that a slot needs could be removed by a checkpoint before a crash, and decoding beside much DDL could run out of memory",
    },
];

/// What the checks of one server share.
pub struct Server<'c> {
    pub client: &'c Client,
    pub config: &'c Config,
    pub provider: Provider,
}

/// A setting as this session has it.
struct Setting {
    value: String,
    source: String,
}

impl<'c> Server<'c> {
    /// Looks who runs the server.
    pub async fn of(client: &'c Client, config: &'c Config) -> Server<'c> {
        let names = async {
            let roles = client.query("SELECT rolname::text FROM pg_catalog.pg_roles", &[]).await?;
            let settings = client.query("SELECT name FROM pg_catalog.pg_settings WHERE name LIKE '%.%'", &[]).await?;
            Ok::<_, tokio_postgres::Error>((roles, settings))
        };
        let (roles, settings) = names.await.unwrap_or_default();
        let names = |rows: &[Row]| rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>();
        let (roles, settings) = (names(&roles), names(&settings));
        let provider = Provider::detect(roles.iter().map(String::as_str), settings.iter().map(String::as_str));
        Server { client, config, provider }
    }

    async fn row(&self, attempted: &str, query: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        self.client.query_one(query, parameters).await.map_err(|error| sql::error(attempted, error))
    }

    async fn setting(&self, name: &str) -> Result<Option<Setting>> {
        let attempted = format!("read the setting {name}");
        let query = "SELECT setting, source FROM pg_catalog.pg_settings WHERE name = $1";
        let row = self.client.query_opt(query, &[&name]).await.map_err(|error| sql::error(attempted, error))?;
        Ok(row.map(|row| Setting { value: row.get::<_, Option<String>>(0).unwrap_or_default(), source: row.get(1) }))
    }

    async fn number(&self, name: &str) -> Result<Option<i64>> {
        Ok(self.setting(name).await?.and_then(|setting| setting.value.parse().ok()))
    }

    /// A finding whose remedy is a setting. Where the role or the database has a value of its own, that is what has to be changed.
    async fn with_setting(&self, finding: Finding, name: &str, value: &str, restarts: bool) -> Result<Finding> {
        let source = self.setting(name).await?.map(|setting| setting.source).unwrap_or_default();
        let row = self.row("read who is connected", "SELECT current_user::text, current_database()::text", &[]).await?;
        let (role, database) = (text::sql_name(row.get(0)), text::sql_name(row.get(1)));
        let value_literal = text::sql_literal(value);
        let (how, remedy) = match source.as_str() {
            "user" => (How::Sql, format!("ALTER ROLE {role} SET {name} = {value_literal};")),
            "database" => (How::Sql, format!("ALTER DATABASE {database} SET {name} = {value_literal};")),
            "database user" => {
                (How::Sql, format!("ALTER ROLE {role} IN DATABASE {database} SET {name} = {value_literal};"))
            }
            _ => self.provider.set(name, value, restarts),
        };
        Ok(finding.remedy(how, remedy))
    }

    /// `standby`, `read_only`: whether this session may write.
    pub async fn may_write(&self) -> Result<Vec<Finding>> {
        let query =
            "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('default_transaction_read_only')";
        let row = self.row("ask whether the server is a standby", query, &[]).await?;
        if row.get(0) {
            let text = format!("the server at {} is a standby", self.config.postgres.target());
            return Ok(vec![Finding::new("standby", Severity::Error, "PostgreSQL", text).exits(1).remedy(
                How::Advice,
                "Connect to the primary, or name all servers and let walhook choose: target_session_attrs=primary.",
            )]);
        }
        if row.get::<_, &str>(1) != "on" {
            return Ok(Vec::new());
        }
        let finding = Finding::new(
            "read_only",
            Severity::Error,
            "default_transaction_read_only",
            "default_transaction_read_only is on",
        )
        .exits(1);
        let mut finding = self.with_setting(finding, "default_transaction_read_only", "off", false).await?;
        // The session that sets it is read-only itself.
        finding.remedy = finding.remedy.map(|remedy| format!("SET default_transaction_read_only = off; {remedy}"));
        Ok(vec![finding])
    }

    /// `postgres_minor_version`.
    pub async fn minor_version(&self) -> Result<Vec<Finding>> {
        let row = self
            .row("read the server's version", "SELECT pg_catalog.current_setting('server_version_num')::int", &[])
            .await?;
        let number = u32::try_from(row.get::<_, i32>(0)).unwrap_or_default();
        Ok(known_errors(number).into_iter().collect())
    }

    /// `wal_level`, for a database that has no `rule_cdc_check` to say it.
    pub async fn wal_level(&self) -> Result<Vec<Finding>> {
        let level = self.setting("wal_level").await?.map(|setting| setting.value).unwrap_or_default();
        if level == "logical" {
            return Ok(Vec::new());
        }
        let text = format!("wal_level is {level}: the WAL has no changes that a slot can decode");
        let (how, remedy) = self.provider.set("wal_level", "logical", true);
        Ok(vec![Finding::new("wal_level", Severity::Fatal, "wal_level", text).exits(2).remedy(how, remedy)])
    }

    /// `publication_newer`: PostgreSQL decodes changes by the publications as they were when the changes were made. Where one was made
    /// again behind the slot's position, decoding is tried without taking anything from the slot.
    pub async fn publications(&self) -> Result<Vec<Finding>> {
        let names = [format!("{}_inserts", self.config.publication), format!("{}_changes", self.config.publication)];
        let attempted = "ask how old the publications are";
        let query = "SELECT count(*) FROM pg_catalog.pg_publication p, pg_catalog.pg_replication_slots s \
                     WHERE p.pubname::text = ANY ($1) AND s.slot_name::text = $2 AND s.plugin = 'pgoutput' AND NOT s.active \
                       AND s.database = pg_catalog.current_database() AND s.catalog_xmin IS NOT NULL \
                       AND (SELECT count(*) FROM pg_catalog.pg_publication b WHERE b.pubname::text = ANY ($1)) = 2 \
                       AND pg_catalog.age(p.xmin) <= pg_catalog.age(s.catalog_xmin)";
        let row = self.row(attempted, query, &[&&names[..], &self.config.slot]).await?;
        if row.get::<_, i64>(0) == 0 {
            return Ok(Vec::new());
        }
        let attempted = "try to decode what the slot has, for a publication is newer than its position";
        let failed = |error| sql::error(attempted, error);
        self.client.batch_execute("BEGIN READ ONLY; SET LOCAL statement_timeout = '20s'").await.map_err(failed)?;
        let quoted = names.each_ref().map(|name| text::sql_name(name)).join(",");
        let decode = "SELECT count(*) FROM pg_catalog.pg_logical_slot_peek_binary_changes($1::text::name, \
                          pg_catalog.pg_current_wal_lsn(), NULL, 'proto_version', '1', 'publication_names', $2::text)";
        let outcome = self.client.query_one(decode, &[&self.config.slot, &quoted]).await.map_err(failed);
        self.client.batch_execute("ROLLBACK").await.map_err(failed)?;
        match outcome {
            Ok(_) => Ok(Vec::new()),
            Err(error) if postgres::sqlstate(&error) == Some(postgres::UNDEFINED_OBJECT) => {
                let text = format!(
                    "a publication was made again after changes that slot {:?} has still to publish: PostgreSQL cannot decode those",
                    self.config.slot
                );
                let finding = Finding::new(
                    "publication_newer",
                    Severity::Fatal,
                    format!("replication slot {:?}", self.config.slot),
                    text,
                );
                Ok(vec![finding.exits(2).remedy(
                    How::Sql,
                    format!(
                        "SELECT pg_catalog.pg_drop_replication_slot({slot}); \
                         SELECT public.rule_cdc_slot_create({slot}, true, {publication}); \
                         -- what was committed before is not published: walhook backfill publishes rows as they are now",
                        slot = text::sql_literal(&self.config.slot),
                        publication = text::sql_literal(&self.config.publication)
                    ),
                )])
            }
            Err(error) => Err(error),
        }
    }

    /// `slots_left`.
    pub async fn slots(&self) -> Result<Vec<Finding>> {
        let query = "SELECT pg_catalog.current_setting('max_replication_slots')::bigint, count(*), \
                            count(*) FILTER (WHERE slot_name = $1) FROM pg_catalog.pg_replication_slots";
        let row = self.row("count the replication slots", query, &[&self.config.slot]).await?;
        let (most, used, ours): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        if used < most {
            return Ok(Vec::new());
        }
        let severity = if ours == 0 { Severity::Error } else { Severity::Warning };
        let text = format!("all {most} replication slots are in use (max_replication_slots)");
        let finding = Finding::new("slots_left", severity, "max_replication_slots", text);
        Ok(vec![self.with_setting(finding, "max_replication_slots", &(used + 10).to_string(), true).await?])
    }

    /// `senders_left`. Whoever streams already needs no other sender.
    pub async fn senders(&self) -> Result<Vec<Finding>> {
        let query = "SELECT pg_catalog.current_setting('max_wal_senders')::bigint, \
                            (SELECT count(*) FROM pg_catalog.pg_stat_replication), \
                            EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 AND active)";
        let row = self.row("count the WAL senders", query, &[&self.config.slot]).await?;
        let (most, used, streams): (i64, i64, bool) = (row.get(0), row.get(1), row.get(2));
        // One more for what takes the slot over, a replay or a backup.
        let needed = if streams { used + 1 } else { used + 2 };
        if needed <= most {
            return Ok(Vec::new());
        }
        let severity = if streams || needed - 1 <= most { Severity::Warning } else { Severity::Error };
        let text = format!("{used} of {most} WAL senders are in use (max_wal_senders)");
        let mut finding = Finding::new("senders_left", severity, "max_wal_senders", text);
        if severity == Severity::Error {
            finding = finding.exits(1);
        }
        Ok(vec![self.with_setting(finding, "max_wal_senders", &(used + 10).to_string(), true).await?])
    }

    /// `wal_sender_timeout`.
    pub async fn sender_timeout(&self) -> Result<Vec<Finding>> {
        let Some(millis) = self.number("wal_sender_timeout").await? else { return Ok(Vec::new()) };
        let text = match millis {
            0 => "wal_sender_timeout is 0: PostgreSQL keeps the slot for a walhook that is gone until TCP gives up"
                .to_owned(),
            1..5_000 => {
                format!("wal_sender_timeout is {millis} ms: PostgreSQL ends the stream at the first short delay")
            }
            600_001.. => format!(
                "wal_sender_timeout is {} minutes: so long PostgreSQL may keep the slot for a walhook that is gone",
                millis / 60_000
            ),
            _ => return Ok(Vec::new()),
        };
        let finding = Finding::new("wal_sender_timeout", Severity::Warning, "wal_sender_timeout", text);
        Ok(vec![self.with_setting(finding, "wal_sender_timeout", "60s", false).await?])
    }

    /// `idle_replication_slot_timeout`, which PostgreSQL 18 has.
    pub async fn idle_timeout(&self) -> Result<Vec<Finding>> {
        let seconds = self.number("idle_replication_slot_timeout").await?.unwrap_or(0);
        if seconds == 0 {
            return Ok(Vec::new());
        }
        let text = format!(
            "idle_replication_slot_timeout is {}: PostgreSQL invalidates the slot of a walhook that is stopped for longer",
            duration(seconds as f64)
        );
        let name = "idle_replication_slot_timeout";
        let finding = Finding::new(name, Severity::Warning, name, text);
        Ok(vec![self.with_setting(finding, name, "0", false).await?])
    }

    /// `synchronous_standby`, while nobody streams: later `rule_cdc_check` sees it.
    pub async fn synchronous_standby(&self) -> Result<Vec<Finding>> {
        let streams = self
            .row(
                "ask whether somebody streams",
                "SELECT EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 AND active)",
                &[&self.config.slot],
            )
            .await?;
        let names = self.setting("synchronous_standby_names").await?.map(|setting| setting.value).unwrap_or_default();
        let application = self.config.postgres.application_name.as_str();
        if streams.get(0) || !takes(&names, application) {
            return Ok(Vec::new());
        }
        let standbys = self
            .row(
                "list the standbys",
                "SELECT coalesce(string_agg(DISTINCT pg_catalog.quote_ident(r.application_name), ', '), '') \
                 FROM pg_catalog.pg_stat_replication r WHERE r.application_name <> '' AND r.application_name <> $1 \
                   AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')",
                &[&application],
            )
            .await?;
        let standbys: &str = standbys.get(0);
        let value = if standbys.is_empty() { String::new() } else { format!("ANY 1 ({standbys})") };
        let text = format!("synchronous_standby_names = {names:?} would take walhook ({application}) for a standby");
        let (how, remedy) = self.provider.set("synchronous_standby_names", &value, false);
        Ok(vec![
            Finding::new("synchronous_standby", Severity::Error, "synchronous_standby_names", text).remedy(how, remedy),
        ])
    }
}

/// What is known to be wrong with a minor version.
fn known_errors(version: u32) -> Option<Finding> {
    let (major, minor) = (version / 10_000, version % 10_000);
    let lacking = |fixed: &&Fixed| fixed.in_versions.iter().any(|&(of, first)| of == major && minor < first);
    let errors: Vec<&Fixed> = FIXED.iter().filter(lacking).collect();
    let newest = errors.last()?.in_versions.iter().find(|(of, _)| *of == major)?.1;
    let texts: Vec<&str> = errors.iter().map(|fixed| fixed.error).collect();
    Some(
        Finding::new(
            "postgres_minor_version",
            Severity::Warning,
            format!("PostgreSQL {major}.{minor}"),
            format!("PostgreSQL {major}.{minor} has known errors with slots: {}", texts.join("; ")),
        )
        .remedy(
            How::Advice,
            format!("Install PostgreSQL {major}.{newest} or a newer {major}, and restart the server."),
        ),
    )
}

/// Whether `synchronous_standby_names` takes a standby of this name.
fn takes(names: &str, application: &str) -> bool {
    let list = names.find('(').map_or(names, |open| &names[open + 1..]).trim_end().trim_end_matches(')');
    list.split(',').map(str::trim).any(|name| {
        let name = name
            .strip_prefix('"')
            .and_then(|name| name.strip_suffix('"'))
            .map_or_else(|| name.to_owned(), |name| name.replace("\"\"", "\""));
        name == "*" || !name.is_empty() && name.eq_ignore_ascii_case(application)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minor_version_with_a_known_error_is_named_with_the_one_that_has_none() {
        for good in [140_019, 150_014, 160_010, 170_006, 180_000, 190_000] {
            assert!(known_errors(good).is_none(), "{good}");
        }
        let text = |version| known_errors(version).map(|finding| (finding.text, finding.remedy.unwrap_or_default()));
        let (oldest, remedy) = text(170_000).unwrap_or_default();
        assert!(oldest.contains("go backwards") && oldest.contains("ALTER PUBLICATION"), "{oldest}");
        assert!(remedy.contains("17.6"), "{remedy}");
        let (newer, remedy) = text(150_013).unwrap_or_default();
        assert!(!newer.contains("ALTER PUBLICATION") && remedy.contains("15.14"), "{newer} {remedy}");
    }

    #[test]
    fn the_names_of_synchronous_standbys_are_read_as_postgresql_reads_them() {
        for (names, taken) in [
            ("", false),
            ("*", true),
            ("s1, walhook", true),
            ("FIRST 1 (s1, \"walhook\")", true),
            ("ANY 2 (s1, s2)", false),
            ("2 (WALHOOK, s2)", true),
            ("walhook2", false),
        ] {
            assert_eq!(takes(names, "walhook"), taken, "{names}");
        }
    }
}
