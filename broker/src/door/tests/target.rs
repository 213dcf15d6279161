//! A target as a test needs it: it does what it is told, fails, or hangs.

use crate::engine::{Answer, Engine, EngineError, IssueRequest, Issued};
use crate::store::{Lease, Source};
use mayfly_wire::LeaseId;
use mayfly_wire::admin::CredentialConfig;
use mayfly_wire::session::Layout;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// How it behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Well,
    /// Says that it is down.
    Down,
    /// Refuses this statement: the target is well.
    Refuses,
    /// Never answers, and does nothing.
    Hangs,
    /// Does it, and never answers.
    DoesAndHangs,
}

#[derive(Default)]
struct Accounts {
    /// Each with its expiry.
    there: BTreeMap<String, u64>,
    /// What was revoked cannot be made afterwards.
    never: BTreeSet<String>,
    made: u64,
    version: u64,
}

pub struct Target {
    accounts: Mutex<Accounts>,
    create: watch::Sender<Mode>,
    revoke: watch::Sender<Mode>,
    extend: watch::Sender<Mode>,
    /// Of what is shared, at the server `shop`.
    rotate: watch::Sender<Mode>,
    /// Calls that have not ended.
    pub open: Arc<AtomicUsize>,
}

/// Counts a call until it ends or is dropped.
struct Call(Arc<AtomicUsize>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

pub fn account(lease: &LeaseId) -> String {
    format!("u_{lease}")
}

impl Target {
    pub fn new() -> Arc<Self> {
        let well = || watch::channel(Mode::Well).0;
        Arc::new(Self {
            accounts: Mutex::default(),
            create: well(),
            revoke: well(),
            extend: well(),
            rotate: well(),
            open: Arc::default(),
        })
    }

    pub fn creates(&self, mode: Mode) {
        self.create.send_replace(mode);
    }

    pub fn revokes(&self, mode: Mode) {
        self.revoke.send_replace(mode);
    }

    pub fn extends(&self, mode: Mode) {
        self.extend.send_replace(mode);
    }

    pub fn rotates(&self, mode: Mode) {
        self.rotate.send_replace(mode);
    }

    /// How often what is shared was rotated.
    pub fn rotations(&self) -> u64 {
        self.accounts.lock().unwrap().version
    }

    /// Every account that is there, with its expiry.
    pub fn accounts(&self) -> BTreeMap<String, u64> {
        self.accounts.lock().unwrap().there.clone()
    }

    /// How many were ever made.
    pub fn made(&self) -> u64 {
        self.accounts.lock().unwrap().made
    }

    fn call(&self) -> Call {
        self.open.fetch_add(1, Ordering::SeqCst);
        Call(Arc::clone(&self.open))
    }

    /// Behaves as `mode` says. Who hangs goes on once that is well again.
    async fn behave(
        &self,
        mode: &watch::Sender<Mode>,
        work: impl Fn(&mut Accounts),
    ) -> Result<(), EngineError> {
        let _call = self.call();
        let now = *mode.borrow();
        match now {
            Mode::Well => {}
            Mode::Down => return Err(EngineError::Unavailable("it is down".into())),
            Mode::Refuses => return Err(EngineError::Unfit("a statement is wrong".into())),
            Mode::DoesAndHangs => {
                work(&mut self.accounts.lock().unwrap());
                std::future::pending::<()>().await;
            }
            Mode::Hangs => {
                let mut mode = mode.subscribe();
                mode.wait_for(|mode| *mode == Mode::Well).await.unwrap();
            }
        }
        tokio::task::yield_now().await;
        work(&mut self.accounts.lock().unwrap());
        Ok(())
    }

    fn give(&self, lease: &LeaseId, expires_at: u64, source: Source) -> Issued {
        let field = |name: &str, value: String| {
            (
                name.parse().unwrap(),
                mayfly_wire::Secret::from(value.into_bytes()),
            )
        };
        Issued {
            fields: BTreeMap::from([field("username", account(lease))]),
            layout: Layout::Fields,
            expires_at,
            source,
        }
    }
}

fn is_static(config: &CredentialConfig) -> bool {
    config.name.as_str().starts_with("static")
}

impl Engine for Target {
    fn check(&self, _credential: &CredentialConfig) -> Result<(), String> {
        Ok(())
    }

    fn issue<'a>(&'a self, request: IssueRequest<'a>) -> Answer<'a, Issued> {
        let source = if is_static(request.credential) {
            let version = self.accounts.lock().unwrap().version;
            Source::Shared { version }
        } else {
            Source::Account {
                connection: request.credential.engine.connection().unwrap().clone(),
                account: account(request.lease),
                sealed: vec![1],
            }
        };
        let issued = self.give(request.lease, request.expires_at(), source);
        Box::pin(async move { Ok(issued) })
    }

    fn create<'a>(&'a self, _: &'a CredentialConfig, lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(self.behave(&self.create, |accounts| {
            let name = account(&lease.id);
            if !accounts.never.contains(&name) {
                accounts.there.insert(name, lease.expires_at);
                accounts.made += 1;
            }
        }))
    }

    fn extend<'a>(&'a self, _: &'a CredentialConfig, lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(self.behave(&self.extend, |accounts| {
            if let Some(expires_at) = accounts.there.get_mut(&account(&lease.id)) {
                *expires_at = lease.expires_at;
            }
        }))
    }

    fn reissue<'a>(&'a self, _: &'a CredentialConfig, lease: &'a Lease) -> Answer<'a, Issued> {
        let source = match &lease.source {
            Source::Shared { .. } => Source::Shared {
                version: self.accounts.lock().unwrap().version,
            },
            other => other.clone(),
        };
        let issued = self.give(&lease.id, lease.expires_at, source);
        Box::pin(async move { Ok(issued) })
    }

    fn revoke<'a>(&'a self, lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(self.behave(&self.revoke, |accounts| {
            let name = account(&lease.id);
            accounts.there.remove(&name);
            accounts.never.insert(name);
        }))
    }

    fn rotate<'a>(&'a self, credential: &'a CredentialConfig, _now: u64) -> Answer<'a, bool> {
        Box::pin(async move {
            if !is_static(credential) {
                return Ok(false);
            }
            let well = watch::channel(Mode::Well).0;
            let is_shop = credential.engine.connection().unwrap().as_str() == "shop";
            let mode = if is_shop { &self.rotate } else { &well };
            self.behave(mode, |accounts| accounts.version += 1).await?;
            Ok(true)
        })
    }

    /// All are due, always.
    fn rotates_at<'a>(&'a self, credential: &'a CredentialConfig) -> Answer<'a, Option<u64>> {
        let is_due = is_static(credential).then_some(0);
        Box::pin(async move { Ok(is_due) })
    }
}
