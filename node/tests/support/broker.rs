//! A broker that grants everyone `orders-db`, and says what a test tells it to.

use mayfly_node::upstream::{Answer, Session, Upstream};
use mayfly_wire::link::{
    Heartbeat, NodeEvent, NodeRefusal, SessionRequest, SessionUpdate, Watch, Watched,
};
use mayfly_wire::sealed::Sealer;
use mayfly_wire::session::{
    Bundle, Granted, Layout, PROTOCOL, SealedCredential, SealedField, ServerMessage,
};
use mayfly_wire::{Code, Evidence, LeaseId, Secret, WorkloadKey};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::{mpsc, watch};

pub struct Broker {
    /// What the credential's one field holds. Changing it pushes a new bundle.
    pub value: watch::Sender<String>,
    pub sessions: Mutex<Vec<SessionRequest>>,
    /// How many sessions are open.
    pub open: watch::Sender<usize>,
    pub acknowledged: watch::Sender<u64>,
    /// Evidence that was told anew.
    pub changed: Arc<Mutex<Vec<Evidence>>>,
    pub events: Mutex<Vec<(Instant, NodeEvent)>>,
    /// How many events are refused before one is taken.
    pub fail_events: Mutex<usize>,
    pub heartbeats: Mutex<Vec<Heartbeat>>,
    /// What the node is told to watch.
    pub to_watch: Mutex<Vec<Watched>>,
    pub refuse: Mutex<Option<Code>>,
    /// While it is true, who asks for a session waits.
    pub hold: watch::Sender<bool>,
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            value: watch::Sender::new("first".into()),
            sessions: Mutex::default(),
            open: watch::Sender::new(0),
            acknowledged: watch::Sender::new(0),
            changed: Arc::default(),
            events: Mutex::default(),
            fail_events: Mutex::default(),
            heartbeats: Mutex::default(),
            to_watch: Mutex::default(),
            refuse: Mutex::default(),
            hold: watch::Sender::new(false),
        }
    }
}

impl Broker {
    pub fn deaths(&self) -> Vec<(Instant, WorkloadKey)> {
        let events = self.events.lock().unwrap();
        let deaths = events.iter().filter_map(|(at, event)| match event {
            NodeEvent::Died { workload } => Some((*at, workload.clone())),
            NodeEvent::Refused(_) | NodeEvent::PublishFailed(_) | NodeEvent::Overdue(_) => None,
        });
        deaths.collect()
    }

    pub fn refusals(&self, reason: &str) -> Vec<NodeRefusal> {
        let events = self.events.lock().unwrap();
        let refusals = events.iter().filter_map(|(_, event)| match event {
            NodeEvent::Refused(refusal) if refusal.reason == reason => Some((**refusal).clone()),
            _ => None,
        });
        refusals.collect()
    }

    /// The evidence of the newest session.
    pub fn evidence(&self) -> Evidence {
        self.sessions
            .lock()
            .unwrap()
            .last()
            .unwrap()
            .evidence
            .clone()
    }
}

fn bundle(request: &SessionRequest, generation: u64, value: &str) -> Bundle {
    let key = &request.hello.public_key;
    let (mut sealer, encapsulated) =
        Sealer::new(key, &request.evidence.workload, generation).unwrap();
    let lease = LeaseId::from_random([7; 16]);
    let name = "value".parse().unwrap();
    let value = Secret::from(value.to_owned());
    let sealed = sealer.seal(&lease, &name, &value).unwrap();
    Bundle {
        generation,
        now: 1,
        encapsulated,
        credentials: vec![SealedCredential {
            name: "orders-db".parse().unwrap(),
            lease,
            expires_at: 1,
            renews_at: 0,
            layout: Layout::Value,
            fields: vec![SealedField { name, sealed }],
        }],
        missing: Vec::new(),
    }
}

/// Counts a session as open.
struct Opened(watch::Sender<usize>);

impl Opened {
    fn new(open: &watch::Sender<usize>) -> Self {
        open.send_modify(|open| *open += 1);
        Self(open.clone())
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

impl Upstream for Broker {
    fn session(&self, request: SessionRequest) -> Answer<'_, Session> {
        Box::pin(async move {
            if let Some(code) = *self.refuse.lock().unwrap() {
                return Err(code.into());
            }
            self.sessions.lock().unwrap().push(request.clone());
            let mut hold = self.hold.subscribe();
            let _ = hold.wait_for(|hold| !hold).await;
            let (up, mut messages) = mpsc::channel(4);
            let (sender, down) = mpsc::channel(4);
            let mut value = self.value.subscribe();
            let (opened, acknowledged) = (Opened::new(&self.open), self.acknowledged.clone());
            let changed = Arc::clone(&self.changed);
            tokio::spawn(async move {
                let _opened = opened;
                let workload = request.evidence.workload.clone();
                let protocol = PROTOCOL;
                let hello = ServerMessage::Hello { protocol, workload };
                sender.send(hello).await.ok()?;
                let mut generation = 0;
                loop {
                    generation += 1;
                    let bundle = bundle(&request, generation, &value.borrow_and_update().clone());
                    sender.send(ServerMessage::Bundle(bundle)).await.ok()?;
                    loop {
                        tokio::select! {
                            () = sender.closed() => return None::<()>,
                            message = messages.recv() => match message? {
                                SessionUpdate::Ack { generation } => {
                                    acknowledged.send_replace(generation);
                                }
                                SessionUpdate::Changed(evidence) => {
                                    changed.lock().unwrap().push(*evidence);
                                }
                            },
                            changed = value.changed() => break changed.ok()?,
                        }
                    }
                }
            });
            Ok(Session { up, down })
        })
    }

    fn granted(&self, _: Evidence) -> Answer<'_, Granted> {
        let credentials = vec!["orders-db".parse().unwrap()];
        Box::pin(async { Ok(Granted { credentials }) })
    }

    fn heartbeat(&self, heartbeat: Heartbeat) -> Answer<'_, Watch> {
        self.heartbeats.lock().unwrap().push(heartbeat);
        let workloads = self.to_watch.lock().unwrap().clone();
        Box::pin(async { Ok(Watch { workloads }) })
    }

    fn event(&self, event: NodeEvent) -> Answer<'_, ()> {
        let mut failures = self.fail_events.lock().unwrap();
        let answer = if *failures > 0 {
            *failures -= 1;
            Err(Code::Unavailable.into())
        } else {
            self.events.lock().unwrap().push((Instant::now(), event));
            Ok(())
        };
        Box::pin(async { answer })
    }
}
