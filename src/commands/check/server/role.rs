//! The role for walhook, and whose walhook's objects are: what the role may do, who owns them, whether somebody replaced them.
//!
//! In: the catalogs, and the files that setup applies. Out: findings. Always holds: the rights that a role needs are those that the
//! files grant, so that there is one list.

use tokio_postgres::Row;

use super::{Finding, How, Server, Severity};
use crate::{commands::setup::MIGRATIONS, error::Result, postgres::sql, text};

/// Functions that other migrations of the rule engine define as well, so that theirs may take the place of walhook's.
const OURS_BY_NAME: &[&str] = &[
    "rule_webhook_publish_nats",
    "rule_webhook_call_unified",
    "rule_nats_init",
    "rule_nats_health_check",
    "rule_nats_test_connection",
];

impl Server<'_> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
