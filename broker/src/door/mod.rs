//! The one door: (evidence, credential) → policy → engine → audit record and lease on disk → sealed
//! answer. This module alone holds the engines and the store, and what it shows of them goes through
//! policy and onto the record first. The rest of the broker holds a [`Door`].

mod activate;
mod apply;
mod authorities;
mod backoff;
mod bundle;
mod create;
mod creations;
mod due;
mod ends;
mod follow;
mod issue;
mod known;
mod lanes;
mod operator;
mod pages;
mod plan;
mod renew;
mod replace;
mod retire;
mod rotate;
mod settle;
mod take_back;
#[cfg(test)]
mod tests;
mod unpublished;
mod views;
mod which;
mod withdraw;

pub use apply::Applied;
pub use bundle::{Answer, Ask, Held, Served, Waiting};
pub use due::Renewal;
pub use known::Heard;
pub use operator::Operator;
pub use pages::{LeasePages, WorkloadPages};

use crate::audit::{AuditError, AuditLog};
use crate::clock::Clock;
use crate::engine::Engines;
use crate::engine::connections::Connections;
use crate::engine::kv::KvChange;
use crate::leases::Hint;
use crate::store::{Lease, Store, StoreError};
use crate::trial::Fault;
use activate::Activations;
use creations::Creations;
use due::Busy;
use known::{Locks, Recent, Tombs};
use lanes::Lanes;
use mayfly_wire::audit::{Event, Who};
use mayfly_wire::{Code, CredentialName, Evidence, Refusal, WorkloadKey};
use retire::Retiring;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use unpublished::Reports;
use withdraw::Barred;

/// What a [`Door`] is made of.
pub struct Parts {
    /// Where everything is kept.
    pub store: Arc<dyn Store>,
    /// What makes credentials.
    pub engines: Engines,
    /// The servers at which they do.
    pub connections: Arc<Connections>,
    /// What writes the record.
    pub audit: AuditLog,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where it ends by itself, in tests.
    pub fault: Fault,
}

/// Why the broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit log does not take records.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The stored configuration is not one that this version understands.
    #[error("the configuration in the store, number {number}: {problem}")]
    Configuration {
        /// Its number.
        number: u64,
        /// What is wrong with it.
        problem: String,
    },
}

/// The door.
pub struct Door {
    store: Arc<dyn Store>,
    engines: Engines,
    connections: Arc<Connections>,
    audit: AuditLog,
    clock: Arc<dyn Clock>,
    fault: Fault,
    applied: RwLock<Arc<Applied>>,
    /// One turn for each workload, so that two requests at once give one lease.
    locks: Locks,
    /// Workloads that died: whoever is still on the way in for one gets nothing.
    dead: Mutex<Tombs>,
    /// Workloads that were refused lately, so that `mayfly explain` can say why.
    refused: Mutex<Recent>,
    /// Workloads whose sidecars cannot publish.
    unpublished: Mutex<Reports>,
    heard: Heard,
    /// One configuration is applied at a time.
    applying: tokio::sync::Mutex<()>,
    /// What is asked of each target.
    lanes: Lanes,
    /// What is being made.
    creations: Creations,
    /// What is made, and not active yet.
    activations: Activations,
    /// What is being renewed.
    renewing: Busy,
    /// What is being ended once more.
    ending: Busy,
    /// What another took the place of.
    retiring: Retiring,
    /// What operators took away.
    barred: Barred,
    /// Rotations that are late.
    rotations: Mutex<rotate::Failing>,
    /// What goes on beside requests; nothing more once the door is closed.
    tasks: Mutex<Option<JoinSet<()>>>,
    /// What sessions must look at.
    changed: broadcast::Sender<Change>,
    /// When leases are due.
    hint: Hint,
}

/// Something that sessions must look at again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// What one workload holds.
    Workload(WorkloadKey),
    /// What all holders of a credential hold.
    Credential(CredentialName),
}

/// Changes that a listener can be behind before it must look at everything.
const BEHIND: usize = 4096;

impl Door {
    /// Opens the door on what the store holds, and writes the record that the broker is up.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(parts: Parts) -> Result<Self, OpenError> {
        let applied = apply::load(parts.store.as_ref()).await?;
        parts.connections.configure(applied.connections());
        let door = Self {
            store: parts.store,
            engines: parts.engines,
            connections: parts.connections,
            audit: parts.audit,
            clock: parts.clock,
            fault: parts.fault,
            applied: RwLock::new(Arc::new(applied)),
            locks: Locks::default(),
            dead: Mutex::default(),
            refused: Mutex::default(),
            unpublished: Mutex::default(),
            heard: Heard::default(),
            applying: tokio::sync::Mutex::default(),
            lanes: Lanes::default(),
            creations: Creations::default(),
            activations: Activations::default(),
            renewing: Busy::default(),
            ending: Busy::default(),
            retiring: Retiring::default(),
            barred: Barred::default(),
            rotations: Mutex::default(),
            tasks: Mutex::new(Some(JoinSet::new())),
            changed: broadcast::channel(BEHIND).0,
            hint: Hint::default(),
        };
        door.audit
            .append(Event::Started {
                version: env!("CARGO_PKG_VERSION").to_owned(),
            })
            .await?;
        // The store then knows the log as it is now: a loss that was accepted is accepted once.
        door.store.commit(Vec::new()).await?;
        door.settle().await?;
        Ok(door)
    }

    /// The configuration that stands.
    #[must_use]
    pub fn applied(&self) -> Arc<Applied> {
        let applied = self.applied.read();
        Arc::clone(&applied.unwrap_or_else(PoisonError::into_inner))
    }

    /// The nodes that were heard of.
    #[must_use]
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// What sessions must look at again, as it happens.
    #[must_use]
    pub fn changed(&self) -> broadcast::Receiver<Change> {
        self.changed.subscribe()
    }

    fn say(&self, change: Change) {
        // An error says that nobody listens.
        let _ = self.changed.send(change);
    }

    /// Something in the store is due at this time: milliseconds since the Unix epoch, 0 for now.
    fn hint(&self, due_at: u64) {
        self.hint.due(due_at);
    }

    /// Does something beside the request that it comes from. Once the door is closed it drops it
    /// instead: what that would find half done is for the next start to settle.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = lock(&self.tasks).as_mut() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(work);
        }
    }

    /// Ends what goes on beside requests. What was being made or ended is settled at the next start.
    pub async fn close(&self) {
        let tasks = lock(&self.tasks).take();
        if let Some(mut tasks) = tasks {
            tasks.shutdown().await;
        }
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Each new version of a stored value, without the value.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<KvChange> {
        self.engines.kv.changes()
    }

    /// Writes a record.
    ///
    /// # Errors
    /// [`Code::Unavailable`]: what the record is about must not happen.
    pub async fn record(&self, event: Event) -> Result<(), Refusal> {
        match self.audit.append(event).await {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::error!(%error, "the audit log does not take a record");
                Err(Code::Unavailable.into())
            }
        }
    }

    /// Lets the store know the last audit record, as every commit does. Records after the last commit
    /// (reads, refusals) could otherwise be cut off the file of a stopped broker, and nobody could tell.
    ///
    /// # Errors
    /// The store's.
    pub async fn keep_head(&self) -> Result<(), StoreError> {
        self.store.commit(self.mark()?).await
    }

    /// How far the time of day is from what the broker goes by, in milliseconds, if somebody set it.
    #[must_use]
    pub fn clock_set_by(&self) -> Option<u64> {
        self.clock.set_by()
    }

    /// Writes records that belong together. They share one write.
    async fn record_all(&self, events: Vec<Event>) -> Result<(), Refusal> {
        let mut results = Vec::with_capacity(events.len());
        for event in events {
            results.push(self.audit.append(event));
        }
        // Polled together, so that the log groups them; see `all`.
        all(results)
            .await
            .into_iter()
            .try_for_each(|result| match result {
                Ok(_) => Ok(()),
                Err(error) => {
                    tracing::error!(%error, "the audit log does not take a record");
                    Err(Code::Unavailable.into())
                }
            })
    }

    fn is_dead(&self, workload: &WorkloadKey) -> bool {
        lock(&self.dead).contains(workload)
    }
}

/// Drives futures of one kind together and gives their results in order.
async fn all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    use std::task::Poll;
    let mut waiting: Vec<_> = futures
        .into_iter()
        .map(|future| Some(Box::pin(future)))
        .collect();
    let mut done: Vec<Option<F::Output>> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(move |context| {
        let mut pending = false;
        for (slot, result) in waiting.iter_mut().zip(&mut done) {
            if let Some(future) = slot {
                match future.as_mut().poll(context) {
                    Poll::Ready(output) => {
                        *result = Some(output);
                        *slot = None;
                    }
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            Poll::Pending
        } else {
            Poll::Ready(done.iter_mut().filter_map(Option::take).collect())
        }
    })
    .await
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who a record is about.
fn who(evidence: &Evidence) -> Who {
    Who {
        workload: evidence.workload.clone(),
        name: evidence.display_name(),
        node: evidence.node.clone(),
        assurance: evidence.assurance.as_str().to_owned(),
        lacking: evidence.lacking.iter().map(ToString::to_string).collect(),
    }
}

fn ended(lease: &Lease, reason: &str) -> Event {
    Event::Ended {
        workload: lease.workload.clone(),
        credential: lease.credential.clone(),
        lease: lease.id.clone(),
        reason: reason.to_owned(),
    }
}

/// The client's answer when the store fails; the cause goes to the log.
fn store_failed(error: StoreError) -> Refusal {
    tracing::error!(%error, "the store fails");
    Code::Unavailable.into()
}

/// The client's answer to what cannot happen; the cause goes to the log.
fn inside(error: impl std::fmt::Display) -> Refusal {
    tracing::error!(%error, "a fault of this program");
    Code::Internal.into()
}
