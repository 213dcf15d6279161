//! Who was told to come later, a moment ago: telling it again takes no second look.

use std::collections::HashMap;
use std::hash::Hash;
use tokio::time::Instant;

/// Most that are remembered.
const MOST: usize = 4096;

/// Remembers something of each key, until a time.
pub(super) struct Recent<K, V> {
    until: HashMap<K, (Instant, V)>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self {
            until: HashMap::new(),
        }
    }
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    /// Remembers it until then. Beyond [`MOST`], all that came before is forgotten: who is looked at
    /// once more has lost nothing.
    pub(super) fn note(&mut self, key: K, value: V, until: Instant) {
        if self.until.len() >= MOST {
            self.until.clear();
        }
        self.until.insert(key, (until, value));
    }

    /// What is remembered of it now, and until when.
    pub(super) fn of(&self, key: &K, now: Instant) -> Option<(V, Instant)> {
        let (until, value) = self.until.get(key)?;
        (*until > now).then(|| (value.clone(), *until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn it_is_remembered_until_its_time_and_of_nobody_else() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        let later = now + Duration::from_millis(100);
        recent.note(7, 'a', later);
        assert_eq!(recent.of(&7, now), Some(('a', later)));
        assert_eq!(recent.of(&8, now), None);
        assert_eq!(recent.of(&7, later), None);
    }

    #[test]
    fn memory_is_bounded() {
        let (mut recent, now) = (Recent::default(), Instant::now());
        for key in 0..10 * MOST {
            recent.note(key, (), now + Duration::from_secs(1));
            assert!(recent.of(&key, now).is_some());
            assert!(recent.until.len() <= MOST);
        }
    }
}
