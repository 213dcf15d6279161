//! What an earlier run of the broker left undone, and what happened to the clock meanwhile, when it starts
//! again.

use super::renew::due;
use super::{Applied, Door, OpenError, ended};
use crate::clock::Mark;
use crate::store::{Lease, LeaseState, Op, Source, StoreError};
use mayfly_wire::LeaseId;
use mayfly_wire::audit::Event;

/// Leases that are settled in one commit.
const AT_ONCE: u32 = 500;
/// Where the last mark of the clock stands in the store.
const MARK: &str = "clock";
/// How far the leases have followed a clock that was set: the last one that did, while that goes on.
const MOVED: &str = "moved";

impl Door {
    /// Sets right what an earlier run left.
    pub(super) async fn settle(&self) -> Result<(), OpenError> {
        self.follow_clock().await?;
        self.end_what_was_on_its_way().await?;
        let mut ops = self.mark()?;
        ops.push(Op::MetaRemove(MOVED.to_owned()));
        self.store.commit(ops).await?;
        Ok(())
    }

    /// What was planned was never issued, and must end. What must end is tried again at once.
    async fn end_what_was_on_its_way(&self) -> Result<(), StoreError> {
        let now = self.now_ms();
        let mut open = self.store.leases_in(LeaseState::Planned).await?;
        open.extend(self.store.leases_in(LeaseState::Revoking).await?);
        for some in open.chunks(AT_ONCE as usize) {
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

    /// The change that lets the next start know what time it is now.
    pub(super) fn mark(&self) -> Result<Vec<Op>, StoreError> {
        let Some(mark) = self.clock.mark() else {
            return Ok(Vec::new());
        };
        let bytes = serde_json::to_vec(&mark);
        let bytes = bytes.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(vec![Op::MetaPut(MARK.to_owned(), bytes)])
    }

    /// If the clock was set while the broker was down, every lease keeps what is left of its life, and
    /// none gets more.
    async fn follow_clock(&self) -> Result<(), OpenError> {
        let stored = self.store.meta(MARK.to_owned()).await?;
        let earlier: Option<Mark> = stored.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let (Some(earlier), Some(mark)) = (earlier, self.clock.mark()) else {
            return Ok(());
        };
        let Some(by_then) = mark.set_since(&earlier) else {
            return Ok(());
        };
        let apart_seconds = by_then.abs_diff(mark.now) / 1000;
        tracing::warn!(apart_seconds, "the clock was set while the broker was down");
        let applied = self.applied();
        let moved_to = self.store.meta(MOVED.to_owned()).await?;
        let moved_to = moved_to.and_then(|bytes| String::from_utf8(bytes).ok());
        let mut after = moved_to.map(LeaseId::from);
        loop {
            let page = self.store.leases(after.take(), AT_ONCE).await?;
            let (mut ops, mut events) = (Vec::new(), Vec::new());
            for lease in &page {
                let (op, event) = moved(lease, by_then, mark.now, &applied);
                ops.push(op);
                events.extend(event);
            }
            let recorded = events.into_iter().map(|event| self.audit.append(event));
            let recorded = super::all(recorded.collect()).await;
            recorded.into_iter().try_for_each(|one| one.map(|_| ()))?;
            let next = page.last().filter(|_| page.len() >= AT_ONCE as usize);
            // With the last page, so that nothing is moved twice.
            match next {
                Some(last) => ops.push(Op::MetaPut(MOVED.to_owned(), last.id.as_str().into())),
                None => {
                    ops.push(Op::MetaRemove(MOVED.to_owned()));
                    ops.extend(self.mark()?);
                }
            }
            self.store.commit(ops).await?;
            match next {
                Some(last) => after = Some(last.id.clone()),
                None => return Ok(()),
            }
        }
    }
}

/// A lease as it is after the clock was set: what would be `by_then` is `now`.
fn moved(lease: &Lease, by_then: u64, now: u64, applied: &Applied) -> (Op, Option<Event>) {
    if let Source::Sealed(_) = lease.source {
        // It has its times inside. Its holder is given another.
        return (
            Op::LeaseEnd(lease.id.clone(), now),
            Some(ended(lease, "expired")),
        );
    }
    let ttl = applied
        .credential(&lease.credential)
        .map(|config| config.ttl_seconds);
    let most = ttl.map_or(u64::MAX, |ttl| ttl.saturating_mul(1000));
    let left = lease.expires_at.saturating_sub(by_then).min(most);
    let wait = lease.due_at.saturating_sub(by_then);
    let expires_at = now.saturating_add(left);
    let moved = Lease {
        // An account's end at its target is by the target's own clock: it is set anew at once.
        due_at: if lease.source.has_target() && lease.state == LeaseState::Active {
            now
        } else {
            now.saturating_add(wait).min(due(now, expires_at).max(now))
        },
        issued_at: now.saturating_sub(by_then.saturating_sub(lease.issued_at)),
        expires_at,
        ..lease.clone()
    };
    (Op::LeaseUpdate(moved), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store as _;
    use crate::testing::evidence;

    fn lease(source: Source) -> Lease {
        let evidence = evidence(1);
        Lease {
            id: LeaseId::from_random([1; 16]),
            name: evidence.display_name(),
            workload: evidence.workload,
            credential: "db".parse().unwrap(),
            engine: mayfly_wire::EngineKind::Kv,
            node: evidence.node,
            state: LeaseState::Active,
            issued_at: 10_000_000,
            expires_at: 10_060_000,
            due_at: 10_040_000,
            reason: String::new(),
            attempts: 0,
            problem: String::new(),
            source,
        }
    }

    async fn nothing() -> Applied {
        let dir = crate::testing::TempDir::new();
        let key = crate::unseal::KeyFile::new(dir.path().join("root.key"));
        let store = crate::store::SqliteStore::open(&dir.path().join("state"), &key).unwrap();
        assert!(store.configuration().await.unwrap().is_none());
        super::super::apply::load(&store).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_left_of_a_lease_stays_the_same_and_what_is_over_is_over() {
        let applied = nothing().await;
        let shared = lease(Source::Shared { version: 1 });
        for now in [1_000_000, 1_000_000_000_000] {
            let (Op::LeaseUpdate(moved), None) = moved(&shared, 10_020_000, now, &applied) else {
                panic!("it ended")
            };
            assert_eq!(moved.expires_at, now + 40_000);
            assert_eq!(moved.issued_at, now - 20_000);
            assert_eq!(moved.due_at, now + 20_000);
        }
        let (Op::LeaseUpdate(over), None) = moved(&shared, 99_000_000, 500_000, &applied) else {
            panic!("it ended")
        };
        assert_eq!((over.expires_at, over.due_at), (500_000, 500_000));
        let token = lease(Source::Sealed(vec![1]));
        let (op, event) = moved(&token, 10_020_000, 1, &applied);
        assert!(matches!(op, Op::LeaseEnd(..)) && event.is_some());
    }
}
