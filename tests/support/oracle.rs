//! Judges what streams hold by what was committed, and by the rules in force where it was committed.
//!
//! In: the lines of a `test_decoding` slot that has all rows of the configuration, and the messages of all streams. Out: what was
//! lost, doubled, misrouted, put out of order, or never committed. It takes nothing from walhook: not its decoder, not its ids'
//! parser, not its versions of rules.
//!
//! Events of a time when their configuration published to core NATS (`jetstream_enabled = false`) have no promise: they may be
//! missing, and they may come twice. A stream that takes their subjects stores them as it does anybody's messages, so they say
//! nothing of its order. What is stored of them must have been committed like that.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::Value;

use super::feed::Message;

/// One event that a committed change makes, or one stored event: they are compared as wholes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fact {
    /// Which one of the streams; [`NO_STREAM`] for what goes to core NATS.
    pub stream: usize,
    pub subject: String,
    pub webhook: u64,
    pub format: String,
    /// 0 where the format does not tell it.
    pub xid: u64,
    /// Empty where the format does not tell it, as `op`.
    pub table: String,
    pub op: String,
    /// Texts are quoted, so that they are nobody's number or null.
    pub row: BTreeMap<String, String>,
    /// Columns whose value the WAL does not have.
    pub unchanged: BTreeSet<String>,
}

impl Fact {
    /// Leaves out what the format does not tell.
    fn within_format(mut self) -> Fact {
        if self.format != "webhook" {
            self.xid = 0;
            self.unchanged.clear();
            self.row.retain(|_, value| value != "null");
        }
        if self.format == "data" {
            self.table.clear();
            self.op.clear();
        }
        self
    }

    /// The same, wherever it is stored.
    fn anywhere(&self) -> Fact {
        Fact { stream: usize::MAX, subject: String::new(), ..self.clone() }
    }
}

/// A tuple as `test_decoding` prints it.
type Tuple = BTreeMap<String, Option<String>>;

/// A row of a configuration table: texts are quoted.
type Row = BTreeMap<String, String>;

/// In place of a stream: core NATS, which takes any subject.
pub const NO_STREAM: usize = usize::MAX - 1;

/// A stream, as the rows of the configuration lead to it.
pub struct Place {
    /// The NATS configuration.
    pub config: &'static str,
    /// Which one of the servers.
    pub server: usize,
    /// The stream's name.
    pub name: String,
    /// What its subjects begin with.
    pub prefix: String,
}

/// Where events can go: the servers by their ports, and the streams in the order in which [`judge`] gets them.
#[derive(Default)]
pub struct Places {
    pub servers: Vec<u16>,
    pub streams: Vec<Place>,
}

impl Places {
    /// The server to which a row of `rule_nats_config` leads.
    fn server_of(&self, config: &Row) -> usize {
        let port = text(&config["nats_url"]).rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        self.servers.iter().position(|server| Some(*server) == port).expect("an address of one of the servers")
    }

    /// The stream that takes `subject` by this row.
    fn stream_of(&self, config: &Row, subject: &str) -> usize {
        let (name, server) = (text(&config["config_name"]), self.server_of(config));
        let takes =
            |place: &Place| place.config == name && place.server == server && subject.starts_with(&place.prefix);
        self.streams.iter().position(takes).unwrap_or_else(|| panic!("no stream of {name} takes {subject}"))
    }
}

/// Where calls are made: their payload is the event, not their row.
const CALLS: &str = "public.rule_webhook_events";

/// How `test_decoding` says that a value did not change.
const UNCHANGED: &str = "unchanged-toast-datum";

/// The rows of the configuration tables at some place in the WAL.
#[derive(Default)]
struct Rules {
    tables: BTreeMap<&'static str, BTreeMap<i64, Row>>,
    /// Keys of rows that are or were there.
    ever: BTreeSet<(&'static str, i64)>,
    /// Some link was deleted; one that is made again has another key.
    lost_link: bool,
}

impl Rules {
    /// The configuration tables and their keys.
    const TABLES: [(&'static str, &'static str); 4] = [
        ("rule_webhooks", "webhook_id"),
        ("rule_webhook_links", "link_id"),
        ("rule_nats_config", "config_id"),
        ("rule_nats_streams", "stream_id"),
    ];

    /// Follows a change of a configuration table; returns what it is called, if it is one.
    fn follow(&mut self, table: &str, op: &str, text: &str) -> Option<(&'static str, i64, String)> {
        let (name, key) = Self::TABLES.into_iter().find(|(name, _)| table.strip_prefix("public.") == Some(name))?;
        let rows = self.tables.entry(name).or_default();
        let (new, unchanged) = row(op, text);
        let id: i64 = new[key].parse().unwrap();
        let before = rows.remove(&id);
        if op == "DELETE" {
            self.lost_link |= name == "rule_webhook_links";
            return Some((name, id, format!("{name}: deleted")));
        }
        let mut after = new;
        for column in unchanged {
            after.insert(column.clone(), before.as_ref().unwrap()[&column].clone());
        }
        let is_new = self.ever.insert((name, id));
        let is_again = !is_new || name == "rule_webhook_links" && self.lost_link;
        let what = match &before {
            None if is_again => format!("{name}: made again"),
            None => format!("{name}: made"),
            Some(before) => {
                let says_when = |column: &str| column == "updated_at";
                let differs = |(column, value): &(&String, &String)| before.get(*column) != Some(*value);
                let columns: Vec<&str> = after.iter().filter(differs).map(|(column, _)| column.as_str()).collect();
                let columns: Vec<&str> = columns.into_iter().filter(|column| !says_when(column)).collect();
                format!("{name}: {}", if columns.is_empty() { "nothing".to_owned() } else { columns.join(", ") })
            }
        };
        rows.insert(id, after);
        Some((name, id, what))
    }

    fn get(&self, table: &str, id: i64) -> Option<&Row> {
        self.tables.get(table)?.get(&id)
    }

    /// What a webhook sends for a change.
    fn event(&self, places: &Places, webhook: i64, subject: Option<String>, change: Fact) -> Option<Fact> {
        let row = self.get("rule_webhooks", webhook)?;
        let on = |column: &str| row[column] == "true";
        if !on("enabled") || !on("nats_enabled") || row["publish_mode"] == "'queue" {
            return None;
        }
        let subject = subject.unwrap_or_else(|| text(&row["nats_subject"]).to_owned());
        let subject =
            subject.replace("{table}", change.table.strip_prefix("public.").unwrap()).replace("{op}", &change.op);
        self.sent(places, webhook, subject, change)
    }

    /// What a webhook sends for something that was accepted for it.
    fn sent(&self, places: &Places, webhook: i64, subject: String, change: Fact) -> Option<Fact> {
        let row = self.get("rule_webhooks", webhook)?;
        let config = match row["nats_config_id"].parse() {
            Ok(id) => self.get("rule_nats_config", id),
            Err(_) => self.tables["rule_nats_config"].values().find(|row| row["config_name"] == "'default"),
        };
        let config = config.expect("the webhook's configuration");
        let stream = match config["jetstream_enabled"].as_str() {
            "false" => NO_STREAM,
            _ => places.stream_of(config, &subject),
        };
        let (format, webhook) = (text(&row["payload_format"]).to_owned(), webhook.unsigned_abs());
        Some(Fact { stream, subject, webhook, format, ..change }.within_format())
    }

    /// What all webhooks send for the change of a row, in the order of the webhooks.
    fn events(&self, places: &Places, change: &Fact) -> Vec<Fact> {
        let (schema, table) = change.table.split_once('.').unwrap();
        let mut events = Vec::new();
        for link in self.tables.get("rule_webhook_links").into_iter().flat_map(BTreeMap::values) {
            let wants = list(&link["operations"]).is_some_and(|operations| operations.contains(&change.op));
            let is_of_table = text(&link["table_schema"]) == schema && text(&link["table_name"]) == table;
            let filter = Some(&link["filter"]).filter(|filter| *filter != "null");
            let filter: Value = filter.map_or(Value::Null, |filter| serde_json::from_str(text(filter)).unwrap());
            let passes = cells(&filter).iter().all(|(column, value)| change.row.get(column) == Some(value));
            if !is_of_table || !wants || !passes || link["enabled"] != "true" {
                continue;
            }
            let mut change = change.clone();
            // The message is a column, which has a JSON object.
            if let Some(column) = link.get("payload_column").filter(|column| *column != "null") {
                change.row = cells(&serde_json::from_str(text(&change.row[text(column)])).unwrap());
            }
            if let Some(columns) = list(&link["columns"]) {
                change.row.retain(|column, _| columns.contains(column));
                change.unchanged.retain(|column| columns.contains(column));
            }
            let template = Some(&link["subject_template"]).filter(|template| *template != "null");
            events.extend(self.event(
                places,
                link["webhook_id"].parse().unwrap(),
                template.map(|template| text(template).to_owned()),
                change,
            ));
        }
        events.sort_by_key(|event| event.webhook);
        events
    }

    /// The streams that others may write into now.
    fn shared<'a>(&'a self, places: &'a Places) -> impl Iterator<Item = usize> + 'a {
        let rows = self.tables.get("rule_nats_streams").into_iter().flat_map(BTreeMap::values);
        rows.filter(|row| row["ordering"] == "'shared").flat_map(move |row| {
            let config = row["config_id"].parse().ok().and_then(|id| self.get("rule_nats_config", id));
            let config = config.map_or("", |config| text(&config["config_name"]));
            let is_it = move |place: &Place| place.config == config && place.name == text(&row["stream_name"]);
            places.streams.iter().enumerate().filter(move |(_, place)| is_it(place)).map(|(at, _)| at)
        })
    }
}

/// A quoted text without its quote.
fn text(cell: &str) -> &str {
    cell.strip_prefix('\'').unwrap_or(cell)
}

/// An array of words.
fn list(cell: &str) -> Option<Vec<String>> {
    let words = text(cell).strip_prefix('{')?.strip_suffix('}')?;
    Some(words.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect())
}

/// What a slot's lines amount to.
#[derive(Default)]
pub struct Committed {
    /// The events that had to be stored, in commit order.
    pub facts: Vec<Fact>,
    /// Streams that were shared at some time: their order may have suffered.
    pub shared: BTreeSet<usize>,
    /// Webhooks that were deleted at some time, and with them what the history says of them.
    pub deleted: BTreeSet<u64>,
    /// How many changes of rules there were, by what changed.
    pub rule_changes: BTreeMap<String, usize>,
    places: Places,
    rules: Rules,
    xid: u64,
}

impl Committed {
    /// Nothing so far.
    pub fn new(places: Places) -> Committed {
        Committed { places, ..Committed::default() }
    }

    /// Reads on: each event goes by the rules at its own line.
    pub fn read<'a>(&mut self, lines: impl IntoIterator<Item = &'a str>) {
        for line in lines {
            if let Some(begun) = line.strip_prefix("BEGIN ") {
                self.xid = begun.parse().unwrap();
                continue;
            }
            if let Some(message) = line.strip_prefix("message: transactional: 1 prefix: walhook.emit, sz: ") {
                self.emitted(message.split_once("content:").unwrap().1);
                continue;
            }
            let Some(change) = line.strip_prefix("table ") else { continue };
            let (tables, change) = change.split_once(": ").unwrap();
            let (op, text) = change.split_once(':').unwrap();
            if let Some((name, id, what)) = self.rules.follow(tables, op, text) {
                if op == "DELETE" && name == "rule_webhooks" {
                    self.deleted.insert(id.unsigned_abs());
                }
                *self.rule_changes.entry(what).or_default() += 1;
                self.shared.extend(self.rules.shared(&self.places));
                continue;
            }
            for table in tables.split(", ") {
                self.change(table, op, text);
            }
        }
    }

    /// A message of `rule_webhook_emit`: its signature, five numbers, the call and the payload.
    fn emitted(&mut self, content: &str) {
        let [_version, xid, _key, webhook, length, rest] = content[44..].splitn(6, ' ').collect::<Vec<_>>()[..] else {
            panic!("{content}");
        };
        let (call, payload) = rest.split_at(length.parse().unwrap());
        let call: Value = serde_json::from_str(call).unwrap();
        let webhook = webhook.parse().unwrap();
        let Some(row) = self.rules.get("rule_webhooks", webhook) else { return };
        let subject = text(&row["nats_subject"]).to_owned() + call["tokens"].as_str().unwrap_or_default();
        let event = Fact {
            stream: 0,
            subject: String::new(),
            webhook: 0,
            format: String::new(),
            // `test_decoding` writes a BEGIN only before the first row.
            xid: xid.parse().unwrap(),
            table: String::new(),
            op: "insert".to_owned(),
            row: cells(&serde_json::from_str(payload).unwrap()),
            unchanged: BTreeSet::new(),
        };
        let event = self.rules.sent(&self.places, webhook, subject, event);
        self.facts.extend(event);
    }

    fn change(&mut self, table: &str, op: &str, text_of: &str) {
        let change = |row, unchanged| Fact {
            stream: 0,
            subject: String::new(),
            webhook: 0,
            format: String::new(),
            xid: self.xid,
            table: table.to_owned(),
            op: op.to_lowercase(),
            row,
            unchanged,
        };
        if table == CALLS {
            let Some(payload) = call(op, text_of) else { return };
            let row = row(op, text_of).0;
            let subject = Some(&row["subject"]).filter(|subject| *subject != "null");
            let subject = subject.map(|subject| text(subject).to_owned());
            let webhook = row["webhook_id"].parse().unwrap();
            let event = self.rules.event(&self.places, webhook, subject, change(payload, BTreeSet::new()));
            self.facts.extend(event);
            return;
        }
        let (row, unchanged) = if op == "TRUNCATE" { Default::default() } else { row(op, text_of) };
        let events = self.rules.events(&self.places, &change(row, unchanged));
        self.facts.extend(events);
    }
}

/// The payload of a call; what becomes of its row later is no event.
fn call(op: &str, text: &str) -> Option<BTreeMap<String, String>> {
    let payload = tuple(text).0.remove("payload").filter(|_| op == "INSERT")??;
    Some(cells(&serde_json::from_str(payload.strip_prefix('\'')?).unwrap()))
}

/// A JSON object as a fact has it.
fn cells(data: &Value) -> BTreeMap<String, String> {
    let cell = |value: &Value| match value {
        Value::String(text) => format!("'{text}"),
        other => other.to_string(),
    };
    data.as_object().into_iter().flatten().map(|(column, value)| (column.clone(), cell(value))).collect()
}

fn row(op: &str, text: &str) -> (BTreeMap<String, String>, BTreeSet<String>) {
    let (old, text) = match text.strip_prefix(" old-key:") {
        Some(old) => tuple(old),
        None => (Tuple::new(), text),
    };
    let (new, _) = tuple(text);
    let (mut row, mut unchanged) = (BTreeMap::new(), BTreeSet::new());
    for (column, value) in new {
        match value.or_else(|| old.get(&column).cloned().flatten()) {
            // It prints no nulls of a deleted row.
            Some(value) if op == "DELETE" && value == "null" => {}
            Some(value) => drop(row.insert(column, value)),
            None => drop(unchanged.insert(column)),
        }
    }
    (row, unchanged)
}

/// `name[type]:value name[type]:'value' …`, None for an unchanged one; and what comes after `new-tuple:`, if that follows.
fn tuple(text: &str) -> (Tuple, &str) {
    let mut tuple = Tuple::new();
    let mut rest = text.trim_start();
    while let Some((name, after)) = rest.split_once('[') {
        if let Some(new) = rest.strip_prefix("new-tuple:") {
            return (tuple, new);
        }
        let (_, value) = after.split_once("]:").unwrap();
        let (value, after) = match value.strip_prefix('\'') {
            Some(quoted) => {
                let end = quoted_end(quoted);
                (Some(format!("'{}", quoted[..end].replace("''", "'"))), &quoted[end + 1..])
            }
            None => {
                let end = value.find(' ').unwrap_or(value.len());
                ((value[..end] != *UNCHANGED).then(|| value[..end].to_owned()), &value[end..])
            }
        };
        tuple.insert(name.to_owned(), value);
        rest = after.trim_start();
    }
    (tuple, rest)
}

/// Where the closing quote is; doubled ones are text.
fn quoted_end(quoted: &str) -> usize {
    let mut at = 0;
    loop {
        at += quoted[at..].find('\'').unwrap();
        if !quoted[at + 1..].starts_with('\'') {
            return at;
        }
        at += 2;
    }
}

/// What a message says was committed.
fn told(stream: usize, message: &Message) -> Fact {
    let payload = &message.payload;
    let event = &payload["event"];
    let attribute = |name: &str| match payload["specversion"].is_string() {
        true => payload[name].as_str().unwrap_or_default().to_owned(),
        false => message.header(&format!("ce-{name}")).to_owned(),
    };
    let (format, data) = match (event["op"].is_string(), payload["specversion"].is_string()) {
        (true, _) => ("webhook", message.data()),
        (_, true) => ("cloudevents", message.data()),
        _ if !message.header("ce-id").is_empty() => ("cloudevents_binary", payload),
        _ => ("data", payload),
    };
    let (mut table, mut op) =
        (event["table"].as_str().unwrap_or_default().to_owned(), event["op"].as_str().unwrap_or_default().to_owned());
    if let Some((of, what)) = attribute("type").rsplit_once('.').filter(|_| format.starts_with("cloudevents")) {
        (table, op) = (of.to_owned(), what.to_owned());
    }
    let mut row = cells(data);
    row.retain(|_, value| op != "delete" || value != "null");
    let unchanged = event["unchanged"].as_array().into_iter().flatten();
    let unchanged = unchanged.map(|column| column.as_str().unwrap_or_default().to_owned()).collect();
    let webhook = position(id(message)).map_or(0, |(_, _, webhook)| webhook);
    let stream = if by_core(message) { NO_STREAM } else { stream };
    let (subject, xid) = (message.subject.clone(), event["xid"].as_u64().unwrap_or_default());
    Fact { stream, subject, webhook, format: format.to_owned(), xid, table, op, row, unchanged }.within_format()
}

/// The place in the WAL that an id names: commit LSN, number in the transaction, webhook.
pub fn position(id: &str) -> Option<(u64, u64, u64)> {
    let mut parts = id.rsplit('-');
    let (webhook, ordinal) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let _time = parts.next()?;
    Some((u64::from_str_radix(parts.next()?, 16).ok()?, ordinal, webhook))
}

/// Whether a message came by core NATS: it names no stream that it expects.
pub fn by_core(message: &Message) -> bool {
    message.header("Nats-Expected-Stream").is_empty()
}

/// The id that walhook gave, whether or not the caller's own stands in its place.
pub fn id(message: &Message) -> &str {
    match message.header("Walhook-Id") {
        "" => message.header("Nats-Msg-Id"),
        id => id,
    }
}

/// What does not hold.
#[derive(Debug, Default)]
pub struct Findings {
    pub lost: usize,
    pub duplicated: usize,
    pub reordered: usize,
    /// Stored elsewhere than the rules at its commit said.
    pub misrouted: usize,
    /// Never committed, or not like that.
    pub phantoms: usize,
    /// The first of each kind, in words.
    pub examples: Vec<String>,
}

impl Findings {
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.misrouted + self.phantoms == 0 && self.examples.is_empty()
    }

    /// What else does not hold.
    pub fn add(&mut self, words: impl Into<String>) {
        if self.examples.len() < 20 {
            self.examples.push(words.into().chars().take(600).collect());
        }
    }
}

/// Committed ⇒ stored, where the rules at the commit say, once over all streams, in order; not committed ⇒ not stored.
pub fn judge(committed: &Committed, streams: &[Vec<Message>]) -> Findings {
    let mut found = Findings::default();
    let mut ids = HashMap::new();
    for (stream, stored) in streams.iter().enumerate() {
        let mut last = None;
        for (index, message) in stored.iter().enumerate() {
            let at = (stream, message.sequence);
            if message.sequence != index as u64 + 1 {
                found.add(format!("message {at:?} stands in place {}", index + 1));
            }
            if by_core(message) {
                continue;
            }
            if let Some(before) = ids.insert(id(message), at) {
                found.duplicated += 1;
                found.add(format!("{} is stored at {before:?} and at {at:?}", id(message)));
                continue;
            }
            let position = position(id(message));
            if position.is_none() || position <= last && !committed.shared.contains(&stream) {
                found.reordered += 1;
                found.add(format!("{} at {at:?} does not come after {last:x?}", id(message)));
            }
            last = position;
        }
    }
    let told: Vec<Vec<Fact>> = streams
        .iter()
        .enumerate()
        .map(|(stream, stored)| stored.iter().map(|message| told(stream, message)).collect())
        .collect();
    let mut balance: HashMap<&Fact, i64> = HashMap::new();
    for fact in &committed.facts {
        *balance.entry(fact).or_default() += 1;
    }
    for fact in told.iter().flatten() {
        *balance.entry(fact).or_default() -= 1;
    }
    let known: HashSet<&Fact> = committed.facts.iter().collect();
    // Of core NATS anything may be missing or come twice, but nothing that was not committed.
    let is_wrong = |(fact, count): &(&Fact, i64)| *count != 0 && (fact.stream != NO_STREAM || !known.contains(*fact));
    let mut wrong: Vec<_> = balance.into_iter().filter(is_wrong).collect();
    wrong.sort_unstable();
    // What one stream lacks and another has.
    let mut lacking: HashMap<Fact, i64> = HashMap::new();
    for (fact, count) in &wrong {
        if *count > 0 {
            *lacking.entry(fact.anywhere()).or_default() += count;
        }
    }
    let mut elsewhere: HashMap<Fact, i64> = HashMap::new();
    for (fact, count) in &mut wrong {
        let anywhere = fact.anywhere();
        let moved = (-*count).min(lacking.get(&anywhere).copied().unwrap_or_default());
        if moved > 0 {
            *count += moved;
            *lacking.entry(anywhere.clone()).or_default() -= moved;
            *elsewhere.entry(anywhere).or_default() += moved;
            found.misrouted += usize::try_from(moved).unwrap();
            found.add(format!("stored elsewhere than the rules at its commit say: {fact:?}"));
        }
    }
    for (fact, count) in &mut wrong {
        if let Some(moved) = elsewhere.get_mut(&fact.anywhere()).filter(|_| *count > 0) {
            let taken = (*moved).min(*count);
            *moved -= taken;
            *count -= taken;
        }
    }
    for (fact, count) in wrong.into_iter().filter(|(_, count)| *count != 0) {
        let times = usize::try_from(count.abs()).unwrap();
        match (count > 0, known.contains(fact)) {
            (true, _) => {
                found.lost += times;
                found.add(format!("committed and not stored: {fact:?}"));
            }
            // By its id, it is counted above.
            (false, true) if found.duplicated >= times => {}
            (false, true) => found.duplicated += times,
            (false, false) => {
                found.phantoms += times;
                found.add(format!("stored and not committed: {fact:?}"));
            }
        }
    }
    if found.is_clean() {
        for (stream, told) in told.iter().enumerate().filter(|(stream, _)| !committed.shared.contains(stream)) {
            let told: Vec<&Fact> = told.iter().filter(|fact| fact.stream == stream).collect();
            let expected = committed.facts.iter().filter(|fact| fact.stream == stream);
            if let Some((at, (told, next))) =
                told.into_iter().zip(expected).enumerate().find(|(_, (told, next))| told != next)
            {
                found.reordered += 1;
                found.add(format!("message {} of {stream} tells {told:?}, and {next:?} was next", at + 1));
            }
        }
    }
    found
}

/// The slot's position, and after it the streams' last sequences.
pub struct Sample {
    pub confirmed: u64,
    pub tails: Vec<u64>,
}

/// What was not in a strict stream when the slot's position was read comes after that position.
pub fn confirmed_too_early(samples: &[Sample], stream: usize, stored: &[Message], found: &mut Findings) {
    for Sample { confirmed, tails } in samples {
        let next = usize::try_from(tails[stream]).unwrap();
        let Some(message) = stored.iter().skip(next).find(|message| !by_core(message)) else { continue };
        let (commit, ..) = position(id(message)).unwrap_or_default();
        if commit < *confirmed {
            found.add(format!(
                "{confirmed:X} was confirmed while message {} ({commit:X}) was not stored",
                message.sequence
            ));
        }
    }
}

/// All messages of `webhook`, in commit order.
pub fn of_webhook(streams: &[Vec<Message>], webhook: u64) -> Vec<&Message> {
    let is_its = |message: &&Message| position(id(message)).is_some_and(|(_, _, of)| of == webhook);
    let mut messages: Vec<&Message> = streams.iter().flatten().filter(is_its).collect();
    messages.sort_by_key(|message| position(id(message)));
    messages
}

/// The rows of `table` that a reader of these messages has in the end, by key, as `column` → value.
pub fn fold<'m>(stored: impl IntoIterator<Item = &'m Message>, table: &str) -> BTreeMap<i64, BTreeMap<String, Value>> {
    let mut rows: BTreeMap<i64, BTreeMap<String, Value>> = BTreeMap::new();
    for message in stored.into_iter().filter(|message| message.payload["event"]["table"] == table) {
        let event = &message.payload["event"];
        let key = |row: &Value| row["id"].as_i64();
        match event["op"].as_str().unwrap_or_default() {
            "truncate" => rows.clear(),
            "delete" => drop(key(message.data()).and_then(|id| rows.remove(&id))),
            _ => {
                let (Some(data), Some(id)) = (message.data().as_object(), key(message.data())) else { continue };
                let before = rows.remove(&key(&event["old"]).unwrap_or(id)).unwrap_or_default();
                let mut row: BTreeMap<_, _> = data.clone().into_iter().collect();
                for column in event["unchanged"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    row.insert(column.to_owned(), before.get(column).cloned().unwrap_or(Value::Null));
                }
                rows.insert(id, row);
            }
        }
    }
    rows
}
