//! What is left to do once a configuration stands: leases that policy does not grant any more end, and
//! those by settings that stand no more are made anew. That it must be done is on disk with the
//! configuration, so that a broker that ends before is none the worse for it.

use super::withdraw::{Teller, each};
use super::{Applied, Change, Door, plan, store_failed};
use crate::store::{Lease, LeaseState, Op, StoreError};
use mayfly_wire::admin::CredentialConfig;
use mayfly_wire::{CredentialName, Refusal};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The entry that names the credentials whose leases must be made anew, each with the number of the
/// configuration that says so.
const ANEW: &str = "anew";
/// The entry with the number of the configuration by which every lease must be judged.
const JUDGE: &str = "judge";
/// Leases that are looked at in one go.
const PAGE: u32 = 500;

type Names = BTreeMap<CredentialName, u64>;

impl Door {
    /// What keeps it on disk that by this configuration all leases must be judged, and those of these
    /// credentials made anew, with those that a configuration before it left.
    pub(super) async fn intends(
        &self,
        number: u64,
        remade: &[CredentialConfig],
    ) -> Result<Vec<Op>, StoreError> {
        let mut names = self.intended().await?;
        names.extend(remade.iter().map(|config| (config.name.clone(), number)));
        let judge = Op::MetaPut(JUDGE.to_owned(), number.to_string().into_bytes());
        Ok(vec![judge, keep(&names)?])
    }

    async fn intended(&self) -> Result<Names, StoreError> {
        let Some(json) = self.store.meta(ANEW.to_owned()).await? else {
            return Ok(Names::new());
        };
        serde_json::from_slice(&json)
            .map_err(|error| StoreError::Damaged(format!("what an apply left to be done: {error}")))
    }

    /// Goes on with what an apply had begun when the broker ended.
    ///
    /// # Errors
    /// The store's.
    pub async fn resume(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.store.meta(JUDGE.to_owned()).await?.is_some() {
            self.judge_anew();
        }
        let applied = self.applied();
        let names = self.intended().await?;
        let configs = names.keys().filter_map(|name| applied.credential(name));
        let configs: Vec<_> = configs.cloned().collect();
        self.make_anew(applied.number(), names.into_keys().collect(), configs);
        Ok(())
    }

    /// Has new leases take the place of all on these credentials, by the settings that this configuration
    /// gave them.
    pub(super) fn make_anew(
        self: &Arc<Self>,
        number: u64,
        names: Vec<CredentialName>,
        configs: Vec<CredentialConfig>,
    ) {
        if names.is_empty() {
            return;
        }
        let door = Arc::clone(self);
        self.spawn(async move {
            let made = door.make_all_anew(configs).await;
            let done = match made {
                Ok(()) => door.are_made_anew(number, &names).await,
                failed => failed,
            };
            if let Err(error) = done {
                tracing::error!(%error, "leases by old settings are replaced at the next start");
            }
        });
    }

    /// Nothing is left to do for these, unless a later configuration says so.
    async fn are_made_anew(&self, number: u64, names: &[CredentialName]) -> Result<(), StoreError> {
        let _one = self.applying.lock().await;
        let mut left = self.intended().await?;
        left.retain(|name, at| *at > number || !names.contains(name));
        self.store.commit(vec![keep(&left)?]).await
    }

    async fn make_all_anew(
        self: &Arc<Self>,
        configs: Vec<CredentialConfig>,
    ) -> Result<(), StoreError> {
        let mut all = Vec::new();
        for config in configs {
            let leases = self.store.leases_on(config.name.clone()).await?;
            let config = Arc::new(config);
            all.extend(leases.into_iter().map(|lease| (Arc::clone(&config), lease)));
        }
        let (teller, _) = Teller::new(all.len());
        each(all, teller, |(config, lease)| {
            let door = Arc::clone(self);
            async move { door.make_one_anew(&config, lease).await }
        })
        .await;
        Ok(())
    }

    async fn make_one_anew(
        self: Arc<Self>,
        config: &CredentialConfig,
        lease: Lease,
    ) -> Result<(), String> {
        let made = match lease.state {
            LeaseState::Active => self.anew(config, lease.id.clone(), lease.workload.clone()),
            // What is on its way in has the old settings, and what is on its way out goes on.
            LeaseState::Planned => {
                let problem = format!("{} was being made by the old settings", lease.id);
                return self.end_old(&lease, problem).await;
            }
            LeaseState::Retiring | LeaseState::Revoking => return Ok(()),
        };
        match made.await {
            Ok(()) => Ok(()),
            Err(problem) => self.end_old(&lease, problem).await,
        }
    }

    /// What the old settings gave must not stay because the new ones give nothing now.
    async fn end_old(&self, lease: &Lease, problem: String) -> Result<(), String> {
        tracing::warn!(lease = %lease.id, %problem, "a lease by old settings ends");
        let ended = self.take_from_holder(lease, "replaced").await;
        ended.map_err(|refusal| refusal.to_string())
    }

    /// Ends a lease, if it need not end already, and has its holder look again.
    async fn take_from_holder(&self, lease: &Lease, reason: &str) -> Result<(), Refusal> {
        let _turn = self.locks.turn(&lease.workload).await;
        let found = self.store.lease(lease.id.clone()).await;
        let found = found.map_err(store_failed)?;
        let Some(lease) = found.filter(|lease| lease.state != LeaseState::Revoking) else {
            return Ok(());
        };
        let ended = self.end(&lease, reason).await;
        self.say(Change::Workload(lease.workload));
        ended
    }

    /// Ends the leases that policy does not grant any more, whether a session holds them or not.
    pub fn judge_anew(self: &Arc<Self>) {
        let door = Arc::clone(self);
        self.spawn(async move {
            if let Err(refusal) = door.judge_all().await {
                tracing::error!(
                    %refusal,
                    "leases are judged by the new policies when they are due, or at the next start"
                );
            }
        });
    }

    async fn judge_all(&self) -> Result<(), Refusal> {
        let number = self.applied().number();
        let mut after = None;
        loop {
            let page = self.store.leases(after.take(), PAGE).await;
            let page = page.map_err(store_failed)?;
            for lease in &page {
                if lease.state != LeaseState::Revoking && !self.still_granted(lease).await? {
                    self.take_from_holder(lease, "withdrawn").await?;
                }
            }
            let full = page.len() >= PAGE as usize;
            match page.last() {
                Some(last) if full => after = Some(last.id.clone()),
                _ => break,
            }
        }
        let _one = self.applying.lock().await;
        // Another one has all judged again.
        if self.applied().number() != number {
            return Ok(());
        }
        let done = vec![Op::MetaRemove(JUDGE.to_owned())];
        self.store.commit(done).await.map_err(store_failed)
    }

    /// Whether the policies that stand now grant a lease.
    async fn still_granted(&self, lease: &Lease) -> Result<bool, Refusal> {
        let known = self.store.workload(lease.workload.clone()).await;
        let Some(known) = known.map_err(store_failed)? else {
            return Ok(false);
        };
        let applied = self.applied();
        let subject = applied.judge().subject(&known.evidence);
        let subject = subject.map_err(super::inside)?;
        Ok(applied.judge().issue(&subject, &lease.credential).allowed)
    }
}

fn keep(names: &Names) -> Result<Op, StoreError> {
    if names.is_empty() {
        return Ok(Op::MetaRemove(ANEW.to_owned()));
    }
    let json = serde_json::to_vec(names);
    let json = json.map_err(|error| StoreError::Unavailable(error.to_string()))?;
    Ok(Op::MetaPut(ANEW.to_owned(), json))
}

/// The credentials whose leases must be made anew, as they are now.
pub(super) fn remade(old: &Applied, new: &Applied) -> Vec<CredentialConfig> {
    let changed = new.credentials().values().filter(|now| {
        let was = old.credential(&now.name);
        was.is_some_and(|was| plan::is_remade(was, now))
    });
    changed.cloned().collect()
}
