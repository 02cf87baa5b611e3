//! The schemas that a lane's messages name: none is sent before its schema is where consumers look it up.
//!
//! Comes in: the schema of each event that names one, and which of them are in the bucket. Goes out: the schema that is to be stored
//! next, and the first event that waits for it. Always holds: a schema is asked for once in a session, and again where the lane may
//! lead to another bucket; a lane whose events name none holds nothing of this.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::Lane;
use crate::{flow::event_id::EventPosition, route::row_schema::RowSchema, wal::lsn::Lsn};

/// See the module.
#[derive(Debug, Default)]
pub struct Schemas {
    /// What the last event named: most name the same again.
    last: Option<Arc<RowSchema>>,
    /// All that were named in this session, by their keys.
    named: BTreeMap<String, Arc<RowSchema>>,
    /// Not known to be in the bucket, in the order of the events that named them first.
    waiting: VecDeque<Waiting>,
    /// How many ever waited.
    count: u64,
}

/// A schema that is not known to be in the bucket.
#[derive(Debug)]
struct Waiting {
    /// Its number among all that ever waited.
    nth: u64,
    /// The first event that names it.
    number: u64,
    commit_lsn: Lsn,
    schema: Arc<RowSchema>,
}

impl Schemas {
    fn await_stored(&mut self, schema: Arc<RowSchema>, number: u64, commit_lsn: Lsn) {
        self.count += 1;
        self.waiting.push_back(Waiting { nth: self.count, number, commit_lsn, schema });
    }
}

impl Lane {
    /// Event `number`, which is about to be put in line, names this schema.
    pub fn names(&mut self, schema: &Arc<RowSchema>, number: u64, position: &EventPosition) {
        let schemas = &mut self.schemas;
        if schemas.last.as_ref().is_some_and(|last| Arc::ptr_eq(last, schema)) {
            return;
        }
        schemas.last = Some(Arc::clone(schema));
        // The plan's own in place of an older one that says the same: one of them is kept.
        match schemas.named.get_mut(&schema.key) {
            Some(named) => *named = Arc::clone(schema),
            None => {
                schemas.named.insert(schema.key.clone(), Arc::clone(schema));
                schemas.await_stored(Arc::clone(schema), number, position.commit_lsn);
            }
        }
    }

    /// The schema that is to be stored next, and its number among those that ever waited.
    pub fn schema_to_store(&self) -> Option<(u64, &Arc<RowSchema>)> {
        self.schemas.waiting.front().map(|waiting| (waiting.nth, &waiting.schema))
    }

    /// The schema with this number is in the bucket.
    pub fn schema_stored(&mut self, nth: u64) {
        if self.schemas.waiting.front().is_some_and(|waiting| waiting.nth == nth) {
            self.schemas.waiting.pop_front();
        }
    }

    /// The newest row wants no schemas any more: nothing waits for them.
    pub(in crate::flow) fn pass_without_schemas(&mut self) {
        // Should they be wanted again, all that are named from then on are asked for.
        self.schemas = Schemas { count: self.schemas.count, ..Schemas::default() };
    }

    /// The lane may lead to another bucket from here on: nothing is sent before all schemas that were named are there.
    pub(in crate::flow) fn ask_for_schemas_again(&mut self) {
        let number = self.front().unwrap_or(0);
        let commit_lsn = self.front_position().map_or(Lsn::ZERO, |position| position.commit_lsn);
        let schemas = &mut self.schemas;
        schemas.waiting.clear();
        for schema in schemas.named.values().cloned().collect::<Vec<_>>() {
            schemas.await_stored(schema, number, commit_lsn);
        }
    }

    /// The number of the first event in line that waits for a schema.
    pub(super) fn first_without_schema(&self) -> Option<u64> {
        self.schemas.waiting.front().map(|waiting| self.first_with(waiting.number, waiting.commit_lsn))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::flow::lane::{Batches, Head, Mode, Ordering, Tail};

    fn schema(key: &str) -> Arc<RowSchema> {
        Arc::new(RowSchema { key: key.to_owned(), text: String::new(), line: Vec::new() })
    }

    fn at(commit: u64, ordinal: u64) -> EventPosition {
        EventPosition { commit_lsn: Lsn(commit), commit_time: 9, ordinal, webhook_id: 1 }
    }

    fn lane(batches: Batches) -> Lane {
        let mut lane = Lane::new("S", Ordering::Strict, "_INBOX.i.0");
        lane.set_mode(Mode { ordering: Ordering::Strict, batches }, 1 << 20);
        let (listed, subjects) = (Vec::new(), vec!["s.>".to_owned()]);
        let tail = Tail {
            last_sequence: 0,
            ours: None,
            in_stream: None,
            listing: None,
            listed,
            subjects,
            max_payload: 9000,
            batch_max: 1000,
        };
        lane.open(&tail).unwrap();
        lane.sending.is_probing = false;
        lane
    }

    fn put(lane: &mut Lane, number: u64, position: EventPosition, named: &Arc<RowSchema>) {
        let head = Head { subject: b"s.t", id: b"i", message_id: None, op: "insert", epoch: 1 };
        let draft = lane.draft(head, |_| {});
        lane.buffer().extend_from_slice(b"{}");
        lane.names(named, number, &position);
        lane.commit(draft, number, position).unwrap();
    }

    /// How many messages may be sent.
    fn ready(lane: &mut Lane) -> usize {
        lane.unsent().windows(5).filter(|bytes| bytes == b"HPUB ").count()
    }

    #[test]
    fn a_message_waits_until_its_schema_is_stored_and_those_before_it_do_not() {
        let (a, b, mut lane) = (schema("a"), schema("b"), lane(Batches::None));
        put(&mut lane, 1, at(1, 0), &a);
        assert_eq!(ready(&mut lane), 0);
        let (nth, to_store) = lane.schema_to_store().unwrap();
        assert!(Arc::ptr_eq(to_store, &a));
        lane.schema_stored(nth);
        assert!(lane.schema_to_store().is_none() && ready(&mut lane) == 1);
        put(&mut lane, 2, at(2, 0), &a);
        put(&mut lane, 3, at(3, 0), &b);
        put(&mut lane, 4, at(4, 0), &a);
        assert_eq!(ready(&mut lane), 2);
        let (second, _) = lane.schema_to_store().unwrap();
        lane.schema_stored(nth);
        assert_eq!(ready(&mut lane), 2, "an answer of before says nothing");
        lane.schema_stored(second);
        assert_eq!(ready(&mut lane), 4);
        // The rules were compiled again, and the columns are the same.
        put(&mut lane, 5, at(5, 0), &schema("b"));
        assert_eq!(ready(&mut lane), 5);
    }

    #[test]
    fn a_transaction_that_is_stored_whole_waits_whole() {
        let (a, b, mut lane) = (schema("a"), schema("b"), lane(Batches::Transactions));
        put(&mut lane, 1, at(1, 0), &a);
        lane.end_transaction();
        lane.schema_stored(1);
        put(&mut lane, 2, at(2, 0), &a);
        put(&mut lane, 3, at(2, 1), &b);
        lane.end_transaction();
        assert_eq!(ready(&mut lane), 1);
        lane.schema_stored(2);
        assert_eq!(ready(&mut lane), 3);
    }

    #[test]
    fn by_another_way_all_schemas_are_asked_for_again_and_without_them_nothing_waits() {
        let (a, b, mut lane) = (schema("a"), schema("b"), lane(Batches::None));
        put(&mut lane, 1, at(1, 0), &a);
        put(&mut lane, 2, at(2, 0), &b);
        lane.schema_stored(1);
        lane.schema_stored(2);
        assert_eq!(ready(&mut lane), 2);
        lane.ask_for_schemas_again();
        assert_eq!(ready(&mut lane), 0);
        while let Some((nth, _)) = lane.schema_to_store() {
            lane.schema_stored(nth);
        }
        assert_eq!(ready(&mut lane), 2);
        lane.ask_for_schemas_again();
        lane.pass_without_schemas();
        assert_eq!(ready(&mut lane), 2);
        put(&mut lane, 3, at(3, 0), &b);
        assert_eq!(ready(&mut lane), 2);
    }
}
