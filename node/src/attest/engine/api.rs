//! The parts of the Docker Engine API's answers that we read.

use std::collections::{BTreeMap, BTreeSet};

use mayfly_wire::evidence;
use serde::Deserialize;

use super::settings::HostConfig;

/// Most labels of one container, and most bytes of one. Of a container with more none is taken: an image
/// must not push out what its operator said.
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
    #[serde(default)]
    host_config: Option<HostConfig>,
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
        let mut labels: BTreeMap<String, String> = self.config.labels.unwrap_or_default();
        if labels.len() > MOST_LABELS {
            labels.clear();
        }
        labels.retain(|name, value| short(name) && short(value));
        let settings = self.host_config.map(HostConfig::into_evidence);
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
            settings: settings.unwrap_or_default(),
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

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c0e5b7a2d9c3e8b6a4f1c";

    #[test]
    fn ids_are_found_in_the_names_that_runtimes_give() {
        for name in [
            ID.to_owned(),
            format!("docker-{ID}.scope"),
            format!("libpod-{ID}.scope"),
            format!("cri-containerd-{ID}.scope"),
            format!("crio-{ID}"),
        ] {
            assert_eq!(id_in_name(&name), Some(ID), "{name}");
        }
        let long = format!("{ID}0");
        let upper = ID.to_uppercase();
        for name in ["", "docker", "user.slice", &ID[1..], &long, &upper, "é"] {
            assert_eq!(id_in_name(name), None, "{name}");
        }
    }

    #[test]
    fn answers_are_read_with_what_they_lack() {
        let text = format!(
            r#"{{"Id":"{ID}","Name":"/shop-orders-1","Image":"{ID}","Extra":[1],
            "State":{{"Pid":7,"StartedAt":"2026-01-02T03:04:05.6Z","Running":true}},
            "Config":{{"Image":"orders:1","Labels":{{"com.docker.compose.project":"shop",
            "com.docker.compose.service":"orders","long":"{}"}}}}}}"#,
            "x".repeat(MOST_LABEL_BYTES + 1)
        );
        let found: Inspected = serde_json::from_str(&text).unwrap();
        assert_eq!(found.state.pid, 7);
        let digests = BTreeSet::from(["orders@sha256:ab".to_owned()]);
        let evidence = found.into_evidence("docker", digests.clone());
        assert_eq!(evidence.name, "shop-orders-1");
        assert_eq!(evidence.image.config_digest, format!("sha256:{ID}"));
        assert_eq!(evidence.image.reference, "orders:1");
        assert_eq!(evidence.image.repo_digests, digests);
        assert_eq!(evidence.compose_project.as_deref(), Some("shop"));
        assert_eq!(evidence.compose_service.as_deref(), Some("orders"));
        assert_eq!(evidence.labels.len(), 2);
        let many: BTreeMap<String, String> = (0..MOST_LABELS)
            .map(|number| (format!("!{number}"), String::new()))
            .chain([("trusted".to_owned(), "no".to_owned())])
            .collect();
        let many = serde_json::json!({"Id": ID, "State": {}, "Config": {"Labels": many}});
        let many: Inspected = serde_json::from_value(many).unwrap();
        assert!(
            many.into_evidence("docker", BTreeSet::new())
                .labels
                .is_empty()
        );
        let bare: Inspected = serde_json::from_str(r#"{"Id":"x","State":{}}"#).unwrap();
        assert_eq!(bare.state.pid, 0);
        assert!(serde_json::from_str::<Inspected>(r#"{"Id":7,"State":{}}"#).is_err());
        assert!(serde_json::from_str::<Inspected>(r#"{"Id":"x","State":{"Pid":-1}}"#).is_err());
    }

    #[test]
    fn podman_says_that_it_is() {
        let version = |text: &str| serde_json::from_str::<Version>(text).unwrap().kind();
        assert_eq!(
            version(r#"{"Components":[{"Name":"Podman Engine"}]}"#),
            "podman"
        );
        assert_eq!(version(r#"{"Components":[{"Name":"Engine"}]}"#), "docker");
        assert_eq!(version("{}"), "docker");
    }
}
