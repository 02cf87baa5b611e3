//! What the log was told last, so that what goes wrong at every attempt is told once, and again while it lasts.

use std::time::Duration;

use tokio::time::Instant;

/// How long what lasts is not repeated.
const REPEATED_AFTER: Duration = Duration::from_secs(60);

/// What the log was told last, and when, of something that goes wrong at every attempt: told at once, and each minute again.
#[derive(Debug, Default)]
pub struct Lasting {
    text: Option<String>,
    /// What `walhook check` calls it.
    name: Option<&'static str>,
    since: Option<Instant>,
    logged: Option<Instant>,
}

/// Whether there is something to tell.
#[derive(Debug, PartialEq, Eq)]
pub enum Telling {
    News,
    /// It has lasted so long.
    Again(Duration),
    Nothing,
}

impl Lasting {
    /// Takes what there is to tell at `now`.
    pub fn tells(&mut self, text: &str, now: Instant) -> Telling {
        if self.text.as_deref() != Some(text) {
            *self = Lasting { text: Some(text.to_owned()), since: Some(now), logged: Some(now), ..Lasting::default() };
            return Telling::News;
        }
        match (self.since, self.logged) {
            (Some(since), Some(logged)) if now.duration_since(logged) >= REPEATED_AFTER => {
                self.logged = Some(now);
                Telling::Again(now.duration_since(since))
            }
            _ => Telling::Nothing,
        }
    }

    /// Logs a failure of this name, if there is something to tell; `waiting` events wait for its end.
    pub fn warn(&mut self, name: &'static str, text: &str, waiting: usize) {
        match self.tells(text, Instant::now()) {
            Telling::News => tracing::warn!(finding = name, "{text}"),
            Telling::Again(lasts) => {
                tracing::warn!(finding = name, waiting_events = waiting, lasts_s = lasts.as_secs(), "still: {text}");
            }
            Telling::Nothing => {}
        }
        self.name = Some(name);
    }

    /// What `walhook check` calls it.
    pub fn name(&self) -> Option<&'static str> {
        self.name
    }

    /// What was told last.
    pub fn text(&self) -> Option<&String> {
        self.text.as_ref()
    }

    /// All is well again.
    pub fn forget(&mut self) {
        *self = Lasting::default();
    }
}

/// See the module: told once.
#[derive(Debug, Default)]
pub struct LogOnce(Option<String>);

impl LogOnce {
    /// Takes what there is to tell; whether it is something else than the last time.
    pub fn is_news(&mut self, text: &str) -> bool {
        let is_news = self.0.as_deref() != Some(text);
        if is_news {
            self.0 = Some(text.to_owned());
        }
        is_news
    }

    /// The last failure, while it lasts.
    pub fn text(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// All is well again; whether there was something to tell before.
    pub fn forget(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_problem_is_logged_at_once_and_again_each_minute_with_its_duration() {
        let (mut lasting, begin) = (Lasting::default(), Instant::now());
        let mut tells = |text: &str, seconds| lasting.tells(text, begin + Duration::from_secs(seconds));
        assert_eq!(tells("a", 0), Telling::News);
        assert_eq!(tells("a", 59), Telling::Nothing);
        assert_eq!(tells("a", 61), Telling::Again(Duration::from_secs(61)));
        assert_eq!(tells("a", 119), Telling::Nothing);
        assert_eq!(tells("a", 125), Telling::Again(Duration::from_secs(125)));
        assert_eq!(tells("b", 126), Telling::News);
        assert_eq!(tells("b", 186), Telling::Again(Duration::from_secs(60)));
        lasting.forget();
        assert_eq!(lasting.tells("b", begin), Telling::News);
    }

    #[test]
    fn the_same_problem_is_logged_once_until_it_was_resolved_in_between() {
        let mut logged = LogOnce::default();
        assert!(!logged.forget());
        assert!(logged.is_news("a") && !logged.is_news("a") && logged.is_news("b") && logged.is_news("a"));
        assert!(logged.forget() && logged.is_news("a"));
    }
}
