//! Places for connections from the network. No address takes what the others need.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// A number of places. One address holds at most an eighth of those that are still free, so the fuller
/// it is, the less a flood can take of the rest.
pub struct Places {
    most: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    total: usize,
    each: HashMap<IpAddr, usize>,
}

impl Places {
    /// So many.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            held: Mutex::default(),
        })
    }

    /// One more place for this address, if it may have it.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = whose(address);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let own = held.each.get(&address).copied().unwrap_or(0);
        if own >= self.most.saturating_sub(held.total).div_ceil(8) {
            return None;
        }
        held.total += 1;
        held.each.insert(address, own + 1);
        Some(Place {
            places: Arc::clone(self),
            address,
        })
    }
}

/// A host on IPv6 has 64 bits of addresses to itself (RFC 4291, section 2.5.1).
fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// A place, given back when dropped.
pub struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let held = self.places.held.lock();
        let mut held = held.unwrap_or_else(PoisonError::into_inner);
        held.total = held.total.saturating_sub(1);
        if let Some(own) = held.each.get_mut(&self.address) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                held.each.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_leaves_places_to_the_others() {
        let places = Places::new(64);
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let mut held: Vec<Place> = std::iter::from_fn(|| places.take(one)).collect();
        assert_eq!(held.len(), 8);
        // The same host by another name.
        assert!(places.take(address("::ffff:192.0.2.1")).is_none());
        assert!(places.take(other).is_some());
        held.pop();
        assert!(places.take(one).is_some());
        drop(held);
        assert!(places.held.lock().unwrap().each.is_empty());
        assert_eq!(places.held.lock().unwrap().total, 0);
    }

    #[test]
    fn a_network_of_one_host_is_one_address() {
        let places = Places::new(8);
        let _held = places.take(address("2001:db8::1")).unwrap();
        assert!(places.take(address("2001:db8::2")).is_none());
        assert!(places.take(address("2001:db8:0:1::1")).is_some());
    }
}
