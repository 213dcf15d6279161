//! What operators may do: each act goes through policy and onto the record, whether it was allowed or
//! not. Values that they read or write pass through here and nowhere else.

use super::{Door, store_failed};
use crate::engine::EngineError;
use crate::engine::kv::nothing_at;
use crate::policy::entity;
use cedar_policy::Entity;
use mayfly_wire::admin::{
    ConnectionInfo, ConnectionSecret, KvEntry, KvPut, KvValue, KvVersion, SecretText,
};
use mayfly_wire::audit::Event;
use mayfly_wire::{Code, ConnectionConfig, ConnectionName, FieldName, KvPath, Refusal, Secret};
use std::collections::BTreeMap;

/// Most bytes of the password of the broker's account at a server.
const MAX_PASSWORD: usize = 1024;

/// Who administers the broker, by the peer credentials of the admin socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operator {
    /// User id.
    pub uid: u32,
    /// Whether it is root or the broker's own user.
    pub owner: bool,
}

impl Operator {
    /// The name in records: `uid:0`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("uid:{}", self.uid)
    }

    pub(super) fn entity(&self) -> Result<Entity, Refusal> {
        entity::operator(self.uid, self.owner).map_err(super::inside)
    }
}

/// One act, as policy and record name it.
pub(super) struct Act<'a> {
    /// The action of the schema.
    action: &'a str,
    /// The word in records.
    recorded: &'a str,
    resource: String,
    version: Option<u64>,
    value_hmac: Option<String>,
}

impl<'a> Act<'a> {
    pub(super) fn on(action: &'a str, recorded: &'a str, resource: impl ToString) -> Self {
        Self {
            action,
            recorded,
            resource: resource.to_string(),
            version: None,
            value_hmac: None,
        }
    }
}

/// The operator's answer when an engine fails: the cause, because the caller is an operator.
pub(super) fn engine_failed(error: EngineError) -> Refusal {
    tracing::warn!(%error, "an operator's request fails");
    Refusal::because(error.code(), error.to_string())
}

impl Door {
    fn may(&self, operator: &Operator, action: &str, on: Entity) -> Result<(), Refusal> {
        let decision = self
            .applied()
            .judge()
            .operator(&operator.entity()?, action, on);
        if decision.allowed {
            return Ok(());
        }
        let why = match decision.policies.as_slice() {
            [] => "no policy permits it".to_owned(),
            policies => format!("forbidden by {}", policies.join(", ")),
        };
        let label = operator.label();
        Err(Refusal::because(
            Code::Denied,
            format!("{label} may not {action}: {why}"),
        ))
    }

    /// Judges an act and puts it on record; nothing happens without the record.
    pub(super) async fn allow(
        &self,
        operator: &Operator,
        act: Act<'_>,
        on: Entity,
    ) -> Result<(), Refusal> {
        let judged = self.may(operator, act.action, on);
        self.record(Event::Operator {
            operator: operator.label(),
            action: act.recorded.to_owned(),
            resource: act.resource,
            allowed: judged.is_ok(),
            version: act.version,
            value_hmac: act.value_hmac,
        })
        .await?;
        judged
    }

    /// Judges and records an act on the broker itself.
    pub(super) async fn allow_broker(
        &self,
        operator: &Operator,
        action: &str,
    ) -> Result<(), Refusal> {
        let act = Act::on(action, action, "broker");
        self.allow(operator, act, entity::broker().map_err(super::inside)?)
            .await
    }

    /// Whether an operator may see how the broker is. Too small an act for the record.
    ///
    /// # Errors
    /// [`Code::Denied`].
    pub fn may_see_status(&self, operator: &Operator) -> Result<(), Refusal> {
        self.may(operator, "status", entity::broker().map_err(super::inside)?)
    }

    /// Judges and records that a node is added.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::Unavailable`].
    pub async fn allow_node(&self, operator: &Operator, name: &str) -> Result<(), Refusal> {
        let on = entity::node(name).map_err(super::inside)?;
        self.allow(operator, Act::on("node_add", "node.add", name), on)
            .await
    }

    /// Adds a version of a value.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::Conflict`], [`Code::BadRequest`] for what is no value or too large,
    /// [`Code::Unavailable`].
    pub async fn kv_put(
        &self,
        operator: &Operator,
        path: &KvPath,
        put: KvPut,
    ) -> Result<KvVersion, Refusal> {
        let mut fields: BTreeMap<FieldName, Secret> = BTreeMap::new();
        for (name, value) in put.fields {
            let value = value.decode().map_err(|expected| {
                Refusal::because(Code::BadRequest, format!("field {name}: {expected}"))
            })?;
            fields.insert(name, value);
        }
        let hmac = self
            .audit
            .key()
            .value_hmac(&fields)
            .map_err(super::inside)?;
        let current = self
            .store
            .kv(path.clone(), None)
            .await
            .map_err(store_failed)?;
        let next = current.map_or(0, |row| row.version) + 1;
        let act = |version| Act {
            version: Some(version),
            value_hmac: Some(hmac.clone()),
            ..Act::on("kv_put", "kv.put", path)
        };
        let on = || entity::kv_path(path.as_str()).map_err(super::inside);
        self.allow(operator, act(next), on()?).await?;
        let made = self.engines.kv.put(path, fields, put.if_version).await;
        let made = made.map_err(engine_failed)?;
        if made.version != next {
            // Another put came between: the record must name the version that this one made.
            self.allow(operator, act(made.version), on()?).await?;
        }
        Ok(made)
    }

    /// Reads a version, or the current one.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::NotFound`], [`Code::Unavailable`].
    pub async fn kv_get(
        &self,
        operator: &Operator,
        path: &KvPath,
        version: Option<u64>,
    ) -> Result<KvValue, Refusal> {
        let on = entity::kv_path(path.as_str()).map_err(super::inside)?;
        // Policy is asked before anything is looked up, and the record names what is then opened.
        let found = match (version, self.may(operator, "kv_get", on.clone())) {
            (None, Ok(())) => {
                let current = self.store.kv(path.clone(), None).await;
                current.map(|row| row.map(|row| row.version))
            }
            (version, _) => Ok(version),
        };
        let act = Act {
            version: found.as_ref().ok().copied().flatten(),
            ..Act::on("kv_get", "kv.get", path)
        };
        self.allow(operator, act, on).await?;
        let read = match found {
            Ok(Some(version)) => self.engines.kv.get(path, Some(version)).await,
            Ok(None) => Err(nothing_at(path, None)),
            Err(error) => Err(error.into()),
        };
        let read = read.map_err(engine_failed)?;
        let fields = read.fields.iter();
        Ok(KvValue {
            path: path.clone(),
            version: read.version,
            fields: fields
                .map(|(name, value)| (name.clone(), SecretText::encode(value)))
                .collect(),
        })
    }

    /// Adds a deletion mark.
    ///
    /// # Errors
    /// As [`Door::kv_get`].
    pub async fn kv_delete(
        &self,
        operator: &Operator,
        path: &KvPath,
    ) -> Result<KvVersion, Refusal> {
        let on = entity::kv_path(path.as_str()).map_err(super::inside)?;
        self.allow(operator, Act::on("kv_delete", "kv.delete", path), on)
            .await?;
        self.engines.kv.delete(path).await.map_err(engine_failed)
    }

    /// Every version of a value, oldest first, without the values.
    ///
    /// # Errors
    /// As [`Door::kv_get`].
    pub async fn kv_history(
        &self,
        operator: &Operator,
        path: &KvPath,
    ) -> Result<Vec<KvVersion>, Refusal> {
        let on = entity::kv_path(path.as_str()).map_err(super::inside)?;
        self.allow(operator, Act::on("kv_history", "kv.history", path), on)
            .await?;
        self.engines.kv.history(path).await.map_err(engine_failed)
    }

    /// Every path, without the values.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::Unavailable`].
    pub async fn kv_list(&self, operator: &Operator) -> Result<Vec<KvEntry>, Refusal> {
        self.allow_broker(operator, "kv_list").await?;
        self.engines.kv.list().await.map_err(engine_failed)
    }

    /// Every server that is configured.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::Unavailable`].
    pub async fn connections(&self, operator: &Operator) -> Result<Vec<ConnectionInfo>, Refusal> {
        self.allow_broker(operator, "connection_list").await?;
        let mut connections = Vec::new();
        for config in self.applied().connections() {
            connections.push(self.connection_info(config.clone()).await?);
        }
        Ok(connections)
    }

    /// Takes the password of the broker's own account at a server.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::NotFound`] for a server that is not configured, [`Code::BadRequest`]
    /// for what is no password, [`Code::Unavailable`].
    pub async fn connection_set(
        &self,
        operator: &Operator,
        name: &ConnectionName,
        secret: &ConnectionSecret,
    ) -> Result<ConnectionInfo, Refusal> {
        let config = self.connection(name)?;
        let password = secret.password.decode();
        let password = password.map_err(|expected| {
            Refusal::because(Code::BadRequest, format!("password: {expected}"))
        })?;
        let length = password.len();
        if !(1..=MAX_PASSWORD).contains(&length) {
            let message = format!("password: expected 1 to {MAX_PASSWORD} bytes, found {length}");
            return Err(Refusal::because(Code::BadRequest, message));
        }
        let act = Act::on("connection_set", "connection.set", name);
        let on = entity::connection(&config).map_err(super::inside)?;
        self.allow(operator, act, on).await?;
        let set = self
            .connections
            .set_password(name, &password, self.now_ms());
        set.await.map_err(engine_failed)?;
        self.connection_changed(name);
        self.connection_info(config).await
    }

    /// Changes that password, so that nobody but the broker knows it.
    ///
    /// # Errors
    /// As [`Door::connection_set`].
    pub async fn connection_rotate(
        &self,
        operator: &Operator,
        name: &ConnectionName,
    ) -> Result<ConnectionInfo, Refusal> {
        let config = self.connection(name)?;
        let act = Act::on("connection_rotate", "connection.rotate", name);
        let on = entity::connection(&config).map_err(super::inside)?;
        self.allow(operator, act, on).await?;
        let engine = self.engines.of(config.engine).map_err(engine_failed)?;
        let rotated = engine.rotate_root(name, self.now_ms()).await;
        rotated.map_err(engine_failed)?;
        self.connection_info(config).await
    }

    fn connection(&self, name: &ConnectionName) -> Result<ConnectionConfig, Refusal> {
        let applied = self.applied();
        let mut connections = applied.connections().iter();
        let found = connections.find(|config| config.name == *name);
        found.cloned().ok_or_else(|| {
            let message = format!(
                "there is no connection {name}: expected [connection.{name}] in the configuration"
            );
            Refusal::because(Code::NotFound, message)
        })
    }

    async fn connection_info(&self, config: ConnectionConfig) -> Result<ConnectionInfo, Refusal> {
        let has_password = self.connections.has_password(&config.name).await;
        Ok(ConnectionInfo {
            has_password: has_password.map_err(engine_failed)?,
            config,
        })
    }
}
