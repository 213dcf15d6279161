//! Finds the container of a process: by cgroup and engine, or by pid namespace alone.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mayfly_kernel::ns::Namespace;

use super::bind::{Expected, bind};
use super::container::Container;
use super::engine::{Engine, EngineError, id_in_name};
use super::error::{AttestError, ENGINE_UNAVAILABLE, NOT_A_CONTAINER};
use super::host::Host;
use super::init::init_of;
use super::line::{CgroupId, Line};

/// How long engines are not asked again about a cgroup that none of them knew.
const MISS: Duration = Duration::from_secs(2);
/// Most cgroups that are remembered as unknown.
const MOST_MISSES: usize = 4096;
/// Most names on one line that engines are asked about.
const MOST_HINTS: usize = 4;

/// The containers that are known, each as long as it lives.
#[derive(Debug)]
pub(crate) struct Registry {
    engines: Vec<Engine>,
    state: Mutex<Known>,
    /// When all engines' containers were last looked through, to the end. Held meanwhile, so that who
    /// comes then waits for what is found, and does not pass for a container that no engine knows.
    listed: tokio::sync::Mutex<Option<Instant>>,
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
            listed: tokio::sync::Mutex::default(),
        }
    }

    /// The container that an engine made and a process is in, by its line of cgroups: the outermost
    /// one that is known. Names of cgroups only hint at whom to ask about.
    ///
    /// # Errors
    ///
    /// `engine_unavailable` if an engine is there and does not answer: then nobody knows whether the
    /// process is in one of its containers, and it must not pass for one that is in none.
    pub(crate) async fn inspected(
        &self,
        host: &Host,
        line: &Line,
    ) -> Result<Option<Arc<Container>>, AttestError> {
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
            if let Some(container) = self.ask(host, hint, id).await? {
                return Ok(Some(container));
            }
        }
        if fresh_miss || self.engines.is_empty() {
            return Ok(None);
        }
        let listed = self.list(host).await;
        let found = self.known(line);
        if found.is_none() {
            listed?;
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

    async fn ask(
        &self,
        host: &Host,
        hint: &str,
        cgroup: CgroupId,
    ) -> Result<Option<Arc<Container>>, AttestError> {
        let mut outcome = Ok(None);
        for engine in &self.engines {
            match bind(host, engine, hint, Expected::Within(cgroup)).await {
                Ok(Some(container)) => {
                    return Ok(Some(keep(&mut self.state().inspected, cgroup, container)));
                }
                Ok(None) => {}
                Err(error) => outcome = outcome.and(complain(engine, &error).map(|()| None)),
            }
        }
        outcome
    }

    /// Looks through all running containers, for those whose cgroup's name has no id in it.
    async fn list(&self, host: &Host) -> Result<(), AttestError> {
        let mut listed = self.listed.lock().await;
        if listed.is_some_and(|at| at.elapsed() < MISS) {
            return Ok(());
        }
        let mut outcome = Ok(());
        let budget = Instant::now() + MISS;
        for engine in &self.engines {
            let ids = match engine.running().await {
                Ok(ids) => ids,
                Err(error) => {
                    outcome = outcome.and(complain(engine, &error));
                    continue;
                }
            };
            let bound = self.bound();
            for id in ids.into_iter().filter(|id| !bound.contains(id)) {
                if Instant::now() > budget {
                    tracing::warn!(socket = %engine.socket().display(), "too many containers to look through in time");
                    break;
                }
                match bind(host, engine, &id, Expected::Any).await {
                    Ok(Some(container)) => {
                        let cgroup = container.cgroup;
                        keep(&mut self.state().inspected, cgroup, container);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        outcome = outcome.and(complain(engine, &error));
                        break;
                    }
                }
            }
        }
        if outcome.is_ok() {
            *listed = Some(Instant::now());
        }
        outcome
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
fn complain(engine: &Engine, error: &EngineError) -> Result<(), AttestError> {
    let socket = engine.socket().display();
    if error.is_absent() {
        tracing::debug!(%socket, %error, "a container engine is not there");
        return Ok(());
    }
    tracing::warn!(%socket, %error, "a container engine does not answer");
    Err(AttestError::new(
        ENGINE_UNAVAILABLE,
        format!("the container engine at {socket} does not say whose the process is: {error}"),
    ))
}
