//! Whether a run of this database, or of a copy of it, is streaming at this moment.
//!
//! A copy of the data directory has the identity of its original, and the mark in the bucket tells them apart only once the
//! original has counted on. So every verb asks the runs themselves: [`ask`] sends a request in NATS, and a run answers
//! ([`Presence`]) with a count that it has just written into its database. A database that has that count is the run's own; one
//! that lacks it is a copy ([`refuse_copy`]). Needs core NATS only. Nothing answers where no run is streaming, where the user
//! of one side lacks the right, and where the servers are not connected with each other.

use std::{future::pending, time::Duration};

use async_nats::Message;
use futures_util::{FutureExt, StreamExt, stream::SelectAll};
use serde_json::json;
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_postgres::Client;

use super::{
    bucket,
    identity::{self, Identity, Mark, Runs},
};
use crate::{
    error::{Error, Kind, Result},
    nats::control::Control,
    postgres::{self, sql},
};

/// How long an answer may take: a run connects to PostgreSQL and commits a row for it.
const ANSWER: Duration = Duration::from_secs(2);
/// A run that is about to be replaced, as after a failover, may still answer. It is asked again, so often at most …
const TIMES: usize = 4;
/// … and after so long.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a run counts on for answers, at most; all who have asked meanwhile get the same.
const EVERY: Duration = Duration::from_millis(200);
/// Requests that are answered by one count; others are not answered.
const ASKERS_MAX: usize = 256;

/// The subject on which a run of this database is asked. Answers come on subjects below it, for which users need no other rights.
pub fn subject(source: &str, database_id: &str) -> String {
    format!("_WALHOOK.run.{database_id}.{source}")
}

/// This run, as it shows itself.
#[derive(Debug, Clone)]
pub struct ThisRun {
    /// The name of the feed.
    pub source: String,
    /// The database.
    pub identity: Identity,
    /// This run.
    pub run_id: String,
    /// Its count.
    pub epoch: u64,
    /// The timeline of its session.
    pub timeline: u32,
    /// Where it counts on.
    pub postgres: postgres::Settings,
}

/// Answers for a run, as long as this exists.
pub struct Presence {
    controls: watch::Sender<Vec<Control>>,
    task: JoinHandle<Error>,
}

impl Presence {
    /// Begins to answer by the connections that [`Presence::follow`] names.
    pub fn start(run: ThisRun) -> Presence {
        let (controls, follows) = watch::channel(Vec::new());
        Presence { controls, task: tokio::spawn(answer_all(run, follows)) }
    }

    /// Whether another run has turned out to stream whose database is another copy of this one.
    ///
    /// # Errors
    /// It has.
    pub fn check(&mut self) -> Result<()> {
        if !self.task.is_finished() {
            return Ok(());
        }
        match (&mut self.task).now_or_never() {
            Some(Ok(error)) => Err(error),
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Some(Err(_)) | None => Ok(()),
        }
    }

    /// Answers by these connections from here on.
    pub fn follow(&self, controls: Vec<Control>) {
        self.controls.send_replace(controls);
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ends when another run has turned out to be a copy's.
async fn answer_all(run: ThisRun, mut follows: watch::Receiver<Vec<Control>>) -> Error {
    let mut others = JoinSet::new();
    let subject = subject(&run.source, &run.identity.database_id);
    let mut requests = SelectAll::new();
    loop {
        let (control, request) = tokio::select! {
            changed = follows.changed() => {
                if changed.is_err() {
                    // The session has ended, and this task with it.
                    return pending().await;
                }
                let controls = follows.borrow_and_update().clone();
                // The new subscriptions first, so that there is no moment without one.
                let mut next = SelectAll::new();
                for control in controls {
                    let Ok(subscriber) = control.client().subscribe(subject.clone()).await else { continue };
                    // Two copies that started at once have asked before the other answered.
                    others.spawn(run.clone().look_for_others(control.clone()));
                    next.push(subscriber.map(move |message| (control.clone(), message)));
                }
                requests = next;
                continue;
            }
            Some(looked) = others.join_next(), if !others.is_empty() => {
                match looked {
                    Ok(Err(error)) if error.kind() == Kind::Untrusted => return error,
                    Ok(Err(error)) => tracing::debug!("{error}"),
                    Ok(Ok(())) | Err(_) => {}
                }
                continue;
            }
            Some(request) = requests.next(), if !requests.is_empty() => request,
        };
        let mut askers: Vec<(Control, Message)> = vec![(control, request)];
        while askers.len() < ASKERS_MAX
            && let Some(Some(request)) = requests.next().now_or_never()
        {
            askers.push(request);
        }
        // Of this run itself, which asks before it opens a stream: it has nothing to prove.
        let is_own = |message: &Message| message.payload == run.run_id.as_bytes();
        let is_asked = askers.iter().any(|(_, message)| !is_own(message));
        let beat = if is_asked { run.count_on().await } else { Ok(0) };
        let beat = match beat {
            Ok(beat) => beat,
            Err(error) => {
                tracing::debug!("cannot prove to another process that this run is streaming: {error}");
                continue;
            }
        };
        let answer = json!(run.mark(beat)).to_string();
        for (control, message) in askers {
            let Some(reply) = message.reply else { continue };
            // Who asked may be gone.
            let _ = control.client().publish(reply, answer.clone().into()).await;
        }
        if is_asked {
            sleep(EVERY).await;
        }
    }
}

impl ThisRun {
    /// What the run writes into the bucket, and answers.
    pub fn mark(&self, beat: i64) -> Mark {
        let database_id = self.identity.database_id.clone();
        Mark { database_id, run_id: self.run_id.clone(), epoch: self.epoch, beat, timeline: self.timeline }
    }

    async fn look_for_others(self, control: Control) -> Result<()> {
        let runs = || Runs::read_by(&self.postgres, &self.source);
        refuse_copy(&control, &self.source, &self.identity, Asker::Running(&self.run_id), runs).await
    }

    async fn count_on(&self) -> Result<i64> {
        let client = sql::connect(&self.postgres).await?;
        identity::hold(&client, &self.source, self.epoch).await?;
        Ok(identity::beat(&client, &self.source, &self.run_id, self.epoch).await?.0)
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub enum Asker<'r> {
    /// No run.
    Verb,
    /// This run, before it streams. Once it answers by itself, others ask it, and its own answer is enough.
    Starting(&'r str),
    /// This run, which answers by itself: only others' answers count.
    Running(&'r str),
}

/// Asks whether a run of this database or of a copy streams, other than the asker. What it says of itself; `None` where none
/// answers, or this user may not ask.
///
/// # Errors
/// The connection to NATS is lost.
pub async fn ask(control: &Control, source: &str, database_id: &str, asker: Asker<'_>) -> Result<Option<Mark>> {
    let (own_run, passes_over_own) = match asker {
        Asker::Verb => ("", false),
        Asker::Starting(run) => (run, false),
        Asker::Running(run) => (run, true),
    };
    let subject = subject(source, database_id);
    let lost = |error: String| Error::unavailable(format!("ask {subject} for runs that stream")).caused_by(error);
    let client = control.client();
    let inbox = format!("{subject}.{:016x}", fastrand::u64(..));
    let (refusal, unheard) = (control.refusal(&subject), control.refusal(&inbox));
    tokio::pin!(refusal, unheard);
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| lost(error.to_string()))?;
    client
        .publish_with_reply(subject.clone(), inbox, own_run.to_owned().into())
        .await
        .map_err(|error| lost(error.to_string()))?;
    let answer = async {
        loop {
            let answer = tokio::select! {
                answer = answers.next() => answer,
                _ = &mut refusal => return None,
                _ = &mut unheard => return None,
            };
            let message = answer?;
            if message.status.is_some_and(|status| status.as_u16() == 503) {
                return None;
            }
            // A stream that takes all subjects may answer as well.
            let Ok(mark) = serde_json::from_slice::<Mark>(&message.payload) else { continue };
            if mark.database_id != database_id || (passes_over_own && mark.run_id == own_run) {
                continue;
            }
            return Some(mark).filter(|mark| mark.run_id != own_run);
        }
    };
    Ok(timeout(ANSWER, answer).await.unwrap_or(None))
}

/// Whether a run that streams now, and the last run that the bucket shows, are known to this database, for verbs that only read
/// there. Who may not read the bucket cannot know. Returns the mark of the last run, unless any run was accepted.
///
/// # Errors
/// [`Kind::Untrusted`]: it is not; or a server cannot be asked.
pub async fn check_runs(client: &Client, control: &Control, source: &str, identity: &Identity) -> Result<Option<Mark>> {
    refuse_copy(control, source, identity, Asker::Verb, || Runs::read(client, source)).await?;
    let mark = match bucket::find(control, source, identity).await {
        Ok(place) => place.mark,
        Err(error) if error.kind() == Kind::Permission => {
            tracing::warn!("cannot check whether this database is a copy (a base backup): {error}");
            None
        }
        Err(error) => return Err(error),
    };
    let Some(mark) = mark else { return Ok(None) };
    let runs = Runs::read(client, source).await?;
    runs.check(&mark, &identity.database_id)?;
    // What `walhook adopt --same` accepted is not compared.
    Ok((!runs.accept_any()).then_some(mark))
}

/// Refuses where a run streams whose database is another one than that behind `runs`: this one is a copy. `runs` reads the runs
/// that the database knows, each time anew.
///
/// # Errors
/// [`Kind::Untrusted`]: it is a copy. PostgreSQL or NATS cannot be asked.
pub async fn refuse_copy<F: Future<Output = Result<Runs>>>(
    control: &Control,
    source: &str,
    identity: &Identity,
    asker: Asker<'_>,
    runs: impl Fn() -> F,
) -> Result<()> {
    let mut times = 0;
    loop {
        let Some(mark) = ask(control, source, &identity.database_id, asker).await? else { return Ok(()) };
        let outcome = runs().await?.check(&mark, &identity.database_id);
        times += 1;
        match outcome {
            Err(error) if error.kind() == Kind::Untrusted && times < TIMES => sleep(AGAIN).await,
            outcome => return outcome,
        }
    }
}
