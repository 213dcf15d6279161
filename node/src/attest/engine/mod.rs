//! Container engines that speak the Docker Engine API over a unix socket: Docker, and Podman with its
//! compatible socket.
//!
//! What an engine says is a claim until it is bound to live processes (see `attest::bind`).

mod api;
mod http;
mod settings;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mayfly_wire::evidence;
use tokio::sync::Semaphore;

pub(crate) use api::{Inspected, id_in_name};
pub(crate) use http::EngineError;

/// How long one question may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long one may wait until it is its turn. That is not the engine's fault.
const TURN: Duration = Duration::from_secs(4);
/// How long an engine that did not answer is left alone, so that it delays nobody else.
const PAUSE: Duration = Duration::from_secs(5);
/// How long a question that failed is not asked again: one container that an engine stumbles over
/// must not use up the others' turns.
const REST: Duration = Duration::from_secs(2);
/// How many different questions must fail, without any answer between them, until it is the engine
/// that fails and not what was asked about.
const IN_A_ROW: usize = 3;
/// Most questions at once.
const MOST_AT_ONCE: usize = 8;
/// Most failed questions that are remembered.
const MOST_FAILED: usize = 1024;
/// How long an image's repository digests are taken as they were: a push or pull adds to them.
const IMAGE_AGE: Duration = Duration::from_secs(60);
/// Most images that are remembered.
const MOST_IMAGES: usize = 1024;

/// One engine.
#[derive(Debug)]
pub(crate) struct Engine {
    socket: PathBuf,
    questions: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Left alone until then, and whether because it was not there.
    paused: Option<(Instant, bool)>,
    /// Questions that failed, and when.
    failed: HashMap<String, Instant>,
    /// Those that failed since the last answer.
    in_a_row: HashSet<String>,
    /// `docker` or `podman`, once it has said so.
    kind: Option<&'static str>,
    /// Repository digests by config digest.
    images: HashMap<String, (Instant, BTreeSet<String>)>,
}

impl Engine {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            questions: Semaphore::new(MOST_AT_ONCE),
            state: Mutex::default(),
        }
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// What it says about a container; `None` if it knows no such container.
    pub(crate) async fn inspect(&self, id: &str) -> Result<Option<Inspected>, EngineError> {
        let path = format!("/containers/{id}/json");
        let found: Option<Inspected> = self.ask(&path).await?;
        // The API takes prefixes and names too.
        Ok(found.filter(|found| found.id == id))
    }

    /// The ids of all its running containers.
    pub(crate) async fn running(&self) -> Result<Vec<String>, EngineError> {
        // Without `limit`: that counts stopped ones too, and leaves out the oldest.
        let found: Option<Vec<api::Listed>> = self.ask("/containers/json").await?;
        let ids = found
            .unwrap_or_default()
            .into_iter()
            .map(|listed| listed.id);
        Ok(ids.filter(|id| api::is_id(id)).collect())
    }

    /// The part of the evidence that is the engine's word.
    pub(crate) async fn describe(
        &self,
        found: Inspected,
    ) -> Result<evidence::Container, EngineError> {
        let kind = self.kind().await?;
        let repo_digests = self.repo_digests(found.config_digest()).await?;
        Ok(found.into_evidence(kind, repo_digests))
    }

    async fn kind(&self) -> Result<&'static str, EngineError> {
        if let Some(kind) = self.state().kind {
            return Ok(kind);
        }
        let version: Option<api::Version> = self.ask("/version").await?;
        let kind = version.unwrap_or_default().kind();
        self.state().kind = Some(kind);
        Ok(kind)
    }

    async fn repo_digests(&self, config: String) -> Result<BTreeSet<String>, EngineError> {
        let known = self.state().images.get(&config).cloned();
        if let Some((at, digests)) = known
            && at.elapsed() < IMAGE_AGE
        {
            return Ok(digests);
        }
        let image: Option<api::Image> = self.ask(&format!("/images/{config}/json")).await?;
        let digests = image.unwrap_or_default().repo_digests();
        let mut state = self.state();
        if state.images.len() >= MOST_IMAGES {
            state.images.clear();
        }
        state
            .images
            .insert(config, (Instant::now(), digests.clone()));
        Ok(digests)
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Option<T>, EngineError> {
        self.check(path)?;
        let turn = tokio::time::timeout(TURN, self.questions.acquire()).await;
        let turn = turn.map_err(|_| EngineError::Busy)?;
        // It may have failed meanwhile.
        self.check(path)?;
        let answer = tokio::time::timeout(TIMEOUT, http::get(&self.socket, path)).await;
        drop(turn);
        let answer = answer.unwrap_or(Err(EngineError::Slow)).and_then(|body| {
            let read = |body: hyper::body::Bytes| serde_json::from_slice(&body);
            let read = body.map(read).transpose();
            read.map_err(EngineError::NotUnderstood)
        });
        self.state().note(path, answer.as_ref().err());
        answer
    }

    /// Whether to ask now.
    fn check(&self, path: &str) -> Result<(), EngineError> {
        let state = self.state();
        match state.paused.filter(|(until, _)| Instant::now() < *until) {
            Some((_, true)) => return Err(EngineError::Absent),
            Some((_, false)) => return Err(EngineError::Paused),
            None => {}
        }
        let failed = state.failed.get(path);
        if failed.is_some_and(|at| at.elapsed() < REST) {
            return Err(EngineError::Resting);
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Notes how a question went.
    fn note(&mut self, path: &str, error: Option<&EngineError>) {
        let Some(error) = error else {
            self.failed.remove(path);
            self.in_a_row.clear();
            return;
        };
        let now = Instant::now();
        if self.failed.len() >= MOST_FAILED {
            self.failed.retain(|_, at| at.elapsed() < REST);
            if self.failed.len() >= MOST_FAILED {
                self.failed.clear();
            }
        }
        self.failed.insert(path.to_owned(), now);
        self.in_a_row.insert(path.to_owned());
        let down = matches!(error, EngineError::Down(_));
        if down || self.in_a_row.len() >= IN_A_ROW {
            self.paused = Some((now + PAUSE, error.is_absent()));
            self.failed.clear();
            self.in_a_row.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(state: &mut State, path: &str, error: EngineError) -> bool {
        state.note(path, Some(&error));
        state.paused.is_some()
    }

    #[test]
    fn one_bad_container_does_not_pause_the_engine() {
        let mut state = State::default();
        for _ in 0..10 {
            assert!(!note(&mut state, "/a", EngineError::Slow));
        }
        assert!(!note(&mut state, "/b", EngineError::Slow));
        state.note("/good", None);
        assert!(!note(&mut state, "/c", EngineError::Slow));
        assert!(!note(&mut state, "/a", EngineError::Slow));
        assert!(note(&mut state, "/b", EngineError::Slow));
        let down = || EngineError::Down(std::io::ErrorKind::ConnectionReset.into());
        assert!(note(&mut State::default(), "/a", down()));
    }

    #[test]
    fn failed_questions_that_are_remembered_are_bounded() {
        let mut state = State::default();
        for number in 0..5 * MOST_FAILED {
            state.note(&format!("/{number}"), Some(&EngineError::Slow));
            state.in_a_row.clear();
        }
        assert!(state.failed.len() <= MOST_FAILED);
    }

    /// All turns are taken, by questions that take long.
    #[test]
    fn a_queue_of_our_own_is_not_the_engines_fault() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let engine = Engine::new("/nonexistent/engine.sock".into());
        runtime.block_on(async {
            let all = u32::try_from(MOST_AT_ONCE).unwrap();
            let turns = engine.questions.acquire_many(all).await.unwrap();
            let busy = engine.ask::<api::Version>("/version").await.unwrap_err();
            assert!(matches!(busy, EngineError::Busy), "{busy}");
            assert!(!busy.is_absent());
            drop(turns);
            // It is asked at once: neither is it paused, nor is the question left to rest.
            let down = engine.ask::<api::Version>("/version").await.unwrap_err();
            assert!(matches!(down, EngineError::Down(_)), "{down}");
        });
    }
}
