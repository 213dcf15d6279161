//! `static` users: they stand at the target already, all holders share them, and their password is
//! rotated. One user, or two that take turns: then a rotation changes the one that nobody was given
//! last, and the other stays good until the next.
//!
//! A new password is durable before the target hears of it, and is set there again until it is known to
//! be, so that whatever crashes, the store has the password that is good.

#[cfg(test)]
mod tests;

use super::entries::Entries;
use super::password;
use super::{Answer, EngineError};
use crate::seal::RootKeys;
use crate::store::{Store, StoreError};
use mayfly_wire::engine::SqlSettings;
use mayfly_wire::{ConnectionName, CredentialName, Secret};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::OwnedMutexGuard;
use zeroize::Zeroizing;

/// A target with users that have passwords.
pub trait SetPassword: Send + Sync {
    /// Makes `password` the one of `user`. Doing so again does no harm; and once it was called again, or
    /// for another password, what was given up before takes effect no more.
    fn set_password<'a>(
        &'a self,
        connection: &'a ConnectionName,
        user: &'a str,
        password: &'a Secret,
    ) -> Answer<'a, ()>;
}

/// What holders are given.
pub struct Holder {
    /// The user.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// Counts up with each rotation.
    pub version: u64,
}

/// The `static` users of one engine.
pub struct FixedUsers {
    entries: Entries,
    /// Held while the state of a credential is changed.
    locks: Mutex<HashMap<CredentialName, Arc<tokio::sync::Mutex<Failed>>>>,
}

/// When taking over failed the last time, and why.
type Failed = Option<(Instant, String)>;

/// What is stored of one credential.
#[derive(Serialize, Deserialize)]
struct State {
    connection: ConnectionName,
    users: Vec<User>,
    /// Which of them holders are given.
    active: usize,
    /// 0: nobody was given any yet.
    version: u64,
    /// Milliseconds since the Unix epoch.
    rotated_at: u64,
    /// Intended, and perhaps set at the target.
    pending: Option<Pending>,
}

#[derive(Serialize, Deserialize)]
struct User {
    name: String,
    password: Option<Zeroizing<String>>,
}

#[derive(Serialize, Deserialize)]
struct Pending {
    user: usize,
    password: Zeroizing<String>,
}

impl State {
    fn new(settings: &SqlSettings, version: u64) -> Self {
        let user = |name: &String| User {
            name: name.clone(),
            password: None,
        };
        Self {
            connection: settings.connection.clone(),
            users: settings.fixed.iter().map(user).collect(),
            active: 0,
            version,
            rotated_at: 0,
            pending: None,
        }
    }

    fn is_of(&self, settings: &SqlSettings) -> bool {
        let names = self.users.iter().map(|user| &user.name);
        self.connection == settings.connection && names.eq(settings.fixed.iter())
    }

    fn holder(&self) -> Option<Holder> {
        let user = self.users.get(self.active)?;
        let password = user.password.as_ref()?;
        Some(Holder {
            user: user.name.clone(),
            password: copy(password),
            version: self.version,
        })
    }

    /// The one whose turn is next.
    fn next(&self) -> usize {
        let has_one = (self.users.get(self.active)).is_some_and(|user| user.password.is_some());
        if has_one && self.users.len() > 1 {
            (self.active + 1) % self.users.len()
        } else {
            self.active
        }
    }
}

impl FixedUsers {
    /// Over a store. `kind` is the same for each start of the same engine, and no other's.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, keys: Arc<RootKeys>, kind: &'static str) -> Self {
        Self {
            entries: Entries::new(store, keys, kind),
            locks: Mutex::default(),
        }
    }

    /// What holders are given now, without asking the target: one that hangs delays no holder.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`]: the users are not taken over yet. That is then due.
    pub async fn known(
        &self,
        credential: &CredentialName,
        settings: &SqlSettings,
    ) -> Result<Holder, EngineError> {
        let (state, _) = self.state(credential, settings).await?;
        state.holder().ok_or_else(|| {
            EngineError::Unavailable(format!("{credential}: its users are not taken over yet"))
        })
    }

    /// The same; but the first time, and when the users in the settings are others than before, this
    /// takes them over: it sets a first password.
    ///
    /// # Errors
    /// The target's, when they are taken over; the store's and the seal's.
    pub async fn current(
        &self,
        credential: &CredentialName,
        settings: &SqlSettings,
        target: &dyn SetPassword,
        now: u64,
    ) -> Result<Holder, EngineError> {
        match self.known(credential, settings).await {
            Err(EngineError::Unavailable(_)) => {}
            known => return known,
        }
        let came = Instant::now();
        let mut failed = self.lock(credential).await;
        let (mut state, _) = self.state(credential, settings).await?;
        if let Some(holder) = state.holder() {
            return Ok(holder);
        }
        // Who waited for others to try does not try in turn.
        if let Some((_, problem)) = failed.as_ref().filter(|(at, _)| *at >= came) {
            return Err(EngineError::Unavailable(problem.clone()));
        }
        let settled = self.settle(credential, settings, &mut state, target, now);
        if let Err(error) = settled.await {
            *failed = Some((Instant::now(), error.to_string()));
            return Err(error);
        }
        *failed = None;
        state.holder().ok_or_else(|| nothing(credential))
    }

    /// Gives holders a new password, or finishes what was begun and not finished. Who comes while one is
    /// given has what it came for when that is done: two in a row would break those who hold the first.
    ///
    /// # Errors
    /// The target's, the store's and the seal's; it is then to be called again.
    pub async fn rotate(
        &self,
        credential: &CredentialName,
        settings: &SqlSettings,
        target: &dyn SetPassword,
        now: u64,
    ) -> Result<(), EngineError> {
        let (before, _) = self.state(credential, settings).await?;
        let _lock = self.lock(credential).await;
        let (mut state, _) = self.state(credential, settings).await?;
        if state.version > before.version && state.pending.is_none() && state.holder().is_some() {
            return Ok(());
        }
        self.settle(credential, settings, &mut state, target, now)
            .await
    }

    /// When the next rotation is due: milliseconds since the Unix epoch. One that was begun is due
    /// since it was, and so are users that took the place of others; those that nobody was given yet
    /// have none due.
    ///
    /// # Errors
    /// The store's and the seal's.
    pub async fn rotates_at(
        &self,
        credential: &CredentialName,
        settings: &SqlSettings,
    ) -> Result<Option<u64>, EngineError> {
        // One that somebody is about is not one that was begun and left.
        let _lock = self.lock(credential).await;
        let (state, stored) = self.state(credential, settings).await?;
        if state.pending.is_some() || (stored && state.holder().is_none()) {
            return Ok(Some(state.rotated_at));
        }
        let every = settings.rotate_every.filter(|_| state.holder().is_some());
        Ok(every.map(|span| state.rotated_at.saturating_add(span.0.saturating_mul(1000))))
    }

    async fn lock(&self, credential: &CredentialName) -> OwnedMutexGuard<Failed> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(credential.clone()).or_default())
        };
        lock.lock_owned().await
    }

    async fn settle(
        &self,
        credential: &CredentialName,
        settings: &SqlSettings,
        state: &mut State,
        target: &dyn SetPassword,
        now: u64,
    ) -> Result<(), EngineError> {
        if state.pending.is_none() {
            let made = password::generate(settings.password.as_ref())?;
            state.pending = Some(Pending {
                user: state.next(),
                password: text(&made)?,
            });
            self.put(credential, state).await?;
        }
        let Some(pending) = &state.pending else {
            return Err(nothing(credential));
        };
        let index = pending.user;
        let user = state.users.get(index).ok_or_else(|| nothing(credential))?;
        let password = copy(&pending.password);
        target
            .set_password(&state.connection, &user.name, &password)
            .await?;
        if let (Some(user), Some(pending)) = (state.users.get_mut(index), state.pending.take()) {
            user.password = Some(pending.password);
        }
        state.active = index;
        state.version += 1;
        state.rotated_at = now;
        self.put(credential, state).await
    }

    /// Its state, and whether there is any in the store, be it of other users.
    async fn state(
        &self,
        credential: &CredentialName,
        settings: &SqlSettings,
    ) -> Result<(State, bool), EngineError> {
        let Some((_, bytes)) = self.entries.get(credential.as_str()).await? else {
            return Ok((State::new(settings, 0), false));
        };
        let state: State = serde_json::from_slice(bytes.expose()).map_err(|_| {
            StoreError::Damaged(format!(
                "the state of the static users of {credential} is not valid"
            ))
        })?;
        if state.is_of(settings) {
            return Ok((state, true));
        }
        Ok((State::new(settings, state.version), true))
    }

    async fn put(&self, credential: &CredentialName, state: &State) -> Result<(), EngineError> {
        let bytes = serde_json::to_vec(state)
            .map_err(|error| EngineError::Conflict(format!("{credential}: {error}")))?;
        let content = Secret::from(bytes);
        let (name, version) = (credential.as_str(), state.version);
        self.entries.put(name, version, &content).await
    }
}

fn nothing(credential: &CredentialName) -> EngineError {
    EngineError::NotFound(format!("{credential} has no static user"))
}

fn copy(text: &str) -> Secret {
    Secret::from(text.to_owned())
}

fn text(secret: &Secret) -> Result<Zeroizing<String>, EngineError> {
    let text = String::from_utf8(secret.expose().to_vec());
    text.map(Zeroizing::new)
        .map_err(|_| EngineError::Unfit("a password is not text".to_owned()))
}
