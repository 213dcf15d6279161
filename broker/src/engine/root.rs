//! Rotation of the broker's own password at a target, after which nobody else knows it.
//!
//! The new one is durable before the target hears of it. Until it is known which of the two is good,
//! connectors try both ([`Roots::pending`]).

use super::EngineError;
use super::connections::Connections;
use super::entries::Entries;
use super::fixed::SetPassword;
use super::password;
use crate::clock::Clock;
use crate::seal::RootKeys;
use crate::store::Store;
use mayfly_wire::{ConnectionName, Secret};
use std::sync::Arc;
use tokio::sync::Mutex;

/// Before a connection's name, in the keys of sealed entries.
pub(super) const KIND: &str = "root";

/// The broker's own passwords that are being changed.
pub struct Roots {
    entries: Entries,
    connections: Arc<Connections>,
    clock: Arc<dyn Clock>,
    /// Held while one is changed.
    changing: Mutex<()>,
}

impl Roots {
    /// Over a store.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        keys: Arc<RootKeys>,
        connections: Arc<Connections>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            entries: Entries::new(store, keys, KIND),
            connections,
            clock,
            changing: Mutex::default(),
        }
    }

    /// The password that may be the good one already, to be tried when the known one does not get in.
    ///
    /// # Errors
    /// The store's and the seal's.
    pub async fn pending(&self, name: &ConnectionName) -> Result<Option<Secret>, EngineError> {
        let entry = self.entries.get(name.as_str()).await?;
        Ok(entry.map(|(_, password)| password))
    }

    /// It got in: it is the one that is known from now on.
    ///
    /// # Errors
    /// The store's and the seal's.
    pub async fn promote(
        &self,
        name: &ConnectionName,
        password: &Secret,
    ) -> Result<(), EngineError> {
        let now = self.clock.now_ms();
        self.connections.set_password(name, password, now).await?;
        self.entries.remove(name.as_str()).await
    }

    /// Changes the password of the broker's own account, or finishes what was begun and not finished.
    ///
    /// # Errors
    /// The target's, the store's and the seal's. It is then to be called again; the broker gets in with
    /// either password.
    pub async fn rotate(
        &self,
        name: &ConnectionName,
        target: &dyn SetPassword,
    ) -> Result<(), EngineError> {
        let _lock = self.changing.lock().await;
        let user = self.connections.target(name)?.config.username.clone();
        let known = self.connections.password(name).await;
        let known = known.ok();
        // One that is known already was finished, all but forgetting it.
        let begun = self.pending(name).await?.filter(|begun| {
            known
                .as_ref()
                .is_none_or(|known| known.expose() != begun.expose())
        });
        let password = match begun {
            Some(begun) => begun,
            None => {
                let made = password::generate(None)?;
                let now = self.clock.now_ms();
                self.entries.put(name.as_str(), now, &made).await?;
                made
            }
        };
        target.set_password(name, &user, &password).await?;
        self.promote(name, &password).await
    }
}
