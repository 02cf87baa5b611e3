//! The keys with which payloads are sealed, and webhooks that name one that this process does not have.
//!
//! In: the folder of the settings, and the configuration rows. Out: the keys, read again while they are in use; what is wrong, for the
//! log and for `walhook check`. What is done with them is in [`crate::route::seal`].

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};

use crate::{
    config::Config,
    files,
    route::{
        seal::{SealKeys, Unopened},
        tables::Tables,
    },
    text,
};

/// The setting, as errors name it.
const SETTING: &str = "seal_keys_dir (--seal-keys-dir, WALHOOK_SEAL_KEYS_DIR)";
/// How often `run` reads the folder.
const EVERY: Duration = Duration::from_secs(5);
/// How soon `deliver` reads it again for a message whose key it does not have.
const AGAIN: Duration = Duration::from_secs(1);
/// Files that are looked at, at most.
const FILES_MAX: usize = 10_000;

/// The keys, read now. What cannot be read is no key: then the webhooks that need it wait.
pub fn keys(config: &Config) -> SealKeys {
    config.seal_keys_dir.as_deref().map(readable).unwrap_or_default()
}

/// The keys of a folder, or none, with the reason.
fn readable(folder: &Path) -> SealKeys {
    in_folder(SETTING, folder).unwrap_or_else(|why| SealKeys::of(&why, std::iter::empty(), |_| Ok(Vec::new())))
}

/// The keys of a folder.
///
/// # Errors
/// Why it cannot be read.
pub fn in_folder(setting: &str, folder: &Path) -> Result<SealKeys, String> {
    let failed = |error: io::Error| {
        format!("the folder of {setting}, {}, cannot be read ({error}), so walhook", files::shown(folder))
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)?.take(FILES_MAX) {
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    names.sort();
    let read = |name: &str| files::read_private(setting, &folder.join(name)).map_err(|error| error.to_string());
    let place = format!("the folder of {setting}, {},", files::shown(folder));
    Ok(SealKeys::of(&place, names.iter().map(String::as_str), read))
}

/// What is wrong, if a webhook needs a key and there is none.
pub fn problem(tables: &Tables, keys: &SealKeys) -> Option<String> {
    let named = tables.webhooks.values().filter(|row| row.enabled && row.nats_enabled);
    let wrong: Vec<_> =
        named.filter_map(|row| Some((row.name.as_str(), keys.newest(row.seal_key.as_deref()?).err()?))).collect();
    let ((name, why), rest) = wrong.split_first()?;
    let more = if rest.is_empty() { String::new() } else { format!(" (and {} more webhooks)", rest.len()) };
    Some(format!(
        "webhook {}{more} seals its payloads: {why}. Its events wait until there is one, and with them all that were committed later",
        text::one_line(name)
    ))
}

/// The keys of `walhook run`, which follows the folder.
pub struct Followed {
    folder: Option<PathBuf>,
    keys: SealKeys,
    /// When the last reading ended.
    read_at: Instant,
    /// Under way on a thread of its own: the folder may be on a server that is away.
    reading: Option<JoinHandle<Result<SealKeys, String>>>,
    /// What was logged last.
    problem: Option<String>,
}

impl Followed {
    /// With the keys as they were read when the session began.
    pub fn new(config: &Config, keys: SealKeys) -> Followed {
        Followed { folder: config.seal_keys_dir.clone(), keys, read_at: Instant::now(), reading: None, problem: None }
    }

    /// The keys, if they are others by now. While the folder cannot be read those from before are kept. To be called now and then: one
    /// call has the folder read, a later one has what was read.
    pub fn look(&mut self) -> Option<SealKeys> {
        let Some(reading) = &mut self.reading else {
            let folder = self.folder.clone().filter(|_| self.read_at.elapsed() >= EVERY)?;
            self.reading = Some(spawn_blocking(move || in_folder(SETTING, &folder)));
            return None;
        };
        let read = reading.now_or_never()?;
        (self.reading, self.read_at) = (None, Instant::now());
        let read = read.expect("reading a folder does not panic");
        let problem = match &read {
            Ok(keys) => keys.problems().next().map(str::to_owned),
            Err(why) => Some(format!("{why} goes on with the seal keys that it has")),
        };
        if problem != self.problem {
            if let Some(problem) = &problem {
                tracing::warn!("{problem}");
            }
            self.problem = problem;
        }
        let keys = read.ok().filter(|keys| *keys != self.keys)?;
        tracing::info!(seal_with = keys.labels().join(" "), "the seal keys have changed");
        self.keys = keys.clone();
        Some(keys)
    }
}

/// The keys of `walhook deliver`, which reads the folder when a message needs a key that it does not have.
pub struct OnDemand {
    folder: Option<PathBuf>,
    state: Mutex<(SealKeys, Instant)>,
}

impl OnDemand {
    /// Read now.
    pub fn new(config: &Config) -> OnDemand {
        OnDemand { folder: config.seal_keys_dir.clone(), state: Mutex::new((keys(config), Instant::now())) }
    }

    /// The keys, with which `use_them` tries something; if they do not open it, the keys are read again, though not at every
    /// attempt, and it tries once more.
    pub fn with<T>(&self, use_them: impl Fn(&SealKeys) -> Result<T, Unopened>) -> Result<T, Unopened> {
        let (known, read_at) = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            (state.0.clone(), state.1)
        };
        let outcome = use_them(&known);
        let (Err(_), Some(folder)) = (&outcome, self.folder.as_ref().filter(|_| read_at.elapsed() >= AGAIN)) else {
            return outcome;
        };
        let read = readable(folder);
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (read.clone(), Instant::now());
        use_them(&read)
    }
}
