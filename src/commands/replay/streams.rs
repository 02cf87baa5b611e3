//! The streams that hold the feed's events, and where in each of them a replay begins.
//!
//! In: the configuration rows. Out: a connection to each server that they name, and of each stream the sequence of the first
//! event wanted, by bisection. A stream that does not hold any more what is asked for is an error that says what it holds.

use std::collections::HashMap;

use crate::{
    commands::{
        self,
        identity::{self, Identity},
        presence, rows,
        run::{position_of, rules},
    },
    config::Config,
    error::{Error, Result},
    flow::event_id::EventPosition,
    nats::{
        control::{self, Control},
        locate,
        owner::Owner,
        settings,
        streams::{self, StreamState},
    },
    route::{
        rules::{LaneKey, Rules},
        tables::{ConfigRow, StreamRow, Tables},
    },
};

use super::point::{Bounds, Point, written};

/// What the rows say, compiled.
pub struct Feed {
    /// The database.
    pub identity: Identity,
    /// The name of the feed.
    source: String,
    /// The rows themselves.
    pub tables: Tables,
    /// What they amount to.
    pub rules: Rules,
    lanes: Vec<LaneKey>,
}

/// A stream of the feed.
pub struct Source {
    /// `<configuration>/<stream>`.
    pub name: String,
    /// Its row, or what stands for one.
    pub row: StreamRow,
    /// The connection to its server.
    pub control: Control,
    /// Whose it has to be.
    owner: Owner,
}

/// Where the events wanted begin in a stream, if it has any.
pub struct Begin {
    /// Their first sequence, or a little before it.
    pub sequence: u64,
    /// The event there.
    pub position: EventPosition,
}

impl Feed {
    /// Reads the configuration.
    ///
    /// # Errors
    /// PostgreSQL cannot be asked.
    pub async fn read(config: &Config) -> Result<(Feed, tokio_postgres::Client)> {
        let client = commands::connect(config).await?;
        let identity = identity::read(&client).await?;
        let mut tables = rules::newest(&client).await?.tables;
        rows::apply_settings(&mut tables, config);
        let mut lanes = Vec::new();
        let rules = Rules::compile(&tables, &mut lanes);
        let source = config.source.clone();
        Ok((Feed { identity, source, tables, rules, lanes }, client))
    }

    /// This database and source, as they are noted in NATS.
    pub fn owner(&self) -> Owner {
        self.identity.owner(&self.source)
    }

    /// The streams that walhook writes in strict order, where nobody else may write.
    pub fn strict_streams(&self) -> Vec<String> {
        let rows = self.lanes.iter().filter_map(|key| Some(self.rules.rows_of(key, &self.tables)?.1));
        rows.filter(|row| !row.is_shared()).map(|row| row.stream_name).collect()
    }

    /// The rows of the configurations that events go to, each once.
    pub fn publishing(&self) -> Vec<ConfigRow> {
        let mut rows: Vec<ConfigRow> = Vec::new();
        for key in self.lanes.iter().filter(|key| key.stream.is_some()) {
            if let Some((row, _)) = self.rules.rows_of(key, &self.tables)
                && rows.iter().all(|other| other.config_id != row.config_id)
            {
                rows.push(row);
            }
        }
        rows
    }

    /// Connects to the streams whose configuration and name `wants` names; each server once.
    ///
    /// # Errors
    /// A server cannot be reached; a stream is another database's, or this database is a copy.
    pub async fn sources(
        &self,
        client: &tokio_postgres::Client,
        config: &Config,
        wants: impl Fn(i32, &str) -> bool,
    ) -> Result<Vec<Source>> {
        let mut controls: HashMap<i32, Control> = HashMap::new();
        let mut sources = Vec::new();
        for key in &self.lanes {
            let Some(stream) = key.stream.as_deref().filter(|stream| wants(key.config_id, stream)) else { continue };
            let Some((row, stream_row)) = self.rules.rows_of(key, &self.tables) else { continue };
            let control = match controls.get(&key.config_id) {
                Some(control) => control.clone(),
                None => {
                    let control = control(config, &row).await?;
                    presence::check_runs(client, &control, &self.source, &self.identity).await?;
                    controls.insert(key.config_id, control.clone());
                    control
                }
            };
            let name = format!("{}/{stream}", row.config_name);
            let owner = self.owner();
            sources.push(Source { name, row: stream_row, control, owner });
        }
        Ok(sources)
    }
}

/// Connects to the server of a NATS configuration.
///
/// # Errors
/// It cannot be reached, or its row makes no sense.
pub async fn control(config: &Config, row: &ConfigRow) -> Result<Control> {
    control::connect_once(&settings_of(config, row)?).await
}

/// The same by a connection that dials again once it is lost, for who reads on and notes where.
///
/// # Errors
/// As [`control`].
pub async fn control_that_returns(config: &Config, row: &ConfigRow) -> Result<Control> {
    control::connect(&settings_of(config, row)?).await
}

/// The row with what the process's own settings say of it.
fn settings_of(config: &Config, row: &ConfigRow) -> Result<settings::Settings> {
    settings::Settings::resolve(row, &config.overrides_of(&row.config_name))
}

impl Source {
    /// The stream's name.
    pub fn stream(&self) -> &str {
        &self.row.stream_name
    }

    /// The stream as it is now.
    ///
    /// # Errors
    /// It cannot be asked, is not there, or is another database's.
    pub async fn state(&self) -> Result<StreamState> {
        let state = streams::state(&self.control, self.stream()).await?;
        streams::check_owner(&self.row, &state.metadata, &self.owner)?;
        Ok(state)
    }

    /// Where what lies within `bounds` begins, by bisection. `None`: nothing of it is here.
    ///
    /// # Errors
    /// Events from there on were here and are not any more.
    pub async fn begin(&self, source: &str, bounds: &Bounds, state: &StreamState) -> Result<Option<Begin>> {
        let key_of = |stored: &_| position_of(stored, source);
        let first = |bounds: Bounds| {
            let is_before = move |position: &EventPosition| bounds.begin_behind(position);
            locate::first_from(&self.control, self.stream(), key_of, is_before)
        };
        let begin = first(*bounds).await?;
        // What a stream has dropped lies before its first message, so only who asks from before that misses something.
        if state.first_sequence > 1 {
            let all = Bounds { from: Point::Lsn(crate::wal::lsn::Lsn::ZERO), to: None };
            let oldest = first(all).await?;
            let reaches_back = match (bounds.from, &oldest) {
                (_, None) => true,
                (Point::Lsn(lsn), Some((_, oldest))) => lsn < oldest.commit_lsn,
                (Point::Time(time), Some((_, oldest))) => time < oldest.commit_time,
            };
            if reaches_back {
                let (kept, hint) = match oldest {
                    None => (
                        "nothing of this feed".to_owned(),
                        "what is in the tables still can come by `walhook backfill`".into(),
                    ),
                    Some((_, oldest)) => (
                        format!("events from {} on, committed at {}", oldest.commit_lsn, written(oldest.commit_time)),
                        format!(
                            "--from {} is the earliest; what is in the tables still can come by `walhook backfill`",
                            oldest.commit_lsn
                        ),
                    ),
                };
                return Err(Error::config(format!(
                    "go back to {} in stream {:?}: its messages up to {} are gone; it keeps {kept}",
                    bounds.from,
                    self.stream(),
                    state.first_sequence - 1
                ))
                .hint(hint));
            }
        }
        Ok(begin.map(|(sequence, position)| Begin { sequence, position }))
    }
}
