//! Inserts of a linked table as pgoutput sends them, and a streamer with an open lane for what becomes of them.
//!
//! Made by hand rather than recorded, so that it is the same on every machine, and as long as one likes; rows are as those of
//! `benches/end_to_end`: a key and about 300 bytes of jsonb.

use walhook::{
    flow::{
        lane::{Lane, Tail, Timestamps},
        streamer::{Limits, Received, Streamer},
    },
    route::{
        digits::set_hex,
        mask_key::MaskKey,
        seal::SealKeys,
        tables::{Cell, Table, Tables},
        types::TypeCatalog,
    },
    wal::lsn::Lsn,
};

const RELATION: u32 = 16_384;
const INT8: u32 = 20;
const JSONB: u32 = 3802;
const DOCUMENT: &str = "\"note\": \"left with the neighbour on the second floor\", \"items\": [{\"sku\": \"A-1001\", \"count\": 2}, \
    {\"sku\": \"B-2002\", \"count\": 1}], \"status\": \"paid\", \"address\": {\"city\": \"Berlin\", \"street\": \"Unter den Linden 77\", \
    \"country\": \"DE\", \"postcode\": \"10117\"}, \"customer\": \"c4ca4238a0b923820dcc509a6f75849b\"}";
const INBOX: &str = "_INBOX.stages";
/// As the process's own settings have it.
pub const WINDOW: usize = 4096;

/// CopyData payloads.
pub struct Frames(Vec<Vec<u8>>);

impl Frames {
    /// So many rows, so many in each transaction.
    pub fn of(rows: u64, in_each: u64) -> Frames {
        let mut frames = vec![xlog(0, &relation())];
        let mut row = 0;
        while row < rows {
            let last = (row + in_each).min(rows);
            let commit = 1000 + last * 1000;
            frames.push(xlog(commit - 500, &[&b"B"[..], &words(&[commit, commit]), &7u32.to_be_bytes()].concat()));
            for id in row..last {
                frames.push(xlog(commit - 400, &insert(id)));
            }
            frames.push(xlog(commit, &[&b"C\0"[..], &words(&[commit, commit + 48, commit])].concat()));
            row = last;
        }
        Frames(frames)
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }
}

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_be_bytes()).collect()
}

fn xlog(at: u64, message: &[u8]) -> Vec<u8> {
    [&b"w"[..], &words(&[at, at, 0]), message].concat()
}

fn relation() -> Vec<u8> {
    let column = |flags: u8, name: &str, oid: u32| {
        [&[flags][..], name.as_bytes(), b"\0", &oid.to_be_bytes(), &(-1i32).to_be_bytes()].concat()
    };
    let (id, doc) = (column(1, "id", INT8), column(0, "doc", JSONB));
    [&b"R"[..], &RELATION.to_be_bytes(), b"public\0bench\0d", &2u16.to_be_bytes(), &id, &doc].concat()
}

fn insert(id: u64) -> Vec<u8> {
    let text = |text: &str| [&b"t"[..], &u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat();
    let (key, doc) = (text(&id.to_string()), text(&format!("{{\"order\": {id}, {DOCUMENT}")));
    [&b"I"[..], &RELATION.to_be_bytes(), b"N", &2u16.to_be_bytes(), &key, &doc].concat()
}

/// A stream that stores all at once, as a lane hears of it.
#[derive(Default)]
pub struct Answers {
    /// The stream's last sequence.
    stored: u64,
    /// An answer's token: the attempt, as the messages say it, and the message's index.
    token: [u8; 10],
}

impl Answers {
    /// All that the lane holds is sent and acknowledged.
    pub fn store_all(&mut self, lane: &mut Lane) {
        loop {
            let unsent = lane.unsent();
            if unsent.is_empty() {
                break;
            }
            let sent = unsent.len();
            if self.stored == 0 {
                let reply = unsent.split(|&byte| byte == b' ').nth(2).unwrap();
                self.token.copy_from_slice(&reply[reply.len() - 10..]);
            }
            lane.mark_sent(sent);
            // The first message of a lane that was just opened goes alone.
            let count = if self.stored == 0 { 1 } else { lane.len() };
            for _ in 0..count {
                set_hex(self.stored, &mut self.token[2..]);
                self.stored += 1;
                lane.acked(&self.token, self.stored, false).unwrap();
            }
        }
    }
}

/// A streamer that sends to such a stream.
pub struct Sink {
    streamer: Streamer,
    answers: Answers,
}

impl Sink {
    /// With a webhook linked to the table, and `history` as `rule_nats_config` says it.
    pub fn new(history: &str) -> Sink {
        Sink::with(tables(history))
    }

    /// The same with messages that are the column `doc`, with id and header from the other one.
    pub fn of_column(history: &str) -> Sink {
        let mut tables = tables(history);
        let mut put = |table, row: &[(&'static str, &str)]| {
            tables.put(table, row.iter().map(|&(name, text)| (name, Cell::Text(text)))).unwrap();
        };
        put(Table::Webhooks, &[("webhook_id", "1"), ("payload_format", "data")]);
        put(
            Table::Links,
            &[
                ("link_id", "1"),
                ("payload_column", "doc"),
                ("message_id_column", "id"),
                ("headers_columns", "{\"Id\": \"id\"}"),
            ],
        );
        Sink::with(tables)
    }

    /// The same with rows whose columns are masked and have other names.
    #[allow(dead_code, reason = "tests/allocations.rs uses it")]
    pub fn masked(history: &str) -> Sink {
        let mut tables = tables(history);
        tables.mask_key = MaskKey::of(b"a key of many bytes");
        let link = [
            ("link_id", "1"),
            ("mask", "{\"id\": \"hash\"}"),
            ("mask_columns", "{id,doc}"),
            ("rename", "{\"doc\": \"document\"}"),
        ];
        tables.put(Table::Links, link.iter().map(|&(name, text)| (name, Cell::Text(text)))).unwrap();
        Sink::with(tables)
    }

    /// The same with bodies that are sealed.
    #[allow(dead_code, reason = "tests/allocations.rs uses it")]
    pub fn sealed(history: &str) -> Sink {
        let mut tables = tables(history);
        tables.seal_keys = SealKeys::of("the test", std::iter::once("k.1"), |_| Ok("07".repeat(32).into_bytes()));
        let webhook = [("webhook_id", "1"), ("seal_key", "k")];
        tables.put(Table::Webhooks, webhook.iter().map(|&(name, text)| (name, Cell::Text(text)))).unwrap();
        Sink::with(tables)
    }

    fn with(tables: Tables) -> Sink {
        let limits = Limits { window_events: WINDOW, window_bytes: 8 << 20, history_bytes: 4 << 20 };
        let mut streamer = Streamer::new("src", 1, INBOX, limits, tables, TypeCatalog::new(), Lsn::ZERO);
        streamer.set_time(Timestamps { wall: 1, steady: 1 });
        streamer.lane_mut(0).open(&empty_tail()).unwrap();
        Sink { streamer, answers: Answers::default() }
    }

    /// Takes a frame; where the window is full, all of it is stored.
    pub fn take(&mut self, frame: &[u8]) {
        assert_eq!(self.streamer.receive(frame).unwrap(), Received::Nothing);
        if !self.streamer.has_room() {
            self.store();
        }
    }

    /// Everything is sent, acknowledged, and recorded.
    pub fn store(&mut self) {
        self.answers.store_all(self.streamer.lane_mut(0));
        for (book, batch) in self.streamer.take_history(|_| true) {
            self.streamer.recorded(book, batch);
        }
        self.streamer.settle();
    }

    /// Events that were made.
    pub fn made(&self) -> u64 {
        self.streamer.counts().events
    }

    /// Messages that were stored.
    pub fn stored(&self) -> u64 {
        self.answers.stored
    }
}

/// Of a stream that has nothing yet.
pub fn empty_tail() -> Tail {
    Tail {
        last_sequence: 0,
        ours: None,
        in_stream: None,
        listing: None,
        listed: Vec::new(),
        subjects: vec!["webhooks.>".to_owned()],
        max_payload: 1 << 20,
        batch_max: 1,
    }
}

fn tables(history: &str) -> Tables {
    let mut tables = Tables::default();
    let mut put = |table, row: &[(&'static str, &str)]| {
        tables.put(table, row.iter().map(|&(name, text)| (name, Cell::Text(text)))).unwrap();
    };
    put(
        Table::Configs,
        &[
            ("config_id", "1"),
            ("config_name", "default"),
            ("nats_url", "nats://model"),
            ("jetstream_enabled", "t"),
            ("enabled", "t"),
            ("history", history),
        ],
    );
    put(
        Table::Streams,
        &[
            ("stream_id", "1"),
            ("config_id", "1"),
            ("stream_name", "WEBHOOKS"),
            ("subjects", "{webhooks.>}"),
            ("enabled", "t"),
        ],
    );
    put(
        Table::Webhooks,
        &[
            ("webhook_id", "1"),
            ("webhook_name", "bench"),
            ("url", "http://localhost/bench"),
            ("method", "POST"),
            ("enabled", "t"),
            ("nats_enabled", "t"),
            ("nats_subject", "webhooks.bench"),
            ("publish_mode", "nats"),
        ],
    );
    put(
        Table::Links,
        &[
            ("link_id", "1"),
            ("webhook_id", "1"),
            ("table_schema", "public"),
            ("table_name", "bench"),
            ("operations", "{insert}"),
            ("enabled", "t"),
        ],
    );
    tables
}
