//! Who may hold how many connections: no container can take what others need.

use crate::attest::Origin;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts connections, of all and of each origin.
pub(crate) struct Admission {
    most: usize,
    most_each: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    total: usize,
    each: HashMap<Origin, usize>,
}

impl Admission {
    pub(crate) fn new(most: usize, most_each: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_each,
            held: Mutex::default(),
        })
    }

    /// Takes a place for one more connection, if the origin may have it.
    ///
    /// An origin never holds more than its own limit, nor more than an eighth of what is still free:
    /// the fuller it is, the less a flood can take of the rest. A first connection only needs any.
    pub(crate) fn admit(self: &Arc<Self>, origin: Origin) -> Option<Place> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.most.saturating_sub(held.total);
        let own = held.each.get(&origin).copied().unwrap_or(0);
        let allowed = self.most_each.min(free.div_ceil(8));
        if own >= allowed {
            return None;
        }
        held.total += 1;
        held.each.insert(origin, own + 1);
        Some(Place {
            admission: Arc::clone(self),
            origin,
        })
    }

    fn release(&self, origin: Origin) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total = held.total.saturating_sub(1);
        if let Some(count) = held.each.get_mut(&origin) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                held.each.remove(&origin);
            }
        }
    }
}

/// The right to hold one connection; given back when dropped.
pub(crate) struct Place {
    admission: Arc<Admission>,
    origin: Origin,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.release(self.origin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(id: u64) -> Origin {
        Origin::PidNamespace(id)
    }

    #[test]
    fn one_origin_gets_no_more_than_its_own() {
        let admission = Admission::new(100, 3);
        let mut places: Vec<_> = (0..5).filter_map(|_| admission.admit(origin(1))).collect();
        assert_eq!(places.len(), 3);
        assert!(admission.admit(origin(2)).is_some());
        places.pop();
        assert!(admission.admit(origin(1)).is_some());
    }

    #[test]
    fn floods_always_leave_a_place_for_one_who_comes_later() {
        let admission = Admission::new(1000, 100);
        let mut places = Vec::new();
        for flood in 0..40 {
            while let Some(place) = admission.admit(origin(flood)) {
                places.push(place);
            }
            assert!(admission.admit(origin(1000)).is_some(), "after {flood}");
        }
        assert!(places.len() < 1000);
    }

    #[test]
    fn what_is_given_back_is_forgotten() {
        let admission = Admission::new(100, 5);
        drop(
            (0..3)
                .filter_map(|_| admission.admit(origin(1)))
                .collect::<Vec<_>>(),
        );
        let held = admission.held.lock().unwrap();
        assert_eq!((held.total, held.each.len()), (0, 0));
    }
}
