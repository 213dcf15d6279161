//! Open sessions: which workload each belongs to, what concerns it, and how it is told that something
//! changed. What a session then holds is for the door to say.

mod session;

use crate::door::{Change, Door};
use crate::engine::kv::KvChange;
use crate::run::stopped;
use mayfly_node::upstream::Session;
use mayfly_wire::admin::EngineConfig;
use mayfly_wire::audit::Event;
use mayfly_wire::link::SessionRequest;
use mayfly_wire::session::PROTOCOL;
use mayfly_wire::{Code, CredentialName, Refusal, WorkloadKey};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, Semaphore, watch};

/// Most sessions of one workload.
const MOST_SESSIONS: usize = 64;
/// Bundles made anew at once, so that a new configuration does not starve new sessions.
const AT_ONCE: usize = 32;

/// The sessions.
pub struct Hub {
    door: Arc<Door>,
    state: Mutex<State>,
    next: AtomicU64,
    /// Counts what changed: a session that sees it move between its bundle and its registration looks
    /// again.
    changes: AtomicU64,
    turns: Semaphore,
}

#[derive(Default)]
struct State {
    sessions: HashMap<u64, Arc<Entry>>,
    by_workload: HashMap<WorkloadKey, HashSet<u64>>,
    by_credential: HashMap<CredentialName, HashSet<u64>>,
}

/// One session, as the hub sees it.
struct Entry {
    wake: Notify,
    closed: AtomicBool,
    /// The generation that was acknowledged last; 0 for none.
    acknowledged: AtomicU64,
    /// When what it published last was made: see [`crate::door::Served::epoch`].
    epoch: AtomicU64,
}

impl Entry {
    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }
}

impl Hub {
    /// No sessions yet.
    #[must_use]
    pub fn new(door: Arc<Door>) -> Arc<Self> {
        Arc::new(Self {
            door,
            state: Mutex::default(),
            next: AtomicU64::new(1),
            changes: AtomicU64::new(0),
            turns: Semaphore::new(AT_ONCE),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session. Its first bundle is in it already.
    ///
    /// # Errors
    /// What [`Door::bundle`] says; [`Code::TooMany`] beyond the sessions of one workload.
    pub async fn open(self: &Arc<Self>, request: SessionRequest) -> Result<Session, Refusal> {
        if request.hello.protocol != PROTOCOL {
            return Err(Code::BadRequest.into());
        }
        // In a task of its own: a caller that gives up halfway (its peer died) must not leave a lease on
        // its way to the disk that nobody's turn covers, because the report of that death would miss it.
        let hub = Arc::clone(self);
        let opening = tokio::spawn(Box::pin(async move { session::open(&hub, request).await }));
        opening.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a session was not opened");
            Err(Code::Internal.into())
        })
    }

    fn register(self: &Arc<Self>, workload: &WorkloadKey) -> Result<Registration, Refusal> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
        });
        let mut state = self.state();
        let ids = state.by_workload.entry(workload.clone()).or_default();
        if ids.len() >= MOST_SESSIONS {
            return Err(Code::TooMany.into());
        }
        ids.insert(id);
        state.sessions.insert(id, Arc::clone(&entry));
        Ok(Registration {
            hub: Arc::clone(self),
            id,
            workload: workload.clone(),
            entry,
            concerns: BTreeSet::new(),
        })
    }

    /// Whether a workload has a session.
    #[must_use]
    pub fn has(&self, workload: &WorkloadKey) -> bool {
        self.state().by_workload.contains_key(workload)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.state().sessions.len() as u64
    }

    /// The sessions of a workload, and the generation that one of them acknowledged last.
    #[must_use]
    pub fn of(&self, workload: &WorkloadKey) -> (u64, Option<u64>) {
        let state = self.state();
        let Some(ids) = state.by_workload.get(workload) else {
            return (0, None);
        };
        let latest = ids.iter().max().and_then(|id| state.sessions.get(id));
        let acknowledged = latest.map_or(0, |entry| entry.acknowledged.load(Ordering::SeqCst));
        (
            ids.len() as u64,
            Some(acknowledged).filter(|&generation| generation > 0),
        )
    }

    /// The epoch that every session of a workload has reached with what it published.
    fn epoch(&self, workload: &WorkloadKey) -> u64 {
        let state = self.state();
        let ids = state.by_workload.get(workload).into_iter().flatten();
        let entries = ids.filter_map(|id| state.sessions.get(id));
        let epochs = entries.map(|entry| entry.epoch.load(Ordering::SeqCst));
        epochs.min().unwrap_or(0)
    }

    /// Has the sessions of a workload look again.
    pub fn wake(&self, workload: &WorkloadKey) {
        let state = self.state();
        let ids = state.by_workload.get(workload).into_iter().flatten();
        ids.filter_map(|id| state.sessions.get(id))
            .for_each(|entry| entry.wake.notify_one());
    }

    /// Closes the sessions of a workload that died.
    pub fn close(&self, workload: &WorkloadKey) {
        let state = self.state();
        let ids = state.by_workload.get(workload).into_iter().flatten();
        ids.filter_map(|id| state.sessions.get(id))
            .for_each(|entry| entry.close());
    }

    /// Closes all: the broker goes down. Leases stay.
    pub fn close_all(&self) {
        self.state()
            .sessions
            .values()
            .for_each(|entry| entry.close());
    }

    /// Has every session look again: the configuration changed.
    pub fn wake_all(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.state()
            .sessions
            .values()
            .for_each(|entry| entry.wake.notify_one());
    }

    /// Has the sessions that one of these credentials concerns look again, and says how many they are.
    fn wake_concerned(&self, names: &[CredentialName]) -> u64 {
        self.changes.fetch_add(1, Ordering::SeqCst);
        let state = self.state();
        let ids: HashSet<u64> = names
            .iter()
            .filter_map(|name| state.by_credential.get(name))
            .flatten()
            .copied()
            .collect();
        let entries = ids.iter().filter_map(|id| state.sessions.get(id));
        entries.map(|entry| entry.wake.notify_one()).count() as u64
    }

    /// Has the sessions of workloads look again whose leases others changed, until `stop`.
    pub async fn follow_changes(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut changes = self.door.changed();
        loop {
            let change = tokio::select! {
                () = stopped(&mut stop) => return,
                change = changes.recv() => change,
            };
            match change {
                Ok(Change::Workload(workload)) => self.wake(&workload),
                Ok(Change::Credential(name)) => {
                    self.wake_concerned(&[name]);
                }
                Err(RecvError::Lagged(_)) => self.wake_all(),
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Pushes each changed value to the sessions that hold it, until `stop`.
    pub async fn push_changes(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut changes = self.door.changes();
        loop {
            let change = tokio::select! {
                () = stopped(&mut stop) => return,
                change = changes.recv() => change,
            };
            match change {
                Ok(change) => self.push(change).await,
                Err(RecvError::Lagged(_)) => self.wake_all(),
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn push(&self, change: KvChange) {
        let applied = self.door.applied();
        let names: Vec<CredentialName> = (applied.credentials().values())
            .filter(|config| {
                matches!(&config.engine, EngineConfig::Kv { path } if *path == change.path)
            })
            .map(|config| config.name.clone())
            .collect();
        let sessions = self.wake_concerned(&names);
        // The record of the push itself; each session's own record stands before its bundle leaves.
        let event = Event::Pushed {
            path: change.path,
            version: change.version,
            sessions,
        };
        if let Err(refusal) = self.door.record(event).await {
            tracing::error!(%refusal, "a push is not on record");
        }
    }
}

/// A session's place in the hub, until it is dropped.
struct Registration {
    hub: Arc<Hub>,
    id: u64,
    workload: WorkloadKey,
    entry: Arc<Entry>,
    concerns: BTreeSet<CredentialName>,
}

impl Registration {
    /// Changes of these concern the session from now on.
    fn concern(&mut self, names: BTreeSet<CredentialName>) {
        if names == self.concerns {
            return;
        }
        let mut state = self.hub.state();
        forget(&mut state, self.id, &self.concerns);
        for name in &names {
            state
                .by_credential
                .entry(name.clone())
                .or_default()
                .insert(self.id);
        }
        drop(state);
        self.concerns = names;
    }
}

fn forget(state: &mut State, id: u64, names: &BTreeSet<CredentialName>) {
    for name in names {
        if let Some(ids) = state.by_credential.get_mut(name) {
            ids.remove(&id);
            if ids.is_empty() {
                state.by_credential.remove(name);
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut state = self.hub.state();
        forget(&mut state, self.id, &self.concerns);
        state.sessions.remove(&self.id);
        if let Some(ids) = state.by_workload.get_mut(&self.workload) {
            ids.remove(&self.id);
            if ids.is_empty() {
                state.by_workload.remove(&self.workload);
            }
        }
    }
}
