//! Who runs the server, and how a setting or a right is given there.
//!
//! In: the names of roles and of settings, which providers add. Out: the provider, and remedies in its own way: where ALTER SYSTEM and
//! the attribute REPLICATION are not for its users.

use super::finding::How;
use crate::text;

/// Who runs the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// Somebody with a superuser.
    Own,
    /// Amazon RDS and Aurora.
    Rds,
    /// Google Cloud SQL and AlloyDB.
    CloudSql,
    /// Azure Database for PostgreSQL.
    Azure,
    /// Supabase.
    Supabase,
    /// Neon.
    Neon,
}

use Provider::{Azure, CloudSql, Neon, Own, Rds, Supabase};

/// A role that only this provider's servers have, and the beginning of its settings' names.
const MARKS: [(Provider, &str, &str); 5] = [
    (Rds, "rds_superuser", "rds."),
    (CloudSql, "cloudsqlsuperuser", "cloudsql."),
    (Azure, "azure_pg_admin", "azure."),
    (Supabase, "supabase_admin", "supautils."),
    (Neon, "neon_superuser", "neon."),
];

impl Provider {
    /// By what the server has. Names of settings that a role may not see do not count, so roles come first.
    pub fn detect<'a>(
        roles: impl Iterator<Item = &'a str> + Clone,
        settings: impl Iterator<Item = &'a str> + Clone,
    ) -> Provider {
        let by_role = MARKS.iter().find(|(_, role, _)| roles.clone().any(|there| there == *role));
        let by_setting = || MARKS.iter().find(|(.., prefix)| settings.clone().any(|there| there.starts_with(prefix)));
        by_role.or_else(by_setting).map_or(Own, |(provider, ..)| *provider)
    }

    /// How `name` is set to `value`, which needs a restart where `restarts`.
    pub fn set(self, name: &str, value: &str, restarts: bool) -> (How, String) {
        match self {
            Own => {
                let then = if restarts { " -- then restart PostgreSQL" } else { " SELECT pg_reload_conf();" };
                (How::Sql, format!("ALTER SYSTEM SET {name} = {};{then}", text::sql_literal(value)))
            }
            Rds => {
                let (name, value) = if name == "wal_level" { ("rds.logical_replication", "1") } else { (name, value) };
                let apply = if restarts { "pending-reboot" } else { "immediate" };
                (
                    How::Shell,
                    format!(
                        "aws rds modify-db-parameter-group --db-parameter-group-name YOUR_GROUP --parameters \
                         \"ParameterName={name},ParameterValue={value},ApplyMethod={apply}\"{}",
                        if restarts {
                            " && aws rds reboot-db-instance --db-instance-identifier YOUR_INSTANCE"
                        } else {
                            ""
                        }
                    ),
                )
            }
            CloudSql => {
                let (name, value) =
                    if name == "wal_level" { ("cloudsql.logical_decoding", "on") } else { (name, value) };
                // The command replaces the list of flags.
                (
                    How::Shell,
                    format!(
                        "gcloud sql instances patch YOUR_INSTANCE --database-flags=YOUR_OTHER_FLAGS,{name}={value}"
                    ),
                )
            }
            Azure => (
                How::Shell,
                format!(
                    "az postgres flexible-server parameter set --resource-group YOUR_GROUP --server-name YOUR_SERVER --name {name} \
                     --value {value}"
                ),
            ),
            Supabase => (
                How::Shell,
                format!(
                    "supabase --experimental --project-ref YOUR_PROJECT postgres-config update --config {name}={value}"
                ),
            ),
            Neon if name == "wal_level" => {
                (How::Advice, "Enable logical replication in the settings of the project in Neon's console.".to_owned())
            }
            Neon => (How::Advice, format!("Neon sets {name} itself: ask its support for {value}.")),
        }
    }

    /// How a role gets the right to replicate.
    pub fn grant_replication(self, role: &str) -> (How, String) {
        let role = text::sql_name(role);
        match self {
            Rds => (How::Sql, format!("GRANT rds_replication TO {role};")),
            Own | CloudSql | Azure | Supabase | Neon => (How::Sql, format!("ALTER ROLE {role} WITH REPLICATION;")),
        }
    }

    /// What to know of a slot there.
    pub fn slot_advice(self) -> Option<&'static str> {
        (self == Neon).then_some("Neon removes a slot that nobody has used for about 40 hours.")
    }

    /// How to get past its pooler.
    pub fn direct_connection(self) -> &'static str {
        match self {
            Neon => "Use the direct connection string of the console, whose host has no -pooler in its name.",
            Supabase => "Use the direct connection string of the dashboard (db.YOUR_PROJECT.supabase.co, port 5432).",
            Rds => "Connect to the endpoint of the instance or cluster, and not to the one of RDS Proxy.",
            Azure => "Connect to port 5432, and not to PgBouncer on port 6432.",
            Own | CloudSql => "Connect to PostgreSQL itself, and not to the pooler in front of it.",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_known_by_its_roles_or_its_settings() {
        let detect = |roles: &[&'static str], settings: &[&'static str]| {
            Provider::detect(roles.iter().copied(), settings.iter().copied())
        };
        assert_eq!(detect(&["postgres", "pg_monitor"], &["wal_level"]), Own);
        assert_eq!(detect(&["rdsadmin", "rds_superuser"], &[]), Rds);
        assert_eq!(detect(&["cloudsqlsuperuser"], &[]), CloudSql);
        assert_eq!(detect(&["azure_pg_admin"], &[]), Azure);
        assert_eq!(detect(&["supabase_admin"], &[]), Supabase);
        assert_eq!(detect(&["neon_superuser"], &[]), Neon);
        assert_eq!(detect(&["postgres"], &["neon.timeline_id"]), Neon);
    }

    #[test]
    fn each_provider_has_its_own_way_for_settings() {
        let how = |provider: Provider| provider.set("wal_level", "logical", true).1;
        assert_eq!(how(Own), "ALTER SYSTEM SET wal_level = 'logical'; -- then restart PostgreSQL");
        assert!(how(Rds).contains("ParameterName=rds.logical_replication,ParameterValue=1,ApplyMethod=pending-reboot"));
        assert!(how(CloudSql).contains("cloudsql.logical_decoding=on"));
        assert!(how(Azure).contains("--name wal_level --value logical"));
        assert!(how(Supabase).contains("--config wal_level=logical"));
        assert!(how(Neon).contains("console"));
        for provider in [Own, Rds, CloudSql, Azure, Supabase, Neon] {
            let (_, remedy) = provider.set("max_slot_wal_keep_size", "10GB", false);
            assert!(remedy.contains("10GB") && !remedy.contains("restart"), "{remedy}");
        }
    }
}
