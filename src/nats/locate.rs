//! Where given messages lie in a stream, found by bisection: keys of our messages rise with the sequence.
//!
//! In: keys that rise, and how to read a message's key. Out: a sequence for each that is still there. Some twenty requests
//! for the first of millions; its neighbours are found by counting on, and the count is checked at its end. Messages of
//! others are stepped over. What a key means is not known here.

use super::{
    control::Control,
    streams,
    tail::{self, Stored},
};
use crate::error::{Error, Result};

/// Messages of others that one search steps over, before it gives up.
const FOREIGN_MAX: u32 = 4096;

/// The sequences of the messages with these `keys`, which rise; `None` for what is not there (any more).
///
/// # Errors
/// The stream cannot be asked.
pub async fn locate<K: Ord>(
    control: &Control,
    stream: &str,
    keys: &[K],
    key_of: impl Fn(&Stored) -> Option<K>,
) -> Result<Vec<Option<u64>>> {
    let mut sequences = vec![None; keys.len()];
    if keys.is_empty() {
        return Ok(sequences);
    }
    let state = streams::state(control, stream).await?;
    let search = Search { control, stream, key_of };
    // Ranges of keys, and between which sequences they lie, both ends included.
    let mut ranges = vec![(0, keys.len() - 1, state.first_sequence.max(1), state.last_sequence)];
    while let Some((first, last, low, high)) = ranges.pop() {
        sequences[first] = search.find(&keys[first], low, high).await?;
        if first == last {
            continue;
        }
        if let Some(at) = sequences[first]
            && let guess = at + (last - first) as u64
            && guess <= high
            && tail::message(control, stream, guess).await?.and_then(|message| (search.key_of)(&message)).as_ref()
                == Some(&keys[last])
        {
            // As many places as keys, so each key has the place that its number says.
            for (index, sequence) in (first..=last).zip(at..) {
                sequences[index] = Some(sequence);
            }
            continue;
        }
        let low = sequences[first].map_or(low, |at| at + 1);
        let middle = first + (last - first) / 2;
        ranges.push((middle + 1, last, low, high));
        if middle > first {
            ranges.push((first + 1, middle, low, high));
        }
    }
    Ok(sequences)
}

struct Search<'s, F> {
    control: &'s Control,
    stream: &'s str,
    key_of: F,
}

/// Where a search has ended.
enum Place<K> {
    At(u64, K),
    Nowhere,
    /// Among more messages of others than are stepped over.
    Strange,
}

/// The first message of ours for which `is_before` does not hold, with its key; `None` where there is none. For all that come
/// before it, it holds.
///
/// # Errors
/// The stream cannot be asked, or holds too many messages of others in a row.
pub async fn first_from<K>(
    control: &Control,
    stream: &str,
    key_of: impl Fn(&Stored) -> Option<K>,
    is_before: impl Fn(&K) -> bool,
) -> Result<Option<(u64, K)>> {
    let state = streams::state(control, stream).await?;
    let search = Search { control, stream, key_of };
    match search.first(state.first_sequence.max(1), state.last_sequence, is_before).await? {
        Place::At(sequence, key) => Ok(Some((sequence, key))),
        Place::Nowhere => Ok(None),
        Place::Strange => Err(Error::untrusted(format!(
            "look something up in stream {stream:?}: more than {FOREIGN_MAX} of its messages are not ours"
        ))),
    }
}

impl<F> Search<'_, F> {
    /// The sequence of the message with this key, from `low` to `high`.
    async fn find<K: Ord>(&self, key: &K, low: u64, high: u64) -> Result<Option<u64>>
    where
        F: Fn(&Stored) -> Option<K>,
    {
        Ok(match self.first(low, high, |its| its < key).await? {
            Place::At(sequence, its) if its == *key => Some(sequence),
            _ => None,
        })
    }

    /// The first message from `low` to `high` whose key is not before the place looked for.
    async fn first<K>(&self, low: u64, high: u64, is_before: impl Fn(&K) -> bool) -> Result<Place<K>>
    where
        F: Fn(&Stored) -> Option<K>,
    {
        let (mut low, mut end) = (low, high + 1);
        let mut found = Place::Nowhere;
        let mut foreign = 0;
        while low < end {
            let middle = low + (end - low) / 2;
            let mut from = middle;
            // The next message of ours tells on which side to go on.
            let ours = loop {
                match tail::next_message(self.control, self.stream, from).await?.filter(|next| next.sequence < end) {
                    None => break None,
                    Some(next) => match (self.key_of)(&next) {
                        Some(its) => break Some((its, next.sequence)),
                        None if foreign == FOREIGN_MAX => return Ok(Place::Strange),
                        None => {
                            foreign += 1;
                            from = next.sequence + 1;
                        }
                    },
                }
            };
            match ours {
                Some((its, sequence)) if is_before(&its) => low = sequence + 1,
                Some((its, sequence)) => {
                    found = Place::At(sequence, its);
                    end = middle;
                }
                None => end = middle,
            }
        }
        Ok(found)
    }
}
