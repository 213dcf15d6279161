//! The authority's keys: one certifies users, the other hosts.

use crate::engine::authority::{AuthorityError, Generation, Schedule};
use crate::engine::pair::{ED25519, Pair};
use crate::seal::random;
use mayfly_wire::Secret;
use mayfly_wire::admin::SshKind;
use zeroize::Zeroizing;

/// A key pair with the seed that it is made from.
pub(super) struct Seeded {
    pub(super) seed: Zeroizing<[u8; ED25519]>,
    pub(super) pair: Pair,
}

impl Seeded {
    pub(super) fn generate() -> Result<Self, AuthorityError> {
        Self::of(Zeroizing::new(random()?))
    }

    fn of(seed: Zeroizing<[u8; ED25519]>) -> Result<Self, AuthorityError> {
        let pair = Pair::from_seed(&seed)?;
        Ok(Self { seed, pair })
    }
}

/// Both keys.
pub(super) struct Keys {
    signs_from: u64,
    user: Seeded,
    host: Seeded,
}

impl Keys {
    pub(super) fn of(&self, kind: SshKind) -> &Pair {
        match kind {
            SshKind::User => &self.user.pair,
            SshKind::Host => &self.host.pair,
        }
    }
}

impl Generation for Keys {
    const META: &'static str = "ssh-authority";

    fn make(_now: u64, signs_from: u64, _schedule: Schedule) -> Result<Self, AuthorityError> {
        Ok(Self {
            signs_from,
            user: Seeded::generate()?,
            host: Seeded::generate()?,
        })
    }

    fn signs_from(&self) -> u64 {
        self.signs_from
    }

    /// A key says nothing of its end.
    fn ends(&self) -> u64 {
        u64::MAX
    }

    /// From when they sign (8 bytes), and the seeds.
    fn export(&self) -> Secret {
        let mut bytes = Vec::with_capacity(8 + 2 * ED25519);
        bytes.extend_from_slice(&self.signs_from.to_be_bytes());
        bytes.extend_from_slice(self.user.seed.as_slice());
        bytes.extend_from_slice(self.host.seed.as_slice());
        Secret::from(bytes)
    }

    fn import(bytes: &[u8]) -> Result<Self, AuthorityError> {
        let stored = || AuthorityError::Stored;
        let (signs_from, rest) = bytes.split_first_chunk().ok_or_else(stored)?;
        let (user, host) = rest.split_first_chunk().ok_or_else(stored)?;
        let host = <&[u8; ED25519]>::try_from(host).map_err(|_| stored())?;
        Ok(Self {
            signs_from: u64::from_be_bytes(*signs_from),
            user: Seeded::of(Zeroizing::new(*user))?,
            host: Seeded::of(Zeroizing::new(*host))?,
        })
    }
}
