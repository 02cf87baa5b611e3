//! A wall clock that jumps by hours, forwards and backwards: nothing is lost, doubled or stuck, and the history tells sane times.
//!
//! libfaketime gives the processes their clock (Debian's package `libfaketime`); the steady one stays as it is, as it does where
//! somebody sets a machine's time. nats-server is a Go program, which asks the kernel past any library: its clock is the machine's.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    time::SystemTime,
};

use support::{
    Nats, Postgres, Walhook,
    feed::Feed,
    rows::{ended_well, exactly, insert, linked_on},
    skip,
};

const HOUR: i64 = 3600;

/// Where the library may be.
fn library() -> Result<PathBuf, String> {
    let folders = ["/usr/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/local/lib"];
    let paths = folders.map(|folder| Path::new(folder).join("faketime/libfaketime.so.1"));
    paths
        .into_iter()
        .find(|path| path.exists())
        .ok_or_else(|| "there is no libfaketime; install that package".to_owned())
}

/// A clock that is set by hand.
struct Clock {
    library: PathBuf,
    folder: tempfile::TempDir,
    /// Who has it: the library leaves something in /dev/shm of those who are killed.
    processes: RefCell<Vec<u32>>,
}

impl Drop for Clock {
    fn drop(&mut self) {
        for process in self.processes.take() {
            for name in ["faketime_shm_", "sem.faketime_sem_"] {
                let _ = std::fs::remove_file(format!("/dev/shm/{name}{process}"));
            }
        }
    }
}

impl Clock {
    fn take() -> Result<Clock, String> {
        let (library, folder) = (library()?, tempfile::tempdir().unwrap());
        let clock = Clock { library, folder, processes: RefCell::default() };
        clock.set(0);
        // PostgreSQL's user reads it too.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(clock.folder.path(), open).unwrap();
        Ok(clock)
    }

    /// So many seconds from what the machine's says.
    fn set(&self, offset: i64) {
        // At once: a reader must not find half of it.
        let (new, path) = (self.folder.path().join("new"), self.file());
        std::fs::write(&new, format!("{offset:+}\n")).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }

    fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file().display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    fn run(&self, feed: &Feed) -> Walhook {
        let by_it = |command: support::walhook::Builder, (name, value)| command.env(name, value);
        let walhook = self.environment().into_iter().fold(feed.streamer(), by_it).start();
        self.processes.borrow_mut().push(walhook.pid());
        walhook
    }
}

fn seconds_since_1970() -> i64 {
    i64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap()
}

/// How far the clock that wrote the last row of the history is from ours, in seconds.
fn reported_offset(feed: &Feed) -> i64 {
    let last = "SELECT extract(epoch FROM published_at)::bigint FROM rule_nats_publish_history ORDER BY publish_id DESC LIMIT 1";
    feed.pg.psql(last).parse::<i64>().unwrap() - seconds_since_1970()
}

/// Rows before, in and after each jump; in the midst of it all walhook is killed.
async fn jump_about(clock: &Clock, feed: &Feed) {
    let mut walhook = clock.run(feed);
    let mut count = 0;
    for offset in [3 * HOUR, -9 * HOUR, 48 * HOUR, -24 * HOUR, 0] {
        insert(&feed.pg, count, count + 30);
        clock.set(offset);
        insert(&feed.pg, count + 30, count + 60);
        feed.confirmed().await;
        insert(&feed.pg, count + 60, count + 70);
        count += 70;
        if offset == 48 * HOUR {
            walhook.kill9();
            walhook = clock.run(feed);
        }
        feed.confirmed().await;
        let told = reported_offset(feed);
        assert!(
            (told - offset).abs() < 600,
            "the history tells a time {told} s from now, and the clock is {offset} s off"
        );
    }
    exactly(feed, count).await;
    let history = "SELECT count(*), count(DISTINCT event_id), count(*) FILTER (WHERE latency_ms BETWEEN 0 AND 60000), \
                   count(*) FILTER (WHERE expires_at > now()) FROM rule_nats_publish_history WHERE success";
    // Those of before the kill that were not in the history have no latency any more.
    let told = feed.pg.psql(history);
    let told: Vec<i64> = told.split('|').map(|number| number.parse().unwrap()).collect();
    assert_eq!((told[0], told[1], told[3]), (count, count, count), "{told:?}");
    assert!(told[2] >= count - 70, "{told:?}");
    ended_well(&mut walhook);
}

#[tokio::test]
async fn a_wall_clock_of_walhook_that_jumps_loses_doubles_and_stops_nothing() {
    let clock = match Clock::take() {
        Ok(clock) => clock,
        Err(why) => return skip("a wall clock that jumps", &why),
    };
    jump_about(&clock, &linked_on(Postgres::set_up().await, Nats::start().await)).await;
}

#[tokio::test]
async fn a_wall_clock_of_the_whole_machine_that_jumps_loses_doubles_and_stops_nothing() {
    let clock = match Clock::take() {
        Ok(clock) => clock,
        Err(why) => return skip("a wall clock that jumps", &why),
    };
    let with_it = |builder: support::postgres::Builder, (name, value): (&str, String)| builder.env(name, &value);
    // It counts a client's silence by the wall clock.
    let builder = Postgres::builder().conf("wal_sender_timeout = 10s");
    let pg = clock.environment().into_iter().fold(builder, with_it).start().await;
    clock.processes.borrow_mut().push(pg.pid());
    let feed = linked_on(pg, Nats::start().await);
    clock.set(HOUR);
    let now: i64 = feed.pg.psql("SELECT extract(epoch FROM clock_timestamp())::bigint").parse().unwrap();
    assert!((now - seconds_since_1970() - HOUR).abs() < 600, "PostgreSQL's clock is not ours to set");
    jump_about(&clock, &feed).await;
}
