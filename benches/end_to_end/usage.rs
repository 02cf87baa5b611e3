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
///
/// The scheduler's account is finer than the ticks, and lacks threads that have ended.
pub fn cpu(pid: u32) -> Option<Duration> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u32>().ok();
    let counted = TICK * (ticks(11)? + ticks(12)?);
    Some(counted.max(cpu_of_threads(pid)))
}

/// The same by the scheduler's account, of threads that are still there: nanoseconds, for what uses little.
pub fn cpu_of_threads(pid: u32) -> Duration {
    Duration::from_nanos(of_threads(pid, "schedstat", |text| text.split(' ').next()?.parse().ok()))
}

/// What it has used since it had used `before`.
pub fn cpu_since(pid: u32, before: Duration) -> Duration {
    cpu(pid).expect("a running process").saturating_sub(before)
}

/// How often threads of a process have gone to sleep of their own accord, and so have been woken again.
pub fn sleeps(pid: u32) -> u64 {
    of_threads(pid, "status", |text| field(text, "voluntary_ctxt_switches:")?.parse().ok())
}

/// The most memory a process has held, in KiB.
pub fn peak_rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    field(&status, "VmHWM:").unwrap().trim_end_matches(" kB").parse().unwrap()
}

fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// The sum over a process's threads; those that end meanwhile count nothing.
fn of_threads(pid: u32, file: &str, number: impl Fn(&str) -> Option<u64>) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let texts = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join(file)).ok());
    texts.filter_map(|text| number(&text)).sum()
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
                last.fetch_max(u64::try_from(used.as_micros()).unwrap(), Ordering::Relaxed);
                std::thread::sleep(TICK);
            }
        });
        Watch { stop, seen, thread }
    }

    /// What was seen.
    pub fn cpu(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        Duration::from_micros(self.seen.load(Ordering::Relaxed))
    }
}
