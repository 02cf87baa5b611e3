//! The PostgreSQL server: its settings, its role for walhook, slots, senders, and how far the slot may lag.
//!
//! In: a connection. Out: findings. Each check is one function with a query of its own, so that what a role may not see hides nothing
//! else. Reads catalogs and statistics only.

use std::path::Path;

use serde_json::Value;
use tokio_postgres::{Client, Row, types::ToSql};

use super::{
    finding::{Finding, How, Severity},
    provider::Provider,
};
use crate::{
    commands::setup::MIGRATIONS,
    config::Config,
    error::{Error, Kind, Result},
    postgres::{self, Settings, replication::SystemIdentity, sql},
    text,
    wal::lsn::Lsn,
};

/// The lag that an outage over a night needs.
const HEADROOM_WARNING_HOURS: f64 = 24.0;
/// Below this somebody has to act now.
const HEADROOM_ERROR_HOURS: f64 = 1.0;
/// A rate of WAL below this is no rate to reckon with: bytes a second.
const QUIET: f64 = 1.0;
/// What a limit is at least that this check proposes.
const LIMIT_LEAST: f64 = 1e9;

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

    /// `role_replication`.
    pub async fn role(&self) -> Result<Vec<Finding>> {
        let query = "SELECT r.rolname::text, r.rolsuper OR r.rolreplication OR EXISTS ( \
                         SELECT FROM pg_catalog.pg_roles p WHERE p.rolname = 'rds_replication' \
                           AND pg_catalog.pg_has_role(r.oid, p.oid, 'MEMBER')) \
                     FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";
        let row = self.row("read the role's attributes", query, &[]).await?;
        if row.get(1) {
            return Ok(Vec::new());
        }
        let role: &str = row.get(0);
        let (how, remedy) = self.provider.grant_replication(role);
        Ok(vec![
            Finding::new(
                "role_replication",
                Severity::Fatal,
                format!("role {role:?}"),
                format!("role {role:?} may not use replication"),
            )
            .exits(4)
            .remedy(how, remedy),
        ])
    }

    /// `privileges`: what the migrations grant to walhook_streamer, this role must have.
    pub async fn privileges(&self) -> Result<Vec<Finding>> {
        let rights = streamer_rights();
        let (tables, privileges): (Vec<&str>, Vec<&str>) = rights.iter().copied().unzip();
        let query = "SELECT current_user::text, pg_catalog.format('%s.%I', c.relnamespace::regnamespace, n.relname), \
                pg_catalog.string_agg(n.privilege, ', ' ORDER BY n.privilege) \
            FROM unnest($1::text[], $2::text[]) AS n (relname, privilege) \
            JOIN pg_catalog.pg_class c ON c.relname = n.relname AND c.relkind <> 'i' \
             AND c.relnamespace IN ('public'::regnamespace, pg_catalog.to_regnamespace('walhook')) \
            WHERE NOT pg_catalog.has_table_privilege(c.oid, n.privilege) GROUP BY c.oid, n.relname \
            UNION ALL \
            SELECT current_user::text, 'SCHEMA walhook', 'USAGE' FROM pg_catalog.pg_namespace s \
            WHERE s.nspname = 'walhook' AND NOT pg_catalog.has_schema_privilege(s.oid, 'USAGE') ORDER BY 2";
        let rows = self.client.query(query, &[&tables, &privileges]).await;
        let lacking = rows.map_err(|error| sql::error("read the role's privileges on tables", error))?;
        let functions = self
            .client
            .query(
                "SELECT p.oid::regprocedure::text FROM pg_catalog.pg_proc p, pg_catalog.aclexplode(p.proacl) a \
                 JOIN pg_catalog.pg_roles r ON r.oid = a.grantee AND r.rolname = 'walhook_streamer' \
                 WHERE p.pronamespace IN ('public'::regnamespace, pg_catalog.to_regnamespace('walhook')) \
                   AND NOT pg_catalog.has_function_privilege(p.oid, 'EXECUTE') ORDER BY 1",
                &[],
            )
            .await
            .map_err(|error| sql::error("read the role's privileges on functions", error))?;
        if lacking.is_empty() && functions.is_empty() {
            return Ok(Vec::new());
        }
        let who = self.row("read the role", "SELECT current_user::text", &[]).await?;
        let role: &str = who.get(0);
        let what: Vec<String> = lacking
            .iter()
            .map(|row| format!("{} on {}", row.get::<_, &str>(2), row.get::<_, &str>(1)))
            .chain(functions.iter().map(|row| format!("EXECUTE on {}", row.get::<_, &str>(0))))
            .collect();
        let shown = what.iter().take(3).cloned().collect::<Vec<_>>().join("; ");
        let more = if what.len() > 3 { format!("; and {} more", what.len() - 3) } else { String::new() };
        let remedy = if role == "walhook_streamer" {
            let grants = lacking.iter().map(|row| {
                format!("GRANT {} ON {} TO walhook_streamer;", row.get::<_, &str>(2), row.get::<_, &str>(1))
            });
            grants.collect::<Vec<_>>().join(" ")
        } else {
            format!("GRANT walhook_streamer TO {};", text::sql_name(role))
        };
        Ok(vec![
            Finding::new(
                "privileges",
                Severity::Fatal,
                format!("role {role:?}"),
                format!("role {role:?} lacks {} rights: {shown}{more}", what.len()),
            )
            .exits(4)
            .remedy(How::Sql, remedy),
        ])
    }

    /// `owners`.
    pub async fn owners(&self) -> Result<Vec<Finding>> {
        let query = "SELECT o.owner::regrole::text, min(o.name), count(*), \
                            pg_catalog.string_agg(pg_catalog.format('ALTER %s %s OWNER TO %s;', o.kind, o.name, m.owner::regrole), ' ' \
                                ORDER BY o.name) \
            FROM ( \
                SELECT c.relowner AS owner, 'TABLE' AS kind, c.oid::regclass::text AS name FROM pg_catalog.pg_class c \
                WHERE c.relnamespace IN ('public'::regnamespace, pg_catalog.to_regnamespace('walhook')) AND c.relkind IN ('r', 'p') AND c.relname ~ '^rule_(webhook|nats|cdc)' \
                UNION ALL \
                SELECT p.proowner, 'ROUTINE', p.oid::regprocedure::text FROM pg_catalog.pg_proc p \
                WHERE p.pronamespace IN ('public'::regnamespace, pg_catalog.to_regnamespace('walhook')) \
                  AND pg_catalog.obj_description(p.oid, 'pg_proc') LIKE 'walhook:%') o, \
                (SELECT c.relowner AS owner FROM pg_catalog.pg_class c \
                 WHERE c.oid = pg_catalog.to_regclass('public.rule_cdc_migrations')) m \
            WHERE o.owner <> m.owner GROUP BY o.owner ORDER BY 1";
        let rows = self
            .client
            .query(query, &[])
            .await
            .map_err(|error| sql::error("read who owns walhook's objects", error))?;
        let finding = |row: &Row| {
            let (owner, first, count, remedy): (&str, &str, i64, &str) =
                (row.get(0), row.get(1), row.get(2), row.get(3));
            let text = match count {
                1 => format!("{first} belongs to role {owner}, and walhook's schema to another"),
                _ => format!("{first} and {} more belong to role {owner}, and walhook's schema to another", count - 1),
            };
            Finding::new("owners", Severity::Warning, format!("role {owner}"), text).remedy(How::Sql, remedy)
        };
        Ok(rows.iter().map(finding).collect())
    }

    /// `functions_replaced`: a function of walhook's whose text is in no migration of this walhook.
    pub async fn functions(&self) -> Result<Vec<Finding>> {
        let query = "SELECT p.oid::regprocedure::text, p.proname::text, p.prosrc, \
                            coalesce(pg_catalog.obj_description(p.oid, 'pg_proc'), '') LIKE 'walhook:%' \
            FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
            WHERE p.proname ~ '^rule_(webhook|nats|cdc)' AND l.lanname IN ('sql', 'plpgsql') \
              AND (p.pronamespace = pg_catalog.to_regnamespace('walhook') \
                   OR p.pronamespace = 'public'::regnamespace \
                  AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc i \
                                  WHERE i.pronamespace = pg_catalog.to_regnamespace('walhook') AND i.proname = p.proname)) \
            ORDER BY 1";
        let rows =
            self.client.query(query, &[]).await.map_err(|error| sql::error("read walhook's functions", error))?;
        let known: String = MIGRATIONS.iter().map(|(_, text)| *text).collect();
        let is_ours = |row: &&Row| known.contains(row.get::<_, &str>(2));
        let have_ours: Vec<&str> = rows.iter().filter(is_ours).map(|row| row.get(1)).collect();
        // One that lost the comment was dropped and made anew by somebody else.
        let is_replaced = |row: &&Row| {
            let name: &str = row.get(1);
            let is_marked: bool = row.get(3);
            !known.contains(row.get::<_, &str>(2))
                && (is_marked || OURS_BY_NAME.contains(&name) && !have_ours.contains(&name))
        };
        let replaced: Vec<&str> = rows.iter().filter(is_replaced).map(|row| row.get(0)).collect();
        let [first, rest @ ..] = &replaced[..] else { return Ok(Vec::new()) };
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        Ok(vec![
            Finding::new(
                "functions_replaced",
                Severity::Error,
                format!("function {first}{more}"),
                format!("{first}{more} has another text than walhook gave it: somebody has applied other migrations after walhook setup"),
            )
            .remedy(How::Shell, "walhook setup"),
        ])
    }

    /// `slot_wal_limit`, `slot_wal_status`, `slot_headroom`: `rate` in bytes of WAL a second, `free` bytes on the disk, where known.
    pub async fn headroom(&self, rate: Option<f64>, free: Option<f64>) -> Result<Vec<Finding>> {
        let query = "SELECT (SELECT setting::float8 FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'), \
                            (SELECT pg_catalog.to_jsonb(s)::text FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1), \
                            (SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), s.restart_lsn)::float8 \
                             FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1)";
        let row = self.row("read how much WAL the slot keeps", query, &[&self.config.slot]).await?;
        let limit =
            row.get::<_, Option<f64>>(0).filter(|limit| *limit >= 0.0).map(|megabytes| megabytes * 1024.0 * 1024.0);
        let slot: Value =
            row.get::<_, Option<&str>>(1).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let kept = row.get::<_, Option<f64>>(2).unwrap_or(0.0).max(0.0);
        let subject = format!("replication slot {:?}", self.config.slot);
        let mut findings = Vec::new();
        if limit.is_none() {
            // Half of what is free, or a day of WAL.
            let day = rate.unwrap_or(0.0) * 86_400.0;
            let wanted = free.map_or(day.max(10.0 * LIMIT_LEAST), |free| (free + kept) / 2.0).max(LIMIT_LEAST);
            let value = format!("{}MB", (wanted / 1024.0 / 1024.0).round());
            let finding = Finding::new(
                "slot_wal_limit",
                Severity::Warning,
                "max_slot_wal_keep_size",
                "max_slot_wal_keep_size is unlimited: a slot that nobody reads keeps WAL until the disk is full",
            );
            findings.push(self.with_setting(finding, "max_slot_wal_keep_size", &value, false).await?);
        }
        if let Some(status @ ("unreserved" | "extended")) = slot["wal_status"].as_str() {
            let severity = if status == "unreserved" { Severity::Error } else { Severity::Note };
            let text = match status {
                "unreserved" => {
                    format!("{subject} keeps {} of WAL, more than max_slot_wal_keep_size allows", bytes(kept))
                }
                _ => format!("{subject} keeps {} of WAL, more than max_wal_size", bytes(kept)),
            };
            let finding = Finding::new("slot_wal_status", severity, subject.as_str(), text);
            findings.push(match status {
                "unreserved" => {
                    let wanted = format!("{}MB", (kept * 2.0 / 1024.0 / 1024.0).round().max(64.0));
                    self.with_setting(finding, "max_slot_wal_keep_size", &wanted, false).await?
                }
                _ => finding,
            });
        }
        let room = match (limit, free) {
            (Some(limit), Some(free)) => Some((limit - kept).min(free)),
            (Some(limit), None) => Some(limit - kept),
            (None, free) => free,
        };
        match (room, rate) {
            (Some(room), Some(rate)) => {
                findings.push(headroom(&subject, room.max(0.0), rate, limit.is_some(), self.provider))
            }
            (None, _) => findings.push(Finding::unknown(
                "slot_headroom",
                "max_slot_wal_keep_size is unlimited, and the free space of the server's disk cannot be seen from here",
                How::Shell,
                "walhook check --wal-disk-free 100GB",
            )),
            (_, None) => findings.push(Finding::unknown(
                "slot_headroom",
                "the rate of WAL could not be measured",
                How::Advice,
                "Grant the role EXECUTE on pg_current_wal_lsn(), which every role has by default.",
            )),
        }
        Ok(findings)
    }

    /// The position in the WAL in bytes, and the average rate since the statistics were reset, in bytes a second.
    pub async fn wal(&self) -> Result<(f64, Option<f64>)> {
        let query = "SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), '0/0')::float8";
        let row = self.row("read the position in the WAL", query, &[]).await?;
        let average = "SELECT w.wal_bytes::float8 / greatest(extract(epoch FROM clock_timestamp() - w.stats_reset)::float8, 1) \
                       FROM pg_catalog.pg_stat_wal w WHERE w.stats_reset < clock_timestamp() - interval '10 minutes'";
        let average = self.client.query_opt(average, &[]).await.ok().flatten();
        Ok((row.get(0), average.and_then(|row| row.get(0))))
    }

    /// The free space of the disk with the WAL, in bytes, where the server runs on this machine and its folder can be seen.
    pub async fn free_disk(&self) -> Option<f64> {
        let query = "SELECT pg_catalog.current_setting('data_directory'), pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn())";
        let row = self.client.query_opt(query, &[]).await.ok()??;
        let folder = Path::new(row.get::<_, &str>(0)).join("pg_wal");
        // Another machine, or a container, may have a folder of the same name: only the present segment shows that it is this one.
        folder.join(row.get::<_, &str>(1)).metadata().ok()?;
        let disk = rustix::fs::statvfs(&folder).ok()?;
        Some(disk.f_bavail as f64 * disk.f_frsize as f64)
    }
}

/// Functions that other migrations of the rule engine define as well, so that theirs may take the place of walhook's.
const OURS_BY_NAME: &[&str] = &[
    "rule_webhook_publish_nats",
    "rule_webhook_call_unified",
    "rule_nats_init",
    "rule_nats_health_check",
    "rule_nats_test_connection",
];

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

/// The finding about how long the slot may lag.
fn headroom(subject: &str, room: f64, rate: f64, has_limit: bool, provider: Provider) -> Finding {
    let end = if has_limit { "PostgreSQL removes WAL that it needs" } else { "the disk is full" };
    let hours = if rate < QUIET { f64::INFINITY } else { room / rate / 3600.0 };
    let severity = match hours {
        hours if hours < HEADROOM_ERROR_HOURS => Severity::Error,
        hours if hours < HEADROOM_WARNING_HOURS => Severity::Warning,
        _ => Severity::Note,
    };
    let mut text = match hours.is_finite() {
        true => format!(
            "at the present rate of {} of WAL an hour the slot may lag {} before {end}; there is room for {}",
            bytes(rate * 3600.0),
            duration(hours * 3600.0),
            bytes(room)
        ),
        false => format!("hardly any WAL is written now; there is room for {} before {end}", bytes(room)),
    };
    if let Some(advice) = provider.slot_advice() {
        text = format!("{text}. {advice}");
    }
    let finding = Finding::new("slot_headroom", severity, subject, text);
    if severity == Severity::Note {
        return finding;
    }
    let wanted = format!("{}MB", (rate * 48.0 * 3600.0 / 1024.0 / 1024.0).ceil());
    match has_limit {
        true => {
            let (how, remedy) = provider.set("max_slot_wal_keep_size", &wanted, false);
            finding.remedy(how, remedy)
        }
        false => finding
            .remedy(How::Advice, format!("Give the disk with the WAL room for {wanted} more, or write less WAL.")),
    }
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

/// The rights on tables that the migrations grant to walhook_streamer: table and privilege. Read from them, so that there is one list.
fn streamer_rights() -> Vec<(&'static str, &'static str)> {
    let mut rights = Vec::new();
    for (_, migration) in MIGRATIONS {
        for grant in migration.split("('walhook_streamer', '").skip(1) {
            // Grants of functions have names there.
            let Some((privileges, rest)) = grant.split_once('\'') else { continue };
            let Some((tables, _)) = rest.strip_prefix(", ARRAY[").and_then(|rest| rest.split_once(']')) else {
                continue;
            };
            for table in tables.split('\'').skip(1).step_by(2) {
                rights.extend(privileges.split(", ").map(|privilege| (table, privilege)));
            }
        }
    }
    rights
}

/// What a replication connection says of the server.
pub struct Replicated {
    /// Which PostgreSQL it is.
    pub system: SystemIdentity,
    /// Where earlier timelines were left.
    pub left: Vec<(u32, Lsn)>,
}

/// Opens a connection for replication, as `walhook run` does; what it says, or what its failure means.
pub async fn replication(config: &Config, provider: Provider) -> (Option<Replicated>, Vec<Finding>) {
    let attempt = async {
        let mut connection = postgres::replication::Connection::connect(&config.postgres).await?;
        let system = connection.identify_system().await?;
        let left = connection.timelines_left(system.timeline).await?;
        Ok(Replicated { system, left })
    };
    match tokio::time::timeout(std::time::Duration::from_secs(15), attempt).await {
        Ok(Ok(replicated)) => (Some(replicated), Vec::new()),
        Ok(Err(error)) => (None, not_replicated(config, provider, &error)),
        Err(_) => {
            let error = Error::unavailable("open a replication connection: no answer within 15 s");
            (None, not_replicated(config, provider, &error))
        }
    }
}

fn not_replicated(config: &Config, provider: Provider, error: &Error) -> Vec<Finding> {
    if is_refused_by_pooler(error) {
        let text = format!("a connection pooler is in between, which does not pass replication on: {}", error.reason());
        return vec![
            Finding::new("pooler", Severity::Fatal, config.postgres.target(), text)
                .exits(2)
                .remedy(How::Advice, provider.direct_connection()),
        ];
    }
    vec![Finding::of_error("replication_connection", config.postgres.target(), error)]
}

/// By its behaviour: an ordinary login has succeeded, and one with the parameter `replication` is answered with a violation of the
/// protocol, or with no code of PostgreSQL's at all.
fn is_refused_by_pooler(error: &Error) -> bool {
    matches!(error.kind(), Kind::Config | Kind::Protocol)
        && postgres::sqlstate(error).is_none_or(|code| code == postgres::PROTOCOL_VIOLATION)
}

/// A pooler that does pass replication on, or lets SQL through while something else refuses: the process that serves us is another one
/// from statement to statement, or a setting of the session is gone.
pub async fn pooled_sql(settings: &Settings, client: &Client, provider: Provider) -> Result<Vec<Finding>> {
    let failed = |error| sql::error("ask which process serves this connection", error);
    let mut processes = Vec::new();
    for _ in 0..3 {
        processes
            .push(client.query_one("SELECT pg_catalog.pg_backend_pid()", &[]).await.map_err(failed)?.get::<_, i32>(0));
    }
    processes.dedup();
    if processes.len() == 1 {
        return Ok(Vec::new());
    }
    Ok(vec![
        Finding::new(
            "pooler",
            Severity::Fatal,
            settings.target(),
            "a connection pooler in transaction mode is in between: one connection is served by several processes of PostgreSQL",
        )
        .exits(2)
        .remedy(How::Advice, provider.direct_connection()),
    ])
}

/// `12 hours`, `3 days`: what a person says.
pub fn duration(seconds: f64) -> String {
    let (number, unit) = match seconds {
        s if s < 120.0 => (s, "second"),
        s if s < 7_200.0 => (s / 60.0, "minute"),
        s if s < 172_800.0 => (s / 3600.0, "hour"),
        s if s < 365.0 * 86_400.0 => (s / 86_400.0, "day"),
        _ => return "more than a year".to_owned(),
    };
    let number = number.round();
    format!("{number} {unit}{}", if number == 1.0 { "" } else { "s" })
}

/// `1.5 GB`.
pub fn bytes(count: f64) -> String {
    let mut count = count;
    for unit in ["bytes", "kB", "MB", "GB"] {
        if count < 1024.0 {
            let precision = usize::from(unit != "bytes" && count < 10.0);
            return format!("{count:.precision$} {unit}");
        }
        count /= 1024.0;
    }
    format!("{count:.1} TB")
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

    #[test]
    fn the_rights_of_the_streamer_are_found_in_the_migrations() {
        let rights = streamer_rights();
        for right in [
            ("rule_webhooks", "SELECT"),
            ("rule_nats_checkpoints", "UPDATE"),
            ("rule_cdc_status", "DELETE"),
            ("rule_cdc_rule_versions", "INSERT"),
            ("rule_cdc_backfill_jobs", "SELECT"),
        ] {
            assert!(rights.contains(&right), "{right:?} in {rights:?}");
        }
        assert!(rights.iter().all(|(table, privilege)| {
            table.starts_with("rule_") && privilege.bytes().all(|byte| byte.is_ascii_uppercase())
        }));
    }

    #[test]
    fn the_lag_is_shown_in_hours_and_is_more_severe_the_fewer_are_left() {
        let found = |room, rate| headroom("slot", room, rate, true, Provider::Own);
        assert_eq!(found(1e12, 1e6).severity, Severity::Note);
        assert_eq!(found(1e10, 1e6).severity, Severity::Warning);
        assert_eq!(found(1e9, 1e6).severity, Severity::Error);
        assert!(found(1e10, 1e6).text.contains("may lag 3 hours") || found(1e10, 1e6).text.contains("hours before"));
        assert!(found(1e10, 0.0).text.contains("Hardly any WAL") && found(1e10, 0.0).severity == Severity::Note);
        assert_eq!((duration(3600.0 * 30.0), bytes(1536.0)), ("30 hours".to_owned(), "1.5 kB".to_owned()));
    }
}
