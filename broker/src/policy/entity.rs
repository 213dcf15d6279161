//! Evidence and credentials as Cedar entities: a pure conversion. Strings go in as values, never as
//! policy text, so nothing that a container can name itself is parsed.

use cedar_policy::{
    Entity, EntityAttrEvaluationError, EntityId, EntityTypeName, EntityUid, RestrictedExpression,
};
use mayfly_wire::ConnectionConfig;
use mayfly_wire::admin::{CredentialConfig, EngineConfig};
use mayfly_wire::evidence::{Companion, Container, Image, Settings};
use mayfly_wire::{Evidence, Posture};
use std::collections::HashSet;
use std::sync::LazyLock;

/// Most bytes of one string: what is longer is unknown.
const MAX_TEXT: usize = 4 * 1024;
/// Most labels: a container with more has none, so that nobody can push one out with others.
const MAX_LABELS: usize = 256;
/// Most members of a set: a larger one is unknown.
const MAX_SET: usize = 256;

type Expression = RestrictedExpression;

fn type_name(text: &str) -> Option<EntityTypeName> {
    text.parse().ok()
}

macro_rules! types {
    ($($name:ident = $text:literal),*) => {$(
        static $name: LazyLock<Option<EntityTypeName>> = LazyLock::new(|| type_name($text));
    )*};
}
types!(
    ACTION = "Mayfly::Action",
    BROKER = "Mayfly::Broker",
    CREDENTIAL = "Mayfly::Credential",
    KV_PATH = "Mayfly::KvPath",
    NODE = "Mayfly::Node",
    CONNECTION = "Mayfly::Connection",
    OPERATOR = "Mayfly::Operator",
    WORKLOAD = "Mayfly::Workload"
);

/// Why something has no entity.
#[derive(Debug, thiserror::Error)]
pub enum NoEntity {
    /// A name of the schema does not parse: a fault of this program.
    #[error("the entity type {0} is not a Cedar name")]
    Type(&'static str),
    /// Cedar refused the attributes.
    #[error("the attributes of {0} cannot be evaluated: {1}")]
    Attributes(&'static str, Box<EntityAttrEvaluationError>),
}

fn uid(
    kind: &'static str,
    type_name: &Option<EntityTypeName>,
    id: &str,
) -> Result<EntityUid, NoEntity> {
    let type_name = type_name.as_ref().ok_or(NoEntity::Type(kind))?;
    Ok(EntityUid::from_type_name_and_id(
        type_name.clone(),
        EntityId::new(id),
    ))
}

/// The attributes of one record or entity, while they are collected.
#[derive(Default)]
struct Attributes(Vec<(String, Expression)>);

impl Attributes {
    fn with(mut self, name: &str, value: Option<Expression>) -> Self {
        if let Some(value) = value {
            self.0.push((name.to_owned(), value));
        }
        self
    }

    fn text(self, name: &str, value: Option<&str>) -> Self {
        self.with(name, value.and_then(text))
    }

    /// For an attribute that the schema demands: what is too long is empty.
    fn must_text(self, name: &str, value: &str) -> Self {
        let value = text(value).unwrap_or_else(|| Expression::new_string(String::new()));
        self.with(name, Some(value))
    }

    fn bool(self, name: &str, value: Option<bool>) -> Self {
        self.with(name, value.map(Expression::new_bool))
    }

    fn long(self, name: &str, value: Option<impl TryInto<i64>>) -> Self {
        let value = value.and_then(|value| value.try_into().ok());
        self.with(name, value.map(Expression::new_long))
    }

    fn set<'a>(self, name: &str, value: Option<impl ExactSizeIterator<Item = &'a str>>) -> Self {
        self.with(name, value.and_then(set))
    }

    /// A limit is two attributes: whether there is one, and how much it is.
    fn limit(self, kind: &str, value: Option<u64>) -> Self {
        let amount = value.and_then(|value| i64::try_from(value).ok());
        self.bool(
            &format!("{kind}_limited"),
            value.map(|_| amount.is_some_and(|amount| amount != i64::MAX)),
        )
        .long(
            &format!("{kind}_limit"),
            amount.filter(|&amount| amount != i64::MAX),
        )
    }

    /// Built from names that are all distinct, so it cannot fail; if it did, the fact is unknown.
    fn record(self) -> Option<Expression> {
        Expression::new_record(self.0).ok()
    }

    fn entity(
        self,
        kind: &'static str,
        uid: EntityUid,
        tags: Vec<(String, Expression)>,
    ) -> Result<Entity, NoEntity> {
        Entity::new_with_tags(uid, self.0, HashSet::new(), tags)
            .map_err(|error| NoEntity::Attributes(kind, Box::new(error)))
    }
}

fn text(value: &str) -> Option<Expression> {
    (value.len() <= MAX_TEXT).then(|| Expression::new_string(value.to_owned()))
}

fn set<'a>(values: impl ExactSizeIterator<Item = &'a str>) -> Option<Expression> {
    if values.len() > MAX_SET {
        return None;
    }
    let members: Option<Vec<_>> = values.map(text).collect();
    members.map(Expression::new_set)
}

fn strings(values: Option<&Vec<String>>) -> Option<impl ExactSizeIterator<Item = &str>> {
    values.map(|values| values.iter().map(String::as_str))
}

fn posture(posture: &Posture) -> Option<Expression> {
    let p = posture;
    Attributes::default()
        .long("uid", p.uid)
        .long("gid", p.gid)
        .bool("host_user_namespace", p.host_user_namespace)
        .bool("host_pid_namespace", p.host_pid_namespace)
        .bool("host_network_namespace", p.host_network_namespace)
        .bool("host_ipc_namespace", p.host_ipc_namespace)
        .bool("host_mount_namespace", p.host_mount_namespace)
        .bool("host_uts_namespace", p.host_uts_namespace)
        .bool("host_cgroup_namespace", p.host_cgroup_namespace)
        .set(
            "effective_capabilities",
            strings(p.effective_capabilities.as_ref()),
        )
        .set(
            "permitted_capabilities",
            strings(p.permitted_capabilities.as_ref()),
        )
        .set(
            "bounding_capabilities",
            strings(p.bounding_capabilities.as_ref()),
        )
        .bool("no_new_privs", p.no_new_privs)
        .long("seccomp_mode", p.seccomp_mode)
        .long("seccomp_filters", p.seccomp_filters)
        .text("lsm_label", p.lsm_label.as_deref())
        .bool("read_only_root", p.read_only_root)
        .set("engine_sockets", strings(p.engine_sockets.as_ref()))
        .text("secrets_filesystem", p.secrets_filesystem.as_deref())
        .limit("memory", p.memory_limit)
        .limit("pids", p.pids_limit)
        .record()
}

fn image(image: &Image) -> Option<Expression> {
    let known = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned());
    let digests = set(image.repo_digests.iter().map(String::as_str));
    Attributes::default()
        .text("config_digest", known(&image.config_digest).as_deref())
        .with(
            "repo_digests",
            digests.or_else(|| Some(Expression::new_set([]))),
        )
        .text("reference", known(&image.reference).as_deref())
        .record()
}

fn container(container: &Container) -> Option<Expression> {
    Attributes::default()
        .must_text("engine", &container.engine)
        .must_text("id", &container.id)
        .must_text("name", &container.name)
        .with("image", Some(image(&container.image)?))
        .text("compose_project", container.compose_project.as_deref())
        .text("compose_service", container.compose_service.as_deref())
        .with("settings", Some(settings(&container.settings)?))
        .record()
}

fn settings(settings: &Settings) -> Option<Expression> {
    let s = settings;
    Attributes::default()
        .bool("privileged", s.privileged)
        .set(
            "granted_capabilities",
            strings(s.granted_capabilities.as_ref()),
        )
        .text("seccomp", s.seccomp.as_deref())
        .text("apparmor", s.apparmor.as_deref())
        .text("pid_mode", s.pid_mode.as_deref())
        .text("ipc_mode", s.ipc_mode.as_deref())
        .text("user_mode", s.user_mode.as_deref())
        .text("network_mode", s.network_mode.as_deref())
        .bool("read_only_root", s.read_only_root)
        .set("devices", strings(s.devices.as_ref()))
        .record()
}

fn companion(companion: &Companion) -> Option<Expression> {
    Attributes::default()
        .with(
            "container",
            companion.container.as_ref().and_then(container),
        )
        .record()
}

fn labels(evidence: &Evidence) -> Vec<(String, Expression)> {
    let Some(container) = &evidence.container else {
        return Vec::new();
    };
    if container.labels.len() > MAX_LABELS {
        return Vec::new();
    }
    let short = container.labels.iter().filter_map(|(name, value)| {
        let value = text(value)?;
        (name.len() <= MAX_TEXT).then(|| (name.clone(), value))
    });
    short.collect()
}

/// The workload that the evidence is about.
///
/// # Errors
/// [`NoEntity`], which no evidence can cause.
pub fn workload(evidence: &Evidence) -> Result<Entity, NoEntity> {
    const KIND: &str = "Workload";
    // Not the last part of the path: whoever may make a cgroup within its own chooses that.
    let name = match &evidence.container {
        Some(container) => &container.name,
        None => evidence.cgroup_path.as_deref().unwrap_or_default(),
    };
    Attributes::default()
        .must_text("name", name)
        .must_text("node", &evidence.node)
        .must_text("assurance", evidence.assurance.as_str())
        .long("assurance_rank", Some(evidence.assurance.rank()))
        .with(
            "lacking",
            Some(Expression::new_set(evidence.lacking.iter().map(
                |facility| Expression::new_string(facility.as_str().to_owned()),
            ))),
        )
        .text("cgroup_path", evidence.cgroup_path.as_deref())
        .bool("own_namespaces", evidence.own_namespaces)
        .bool("joined", Some(evidence.companion.is_some()))
        .with("container", evidence.container.as_ref().and_then(container))
        .with("companion", evidence.companion.as_ref().and_then(companion))
        .with("peer", posture(&evidence.peer))
        .with("init", posture(&evidence.init))
        .entity(KIND, workload_uid(evidence)?, labels(evidence))
}

/// The name of that workload's entity: its key.
///
/// # Errors
/// [`NoEntity::Type`], which nothing can cause.
pub fn workload_uid(evidence: &Evidence) -> Result<EntityUid, NoEntity> {
    uid("Workload", &WORKLOAD, &evidence.workload.to_string())
}

/// A credential, as configured.
///
/// # Errors
/// [`NoEntity`], which no configuration can cause.
pub fn credential(config: &CredentialConfig) -> Result<Entity, NoEntity> {
    let path = match &config.engine {
        EngineConfig::Kv { path } => Some(path.as_str()),
        _ => None,
    };
    Attributes::default()
        .must_text("name", config.name.as_str())
        .must_text("engine", config.engine.kind().as_str())
        .long("ttl_seconds", Some(config.ttl_seconds))
        .text("kv_path", path)
        .entity(
            "Credential",
            credential_uid(config.name.as_str())?,
            Vec::new(),
        )
}

/// The name of a credential's entity.
///
/// # Errors
/// [`NoEntity::Type`], which nothing can cause.
pub fn credential_uid(name: &str) -> Result<EntityUid, NoEntity> {
    uid("Credential", &CREDENTIAL, name)
}

/// An operator: `uid:0`.
///
/// # Errors
/// [`NoEntity`], which nothing can cause.
pub fn operator(user: u32, owner: bool) -> Result<Entity, NoEntity> {
    let uid = uid("Operator", &OPERATOR, &format!("uid:{user}"))?;
    Attributes::default()
        .long("uid", Some(user))
        .bool("owner", Some(owner))
        .entity("Operator", uid, Vec::new())
}

/// The broker, as the resource of an admin action.
///
/// # Errors
/// [`NoEntity`], which nothing can cause.
pub fn broker() -> Result<Entity, NoEntity> {
    Attributes::default().entity("Broker", uid("Broker", &BROKER, "broker")?, Vec::new())
}

/// A path of the kv engine, as the resource of an admin action.
///
/// # Errors
/// [`NoEntity`], which nothing can cause.
pub fn kv_path(path: &str) -> Result<Entity, NoEntity> {
    Attributes::default().must_text("path", path).entity(
        "KvPath",
        uid("KvPath", &KV_PATH, path)?,
        Vec::new(),
    )
}

/// A node, as the resource of an admin action.
///
/// # Errors
/// [`NoEntity`], which nothing can cause.
pub fn node(name: &str) -> Result<Entity, NoEntity> {
    Attributes::default().must_text("name", name).entity(
        "Node",
        uid("Node", &NODE, name)?,
        Vec::new(),
    )
}

/// A server, as the resource of an admin action.
///
/// # Errors
/// [`NoEntity`], which nothing can cause.
pub fn connection(config: &ConnectionConfig) -> Result<Entity, NoEntity> {
    let name = config.name.as_str();
    Attributes::default()
        .must_text("name", name)
        .must_text("engine", config.engine.as_str())
        .entity(
            "Connection",
            uid("Connection", &CONNECTION, name)?,
            Vec::new(),
        )
}

/// The name of an action.
///
/// # Errors
/// [`NoEntity::Type`], which nothing can cause.
pub fn action(name: &str) -> Result<EntityUid, NoEntity> {
    uid("Action", &ACTION, name)
}
