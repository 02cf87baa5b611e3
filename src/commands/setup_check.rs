//! What is wrong with the set-up in PostgreSQL: the slot, the publications, every link down to each partition.
//!
//! `rule_cdc_check` (sql/014_check.sql) looks; here its findings become an error that a start ends with, lines of the log that
//! are written once, and a part of `walhook status`.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use serde::Serialize;
use tokio_postgres::Client;

use super::check::codes;
use crate::{
    config::Config,
    error::{Error, Kind, Result},
    postgres::{self, sql},
};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing is missing.
    Note,
    /// Less happens than it may seem.
    Warning,
    /// Something is not published that should be.
    Error,
    /// `walhook run` does not start.
    Fatal,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// Its kind; the same in later versions.
    pub name: String,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub object: String,
    /// What is wrong, for a person.
    pub problem: String,
    /// SQL that sets it right; `None` where the choice is the user's.
    pub remedy: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about = if self.problem.contains(&self.object) { String::new() } else { format!("{}: ", self.object) };
        write!(f, "{about}{}", self.problem)?;
        if let Some(remedy) = &self.remedy {
            write!(f, ". Hint: {remedy}")?;
        }
        Ok(())
    }
}

impl Finding {
    /// The error of a command that cannot go on.
    fn into_error(self, attempted: &str) -> Error {
        let kind = match self.name.as_str() {
            "slot_lost" => Kind::Untrusted,
            "row_security" => Kind::Permission,
            _ => Kind::Config,
        };
        let error = Error::new(kind, format!("{attempted}: {}", self.problem))
            .named(codes::of(&self.name).map(|code| code.code));
        let remedy = self.remedy.unwrap_or_default();
        match self.name.as_str() {
            "slot_missing" | "publication_missing" => error.hint(format!("run `walhook setup`, or: {remedy}")),
            _ => error.hint(remedy),
        }
    }
}

/// What is wrong now.
///
/// # Errors
/// PostgreSQL cannot be asked, or has no `rule_cdc_check` (yet).
pub async fn read(client: &Client, config: &Config) -> Result<Vec<Finding>> {
    read_parts(client, config, true).await
}

/// The findings that [`refuse`] looks at: those about links are left out, for there may be thousands of links, and none of them
/// keeps `walhook run` from starting.
///
/// # Errors
/// As [`read`].
pub async fn read_for_start(client: &Client, config: &Config) -> Result<Vec<Finding>> {
    read_parts(client, config, false).await
}

async fn read_parts(client: &Client, config: &Config, links: bool) -> Result<Vec<Finding>> {
    let attempted = format!("check what walhook needs in PostgreSQL at {}", config.postgres.target());
    let [object, problem, remedy] = ["object", "problem", "remedy"].map(super::bytes_of);
    let check = format!("SELECT name, severity, {object}, {problem}, {remedy} FROM public.rule_cdc_check($1, $2, $3)");
    let rows = client.query(&check, &[&config.slot, &config.publication, &links]).await;
    let rows = rows.map_err(|error| {
        let error = sql::error(attempted, error);
        match postgres::sqlstate(&error) {
            Some("42501") => error.hint(
                "log in as walhook_streamer, or give the role what walhook needs: ALTER ROLE … REPLICATION; \
                 GRANT walhook_streamer TO …",
            ),
            _ => error,
        }
    })?;
    let finding = |row: &tokio_postgres::Row| Finding {
        name: row.get(0),
        severity: match row.get(1) {
            "fatal" => Severity::Fatal,
            "error" => Severity::Error,
            "warning" => Severity::Warning,
            _ => Severity::Note,
        },
        object: super::text_of(row, 2).unwrap_or_default(),
        problem: super::text_of(row, 3).unwrap_or_default(),
        remedy: super::text_of(row, 4),
    };
    Ok(rows.iter().map(finding).collect())
}

/// The error of those that nothing may start with.
///
/// # Errors
/// There is one; the first decides the exit code.
pub fn refuse(config: &Config, findings: &[Finding]) -> Result<()> {
    let mut fatal = findings.iter().filter(|finding| finding.severity == Severity::Fatal);
    let Some(first) = fatal.next() else { return Ok(()) };
    let error = first.clone().into_error(&format!("stream from slot {:?}", config.slot));
    match fatal.count() {
        0 => Err(error),
        more => Err(error.context(format!("{} problems, which `walhook status` lists; the first", more + 1))),
    }
}

/// What PostgreSQL's refusal of a slot or a publication means by the state in which they are. Another error is left as it is.
pub async fn explain(config: &Config, error: Error) -> Error {
    let is_about_state = matches!(
        postgres::sqlstate(&error),
        Some(postgres::OBJECT_NOT_IN_PREREQUISITE_STATE | postgres::UNDEFINED_OBJECT | postgres::UNDEFINED_FILE)
    );
    if !is_about_state {
        return error;
    }
    let asked = async {
        let client = sql::connect(&config.postgres).await?;
        refuse(config, &read_for_start(&client, config).await?)
    };
    match asked.await {
        Err(found) if found.kind() != Kind::Unavailable => found.caused_by(error.to_string()),
        _ => error,
    }
}

/// What the log has of findings, so that each is written once, over all sessions of a run.
#[derive(Debug, Clone, Default)]
pub struct Reported(Arc<Mutex<BTreeSet<Finding>>>);

impl Reported {
    /// Writes what is new, and what is gone.
    pub fn report(&self, findings: Vec<Finding>) {
        let mut reported = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let findings: BTreeSet<Finding> = findings.into_iter().collect();
        for finding in findings.difference(&reported) {
            match finding.severity {
                Severity::Fatal | Severity::Error => tracing::error!(finding = finding.name, "set-up: {finding}"),
                Severity::Warning => tracing::warn!(finding = finding.name, "set-up: {finding}"),
                Severity::Note => tracing::info!(finding = finding.name, "set-up: {finding}"),
            }
        }
        for finding in reported.difference(&findings) {
            tracing::info!(finding = finding.name, "set-up: resolved: {}: {}", finding.object, finding.problem);
        }
        *reported = findings;
    }
}
