//! The configuration rows judged and compiled: which webhooks publish, in which format, to which lane.
//!
//! Comes in: [`Tables`]. Goes out: [`Rules`], in which every webhook either works or carries the reason why not. A
//! row that makes no sense is set aside alone; the others flow.

use std::{collections::HashMap, sync::Arc};

use super::{
    headers::{self, Block},
    mask_key::MaskKey,
    seal::SealKey,
    shard,
    shown_url::shown_url,
    streams::{Streams, streams_of_all},
    subject,
    tables::{ConfigRow, LinkRow, StreamRow, Tables, WebhookRow},
    value::write_json_str,
};

/// Where a lane leads: into a stream, or to core NATS. Lanes are numbered by their place in a list that only grows, so that a
/// number stays good over recompilations.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// The `rule_nats_config` row.
    pub config_id: i32,
    /// Its servers ([`ConfigRow::servers`]): with other servers it leads elsewhere.
    pub servers: String,
    /// The stream's name; `None` for core NATS.
    pub stream: Option<String>,
}

/// What a payload looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The RFC's workers take it as it is.
    Webhook,
    /// The bare row or payload.
    Data,
    /// Debezium's envelope.
    Debezium,
    /// CloudEvents 1.0, structured JSON.
    CloudEvents,
    /// CloudEvents 1.0, binary: the attributes are headers, the body is the data.
    CloudEventsBinary,
}

impl Format {
    /// The headers that each of its messages has alike.
    fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Format::Webhook | Format::Data | Format::Debezium => &[],
            Format::CloudEvents => &[("Content-Type", "application/cloudevents+json")],
            // The binding maps `datacontenttype` as any attribute; some readers look for it as HTTP's has it.
            Format::CloudEventsBinary => &[
                ("Content-Type", "application/json"),
                ("ce-specversion", "1.0"),
                ("ce-datacontenttype", "application/json"),
            ],
        }
    }

    /// Whether `ce-` headers have their meaning.
    pub fn is_cloudevent(self) -> bool {
        matches!(self, Format::CloudEvents | Format::CloudEventsBinary)
    }
}

/// What becomes of an event that can never be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// walhook stops.
    Halt,
    /// A row in `rule_nats_dead_letters`, then on.
    DeadLetter,
    /// If it is only too large, its payload goes into an object store, and the message has a claim check for it. What is
    /// impossible for another reason has a row.
    ObjectStore,
}

/// What the publish history keeps of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// A row if it cannot be published.
    Failures(KeepPayload),
    /// A row whatever becomes of it; nothing is confirmed before it is durable.
    Everything(KeepPayload),
}

impl Keep {
    /// The same for a body that need not be JSON.
    #[must_use]
    pub fn of_any_bytes(self) -> Keep {
        match self {
            Keep::Everything(KeepPayload::Full) => Keep::Everything(KeepPayload::AnyBytes),
            Keep::Failures(KeepPayload::Full) => Keep::Failures(KeepPayload::AnyBytes),
            keep => keep,
        }
    }
}

/// How the history keeps a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepPayload {
    /// As it is, where the event is in no stream.
    Reference,
    /// As it is: it is JSON.
    Full,
    /// As it is where it is JSON, as a string otherwise.
    AnyBytes,
    /// Its SHA-256 and length.
    Hash,
    /// Not at all.
    None,
}

/// A link with its key.
pub type IdAndLink = (i32, Arc<LinkRow>);

/// A compiled webhook.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Its id.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// Whether changes of linked tables go to NATS for it: enabled, and in mode `nats` or `both`.
    pub publishes: bool,
    /// Why its events cannot be published although they should be.
    pub problem: Option<String>,
    /// What its payloads look like.
    pub format: Format,
    /// What becomes of its impossible events.
    pub on_error: OnError,
    /// What the history keeps of its events.
    pub keep: Keep,
    /// The subject where neither link nor event names one.
    pub subject: String,
    /// The `webhook` format's constant middle: `,"webhook_id":…,"method":"POST","headers":`
    pub middle: Vec<u8>,
    /// The same up to the data of an event without headers of its own: with [`Webhook::headers`] and `,"data":`
    pub middle_of_row: Vec<u8>,
    /// Whether headers that look like credentials may be shown.
    pub expose_credentials: bool,
    /// The headers that may be shown, as a JSON object.
    pub headers: Vec<u8>,
    /// Whether schemas of the rows of its tables are published.
    pub publishes_schemas: bool,
    /// The headers of the messages themselves: the format's and those of `nats_headers`.
    pub message_headers: Block,
    /// The key with which bodies are sealed, or why there is none though the webhook's row names one.
    pub seal: Option<Result<Arc<SealKey>, String>>,
    /// What all its subjects begin with in this shard; it is in [`Webhook::subject`].
    pub subject_prefix: String,
    shard: Option<String>,
    config_id: i32,
}

/// A `rule_nats_config` row as far as routing goes.
#[derive(Debug, Clone)]
struct Config {
    /// The patterns of each stream, and the stream's lane.
    streams: Vec<(Vec<Vec<u8>>, usize)>,
    problem: Option<String>,
    rows: Vec<StreamRow>,
    stream_problems: Vec<String>,
}

/// All rules, compiled.
#[derive(Debug, Default)]
pub struct Rules {
    /// The webhooks, in the order of their ids.
    pub webhooks: Vec<Webhook>,
    by_id: HashMap<i32, usize>,
    configs: HashMap<i32, Config>,
    links: HashMap<(String, String), Vec<IdAndLink>>,
    /// The key of the hashes in masks.
    pub mask_key: MaskKey,
    /// The shard of the process; `None`: the main one.
    shard: Option<String>,
}

impl Webhook {
    /// The subject of its events of changed columns of a link's table.
    pub fn columns_subject(&self, link: &LinkRow) -> Vec<u8> {
        let of_rows = link.subject_template.as_deref();
        let template = of_rows.map_or_else(|| self.subject.clone(), |own| format!("{}{own}", self.subject_prefix));
        subject::of_columns(&template, &link.table_schema, &link.table_name)
    }
}

impl Rules {
    /// Judges and compiles all rows. Lanes not seen before are appended to `lanes`.
    pub fn compile(tables: &Tables, lanes: &mut Vec<LaneKey>) -> Rules {
        let mut streams = streams_of_all(tables);
        let configs: HashMap<_, _> = tables
            .configs
            .iter()
            .map(|(&id, row)| {
                let servers = tables.servers_of(row);
                (id, compile_config(id, row, &servers, streams.remove(&id).unwrap_or_default(), lanes))
            })
            .collect();
        let default_config = tables.configs.iter().find(|(_, row)| row.config_name == "default").map(|(&id, _)| id);
        let webhooks: Vec<_> = tables
            .webhooks
            .iter()
            .map(|(&id, row)| {
                let config_id = row.nats_config_id.or(default_config);
                let config_row = config_id.and_then(|id| tables.configs.get(&id)).map(AsRef::as_ref);
                compile_webhook(id, row, config_id, config_row, &configs, tables)
            })
            .collect();
        let by_id = webhooks.iter().enumerate().map(|(index, webhook)| (webhook.id, index)).collect();
        let mut links: HashMap<_, Vec<_>> = HashMap::new();
        for (&id, link) in &tables.links {
            links.entry((link.table_schema.clone(), link.table_name.clone())).or_default().push((id, link.clone()));
        }
        // The order of events within a change is by webhook, for their positions must rise.
        for links in links.values_mut() {
            links.sort_by_key(|(id, link)| (link.webhook_id, *id));
        }
        Rules { webhooks, by_id, configs, links, mask_key: tables.mask_key.clone(), shard: tables.shard.clone() }
    }

    /// The index of a webhook in [`Rules::webhooks`].
    pub fn webhook(&self, id: i32) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// The links of a table with their ids, in the order of their webhooks.
    pub fn links(&self, schema: &str, table: &str) -> &[IdAndLink] {
        // Asked once per table and change of rules, so the two strings do not matter.
        self.links.get(&(schema.to_owned(), table.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// A link by its id. For events that are rare.
    pub fn link(&self, id: i32) -> Option<&LinkRow> {
        self.links.values().flatten().find(|(other, _)| *other == id).map(|(_, link)| link.as_ref())
    }

    /// Whether this process publishes the events of a webhook: of its link, where that has a shard of its own. What is no webhook's is
    /// the main shard's.
    pub fn is_ours(&self, webhook: Option<usize>, link: Option<&LinkRow>) -> bool {
        let webhook = webhook.and_then(|index| self.webhooks[index].shard.as_deref());
        let owner = shard::of_link(link.and_then(|link| link.shard.as_deref()), webhook);
        owner == self.shard.as_deref().unwrap_or(shard::MAIN)
    }

    /// The lane into the stream that takes `subject`, among the streams of this webhook's configuration.
    pub fn lane(&self, webhook: usize, subject: &[u8]) -> Option<usize> {
        let config = self.configs.get(&self.webhooks[webhook].config_id)?;
        config
            .streams
            .iter()
            .find(|(patterns, _)| patterns.iter().any(|pattern| subject::matches(pattern, subject)))
            .map(|&(_, lane)| lane)
    }

    /// The webhooks that should publish but cannot, with the reason.
    pub fn problems(&self) -> impl Iterator<Item = (&Webhook, &str)> {
        self.webhooks.iter().filter_map(|webhook| Some((webhook, webhook.problem.as_deref()?)))
    }

    /// The webhooks that should seal their payloads but have no key, with the reason.
    pub fn without_seal_key(&self) -> impl Iterator<Item = (&Webhook, &str)> {
        let others = self.webhooks.iter().filter(|webhook| webhook.problem.is_none());
        others.filter_map(|webhook| Some((webhook, webhook.seal.as_ref()?.as_ref().err()?.as_str())))
    }

    /// The rows by which a lane reaches its stream, the stream's as far as it gets what it wants; `None` where nothing
    /// leads there any more.
    pub fn rows_of(&self, key: &LaneKey, tables: &Tables) -> Option<(ConfigRow, StreamRow)> {
        let config = tables.configs.get(&key.config_id).filter(|config| config.enabled != Some(false))?;
        if tables.servers_of(config) != key.servers {
            return None;
        }
        let stream = match &key.stream {
            None if is_core(config) => StreamRow::default(),
            Some(name) if !is_core(config) => {
                self.configs.get(&key.config_id)?.rows.iter().find(|row| row.stream_name == *name)?.clone()
            }
            // It was switched from one to the other: what came before goes the old way.
            None | Some(_) => return None,
        };
        Some((ConfigRow::clone(config), stream))
    }

    /// What the rows of streams want and do not get.
    pub fn stream_problems(&self) -> impl Iterator<Item = &str> {
        self.configs.values().flat_map(|config| config.stream_problems.iter().map(String::as_str))
    }
}

fn compile_config(
    id: i32,
    row: &ConfigRow,
    servers: &str,
    (rows, stream_problems): Streams,
    lanes: &mut Vec<LaneKey>,
) -> Config {
    let problem = if row.enabled == Some(false) {
        Some(format!("NATS configuration {:?} is not enabled", row.config_name))
    } else {
        None
    };
    let any = [">".to_owned()];
    let ways: Vec<(Option<&str>, &[String])> = match (&problem, is_core(row)) {
        (Some(_), _) => Vec::new(),
        // Any subject is taken: there is no stream to refuse one.
        (None, true) => vec![(None, &any)],
        (None, false) => {
            rows.iter().map(|stream| (Some(stream.stream_name.as_str()), stream.subjects.as_slice())).collect()
        }
    };
    let streams = ways
        .into_iter()
        .map(|(stream, subjects)| {
            let key = LaneKey { config_id: id, servers: servers.to_owned(), stream: stream.map(str::to_owned) };
            let lane = lanes.iter().position(|other| *other == key).unwrap_or_else(|| {
                lanes.push(key);
                lanes.len() - 1
            });
            (subjects.iter().map(|pattern| pattern.clone().into_bytes()).collect(), lane)
        })
        .collect();
    Config { streams, problem, rows, stream_problems }
}

/// Whether a configuration publishes to core NATS, past all streams.
fn is_core(row: &ConfigRow) -> bool {
    row.jetstream_enabled == Some(false)
}

fn compile_webhook(
    id: i32,
    row: &WebhookRow,
    config_id: Option<i32>,
    config_row: Option<&ConfigRow>,
    configs: &HashMap<i32, Config>,
    tables: &Tables,
) -> Webhook {
    let shard = tables.shard.as_deref();
    let mut problems = Vec::new();
    let in_mode = has_mode_to_publish(row, &mut problems);
    let format = format_of(row, &mut problems);
    let on_error = on_error_of(row, &mut problems);
    // In core NATS no stream takes a subject from another.
    let subject_prefix = shard::prefix(shard.filter(|_| !config_row.is_some_and(is_core)));
    let subject = format!("{subject_prefix}{}", subject_of(row, config_row));
    if let Some(why) = subject::invalid(subject.as_bytes()) {
        problems.push(format!("nats_subject {subject:?} cannot be published to: {why}"));
    }
    match (config_id, config_id.and_then(|id| configs.get(&id))) {
        (None, _) => problems.push(
            "it names no NATS configuration, and there is none called \"default\"; try rule_nats_configure()"
                .to_owned(),
        ),
        (Some(id), None) => problems.push(format!("NATS configuration {id} does not exist")),
        (Some(_), Some(config)) => problems.extend(config.problem.clone()),
    }
    let headers = match headers::parse(row.headers.as_deref(), row.expose_credentials) {
        Ok(headers) => headers,
        Err(problem) => {
            problems.push(problem);
            b"{}".to_vec()
        }
    };
    let message_headers = Block::compile(format.headers(), row.nats_headers.as_deref()).unwrap_or_else(|problem| {
        problems.push(problem);
        Block::default()
    });
    let middle = middle_of(id, row);
    let middle_of_row = [&middle[..], &headers, b",\"data\":"].concat();
    Webhook {
        id,
        name: row.name.clone(),
        publishes: row.enabled && row.nats_enabled && in_mode,
        problem: (!problems.is_empty()).then(|| problems.join("; ")),
        format,
        on_error,
        keep: keep(config_row),
        subject,
        middle,
        middle_of_row,
        expose_credentials: row.expose_credentials,
        headers,
        // Core NATS has no bucket; a replay's lanes only look like it.
        publishes_schemas: config_row
            .is_some_and(|row| row.publish_schemas == Some(true) && (tables.is_for_replay || !is_core(row))),
        message_headers,
        seal: row.seal_key.as_deref().map(|name| tables.seal_keys.newest(name)),
        subject_prefix,
        shard: row.shard.clone(),
        config_id: config_id.unwrap_or(-1),
    }
}

/// Whether its `publish_mode` has the webhook's events published; an unknown one has, so that its problem shows.
fn has_mode_to_publish(row: &WebhookRow, problems: &mut Vec<String>) -> bool {
    match row.publish_mode.as_deref() {
        None | Some("queue") => false,
        Some("nats" | "both") => true,
        Some(other) => {
            problems.push(format!("publish_mode {other:?} is none of queue, nats, both"));
            true
        }
    }
}

fn format_of(row: &WebhookRow, problems: &mut Vec<String>) -> Format {
    match row.payload_format.as_deref() {
        None | Some("webhook") => Format::Webhook,
        Some("data") => Format::Data,
        Some("debezium") => Format::Debezium,
        Some("cloudevents") => Format::CloudEvents,
        Some("cloudevents_binary") => Format::CloudEventsBinary,
        Some(other) => {
            problems.push(format!(
                "payload_format {other:?} is none of webhook, data, debezium, cloudevents, cloudevents_binary"
            ));
            Format::Webhook
        }
    }
}

fn on_error_of(row: &WebhookRow, problems: &mut Vec<String>) -> OnError {
    match row.on_error.as_deref() {
        None | Some("dead_letter") => OnError::DeadLetter,
        Some("object_store") => OnError::ObjectStore,
        Some("halt") => OnError::Halt,
        Some(other) => {
            problems.push(format!("on_error {other:?} is none of halt, dead_letter, object_store"));
            OnError::DeadLetter
        }
    }
}

/// The subject of a webhook, before its shard's prefix: its own, or one of its name.
fn subject_of(row: &WebhookRow, config_row: Option<&ConfigRow>) -> String {
    row.nats_subject.clone().filter(|subject| !subject.is_empty()).unwrap_or_else(|| {
        let prefix = config_row
            .and_then(|config| config.subject_prefix.as_deref())
            .filter(|prefix| !prefix.is_empty())
            .unwrap_or("webhooks");
        let mut subject = format!("{prefix}.").into_bytes();
        subject::push_name(&row.name, &mut subject);
        String::from_utf8(subject).expect("percent-encoding leaves ASCII")
    })
}

/// What an envelope says of its webhook, up to the value of `headers`.
fn middle_of(id: i32, row: &WebhookRow) -> Vec<u8> {
    let mut middle = format!(",\"webhook_id\":{id},\"webhook_name\":").into_bytes();
    write_json_str(&row.name, &mut middle);
    middle.extend_from_slice(b",\"webhook_url\":");
    write_json_str(&if row.expose_credentials { row.url.as_str().into() } else { shown_url(&row.url) }, &mut middle);
    middle.extend_from_slice(b",\"method\":");
    write_json_str(&row.method, &mut middle);
    middle.extend_from_slice(b",\"headers\":");
    middle
}

/// What a configuration keeps in the history. A word that is unknown, which the table's check lets nobody write, keeps all.
fn keep(config: Option<&ConfigRow>) -> Keep {
    let payload = match config.and_then(|config| config.history_payload.as_deref()) {
        Some("reference") => KeepPayload::Reference,
        Some("hash") => KeepPayload::Hash,
        Some("none") => KeepPayload::None,
        _ => KeepPayload::Full,
    };
    match config.and_then(|config| config.history.as_deref()) {
        Some("off") => Keep::Nothing,
        Some("failures") => Keep::Failures(payload),
        _ => Keep::Everything(payload),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tables() -> Tables {
        let mut tables = Tables::default();
        let config = ConfigRow {
            config_id: 1,
            config_name: "default".to_owned(),
            jetstream_enabled: Some(true),
            enabled: Some(true),
            stream_name: Some("WEBHOOKS".to_owned()),
            subject_prefix: Some("webhooks".to_owned()),
            ..Default::default()
        };
        tables.configs.insert(1, config);
        let webhook = WebhookRow {
            name: "sla.ck".to_owned(),
            url: "https://example.com".to_owned(),
            method: "POST".to_owned(),
            enabled: true,
            nats_enabled: true,
            publish_mode: Some("nats".to_owned()),
            ..Default::default()
        };
        tables.webhooks.insert(1, webhook);
        tables
    }

    #[test]
    fn a_webhook_without_settings_of_its_own_goes_to_the_default_stream_under_its_name() {
        let mut lanes = Vec::new();
        let rules = Rules::compile(&tables(), &mut lanes);
        let webhook = &rules.webhooks[0];
        assert_eq!((webhook.subject.as_str(), webhook.publishes), ("webhooks.sla%2Eck", true));
        assert_eq!(webhook.problem, None);
        assert_eq!(rules.lane(0, b"webhooks.sla%2Eck"), Some(0));
        assert_eq!(rules.lane(0, b"events.x"), None);
        assert_eq!(lanes, [LaneKey { config_id: 1, servers: String::new(), stream: Some("WEBHOOKS".to_owned()) }]);
    }

    #[test]
    fn a_bad_row_is_set_aside_with_its_reason() {
        let check = |spoil: fn(&mut Tables), reason: &str| {
            let mut tables = tables();
            spoil(&mut tables);
            let rules = Rules::compile(&tables, &mut Vec::new());
            let problem = rules.webhooks[0].problem.clone().unwrap_or_default();
            assert!(problem.contains(reason), "{reason}: {problem}");
        };
        check(|t| t.webhooks.get_mut(&1).unwrap().publish_mode = Some("maybe".to_owned()), "\"maybe\"");
        check(|t| t.webhooks.get_mut(&1).unwrap().payload_format = Some("xml".to_owned()), "\"xml\"");
        check(|t| t.webhooks.get_mut(&1).unwrap().headers = Some("[1]".to_owned()), "not a JSON object");
        check(|t| t.webhooks.get_mut(&1).unwrap().nats_headers = Some(r#"{"Nats-Msg-Id":"1"}"#.to_owned()), "reserved");
        check(|t| t.webhooks.get_mut(&1).unwrap().nats_config_id = Some(9), "9 does not exist");
        check(|t| t.configs.get_mut(&1).unwrap().enabled = Some(false), "not enabled");
        check(|t| t.webhooks.get_mut(&1).unwrap().nats_subject = Some("webhooks.*".to_owned()), "wildcard");
        check(|t| t.configs.clear(), "names no NATS configuration");
    }

    #[test]
    fn lanes_keep_their_numbers_when_streams_come_and_go() {
        let mut tables = tables();
        let mut lanes = Vec::new();
        Rules::compile(&tables, &mut lanes);
        let stream = StreamRow {
            config_id: Some(1),
            stream_name: "A".to_owned(),
            subjects: vec!["events.>".to_owned()],
            enabled: Some(true),
            ..Default::default()
        };
        tables.streams.insert(1, stream);
        let rules = Rules::compile(&tables, &mut lanes);
        assert_eq!(rules.lane(0, b"webhooks.x"), Some(0));
        assert_eq!(rules.lane(0, b"events.a.b"), Some(1));
    }

    #[test]
    fn core_nats_takes_any_subject_by_a_lane_of_its_own() {
        let mut tables = tables();
        let mut lanes = Vec::new();
        let rules = Rules::compile(&tables, &mut lanes);
        assert!(rules.rows_of(&lanes[0], &tables).is_some());
        tables.configs.get_mut(&1).unwrap().jetstream_enabled = Some(false);
        let rules = Rules::compile(&tables, &mut lanes);
        assert_eq!((rules.webhooks[0].problem.as_deref(), rules.lane(0, b"any.where")), (None, Some(1)));
        assert_eq!(lanes[1], LaneKey { config_id: 1, servers: String::new(), stream: None });
        assert_eq!(
            (rules.rows_of(&lanes[0], &tables).is_some(), rules.rows_of(&lanes[1], &tables).is_some()),
            (false, true)
        );
    }
}
