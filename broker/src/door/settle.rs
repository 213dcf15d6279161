//! What an earlier run of the broker left undone, when it starts again.

use super::Door;
use crate::store::{LeaseState, Op, StoreError};

/// Leases that are settled in one commit.
const AT_ONCE: usize = 500;

impl Door {
    /// What was planned was never issued, and must end. What must end is tried again at once.
    pub(super) async fn settle(&self) -> Result<(), StoreError> {
        let now = self.now_ms();
        let mut open = self.store.leases_in(LeaseState::Planned).await?;
        open.extend(self.store.leases_in(LeaseState::Revoking).await?);
        for some in open.chunks(AT_ONCE) {
            let ops = some.iter().map(|lease| {
                let ending = lease.clone().must_end("never issued", now);
                Op::LeaseUpdate(ending)
            });
            self.store.commit(ops.collect()).await?;
        }
        if !open.is_empty() {
            tracing::info!(
                leases = open.len(),
                "leases that were on their way are ended"
            );
        }
        Ok(())
    }
}
