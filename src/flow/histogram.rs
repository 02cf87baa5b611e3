//! How long things took, counted in a plain array of buckets.
//!
//! In: durations in µs. Out: how many lay in each bucket, and their sum. A bucket ends at a power of two, so a duration finds its
//! bucket by one instruction, without a search, an allocation or a lock. A duration is cut to whole µs, so one that is counted
//! below a bound was really below it. Pure; whoever owns a histogram copies it where it is read.

/// Buckets: the last one has no upper bound.
pub const BUCKETS: usize = 28;

/// The bucket of a duration.
pub fn bucket(micros: u64) -> usize {
    ((u64::BITS - micros.leading_zeros()) as usize).min(BUCKETS - 1)
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    sum_us: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: [0; BUCKETS], sum_us: 0 }
    }
}

impl Histogram {
    /// What somebody else has counted, by [`bucket`].
    pub fn of(counts: [u64; BUCKETS], sum_us: u64) -> Histogram {
        Histogram { counts, sum_us }
    }

    /// Counts one duration.
    pub fn record(&mut self, micros: u64) {
        self.counts[bucket(micros)] += 1;
        self.sum_us = self.sum_us.wrapping_add(micros);
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum, in µs.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// For each bucket the first µs above it, and how many durations it holds by itself; `None`: it has no upper bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let bound = |bucket: usize| (bucket < BUCKETS - 1).then_some(1 << bucket);
        self.counts.iter().enumerate().map(move |(bucket, count)| (bound(bucket), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_bucket_below_whose_bound_it_lies() {
        let mut histogram = Histogram::default();
        let largest = 1 << 26;
        for micros in [0, 1, 2, 3, 4, 1000, largest - 1, largest, u64::from(u32::MAX)] {
            histogram.record(micros);
        }
        let of = |bound: Option<u64>| histogram.buckets().find(|(b, _)| *b == bound).map(|(_, count)| count);
        assert_eq!(
            [Some(1), Some(2), Some(4), Some(8), Some(1024)].map(of),
            [Some(1), Some(1), Some(2), Some(1), Some(1)]
        );
        assert_eq!((of(Some(largest)), of(None)), (Some(1), Some(2)));
        assert_eq!((histogram.count(), histogram.sum_us()), (9, 1010 + 2 * largest - 1 + u64::from(u32::MAX)));
        let mut twice = histogram;
        twice.add(&histogram);
        assert_eq!((twice.count(), twice.sum_us()), (18, 2 * histogram.sum_us()));
    }
}
