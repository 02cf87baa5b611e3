//! A nats-server of a test's own, with JetStream.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use rustix::process::Signal;

use super::{
    DEADLINE, POLL,
    disk::Disk,
    folder::Folder,
    port::Port,
    process::{Process, User, read_lossy, tail},
    services,
};

/// A running server; dropping it stops it and removes its folder.
pub struct Nats {
    process: Mutex<Option<Process>>, // before the folder: fields go in this order
    binary: PathBuf,
    port: Port,
    jetstream: String,
    config: String,
    disk: Option<Disk>,
    folder: Folder,
}

/// What the server shall be like.
pub struct Builder {
    version: String,
    jetstream: String,
    config: String,
    disk: Option<Disk>,
}

impl Builder {
    /// 2.10, 2.12, 2.14, 2.15, x.y.z or `default`.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    /// More of the server's configuration (authorization, tls, accounts, limits …).
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        let _ = writeln!(self.config, "{text}");
        self
    }

    /// More of the section `jetstream` (domain, limits …).
    #[must_use]
    pub fn jetstream(mut self, text: &str) -> Self {
        let _ = write!(self.jetstream, ", {text}");
        self
    }

    /// Where JetStream keeps its files; it believes that there is room enough.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disk = Some(disk);
        self
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> Nats {
        let binary = services::nats(&self.version);
        let folder = Folder::new("nats", User::Ourselves);
        let Builder { jetstream, config, disk, .. } = self;
        let mut server =
            Nats { process: Mutex::new(None), binary, port: Port::take(), jetstream, config, disk, folder };
        for _ in 0..5 {
            match server.launch().await {
                Ok(()) => return server,
                // Somebody who does not know our lock was faster.
                Err(log) if log.contains("address already in use") => server.port = Port::take(),
                Err(log) => panic!("nats-server did not start; it says:\n{}", tail(&log)),
            }
        }
        panic!("nats-server found five ports taken, one after the other");
    }
}

impl Nats {
    /// A server of the version under test without authentication.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// One with wishes.
    pub fn builder() -> Builder {
        Builder { version: services::nats_version(), jetstream: String::new(), config: String::new(), disk: None }
    }

    /// Where it listens, by plain TCP.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port())
    }

    /// Its port, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Where JetStream keeps its files.
    pub fn store_dir(&self) -> PathBuf {
        self.disk.as_ref().map_or_else(|| self.folder.path().join("store"), |disk| disk.path().to_owned())
    }

    /// The disk that it was given.
    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("a server with a disk of its own")
    }

    /// A client without credentials.
    pub async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url())
            .await
            .unwrap_or_else(|error| panic!("cannot connect to {}: {error}", self.url()))
    }

    /// A JetStream context on such a client.
    pub async fn jetstream(&self) -> async_nats::jetstream::Context {
        async_nats::jetstream::new(self.client().await)
    }

    /// Ends it as a power cut would.
    pub fn kill9(&self) {
        self.process().take();
    }

    /// A graceful end.
    pub fn stop(&self) {
        let Some(mut process) = self.process().take() else { return };
        process.signal(Signal::TERM);
        assert!(process.wait(DEADLINE).is_some(), "nats-server did not shut down within {DEADLINE:?}");
    }

    /// Starts it again, on the same port and store; stops it first where it runs.
    pub async fn restart(&self) {
        self.stop();
        self.launch().await.unwrap_or_else(|log| panic!("nats-server did not start again; it says:\n{}", tail(&log)));
    }

    /// Another version, from the next start on.
    pub fn set_version(&mut self, version: &str) {
        self.binary = services::nats(version);
    }

    /// Another configuration than the builder's, from the next start on.
    pub fn set_config(&mut self, text: &str) {
        text.clone_into(&mut self.config);
    }

    /// SIGSTOP: sockets stay open, nothing answers.
    pub fn pause(&self) {
        self.process().as_mut().expect("a running server").signal(Signal::STOP);
    }

    /// SIGCONT, after [`Nats::pause`].
    pub fn resume(&self) {
        self.process().as_mut().expect("a running server").signal(Signal::CONT);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process().as_ref().expect("a running server").pid()
    }

    /// The server's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the server has logged since its first start.
    pub fn log(&self) -> String {
        read_lossy(&self.folder.path().join("log"))
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Starts the server and waits until it says so, which it does whatever it asks of its clients; the error is what it
    /// has said.
    async fn launch(&self) -> Result<(), String> {
        let said = self.log().len();
        let config = self.folder.path().join("nats.conf");
        let (port, store) = (self.port(), self.store_dir());
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\"{}{} }}\n{}",
            store.display(),
            self.disk.as_ref().map_or("", |_| ", max_file_store: 10GB"),
            self.jetstream,
            self.config
        );
        fs::write(&config, text).unwrap();
        let mut command = match &self.disk {
            Some(disk) => disk.command(&self.binary),
            None => User::Ourselves.command(&self.binary),
        };
        command.arg("--config").arg(&config).current_dir(self.folder.path());
        *self.process() = Some(Process::start("nats-server", command, &self.folder.path().join("log")));

        let deadline = tokio::time::Instant::now() + 2 * DEADLINE;
        loop {
            if self.log()[said..].contains("Server is ready") {
                return Ok(());
            }
            let ended = self.process().as_mut().and_then(Process::exited).is_some();
            if ended || tokio::time::Instant::now() > deadline {
                self.process().take();
                return Err(self.log().split_off(said));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
