//! What is away, logged once in a while: since when, and how much waits for it.
//!
//! In: at any time, all that is away now. Out: whom to tell of again, and who is back. Knows no server; the caller writes the log.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// How often what lasts is logged, where no setting says otherwise.
pub const EVERY: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Away {
    every: Duration,
    /// Since when each is away, and when that was logged last.
    known: BTreeMap<String, (Instant, Instant)>,
}

/// What there is to tell of one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// It has been away for so long, and still is.
    Still(String, Duration),
    /// It is back after so long; only where the log has said before that it is away.
    Back(String, Duration),
}

impl News {
    /// Of whom.
    pub fn name(&self) -> &str {
        let (News::Still(name, _) | News::Back(name, _)) = self;
        name
    }
}

impl Away {
    /// Nothing is away; `every`: how often to tell, zero as by default.
    pub fn new(every: Duration) -> Away {
        Away { every: if every.is_zero() { EVERY } else { every }, known: BTreeMap::new() }
    }

    /// All that is away at `now`; what to tell.
    pub fn look<'n>(&mut self, away: impl Iterator<Item = &'n str>, now: Instant) -> Vec<News> {
        let mut news = Vec::new();
        let mut before = std::mem::take(&mut self.known);
        for name in away {
            let (since, mut logged) = before.remove(name).unwrap_or((now, now));
            if now.duration_since(logged) >= self.every {
                logged = now;
                news.push(News::Still(name.to_owned(), now.duration_since(since)));
            }
            self.known.insert(name.to_owned(), (since, logged));
        }
        let back = before.into_iter().filter(|(_, (since, logged))| logged > since);
        news.extend(back.map(|(name, (since, _))| News::Back(name, now.duration_since(since))));
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_server_is_logged_once_a_minute_with_the_duration_and_when_it_is_back() {
        let (mut away, begin) = (Away::new(Duration::ZERO), Instant::now());
        let mut look = |names: &[&str], seconds| away.look(names.iter().copied(), begin + Duration::from_secs(seconds));
        let still = |name: &str, seconds| News::Still(name.to_owned(), Duration::from_secs(seconds));
        assert_eq!(look(&["a"], 0), []);
        assert_eq!(look(&["a", "b"], 59), []);
        assert_eq!(look(&["a", "b"], 60), [still("a", 60)]);
        assert_eq!(look(&["a", "b"], 119), [still("b", 60)]);
        assert_eq!(look(&["a", "b"], 121), [still("a", 121)]);
        assert_eq!(look(&["b"], 130), [News::Back("a".to_owned(), Duration::from_secs(130))]);
        // What was away for a moment is not logged at all.
        assert_eq!(look(&["a", "b"], 131), []);
        assert_eq!(look(&["b"], 132), []);
        assert_eq!(look(&["a", "b"], 190), [still("b", 131)]);
    }
}
