//! The connections to PostgreSQL, against real servers: who is let in how, who is refused with which words, and a
//! stream that lives as long as it should.

#![allow(clippy::unwrap_used)]

mod support;

use bytes::BufMut;
use support::Postgres;
use walhook::{
    postgres::{
        self, Settings,
        replication::{Connection, Stream},
    },
    wal::lsn::Lsn,
};

/// Settings from this text alone: the environment of the test run is not asked.
fn settings(conninfo: &str) -> Settings {
    Settings::parse(conninfo, |_| None).unwrap()
}

const PLUGIN: [(&str, &str); 2] = [("proto_version", "1"), ("publication_names", "p")];

/// A slot and a publication for all tables, and a table.
fn prepare(pg: &Postgres) {
    pg.psql("CREATE TABLE t (id int PRIMARY KEY, text text)");
    pg.psql("CREATE PUBLICATION p FOR TABLE t");
    pg.psql("SELECT pg_create_logical_replication_slot('s', 'pgoutput')");
}

/// The next payload, reading as needed.
async fn next(stream: &mut Stream) -> Vec<u8> {
    let reading = async {
        loop {
            if let Some(payload) = stream.next_copy_data().unwrap() {
                return payload.to_vec();
            }
            stream.drive(true).await.unwrap();
        }
    };
    tokio::time::timeout(support::DEADLINE, reading).await.expect("the server sends something")
}

#[tokio::test]
async fn a_committed_row_comes_down_the_stream() {
    let pg = Postgres::start().await;
    prepare(&pg);
    let connection = Connection::connect(&settings(&pg.conninfo())).await.unwrap();
    let mut stream = connection.start_replication("s", Lsn::ZERO, &PLUGIN).await.unwrap();
    pg.psql("INSERT INTO t VALUES (1, 'a marked text')");
    loop {
        let payload = next(&mut stream).await;
        if payload[0] == b'w' && payload.windows(13).any(|bytes| bytes == b"a marked text") {
            break;
        }
    }
    stream.finish().await.unwrap();
}
