//! When leases are due, and who looks at them then.

use crate::door::{Door, Renewal};
use crate::nodes::Nodes;
use crate::run::stopped;
use crate::sessions::Hub;
use crate::store::Lease;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// Leases looked at at once, those that wait for a target included.
const AT_ONCE: usize = 512;
/// Leases claimed at once: enough that their commits share an fsync.
const CLAIMED: usize = 64;
/// Longest sleep, so that what another broker left behind does not wait for long.
const LONGEST: Duration = Duration::from_secs(5);
/// Shortest sleep between two looks at what is to be rotated.
const SHORTEST: Duration = Duration::from_millis(200);

/// When something is due next, as far as this process knows. The store knows everything.
#[derive(Default)]
pub struct Hint {
    /// When whoever waits wakes up by itself; what comes later need not wake it.
    wakes_at: AtomicU64,
    earlier: Notify,
}

impl Hint {
    /// Something is due at this time: milliseconds since the Unix epoch.
    pub fn due(&self, at: u64) {
        if at < self.wakes_at.load(Ordering::SeqCst) {
            self.earlier.notify_one();
        }
    }

    /// From here on everything that becomes due wakes, until [`Self::sleep`] says when that is needless.
    fn listen(&self) {
        self.wakes_at.store(u64::MAX, Ordering::SeqCst);
    }

    fn sleep(&self, until: u64) {
        self.wakes_at.store(until, Ordering::SeqCst);
    }

    async fn earlier(&self) {
        self.earlier.notified().await;
    }
}

/// Renews and ends leases as they come due, until `stop`.
pub async fn run(
    door: Arc<Door>,
    hub: Arc<Hub>,
    nodes: Arc<Nodes>,
    mut stop: watch::Receiver<bool>,
) {
    if let Err(error) = door.resume().await {
        tracing::error!(%error, "leases by old settings are replaced at the next start");
    }
    let mut work = JoinSet::new();
    loop {
        door.due().listen();
        door.retry_recovered().await;
        let free = AT_ONCE - work.len().min(AT_ONCE);
        let mut next = None;
        if free > 0 {
            match door.claim(free.min(CLAIMED)).await {
                Ok(leases) => {
                    next = (leases.len() == free.min(CLAIMED)).then_some(0);
                    for lease in leases {
                        let (door, hub) = (Arc::clone(&door), Arc::clone(&hub));
                        let nodes = Arc::clone(&nodes);
                        work.spawn(look(door, hub, nodes, lease));
                    }
                }
                Err(refusal) => tracing::warn!(%refusal, "due leases wait"),
            }
            if next.is_none() {
                next = door.next_due().await.unwrap_or_default();
            }
        }
        let now = door.now_ms();
        let latest = now + as_ms(LONGEST);
        let until = next.unwrap_or(latest).min(latest);
        door.due().sleep(until);
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(_) = work.join_next(), if free == 0 => {}
            () = tokio::time::sleep(Duration::from_millis(until.saturating_sub(now))), if free > 0 => {}
            () = door.due().earlier(), if free > 0 => {}
            () = door.freed() => {}
        }
        while work.try_join_next().is_some() {}
    }
    door.close().await;
    while work.join_next().await.is_some() {}
}

/// Rotates secrets that are shared when their time comes, until `stop`.
pub async fn rotate(door: Arc<Door>, mut stop: watch::Receiver<bool>) {
    loop {
        let next = door.rotate_due().await;
        let wait = Duration::from_millis(next.saturating_sub(door.now_ms())).min(LONGEST);
        tokio::select! {
            () = stopped(&mut stop) => return,
            () = tokio::time::sleep(wait.max(SHORTEST)) => {}
        }
    }
}

async fn look(door: Arc<Door>, hub: Arc<Hub>, nodes: Arc<Nodes>, lease: Lease) {
    let id = lease.id.clone();
    let looked = door.look_at(lease, |node| nodes.lives(node), |key| hub.has(key));
    match looked.await {
        Ok(Renewal::Renewed(workload) | Renewal::Ended(workload)) => hub.wake(&workload),
        Ok(Renewal::Nothing) => {}
        Err(refusal) => tracing::warn!(lease = %id, %refusal, "a lease waits"),
    }
}

fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_is_earlier_wakes_who_sleeps() {
        let hint = Hint::default();
        let wakes = || async {
            let earlier = tokio::time::timeout(Duration::from_millis(20), hint.earlier());
            earlier.await.is_ok()
        };
        hint.listen();
        hint.due(500);
        hint.sleep(100);
        assert!(wakes().await, "it came while the store was asked");
        hint.due(100);
        hint.due(500);
        assert!(!wakes().await);
        hint.due(99);
        assert!(wakes().await);
    }
}
