//! Which database this is, checked by every verb before it touches anything in NATS.
//!
//! In: a connection to the database. Out: its identity, or an error that says what it is a copy of and what to do. Three checks:
//!
//! 1. [`read`]: the identity was made on this PostgreSQL and for this database. A restored dump, a database made from a
//!    template, and pg_upgrade differ.
//! 2. The metadata of streams, buckets and consumers ([`crate::nats::owner`]): they belong to this database.
//! 3. [`Runs::check`]: a base backup, or a database that was set back, has the same identity. Each run counts on in the database
//!    first and in the bucket afterwards, so a bucket that shows more than the database knows belongs to another copy.
//!
//! And the fence: [`take_over`] ends the connections of earlier runs, which [`hold`] marks, so that a run which was frozen
//! writes nothing afterwards.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::marks;
use crate::{
    error::{Error, Kind, Result},
    nats::owner::Owner,
    postgres::{self, sql},
    wal::lsn::Lsn,
};

/// What to do with a copy, and with what only looks like one.
const COPY: &str = "if this is a copy, such as staging: `walhook adopt`, which gives it an identity of its own";
const SAME: &str = "if it is the same database, moved, and the original no longer runs: `walhook adopt --same`";

/// How many runs a database remembers: those whose mark some bucket may still show.
const RUNS_KEPT: i64 = 1000;
/// The run that stands for any, written by `walhook adopt --same`.
pub const ANY_RUN: &str = "*";

/// The identity of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Random, made by setup.
    pub database_id: String,
    /// walhook ran here before databases had identities.
    pub is_upgraded: bool,
}

impl Identity {
    /// As it is noted in NATS.
    pub fn owner(&self, source: &str) -> Owner {
        Owner { source: source.to_owned(), database_id: self.database_id.clone() }
    }
}

/// What is stored, and what is.
#[derive(Debug, Clone)]
pub struct Compared {
    /// The stored identity.
    pub identity: Identity,
    /// For which PostgreSQL it was made.
    pub system_identifier: String,
    /// For which database, if that is known.
    pub database_oid: Option<i64>,
    /// Its name then.
    pub database_name: String,
    /// The PostgreSQL that this is.
    pub system_now: String,
    /// The database that this is.
    pub oid_now: i64,
    /// Its name.
    pub name_now: String,
    /// The database that it was made for is still in this PostgreSQL.
    pub has_original: bool,
}

const READ: &str = "SELECT i.database_id, i.is_upgraded, i.system_identifier, i.database_oid, i.database_name, \
        s.system_identifier::text, d.oid::bigint, d.datname::text, \
        EXISTS (SELECT FROM pg_catalog.pg_database o WHERE o.oid::bigint = i.database_oid) \
    FROM public.rule_cdc_identity i, pg_catalog.pg_control_system() s, pg_catalog.pg_database d \
    WHERE d.datname = pg_catalog.current_database()";

/// Reads both.
///
/// # Errors
/// There is no identity, or PostgreSQL cannot be asked.
pub async fn compare(client: &Client) -> Result<Compared> {
    let attempted = "read the identity of the database";
    let row = client.query_opt(READ, &[]).await.map_err(|error| {
        let error = sql::error(attempted, error);
        match postgres::sqlstate(&error) {
            Some("42P01") => no_identity(&error.to_string()),
            _ => error,
        }
    })?;
    let row = row.ok_or_else(|| no_identity(&format!("{attempted}: rule_cdc_identity is empty")))?;
    Ok(Compared {
        identity: Identity { database_id: row.get(0), is_upgraded: row.get(1) },
        system_identifier: row.get(2),
        database_oid: row.get(3),
        database_name: row.get(4),
        system_now: row.get(5),
        oid_now: row.get(6),
        name_now: row.get(7),
        has_original: row.get(8),
    })
}

fn no_identity(text: &str) -> Error {
    Error::config(text).hint("run `walhook setup`, which gives the database an identity")
}

/// The identity, which belongs to this database and no other.
///
/// # Errors
/// [`Kind::Untrusted`] where it was made for another database; as [`compare`].
pub async fn read(client: &Client) -> Result<Identity> {
    let compared = compare(client).await?;
    match compared.difference() {
        None => Ok(compared.identity),
        Some((difference, hint)) => Err(Error::untrusted(format!(
            "use the identity of database {}: {difference}",
            compared.identity.database_id
        ))
        .hint(hint)),
    }
}

impl Compared {
    /// How this database differs from the one that the identity was made for, and what to do.
    pub fn difference(&self) -> Option<(String, String)> {
        let Compared { system_identifier, system_now, database_name, name_now, oid_now, .. } = self;
        if system_identifier != system_now {
            let difference = format!(
                "it was made for database {database_name:?} of PostgreSQL {system_identifier}; this is {name_now:?} of \
                 PostgreSQL {system_now}"
            );
            return Some((difference, format!("{COPY}; {SAME} (so after pg_upgrade)")));
        }
        let oid = self.database_oid.filter(|oid| oid != oid_now)?;
        let difference = format!(
            "it was made for database {database_name:?} (oid {oid}) of this PostgreSQL; this is {name_now:?} (oid {oid_now})"
        );
        // While the original is there, this can only be a copy.
        Some((difference, if self.has_original { COPY.to_owned() } else { format!("{COPY}; {SAME}") }))
    }
}

/// What a run writes into the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The identity of its database.
    pub database_id: String,
    /// Random, of the run.
    pub run_id: String,
    /// The count of runs.
    pub epoch: u64,
    /// How often the run has counted on.
    pub beat: i64,
    /// The timeline of its session; 0 where the run did not write it (before 0.2).
    #[serde(default)]
    pub timeline: u32,
}

/// The runs that the database knows, and how far each has counted.
#[derive(Debug, Clone, Default)]
pub struct Runs(HashMap<String, i64>);

impl Runs {
    /// Those of a feed.
    ///
    /// # Errors
    /// PostgreSQL cannot be asked.
    pub async fn read(client: &Client, source: &str) -> Result<Runs> {
        let rows = client
            .query("SELECT run_id, beat FROM walhook.rule_cdc_runs WHERE source = $1", &[&source])
            .await
            .map_err(|error| sql::error("read walhook.rule_cdc_runs", error))?;
        Ok(Runs(rows.iter().map(|row| (row.get(0), row.get(1))).collect()))
    }

    /// The same on a connection of its own.
    ///
    /// # Errors
    /// PostgreSQL cannot be asked.
    pub async fn read_by(settings: &postgres::Settings, source: &str) -> Result<Runs> {
        Runs::read(&sql::connect(settings).await?, source).await
    }

    /// Whether the database accepts what any run has left, because of `walhook adopt --same`.
    pub fn accept_any(&self) -> bool {
        self.0.contains_key(ANY_RUN)
    }

    /// Whether this database is the one whose run left the mark in the bucket. To be read after the mark: the database counts
    /// first.
    ///
    /// # Errors
    /// [`Kind::Untrusted`] where another copy of this database has run since.
    pub fn check(&self, mark: &Mark, database_id: &str) -> Result<()> {
        let Mark { run_id, beat, .. } = mark;
        let known = match self.0.get(run_id) {
            Some(known) if known >= beat => return Ok(()),
            _ if self.accept_any() => return Ok(()),
            Some(known) => format!("this database knows that run only up to count {known}"),
            None => "this database does not know that run".to_owned(),
        };
        Err(Error::untrusted(format!(
            "use the identity of database {database_id}: the counter of run {run_id} in NATS is {beat}, but \
             {known}. So a copy of this database runs or has run, or this database was restored to an earlier point"
        ))
        .hint(format!("{COPY}; {SAME}")))
    }
}

/// Refuses a PostgreSQL that was set back to an earlier point, or promoted, since the run of `mark`: `walhook run` compares the
/// streams with the WAL first. For verbs that act on events which the streams have.
///
/// # Errors
/// [`Kind::Unavailable`]: no run has compared them yet. PostgreSQL cannot be asked.
pub async fn check_timeline(client: &Client, mark: &Mark) -> Result<()> {
    let attempted = "read the timeline of PostgreSQL";
    // The control file names the new timeline only after a checkpoint. The first 8 digits of a WAL file's name are its timeline
    // (PostgreSQL's documentation, "WAL Internals").
    let row = client
        .query_one(
            "SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery() \
                 THEN pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()) END",
            &[],
        )
        .await
        .map_err(|error| sql::error(attempted, error))?;
    let Some(name) = row.get::<_, Option<String>>(0) else {
        return Err(Error::unavailable(format!("{attempted}: the server is a standby"))
            .hint("if the URL names several servers, add target_session_attrs=primary"));
    };
    let digits = name.get(..8).ok_or_else(|| Error::protocol(format!("{attempted}: a WAL file is named {name:?}")))?;
    let timeline = u32::from_str_radix(digits, 16).map_err(|error| Error::protocol(attempted).caused_by(error))?;
    if mark.timeline == 0 || mark.timeline == timeline {
        return Ok(());
    }
    Err(Error::unavailable(format!(
        "compare PostgreSQL with the last run: that was on timeline {}, and PostgreSQL is on timeline {timeline} now: a standby was \
         promoted, or the database was restored to an earlier point. Nobody has compared the streams with it yet",
        mark.timeline
    ))
    .hint("start `walhook run`: it compares them, and this command goes on once it streams"))
}

/// Counts the run on, durable before it returns; how far it is, and the position in the WAL behind which that stands.
///
/// # Errors
/// PostgreSQL cannot be asked.
pub async fn beat(client: &Client, source: &str, run_id: &str, epoch: u64) -> Result<(i64, Lsn)> {
    let failed = |error| sql::error("count the run on in walhook.rule_cdc_runs", error);
    let epoch = i64::try_from(epoch).unwrap_or(i64::MAX);
    let row = client
        .query_one(
            "INSERT INTO walhook.rule_cdc_runs AS r (source, run_id, epoch, beat) \
             SELECT $1::text, $2::text, $3::bigint, 1 WHERE pg_catalog.set_config('synchronous_commit', 'local', true) IS NOT NULL \
             ON CONFLICT (source, run_id) DO UPDATE SET beat = r.beat + 1, updated_at = now() RETURNING beat",
            &[&source, &run_id, &epoch],
        )
        .await
        .map_err(failed)?;
    let beat: i64 = row.get(0);
    if beat == 1 {
        client
            .execute(
                "DELETE FROM walhook.rule_cdc_runs WHERE source = $1 AND run_id <> $2 AND run_id NOT IN (\
                     SELECT run_id FROM walhook.rule_cdc_runs WHERE source = $1 ORDER BY updated_at DESC LIMIT $3)",
                &[&source, &run_id, &RUNS_KEPT],
            )
            .await
            .map_err(failed)?;
    }
    let row = client.query_one("SELECT pg_catalog.pg_current_wal_flush_lsn()::text", &[]).await.map_err(failed)?;
    let lsn = row.get::<_, &str>(0).parse();
    Ok((beat, lsn.map_err(|error| Error::protocol("count the run on in walhook.rule_cdc_runs").caused_by(error))?))
}

/// What `walhook adopt --same` accepted was replaced by a mark of ours in every bucket.
///
/// # Errors
/// PostgreSQL cannot be asked.
pub async fn accept_no_more(client: &Client, source: &str) -> Result<()> {
    client
        .execute("DELETE FROM walhook.rule_cdc_runs WHERE source = $1 AND run_id = $2", &[&source, &ANY_RUN])
        .await
        .map(drop)
        .map_err(|error| sql::error("forget which runs were accepted in walhook.rule_cdc_runs", error))
}

/// Notes that a stream whose metadata we may not change is this database's.
///
/// # Errors
/// PostgreSQL cannot be asked.
pub async fn note_stream(client: &Client, source: &str, stream: &Stream<'_>) -> Result<()> {
    client
        .execute(
            "INSERT INTO walhook.rule_cdc_claims (source, config_name, stream_name, stream_created_ns) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (source, config_name, stream_name) DO UPDATE \
             SET stream_created_ns = excluded.stream_created_ns, claimed_at = now() \
             WHERE rule_cdc_claims.stream_created_ns <> excluded.stream_created_ns",
            &[&source, &stream.config_name, &stream.name, &stream.created_ns],
        )
        .await
        .map(drop)
        .map_err(|error| sql::error("note in walhook.rule_cdc_claims whose a stream is", error))
}

/// Whether that was noted.
///
/// # Errors
/// PostgreSQL cannot be asked.
pub async fn is_noted(client: &Client, source: &str, stream: &Stream<'_>) -> Result<bool> {
    let row = client
        .query_one(
            "SELECT EXISTS (SELECT FROM walhook.rule_cdc_claims WHERE source = $1 AND config_name = $2 AND stream_name = $3 \
                                AND stream_created_ns = $4)",
            &[&source, &stream.config_name, &stream.name, &stream.created_ns],
        )
        .await
        .map_err(|error| sql::error("read walhook.rule_cdc_claims", error))?;
    Ok(row.get(0))
}

/// A stream, as JetStream made it.
pub struct Stream<'s> {
    /// The name of its NATS configuration.
    pub config_name: &'s str,
    /// Its name.
    pub name: &'s str,
    /// When it was made.
    pub created_ns: i64,
}

/// Marks a connection as one of this run. A newer run ends it.
///
/// # Errors
/// [`Kind::Fenced`]: there is a newer run.
pub async fn hold(client: &Client, source: &str, epoch: u64) -> Result<()> {
    // The mark first: a newer run raises the epoch, and then looks for marks.
    marks::set(client, marks::Mark::Run(source)).await?;
    let row = client
        .query_opt(
            "SELECT epoch FROM public.rule_nats_checkpoints WHERE source = $1 AND config_name = '' AND stream_name = ''",
            &[&source],
        )
        .await
        .map_err(|error| sql::error("mark the connection as one of this run", error))?;
    let newest = row.and_then(|row| u64::try_from(row.get::<_, i64>(0)).ok()).unwrap_or(0);
    if newest > epoch {
        return Err(Error::new(
            Kind::Fenced,
            format!("write as run {epoch} of source {source:?}: run {newest} has taken over"),
        )
        .hint("a newer walhook holds the slot; stop this one"));
    }
    Ok(())
}

/// Makes this the one connection that writes the history of the source. One that was given up before it had answered may still commit: it
/// is ended first, so that what it has written shows. To be called once [`hold`] has succeeded.
///
/// # Errors
/// It cannot be ended, or PostgreSQL cannot be asked.
pub async fn hold_history(client: &Client, source: &str) -> Result<()> {
    marks::set(client, marks::Mark::History(source)).await?;
    end_others(client, marks::Mark::History(source), "end the connection that wrote the history before").await
}

/// Ends the connections of earlier runs, one of which may be frozen in the midst of a statement. To be called once the epoch is
/// raised.
///
/// # Errors
/// One of them cannot be ended.
pub async fn take_over(client: &Client, source: &str) -> Result<()> {
    let attempted = "end the connections of the run before";
    // A connection that writes the history is marked as the run's first.
    end_others(client, marks::Mark::Run(source), attempted).await?;
    end_others(client, marks::Mark::History(source), attempted).await
}

async fn end_others(client: &Client, mark: marks::Mark<'_>, attempted: &str) -> Result<()> {
    for session in marks::others(client, mark).await? {
        let process = session.process;
        match marks::end(client, &session).await {
            Ok(true) => {}
            Ok(false) => {
                return Err(Error::unavailable(format!("{attempted}: process {process} of PostgreSQL does not end")));
            }
            // Of a role that this one cannot end: it may still write.
            Err(error) if postgres::sqlstate(&error) == Some("42501") => {
                let role = session.role;
                return Err(Error::unavailable(format!("{attempted}, process {process} of role {role:?}: {error}"))
                    .hint(format!("as a superuser: SELECT pg_terminate_backend({process})")));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn mark(run: &str, beat: i64) -> Mark {
        Mark { database_id: "d".to_owned(), run_id: run.to_owned(), epoch: 1, beat, timeline: 1 }
    }

    #[test]
    fn a_mark_that_the_database_lacks_is_anothers() {
        let runs = |known: &[(&str, i64)]| Runs(known.iter().map(|(run, beat)| ((*run).to_owned(), *beat)).collect());
        assert!(runs(&[("a", 5)]).check(&mark("a", 5), "d").is_ok());
        assert!(runs(&[("a", 5)]).check(&mark("a", 4), "d").is_ok(), "the bucket comes after the database");
        for (known, mark) in [(vec![("a", 5)], mark("a", 6)), (vec![("a", 5)], mark("b", 1)), (vec![], mark("b", 1))] {
            let error = runs(&known).check(&mark, "d").unwrap_err();
            assert_eq!(error.kind(), Kind::Untrusted);
            assert!(error.to_string().contains("walhook adopt"), "{error}");
        }
        assert!(runs(&[(ANY_RUN, 0)]).check(&mark("b", 7), "d").is_ok());
    }

    #[test]
    fn the_hint_fits_the_case() {
        let same = Compared {
            identity: Identity { database_id: "d".to_owned(), is_upgraded: false },
            system_identifier: "1".to_owned(),
            database_oid: Some(5),
            database_name: "shop".to_owned(),
            system_now: "1".to_owned(),
            oid_now: 5,
            name_now: "renamed".to_owned(),
            has_original: true,
        };
        assert!(same.difference().is_none(), "a name may change");
        let unknown = Compared { database_oid: None, ..same.clone() };
        assert!(unknown.difference().is_none());
        let (_, hint) = Compared { oid_now: 6, ..same.clone() }.difference().unwrap();
        assert!(hint.contains("walhook adopt") && !hint.contains("--same"), "{hint}");
        let (_, hint) = Compared { oid_now: 6, has_original: false, ..same.clone() }.difference().unwrap();
        assert!(hint.contains("--same") && !hint.contains("pg_upgrade"), "{hint}");
        let (text, hint) = Compared { system_now: "2".to_owned(), ..same }.difference().unwrap();
        assert!(text.contains("PostgreSQL 1") && text.contains("PostgreSQL 2"), "{text}");
        assert!(hint.contains("pg_upgrade"), "{hint}");
    }
}
