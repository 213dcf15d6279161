//! Which users are being made, and of which nobody knows whether they were.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Requests are under way.
    Begun,
    /// A request was sent, and there was no answer.
    Unknown,
}

/// Them all.
#[derive(Default)]
pub(super) struct Pending {
    users: Mutex<HashMap<String, State>>,
    changed: Notify,
}

/// One that is being made. Unless it [`ended`](Self::ended), nobody knows.
pub(super) struct Begun {
    pending: Arc<Pending>,
    name: String,
    ended: bool,
}

impl Pending {
    fn users(&self) -> MutexGuard<'_, HashMap<String, State>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(self: &Arc<Self>, name: &str) -> Begun {
        self.users().insert(name.to_owned(), State::Begun);
        Begun {
            pending: Arc::clone(self),
            name: name.to_owned(),
            ended: false,
        }
    }

    /// Waits until no request for it is under way. Says whether one was sent of which nobody knows what
    /// became.
    pub(super) async fn settled(&self, name: &str) -> bool {
        loop {
            // Hears of all that happens from here on, also before it is awaited.
            let changed = self.changed.notified();
            match self.users().get(name) {
                Some(State::Begun) => {}
                Some(State::Unknown) => return true,
                None => return false,
            }
            changed.await;
        }
    }

    pub(super) fn forget(&self, name: &str) {
        self.users().remove(name);
    }
}

impl Begun {
    /// The server answered, yes or no.
    pub(super) fn ended(mut self) {
        self.ended = true;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.ended {
            self.pending.forget(&self.name);
        } else {
            let name = std::mem::take(&mut self.name);
            self.pending.users().insert(name, State::Unknown);
        }
        self.pending.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn who_asks_waits_for_what_was_begun_and_hears_how_it_ended() {
        let pending = Arc::new(Pending::default());
        assert!(!pending.settled("a").await);
        for known in [true, false] {
            let begun = pending.begin("a");
            let asks = Arc::clone(&pending);
            let asking = tokio::spawn(async move { asks.settled("a").await });
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!asking.is_finished());
            assert!(!pending.settled("b").await);
            if known {
                begun.ended();
            } else {
                drop(begun);
            }
            assert_eq!(asking.await.unwrap(), !known);
        }
        pending.forget("a");
        assert!(!pending.settled("a").await);
    }
}
