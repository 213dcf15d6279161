//! Each target by itself: how it does, and how much is asked of it at once. One that hangs or is down
//! delays only what it has to do with.

use super::lock;
use crate::engine::EngineError;
use mayfly_wire::ConnectionName;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a target has for one thing.
pub const LIMIT: Duration = Duration::from_secs(10);
/// Accounts that are made at once at one target, those that wait for a connection included.
const MOST_CREATES: usize = 1024;
/// Accounts that are extended or removed at once at one target: enough to keep its connections busy.
const MOST_UPKEEP: usize = 64;
/// What is tried at once at a target that is down, so that it is noticed when it is up again.
const PROBES: usize = 4;

/// Every target that there was something to do at.
#[derive(Default)]
pub struct Lanes {
    lanes: Mutex<BTreeMap<ConnectionName, Arc<Lane>>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// A place is free that was not.
    freed: Notify,
    /// Targets that are up again, and nobody has been told.
    recovered: Mutex<BTreeSet<ConnectionName>>,
}

/// One target.
pub struct Lane {
    name: ConnectionName,
    state: Mutex<State>,
    /// A place is free, or there will be none soon.
    freed: Notify,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct State {
    creates: usize,
    upkeep: usize,
    /// What it said, or did not, the last time; empty while it does well.
    problem: Option<String>,
    /// Somebody waited in vain for it since it last did something.
    slow: bool,
    /// When a place for upkeep was given back last.
    freed_at: Option<Instant>,
    /// How many want that nothing is made there.
    shut: usize,
}

/// What is asked of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// To make an account.
    Create,
    /// To extend or to remove one.
    Upkeep,
}

/// Nothing is made at a target until this is dropped.
pub struct Shut(Arc<Lane>);

/// A place at a target, until it is dropped.
pub struct Pass {
    lane: Arc<Lane>,
    task: Task,
}

impl Lanes {
    /// The one of this name.
    pub fn of(&self, name: &ConnectionName) -> Arc<Lane> {
        let mut lanes = lock(&self.lanes);
        let lane = lanes.entry(name.clone()).or_insert_with(|| {
            Arc::new(Lane {
                name: name.clone(),
                state: Mutex::default(),
                freed: Notify::new(),
                shared: Arc::clone(&self.shared),
            })
        });
        Arc::clone(lane)
    }

    /// Those that no more upkeep can be asked of now.
    pub fn busy(&self) -> Vec<ConnectionName> {
        let lanes = lock(&self.lanes);
        let busy = lanes.values().filter(|lane| {
            let state = lock(&lane.state);
            state.upkeep >= state.most(Task::Upkeep)
        });
        busy.map(|lane| lane.name.clone()).collect()
    }

    /// Those that are up again since this was asked last.
    pub fn recovered(&self) -> BTreeSet<ConnectionName> {
        std::mem::take(&mut lock(&self.shared.recovered))
    }

    /// Completes when there is something to do again at a target that was busy or down.
    pub async fn freed(&self) {
        self.shared.freed.notified().await;
    }
}

impl State {
    fn most(&self, task: Task) -> usize {
        match (&self.problem, task) {
            (Some(_), _) => PROBES,
            (None, Task::Create) => MOST_CREATES,
            (None, Task::Upkeep) => MOST_UPKEEP,
        }
    }

    fn count(&mut self, task: Task) -> &mut usize {
        match task {
            Task::Create => &mut self.creates,
            Task::Upkeep => &mut self.upkeep,
        }
    }
}

impl Lane {
    /// Takes a place, or says why there is none.
    pub fn enter(self: &Arc<Self>, task: Task) -> Result<Pass, String> {
        let mut state = lock(&self.state);
        if task == Task::Create && state.shut > 0 {
            return Err(format!("{} is being changed", self.name));
        }
        let most = state.most(task);
        if *state.count(task) >= most {
            let problem = state.problem.clone();
            return Err(problem.unwrap_or_else(|| format!("{} has too much to do", self.name)));
        }
        *state.count(task) += 1;
        drop(state);
        Ok(Pass {
            lane: Arc::clone(self),
            task,
        })
    }

    /// Has nothing be made there that is not being made already.
    pub fn shut(self: &Arc<Self>) -> Shut {
        lock(&self.state).shut += 1;
        Shut(Arc::clone(self))
    }

    /// Whether something is being made there.
    pub fn is_making(&self) -> bool {
        lock(&self.state).creates > 0
    }

    /// Takes a place for upkeep as soon as there is one, or says why there will be none soon: the target
    /// is down, or nothing gets done there.
    pub async fn enter_soon(self: &Arc<Self>) -> Result<Pass, String> {
        loop {
            let asked = Instant::now();
            let freed = self.freed.notified();
            match self.enter(Task::Upkeep) {
                Err(problem) if lock(&self.state).problem.is_none() => {
                    let late = tokio::time::timeout(LIMIT, freed).await.is_err();
                    let last = lock(&self.state).freed_at;
                    if late && last.is_none_or(|last| last < asked) {
                        return Err(problem);
                    }
                }
                entered => return entered,
            }
        }
    }

    /// Whether it is worth waiting for.
    pub fn is_prompt(&self) -> bool {
        let state = lock(&self.state);
        state.problem.is_none() && !state.slow
    }

    /// Whether it did not do the last thing that it was asked.
    pub fn is_down(&self) -> bool {
        self.problem().is_some()
    }

    /// What it said then, or did not.
    pub fn problem(&self) -> Option<String> {
        lock(&self.state).problem.clone()
    }

    /// Somebody waited for it as long as they could.
    pub fn keeps_waiting(&self) {
        lock(&self.state).slow = true;
    }

    /// It may be well again for a reason of the broker's own: another password.
    pub fn forgive(&self) {
        self.note(&Ok(()));
    }

    fn note(&self, outcome: &Result<(), String>) {
        let mut state = lock(&self.state);
        match outcome {
            Ok(()) => {
                state.slow = false;
                if state.problem.take().is_some() {
                    lock(&self.shared.recovered).insert(self.name.clone());
                    self.shared.freed.notify_one();
                    tracing::info!(connection = %self.name, "a target is up again");
                }
            }
            Err(problem) => {
                if state.problem.is_none() {
                    tracing::warn!(connection = %self.name, %problem, "a target is down");
                }
                state.problem = Some(problem.clone());
                self.freed.notify_waiters();
            }
        }
    }
}

impl Pass {
    /// Has the target do something within [`LIMIT`], and remembers how it did.
    pub async fn call<T>(
        &self,
        work: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        self.call_within(LIMIT, work).await
    }

    async fn call_within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        let done = tokio::time::timeout(limit, work).await;
        let result = done.unwrap_or_else(|_| {
            Err(EngineError::Unavailable(format!(
                "{} does not answer within {} seconds",
                self.lane.name,
                limit.as_secs()
            )))
        });
        match &result {
            Ok(_) => self.lane.note(&Ok(())),
            Err(EngineError::Unavailable(problem)) => self.lane.note(&Err(problem.clone())),
            // It answered: what it said concerns one credential alone.
            Err(_) => {}
        }
        result
    }
}

impl Drop for Shut {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.shut = state.shut.saturating_sub(1);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = lock(&self.lane.state);
        let count = state.count(self.task);
        *count = count.saturating_sub(1);
        if self.task == Task::Upkeep {
            state.freed_at = Some(Instant::now());
            drop(state);
            self.lane.freed.notify_one();
            self.lane.shared.freed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_target_that_is_down_is_only_probed_until_it_is_up() {
        let lanes = Lanes::default();
        let lane = lanes.of(&"shop".parse().unwrap());
        let many: Vec<_> = (0..MOST_UPKEEP)
            .map(|_| lane.enter(Task::Upkeep).unwrap())
            .collect();
        assert!(lane.enter(Task::Upkeep).is_err());
        assert_eq!(lanes.busy().len(), 1);
        let create = lane.enter(Task::Create).unwrap();
        drop(many);
        assert!(lanes.busy().is_empty() && lane.is_prompt());

        let refused = || async { Err::<(), _>(EngineError::Unavailable("no route".into())) };
        assert!(create.call(refused()).await.is_err());
        assert!(!lane.is_prompt());
        let probes: Vec<_> = (0..PROBES)
            .map(|_| lane.enter(Task::Upkeep).unwrap())
            .collect();
        let problem = lane.enter(Task::Upkeep).map(|_| ()).unwrap_err();
        assert_eq!(problem, "no route");
        // A refusal is an answer, and says nothing about the target.
        let unfit = async { Err::<(), _>(EngineError::Unfit("statement 1".into())) };
        assert!(probes[0].call(unfit).await.is_err());
        assert!(!lane.is_prompt() && lanes.recovered().is_empty());

        probes[0].call(async { Ok(()) }).await.unwrap();
        assert!(lane.is_prompt());
        assert_eq!(lanes.recovered().len(), 1);
        assert!(lanes.recovered().is_empty());
        lane.keeps_waiting();
        assert!(!lane.is_prompt());
        drop((probes, create));
        assert!(lane.enter(Task::Create).is_ok());
    }

    #[test]
    fn nothing_is_made_where_it_is_shut() {
        let lane = Lanes::default().of(&"shop".parse().unwrap());
        let begun = lane.enter(Task::Create).unwrap();
        let shut = (lane.shut(), lane.shut());
        assert!(lane.enter(Task::Create).is_err() && lane.is_making());
        assert!(lane.enter(Task::Upkeep).is_ok());
        drop((begun, shut.0));
        assert!(lane.enter(Task::Create).is_err() && !lane.is_making());
        drop(shut.1);
        assert!(lane.enter(Task::Create).is_ok());
    }

    #[tokio::test]
    async fn what_hangs_ends_at_its_limit() {
        let lane = Lanes::default().of(&"shop".parse().unwrap());
        let pass = lane.enter(Task::Create).unwrap();
        let hangs = std::future::pending::<Result<(), EngineError>>();
        let limit = Duration::from_millis(20);
        let error = pass.call_within(limit, hangs).await.unwrap_err();
        assert_eq!(error.code(), mayfly_wire::Code::Unavailable);
        assert!(!lane.is_prompt());
    }
}
