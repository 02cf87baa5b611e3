//! The calls of a webhook that may run side by side, where more events are in hand.
//!
//! In: how many may run, which changes. Out: a [`Place`] for each that runs.

use std::{
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};

/// How often the limit is read again while all its calls run.
const LOOK: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Default)]
pub struct Places {
    running: Mutex<usize>,
    freed: Notify,
}

/// One of the calls that may run.
pub struct Place<'p>(&'p Places);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.freed.notify_one();
    }
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until fewer calls run than may. After `stopped` nobody waits: no call is made any more.
    pub async fn take(&self, limit: impl Fn() -> usize, stopped: impl Future<Output = ()>) -> Place<'_> {
        tokio::pin!(stopped);
        loop {
            let freed = self.freed.notified();
            {
                let mut running = self.lock();
                if *running < limit().max(1) {
                    *running += 1;
                    return Place(self);
                }
            }
            tokio::select! {
                () = freed => {}
                // The limit may grow without a call that ends.
                () = sleep(LOOK) => {}
                () = &mut stopped => {
                    *self.lock() += 1;
                    return Place(self);
                }
            }
        }
    }
}
