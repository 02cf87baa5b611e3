//! Ever longer waits between attempts, and the chance that spreads them. Pure: the seed comes in as an argument.

use std::time::Duration;

/// Ever longer waits, each somewhere in the upper half of its length so that many processes do not come back at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    /// Attempts that have failed in a row.
    pub failures: u32,
}

impl Backoff {
    /// Waits that begin with `first` and grow up to `longest`, or `first` where that is longer.
    pub fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest: longest.max(first), failures: 0 }
    }

    /// How long to wait now; `chance` is from 0 up to, and not, 1.
    pub fn next(&mut self, chance: f64) -> Duration {
        let full = self.longest.min(self.first.saturating_mul(2u32.saturating_pow(self.failures)));
        self.failures += 1;
        full.mul_f64(0.5 + chance / 2.0)
    }

    /// An attempt was a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Numbers that look like chance, from a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// The sequence of numbers of this seed.
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    /// The next number, from 0 up to, and not, 1.
    pub fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let bits = u32::try_from((mixed ^ (mixed >> 31)) >> 32).unwrap_or(0);
        f64::from(bits) / (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_longest_and_each_lies_in_its_upper_half() {
        let (first, longest) = (Duration::from_millis(200), Duration::from_secs(10));
        let (mut backoff, mut chance) = (Backoff::new(first, longest), Chance::new(7));
        for attempt in 0..40 {
            let full = longest.min(first * 2u32.saturating_pow(attempt));
            let wait = backoff.next(chance.draw());
            assert!(wait >= full / 2 && wait <= full, "{attempt}: {wait:?}");
        }
        assert_eq!(backoff.failures, 40);
        backoff.reset();
        assert!(backoff.next(chance.draw()) <= first);
        assert_eq!(Backoff::new(longest, first).next(0.0), longest / 2);
    }

    #[test]
    fn a_seed_gives_the_same_numbers_and_they_spread() {
        let numbers = |seed| {
            let mut chance = Chance::new(seed);
            (0..1000).map(|_| chance.draw()).collect::<Vec<_>>()
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
        let low = numbers(3).iter().filter(|number| **number < 0.5).count();
        assert!((400..600).contains(&low) && numbers(3).iter().all(|number| (0.0..1.0).contains(number)), "{low}");
    }
}
