//! The driver's actions that take their time: connecting, asking, storing a payload. Each is a future that ends in one event.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use super::{
    super::faults::{self, Point},
    Identity, open,
};
use crate::{
    error::{Error, Kind, Result},
    flow::{
        driver::{ConnectionId, Event, GroupId, Question, RunsAnswer, ServerFacts, StreamId, Task},
        lane::claim_check::Claim,
        streamer::Streamer,
    },
    nats::{
        control::{self, ApiError, Control, NoJetStream},
        objects::{self, Bucket, Writer},
        publish::{Inbox, Publisher},
        schemas,
        settings::{Overrides, Settings},
    },
    route::{
        streams::{most_replicas, streams_of_all},
        tables::ConfigRow,
    },
};

/// Where the row names no bucket.
const BUCKET: &str = "walhook_objects";
/// JetStream's answers where it is not there for the account, or not there at all.
const NO_JETSTREAM: [u64; 2] = [10039, 10076];

/// What is under way.
pub struct Work {
    pub task: Task,
    pub future: Pin<Box<dyn Future<Output = Outcome>>>,
}

/// What came of it.
pub enum Outcome {
    Connected(GroupId, Result<Connected>),
    /// An answer, and the connection by which the lane's next question goes.
    Replied(StreamId, Control, Event),
    Event(Event),
}

/// Connections that were made.
pub struct Connected {
    pub control: Option<Control>,
    pub publishers: Vec<(ConnectionId, Publisher, Vec<StreamId>)>,
    pub warnings: Vec<String>,
}

/// A publishing connection that is to be made: its lanes, and where their answers come.
pub type Missing = (ConnectionId, Vec<StreamId>, Vec<Inbox>);

async fn connections(
    row: ConfigRow,
    overrides: Overrides,
    wants_api: bool,
    missing: Vec<Missing>,
) -> Result<Connected> {
    let settings = Settings::resolve(&row, &overrides)?;
    let control = if wants_api { Some(control::connect(&settings).await?) } else { None };
    let mut publishers = Vec::new();
    for (connection, lanes, inboxes) in missing {
        publishers.push((connection, Publisher::open(&settings, &inboxes).await?, lanes));
    }
    Ok(Connected { control, publishers, warnings: settings.warnings })
}

/// Makes connections, all or none.
pub fn connect(group: GroupId, row: ConfigRow, overrides: Overrides, wants_api: bool, missing: Vec<Missing>) -> Work {
    let future = async move { Outcome::Connected(group, connections(row, overrides, wants_api, missing).await) };
    Work { task: Task::Connect(group), future: Box::pin(future) }
}

/// What its server says of itself.
pub fn facts(publisher: &Publisher) -> ServerFacts {
    let info = publisher.info();
    ServerFacts {
        version: info.version.clone(),
        max_payload: info.max_payload,
        knows_batches: info.at_least(2, 12, 1),
        shares_syncs: info.at_least(2, 15, 0),
    }
}

/// Asks a group's account for other runs.
pub fn ask_runs(group: GroupId, control: Control, identity: Identity) -> Work {
    let future = async move {
        let answer = match open::ask_runs(&control, &identity).await {
            Ok(has_bucket) => RunsAnswer::None(has_bucket),
            Err(error) if has_no_jetstream(&error) => RunsAnswer::NoJetStream,
            Err(error) => match error.kind() {
                Kind::Permission => RunsAnswer::Hidden(error),
                Kind::Unavailable | Kind::Protocol => RunsAnswer::Away(error),
                Kind::Config | Kind::Untrusted | Kind::Fenced => RunsAnswer::Refused(error),
            },
        };
        Outcome::Event(Event::RunsAsked(group, answer))
    };
    Work { task: Task::AskRuns(group), future: Box::pin(future) }
}

/// There is no JetStream to be asked.
fn has_no_jetstream(error: &Error) -> bool {
    let is_disabled = error.cause_as::<ApiError>().is_some_and(|error| NO_JETSTREAM.contains(&error.err_code));
    is_disabled || error.cause_as::<NoJetStream>().is_some() || error.kind() == Kind::Config
}

/// Asks what is to be known before a lane is opened.
pub fn ask(lane: StreamId, question: Question, control: Control, identity: Identity) -> Work {
    let future = async move {
        let reply = open::answer(&control, &identity, question).await;
        let no_jetstream = reply.as_ref().is_err_and(|error| error.cause_as::<NoJetStream>().is_some());
        Outcome::Replied(lane, control, Event::Replied { lane, reply, no_jetstream })
    };
    Work { task: Task::Ask(lane), future: Box::pin(future) }
}

/// Stores the payload of a lane's claim check.
pub fn store(
    lane: StreamId,
    number: u64,
    row: &ConfigRow,
    control: Control,
    identity: &Identity,
    streamer: &Streamer,
) -> Option<Work> {
    let claim_check = streamer.lane(lane.0).claim_check().filter(|claim_check| claim_check.number == number)?;
    let bucket = bucket(row, streamer);
    let (name, payload) = (claim_check.position.id(&identity.source), claim_check.payload.clone());
    let writer = Writer { database_id: identity.database.database_id.clone(), epoch: identity.epoch };
    let future = async move {
        let outcome = objects::put(&control, &bucket, &name, &payload, &writer).await;
        let outcome = outcome.map(|sha256| Claim { bucket: bucket.name, name, sha256 });
        if let Ok(claim) = &outcome {
            tracing::debug!(object = claim.name, bucket = claim.bucket, "a payload is in the object store");
        }
        Outcome::Event(Event::Stored { lane, number, outcome })
    };
    Some(Work { task: Task::Store(lane), future: Box::pin(future) })
}

/// Stores the schema that a lane waits for.
pub fn store_schema(
    lane: StreamId,
    nth: u64,
    row: &ConfigRow,
    control: Control,
    identity: &Identity,
    streamer: &Streamer,
) -> Option<Work> {
    let (_, schema) = streamer.lane(lane.0).schema_to_store().filter(|(number, _)| *number == nth)?;
    let schema = Arc::clone(schema);
    let (streams, _) = streams_of_all(streamer.tables()).remove(&row.config_id).unwrap_or_default();
    let owner = identity.database.owner(&identity.source);
    let writer = schemas::Writer { owner, replicas: most_replicas(&streams), config_id: row.config_id };
    let future = async move {
        let outcome = async {
            faults::pass(Point::SchemaUnstored).await?;
            schemas::put(&control, &schema, &writer).await?;
            faults::pass(Point::SchemaStored).await
        };
        Outcome::Event(Event::SchemaStored { lane, nth, outcome: outcome.await })
    };
    Some(Work { task: Task::StoreSchema(lane), future: Box::pin(future) })
}

/// The bucket of a configuration. Where walhook makes it, it keeps objects as long as the streams keep the messages that name
/// them, and on as many servers.
fn bucket(row: &ConfigRow, streamer: &Streamer) -> Bucket {
    let (streams, _) = streams_of_all(streamer.tables()).remove(&row.config_id).unwrap_or_default();
    let ages = streams.iter().map(|stream| stream.max_age_seconds.and_then(|age| u64::try_from(age).ok()).unwrap_or(0));
    // None at all is for ever.
    let max_age = if ages.clone().any(|age| age == 0) { 0 } else { ages.max().unwrap_or(0) };
    Bucket {
        name: row.object_bucket.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| BUCKET.to_owned()),
        replicas: most_replicas(&streams),
        max_age: Duration::from_secs(max_age),
    }
}
