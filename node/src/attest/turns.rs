//! One at a time for each key: who comes meanwhile waits, and finds what the first has found.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// How many keys there are before those that nobody waits for are forgotten.
const MANY: usize = 64;

/// Turns by key.
#[derive(Debug)]
pub(crate) struct Turns<K> {
    locks: Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self {
            locks: Mutex::default(),
        }
    }
}

impl<K: Hash + Eq> Turns<K> {
    /// Waits for this key's turn, which lasts until what is returned is dropped.
    pub(crate) async fn take(&self, key: K) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            if locks.len() >= MANY {
                locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            }
            Arc::clone(locks.entry(key).or_default())
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[test]
    fn one_at_a_time_for_each_key_and_none_is_kept() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let turns = Turns::default();
            let soon = |key| timeout(Duration::from_millis(10), turns.take(key));
            let first = turns.take(0).await;
            assert!(soon(0).await.is_err());
            assert!(soon(1).await.is_ok());
            for key in 2..10_000 {
                drop(turns.take(key).await);
            }
            assert!(turns.locks.lock().unwrap().len() <= MANY);
            assert!(soon(0).await.is_err(), "the turn is kept");
            drop(first);
            assert!(soon(0).await.is_ok());
        });
    }
}
