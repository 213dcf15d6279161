//! Lists that may be long, a page at a time: of leases and of workloads. Whoever has one was let in, and
//! that is on record.

use super::views::{Known, told};
use super::which::fits;
use super::{Door, Operator, lock, store_failed};
use crate::store::{Lease, LeaseState};
use mayfly_wire::admin::{LeaseFilter, LeaseInfo};
use mayfly_wire::{Evidence, LeaseId, PublishFailure, Refusal, WorkloadKey};
use std::sync::Arc;

/// Leases of one page.
const LEASES: u32 = 1000;
/// Workloads of one page: each is some kilobytes.
const WORKLOADS: u32 = 100;

/// Leases that fit a filter.
pub struct LeasePages {
    door: Arc<Door>,
    filter: LeaseFilter,
    place: Place,
}

/// How far a list of leases is.
enum Place {
    /// These are few, by an index.
    Few,
    After(Option<LeaseId>),
    End,
}

/// Workloads that hold leases, and after them those that were refused lately or cannot publish.
pub struct WorkloadPages {
    door: Arc<Door>,
    after: Option<WorkloadKey>,
    at_end: bool,
    unpublished: Vec<(Arc<Evidence>, PublishFailure)>,
}

impl Door {
    /// The leases that fit a filter.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Denied`], [`mayfly_wire::Code::Unavailable`].
    pub async fn lease_pages(
        self: &Arc<Self>,
        operator: &Operator,
        filter: LeaseFilter,
    ) -> Result<LeasePages, Refusal> {
        self.allow_broker(operator, "leases").await?;
        let is_few = filter.lease.is_some() || filter.credential.is_some() || filter.stuck;
        Ok(LeasePages {
            door: Arc::clone(self),
            filter,
            place: if is_few {
                Place::Few
            } else {
                Place::After(None)
            },
        })
    }

    /// Every workload that holds leases, was refused lately or cannot publish.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Denied`], [`mayfly_wire::Code::Unavailable`].
    pub async fn workload_pages(
        self: &Arc<Self>,
        operator: &Operator,
    ) -> Result<WorkloadPages, Refusal> {
        self.allow_broker(operator, "workloads").await?;
        Ok(WorkloadPages {
            door: Arc::clone(self),
            after: None,
            at_end: false,
            unpublished: lock(&self.unpublished).all(),
        })
    }
}

impl LeasePages {
    /// The next ones, or nothing at the end. Between there may be none that fit.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Unavailable`].
    pub async fn next(&mut self) -> Result<Option<Vec<LeaseInfo>>, Refusal> {
        let store = &self.door.store;
        let page: Vec<Lease> = match &mut self.place {
            Place::End => return Ok(None),
            Place::Few => {
                self.place = Place::End;
                let LeaseFilter {
                    lease, credential, ..
                } = &self.filter;
                let few = match (lease, credential) {
                    (Some(id), _) => {
                        let found = store.lease(id.clone()).await;
                        found.map(|lease| lease.into_iter().collect())
                    }
                    (None, Some(name)) => store.leases_on(name.clone()).await,
                    (None, None) => store.leases_in(LeaseState::Revoking).await,
                };
                few.map_err(store_failed)?
            }
            Place::After(after) => {
                let page = store.leases(after.take(), LEASES).await;
                let page = page.map_err(store_failed)?;
                self.place = match page.last() {
                    Some(last) if page.len() >= LEASES as usize => {
                        Place::After(Some(last.id.clone()))
                    }
                    _ => Place::End,
                };
                page
            }
        };
        let page = page.into_iter().map(|lease| self.door.with_problem(lease));
        let fit = page.filter(|lease| fits(&self.filter, lease));
        Ok(Some(fit.map(told).collect()))
    }

    /// All that are left.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Unavailable`].
    pub async fn all(mut self) -> Result<Vec<LeaseInfo>, Refusal> {
        let mut all = Vec::new();
        while let Some(page) = self.next().await? {
            all.extend(page);
        }
        Ok(all)
    }
}

impl WorkloadPages {
    /// The next ones, or nothing at the end.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Unavailable`].
    pub async fn next(&mut self) -> Result<Option<Vec<Known>>, Refusal> {
        if self.at_end {
            return Ok(None);
        }
        let store = &self.door.store;
        let page = store.workloads(None, self.after.take(), WORKLOADS).await;
        let page = page.map_err(store_failed)?;
        self.after = page.last().map(|last| last.evidence.workload.clone());
        self.at_end = page.len() < WORKLOADS as usize;
        let mut evidence: Vec<_> = page.into_iter().map(|one| Arc::new(one.evidence)).collect();
        if self.at_end {
            evidence.extend(self.others().await?);
        }
        let mut known = Vec::with_capacity(evidence.len());
        for evidence in evidence {
            let leases = store.leases_of(evidence.workload.clone()).await;
            known.push(Known {
                leases: leases.map_err(store_failed)?.len() as u64,
                failure: self.failure(&evidence.workload),
                evidence,
            });
        }
        Ok(Some(known))
    }

    /// All that are left.
    ///
    /// # Errors
    /// [`mayfly_wire::Code::Unavailable`].
    pub async fn all(mut self) -> Result<Vec<Known>, Refusal> {
        let mut all = Vec::new();
        while let Some(page) = self.next().await? {
            all.extend(page);
        }
        Ok(all)
    }

    /// Those that are known in memory alone.
    async fn others(&self) -> Result<Vec<Arc<Evidence>>, Refusal> {
        let refused = lock(&self.door.refused).all();
        let unpublished = self.unpublished.iter().map(|(evidence, _)| evidence);
        let mut others: Vec<Arc<Evidence>> = Vec::new();
        for evidence in refused.iter().chain(unpublished) {
            let key = &evidence.workload;
            let stored = self.door.store.workload(key.clone()).await;
            let is_known = others.iter().any(|other| other.workload == *key);
            if !is_known && stored.map_err(store_failed)?.is_none() {
                others.push(Arc::clone(evidence));
            }
        }
        Ok(others)
    }

    /// Why its sidecar cannot publish, if it said so and has published nothing since.
    fn failure(&self, key: &WorkloadKey) -> Option<PublishFailure> {
        let mut failing = self.unpublished.iter();
        let found = failing.find(|(evidence, _)| evidence.workload == *key);
        found.map(|(_, failure)| failure.clone())
    }
}
