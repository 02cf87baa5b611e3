//! Other runs of this database, or of a copy, asked for before anything goes to core NATS.
//!
//! Core NATS stores nothing, so nothing in it shows that another copy of the database publishes there. JetStream shows it: each run
//! leaves a mark in the bucket of webhooks. In: what the accounts of all configurations answer. Out: whether lanes of core NATS may
//! be opened. Always holds: no lane of core NATS is opened in a session before the JetStream of its own account was asked, and that
//! of each other configuration that can be reached. An account without JetStream, and one without a bucket of this database,
//! has nothing to say.

use super::{Action, Driver, GroupId, Moment, Report, Task, Timing, backoff::Backoff};
use crate::error::{Error, Result};

/// What the account of a group has been asked.
#[derive(Debug)]
pub struct OtherRuns {
    state: State,
    /// It has answered in this session, or has nothing to say.
    is_answered: bool,
    /// It could not be asked.
    has_failed: bool,
    is_reported: bool,
    backoff: Backoff,
}

#[derive(Debug)]
enum State {
    /// To be asked.
    Due,
    /// To be asked again, not before then.
    Waiting(Moment),
    Asking,
    /// It was asked by this connection: whether this database has a bucket there.
    Done(bool),
}

/// What an account says of other runs.
#[derive(Debug)]
pub enum RunsAnswer {
    /// None streams; whether this database has a bucket there.
    None(bool),
    /// It has no JetStream.
    NoJetStream,
    /// This user may not ask.
    Hidden(Error),
    /// It gives no answer now.
    Away(Error),
    /// This database is a copy, or another copy has run.
    Refused(Error),
}

impl OtherRuns {
    pub fn new(timing: &Timing) -> OtherRuns {
        OtherRuns {
            state: State::Due,
            is_answered: false,
            has_failed: false,
            is_reported: false,
            backoff: timing.backoff(),
        }
    }

    /// Whether it was asked by the present connection.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done(_))
    }

    /// Whether this database has a bucket there.
    pub fn has_bucket(&self) -> bool {
        matches!(self.state, State::Done(true))
    }

    pub fn wakes_at(&self) -> Option<Moment> {
        if let State::Waiting(until) = self.state { Some(until) } else { None }
    }
}

impl Driver {
    /// The connection by which a group's account was asked is gone.
    pub(super) fn forget_runs(&mut self, group: GroupId) {
        let before = std::mem::replace(&mut self.groups[group.0].other_runs.state, State::Due);
        if matches!(before, State::Asking) {
            self.actions.push_back(Action::Abandon(Task::AskRuns(group)));
        }
    }

    /// Asks a group's account, where it is time. Returns whether it did.
    pub(super) fn ask_runs(&mut self, id: GroupId) -> bool {
        if !self.groups.iter().any(|group| group.in_use && group.is_core) {
            return false;
        }
        let group = &mut self.groups[id.0];
        if !group.in_use || !group.has_api {
            return false;
        }
        let is_due = match group.other_runs.state {
            State::Due => true,
            State::Waiting(until) => until <= self.now,
            State::Asking | State::Done(_) => false,
        };
        if is_due {
            group.other_runs.state = State::Asking;
            self.actions.push_back(Action::AskRuns(id));
        }
        is_due
    }

    pub(super) fn runs_asked(&mut self, id: GroupId, answer: RunsAnswer) -> Result<bool> {
        let group = &mut self.groups[id.0];
        let (is_core, runs) = (group.is_core, &mut group.other_runs);
        if !matches!(runs.state, State::Asking) {
            return Ok(false);
        }
        // Lanes of other configurations may have waited for this.
        self.is_notable = true;
        let (has_bucket, hidden) = match answer {
            RunsAnswer::None(has_bucket) => (has_bucket, None),
            RunsAnswer::NoJetStream => (false, None),
            RunsAnswer::Hidden(error) => (false, Some(error)),
            RunsAnswer::Away(error) => {
                runs.has_failed = true;
                runs.state = State::Waiting(self.now.after(runs.backoff.next(self.chance.draw())));
                if is_core {
                    runs.is_reported = true;
                    self.report(Report::RunsNotAsked(id, error));
                }
                return Ok(true);
            }
            RunsAnswer::Refused(error) => return Err(error),
        };
        runs.is_answered = true;
        runs.state = State::Done(has_bucket);
        let was_reported = std::mem::take(&mut runs.is_reported);
        if is_core {
            group.asked();
            group.connected_times += 1;
        }
        if let Some(error) = hidden.filter(|_| is_core) {
            self.report(Report::RunsHidden(id, error));
        }
        if was_reported {
            self.report(Report::RunsAsked(id));
        }
        Ok(true)
    }

    /// Whether a group's lanes of core NATS may be opened.
    pub(super) fn may_open_core(&self, id: GroupId) -> bool {
        let here = &self.groups[id.0];
        let mut same = self.groups.iter().filter(|there| self.are_one_server(here, there));
        let is_answered = same.any(|there| there.other_runs.is_answered);
        let mut others = self.groups.iter().enumerate().filter(|(other, group)| *other != id.0 && group.in_use);
        let has_said = |runs: &OtherRuns, is_away: bool| runs.is_answered || runs.has_failed || is_away;
        is_answered && others.all(|(_, group)| has_said(&group.other_runs, group.cannot_be_reached()))
    }
}
