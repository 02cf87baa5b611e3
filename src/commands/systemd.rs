//! What `run` and `deliver` report to the service manager that started them (sd_notify): ready, status, watchdog, stopping.
//!
//! In: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`, which systemd sets for `Type=notify` and `WatchdogSec=`. Out:
//! datagrams. Without the variable nothing is sent. A datagram that the socket does not take now is sent again later; nothing
//! ever waits for it.
//!
//! The watchdog is fed by the main loop, so that systemd restarts a process whose loop hangs. Before and between sessions,
//! where walhook waits for its servers, [`Notify::feed_during`] feeds it.

use std::{
    env,
    ffi::OsStr,
    future::Future,
    os::unix::net::UnixDatagram,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    commands::delaying_interval,
    error::{Error, Result},
    text,
};

/// How often the status text may change.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// A process that is still busy with its first attempt is reported as ready after so long.
const READY_AT_THE_LATEST: Duration = Duration::from_secs(20);
/// How often [`Notify::feed_during`] looks whether the watchdog wants to be fed.
const TICK: Duration = Duration::from_millis(500);

/// The service manager, if there is one.
#[derive(Debug, Clone, Default)]
pub struct Notify(Option<Arc<Manager>>);

#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    /// After so long without a word the service manager restarts the process.
    watchdog: Option<Duration>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_ready: bool,
    is_stopping: bool,
    /// A main loop runs, and nobody else feeds the watchdog.
    is_in_loop: bool,
    fed: Option<Instant>,
    /// As last sent, and when.
    status: Option<(String, Instant)>,
}

impl Notify {
    /// As the environment says. A socket that cannot be used is logged and left alone: walhook works without.
    pub fn from_environment() -> Notify {
        let Some(path) = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return Notify::default() };
        let socket = match connect(&path) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!("{error}");
                return Notify::default();
            }
        };
        let variable = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
        let is_ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = variable("WATCHDOG_USEC").filter(|micros| is_ours && *micros > 0).map(Duration::from_micros);
        Notify(Some(Arc::new(Manager { socket, watchdog, state: Mutex::default() })))
    }

    /// The work of the process has begun, or its first attempt has failed for a reason that may pass. Sent once. A start that is
    /// refused is never ready, so that the service manager reports it as failed.
    pub fn ready(&self) {
        self.change(|manager, state| {
            if !state.is_ready {
                state.is_ready = manager.send("READY=1");
            }
        });
    }

    /// What the process does now, or what it waits for, in one line.
    pub fn status(&self, status: &str) {
        self.change(|manager, state| {
            let now = Instant::now();
            let is_news = state.status.as_ref().is_none_or(|(last, _)| last != status);
            if is_news && manager.send(&format!("STATUS={}", text::one_line(status))) {
                state.status = Some((status.to_owned(), now));
            }
        });
    }

    /// The same for a status with numbers in it, which changes all the time: made and sent every few seconds.
    pub fn status_now_and_then(&self, status: impl FnOnce() -> String) {
        let Some(manager) = &self.0 else { return };
        let is_due = manager.locked(|state| state.status.as_ref().is_none_or(|(_, at)| at.elapsed() >= STATUS_EVERY));
        if is_due {
            self.status(&status());
        }
    }

    /// The process has been asked to end and does so. From here on its shutdown has a time limit, and the watchdog is fed by
    /// [`Notify::feed_during`].
    pub fn stopping(&self, status: &str) {
        self.change(|manager, state| {
            state.is_in_loop = false;
            if !state.is_stopping {
                state.is_stopping = manager.send("STOPPING=1");
            }
        });
        self.status(status);
    }

    /// The main loop has come round.
    pub fn alive(&self) {
        self.change(Manager::feed);
    }

    /// The main loop begins, and from now on [`Notify::alive`] alone feeds the watchdog, until the answer is dropped.
    pub fn enter_loop(&self) -> InLoop {
        self.change(|_, state| state.is_in_loop = !state.is_stopping);
        InLoop(self.clone())
    }

    /// Feeds the watchdog while `work` goes on outside the main loop, and reports a long first attempt as ready.
    pub async fn feed_during<T>(&self, work: impl Future<Output = T>) -> T {
        let Some(manager) = &self.0 else { return work.await };
        let mut work = pin!(work);
        let every = manager.watchdog.map_or(TICK, |watchdog| TICK.min(watchdog / 4)).max(Duration::from_millis(1));
        let mut tick = delaying_interval(every);
        let began = Instant::now();
        loop {
            tokio::select! {
                biased;
                _ = tick.tick() => {
                    self.change(|manager, state| if !state.is_in_loop { manager.feed(state) });
                    if began.elapsed() >= READY_AT_THE_LATEST {
                        self.ready();
                    }
                }
                done = &mut work => return done,
            }
        }
    }

    /// How often a main loop has to come round for its watchdog.
    pub fn every(&self) -> Duration {
        let watchdog = self.0.as_ref().and_then(|manager| manager.watchdog);
        watchdog
            .map_or(Duration::from_secs(1), |watchdog| Duration::from_secs(1).min(watchdog / 4))
            .max(Duration::from_millis(1))
    }

    /// Whether there is a service manager.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    fn change(&self, change: impl FnOnce(&Manager, &mut State)) {
        if let Some(manager) = &self.0 {
            manager.locked(|state| change(manager, state));
        }
    }
}

impl Manager {
    fn locked<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it was sent.
    fn send(&self, message: &str) -> bool {
        match self.socket.send(message.as_bytes()) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, "the service manager did not take {message}");
                false
            }
        }
    }

    fn feed(&self, state: &mut State) {
        let Some(watchdog) = self.watchdog else { return };
        // Four times in its interval: a datagram may be lost, and the machine busy.
        if state.fed.is_none_or(|fed| fed.elapsed() >= watchdog / 4) && self.send("WATCHDOG=1") {
            state.fed = Some(Instant::now());
        }
    }
}

/// The main loop runs.
#[derive(Debug)]
pub struct InLoop(Notify);

impl Drop for InLoop {
    fn drop(&mut self) {
        self.0.change(|_, state| state.is_in_loop = false);
    }
}

/// The socket, which may be a path or, after an `@`, an abstract name.
fn connect(path: &OsStr) -> Result<UnixDatagram> {
    let attempted = || format!("report to the service manager on NOTIFY_SOCKET={}", path.display());
    let failed = |error: std::io::Error| {
        Error::unavailable(attempted())
            .caused_by(error)
            .hint("walhook continues, but a unit with Type=notify will not become ready: allow NOTIFY_SOCKET, or use Type=exec")
    };
    let socket = UnixDatagram::unbound().map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    #[cfg(target_os = "linux")]
    {
        use std::os::{
            linux::net::SocketAddrExt as _,
            unix::{ffi::OsStrExt as _, net::SocketAddr},
        };
        if let Some(name) = path.as_bytes().strip_prefix(b"@") {
            let address = SocketAddr::from_abstract_name(name).map_err(failed)?;
            socket.connect_addr(&address).map_err(failed)?;
            return Ok(socket);
        }
    }
    socket.connect(path).map_err(failed)?;
    Ok(socket)
}
