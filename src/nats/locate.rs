//! Where given messages lie in a stream: keys of our messages rise with the sequence.
//!
//! In: keys that rise, and how to read a message's key. Out: for each key the sequence of the message that carries it, never
//! another's. The first is found by bisection; from there on the stream is read message by message, so that keys that lie side by
//! side cost a request each. A wide gap is bisected again; among very many messages of others the server looks by subject. What a
//! key means is not known here.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;

use super::{
    control::Control,
    streams,
    tail::{self, Stored},
};
use crate::error::Result;

/// Messages of others that a search steps over while many keys are looked for: then the server looks by subject.
const FOREIGN_FEW: u64 = 256;
/// How often a search among very many messages of others logs how far it is.
const PROGRESS: Duration = Duration::from_secs(5);
/// Requests in flight.
const IN_FLIGHT: u64 = 16;
/// So many messages in a row that nobody asked for are a gap, which is bisected.
const GAP: u64 = 48;
/// In a shared stream a message that was refused once lies behind later ones: so far is it looked for.
const DISORDER: u64 = 1024;

/// What is known of where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sought {
    /// The message at this sequence carries the key.
    At(u64),
    /// It is not there, and where it would be messages have been removed.
    Removed,
    /// It was not found.
    Unknown,
}

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'w, K> {
    /// The message's key.
    pub key: K,
    /// Its subject.
    pub subject: &'w str,
}

/// The stream to look in.
#[derive(Debug, Clone, Copy)]
pub struct Within<'w> {
    /// Its name.
    pub stream: &'w str,
    /// Nothing that is looked for lies before this sequence: where an earlier search has ended.
    pub from: Option<u64>,
    /// Its messages may lie out of order.
    pub is_shared: bool,
}

/// Where the messages `wanted` are, whose keys rise; and the sequence from which on later keys have to be looked for.
///
/// # Errors
/// The stream cannot be asked.
pub async fn locate<K: Ord + Copy>(
    control: &Control,
    within: Within<'_>,
    wanted: &[Wanted<'_, K>],
    key_of: impl Fn(&Stored) -> Option<K>,
) -> Result<(Vec<Sought>, Option<u64>)> {
    let Some(oldest) = wanted.first() else { return Ok((Vec::new(), within.from)) };
    let stream = within.stream;
    let state = streams::state(control, stream).await?;
    let (first, last) = (state.first_sequence.max(1), state.last_sequence);
    let search = Search { control, stream, subject: ">", foreign_max: Some(FOREIGN_FEW), key_of: &key_of };
    let mut walk =
        Walk { wanted, places: vec![Sought::Unknown; wanted.len()], settled: 0, behind: within.from, has_hole: false };
    let mut next = match within.from.filter(|from| (first..=last + 1).contains(from)) {
        Some(from) => from,
        None => {
            let (low, place) = search.first(first, last, |key| *key < oldest.key).await?;
            // What is gone from the stream's beginning may have been any of them.
            walk.has_hole = low == first && first > 1;
            if matches!(place, Place::Strange) {
                return by_subject(&search, walk, (first, last), true).await;
            }
            low
        }
    };
    let (mut barren, mut disorder) = (0, if within.is_shared { DISORDER } else { 0 });
    while next <= last && (walk.settled < wanted.len() || (disorder > 0 && walk.lacks_some())) {
        let stride = (wanted.len() - walk.settled).max(1) as u64;
        let until = (next + stride.min(IN_FLIGHT) - 1).min(last);
        let there = try_join_all((next..=until).map(|sequence| tail::message(control, stream, sequence))).await?;
        let (is_hole, mut is_barren) = (there.iter().all(Option::is_none), true);
        for stored in there {
            match stored {
                None => walk.has_hole = true,
                Some(stored) => is_barren &= !walk.take(stored.sequence, key_of(&stored)),
            }
        }
        let read = until + 1 - next;
        next = until + 1;
        if is_hole {
            next = tail::next_message(control, stream, next).await?.map_or(last + 1, |stored| stored.sequence);
        }
        if walk.settled == wanted.len() {
            disorder = disorder.saturating_sub(read);
            continue;
        }
        barren = if is_barren { barren + read } else { 0 };
        if barren < GAP || next > last {
            continue;
        }
        barren = 0;
        let key = wanted[walk.settled].key;
        let (low, place) = search.first(next, last, |its| *its < key).await?;
        // Right before `low` is one of ours.
        walk.has_hole &= low == next;
        let upto = match place {
            Place::Strange => return by_subject(&search, walk, (next, last), false).await,
            Place::At(sequence, _) => sequence,
            Place::Nowhere => last + 1,
        };
        next = low;
        if upto - low > GAP {
            walk.has_hole |= tail::next_message(control, stream, low).await?.is_none_or(|stored| stored.sequence > low);
            next = upto;
        }
    }
    walk.pass(wanted.len());
    Ok((walk.places, walk.behind))
}

/// Looks for the rest one by one, each by its subject, from sequence `next` on; `is_far`: nobody knows how far away the first is.
///
/// Others may publish on our subjects too, and what core NATS brought of our own counts as theirs. However many of these messages
/// there are, each is read a few times at most.
async fn by_subject<K: Ord + Copy, F: Fn(&Stored) -> Option<K>>(
    search: &Search<'_, F>,
    mut walk: Walk<'_, K>,
    (next, last): (u64, u64),
    is_far: bool,
) -> Result<(Vec<Sought>, Option<u64>)> {
    // Of each subject: from where on nothing that is looked for has been passed.
    let mut cursors: HashMap<&str, u64> = HashMap::new();
    let mut behind = None;
    for (index, Wanted { key, subject }) in walk.wanted.iter().enumerate().skip(walk.settled) {
        let search = Search { subject, foreign_max: None, ..*search };
        let from = cursors.get(subject).copied().max(behind).unwrap_or(next);
        let (low, place) = if is_far && behind.is_none() {
            search.first(from, last, |its| its < key).await?
        } else {
            search.first_ahead(from, last, |its| its < key).await?
        };
        behind = behind.max(Some(low));
        let upto = match place {
            Place::At(sequence, its) if its == *key => {
                walk.places[index] = Sought::At(sequence);
                behind = Some(sequence + 1);
                sequence + 1
            }
            Place::At(sequence, _) => sequence,
            Place::Nowhere | Place::Strange => last + 1,
        };
        cursors.insert(subject, upto);
    }
    Ok((walk.places, walk.behind.max(behind)))
}

/// How far the stream has been read.
struct Walk<'w, K> {
    wanted: &'w [Wanted<'w, K>],
    places: Vec<Sought>,
    /// So many of `wanted` have been met or passed.
    settled: usize,
    /// Right behind the last message of ours that is not later than all that is wanted.
    behind: Option<u64>,
    /// Messages are missing between our last message and here.
    has_hole: bool,
}

impl<K: Ord + Copy> Walk<'_, K> {
    /// The next message, if it is ours with its key. Returns whether it was wanted.
    fn take(&mut self, sequence: u64, key: Option<K>) -> bool {
        let Some(key) = key else { return false };
        let index = self.wanted.partition_point(|wanted| wanted.key < key);
        let is_wanted = self.wanted.get(index).is_some_and(|wanted| wanted.key == key);
        let is_in_order = index >= self.settled;
        if is_in_order {
            self.pass(index);
            self.has_hole = false;
            if index < self.wanted.len() {
                self.behind = Some(sequence + 1);
            }
        }
        if is_wanted {
            self.places[index] = Sought::At(sequence);
            self.settled = self.settled.max(index + 1);
        }
        is_wanted
    }

    /// What comes before the key `index` is not there.
    fn pass(&mut self, index: usize) {
        if self.has_hole {
            self.places[self.settled..index].fill(Sought::Removed);
        }
        self.settled = index;
    }

    fn lacks_some(&self) -> bool {
        self.places.iter().any(|place| !matches!(place, Sought::At(_)))
    }
}

struct Search<'s, F> {
    control: &'s Control,
    stream: &'s str,
    /// Only messages on these subjects are looked at.
    subject: &'s str,
    /// So many messages of others are stepped over; `None`: any number. None of them is read twice.
    foreign_max: Option<u64>,
    key_of: &'s F,
}

/// Where a search has ended.
enum Place<K> {
    At(u64, K),
    Nowhere,
    /// Among more messages of others than are stepped over.
    Strange,
}

/// The first message of ours for which `is_before` does not hold, with its key; `None` where there is none. For all that come
/// before it, it holds. However many messages of others are in between: each is read once at most.
///
/// # Errors
/// The stream cannot be asked.
pub async fn first_from<K>(
    control: &Control,
    stream: &str,
    key_of: impl Fn(&Stored) -> Option<K>,
    is_before: impl Fn(&K) -> bool,
) -> Result<Option<(u64, K)>> {
    let state = streams::state(control, stream).await?;
    let search = Search { control, stream, subject: ">", foreign_max: None, key_of: &key_of };
    match search.first(state.first_sequence.max(1), state.last_sequence, is_before).await?.1 {
        Place::At(sequence, key) => Ok(Some((sequence, key))),
        Place::Nowhere | Place::Strange => Ok(None),
    }
}

/// What lies next.
enum Next<K> {
    Ours(u64, K),
    Nothing,
    TooManyOthers,
}

/// How many messages of others a search has read.
struct Others {
    read: u64,
    logged: Instant,
}

impl<F> Search<'_, F> {
    /// The first message from `low` to `high` whose key is not before the place looked for; and the sequence behind the
    /// last message whose key is, `low` where there is none.
    ///
    /// A step of the bisection reads the upper half of what is left, up to the first message of ours, and the next step does
    /// not read it again: all steps together read no more messages than there are.
    async fn first<K>(&self, low: u64, high: u64, is_before: impl Fn(&K) -> bool) -> Result<(u64, Place<K>)>
    where
        F: Fn(&Stored) -> Option<K>,
    {
        let (mut low, mut end) = (low, high + 1);
        let mut found = Place::Nowhere;
        let mut others = Others { read: 0, logged: Instant::now() };
        while low < end {
            let middle = low + (end - low) / 2;
            match self.next_of_ours(middle, end, &mut others).await? {
                Next::Ours(sequence, its) if is_before(&its) => low = sequence + 1,
                Next::Ours(sequence, its) => {
                    found = Place::At(sequence, its);
                    end = middle;
                }
                Next::Nothing => end = middle,
                Next::TooManyOthers => return Ok((low, Place::Strange)),
            }
        }
        Ok((low, found))
    }

    /// The same where it is probably near `low`: what is read grows with how far away it is, not with what comes behind it.
    async fn first_ahead<K>(&self, mut low: u64, high: u64, is_before: impl Fn(&K) -> bool) -> Result<(u64, Place<K>)>
    where
        F: Fn(&Stored) -> Option<K>,
    {
        let mut others = Others { read: 0, logged: Instant::now() };
        // One request where it is the next message on its subject.
        let next = tail::next_message_of(self.control, self.stream, low, self.subject).await?;
        let Some(next) = next else { return Ok((low, Place::Nowhere)) };
        match (self.key_of)(&next) {
            Some(its) if !is_before(&its) => return Ok((low, Place::At(next.sequence, its))),
            Some(_) => low = next.sequence + 1,
            None => {}
        }
        let (mut from, mut width) = (next.sequence + 1, 1);
        while from <= high {
            let end = from.saturating_add(width).min(high + 1);
            match self.next_of_ours(from, end, &mut others).await? {
                Next::Ours(sequence, its) if is_before(&its) => {
                    low = sequence + 1;
                    from = low.saturating_add(width);
                }
                Next::Ours(sequence, its) => {
                    let (low, place) = self.first(low, from - 1, is_before).await?;
                    let nearer = !matches!(place, Place::Nowhere);
                    return Ok((low, if nearer { place } else { Place::At(sequence, its) }));
                }
                Next::Nothing => from = end,
                Next::TooManyOthers => return Ok((low, Place::Strange)),
            }
            width *= 2;
        }
        self.first(low, high, is_before).await
    }

    /// The first message of ours from `from` on, before `end`.
    async fn next_of_ours<K>(&self, mut from: u64, end: u64, others: &mut Others) -> Result<Next<K>>
    where
        F: Fn(&Stored) -> Option<K>,
    {
        // The next one is ours nearly always: one request first, then ever more at a time.
        let mut stride = 1;
        while from < end {
            let until = (from + stride - 1).min(end - 1);
            let batch = if stride == 1 || self.subject != ">" {
                let next = tail::next_message_of(self.control, self.stream, from, self.subject).await?;
                vec![next.filter(|next| next.sequence < end)]
            } else {
                try_join_all((from..=until).map(|sequence| tail::message(self.control, self.stream, sequence))).await?
            };
            let mut there = batch.into_iter().flatten().peekable();
            if there.peek().is_none() {
                if stride == 1 || self.subject != ">" {
                    return Ok(Next::Nothing);
                }
                // A hole, of whatever size.
                (from, stride) = (until + 1, 1);
                continue;
            }
            for stored in there {
                if let Some(key) = (self.key_of)(&stored) {
                    return Ok(Next::Ours(stored.sequence, key));
                }
                if self.foreign_max.is_some_and(|most| others.read >= most) {
                    return Ok(Next::TooManyOthers);
                }
                others.read += 1;
                from = from.max(stored.sequence + 1);
            }
            if others.logged.elapsed() >= PROGRESS {
                others.logged = Instant::now();
                tracing::info!(
                    stream = self.stream,
                    sequence = from,
                    read = others.read,
                    "searching among messages that are not of this source"
                );
            }
            stride = (stride * 2).min(IN_FLIGHT);
        }
        Ok(Next::Nothing)
    }
}
