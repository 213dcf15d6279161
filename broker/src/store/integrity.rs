//! What makes an edit of the store show: a MAC on each row, and one sum over all rows.
//!
//! The MAC shows a row that was changed. The sum (a keyed multiset hash: the 256-bit sum of a pseudorandom
//! value for each row) shows rows that were added, removed or put back from an older copy of the file. It
//! is sealed, together with the audit head, and checked when the store is opened.

use super::StoreError;
use crate::audit::Head;
use crate::seal::{self, RecordId, RootKeys};
use mayfly_wire::Secret;
use std::sync::Arc;
use zeroize::Zeroizing;

const STAMP: RecordId<'static> = RecordId {
    kind: "meta",
    path: "stamp",
};
const ROWS: &str = "store rows";

/// The sum over all rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum([u64; 4]);

impl Sum {
    fn limbs(value: &[u8; 32]) -> [u64; 4] {
        let (limbs, _) = value.as_chunks::<8>();
        std::array::from_fn(|index| limbs.get(index).map_or(0, |limb| u64::from_le_bytes(*limb)))
    }

    fn add(&mut self, value: &[u8; 32]) {
        self.merge(&Self(Self::limbs(value)));
    }

    /// Adds what another sum holds.
    pub(super) fn merge(&mut self, other: &Self) {
        let mut carry = 0;
        for (limb, &more) in self.0.iter_mut().zip(&other.0) {
            let (sum, over) = limb.overflowing_add(more);
            let (sum, again) = sum.overflowing_add(carry);
            carry = u64::from(over) + u64::from(again);
            *limb = sum;
        }
    }

    fn subtract(&mut self, value: &[u8; 32]) {
        let mut borrow = 0;
        for (limb, less) in self.0.iter_mut().zip(Self::limbs(value)) {
            let (rest, under) = limb.overflowing_sub(less);
            let (rest, again) = rest.overflowing_sub(borrow);
            borrow = u64::from(under) + u64::from(again);
            *limb = rest;
        }
    }
}

/// Makes and checks MACs and sums.
#[derive(Clone)]
pub(super) struct Integrity {
    keys: Arc<RootKeys>,
    sum_key: Arc<Zeroizing<[u8; 32]>>,
}

impl Integrity {
    pub(super) fn new(keys: Arc<RootKeys>) -> Result<Self, StoreError> {
        let sum_key = keys.lasting_key("store sum").map_err(failed)?;
        Ok(Self {
            keys,
            sum_key: Arc::new(sum_key),
        })
    }

    /// The MAC of a row.
    pub(super) fn mac(&self, row: &[u8]) -> Result<Vec<u8>, StoreError> {
        Ok(self.keys.mac(ROWS, row).map_err(failed)?.to_vec())
    }

    /// Refuses a row that is not as we wrote it.
    pub(super) fn check(&self, table: &str, row: &[u8], mac: &[u8]) -> Result<(), StoreError> {
        if self.keys.mac_holds(ROWS, row, mac) {
            return Ok(());
        }
        Err(StoreError::Damaged(format!(
            "a row of table {table} was changed by something other than the broker"
        )))
    }

    pub(super) fn add(&self, sum: &mut Sum, mac: &[u8]) -> Result<(), StoreError> {
        sum.add(&seal::hmac(self.sum_key.as_slice(), mac).map_err(failed)?);
        Ok(())
    }

    pub(super) fn subtract(&self, sum: &mut Sum, mac: &[u8]) -> Result<(), StoreError> {
        sum.subtract(&seal::hmac(self.sum_key.as_slice(), mac).map_err(failed)?);
        Ok(())
    }

    /// Sum and audit head, sealed.
    pub(super) fn stamp(
        &self,
        generation: u64,
        sum: &Sum,
        head: &Head,
    ) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::with_capacity(8 * 5 + head.hash.len());
        for number in sum.0.iter().chain([&head.seq]) {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(head.hash.as_bytes());
        let secret = Secret::from(bytes);
        self.keys.seal(&STAMP, generation, &secret).map_err(failed)
    }

    pub(super) fn open_stamp(
        &self,
        generation: u64,
        sealed: &[u8],
    ) -> Result<(Sum, Head), StoreError> {
        let odd = || StoreError::Damaged("its stamp does not open".to_owned());
        let secret = self.keys.open(&STAMP, generation, sealed);
        let secret = secret.map_err(|_| odd())?;
        let (numbers, hash) = secret.expose().split_at_checked(8 * 5).ok_or_else(odd)?;
        let (numbers, _) = numbers.as_chunks::<8>();
        let number = |index: usize| {
            numbers
                .get(index)
                .map_or(0, |number| u64::from_be_bytes(*number))
        };
        let hash = String::from_utf8(hash.to_vec()).map_err(|_| odd())?;
        let head = Head {
            seq: number(4),
            hash,
        };
        Ok((Sum(std::array::from_fn(number)), head))
    }
}

fn failed(error: seal::SealError) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_forgets_order_and_takes_back() {
        let values: [[u8; 32]; 3] = [[0xff; 32], [1; 32], [0x80; 32]];
        let mut sum = Sum::default();
        values.iter().for_each(|value| sum.add(value));
        let mut other = Sum::default();
        values.iter().rev().for_each(|value| other.add(value));
        assert_eq!(sum, other);
        assert_ne!(sum, Sum::default());
        let mut parts = [Sum::default(); 2];
        parts[0].add(&values[0]);
        parts[1].add(&values[1]);
        parts[1].add(&values[2]);
        let [mut whole, part] = parts;
        whole.merge(&part);
        assert_eq!(sum, whole);
        values.iter().for_each(|value| sum.subtract(value));
        assert_eq!(sum, Sum::default());
    }

    #[test]
    fn a_stamp_opens_at_its_own_generation_only() {
        let integrity = Integrity::new(Arc::new(RootKeys::generate().unwrap())).unwrap();
        let (sum, head) = (Sum([1, 2, 3, u64::MAX]), Head::default());
        let sealed = integrity.stamp(5, &sum, &head).unwrap();
        assert_eq!(integrity.open_stamp(5, &sealed).unwrap(), (sum, head));
        assert!(integrity.open_stamp(6, &sealed).is_err());
    }
}
