//! Workloads whose sidecars say that they cannot publish: on record, and remembered for `mayfly
//! workloads` until they publish or die. What they say is theirs; how much of it is kept is not.

use super::{Door, lock, who};
use mayfly_wire::audit::Event;
use mayfly_wire::link::Unpublished;
use mayfly_wire::{Code, Evidence, PublishFailure, Refusal, WorkloadKey};
use std::collections::VecDeque;
use std::sync::Arc;

/// Workloads that are remembered.
const MOST: usize = 512;
/// Reports of one workload that go on record within a [`MINUTE`].
const RECORDED: usize = 10;
/// In milliseconds.
const MINUTE: u64 = 60_000;

/// Who cannot publish. The latest stands last.
#[derive(Default)]
pub struct Reports(VecDeque<Reporter>);

struct Reporter {
    evidence: Arc<Evidence>,
    /// None once it has published.
    failure: Option<PublishFailure>,
    /// Reports on record since `since`.
    recorded: usize,
    since: u64,
}

impl Reports {
    fn take(&mut self, key: &WorkloadKey) -> Option<Reporter> {
        let mut known = self.0.iter();
        let place = known.position(|known| known.evidence.workload == *key)?;
        self.0.remove(place)
    }

    /// Remembers a report, and says whether it may go on record: one that keeps reporting must not fill
    /// the disk.
    fn add(&mut self, report: &Unpublished, now: u64) -> bool {
        let before = self.take(&report.evidence.workload);
        let (recorded, since) = before
            .as_ref()
            .filter(|known| now.abs_diff(known.since) < MINUTE)
            .map_or((0, now), |known| (known.recorded, known.since));
        // What has ended says nothing about what is published now.
        let failure = match report.failure.code.is_about_an_end() {
            true => before.and_then(|known| known.failure),
            false => Some(report.failure.clone()),
        };
        let may = recorded < RECORDED;
        self.0.push_back(Reporter {
            evidence: Arc::new(report.evidence.clone()),
            failure,
            recorded: recorded + usize::from(may),
            since,
        });
        if self.0.len() > MOST {
            self.0.pop_front();
        }
        may
    }

    /// It has published. How often it reported stays known.
    fn published(&mut self, key: &WorkloadKey) {
        let mut known = self.0.iter_mut();
        if let Some(known) = known.find(|known| known.evidence.workload == *key) {
            known.failure = None;
        }
    }

    pub fn remove(&mut self, key: &WorkloadKey) {
        self.0.retain(|known| known.evidence.workload != *key);
    }

    /// Those that cannot publish now.
    pub fn all(&self) -> Vec<(Arc<Evidence>, PublishFailure)> {
        let known = self.0.iter();
        known
            .filter_map(|known| Some((Arc::clone(&known.evidence), known.failure.clone()?)))
            .collect()
    }
}

impl Door {
    /// A workload reports that its sidecar cannot publish, or what has ended: on record.
    ///
    /// # Errors
    /// [`Code::TooMany`] from a workload that keeps reporting, [`Code::NotAttested`] from one that
    /// died, [`Code::Unavailable`].
    pub async fn publish_failed(&self, report: Unpublished) -> Result<(), Refusal> {
        if self.is_dead(&report.evidence.workload) {
            return Err(Code::NotAttested.into());
        }
        if !lock(&self.unpublished).add(&report, self.now_ms()) {
            return Err(Code::TooMany.into());
        }
        self.record(Event::PublishFailed {
            who: who(&report.evidence),
            failure: report.failure,
        })
        .await
    }

    /// A workload's sidecar has published.
    pub fn published(&self, workload: &WorkloadKey) {
        lock(&self.unpublished).published(workload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_wire::PublishFault;

    fn report(number: u64) -> Unpublished {
        Unpublished {
            evidence: crate::testing::evidence(number),
            failure: PublishFailure {
                generation: 0,
                code: PublishFault::Symlink,
                detail: "a symlink".into(),
            },
        }
    }

    #[test]
    fn records_of_one_workload_are_bounded_whatever_it_says_between() {
        let mut reports = Reports::default();
        let one = report(1);
        let recorded = (0..100).filter(|_| {
            reports.published(&one.evidence.workload);
            reports.add(&one, 0)
        });
        assert_eq!(recorded.count(), RECORDED);
        assert!(reports.add(&report(2), 0));
        assert!(!reports.add(&one, MINUTE - 1) && reports.add(&one, MINUTE));
        for number in 10..2000 {
            reports.add(&report(number), 0);
        }
        assert_eq!(reports.all().len(), MOST);
    }

    #[test]
    fn who_publishes_or_dies_is_not_told_as_failing() {
        let mut reports = Reports::default();
        reports.add(&report(1), 0);
        reports.add(&report(2), 0);
        reports.published(&report(1).evidence.workload);
        let failing = reports.all();
        assert_eq!(failing.len(), 1);
        assert_eq!(failing[0].0.workload, report(2).evidence.workload);
        reports.remove(&report(2).evidence.workload);
        assert!(reports.all().is_empty());
    }
}
