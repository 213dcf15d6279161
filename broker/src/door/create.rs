//! What needs a server is made in a task of its own: planned on disk, made at the target, on record,
//! active on disk. Only then may a bundle hold it. Nobody's turn is held while a target is asked.

use super::activate::Ready;
use super::creations::{Done, Failure, Standing, Ticket};
use super::issue::new_lease_id;
use super::lanes::{Pass, Task};
use super::renew::due;
use super::{Change, Door, backoff, lock, who};
use crate::engine::{Engine, EngineError, IssueRequest};
use crate::store::{Lease, LeaseState, Op, StoreError, Workload};
use crate::trial::Step;
use mayfly_wire::admin::{CredentialConfig, GRACE_SECONDS};
use mayfly_wire::audit::Event;
use mayfly_wire::{Code, ConnectionName, Evidence, LeaseId};
use std::sync::Arc;
use std::time::Duration;

/// When a planned lease that nobody speaks of any more is looked at: longer than making it can take. In
/// milliseconds.
const PLANNED: u64 = 60_000;
/// Longest wait after a failure, in milliseconds.
const LONGEST: u64 = 30_000;
/// How long one waits for the removal of what earlier attempts left, in milliseconds.
const LATER: u64 = 2000;
/// Attempts to make one credential for one workload that may wait for their removal.
const MOST_LEFT: usize = 3;
/// Why a lease ends that nobody was given.
const NEVER_ISSUED: &str = "never issued";

/// How it stands with a credential that a bundle should hold and no lease stands for.
pub enum Making {
    /// It is being made.
    Running {
        /// Tells when that ends.
        done: Done,
        /// Whether its target is one to wait for.
        prompt: bool,
    },
    /// It could not be made. Why is on record, for the operator.
    Failed(Code),
}

/// Why one is not made.
pub(super) enum Stop {
    /// Its workload died, or it was withdrawn. Who gave it up sees to the rest.
    Cancelled,
    Failed(Code, String),
    /// Nothing was tried: something must be done first.
    Later(String),
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        Self::Failed(error.code(), error.to_string())
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(Code::Unavailable, error.to_string())
    }
}

/// What is to be made, for whom, and by which right.
pub struct Order {
    pub evidence: Evidence,
    pub config: CredentialConfig,
    pub policies: Vec<String>,
}

impl Door {
    /// Has a credential made that needs a server, unless that is being done or failed a moment ago.
    pub(super) fn make(
        self: &Arc<Self>,
        connection: &ConnectionName,
        order: impl FnOnce() -> Order,
        workload: &mayfly_wire::WorkloadKey,
        credential: &mayfly_wire::CredentialName,
    ) -> Making {
        let now = self.now_ms();
        let lane = self.lanes.of(connection);
        let running = |done| Making::Running {
            done,
            prompt: lane.is_prompt(),
        };
        let attempts = match self.creations.standing(workload, credential, now) {
            Standing::Running(done) => return running(done),
            Standing::Failed(failure) => return Making::Failed(failure.code),
            Standing::Idle { attempts } => attempts,
        };
        let pass = match lane.enter(Task::Create) {
            Ok(pass) => pass,
            Err(cause) => {
                let failure = failure(connection, Code::Unavailable, cause, attempts, now);
                self.look_later(workload.clone(), failure.until.saturating_sub(now));
                self.creations.fail(workload, credential, failure);
                return Making::Failed(Code::Unavailable);
            }
        };
        let Some((ticket, done)) = self.creations.begin(workload, credential, attempts) else {
            // It began between the two looks.
            return Making::Failed(Code::Unavailable);
        };
        let (door, order, connection) = (Arc::clone(self), order(), connection.clone());
        self.spawn(async move { door.made(ticket, pass, order, connection).await });
        running(done)
    }

    async fn made(
        self: Arc<Self>,
        mut ticket: Ticket,
        pass: Pass,
        order: Order,
        connection: ConnectionName,
    ) {
        let workload = order.evidence.workload.clone();
        match self.run(&mut ticket, &pass, &order).await {
            Ok(lease) => ticket.made(lease),
            Err(Stop::Cancelled) => drop(ticket),
            Err(Stop::Later(cause)) => {
                let failure = Failure {
                    code: Code::Unavailable,
                    cause,
                    attempts: ticket.attempts(),
                    until: self.now_ms() + LATER,
                    connection,
                };
                self.look_later(workload.clone(), LATER);
                ticket.failed(failure);
            }
            Err(Stop::Failed(code, cause)) => {
                let name = &order.config.name;
                tracing::warn!(credential = %name, %cause, "a credential cannot be made");
                let now = self.now_ms();
                let failure = failure(&connection, code, cause.clone(), ticket.attempts(), now);
                if failure.attempts == 1 && lock(&self.refused).add(&order.evidence, 1, now) > 0 {
                    let event = Event::Failed {
                        who: who(&order.evidence),
                        credential: name.clone(),
                        reason: cause,
                    };
                    // That it failed is told even so.
                    let _ = self.record(event).await;
                }
                self.look_later(workload.clone(), failure.until.saturating_sub(now));
                ticket.failed(failure);
            }
        }
        drop(pass);
        self.say(Change::Workload(workload));
    }

    /// Has the sessions of a workload look again after so many milliseconds.
    fn look_later(self: &Arc<Self>, workload: mayfly_wire::WorkloadKey, after: u64) {
        let door = Arc::clone(self);
        self.spawn(async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            door.say(Change::Workload(workload));
        });
    }

    async fn run(
        self: &Arc<Self>,
        ticket: &mut Ticket,
        pass: &Pass,
        order: &Order,
    ) -> Result<LeaseId, Stop> {
        let (evidence, config) = (&order.evidence, &order.config);
        let engine = self.engines.of(config.engine.kind())?;
        if ticket.attempts() > 0 {
            self.few_are_left(order).await?;
        }
        let id = new_lease_id().map_err(|(code, cause)| Stop::Failed(code, cause))?;
        let now = self.now_ms();
        let request = IssueRequest {
            credential: config,
            evidence,
            lease: &id,
            now,
        };
        let issued = ticket.call(pass.call(engine.issue(request))).await;
        let issued = issued.ok_or(Stop::Cancelled)??;
        let mut lease = Lease {
            id,
            workload: evidence.workload.clone(),
            credential: config.name.clone(),
            engine: config.engine.kind(),
            node: evidence.node.clone(),
            name: evidence.display_name(),
            state: LeaseState::Active,
            issued_at: now,
            expires_at: issued.expires_at,
            due_at: now + PLANNED,
            reason: String::new(),
            attempts: 0,
            problem: String::new(),
            source: issued.source,
        };
        // Nothing of the values stays while the target works.
        drop(issued.fields);
        lease.state = lease.first_state();
        if lease.state == LeaseState::Planned {
            let planned = vec![Op::LeaseInsert(lease.clone()), self.known_as(evidence)];
            self.store.commit(planned).await?;
            self.fault.reached(Step::Planned);
        }
        // From here on an apply that changes the settings sees the plan. Before, it could not.
        if !self.is_configured(config) {
            self.abandon(&lease).await;
            return Err(Stop::Later(format!(
                "the settings of {} changed meanwhile",
                config.name
            )));
        }
        let done = self.finish(ticket, pass, order, engine, &lease).await;
        if done.is_err() && lease.state == LeaseState::Planned {
            self.abandon(&lease).await;
        }
        done.map(|()| lease.id)
    }

    /// Each attempt that a target cut short may have left an account there, which must be removed first:
    /// one that hangs for hours must not be left with hundreds.
    async fn few_are_left(&self, order: &Order) -> Result<(), Stop> {
        let leases = self
            .store
            .leases_of(order.evidence.workload.clone())
            .await?;
        let left = leases.iter().filter(|lease| {
            lease.credential == order.config.name
                && lease.state == LeaseState::Revoking
                && lease.reason == NEVER_ISSUED
        });
        match left.count() {
            left if left < MOST_LEFT => Ok(()),
            left => Err(Stop::Later(format!(
                "{left} attempts before this one are not cleaned up at the target yet"
            ))),
        }
    }

    /// Whether a credential has the same engine and settings still.
    fn is_configured(&self, config: &CredentialConfig) -> bool {
        let applied = self.applied();
        let now = applied.credential(&config.name);
        now.is_some_and(|now| now.engine == config.engine)
    }

    /// From planned to ready, and then active.
    async fn finish(
        self: &Arc<Self>,
        ticket: &mut Ticket,
        pass: &Pass,
        order: &Order,
        engine: &dyn Engine,
        lease: &Lease,
    ) -> Result<(), Stop> {
        let config = &order.config;
        let unwanted = |ticket: &Ticket| ticket.is_cancelled() || self.is_dead(&lease.workload);
        if unwanted(ticket) {
            return Err(Stop::Cancelled);
        }
        if lease.source.has_target() {
            let made = ticket.call(pass.call(engine.create(config, lease))).await;
            made.ok_or(Stop::Cancelled)??;
            self.fault.reached(Step::Made);
        }
        let issued = Event::Issued {
            who: who(&order.evidence),
            credential: config.name.clone(),
            lease: lease.id.clone(),
            expires_at: lease.expires_at,
            policies: order.policies.clone(),
            again: false,
        };
        let active = Lease {
            state: LeaseState::Active,
            due_at: due(lease.issued_at, lease.expires_at),
            ..lease.clone()
        };
        let ops = if lease.state == LeaseState::Planned {
            vec![Op::LeaseUpdate(active.clone())]
        } else {
            vec![
                Op::LeaseInsert(active.clone()),
                self.known_as(&order.evidence),
            ]
        };
        let ready = Ready {
            active,
            issued,
            grace: config
                .grace_seconds
                .unwrap_or(GRACE_SECONDS)
                .saturating_mul(1000),
            ops,
            cancelled: ticket.cancelled(),
        };
        self.activate(ready).await
    }

    fn known_as(&self, evidence: &Evidence) -> Op {
        Op::WorkloadPut(Box::new(Workload {
            evidence: evidence.clone(),
            seen_at: self.now_ms(),
        }))
    }

    /// A planned lease that nothing comes of: it must end, unless somebody has seen to that already.
    pub(super) async fn abandon(&self, lease: &Lease) {
        let _turn = self.locks.turn(&lease.workload).await;
        let reason = if self.is_dead(&lease.workload) {
            "died"
        } else {
            NEVER_ISSUED
        };
        let end = async {
            let found = self.store.lease(lease.id.clone()).await?;
            // One that became active meanwhile is somebody's.
            let planned = found.filter(|found| found.state == LeaseState::Planned);
            let end = planned.map(|planned| planned.must_end(reason, self.now_ms()));
            let mut ops: Vec<Op> = end.map(Op::LeaseUpdate).into_iter().collect();
            ops.push(Op::WorkloadRemove(lease.workload.clone()));
            self.store.commit(ops).await
        };
        match end.await {
            Ok(()) => self.hint(0),
            // It is due by itself later.
            Err(error) => tracing::error!(lease = %lease.id, %error, "a plan stays for now"),
        }
    }
}

fn failure(
    connection: &ConnectionName,
    code: Code,
    cause: String,
    attempts: u32,
    now: u64,
) -> Failure {
    let attempts = attempts.saturating_add(1);
    Failure {
        code,
        cause,
        attempts,
        until: now + backoff::after(u64::from(attempts), LONGEST),
        connection: connection.clone(),
    }
}
