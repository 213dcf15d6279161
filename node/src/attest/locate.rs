//! Finds the container of a process: by cgroup and engine, or by pid namespace alone.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mayfly_kernel::ns::Namespace;

use super::bind::{Expected, Met, PATIENCE, bind, meet};
use super::container::Container;
use super::engine::{Engine, EngineError, id_in_name};
use super::error::{AttestError, ENGINE_UNAVAILABLE, NOT_A_CONTAINER};
use super::host::Host;
use super::init::init_of;
use super::line::{CgroupId, Line};
use super::turns::Turns;

/// How long engines are not asked again about a cgroup that none of them knew.
const MISS: Duration = Duration::from_secs(2);
/// How long one look through all containers may take. The next one goes on where it ended.
const LOOK: Duration = Duration::from_secs(2);
/// Most cgroups that are remembered as unknown.
const MOST_MISSES: usize = 4096;
/// Most names on one line that engines are asked about.
const MOST_HINTS: usize = 4;

/// The containers that are known, each as long as it lives.
#[derive(Debug)]
pub(crate) struct Registry {
    engines: Vec<Engine>,
    state: Mutex<Known>,
    /// One question at a time about each cgroup.
    asking: Turns<CgroupId>,
    /// Held while all engines' containers are looked through, so that who comes then waits for what
    /// is found, and does not pass for a container that no engine knows.
    look: tokio::sync::Mutex<Look>,
}

/// The last look through all engines' containers.
#[derive(Debug, Default)]
struct Look {
    /// When it began, and what kept it from seeing all.
    last: Option<(Instant, Result<(), String>)>,
    /// The id that the next one begins with.
    next: Option<String>,
}

#[derive(Debug, Default)]
struct Known {
    /// Those that an engine knows, by cgroup.
    inspected: HashMap<CgroupId, Arc<Container>>,
    /// Those that only the kernel knows, by pid namespace.
    bare: HashMap<u64, Arc<Container>>,
    /// Cgroups that no engine knew, and when.
    missed: HashMap<CgroupId, Instant>,
}

impl Registry {
    pub(crate) fn new(engines: Vec<Engine>) -> Self {
        Self {
            engines,
            state: Mutex::default(),
            asking: Turns::default(),
            look: tokio::sync::Mutex::default(),
        }
    }

    /// The container that an engine made and a process is in, by its line of cgroups: the outermost
    /// one that is known. Names of cgroups only hint at whom to ask about.
    ///
    /// # Errors
    ///
    /// `engine_unavailable` if an engine is there and does not answer, or has more containers than
    /// could be looked through: then nobody knows whether the process is in one of them, and it must
    /// not pass for one that is in none.
    pub(crate) async fn inspected(
        &self,
        host: &Host,
        line: &Line,
    ) -> Result<Option<Arc<Container>>, AttestError> {
        let asked = Instant::now();
        let mut hints = 0;
        let fresh_miss = self.missed(line.own());
        for (ancestor, id) in line.ancestors.iter().zip(line.ids()) {
            if let Some(container) = self.known_in(id) {
                return Ok(Some(container));
            }
            let Some(hint) = id_in_name(&ancestor.name).filter(|_| !fresh_miss) else {
                continue;
            };
            hints += 1;
            if hints > MOST_HINTS {
                break;
            }
            let _turn = self.asking.take(id).await;
            if let Some(container) = self.known_in(id) {
                return Ok(Some(container));
            }
            if let Some(container) = self.ask(host, hint, id).await? {
                return Ok(Some(container));
            }
        }
        if fresh_miss || self.engines.is_empty() {
            return Ok(None);
        }
        let looked = self.look(host, asked).await;
        let found = self.known(line);
        if found.is_none() {
            looked?;
            let mut known = self.state();
            if known.missed.len() >= MOST_MISSES {
                known.missed.clear();
            }
            known.missed.insert(line.own(), Instant::now());
        }
        Ok(found)
    }

    /// The container that is made of bare namespaces: where the first process of this pid namespace
    /// is, as first seen.
    pub(crate) fn bare(
        &self,
        host: &Host,
        namespace: &Namespace,
        id: u64,
    ) -> Result<Arc<Container>, AttestError> {
        if let Some(container) = live(&mut self.state().bare, &id) {
            return Ok(container);
        }
        let init = init_of(host, namespace)?;
        let line = host.cgroups.line(host, &init)?.ok_or_else(|| {
            AttestError::new(
                NOT_A_CONTAINER,
                "the first process of its pid namespace is in the root cgroup: give each container \
                 a cgroup of its own",
            )
        })?;
        let container = Container::first_seen(host, init, line.own(), line.path(), None)?;
        if container.pid_namespace_id() != Some(id) {
            return Err(AttestError::new(
                super::error::AMBIGUOUS,
                "its pid namespace's first process is not in that pid namespace",
            ));
        }
        Ok(keep(&mut self.state().bare, id, Arc::new(container)))
    }

    /// The outermost container on this line that an engine has been asked about before.
    pub(crate) fn known(&self, line: &Line) -> Option<Arc<Container>> {
        line.ids().find_map(|id| self.known_in(id))
    }

    /// Lets go of a container that is dead.
    pub(crate) fn forget(&self, container: &Container) {
        let mut known = self.state();
        let dead =
            |_: &CgroupId, kept: &mut Arc<Container>| !std::ptr::eq(&raw const **kept, container);
        known.inspected.retain(dead);
        known
            .bare
            .retain(|_, kept| !std::ptr::eq(&raw const **kept, container));
    }

    /// Lets go of those that are dead.
    pub(crate) fn let_go_of_the_dead(&self) {
        let dead: Vec<_> = {
            let mut known = self.state();
            let Known {
                inspected, bare, ..
            } = &mut *known;
            let inspected = inspected.extract_if(|_, kept| !kept.alive());
            let bare = bare.extract_if(|_, kept| !kept.alive());
            let inspected = inspected.map(|(_, kept)| kept);
            inspected.chain(bare.map(|(_, kept)| kept)).collect()
        };
        // Only now: the last handle on a mount namespace takes its mounts apart.
        drop(dead);
    }

    async fn ask(
        &self,
        host: &Host,
        hint: &str,
        cgroup: CgroupId,
    ) -> Result<Option<Arc<Container>>, AttestError> {
        let mut outcome = Ok(());
        for engine in &self.engines {
            match bind(host, engine, hint, Expected::Within(cgroup)).await {
                Ok(Some(container)) => {
                    return Ok(Some(keep(&mut self.state().inspected, cgroup, container)));
                }
                Ok(None) => {}
                Err(error) => outcome = outcome.and(complain(engine, &error)),
            }
        }
        outcome.map(|()| None).map_err(unavailable)
    }

    /// Looks through all running containers, for those whose cgroup's name has no id in it. A look
    /// counts for whoever asked before it began, and so was in a container that was there.
    async fn look(&self, host: &Host, asked: Instant) -> Result<(), AttestError> {
        let mut look = self.look.lock().await;
        if let Some((begun, outcome)) = &look.last
            && *begun >= asked
        {
            return outcome.clone().map_err(unavailable);
        }
        let begun = Instant::now();
        let mut outcome = Ok(());
        for engine in &self.engines {
            let seen = self.look_through(host, engine, begun + LOOK, &mut look.next);
            outcome = seen.await.and(outcome);
        }
        look.last = Some((begun, outcome.clone()));
        outcome.map_err(unavailable)
    }

    async fn look_through(
        &self,
        host: &Host,
        engine: &Engine,
        deadline: Instant,
        next: &mut Option<String>,
    ) -> Result<(), String> {
        let mut ids = match engine.running().await {
            Ok(ids) => ids,
            Err(error) => return complain(engine, &error),
        };
        let bound = self.bound();
        ids.retain(|id| !bound.contains(id));
        if let Some(first) = next
            .as_ref()
            .and_then(|next| ids.iter().position(|id| id == next))
        {
            ids.rotate_left(first);
            *next = None;
        }
        let mut outcome = Ok(());
        // The clock may have been set, and then all seem so: they wait together.
        let mut younger = Vec::new();
        for id in ids {
            if Instant::now() > deadline {
                let socket = engine.socket().display();
                *next = Some(id);
                outcome = outcome.and(Err(format!(
                    "the container engine at {socket} has more containers than could be looked \
                     through at once; the next look goes on from there"
                )));
                break;
            }
            let met = match meet(host, engine, &id, Expected::Any).await {
                Ok(Some(met)) if met.younger => {
                    younger.push(met);
                    continue;
                }
                Ok(Some(met)) => self.confirm(engine, met).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = met {
                outcome = outcome.and(complain(engine, &error));
                if error.is_of_all() {
                    break;
                }
            }
        }
        if !younger.is_empty() {
            tokio::time::sleep(PATIENCE).await;
        }
        for met in younger {
            if let Err(error) = self.confirm(engine, met).await {
                outcome = outcome.and(complain(engine, &error));
            }
        }
        outcome
    }

    async fn confirm(&self, engine: &Engine, met: Met) -> Result<(), EngineError> {
        if let Some(container) = met.confirm(engine).await? {
            let cgroup = container.cgroup;
            keep(&mut self.state().inspected, cgroup, container);
        }
        Ok(())
    }

    /// The engines' ids of the containers that are known and live.
    fn bound(&self) -> HashSet<String> {
        let known = self.state();
        let live = known
            .inspected
            .values()
            .filter(|container| container.alive());
        let metadata = live.filter_map(|container| container.metadata.as_ref());
        metadata.map(|metadata| metadata.id.clone()).collect()
    }

    fn known_in(&self, cgroup: CgroupId) -> Option<Arc<Container>> {
        live(&mut self.state().inspected, &cgroup)
    }

    fn missed(&self, cgroup: CgroupId) -> bool {
        let known = self.state();
        known
            .missed
            .get(&cgroup)
            .is_some_and(|at| at.elapsed() < MISS)
    }

    fn state(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The container under this key, if it lives.
fn live<K: Hash + Eq>(map: &mut HashMap<K, Arc<Container>>, key: &K) -> Option<Arc<Container>> {
    let container = map.get(key)?;
    if container.alive() {
        return Some(Arc::clone(container));
    }
    map.remove(key);
    None
}

/// Keeps a container, unless another task was first: what was seen first counts. Lets go of the dead.
fn keep<K: Hash + Eq>(
    map: &mut HashMap<K, Arc<Container>>,
    key: K,
    container: Arc<Container>,
) -> Arc<Container> {
    if let Some(first) = live(map, &key) {
        return first;
    }
    if map.len().is_power_of_two() {
        map.retain(|_, kept| kept.alive());
    }
    map.insert(key, Arc::clone(&container));
    container
}

/// An engine that is not there has no word; one that is there and does not give it is a failure.
fn complain(engine: &Engine, error: &EngineError) -> Result<(), String> {
    let socket = engine.socket().display();
    if error.is_absent() {
        tracing::debug!(%socket, %error, "a container engine is not there");
        return Ok(());
    }
    tracing::warn!(%socket, %error, "a container engine does not answer");
    Err(format!(
        "the container engine at {socket} does not say whose the process is: {error}"
    ))
}

fn unavailable(detail: String) -> AttestError {
    AttestError::new(ENGINE_UNAVAILABLE, detail)
}
