//! The configuration rows judged and compiled: which webhooks publish, in which format, to which lane.
//!
//! Comes in: [`Tables`]. Goes out: [`Rules`], in which every webhook either works or carries the reason why not. A
//! row that makes no sense is set aside alone; the others flow.

use std::collections::HashMap;

use super::{
    subject,
    tables::{ConfigRow, LinkRow, StreamRow, Tables, WebhookRow},
    value::write_json_str,
};

/// The stream that a lane leads into. Lanes are numbered by their place in a list that only grows, so that a
/// number stays good over recompilations.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// The `rule_nats_config` row.
    pub config_id: i32,
    /// The stream's name.
    pub stream: String,
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
}

/// What becomes of an event that can never be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// walhook stops.
    Halt,
    /// A row in `rule_nats_dead_letters`, then on.
    DeadLetter,
}

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
    /// The subject where neither link nor event names one.
    pub subject: String,
    /// The `webhook` format's constant middle: `,"webhook_id":…,"method":"POST","headers":`
    pub middle: Vec<u8>,
    /// Whether headers that look like credentials may be shown.
    pub expose_credentials: bool,
    /// The headers that may be shown, as a JSON object.
    pub headers: Vec<u8>,
    config_id: i32,
}

/// A `rule_nats_config` row as far as routing goes.
#[derive(Debug, Clone)]
struct Config {
    /// The patterns of each stream, and the stream's lane.
    streams: Vec<(Vec<Vec<u8>>, usize)>,
    problem: Option<String>,
}

/// All rules, compiled.
#[derive(Debug, Default)]
pub struct Rules {
    /// The webhooks, in the order of their ids.
    pub webhooks: Vec<Webhook>,
    by_id: HashMap<i32, usize>,
    configs: HashMap<i32, Config>,
    links: HashMap<(String, String), Vec<(i32, LinkRow)>>,
}

impl Rules {
    /// Judges and compiles all rows. Lanes not seen before are appended to `lanes`.
    pub fn compile(tables: &Tables, lanes: &mut Vec<LaneKey>) -> Rules {
        let configs: HashMap<_, _> =
            tables.configs.iter().map(|(&id, row)| (id, compile_config(id, row, tables, lanes))).collect();
        let default_config = tables.configs.iter().find(|(_, row)| row.config_name == "default").map(|(&id, _)| id);
        let webhooks: Vec<_> = tables
            .webhooks
            .iter()
            .map(|(&id, row)| {
                let config_id = row.nats_config_id.or(default_config);
                compile_webhook(id, row, config_id, config_id.and_then(|id| tables.configs.get(&id)), &configs)
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
        Rules { webhooks, by_id, configs, links }
    }

    /// The index of a webhook in [`Rules::webhooks`].
    pub fn webhook(&self, id: i32) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// The links of a table with their ids, in the order of their webhooks.
    pub fn links(&self, schema: &str, table: &str) -> &[(i32, LinkRow)] {
        // Asked once per table and change of rules, so the two strings do not matter.
        self.links.get(&(schema.to_owned(), table.to_owned())).map_or(&[], Vec::as_slice)
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
}

/// The streams of a configuration: its rows in `rule_nats_streams`, and, where none of them has the name that the
/// configuration itself gives (`stream_name`, by default WEBHOOKS), that one with `<subject_prefix>.>`.
pub fn streams_of(config_id: i32, row: &ConfigRow, tables: &Tables) -> Vec<StreamRow> {
    let default_config = row.config_name == "default";
    let mut streams: Vec<_> = tables
        .streams
        .values()
        .filter(|stream| stream.enabled != Some(false))
        .filter(|stream| stream.config_id == Some(config_id) || (stream.config_id.is_none() && default_config))
        .cloned()
        .collect();
    if let Some(name) = row.stream_name.as_deref().filter(|name| !name.is_empty())
        && !streams.iter().any(|stream| stream.stream_name == name)
        && !tables.streams.values().any(|stream| stream.stream_name == name && stream.config_id == Some(config_id))
    {
        let prefix = row.subject_prefix.as_deref().filter(|prefix| !prefix.is_empty()).unwrap_or("webhooks");
        let pattern = format!("{prefix}.>");
        // Where a row takes these subjects already, JetStream would refuse a second stream for them.
        if !streams.iter().any(|stream| stream.subjects.iter().any(|other| subject::overlaps(other, &pattern))) {
            streams.push(StreamRow {
                config_id: Some(config_id),
                stream_name: name.to_owned(),
                subjects: vec![pattern],
                enabled: Some(true),
                ..StreamRow::default()
            });
        }
    }
    streams
}

fn compile_config(id: i32, row: &ConfigRow, tables: &Tables, lanes: &mut Vec<LaneKey>) -> Config {
    let problem = if row.enabled == Some(false) {
        Some(format!("NATS configuration {:?} is not enabled", row.config_name))
    } else if row.jetstream_enabled == Some(false) {
        Some(format!(
            "NATS configuration {:?} has jetstream_enabled = false, and core NATS gives no acknowledgement to wait for",
            row.config_name
        ))
    } else {
        None
    };
    let streams = if problem.is_some() { Vec::new() } else { streams_of(id, row, tables) };
    let streams = streams
        .into_iter()
        .map(|stream| {
            let key = LaneKey { config_id: id, stream: stream.stream_name };
            let lane = lanes.iter().position(|other| *other == key).unwrap_or_else(|| {
                lanes.push(key);
                lanes.len() - 1
            });
            (stream.subjects.into_iter().map(String::into_bytes).collect(), lane)
        })
        .collect();
    Config { streams, problem }
}

fn compile_webhook(
    id: i32,
    row: &WebhookRow,
    config_id: Option<i32>,
    config_row: Option<&ConfigRow>,
    configs: &HashMap<i32, Config>,
) -> Webhook {
    let mut problems = Vec::new();
    let in_mode = match row.publish_mode.as_deref() {
        None | Some("queue") => false,
        Some("nats" | "both") => true,
        Some(other) => {
            problems.push(format!("publish_mode {other:?} is none of queue, nats, both"));
            true
        }
    };
    let format = match row.payload_format.as_deref() {
        None | Some("webhook") => Format::Webhook,
        Some("data") => Format::Data,
        Some("debezium") => Format::Debezium,
        Some("cloudevents") => Format::CloudEvents,
        Some(other) => {
            problems.push(format!("payload_format {other:?} is none of webhook, data, debezium, cloudevents"));
            Format::Webhook
        }
    };
    let on_error = match row.on_error.as_deref() {
        // The claim check is for the large only; what is impossible for another reason has a row either way.
        None | Some("dead_letter" | "object_store") => OnError::DeadLetter,
        Some("halt") => OnError::Halt,
        Some(other) => {
            problems.push(format!("on_error {other:?} is none of halt, dead_letter, object_store"));
            OnError::DeadLetter
        }
    };
    let subject = row.nats_subject.clone().filter(|subject| !subject.is_empty()).unwrap_or_else(|| {
        let prefix = config_row
            .and_then(|config| config.subject_prefix.as_deref())
            .filter(|prefix| !prefix.is_empty())
            .unwrap_or("webhooks");
        let mut subject = format!("{prefix}.").into_bytes();
        subject::push_token(row.name.as_bytes(), &mut subject);
        String::from_utf8(subject).expect("percent-encoding leaves ASCII")
    });
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
    let headers = match parse_headers(row.headers.as_deref(), row.expose_credentials) {
        Ok(headers) => headers,
        Err(problem) => {
            problems.push(problem);
            b"{}".to_vec()
        }
    };
    let mut middle = format!(",\"webhook_id\":{id},\"webhook_name\":").into_bytes();
    write_json_str(&row.name, &mut middle);
    middle.extend_from_slice(b",\"webhook_url\":");
    write_json_str(&row.url, &mut middle);
    middle.extend_from_slice(b",\"method\":");
    write_json_str(&row.method, &mut middle);
    middle.extend_from_slice(b",\"headers\":");
    Webhook {
        id,
        name: row.name.clone(),
        publishes: row.enabled && row.nats_enabled && in_mode,
        problem: (!problems.is_empty()).then(|| problems.join("; ")),
        format,
        on_error,
        subject,
        middle,
        expose_credentials: row.expose_credentials,
        headers,
        config_id: config_id.unwrap_or(-1),
    }
}

/// The headers object as it goes into payloads: every value a string, as the RFC's Go worker wants it, and nothing
/// that looks like a credential unless the webhook says so.
fn parse_headers(headers: Option<&str>, expose_credentials: bool) -> Result<Vec<u8>, String> {
    let Some(headers) = headers else { return Ok(b"{}".to_vec()) };
    let parsed: serde_json::Value =
        serde_json::from_str(headers).map_err(|error| format!("headers are not JSON: {error}"))?;
    let object = match parsed {
        serde_json::Value::Null => return Ok(b"{}".to_vec()),
        serde_json::Value::Object(object) => object,
        _ => return Err("headers are not a JSON object".to_owned()),
    };
    Ok(visible_headers(object, expose_credentials))
}

/// Writes a headers object, credentials left out unless asked for, every value as a string.
pub fn visible_headers(object: serde_json::Map<String, serde_json::Value>, expose_credentials: bool) -> Vec<u8> {
    let visible: serde_json::Map<_, _> = object
        .into_iter()
        .filter(|(name, value)| expose_credentials || !is_credential(name, value))
        .map(|(name, value)| match value {
            serde_json::Value::String(_) => (name, value),
            other => (name, other.to_string().into()),
        })
        .collect();
    serde_json::Value::Object(visible).to_string().into_bytes()
}

/// Whether a header looks like a credential: by its name, or by a value such as `Bearer …`.
pub fn is_credential(name: &str, value: &serde_json::Value) -> bool {
    let name = name.to_ascii_lowercase();
    let by_name = ["auth", "cookie", "token", "secret", "password", "passwd", "signature", "credential", "session"]
        .iter()
        .any(|word| name.contains(word))
        || name.replace(['-', '_'], "").contains("apikey")
        || name == "key"
        || name.ends_with("-key");
    let by_value = value.as_str().is_some_and(|value| {
        let value = value.trim_start().to_ascii_lowercase();
        ["bearer ", "basic ", "digest ", "negotiate "].iter().any(|scheme| value.starts_with(scheme))
    });
    by_name || by_value
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
        assert_eq!(lanes, [LaneKey { config_id: 1, stream: "WEBHOOKS".to_owned() }]);
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
    fn the_default_stream_gives_way_to_a_row_that_takes_its_subjects() {
        let mut tables = tables();
        let stream = StreamRow {
            config_id: Some(1),
            stream_name: "MINE".to_owned(),
            subjects: vec!["webhooks.*".to_owned()],
            enabled: Some(true),
            ..Default::default()
        };
        tables.streams.insert(1, stream);
        let mut lanes = Vec::new();
        Rules::compile(&tables, &mut lanes);
        assert_eq!(lanes.iter().map(|lane| lane.stream.as_str()).collect::<Vec<_>>(), ["MINE"]);
    }

    #[test]
    fn credentials_stay_out_of_payloads_unless_the_webhook_says_otherwise() {
        let headers = r#"{"Content-Type":"application/json","Authorization":"x","X-Api-Key":"k","N":1,"V":"Bearer t"}"#;
        let shown = String::from_utf8(parse_headers(Some(headers), false).unwrap()).unwrap();
        assert_eq!(shown, r#"{"Content-Type":"application/json","N":"1"}"#);
        let all = String::from_utf8(parse_headers(Some(headers), true).unwrap()).unwrap();
        assert!(all.contains("Authorization") && all.contains("Bearer t"));
    }

    #[test]
    fn patterns_overlap_when_a_subject_fits_both() {
        let check = |a: &str, b: &str, expected: bool| {
            assert_eq!((subject::overlaps(a, b), subject::overlaps(b, a)), (expected, expected), "{a} {b}");
        };
        check("webhooks.*", "webhooks.>", true);
        check("a.*.c", "a.b.*", true);
        check("a.b", "a.c", false);
        check("a.*", "a.b.c", false);
        check(">", "x", true);
        check("a", "a.>", false);
    }
}
