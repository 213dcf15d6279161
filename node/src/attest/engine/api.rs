//! The parts of the Docker Engine API's answers that we read.

use std::collections::{BTreeMap, BTreeSet};

use mayfly_wire::evidence;
use serde::Deserialize;

/// Most labels of one container that are taken, and most bytes of one.
const MOST_LABELS: usize = 256;
const MOST_LABEL_BYTES: usize = 4096;

/// `GET /containers/{id}/json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Inspected {
    /// The full id.
    pub id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    image: String,
    /// What it is doing now.
    pub state: State,
    #[serde(default)]
    config: Config,
}

/// A container's state.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct State {
    /// Its first process, in the engine's pid namespace; 0 for a stopped one.
    #[serde(default)]
    pub pid: u32,
    /// When it was started, RFC 3339.
    #[serde(default)]
    pub started_at: String,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    image: String,
    labels: Option<BTreeMap<String, String>>,
}

/// One of `GET /containers/json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub id: String,
}

/// `GET /images/{digest}/json`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Image {
    repo_digests: Option<Vec<String>>,
}

/// `GET /version`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Version {
    #[serde(default)]
    components: Vec<Component>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    #[serde(default)]
    name: String,
}

/// Whether this is a full id, as engines make them.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The full id in a cgroup's name, as in `docker-….scope` or `libpod-…`. Only a hint whom to ask
/// about: anyone who may make cgroups may name one so.
pub(crate) fn id_in_name(name: &str) -> Option<&str> {
    name.split(|letter: char| !letter.is_ascii_alphanumeric())
        .find(|part| is_id(part))
}

impl Inspected {
    /// The image's identity. Podman leaves the algorithm out.
    pub(super) fn config_digest(&self) -> String {
        if is_id(&self.image) {
            format!("sha256:{}", self.image)
        } else {
            self.image.clone()
        }
    }

    pub(super) fn into_evidence(
        self,
        engine: &str,
        repo_digests: BTreeSet<String>,
    ) -> evidence::Container {
        let config_digest = self.config_digest();
        let short = |text: &str| text.len() <= MOST_LABEL_BYTES;
        let labels: BTreeMap<String, String> = self.config.labels.unwrap_or_default();
        let labels = labels
            .into_iter()
            .filter(|(name, value)| short(name) && short(value));
        let labels: BTreeMap<String, String> = labels.take(MOST_LABELS).collect();
        evidence::Container {
            engine: engine.to_owned(),
            id: self.id,
            name: self.name.trim_start_matches('/').to_owned(),
            image: evidence::Image {
                config_digest,
                repo_digests,
                reference: self.config.image,
            },
            compose_project: labels.get("com.docker.compose.project").cloned(),
            compose_service: labels.get("com.docker.compose.service").cloned(),
            labels,
        }
    }
}

impl Image {
    pub(super) fn repo_digests(self) -> BTreeSet<String> {
        let digests = self.repo_digests.unwrap_or_default().into_iter();
        digests
            .filter(|digest| digest.contains("@sha256:"))
            .collect()
    }
}

impl Version {
    pub(super) fn kind(&self) -> &'static str {
        let podman = |component: &Component| component.name.contains("Podman");
        if self.components.iter().any(podman) {
            "podman"
        } else {
            "docker"
        }
    }
}
