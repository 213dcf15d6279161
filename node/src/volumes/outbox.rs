//! Reports on their way to the broker: kept until it has them on disk, and paced, because a container
//! can write as much into a record as it likes.

use crate::backoff;
use crate::upstream::Upstream;
use mayfly_wire::WorkloadKey;
use mayfly_wire::link::{MAX_OVERDUE, NodeEvent, Overdue, OverdueAct};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Least time between two reports of one act in one volume.
const INTERVAL: Duration = Duration::from_secs(10);

/// No report waits longer than this for its time.
const LONGEST: Duration = Duration::from_secs(60);

/// Takes reports, and never blocks. It holds one for each volume and act at most.
#[derive(Default)]
pub(crate) struct Outbox {
    kinds: Mutex<HashMap<Kind, State>>,
    wake: Notify,
}

type Kind = (String, OverdueAct);

#[derive(Default)]
struct State {
    waiting: Option<Overdue>,
    not_before: Option<Instant>,
}

impl Outbox {
    fn kinds<T>(&self, f: impl FnOnce(&mut HashMap<Kind, State>) -> T) -> T {
        f(&mut self.kinds.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes what was done. Together with what was noted and not yet sent it is one report.
    pub(crate) fn put(
        &self,
        volume: &str,
        act: OverdueAct,
        items: &[String],
        workloads: &[WorkloadKey],
    ) {
        tracing::warn!(
            volume,
            items = items.join(","),
            workloads = ?workloads.iter().map(WorkloadKey::id).collect::<Vec<_>>(),
            "{}",
            act.phrase()
        );
        let report = Overdue {
            volume: volume.to_owned(),
            act,
            items: items
                .iter()
                .take(MAX_OVERDUE)
                .map(|item| item.as_str().into())
                .collect(),
            count: items.len() as u64,
            workloads: workloads.iter().take(MAX_OVERDUE).cloned().collect(),
        };
        self.add(report);
        self.wake.notify_one();
    }

    fn add(&self, report: Overdue) {
        self.kinds(|kinds| {
            let state = kinds
                .entry((report.volume.clone(), report.act))
                .or_default();
            state.waiting = Some(match state.waiting.take() {
                None => report,
                Some(before) => merged(before, report),
            });
        });
    }

    /// Sends reports as they fall due. When `finishing` becomes true, all that wait are sent, because
    /// they do not survive the node, and it ends.
    pub(crate) async fn send_all(&self, upstream: &dyn Upstream, finishing: watch::Receiver<bool>) {
        let mut failures = 0;
        loop {
            let finish = *finishing.borrow();
            let now = Instant::now() + if finish { LONGEST } else { Duration::ZERO };
            let due = self.kinds(|kinds| take_due(kinds, now));
            for report in due {
                let event = NodeEvent::Overdue(Box::new(report.clone()));
                match upstream.event(event).await {
                    Ok(()) => failures = 0,
                    Err(error) => {
                        failures += 1;
                        tracing::warn!(
                            %error,
                            volume = report.volume,
                            "the broker did not take the report of a volume; it will be repeated"
                        );
                        let again = Instant::now() + backoff::delay(failures);
                        let kind = (report.volume.clone(), report.act);
                        self.add(report);
                        self.kinds(|kinds| {
                            if let Some(state) = kinds.get_mut(&kind) {
                                state.not_before = Some(again);
                            }
                        });
                    }
                }
            }
            if finish {
                return;
            }
            let next = self.kinds(|kinds| next_due(kinds));
            let mut finishing = finishing.clone();
            tokio::select! {
                () = self.wake.notified() => {}
                () = until(next) => {}
                _ = finishing.wait_for(|finish| *finish) => {}
            }
        }
    }
}

fn merged(mut one: Overdue, other: Overdue) -> Overdue {
    one.count += other.count;
    for item in other.items {
        if one.items.len() < MAX_OVERDUE && !one.items.contains(&item) {
            one.items.push(item);
        }
    }
    for workload in other.workloads {
        if one.workloads.len() < MAX_OVERDUE && !one.workloads.contains(&workload) {
            one.workloads.push(workload);
        }
    }
    one
}

fn take_due(kinds: &mut HashMap<Kind, State>, now: Instant) -> Vec<Overdue> {
    kinds.retain(|_, state| state.waiting.is_some() || state.not_before.is_some_and(|at| at > now));
    let rested = kinds
        .values_mut()
        .filter(|state| state.not_before.is_none_or(|at| at <= now));
    let due = rested.filter_map(|state| {
        let report = state.waiting.take()?;
        state.not_before = Some(now + INTERVAL);
        Some(report)
    });
    due.collect()
}

fn next_due(kinds: &HashMap<Kind, State>) -> Option<Instant> {
    let waiting = kinds.values().filter(|state| state.waiting.is_some());
    waiting.filter_map(|state| state.not_before).min()
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::stand_in::Nobody;

    #[tokio::test]
    async fn who_stops_sends_what_waits_for_its_turn() {
        let (outbox, broker) = (Outbox::default(), Nobody::default());
        let (finish, finishing) = watch::channel(false);
        let sending = outbox.send_all(&broker, finishing);
        let acting = async {
            for count in 1..=3_u64 {
                outbox.put("v", OverdueAct::Cleared, &[format!("item-{count}")], &[]);
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert_eq!(broker.taken.lock().unwrap().len(), 1, "the first, at once");
            }
            finish.send_replace(true);
        };
        let both = async { tokio::join!(sending, acting) };
        tokio::time::timeout(Duration::from_secs(5), both)
            .await
            .expect("it ends");
        let taken = broker.taken.lock().unwrap();
        let counts = taken.iter().map(|event| match event {
            NodeEvent::Overdue(report) => report.count,
            _ => 0,
        });
        assert_eq!(counts.collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_flood_is_one_report_an_interval_and_loses_no_count() {
        let outbox = Outbox::default();
        let put = |act, names: std::ops::Range<usize>| {
            let items: Vec<_> = names.map(|number| format!("item-{number}")).collect();
            outbox.put("v", act, &items, &[]);
        };
        let take = |now| outbox.kinds(|kinds| take_due(kinds, now));
        let start = Instant::now();
        put(OverdueAct::ExpiredRemoved, 0..2);
        assert_eq!(take(start).len(), 1);
        for at in 0..100 {
            put(OverdueAct::ExpiredRemoved, at * 100..at * 100 + 100);
        }
        assert!(take(start).is_empty());
        put(OverdueAct::Cleared, 0..1);
        assert_eq!(take(start).len(), 1, "another act waits for nobody");
        let due = take(start + INTERVAL);
        assert_eq!(due.len(), 1);
        assert_eq!((due[0].count, due[0].items.len()), (10_000, MAX_OVERDUE));
        assert!(take(start + INTERVAL * 3).is_empty());
        assert!(outbox.kinds(|kinds| kinds.is_empty()));
    }
}
