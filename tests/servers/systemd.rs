//! What `run` and `deliver` report to a service manager, as a socket of the test's own receives it.

#![allow(clippy::unwrap_used)]

use crate::support;

use std::{
    io::ErrorKind,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    time::{Duration, Instant},
};

use support::{DEADLINE, feed::Feed, last_mile::LastMile, walhook::Builder};

/// The socket that systemd would have.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Manager {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        Manager { socket: UnixDatagram::bind(&path).unwrap(), path, _folder: folder }
    }

    fn of(&self, builder: Builder) -> Builder {
        builder.env("NOTIFY_SOCKET", self.path.as_os_str())
    }

    /// The next message; `None` where there is none within that time.
    fn next(&self, within: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(within)).unwrap();
        let mut bytes = [0; 4096];
        match self.socket.recv(&mut bytes) {
            Ok(length) => Some(String::from_utf8(bytes[..length].to_vec()).unwrap()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// All messages up to the first that begins so.
    fn upto(&self, wanted: &str) -> Vec<String> {
        let (began, mut messages) = (Instant::now(), Vec::new());
        while began.elapsed() < DEADLINE {
            let Some(message) = self.next(Duration::from_secs(1)) else { continue };
            let is_wanted = message.starts_with(wanted);
            messages.push(message);
            if is_wanted {
                return messages;
            }
        }
        panic!("no {wanted:?} within {DEADLINE:?}, but {messages:?}");
    }

    /// What is there by now.
    fn rest(&self) -> Vec<String> {
        std::iter::from_fn(|| self.next(Duration::from_millis(1))).collect()
    }
}

fn count(messages: &[String], wanted: &str) -> usize {
    messages.iter().filter(|message| message.starts_with(wanted)).count()
}

/// The watchdog may be fed behind it.
fn last_status(messages: &[String]) -> &str {
    messages.iter().rfind(|message| message.starts_with("STATUS=")).unwrap()
}

#[tokio::test]
async fn a_run_that_waits_for_its_slot_is_ready_says_so_and_goes_on_to_report() {
    let feed = Feed::start().await;
    let mut first = feed.run();
    first.logged("slot taken").await;
    let manager = Manager::new();
    let mut second = manager.of(feed.streamer()).env("WATCHDOG_USEC", "2000000").start();
    let before = manager.upto("STATUS=not streaming: ");
    assert!(before.last().unwrap().ends_with("waiting to take over"), "{before:?}");
    assert_eq!(count(&before, "READY"), 0, "nothing was attempted before: {before:?}");
    // It waits, is ready, and is alive.
    let mut after = manager.upto("READY=1");
    after.extend(manager.upto("WATCHDOG=1"));
    assert_eq!(first.terminate(), 0);
    let status = manager.upto("STATUS=streams from slot \"walhook\", confirmed ");
    assert!(status.last().unwrap().ends_with("0 events in flight"), "{status:?}");
    manager.upto("WATCHDOG=1");

    feed.pg.stop();
    manager.upto("STATUS=not streaming, trying again: ");
    manager.upto("WATCHDOG=1");
    feed.pg.restart().await;
    let again = manager.upto("STATUS=streams from slot");
    assert_eq!(count(&again, "READY"), 0, "READY=1 is sent once: {again:?}");

    assert_eq!(second.terminate(), 0);
    let end = manager.rest();
    assert_eq!((count(&end, "STOPPING=1"), count(&end, "READY")), (1, 0), "{end:?}");
    assert_eq!(last_status(&end), "STATUS=stopped", "{end:?}");
}

#[tokio::test]
async fn a_run_without_postgresql_is_ready_after_its_first_attempt_so_that_a_boot_does_not_wait() {
    let feed = Feed::start().await;
    feed.pg.stop();
    let manager = Manager::new();
    let mut walhook = manager.of(feed.streamer()).env("WATCHDOG_USEC", "2000000").start();
    let before = manager.upto("READY=1");
    let status = before.iter().rfind(|message| message.starts_with("STATUS=")).unwrap();
    assert!(status.starts_with("STATUS=not streaming, trying again: "), "{before:?}");
    manager.upto("WATCHDOG=1");
    feed.pg.restart().await;
    let after = manager.upto("STATUS=streams from slot");
    assert_eq!(count(&after, "READY"), 0, "READY=1 is sent once: {after:?}");
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn a_loop_that_hangs_feeds_no_watchdog() {
    let feed = Feed::start().await;
    let manager = Manager::new();
    let watchdog = Duration::from_secs(1);
    let mut walhook = manager
        .of(feed.streamer())
        .env("WATCHDOG_USEC", watchdog.as_micros().to_string())
        .env("WALHOOK_FAULTS", "Report=hang@2")
        .start();
    manager.upto("READY=1");
    walhook.logged("fault point Report: Hang").await;
    manager.rest();
    assert_eq!(manager.next(3 * watchdog), None);
    walhook.kill9();
}

#[tokio::test]
async fn a_refused_start_says_why_and_with_which_exit_code() {
    let feed = Feed::start().await;
    feed.pg.psql("SELECT pg_drop_replication_slot('walhook')");
    let manager = Manager::new();
    let mut walhook = manager.of(feed.streamer()).start();
    let code = walhook.wait(DEADLINE);
    let messages = manager.rest();
    let status = messages.last().unwrap();
    assert!(status.starts_with(&format!("STATUS=ends with exit code {code}: ")), "{messages:?}");
    assert_eq!((count(&messages, "READY"), count(&messages, "STOPPING=1")), (0, 1), "{messages:?}");
    assert_eq!(count(&messages, "WATCHDOG"), 0, "nobody asked for it: {messages:?}");
}

#[tokio::test]
async fn a_watchdog_of_another_process_is_not_fed_and_a_socket_that_is_none_stops_nothing() {
    let feed = Feed::start().await;
    let manager = Manager::new();
    let mut walhook = manager.of(feed.streamer()).env("WATCHDOG_USEC", "100000").env("WATCHDOG_PID", "1").start();
    let mut messages = manager.upto("STATUS=streams");
    assert_eq!(walhook.terminate(), 0);
    messages.extend(manager.rest());
    assert_eq!(count(&messages, "WATCHDOG"), 0, "{messages:?}");

    let mut walhook = feed.streamer().env("NOTIFY_SOCKET", "/nowhere/notify").start();
    walhook.logged("slot taken").await;
    assert!(
        walhook.log().contains("report to the service manager on NOTIFY_SOCKET=/nowhere/notify"),
        "{}",
        walhook.log()
    );
    assert_eq!(walhook.terminate(), 0);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_abstract_socket_is_reached() {
    use std::os::{linux::net::SocketAddrExt as _, unix::net::SocketAddr};
    let feed = Feed::start().await;
    let name = format!("walhook-test-{:016x}", fastrand::u64(..));
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
    let manager = Manager { socket, path: format!("@{name}").into(), _folder: tempfile::tempdir().unwrap() };
    let mut walhook = manager.of(feed.streamer()).start();
    manager.upto("READY=1");
    assert_eq!(walhook.terminate(), 0);
}

#[tokio::test]
async fn a_worker_is_ready_once_its_consumers_are_subscribed() {
    let mile = LastMile::on(Feed::start().await);
    mile.webhook("w", "http://127.0.0.1:9/");
    mile.publish(1, "{}");
    mile.feed.stored(1).await;
    let manager = Manager::new();
    let mut worker = manager.of(mile.worker()).start();
    manager.upto("READY=1");
    manager.upto("STATUS=1 of 1 consumers subscribed, ");
    assert_eq!(worker.terminate(), 0);
}

#[tokio::test]
async fn a_worker_without_nats_is_ready_after_its_first_attempt_and_says_when_it_delivers() {
    let mile = LastMile::on(Feed::start().await);
    mile.webhook("w", "http://127.0.0.1:9/");
    mile.publish(1, "{}");
    mile.feed.stored(1).await;
    mile.feed.nats.stop();
    let manager = Manager::new();
    let mut worker = manager.of(mile.worker()).env("WATCHDOG_USEC", "2000000").start();
    let before = manager.upto("STATUS=not delivering, trying again: ");
    assert_eq!(count(&before, "READY"), 0, "nothing was attempted before: {before:?}");
    manager.upto("READY=1");
    manager.upto("WATCHDOG=1");
    mile.feed.nats.restart().await;
    let after = manager.upto("STATUS=1 of 1 consumers subscribed, ");
    assert_eq!(count(&after, "READY"), 0, "READY=1 is sent once: {after:?}");
    manager.upto("WATCHDOG=1");
    assert_eq!(worker.terminate(), 0);
    let end = manager.rest();
    assert_eq!(count(&end, "STOPPING=1"), 1, "{end:?}");
    assert_eq!(last_status(&end), "STATUS=stopped", "{end:?}");
}
