//! Judges what streams hold by what was committed.
//!
//! In: the lines of a `test_decoding` slot that was made before the workload, and the messages of one stream. Out: what was
//! lost, doubled, put out of order, or never committed. It takes nothing from walhook: not its decoder, not its ids' parser.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::support::feed::Message;

/// One committed change of a linked table, or one stored event: they are compared as wholes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fact {
    pub xid: u64,
    pub table: String,
    pub op: String,
    /// Texts are quoted, so that they are nobody's number or null.
    pub row: BTreeMap<String, String>,
    /// Columns whose value the WAL does not have.
    pub unchanged: BTreeSet<String>,
}

/// A tuple as `test_decoding` prints it.
type Tuple = BTreeMap<String, Option<String>>;

/// Where calls are made: their payload is the event, not their row.
const CALLS: &str = "public.rule_webhook_events";

/// How `test_decoding` says that a value did not change.
const UNCHANGED: &str = "unchanged-toast-datum";

/// The facts among the slot's lines, in commit order; `wants` says of which tables.
pub fn committed<'a>(lines: impl IntoIterator<Item = &'a str>, wants: impl Fn(&str) -> bool) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut xid = 0;
    for line in lines {
        if let Some(begun) = line.strip_prefix("BEGIN ") {
            xid = begun.parse().unwrap();
            continue;
        }
        let Some(change) = line.strip_prefix("table ") else { continue };
        let (tables, change) = change.split_once(": ").unwrap();
        let (op, tuple) = change.split_once(':').unwrap();
        for table in tables.split(", ").filter(|table| wants(table)) {
            let (row, unchanged) = match op {
                "TRUNCATE" => Default::default(),
                _ if table == CALLS => match call(op, tuple) {
                    Some(payload) => (payload, BTreeSet::new()),
                    None => continue,
                },
                _ => row(op, tuple),
            };
            facts.push(Fact { xid, table: table.to_owned(), op: op.to_lowercase(), row, unchanged });
        }
    }
    facts
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
    let bytes = quoted.as_bytes();
    let mut at = 0;
    loop {
        match (bytes[at], bytes.get(at + 1)) {
            (b'\'', Some(b'\'')) => at += 2,
            (b'\'', _) => return at,
            _ => at += 1,
        }
    }
}

/// What a message says was committed.
fn told(message: &Message) -> Fact {
    let event = &message.payload["event"];
    let op = event["op"].as_str().unwrap_or_default().to_owned();
    let mut row = cells(message.data());
    row.retain(|_, value| op != "delete" || value != "null");
    let unchanged = event["unchanged"].as_array().into_iter().flatten();
    Fact {
        xid: event["xid"].as_u64().unwrap_or_default(),
        table: event["table"].as_str().unwrap_or_default().to_owned(),
        op,
        row,
        unchanged: unchanged.map(|column| column.as_str().unwrap_or_default().to_owned()).collect(),
    }
}

/// The place in the WAL that an id names: commit LSN, number in the transaction, webhook.
pub fn position(id: &str) -> Option<(u64, u64, u64)> {
    let mut parts = id.rsplit('-');
    let (webhook, ordinal) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let _time = parts.next()?;
    Some((u64::from_str_radix(parts.next()?, 16).ok()?, ordinal, webhook))
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
    /// Never committed, or not like that.
    pub phantoms: usize,
    /// The first of each kind, in words.
    pub examples: Vec<String>,
}

impl Findings {
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.phantoms == 0 && self.examples.is_empty()
    }

    /// What else does not hold.
    pub fn add(&mut self, words: impl Into<String>) {
        if self.examples.len() < 20 {
            self.examples.push(words.into());
        }
    }
}

/// Committed ⇒ stored, once, in order; not committed ⇒ not stored.
pub fn judge(committed: &[Fact], stored: &[Message]) -> Findings {
    let mut found = Findings::default();
    let mut ids = HashMap::new();
    let mut last = None;
    for (index, message) in stored.iter().enumerate() {
        if message.sequence != index as u64 + 1 {
            found.add(format!("message {} stands in place {}", message.sequence, index + 1));
        }
        if let Some(before) = ids.insert(id(message), message.sequence) {
            found.duplicated += 1;
            found.add(format!("{} is stored at {before} and at {}", id(message), message.sequence));
            continue;
        }
        let position = position(id(message));
        if position.is_none() || position <= last {
            found.reordered += 1;
            found.add(format!("{} at {} does not come after {last:x?}", id(message), message.sequence));
        }
        last = position;
    }
    let told: Vec<Fact> = stored.iter().map(told).collect();
    let mut balance: HashMap<&Fact, i64> = HashMap::new();
    for fact in committed {
        *balance.entry(fact).or_default() += 1;
    }
    for fact in &told {
        *balance.entry(fact).or_default() -= 1;
    }
    let known: std::collections::HashSet<&Fact> = committed.iter().collect();
    let mut wrong: Vec<_> = balance.into_iter().filter(|(_, count)| *count != 0).collect();
    wrong.sort_unstable();
    for (fact, count) in wrong {
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
    if found.is_clean()
        && let Some(at) = committed.iter().zip(&told).position(|(committed, told)| committed != told)
    {
        found.reordered += 1;
        found.add(format!("message {} tells {:?}, and {:?} was next", at + 1, told[at], committed[at]));
    }
    found
}

/// The slot's position, and after it the streams' last sequences.
pub struct Sample {
    pub confirmed: u64,
    pub tails: [u64; 2],
}

/// What was not in the stream when the slot's position was read comes after that position.
pub fn confirmed_too_early(samples: &[Sample], stream: usize, stored: &[Message], found: &mut Findings) {
    for Sample { confirmed, tails } in samples {
        let next = usize::try_from(tails[stream]).unwrap();
        let Some(message) = stored.get(next) else { continue };
        let (commit, ..) = position(id(message)).unwrap_or_default();
        if commit < *confirmed {
            found.add(format!("{confirmed:X} was confirmed while message {} ({commit:X}) was not stored", next + 1));
        }
    }
}

/// The rows of `table` that a reader of the stream has in the end, by key, as `column` → value.
pub fn fold(stored: &[Message], table: &str) -> BTreeMap<i64, BTreeMap<String, Value>> {
    let mut rows: BTreeMap<i64, BTreeMap<String, Value>> = BTreeMap::new();
    for message in stored.iter().filter(|message| message.payload["event"]["table"] == table) {
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
