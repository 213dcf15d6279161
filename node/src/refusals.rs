//! Reports of those whom the node refused: the first at once, then one record an interval with a
//! count, so that a flood cannot fill the disk that the audit log is on.

use crate::attest::Origin;
use crate::upstream::Upstream;
use mayfly_wire::link::{NodeEvent, NodeRefusal};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Most pairs of origin and reason that are counted apart; beyond, origins are not told apart.
const MOST_KINDS: usize = 1024;

/// Takes reports from anywhere, and never blocks.
pub(crate) struct Refusals {
    tally: Mutex<Tally>,
    wake: Notify,
}

impl Refusals {
    pub(crate) fn new(interval: Duration) -> Arc<Self> {
        Arc::new(Self {
            tally: Mutex::new(Tally {
                interval,
                kinds: HashMap::new(),
            }),
            wake: Notify::new(),
        })
    }

    fn tally<T>(&self, f: impl FnOnce(&mut Tally) -> T) -> T {
        f(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes one refusal; its `count` is ignored.
    pub(crate) fn report(&self, origin: Option<Origin>, refusal: NodeRefusal) {
        tracing::debug!(
            reason = refusal.reason,
            pid = refusal.pid,
            detail = refusal.detail,
            "refused"
        );
        // Of what is counted already, the sender knows.
        if self.tally(|tally| tally.note(origin, refusal)) {
            self.wake.notify_one();
        }
    }

    /// Sends reports as they fall due. When `finishing` becomes true, all that wait are sent, because
    /// they do not survive the node, and it ends.
    pub(crate) async fn send_all(&self, upstream: &dyn Upstream, finishing: watch::Receiver<bool>) {
        loop {
            let finish = *finishing.borrow();
            let due = self.tally(|tally| {
                let early = if finish {
                    tally.interval
                } else {
                    Duration::ZERO
                };
                tally.take_due(Instant::now() + early)
            });
            for (kind, refusal) in due {
                tracing::warn!(
                    reason = refusal.reason,
                    count = refusal.count,
                    pid = refusal.pid,
                    uid = refusal.uid,
                    cgroup = refusal.cgroup_path,
                    detail = refusal.detail,
                    "refused on the workload socket"
                );
                let count = refusal.count;
                let event = NodeEvent::Refused(Box::new(refusal));
                if let Err(error) = upstream.event(event).await {
                    tracing::warn!(%error, "the broker did not take the report; it will be repeated");
                    self.tally(|tally| tally.give_back(&kind, count));
                }
            }
            if finish {
                return;
            }
            let next = self.tally(|tally| tally.next_due());
            let mut finishing = finishing.clone();
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = sleep => {}
                _ = finishing.wait_for(|finish| *finish) => {}
            }
        }
    }
}

/// No origin: it could not be told, or there are too many to count apart.
type Kind = (Option<Origin>, String);

/// The counting, apart from clock and network.
struct Tally {
    interval: Duration,
    kinds: HashMap<Kind, Count>,
}

struct Count {
    /// The first since the last report.
    sample: NodeRefusal,
    /// How many since the last report.
    pending: u64,
    last_report: Option<Instant>,
}

impl Tally {
    /// Counts one. Returns whether it is the first since the last report.
    fn note(&mut self, origin: Option<Origin>, sample: NodeRefusal) -> bool {
        let mut kind = (origin, sample.reason.clone());
        if self.kinds.len() >= MOST_KINDS && !self.kinds.contains_key(&kind) {
            kind.0 = None;
        }
        let count = self.kinds.entry(kind).or_insert_with(|| Count {
            sample: sample.clone(),
            pending: 0,
            last_report: None,
        });
        let first = count.pending == 0;
        if first {
            count.sample = sample;
        }
        count.pending += 1;
        first
    }

    /// Takes what is due, and forgets kinds that were silent for an interval.
    fn take_due(&mut self, now: Instant) -> Vec<(Kind, NodeRefusal)> {
        let interval = self.interval;
        let rested = |count: &Count| count.last_report.is_none_or(|last| last + interval <= now);
        let due = self
            .kinds
            .iter_mut()
            .filter(|(_, count)| count.pending > 0 && rested(count))
            .map(|(kind, count)| {
                let mut refusal = count.sample.clone();
                refusal.count = std::mem::take(&mut count.pending);
                count.last_report = Some(now);
                (kind.clone(), refusal)
            })
            .collect();
        self.kinds
            .retain(|_, count| count.pending > 0 || !rested(count));
        due
    }

    /// Counts what could not be sent for the next report. The sample is kept for that.
    fn give_back(&mut self, kind: &Kind, pending: u64) {
        if let Some(count) = self.kinds.get_mut(kind) {
            count.pending += pending;
        }
    }

    /// When something falls due, or can be forgotten.
    fn next_due(&self) -> Option<Instant> {
        let last = self.kinds.values().filter_map(|count| count.last_report);
        last.min().map(|last| last + self.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(id: u64) -> Option<Origin> {
        Some(Origin::PidNamespace(id))
    }

    fn refusal(reason: &str) -> NodeRefusal {
        NodeRefusal {
            reason: reason.into(),
            detail: String::new(),
            pid: None,
            uid: None,
            cgroup_path: None,
            workload: None,
            count: 0,
        }
    }

    fn tally() -> (Tally, Instant) {
        let interval = Duration::from_secs(10);
        let kinds = HashMap::new();
        (Tally { interval, kinds }, Instant::now())
    }

    #[test]
    fn the_first_at_once_then_one_an_interval_with_a_count() {
        let (mut tally, start) = tally();
        tally.note(origin(1), refusal("too_many"));
        assert_eq!(tally.take_due(start)[0].1.count, 1);
        for _ in 0..5000 {
            tally.note(origin(1), refusal("too_many"));
        }
        assert!(tally.take_due(start + Duration::from_secs(9)).is_empty());
        assert_eq!(tally.next_due(), Some(start + Duration::from_secs(10)));
        let due = tally.take_due(start + Duration::from_secs(10));
        assert_eq!((due.len(), due[0].1.count), (1, 5000));
        // Silent for an interval: forgotten.
        assert!(tally.take_due(start + Duration::from_secs(20)).is_empty());
        assert!(tally.kinds.is_empty());
    }

    #[test]
    fn a_flood_of_one_origin_does_not_delay_another_or_another_reason() {
        let (mut tally, start) = tally();
        tally.note(origin(1), refusal("a"));
        tally.take_due(start);
        tally.note(origin(1), refusal("a"));
        tally.note(origin(2), refusal("a"));
        tally.note(origin(1), refusal("b"));
        assert_eq!(tally.take_due(start).len(), 2);
    }

    #[test]
    fn what_was_not_sent_is_counted_again() {
        let (mut tally, start) = tally();
        tally.note(None, refusal("a"));
        let due = tally.take_due(start);
        tally.give_back(&due[0].0, 1);
        assert_eq!(
            tally.take_due(start + Duration::from_secs(10))[0].1.count,
            1
        );
    }

    #[test]
    fn kinds_are_bounded() {
        let (mut tally, _) = tally();
        for id in 0..5000 {
            tally.note(origin(id), refusal("a"));
        }
        assert_eq!(tally.kinds.len(), MOST_KINDS + 1);
        assert_eq!(
            tally.kinds[&(None, "a".to_owned())].pending,
            5000 - MOST_KINDS as u64
        );
    }
}
