//! One session: its bundles down, its acknowledgements up.

use super::{Hub, Registration};
use crate::door::{Answer, Ask, Held, Served};
use mayfly_node::upstream::Session;
use mayfly_wire::audit::Event;
use mayfly_wire::link::{SessionRequest, SessionUpdate};
use mayfly_wire::session::{PROTOCOL, ServerMessage};
use mayfly_wire::{Code, CredentialName, Evidence, Refusal};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::{Semaphore, mpsc};

/// Messages that a session may leave unread before it is dropped.
const UNREAD: usize = 8;
/// Acknowledgements that may wait.
const UP: usize = 8;

struct State {
    hub: Arc<Hub>,
    request: SessionRequest,
    /// Whether the evidence in it came since the last bundle.
    fresh: bool,
    down: mpsc::Sender<ServerMessage>,
    generation: u64,
    held: BTreeMap<CredentialName, Held>,
    missed: BTreeMap<CredentialName, Code>,
    /// When its bundle was made, or found to be as good as new ([`Served::epoch`]).
    epoch: u64,
    registration: Registration,
}

/// Opens a session and hands over its first bundle.
pub async fn open(hub: &Arc<Hub>, request: SessionRequest) -> Result<Session, Refusal> {
    let (down, receiver) = mpsc::channel(UNREAD);
    let (up, from_client) = mpsc::channel(UP);
    let session = Session { up, down: receiver };
    let workload = request.evidence.workload.clone();
    let hello = ServerMessage::Hello {
        protocol: PROTOCOL,
        workload: workload.clone(),
    };
    let registration = hub.register(&workload)?;
    let mut state = State {
        hub: Arc::clone(hub),
        request,
        fresh: true,
        down,
        generation: 0,
        held: BTreeMap::new(),
        missed: BTreeMap::new(),
        epoch: 0,
        registration,
    };
    let changes = hub.changes.load(Ordering::SeqCst);
    let served = state.next(None).await?;
    let once = state.request.once;
    let sent = state.down.try_send(hello).is_ok() && state.send(served);
    if !sent {
        return Err(Code::Internal.into());
    }
    if !once {
        if hub.changes.load(Ordering::SeqCst) != changes {
            state.registration.entry.wake.notify_one();
        }
        tokio::spawn(Box::pin(run(state, from_client)));
    }
    Ok(session)
}

async fn run(mut state: State, mut up: mpsc::Receiver<SessionUpdate>) {
    let entry = Arc::clone(&state.registration.entry);
    loop {
        tokio::select! {
            () = entry.wake.notified() => {
                if entry.closed.load(Ordering::SeqCst) || !state.refresh().await {
                    return;
                }
            }
            message = up.recv() => match message {
                Some(SessionUpdate::Ack { generation }) => {
                    if !state.acknowledge(generation).await {
                        return;
                    }
                }
                Some(SessionUpdate::Changed(evidence)) => {
                    if !state.changed(*evidence).await {
                        return;
                    }
                }
                None => return,
            },
        }
    }
}

impl State {
    /// Makes the next bundle. What it waits for, it waits for without a turn of the hub's.
    async fn next(&mut self, turns: Option<&Semaphore>) -> Result<Served, Refusal> {
        let mut can_wait = true;
        loop {
            let turn = match turns {
                Some(turns) => Some(turns.acquire().await.map_err(|_| Code::Unavailable)?),
                None => None,
            };
            let ask = Ask {
                evidence: &self.request.evidence,
                hello: &self.request.hello,
                fresh: self.fresh,
                generation: self.generation + 1,
                held: &self.held,
                missed: &self.missed,
                can_wait,
                csr: self.request.csr.as_deref().filter(|_| self.request.once),
                once: self.request.once,
            };
            match self.hub.door.bundle(ask).await? {
                Answer::Served(served) => {
                    self.fresh = false;
                    return Ok(*served);
                }
                Answer::Wait(waiting) => {
                    drop(turn);
                    waiting.wait(self.request.once).await;
                    can_wait = false;
                }
            }
        }
    }

    /// Hands a bundle over, after what it withdraws. Says no when the session does not drain.
    fn send(&mut self, served: Served) -> bool {
        let Served {
            bundle,
            withdrawn,
            held,
            missed,
            granted,
            epoch,
        } = served;
        self.epoch = epoch;
        self.generation = bundle.generation;
        self.held = held;
        self.missed = missed;
        self.registration.concern(granted);
        self.withdraw(withdrawn) && self.down.try_send(ServerMessage::Bundle(bundle)).is_ok()
    }

    fn withdraw(&self, names: Vec<CredentialName>) -> bool {
        names.is_empty()
            || self
                .down
                .try_send(ServerMessage::Withdraw { names })
                .is_ok()
    }

    /// The workload, or the process that asks, is not what it was: decided anew. Says whether the session
    /// goes on.
    async fn changed(&mut self, evidence: Evidence) -> bool {
        let known = &self.request.evidence;
        if evidence.workload != known.workload || evidence.node != known.node {
            let door = &self.hub.door;
            let detail = "new evidence in a session, of another workload or node";
            if let Err(refusal) = door
                .another_node(&known.node, &known.workload, detail)
                .await
            {
                tracing::error!(%refusal, "a refusal is not on record");
            }
            return false;
        }
        self.request.evidence = evidence;
        self.fresh = true;
        self.refresh().await
    }

    /// Something changed: a new bundle. Says whether the session goes on.
    async fn refresh(&mut self) -> bool {
        let hub = Arc::clone(&self.hub);
        match self.next(Some(&hub.turns)).await {
            Ok(served) if served.held == self.held && served.missed == self.missed => {
                self.registration.concern(served.granted);
                self.epoch = served.epoch;
                let entry = &self.registration.entry;
                if entry.acknowledged.load(Ordering::SeqCst) == self.generation {
                    self.published().await;
                }
                true
            }
            Ok(served) => {
                let sent = self.send(served);
                if !sent {
                    let workload = self.registration.workload.id();
                    tracing::warn!(workload, "a session does not drain and is dropped");
                }
                sent
            }
            Err(refusal) if refusal.code.is_transient() => {
                // What it holds stays good until it expires; the sidecar comes back for more.
                let _ = self.down.try_send(ServerMessage::Refused(refusal));
                false
            }
            Err(refusal) => {
                let names = self.held.keys().cloned().collect();
                let _ = self.withdraw(names);
                let _ = self.down.try_send(ServerMessage::Refused(refusal));
                false
            }
        }
    }

    /// The sidecar published a bundle: on record. Says whether the session goes on.
    async fn acknowledge(&self, generation: u64) -> bool {
        let last = &self.registration.entry.acknowledged;
        if generation > self.generation || generation <= last.load(Ordering::SeqCst) {
            return true;
        }
        last.store(generation, Ordering::SeqCst);
        self.hub.door.published(&self.registration.workload);
        if generation == self.generation {
            self.published().await;
        }
        let event = Event::Acknowledged {
            workload: self.registration.workload.clone(),
            generation,
        };
        self.hub.door.record(event).await.is_ok()
    }

    /// What the last bundle holds is in use, and what it does not hold is not.
    async fn published(&self) {
        let Registration {
            entry, workload, ..
        } = &self.registration;
        entry.epoch.store(self.epoch, Ordering::SeqCst);
        let door = &self.hub.door;
        if door.has_retiring(workload) {
            door.out_of_use(workload, self.hub.epoch(workload)).await;
        }
    }
}
