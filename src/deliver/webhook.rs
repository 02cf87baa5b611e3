//! A webhook as those who call it know it.
//!
//! In: the configuration rows. Out: one [`Webhook`] each, which is also what the streamer puts into the bucket, as JSON.
//! Always holds: what goes into the bucket has no secret in it, and says so where something was left out. Whether a URL
//! can be called is judged when it is called, so that the reason stands in the call's record.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{oauth2::OAuth2, order::KeyFrom, sign::Scheme};
use crate::route::{
    headers::is_credential,
    rules::{self, Format, Rules},
    shown_url::shown_url,
    subject,
    tables::{DeliveryColumns, LinkRow, Tables, WebhookRow},
};

/// What the body of a request is, for a webhook whose messages have the format `webhook`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestBody {
    /// The row or the caller's payload, as the RFC's workers send it.
    #[default]
    Data,
    /// The whole message.
    Message,
}

/// How large the requests of a webhook get that have several events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchLimits {
    /// So many events.
    pub events: usize,
    /// So many bytes of the body, unless one event has more.
    pub bytes: usize,
    /// So long the first event waits for others.
    pub wait: Duration,
}

/// What a worker needs to know of a webhook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Webhook {
    /// Its id.
    pub webhook_id: i32,
    /// Its name.
    pub name: String,
    /// Where it is called. In the bucket without credentials.
    pub url: String,
    /// How.
    pub method: String,
    /// Static headers.
    pub headers: BTreeMap<String, String>,
    /// Names of headers that look like credentials and are not listed here, and `url` where it has some: only a worker with a database
    /// may call.
    #[serde(default)]
    pub withheld: Vec<String>,
    /// How long an answer may take.
    pub timeout_ms: u64,
    /// Whether a failed call is tried again.
    pub retry_enabled: bool,
    /// How often.
    pub max_retries: u32,
    /// The wait before the first retry.
    pub retry_delay_ms: u64,
    /// What each further wait is multiplied by.
    pub retry_backoff_multiplier: f64,
    /// Not enabled, or its receiver has answered 410: its events wait in the stream.
    pub enabled: bool,
    /// Whether it publishes to NATS now.
    pub publishes: bool,
    /// Whether every request is signed.
    pub signed: bool,
    /// When a secret was last set or deleted: a new value means that they are to be read again.
    pub secrets_changed_at: Option<String>,
    /// Its messages are in the format `webhook`, which has the data inside.
    pub has_envelope: bool,
    /// Its messages are CloudEvents.
    pub is_cloudevent: bool,
    /// What of a message in that format is sent.
    pub request_body: RequestBody,
    /// One call at a time, in the stream's order.
    pub is_ordered: bool,
    /// One call at a time of the events of each key, in the stream's order.
    #[serde(default)]
    pub order_key: Option<KeyFrom>,
    /// How many calls at a time, over all workers with a database; otherwise the worker's own setting, for each worker.
    pub max_in_flight: Option<u32>,
    /// How many calls a second, over all workers.
    #[serde(default)]
    pub rate_limit_per_second: Option<f64>,
    /// How requests are signed, where they are.
    #[serde(default)]
    pub signature: Scheme,
    /// Connections show a certificate.
    #[serde(default)]
    pub client_certificate: bool,
    /// Requests carry an access token.
    #[serde(default)]
    pub has_oauth2: bool,
    /// How many events go into one request, where several do.
    #[serde(default)]
    pub batch: Option<BatchLimits>,
    /// From where. Not in the bucket: its parameters may hold what is nobody else's to know.
    #[serde(skip)]
    pub oauth2: Option<OAuth2>,
    /// The subjects that its events are published on.
    pub subjects: Vec<String>,
}

impl Webhook {
    /// How often an event may be tried.
    pub fn attempts(&self) -> u32 {
        if self.retry_enabled { self.max_retries.saturating_add(1) } else { 1 }
    }

    /// Whether an event has no attempt after this one.
    pub fn is_last(&self, attempt: u64) -> bool {
        attempt >= u64::from(self.attempts())
    }

    /// Only a worker with a database can call it as it must be called.
    pub fn needs_database(&self) -> bool {
        self.signed
            || self.client_certificate
            || self.has_oauth2
            || self.rate_limit_per_second.is_some()
            || self.order_key.is_some()
            || !self.withheld.is_empty()
    }
}

impl Webhook {
    /// Why that is so.
    pub fn why_database(&self) -> &'static str {
        if self.signed {
            "it is signed"
        } else if self.client_certificate {
            "it is called with a client certificate"
        } else if self.has_oauth2 {
            "it is called with an access token"
        } else if self.rate_limit_per_second.is_some() {
            "workers share its rate_limit_per_second through the database"
        } else if self.order_key.is_some() {
            "workers agree through the database on who calls it in the order of its keys"
        } else {
            "it has credentials in its headers or its url"
        }
    }
}

/// Whether headers that look like credentials are included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// For a worker that has read the database itself.
    Included,
    /// In the bucket. A webhook with `expose_credentials` includes them anyway, as its messages do.
    Withheld,
}

/// The webhooks whose events go to the NATS of configuration `config_name`, in the order of their ids.
pub fn webhooks(tables: &Tables, config_name: &str, credentials: Credentials) -> Vec<Webhook> {
    webhooks_of(tables, Some(config_name), credentials)
}

/// The same; without the name of a configuration all that there are.
pub fn webhooks_of(tables: &Tables, config_name: Option<&str>, credentials: Credentials) -> Vec<Webhook> {
    let named = |name: &str| tables.configs.iter().find(|(_, row)| row.config_name == name).map(|(&id, _)| id);
    let (config, default) = (config_name.and_then(named), named("default"));
    let rules = Rules::compile(tables, &mut Vec::new());
    // Once for all webhooks, not all links for each of them.
    let mut links: HashMap<i32, Vec<&LinkRow>> = HashMap::new();
    for link in tables.links.values() {
        links.entry(link.webhook_id).or_default().push(link);
    }
    let compiled = rules.webhooks.iter().filter_map(|compiled| Some((compiled, tables.webhooks.get(&compiled.id)?)));
    compiled
        .filter(|(_, row)| config_name.is_none() || config.is_some() && row.nats_config_id.or(default) == config)
        .map(|(compiled, row)| {
            let delivery = &row.delivery;
            let (headers, withheld) = headers(row.headers.as_deref());
            let includes = credentials == Credentials::Included || row.expose_credentials;
            let (headers, mut withheld) = match includes {
                true => (headers.into_iter().chain(withheld).collect(), Vec::new()),
                false => (headers, withheld.into_keys().collect()),
            };
            let url = if includes { Cow::Borrowed(row.url.as_str()) } else { shown_url(&row.url) };
            if url != row.url {
                withheld.push("url".to_owned());
            }
            Webhook {
                webhook_id: compiled.id,
                name: row.name.clone(),
                url: url.into_owned(),
                method: row.method.clone(),
                headers,
                withheld,
                timeout_ms: positive(delivery.timeout_ms, 5000),
                retry_enabled: delivery.retry_enabled.unwrap_or(true),
                max_retries: delivery.max_retries.map_or(3, |retries| u32::try_from(retries).unwrap_or(0)),
                retry_delay_ms: delivery.retry_delay_ms.map_or(1000, |delay| u64::try_from(delay).unwrap_or(0)),
                retry_backoff_multiplier: delivery.retry_backoff_multiplier.unwrap_or(2.0),
                enabled: row.enabled && !delivery.has_receiver_gone,
                publishes: compiled.publishes && compiled.problem.is_none(),
                signed: delivery.signed,
                secrets_changed_at: delivery.secrets_changed_at.clone(),
                has_envelope: compiled.format == Format::Webhook,
                is_cloudevent: compiled.format == Format::CloudEvents,
                request_body: match delivery.request_body.as_deref() {
                    Some("message") => RequestBody::Message,
                    _ => RequestBody::Data,
                },
                is_ordered: delivery.delivery_order.as_deref() == Some("strict"),
                order_key: (delivery.delivery_order.as_deref() == Some("key"))
                    .then(|| KeyFrom::read(delivery.order_key.as_deref())),
                max_in_flight: delivery
                    .max_in_flight
                    .and_then(|count| u32::try_from(count).ok())
                    .filter(|count| *count > 0),
                rate_limit_per_second: delivery.rate_limit_per_second.filter(|rate| *rate > 0.0 && rate.is_finite()),
                signature: Scheme::read(delivery.signature_scheme.as_deref(), delivery.signature_template.as_deref()),
                client_certificate: delivery.client_certificate,
                has_oauth2: delivery.oauth2.is_some(),
                batch: batch_of(delivery),
                oauth2: delivery.oauth2.as_deref().map(OAuth2::read),
                subjects: subjects(compiled, row, links.get(&compiled.id).map_or(&[], Vec::as_slice)),
            }
        })
        .collect()
}

fn batch_of(delivery: &DeliveryColumns) -> Option<BatchLimits> {
    let events = usize::try_from(delivery.batch_max_events?).ok().filter(|events| *events > 1)?;
    // Events of a webhook in order are called one by one.
    matches!(delivery.delivery_order.as_deref(), None | Some("any")).then(|| BatchLimits {
        events,
        bytes: usize::try_from(positive(delivery.batch_max_bytes, 1 << 20)).unwrap_or(1 << 20),
        wait: Duration::from_millis(
            delivery.batch_max_wait_ms.and_then(|wait| u64::try_from(wait).ok()).unwrap_or(100),
        ),
    })
}

fn positive(value: Option<i32>, default: u64) -> u64 {
    value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
}

type Headers = BTreeMap<String, String>;

/// The headers, those that look like credentials apart. What is no object has none: `rules` tells the streamer's log.
fn headers(text: Option<&str>) -> (Headers, Headers) {
    let object: serde_json::Map<String, serde_json::Value> =
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let (secret, plain): (Vec<_>, Vec<_>) = object.into_iter().partition(|(name, value)| is_credential(name, value));
    (plain.into_iter().map(as_text).collect(), secret.into_iter().map(as_text).collect())
}

fn as_text((name, value): (String, serde_json::Value)) -> (String, String) {
    match value {
        serde_json::Value::String(text) => (name, text),
        other => (name, other.to_string()),
    }
}

/// A webhook's own subject, those of its links' templates, and those of the events of changed columns that it asks for, as patterns
/// for a consumer. Links that are off count as well: their events may still be in the stream.
fn subjects(compiled: &rules::Webhook, row: &WebhookRow, links: &[&LinkRow]) -> Vec<String> {
    let mut patterns = vec![compiled.subject.clone()];
    for link in links {
        let templates = link.subject_template.as_deref();
        patterns.extend(templates.map(|template| format!("{}{}", compiled.subject_prefix, pattern(template, link))));
        if row.publish_column_changes {
            let subject = compiled.columns_subject(link);
            patterns.extend(String::from_utf8(subject));
        }
    }
    cover(patterns.into_iter().filter(|pattern| is_pattern(pattern)).collect())
}

/// The template with the names of its table in place, and a wildcard for every token that differs from row to row.
fn pattern(template: &str, link: &LinkRow) -> String {
    let token = |text: &str| {
        let mut token = Vec::new();
        subject::push_token(text.as_bytes(), &mut token);
        String::from_utf8(token).expect("percent-encoding leaves ASCII")
    };
    let named = template.replace("{schema}", &token(&link.table_schema)).replace("{table}", &token(&link.table_name));
    // A column's name may have a dot in it, which parts no tokens.
    let mut tokens = vec![String::new()];
    let mut inside = false;
    for character in named.chars() {
        match character {
            '.' if !inside => tokens.push(String::new()),
            _ => {
                inside = character == '{' || inside && character != '}';
                tokens.last_mut().expect("one at least").push(character);
            }
        }
    }
    let tokens = tokens.into_iter().map(|token| if token.contains('{') { "*".to_owned() } else { token });
    tokens.collect::<Vec<_>>().join(".")
}

fn is_pattern(pattern: &str) -> bool {
    !pattern.is_empty()
        && !pattern.starts_with('$')
        && pattern.split('.').all(|token| !token.is_empty() && !token.contains(|c: char| c <= ' ' || c == '\x7f'))
}

/// As few patterns as take all that these take, no two of which overlap: JetStream refuses a consumer with such. Where
/// neither of two that do takes all of the other, a wider one comes in their place.
pub fn cover(mut patterns: Vec<String>) -> Vec<String> {
    patterns.sort();
    let mut covered: Vec<String> = Vec::new();
    while let Some(pattern) = patterns.pop() {
        match covered.iter().position(|other| subject::overlaps(other, &pattern)) {
            // The wider one has to be held against the others again.
            Some(at) => patterns.push(union(&covered.swap_remove(at), &pattern)),
            None => covered.push(pattern),
        }
    }
    covered.sort();
    covered
}

/// A pattern that takes all that two overlapping ones take.
fn union(a: &str, b: &str) -> String {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    let mut tokens = Vec::new();
    loop {
        match (a.next(), b.next()) {
            (Some(">"), _) | (_, Some(">")) => {
                tokens.push(">");
                break;
            }
            (Some(x), Some(y)) => tokens.push(if x == y { x } else { "*" }),
            _ => break,
        }
    }
    tokens.join(".")
}

/// One that the tests of what is done with webhooks begin with.
#[cfg(test)]
pub fn example() -> Webhook {
    serde_json::from_value(serde_json::json!({
        "webhook_id": 1, "name": "w", "url": "https://example.com", "method": "POST", "headers": {},
        "timeout_ms": 5000, "retry_enabled": true, "max_retries": 3, "retry_delay_ms": 1000,
        "retry_backoff_multiplier": 2.0, "enabled": true, "publishes": true, "signed": false,
        "secrets_changed_at": null, "has_envelope": true, "is_cloudevent": false, "request_body": "data",
        "is_ordered": false, "max_in_flight": null, "subjects": []
    }))
    .expect("a webhook")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::route::tables::ConfigRow;

    fn tables() -> Tables {
        let mut tables = Tables::default();
        for (id, name) in [(1, "default"), (2, "other")] {
            let row = ConfigRow { config_id: id, config_name: name.to_owned(), ..ConfigRow::default() };
            tables.configs.insert(id, row);
        }
        let row = WebhookRow {
            name: "orders".to_owned(),
            url: "https://example.com/".to_owned(),
            method: "POST".to_owned(),
            headers: Some(r#"{"X-Plain": 1, "Authorization": "Bearer t"}"#.to_owned()),
            enabled: true,
            nats_enabled: true,
            publish_mode: Some("nats".to_owned()),
            ..WebhookRow::default()
        };
        tables.webhooks.insert(7, row.clone());
        tables.webhooks.insert(8, WebhookRow { name: "others".to_owned(), nats_config_id: Some(2), ..row });
        let link = |webhook_id, template: &str| LinkRow {
            webhook_id,
            table_schema: "public".to_owned(),
            table_name: "or.ders".to_owned(),
            subject_template: Some(template.to_owned()),
            ..LinkRow::default()
        };
        tables.links.insert(1, link(7, "webhooks.{table}.{op}"));
        tables.links.insert(2, link(8, "webhooks.x"));
        tables
    }

    #[test]
    fn a_configuration_has_its_own_webhooks_and_the_default_one_those_that_name_none() {
        let ids =
            |name| webhooks(&tables(), name, Credentials::Included).iter().map(|w| w.webhook_id).collect::<Vec<_>>();
        assert_eq!((ids("default"), ids("other"), ids("nowhere")), (vec![7], vec![8], vec![]));
    }

    #[test]
    fn credentials_are_shown_only_to_readers_of_the_database() {
        let listed = &webhooks(&tables(), "default", Credentials::Included)[0];
        assert_eq!(listed.headers["Authorization"], "Bearer t");
        assert!(!listed.needs_database());
        let withheld = &webhooks(&tables(), "default", Credentials::Withheld)[0];
        assert_eq!(withheld.withheld, ["Authorization"]);
        assert!(withheld.needs_database() && !serde_json::to_string(withheld).unwrap().contains("Bearer"));
        assert_eq!(withheld.headers["X-Plain"], "1");
        // A login in the URL is one as well.
        let mut with_login = tables();
        let row = with_login.webhooks.get_mut(&7).unwrap();
        (row.url, row.headers) = ("https://u:hunter2@example.com/?token=hunter2".to_owned(), None);
        let withheld = &webhooks(&with_login, "default", Credentials::Withheld)[0];
        assert_eq!((withheld.url.as_str(), withheld.needs_database()), ("https://example.com/?token=***", true));
        assert!(webhooks(&with_login, "default", Credentials::Included)[0].url.contains("u:hunter2@"));
        let mut tables = tables();
        tables.webhooks.get_mut(&7).unwrap().expose_credentials = true;
        assert!(!webhooks(&tables, "default", Credentials::Withheld)[0].needs_database());
    }

    #[test]
    fn what_goes_into_the_bucket_comes_out_of_it() {
        let webhook = &webhooks(&tables(), "default", Credentials::Withheld)[0];
        let read: Webhook = serde_json::from_str(&serde_json::to_string(webhook).unwrap()).unwrap();
        assert_eq!(&read, webhook);
    }

    #[test]
    fn the_subjects_are_its_own_and_its_links_with_wildcards_for_what_rows_say() {
        let webhook = &webhooks(&tables(), "default", Credentials::Included)[0];
        assert_eq!(webhook.subjects, ["webhooks.or%2Eders.*", "webhooks.orders"]);
        let link = LinkRow { table_schema: "s".to_owned(), table_name: "t".to_owned(), ..LinkRow::default() };
        assert_eq!(pattern("a.{schema}-{op}.x{a.b}.{table}", &link), "a.*.*.t");
        let mut tables = tables();
        tables.webhooks.get_mut(&7).unwrap().publish_column_changes = true;
        tables.links.insert(1, LinkRow { webhook_id: 7, table_name: "orders".to_owned(), ..LinkRow::default() });
        let webhook = &webhooks(&tables, "default", Credentials::Included)[0];
        assert_eq!(webhook.subjects, ["webhooks.orders", "webhooks.orders.columns"]);
    }

    #[test]
    fn patterns_are_gathered_until_no_two_overlap() {
        let check = |patterns: &[&str], expected: &[&str]| {
            let covered = cover(patterns.iter().map(|&pattern| pattern.to_owned()).collect());
            assert_eq!(covered, expected, "{patterns:?}");
        };
        check(&["a.b", "a.c"], &["a.b", "a.c"]);
        check(&["a.b", "a.b", "a.*"], &["a.*"]);
        check(&["a.*.c", "a.b.*", "x"], &["a.*.*", "x"]);
        check(&["a.*.c", "a.b.*", "a.d.d"], &["a.*.*"]);
        check(&["a.>", "a.b.c", "b"], &["a.>", "b"]);
    }
}
