//! Authorities that follow each other, kept sealed in the store.
//!
//! One is published before it signs, so that whoever verifies has it by then, and stays published until
//! the last certificate that it signed has expired. Both follow from when each signs.

use super::revocation::{List, Revocations};
pub use super::ring::Schedule;
use super::{Answer, Certifier, EngineError};
use crate::seal::{RecordId, RootKeys, SealError};
use crate::store::{Op, Store, StoreError};
use mayfly_wire::Secret;
use mayfly_wire::admin::{
    AuthorityInfo, AuthorityState, EngineKind, PublishedAuthority, RevocationList,
};
use mayfly_wire::bytes::Base64;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::Mutex;

/// What can go wrong with an authority.
#[derive(Debug, thiserror::Error)]
pub(super) enum AuthorityError {
    #[error("a key or a certificate cannot be made or read: {0}")]
    Key(#[from] rcgen::Error),
    #[error("the stored authority is not valid")]
    Stored,
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl From<AuthorityError> for EngineError {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Seal(error) => Self::Seal(error),
            AuthorityError::Stored => Self::Store(StoreError::Damaged(error.to_string())),
            AuthorityError::Key(_) => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<rcgen::Error> for EngineError {
    fn from(error: rcgen::Error) -> Self {
        AuthorityError::Key(error).into()
    }
}

/// One authority of several that follow each other.
pub(super) trait Generation: Sized + Send + Sync {
    /// Where they are kept in the store.
    const META: &'static str;
    /// The engine that they certify for.
    const ENGINE: EngineKind;

    /// Makes one that signs from then on, a time not before `now`. All times are milliseconds since the
    /// Unix epoch.
    fn make(now: u64, signs_from: u64, schedule: Schedule) -> Result<Self, AuthorityError>;

    /// From when it signs.
    fn signs_from(&self) -> u64;

    /// Nothing that it signs is good for longer.
    fn ends(&self) -> u64;

    /// The same authority with what must be made anew from time to time, if it is time.
    fn freshened(&self, _now: u64, _longest_ttl: u64) -> Result<Option<Self>, AuthorityError> {
        Ok(None)
    }

    /// SHA-256 of what verifies it, as its users' own tools tell it.
    fn fingerprints(&self) -> Vec<String>;

    /// What verifies all of these, by the names of a holder's files.
    fn files(all: &[Arc<Self>]) -> BTreeMap<&'static str, String>;

    /// What was revoked, signed by all of these, as the file that verifiers read.
    fn list(all: &[Arc<Self>], list: &List<'_>) -> Result<Vec<u8>, AuthorityError>;

    /// All of it, to be sealed.
    fn export(&self) -> Secret;

    /// What was exported.
    fn import(bytes: &[u8]) -> Result<Self, AuthorityError>;
}

/// The authorities that there are, by when they sign.
pub(super) struct Succession<G> {
    pub(super) all: Vec<Arc<G>>,
    /// The longest that anything signed by any of them lives, in milliseconds.
    longest_ttl: u64,
}

impl<G> Default for Succession<G> {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            longest_ttl: 0,
        }
    }
}

impl<G: Generation> Succession<G> {
    /// What it must become at `now`, or nothing if it is right as it is. With `rotate`, the next one is
    /// published now, unless it is already.
    fn next(
        &self,
        now: u64,
        schedule: Schedule,
        longest_ttl: u64,
        rotate: bool,
    ) -> Result<Option<Self>, AuthorityError> {
        let longest_ttl = longest_ttl.max(self.longest_ttl);
        let mut changed = longest_ttl != self.longest_ttl;
        let mut all = Vec::new();
        for (index, one) in self.all.iter().enumerate() {
            let after = self.all.get(index + 1);
            if after.is_some_and(|after| after.signs_from().saturating_add(longest_ttl) <= now) {
                changed = true;
            } else if let Some(fresh) = one.freshened(now, longest_ttl)? {
                changed = true;
                all.push(Arc::new(fresh));
            } else {
                all.push(Arc::clone(one));
            }
        }
        if let Some(from) = begins(&all, now, schedule, longest_ttl, rotate) {
            changed = true;
            all.push(Arc::new(G::make(now, from, schedule)?));
        }
        Ok(changed.then_some(Self { all, longest_ttl }))
    }

    /// The one that signs at `now`: the newest whose time has come.
    pub(super) fn signer(&self, now: u64) -> Option<&G> {
        let due = self.all.iter().rfind(|one| one.signs_from() <= now);
        // A clock that was set back must not leave nobody to sign.
        due.or_else(|| self.all.first()).map(AsRef::as_ref)
    }

    /// The longest time to live (8 bytes), then for each one its length (4 bytes) and itself.
    fn export(&self) -> Secret {
        let exported: Vec<Secret> = self.all.iter().map(|one| one.export()).collect();
        let length: usize = exported.iter().map(|one| 4 + one.len()).sum();
        let mut bytes = Vec::with_capacity(8 + length);
        bytes.extend_from_slice(&self.longest_ttl.to_be_bytes());
        for one in exported {
            put(&mut bytes, one.expose());
        }
        Secret::from(bytes)
    }

    fn import(bytes: &Secret) -> Result<Self, AuthorityError> {
        let first = bytes.expose().split_first_chunk();
        let (longest_ttl, mut rest) = first.ok_or(AuthorityError::Stored)?;
        let mut all = Vec::new();
        while !rest.is_empty() {
            all.push(Arc::new(G::import(take(&mut rest)?)?));
        }
        Ok(Self {
            all,
            longest_ttl: u64::from_be_bytes(*longest_ttl),
        })
    }
}

/// When another one begins to sign that must be published now, if one must.
fn begins<G: Generation>(
    all: &[Arc<G>],
    now: u64,
    schedule: Schedule,
    longest_ttl: u64,
    rotate: bool,
) -> Option<u64> {
    let Some(last) = all.last() else {
        return Some(now);
    };
    // By then everybody who holds what the one before signed has been given anew, with this one.
    let soon = now.saturating_add(schedule.publish_ahead.max(longest_ttl));
    if last.ends() <= soon {
        // After a stop of years there is nothing that an overlap could save.
        return Some(if last.ends() <= now {
            now
        } else {
            soon.min(last.ends())
        });
    }
    let due = last.signs_from().saturating_add(schedule.rotate_every);
    let is_pending = last.signs_from() > now;
    if rotate && !is_pending {
        return Some(soon);
    }
    (due <= soon).then(|| due.max(soon))
}

/// Puts the length of some bytes (4 bytes), and them.
pub(super) fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(bytes);
}

/// Takes what [`put`] put.
pub(super) fn take<'a>(from: &mut &'a [u8]) -> Result<&'a [u8], AuthorityError> {
    let split = from.split_first_chunk::<4>();
    let (length, rest) = split.ok_or(AuthorityError::Stored)?;
    let length = usize::try_from(u32::from_be_bytes(*length));
    let length = length.map_err(|_| AuthorityError::Stored)?;
    let (bytes, rest) = rest
        .split_at_checked(length)
        .ok_or(AuthorityError::Stored)?;
    *from = rest;
    Ok(bytes)
}

/// The authorities of one engine, in the store.
pub(super) struct Authority<G> {
    store: Arc<dyn Store>,
    keys: Arc<RootKeys>,
    schedule: Schedule,
    current: RwLock<Arc<Succession<G>>>,
    /// Number of what is stored; held while the next is stored.
    stored: Mutex<u64>,
    /// The same, for who only looks.
    edition: AtomicU64,
    revocations: Revocations,
}

impl<G: Generation> Authority<G> {
    const RECORD: RecordId<'static> = RecordId {
        kind: "meta",
        path: G::META,
    };

    /// Loads what the store holds, if there is anything yet.
    ///
    /// # Errors
    /// The store's and the seal's.
    pub(super) async fn open(
        store: Arc<dyn Store>,
        keys: Arc<RootKeys>,
        schedule: Schedule,
    ) -> Result<Self, EngineError> {
        let (number, current) = match store.meta(G::META.to_owned()).await? {
            Some(bytes) => {
                let (number, sealed) = bytes.split_first_chunk().ok_or(AuthorityError::Stored)?;
                let number = u64::from_be_bytes(*number);
                let exported = keys.open(&Self::RECORD, number, sealed)?;
                (number, Succession::import(&exported)?)
            }
            None => (0, Succession::default()),
        };
        Ok(Self {
            revocations: Revocations::new(Arc::clone(&store), G::ENGINE),
            store,
            keys,
            schedule,
            current: RwLock::new(Arc::new(current)),
            stored: Mutex::new(number),
            edition: AtomicU64::new(number),
        })
    }

    pub(super) fn current(&self) -> Arc<Succession<G>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }

    /// What can sign at `now` for something that lives `ttl` milliseconds.
    pub(super) async fn ready(
        &self,
        now: u64,
        ttl: u64,
    ) -> Result<Arc<Succession<G>>, EngineError> {
        // It stays published for as long as what it signs lives, so the longest is known before.
        let current = self.current();
        if current.all.is_empty() || ttl > current.longest_ttl {
            self.become_right(now, ttl, false).await?;
        }
        Ok(self.current())
    }

    async fn become_right(
        &self,
        now: u64,
        longest_ttl: u64,
        rotate: bool,
    ) -> Result<bool, EngineError> {
        let mut stored = self.stored.lock().await;
        let next = self
            .current()
            .next(now, self.schedule, longest_ttl, rotate)?;
        let Some(next) = next else {
            return Ok(false);
        };
        // On disk before anything is signed with it.
        let number = *stored + 1;
        let sealed = self.keys.seal(&Self::RECORD, number, &next.export())?;
        let bytes = [number.to_be_bytes().as_slice(), &sealed].concat();
        let put = Op::MetaPut(G::META.to_owned(), bytes);
        self.store.commit(vec![put]).await?;
        *stored = number;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        self.edition.store(number, Ordering::SeqCst);
        Ok(true)
    }
}

impl<G: Generation> Certifier for Authority<G> {
    fn edition(&self) -> u64 {
        self.edition.load(Ordering::SeqCst)
    }

    fn published(&self, now: u64) -> AuthorityInfo {
        let current = self.current();
        let signing = current.signer(now).map_or(now, Generation::signs_from);
        let published = current.all.iter().map(|one| PublishedAuthority {
            state: match one.signs_from().cmp(&signing) {
                std::cmp::Ordering::Less => AuthorityState::Past,
                std::cmp::Ordering::Equal => AuthorityState::Signing,
                std::cmp::Ordering::Greater => AuthorityState::Next,
            },
            signs_from: one.signs_from(),
            fingerprints: one.fingerprints(),
        });
        let files = G::files(&current.all).into_iter();
        AuthorityInfo {
            engine: G::ENGINE,
            published: published.collect(),
            files: files.map(|(name, text)| (name.to_owned(), text)).collect(),
        }
    }

    fn revocations(&self, now: u64) -> Answer<'_, RevocationList> {
        Box::pin(async move {
            let current = self.current();
            if current.all.is_empty() {
                let message = format!(
                    "{} has no authority yet: it is made for the first certificate",
                    G::ENGINE
                );
                return Err(EngineError::NotFound(message));
            }
            let number = self.revocations.number().await?;
            let revoked = self.revocations.at(now).await?;
            let list = List {
                number,
                now,
                revoked: &revoked,
            };
            Ok(RevocationList {
                engine: G::ENGINE,
                number,
                entries: revoked.len() as u64,
                file: Base64(G::list(&current.all, &list)?),
            })
        })
    }

    fn maintain(&self, now: u64) -> Answer<'_, bool> {
        Box::pin(async move {
            self.revocations.trim(now).await?;
            // The first is made when it is needed.
            if self.current().all.is_empty() {
                return Ok(false);
            }
            self.become_right(now, 0, false).await
        })
    }

    fn rotate(&self, now: u64) -> Answer<'_, u64> {
        Box::pin(async move {
            self.become_right(now, 0, true).await?;
            let current = self.current();
            Ok(current.all.last().map_or(now, |last| last.signs_from()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain {
        from: u64,
        ends: u64,
    }

    impl Generation for Plain {
        const META: &'static str = "plain";
        const ENGINE: EngineKind = EngineKind::X509;

        fn make(_now: u64, from: u64, schedule: Schedule) -> Result<Self, AuthorityError> {
            let ends = from + 10 * schedule.rotate_every;
            Ok(Self { from, ends })
        }

        fn signs_from(&self) -> u64 {
            self.from
        }

        fn ends(&self) -> u64 {
            self.ends
        }

        fn fingerprints(&self) -> Vec<String> {
            Vec::new()
        }

        fn files(_all: &[Arc<Self>]) -> BTreeMap<&'static str, String> {
            BTreeMap::new()
        }

        fn list(_all: &[Arc<Self>], _list: &List<'_>) -> Result<Vec<u8>, AuthorityError> {
            Ok(Vec::new())
        }

        fn export(&self) -> Secret {
            Secret::from([self.from.to_be_bytes(), self.ends.to_be_bytes()].concat())
        }

        fn import(bytes: &[u8]) -> Result<Self, AuthorityError> {
            let (from, ends) = bytes.split_first_chunk().ok_or(AuthorityError::Stored)?;
            let ends = ends.try_into().map_err(|_| AuthorityError::Stored)?;
            Ok(Self {
                from: u64::from_be_bytes(*from),
                ends: u64::from_be_bytes(ends),
            })
        }
    }

    const SCHEDULE: Schedule = Schedule {
        rotate_every: 1000,
        publish_ahead: 100,
    };

    type All = Succession<Plain>;

    fn froms(all: &All) -> Vec<u64> {
        all.all.iter().map(|one| one.from).collect()
    }

    #[test]
    fn one_is_published_before_it_signs_and_until_the_last_of_it_expires() {
        let next = |all: &All, now| all.next(now, SCHEDULE, 300, false).unwrap();
        let first = next(&All::default(), 0).unwrap();
        assert_eq!(froms(&first), [0]);
        // Longer ahead than the schedule says, because certificates live longer than that.
        assert!(next(&first, 699).is_none());
        let both = next(&first, 700).unwrap();
        assert_eq!(froms(&both), [0, 1000]);
        assert_eq!(both.signer(999).unwrap().from, 0);
        assert_eq!(both.signer(1000).unwrap().from, 1000);
        assert!(next(&both, 1299).is_none());
        assert_eq!(froms(&next(&both, 1300).unwrap()), [1000]);
        // A clock that was set back leaves somebody to sign.
        assert_eq!(froms(&next(&both, 1300).unwrap()), [1000]);
        assert_eq!(next(&both, 1300).unwrap().signer(5).unwrap().from, 1000);
    }

    #[test]
    fn on_demand_the_next_is_published_once() {
        let rotate = |all: &All, now| all.next(now, SCHEDULE, 0, true).unwrap();
        let first = rotate(&All::default(), 0).unwrap();
        assert_eq!(froms(&first), [0]);
        let both = rotate(&first, 10).unwrap();
        assert_eq!(froms(&both), [0, 110]);
        assert!(rotate(&both, 50).is_none());
        assert_eq!(froms(&rotate(&both, 200).unwrap()), [110, 300]);
    }

    #[test]
    fn after_years_without_a_broker_the_next_signs_at_once() {
        let first = All::default()
            .next(0, SCHEDULE, 300, false)
            .unwrap()
            .unwrap();
        let late = first.next(9800, SCHEDULE, 300, false).unwrap().unwrap();
        assert_eq!(froms(&late), [0, 10_000]);
        let later = first.next(20_000, SCHEDULE, 300, false).unwrap().unwrap();
        assert_eq!(later.signer(20_000).unwrap().from, 20_000);
    }

    #[test]
    fn survives_export_and_is_refused_when_it_is_cut() {
        let all = All::default().next(7, SCHEDULE, 5, false).unwrap().unwrap();
        let bytes = all.export();
        let again = All::import(&bytes).unwrap();
        assert_eq!((froms(&again), again.longest_ttl), (vec![7], 5));
        for length in [0, 7, 9, 20, bytes.len() - 1] {
            let cut = Secret::from(bytes.expose()[..length].to_vec());
            assert!(All::import(&cut).is_err(), "{length}");
        }
    }
}
