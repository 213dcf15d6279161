//! Templates over the evidence: text with placeholders such as `{compose.service}`.

use mayfly_wire::{CredentialName, Evidence};

/// Most bytes that a template may become.
const MAX_RENDERED: usize = 1024;
const PLACEHOLDERS: &str = "{credential}, {node}, {workload}, {name}, {container.id}, \
                            {container.name}, {image.config_digest}, {compose.project}, \
                            {compose.service}, {label.KEY}";

/// A template, understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Credential,
    Node,
    Workload,
    Name,
    ContainerId,
    ContainerName,
    ImageConfigDigest,
    ComposeProject,
    ComposeService,
    Label(String),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// A sentence for the operator: an unknown placeholder, or braces that do not fit.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, after) = rest.split_at(at);
            let inside = after
                .strip_prefix('{')
                .and_then(|after| after.split_once('}'))
                .filter(|(inside, _)| !inside.contains('{'));
            let (inside, after) = inside.ok_or_else(|| {
                format!("template {text:?}: expected each '{{' with its '}}' and no other braces")
            })?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::named(inside).ok_or_else(|| {
                format!(
                    "template {text:?}: there is no placeholder {{{inside}}}; expected one of \
                     {PLACEHOLDERS}"
                )
            })?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Fills it in.
    ///
    /// # Errors
    /// A sentence for the operator: the evidence lacks what a placeholder asks for, or the result is
    /// empty or too long.
    pub(super) fn render(
        &self,
        credential: &CredentialName,
        evidence: &Evidence,
    ) -> Result<String, String> {
        self.render_within(credential, evidence, |_| true)
    }

    /// Fills it in. Of what somebody who starts containers can choose, only characters that satisfy
    /// `fits` are taken: what separates the parts of a name then comes from the template alone.
    ///
    /// # Errors
    /// As for [`Template::render`], and for a value with another character.
    pub(super) fn render_within(
        &self,
        credential: &CredentialName,
        evidence: &Evidence,
        fits: fn(char) -> bool,
    ) -> Result<String, String> {
        let mut text = String::new();
        for part in &self.0 {
            let value = part.value(credential, evidence)?;
            if let Some(other) = value.chars().find(|c| part.is_foreign() && !fits(*c)) {
                let value: String = value.chars().take(80).collect();
                return Err(format!(
                    "the evidence about {} says {value:?} for {part:?}: a name cannot take {other:?} \
                     from there",
                    evidence.display_name()
                ));
            }
            text.push_str(&value);
            if text.len() > MAX_RENDERED {
                return Err(format!(
                    "a template becomes longer than {MAX_RENDERED} bytes for workload {}",
                    evidence.display_name()
                ));
            }
        }
        if text.is_empty() {
            return Err("a template becomes empty text".to_owned());
        }
        Ok(text)
    }
}

impl Template {
    /// The text before the first placeholder.
    pub(super) fn prefix(&self) -> &str {
        match self.0.first() {
            Some(Part::Text(text)) => text,
            _ => "",
        }
    }

    /// The text, with `sample` in place of each placeholder, so that the rest of it can be checked.
    pub(super) fn sample(&self, sample: &str) -> String {
        let parts = self.0.iter().map(|part| match part {
            Part::Text(text) => text.as_str(),
            _ => sample,
        });
        parts.collect()
    }
}

impl Part {
    /// Whether whoever starts the container chooses the value.
    fn is_foreign(&self) -> bool {
        !matches!(
            self,
            Self::Text(_) | Self::Credential | Self::Node | Self::Workload
        )
    }

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "credential" => Self::Credential,
            "node" => Self::Node,
            "workload" => Self::Workload,
            "name" => Self::Name,
            "container.id" => Self::ContainerId,
            "container.name" => Self::ContainerName,
            "image.config_digest" => Self::ImageConfigDigest,
            "compose.project" => Self::ComposeProject,
            "compose.service" => Self::ComposeService,
            _ => match name.strip_prefix("label.") {
                Some(key) if !key.is_empty() => Self::Label(key.to_owned()),
                _ => return None,
            },
        })
    }

    fn value(&self, credential: &CredentialName, evidence: &Evidence) -> Result<String, String> {
        let container = evidence.container.as_ref();
        let (placeholder, value) = match self {
            Self::Text(text) => return Ok(text.clone()),
            Self::Credential => return Ok(credential.to_string()),
            Self::Node => return Ok(evidence.node.clone()),
            Self::Workload => return Ok(evidence.workload.id()),
            Self::Name => return Ok(evidence.display_name()),
            Self::ContainerId => ("container.id", container.map(|c| c.id.clone())),
            Self::ContainerName => ("container.name", container.map(|c| c.name.clone())),
            Self::ImageConfigDigest => (
                "image.config_digest",
                container.map(|c| c.image.config_digest.clone()),
            ),
            Self::ComposeProject => (
                "compose.project",
                container.and_then(|c| c.compose_project.clone()),
            ),
            Self::ComposeService => (
                "compose.service",
                container.and_then(|c| c.compose_service.clone()),
            ),
            Self::Label(key) => ("label", container.and_then(|c| c.labels.get(key).cloned())),
        };
        value.filter(|value| !value.is_empty()).ok_or_else(|| {
            let what = match self {
                Self::Label(key) => format!("label.{key}"),
                _ => placeholder.to_owned(),
            };
            format!(
                "the evidence about {} has nothing for {{{what}}}",
                evidence.display_name()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::evidence;

    fn render(text: &str) -> Result<String, String> {
        let name = "orders-db".parse().unwrap();
        Template::parse(text)?.render(&name, &evidence(1))
    }

    #[test]
    fn fills_in_what_the_evidence_has() {
        assert_eq!(render("plain").unwrap(), "plain");
        assert_eq!(
            render("{node}/{compose.project}:{compose.service}-{credential}").unwrap(),
            "node-1/shop:orders-orders-db"
        );
        assert_eq!(render("{label.team}").unwrap(), "payments");
        assert_eq!(render("{name}").unwrap(), "shop-orders-1");
        assert_eq!(render("{image.config_digest}").unwrap(), "sha256:abc");
        assert_eq!(render("{workload}").unwrap(), evidence(1).workload.id());
    }

    #[test]
    fn what_is_missing_or_unknown_refuses() {
        assert!(
            render("{label.other}")
                .unwrap_err()
                .contains("{label.other}")
        );
        assert!(render("{label.empty}").is_err());
        assert!(render("").is_err());
        for text in [
            "{servce}", "{", "}", "{node", "node}", "{{node}}", "{}", "{label.}",
        ] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
        let name = "x".parse().unwrap();
        let mut bare = evidence(1);
        bare.container = None;
        let template = Template::parse("{container.id}").unwrap();
        assert!(template.render(&name, &bare).is_err());
        let mut long = evidence(1);
        long.node = "n".repeat(2000);
        assert!(
            Template::parse("{node}")
                .unwrap()
                .render(&name, &long)
                .is_err()
        );
    }
}
