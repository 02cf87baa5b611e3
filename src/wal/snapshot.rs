//! A snapshot of the database (manual, "Transaction ID and Snapshot Information Functions"): which transactions a read
//! has seen.

use std::str::FromStr;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// All transactions below are over.
    xmin: u64,
    /// None from here on is.
    xmax: u64,
    /// Those between that were still running.
    running: Vec<u64>,
}

impl Snapshot {
    /// Whether a committed transaction, by the 32 bits of its id that the WAL has, was committed when the snapshot was
    /// taken. True as long as the two are fewer than 2^31 transactions apart, as PostgreSQL itself counts.
    pub fn shows(&self, xid: u32) -> bool {
        let low = u32::try_from(self.xmax & 0xFFFF_FFFF).expect("masked");
        let distance = xid.wrapping_sub(low).cast_signed();
        let xid = self.xmax.wrapping_add_signed(distance.into());
        xid < self.xmin || (xid < self.xmax && !self.running.contains(&xid))
    }
}

impl FromStr for Snapshot {
    type Err = String;

    /// Reads `xmin:xmax:xip,xip,…`.
    fn from_str(text: &str) -> Result<Snapshot, String> {
        let wrong = || format!("{text:?} is no snapshot");
        let number = |text: &str| text.parse().map_err(|_| wrong());
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().ok_or_else(wrong);
        let (xmin, xmax, running) = (number(next()?)?, number(next()?)?, next()?);
        let running = running.split(',').filter(|xid| !xid.is_empty()).map(number).collect::<Result<_, _>>()?;
        Ok(Snapshot { xmin, xmax, running })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_shows_what_was_committed_when_it_was_taken() {
        let check = |snapshot: &str, xid: u32, expected: bool| {
            assert_eq!(snapshot.parse::<Snapshot>().unwrap().shows(xid), expected, "{xid} in {snapshot}");
        };
        check("10:20:10,14,15", 9, true);
        check("10:20:10,14,15", 10, false);
        check("10:20:10,14,15", 11, true);
        check("10:20:10,14,15", 14, false);
        check("10:20:10,14,15", 19, true);
        check("10:20:10,14,15", 20, false);
        check("730:730:", 729, true);
        check("730:730:", 730, false);
        // The counter has wrapped: 2^32 + 5 is the next, 2^32 - 1 was one of the last.
        check("4294967301:4294967301:", u32::MAX, true);
        check("4294967301:4294967301:", 4, true);
        check("4294967301:4294967301:", 5, false);
        for bad in ["", "1:2", "a:b:", "1:2:x"] {
            assert!(bad.parse::<Snapshot>().is_err(), "{bad}");
        }
    }
}
