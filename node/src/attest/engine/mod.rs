//! Container engines that speak the Docker Engine API over a unix socket: Docker, and Podman with its
//! compatible socket.
//!
//! What an engine says is a claim until it is bound to live processes (see `attest::bind`).

mod api;
mod http;
mod settings;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mayfly_wire::evidence;
use tokio::sync::Semaphore;

pub(crate) use api::{Inspected, id_in_name};
pub(crate) use http::EngineError;

/// How long one question may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long an engine that did not answer is left alone, so that it delays nobody else.
const PAUSE: Duration = Duration::from_secs(5);
/// Most questions at once.
const MOST_AT_ONCE: usize = 8;
/// Most running containers that are looked through for one without an id in its cgroup's name.
const MOST_CONTAINERS: usize = 512;
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

    /// The ids of its running containers.
    pub(crate) async fn running(&self) -> Result<Vec<String>, EngineError> {
        let path = format!("/containers/json?limit={MOST_CONTAINERS}");
        let found: Option<Vec<api::Listed>> = self.ask(&path).await?;
        let ids = found
            .unwrap_or_default()
            .into_iter()
            .map(|listed| listed.id);
        Ok(ids
            .filter(|id| api::is_id(id))
            .take(MOST_CONTAINERS)
            .collect())
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
        let paused = self.state().paused;
        match paused.filter(|(until, _)| Instant::now() < *until) {
            Some((_, true)) => return Err(EngineError::Absent),
            Some((_, false)) => return Err(EngineError::Paused),
            None => {}
        }
        let answer = tokio::time::timeout(TIMEOUT, async {
            let _turn = self.questions.acquire().await;
            http::get(&self.socket, path).await
        });
        let answer = answer.await.unwrap_or(Err(EngineError::Slow));
        let body = match answer {
            Ok(body) => body,
            Err(error) => {
                self.state().paused = Some((Instant::now() + PAUSE, error.is_absent()));
                return Err(error);
            }
        };
        let Some(body) = body else {
            return Ok(None);
        };
        serde_json::from_slice(&body)
            .map(Some)
            .map_err(EngineError::NotUnderstood)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
