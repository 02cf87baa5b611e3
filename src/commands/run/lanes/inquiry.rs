//! Whose the database is, asked before anything goes to core NATS.
//!
//! Core NATS stores nothing, so nothing in it tells that another copy of the database publishes there. JetStream tells: each run
//! leaves a mark in the bucket of webhooks. In: the connections of all configurations. Out: whether lanes of core NATS may be opened,
//! and a connection for the mark of this run. Always holds: no lane of core NATS is opened in a session before the JetStream of its own
//! account was asked, and that of each other configuration that can be reached. An account without JetStream, and one without a
//! bucket of this database, has nothing to say.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{Sleep, sleep};

use super::{Lanes, driver::nats_name, open};
use crate::{
    commands::{backoff::Backoff, log_once::Lasting},
    error::{Error, Kind, Result},
    nats::control::{ApiError, Control, NoJetStream},
};

/// JetStream's answers where it is not there for the account, or not there at all.
const NO_JETSTREAM: [u64; 2] = [10039, 10076];

/// What the JetStream of a group's account was asked.
#[derive(Default)]
pub struct Inquiry {
    /// For core NATS: the connection by which it is asked, and by which this run answers others.
    witness: Option<Control>,
    state: State,
    /// It has answered in this session, or there is none.
    is_answered: bool,
    /// It could not be asked.
    has_failed: bool,
    backoff: Backoff,
    logged: Lasting,
}

#[derive(Default)]
enum State {
    /// To be asked.
    #[default]
    Due,
    /// To be asked again, not before then.
    Waiting(Pin<Box<Sleep>>),
    Asking(Pin<Box<dyn Future<Output = Result<bool>>>>),
    /// It was asked by this connection, or needs none: whether this database has a bucket there.
    Done(bool),
}

impl Inquiry {
    /// Asks by this connection.
    pub fn begin(&mut self, witness: Control) {
        self.witness = Some(witness);
        self.state = State::Due;
    }

    /// The connection is of no more use.
    pub fn lose(&mut self) {
        if self.witness.is_some() {
            self.disconnect();
        }
    }

    /// Nothing is left to be published.
    pub fn disconnect(&mut self) {
        self.witness = None;
        self.state = State::Due;
    }

    /// Whether a connection is wanted.
    pub fn lacks_witness(&self) -> bool {
        self.witness.is_none()
    }

    /// For core NATS: the connection to the account, once it was asked.
    pub fn connection(&self) -> Option<&Control> {
        self.witness.as_ref().filter(|_| matches!(self.state, State::Done(_)))
    }

    /// For core NATS: the connection to the bucket that this database has on the account.
    pub fn witness(&self) -> Option<&Control> {
        self.witness.as_ref().filter(|_| matches!(self.state, State::Done(true)))
    }
}

impl Lanes {
    /// Asks the JetStream of a group's account. Returns whether it has answered now.
    ///
    /// # Errors
    /// This database does not know the last run: it is a copy, or another copy has run.
    pub(super) fn poll_inquiry(&mut self, cx: &mut Context<'_>, at: usize) -> Result<bool> {
        if !self.groups.iter().any(|group| group.in_use && group.is_core) {
            return Ok(false);
        }
        let group = &mut self.groups[at];
        let inquiry = &mut group.inquiry;
        let control = if group.is_core { &inquiry.witness } else { &group.control };
        let Some(control) = control.as_ref().filter(|_| group.in_use) else { return Ok(false) };
        let is_due = match &mut inquiry.state {
            State::Due => true,
            State::Waiting(until) => until.as_mut().poll(cx).is_ready(),
            State::Asking(_) | State::Done(_) => false,
        };
        if is_due {
            let (control, identity) = (control.clone(), self.identity.clone());
            inquiry.state = State::Asking(Box::pin(async move { open::ask_runs(&control, &identity).await }));
        }
        let State::Asking(asking) = &mut inquiry.state else { return Ok(false) };
        let Poll::Ready(answer) = asking.as_mut().poll(cx) else { return Ok(false) };
        // Lanes of other configurations may have waited for this.
        self.is_notable = true;
        let has_bucket = match answer {
            Ok(has_bucket) => has_bucket,
            Err(error) if is_none(&error) => false,
            Err(error) if error.kind() == Kind::Permission => {
                if group.is_core {
                    tracing::info!(
                        config = group.row.config_name,
                        "whether a copy of this database (a base backup) publishes to core NATS as well cannot be seen: {error}"
                    );
                }
                false
            }
            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Protocol) => {
                inquiry.has_failed = true;
                inquiry.state = State::Waiting(Box::pin(sleep(inquiry.backoff.next())));
                if group.is_core {
                    let attempted =
                        "before anything is published to core NATS, ask JetStream for the last run of this database";
                    let name = nats_name(&error, "nats_jetstream");
                    inquiry.logged.warn(name, &error.context(attempted).to_string(), group.in_line);
                }
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        inquiry.is_answered = true;
        inquiry.logged.forget();
        inquiry.state = State::Done(has_bucket);
        if group.is_core {
            group.asked();
            group.connected_times += 1;
        } else {
            inquiry.witness = None;
        }
        Ok(true)
    }

    /// Whether a group's lanes of core NATS may be opened.
    pub(super) fn may_open_core(&self, at: usize) -> bool {
        let here = &self.groups[at];
        let mut same = self.groups.iter().filter(|there| self.are_one_server(here, there));
        let is_answered = same.any(|there| there.inquiry.is_answered);
        let mut others = self.groups.iter().enumerate().filter(|(other, group)| *other != at && group.in_use);
        is_answered
            && others
                .all(|(_, group)| group.inquiry.is_answered || group.inquiry.has_failed || group.cannot_be_reached())
    }
}

/// There is no JetStream to be asked.
fn is_none(error: &Error) -> bool {
    let is_disabled = error.cause_as::<ApiError>().is_some_and(|error| NO_JETSTREAM.contains(&error.err_code));
    is_disabled || error.cause_as::<NoJetStream>().is_some() || error.kind() == Kind::Config
}
