//! The workloads that this node serves: watched from their first session on, reported when they die.

use crate::attest::Attestor;
use crate::backoff;
use crate::death::{DeathTarget, DeathWatch};
use crate::upstream::Upstream;
use mayfly_wire::WorkloadKey;
use mayfly_wire::link::{NodeEvent, Watched};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

/// Most reports on the way at once.
const REPORTS: usize = 64;

/// Who is served, and who of them is dead.
pub(crate) struct Served {
    watch: DeathWatch,
    workloads: Mutex<HashMap<WorkloadKey, Workload>>,
    /// Deaths to report; each workload stands in it once.
    to_report: mpsc::UnboundedSender<WorkloadKey>,
    /// Somebody died.
    death: Notify,
}

struct Workload {
    sessions: usize,
    dead: watch::Sender<bool>,
    reporting: bool,
    /// To be reported again when this report is done.
    again: bool,
}

impl Workload {
    fn new() -> Self {
        Self {
            sessions: 0,
            dead: watch::Sender::new(false),
            reporting: false,
            again: false,
        }
    }
}

/// Deaths as they are told, and as they are reported.
pub(crate) struct Deaths {
    told: mpsc::UnboundedReceiver<WorkloadKey>,
    to_report: mpsc::UnboundedReceiver<WorkloadKey>,
}

impl Served {
    /// Also returns what [`Served::mourn`] takes.
    pub(crate) fn new() -> (Arc<Self>, Deaths) {
        let (watch, told) = DeathWatch::new();
        let (sender, to_report) = mpsc::unbounded_channel();
        let served = Arc::new(Self {
            watch,
            workloads: Mutex::default(),
            to_report: sender,
            death: Notify::new(),
        });
        (served, Deaths { told, to_report })
    }

    fn workloads<T>(&self, f: impl FnOnce(&mut HashMap<WorkloadKey, Workload>) -> T) -> T {
        f(&mut self
            .workloads
            .lock()
            .unwrap_or_else(PoisonError::into_inner))
    }

    /// Watches a workload from before its first lease, so that no death is missed.
    pub(crate) fn enter(self: &Arc<Self>, key: WorkloadKey, target: DeathTarget) -> Stay {
        let dead = self.workloads(|workloads| {
            let workload = workloads.entry(key.clone()).or_insert_with(Workload::new);
            workload.sessions += 1;
            workload.dead.subscribe()
        });
        self.watch.watch(target);
        Stay {
            served: Arc::clone(self),
            key,
            dead,
        }
    }

    /// Watches again what held leases before this node started; who is dead by now is told dead.
    pub(crate) fn resume(&self, attestor: &Attestor, watched: &[Watched]) {
        for watched in watched {
            let known = self.workloads(|workloads| {
                let known = workloads.contains_key(&watched.workload);
                workloads
                    .entry(watched.workload.clone())
                    .or_insert_with(Workload::new);
                known
            });
            if !known {
                self.watch.resume(attestor, watched);
            }
        }
    }

    /// Ends the sessions of a dead workload, and has its death reported.
    fn died(&self, key: WorkloadKey) {
        tracing::info!(workload = key.id(), "a workload died");
        let report = self.workloads(|workloads| {
            let workload = workloads.entry(key.clone()).or_insert_with(Workload::new);
            workload.dead.send_replace(true);
            !std::mem::replace(&mut workload.reporting, true)
        });
        if report {
            self.report(key);
        }
        self.death.notify_one();
    }

    /// Waits until somebody has died since it was last asked. For one who asks.
    pub(crate) async fn deaths(&self) {
        self.death.notified().await;
    }

    /// The receiver is gone only when the node stops; the next start finds the death again.
    fn report(&self, key: WorkloadKey) {
        let _ = self.to_report.send(key);
    }

    /// Notes that the broker has a report on disk. Returns whether to say it once more.
    fn reported(&self, key: &WorkloadKey) -> bool {
        self.workloads(|workloads| {
            let Some(workload) = workloads.get_mut(key) else {
                return false;
            };
            if std::mem::take(&mut workload.again) {
                return true;
            }
            workload.reporting = false;
            if workload.sessions == 0 {
                workloads.remove(key);
            }
            false
        })
    }

    /// A request for a session may have reached the broker after the report of the death. So the
    /// death is said once more when the last such request is over.
    fn leave(&self, key: &WorkloadKey) {
        let report = self.workloads(|workloads| {
            let Some(workload) = workloads.get_mut(key) else {
                return false;
            };
            workload.sessions = workload.sessions.saturating_sub(1);
            if workload.sessions > 0 || !*workload.dead.borrow() {
                return false;
            }
            workload.again = workload.reporting;
            !std::mem::replace(&mut workload.reporting, true)
        });
        if report {
            self.report(key.clone());
        }
    }

    /// Reports each death until the broker has it on disk. Never ends before the node does.
    pub(crate) async fn mourn(self: Arc<Self>, mut deaths: Deaths, upstream: Arc<dyn Upstream>) {
        let places = Arc::new(Semaphore::new(REPORTS));
        // They end with this function.
        let mut reports = JoinSet::new();
        loop {
            tokio::select! {
                Some(key) = deaths.told.recv() => self.died(key),
                Some(key) = deaths.to_report.recv() => {
                    let served = Arc::clone(&self);
                    let (upstream, places) = (Arc::clone(&upstream), Arc::clone(&places));
                    reports.spawn(async move {
                        report(&key, &*upstream, &places).await;
                        while served.reported(&key) {
                            report(&key, &*upstream, &places).await;
                        }
                    });
                }
                Some(_) = reports.join_next() => {}
                else => return,
            }
        }
    }
}

async fn report(workload: &WorkloadKey, upstream: &dyn Upstream, places: &Semaphore) {
    let mut failures = 0;
    loop {
        let event = NodeEvent::Died {
            workload: workload.clone(),
        };
        let place = places.acquire().await;
        let answer = upstream.event(event).await;
        drop(place);
        let Err(error) = answer else { return };
        failures += 1;
        tracing::warn!(
            %error,
            workload = workload.id(),
            "the broker did not take the report of a death; it will be repeated"
        );
        tokio::time::sleep(backoff::delay(failures)).await;
    }
}

/// One request or session of a workload.
pub(crate) struct Stay {
    served: Arc<Served>,
    key: WorkloadKey,
    dead: watch::Receiver<bool>,
}

impl Stay {
    /// Waits for the workload's death.
    pub(crate) async fn death(&self) {
        let mut dead = self.dead.clone();
        // An error says that it is not watched any more, which is the same to a session.
        let _ = dead.wait_for(|dead| *dead).await;
    }

    /// Whether it is dead, as far as is known.
    pub(crate) fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.served.leave(&self.key);
    }
}
