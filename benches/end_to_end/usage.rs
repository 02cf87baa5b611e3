//! What processes have used, as `/proc` tells (Linux, `proc(5)`).

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// `/proc` counts in hundredths of a second wherever Linux runs today.
const TICK: Duration = Duration::from_millis(10);

/// User and system time of a process with all its threads so far; `None` where it is gone.
pub fn cpu(pid: u32) -> Option<Duration> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u32>().ok();
    Some(TICK * (ticks(11)? + ticks(12)?))
}

/// The most memory a process has held, in KiB.
pub fn peak_rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Watches a process that ends by itself: what it had used when it was last seen.
pub struct Watch {
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Looks at it every 10 ms.
    pub fn new(pid: u32) -> Watch {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, last) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed)
                && let Some(used) = cpu(pid)
            {
                last.fetch_max(u64::try_from(used.as_millis()).unwrap(), Ordering::Relaxed);
                std::thread::sleep(TICK);
            }
        });
        Watch { stop, seen, thread }
    }

    /// What was seen.
    pub fn cpu(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        Duration::from_millis(self.seen.load(Ordering::Relaxed))
    }
}
