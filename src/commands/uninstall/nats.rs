//! What walhook made in NATS for this database: found, described, removed.
//!
//! In: the database's identity, and a connection to each server that its configurations name. Out: what is removed, by name. Always
//! holds: nothing is touched that carries another database's identity. A stream that walhook did not make stays, and loses only
//! walhook's note in its metadata and walhook's consumers; so does a stream that other databases use too.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio_postgres::Client;

use crate::{
    commands::{
        bucket,
        deliver::consumer::{all_streams, listed},
        identity::{self, Identity},
        presence,
        replay::{self, REPLAY_STREAM},
        rows,
        run::WORKERS_CONSUMER,
        schema,
    },
    config::Config,
    error::{Error, Kind, Result},
    nats::{
        codes::named::STREAM_NOT_FOUND,
        control::{ApiError, Control},
        objects, owner, schemas, streams,
    },
    postgres::sql,
    text,
};

const NO_CONSUMER: u64 = 10014;

/// The feeds that have run here.
const SOURCES: &str = "SELECT source FROM walhook.rule_cdc_runs UNION SELECT source FROM public.rule_nats_checkpoints \
    UNION SELECT source FROM public.rule_cdc_status UNION SELECT $1";

/// All that is to be removed, server by server.
pub struct Findings(Vec<Server>);

struct Server {
    config_name: String,
    control: Control,
    removals: Vec<Removal>,
}

/// One thing to remove. In this order: the bucket last, for its mark says which copy of a database this is.
#[derive(Debug, PartialEq, Eq)]
enum Removal {
    Consumer { stream: String, name: String },
    Objects { bucket: String, names: Vec<String> },
    Notes { stream: String, keys: Vec<String> },
    Stream { name: String, messages: u64 },
    Schemas { stream: String },
    Bucket { stream: String },
}

/// Looks for all of it.
///
/// # Errors
/// The database is a copy of another; a server cannot be reached or does not allow it; `walhook deliver` is at work.
pub async fn find(client: &Client, config: &Config) -> Result<Findings> {
    let attempted = "find what walhook made in NATS";
    schema::check(client, &config.postgres.target()).await.map_err(|error| error.context(attempted))?;
    let identity = identity::read(client).await.map_err(|error| error.context(attempted))?;
    let sources: Vec<String> = client
        .query(SOURCES, &[&config.source])
        .await
        .map_err(|error| sql::error("read which feeds have run", error))?
        .iter()
        .map(|row| row.get(0))
        .collect();
    let tables = rows::read(client).await?;
    let buckets: BTreeSet<&str> = tables.configs.values().filter_map(|row| row.object_bucket.as_deref()).collect();
    let mut servers = Vec::new();
    let mut seen = BTreeSet::new();
    for row in tables.configs.values() {
        if row.enabled == Some(false) || row.jetstream_enabled == Some(false) {
            continue;
        }
        let control = replay::control(config, row).await.map_err(|error| {
            let hint = format!(
                "start that server, or if it is gone for good: UPDATE rule_nats_config SET enabled = false WHERE config_name = {}; \
                 without --nats nothing is removed in NATS",
                text::sql_literal(&row.config_name)
            );
            error.context(attempted).hint(hint)
        })?;
        let (mut places, mut of_schemas) = (BTreeSet::new(), BTreeSet::new());
        for source in &sources {
            presence::check_runs(client, &control, source, &identity).await?;
            let place = bucket::find(&control, source, &identity).await?;
            places.extend(place.info.map(|_| bucket::stream(&place.name)));
            // What something else has in its place stays.
            match schemas::find(&control, &identity.owner(source)).await {
                Ok(bucket) if bucket.exists => drop(of_schemas.insert(schemas::stream(&bucket.name))),
                Ok(_) => {}
                Err(error) if error.kind() == Kind::Config => {}
                Err(error) => return Err(error.context(attempted)),
            }
        }
        let mut removals = Vec::new();
        for name in all_streams(&control).await? {
            let info = match control.api(&format!("STREAM.INFO.{name}"), &Value::Null).await? {
                Ok(info) => info,
                Err(error) if error.err_code == STREAM_NOT_FOUND => continue,
                Err(error) => return Err(refused(format!("read stream {name:?}"), error)),
            };
            // Two configurations may lead to one account.
            if !seen.insert((name.clone(), info["created"].to_string())) {
                continue;
            }
            if of_schemas.contains(&name) {
                removals.push(Removal::Schemas { stream: name });
            } else {
                let stream = Stream { name, info, is_bucket: false };
                let stream = Stream { is_bucket: places.contains(&stream.name), ..stream };
                removals.extend(stream.removals(&control, &identity, &buckets).await?);
            }
        }
        removals.sort_by_key(Removal::turn);
        servers.push(Server { config_name: row.config_name.clone(), control, removals });
    }
    Ok(Findings(servers))
}

struct Stream {
    name: String,
    info: Value,
    is_bucket: bool,
}

impl Stream {
    async fn removals(self, control: &Control, identity: &Identity, buckets: &BTreeSet<&str>) -> Result<Vec<Removal>> {
        let Stream { name, info, is_bucket } = self;
        let config = &info["config"];
        let notes = owner::notes(&owner::metadata(config), &identity.database_id);
        let messages = info["state"]["messages"].as_u64().unwrap_or(0);
        if is_bucket || (name.starts_with("KV_walhook_") && notes.are_ours_alone()) {
            return Ok(vec![Removal::Bucket { stream: name }]);
        }
        if let Some(bucket) = name.strip_prefix("OBJ_") {
            if !buckets.contains(bucket) {
                return Ok(Vec::new());
            }
            let objects::Owned { names, are_all } = objects::owned(control, bucket, &identity.database_id).await?;
            let is_whole = are_all && config["description"] == objects::DESCRIPTION;
            return Ok(match (is_whole, names.is_empty()) {
                (true, _) => vec![Removal::Stream { name, messages }],
                (false, true) => Vec::new(),
                (false, false) => vec![Removal::Objects { bucket: bucket.to_owned(), names }],
            });
        }
        let is_made = streams::is_made_by_us(&info) || config["description"] == REPLAY_STREAM;
        let is_going = is_made && notes.are_ours_alone();
        let mut removals = Vec::new();
        for consumer in listed(control, &name).await? {
            let its = owner::notes(&owner::metadata(&consumer["config"]), &identity.database_id);
            let is_for_workers = consumer["config"]["description"] == WORKERS_CONSUMER && notes.are_ours_alone();
            let Some(consumer_name) = consumer["name"].as_str() else { continue };
            if its.are_ours_alone() && consumer["num_waiting"].as_u64().is_some_and(|pulls| pulls > 0) {
                return Err(Error::config(format!(
                    "remove consumer {consumer_name:?} of stream {name:?}: a worker waits for its messages"
                ))
                .hint("stop `walhook deliver` of this database first; a request of a worker that was killed ends within a minute"));
            }
            if !is_going && (its.are_ours_alone() || is_for_workers) {
                removals.push(Removal::Consumer { stream: name.clone(), name: consumer_name.to_owned() });
            }
        }
        if is_going {
            removals.push(Removal::Stream { name, messages });
        } else if !notes.ours.is_empty() {
            removals.push(Removal::Notes { stream: name, keys: notes.ours });
        }
        Ok(removals)
    }
}

impl Removal {
    fn turn(&self) -> u8 {
        match self {
            Removal::Consumer { .. } => 0,
            Removal::Objects { .. } => 1,
            Removal::Notes { .. } => 2,
            Removal::Stream { .. } => 3,
            Removal::Schemas { .. } => 4,
            Removal::Bucket { .. } => 5,
        }
    }

    /// What it is, for a person.
    fn describe(&self) -> String {
        match self {
            Removal::Consumer { stream, name } => format!("consumer {name} of stream {stream}"),
            Removal::Objects { bucket, names } => {
                format!("{} objects in the object store {bucket}: {}", names.len(), names.join(", "))
            }
            Removal::Notes { stream, keys } => {
                format!("the metadata {} of stream {stream}, which stays", keys.join(", "))
            }
            Removal::Stream { name, messages } => format!("stream {name}, messages: {messages}"),
            Removal::Schemas { stream } => format!("stream {stream}, the bucket of schemas"),
            Removal::Bucket { stream } => format!("stream {stream}, the bucket of webhooks and of the last run"),
        }
    }

    async fn remove(&self, control: &Control) -> Result<()> {
        let attempted = || format!("remove {}", self.describe());
        let (request, body) = match self {
            Removal::Consumer { stream, name } => (format!("CONSUMER.DELETE.{stream}.{name}"), Value::Null),
            Removal::Stream { name, .. } | Removal::Schemas { stream: name } | Removal::Bucket { stream: name } => {
                (format!("STREAM.DELETE.{name}"), Value::Null)
            }
            Removal::Objects { bucket, names } => {
                for name in names {
                    objects::remove(control, bucket, name).await.map_err(|error| error.context(attempted()))?;
                }
                return Ok(());
            }
            Removal::Notes { stream, keys } => {
                let info = control.api(&format!("STREAM.INFO.{stream}"), &Value::Null).await?;
                let mut info = info.map_err(|error| refused(attempted(), error))?;
                let mut config = info["config"].take();
                if let Some(metadata) = config["metadata"].as_object_mut() {
                    metadata.retain(|key, _| !keys.contains(key));
                }
                (format!("STREAM.UPDATE.{stream}"), config)
            }
        };
        match control.api(&request, &body).await.map_err(|error| error.context(attempted()))? {
            Ok(_) => Ok(()),
            Err(error) if [STREAM_NOT_FOUND, NO_CONSUMER].contains(&error.err_code) => Ok(()),
            Err(error) => Err(refused(attempted(), error)),
        }
    }
}

impl Findings {
    /// A line for each thing.
    pub fn lines(&self) -> Vec<String> {
        let of_server = |server: &Server| {
            let name = server.config_name.clone();
            server
                .removals
                .iter()
                .map(move |removal| format!("NATS {name}: {}", removal.describe()))
                .collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of_server).collect()
    }

    /// Removes it all.
    ///
    /// # Errors
    /// JetStream refuses; what was removed by then is gone.
    pub async fn remove(&self) -> Result<()> {
        for server in &self.0 {
            for removal in &server.removals {
                removal.remove(&server.control).await?;
            }
        }
        Ok(())
    }
}

fn refused(attempted: String, error: ApiError) -> Error {
    Error::config(attempted).caused_by(error)
}
