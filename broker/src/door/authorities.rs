//! What certifies for engines whose credentials are certificates: shown, rotated, and looked after.

use super::operator::{Act, engine_failed};
use super::{Change, Door, Operator};
use crate::engine::{Certifier, EngineError};
use crate::policy::entity;
use mayfly_wire::admin::{AuthorityInfo, RevocationList};
use mayfly_wire::{Code, EngineKind, Refusal};

impl Door {
    /// Every authority, with what verifies its certificates.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::Unavailable`].
    pub async fn authorities(&self, operator: &Operator) -> Result<Vec<AuthorityInfo>, Refusal> {
        self.allow_broker(operator, "authority_list").await?;
        let now = self.now_ms();
        let all = self.certifiers().map(|(_, one)| one.published(now));
        Ok(all.collect())
    }

    /// A list of an engine's certificates that were revoked and have not expired.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::NotFound`] for an engine without an authority, [`Code::Unavailable`].
    pub async fn authority_crl(
        &self,
        operator: &Operator,
        kind: EngineKind,
    ) -> Result<RevocationList, Refusal> {
        self.allow_broker(operator, "authority_list").await?;
        let list = self.certifier(kind)?.revocations(self.now_ms()).await;
        list.map_err(engine_failed)
    }

    /// Publishes the next authority of an engine, which signs once every holder of a certificate has it.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::NotFound`] for an engine without one, [`Code::Unavailable`].
    pub async fn authority_rotate(
        &self,
        operator: &Operator,
        kind: EngineKind,
    ) -> Result<AuthorityInfo, Refusal> {
        let act = Act::on("authority_rotate", "authority.rotate", kind);
        let on = entity::broker().map_err(super::inside)?;
        self.allow(operator, act, on).await?;
        let certifier = self.certifier(kind)?;
        let before = certifier.edition();
        let rotated = certifier.rotate(self.now_ms()).await;
        rotated.map_err(engine_failed)?;
        self.tell_holders(kind, certifier, before);
        Ok(certifier.published(self.now_ms()))
    }

    /// Makes, publishes and removes authorities as their time comes.
    pub async fn maintain_authorities(&self) {
        for (kind, certifier) in self.certifiers() {
            let before = certifier.edition();
            let kept: Result<bool, EngineError> = certifier.maintain(self.now_ms()).await;
            if let Err(error) = kept {
                tracing::error!(%kind, %error, "an authority stays as it is");
            }
            self.tell_holders(kind, certifier, before);
        }
    }

    /// Who holds a certificate is given what is published now, if that has changed.
    fn tell_holders(&self, kind: EngineKind, certifier: &dyn Certifier, before: u64) {
        if certifier.edition() == before {
            return;
        }
        tracing::info!(%kind, "an authority changed");
        for config in self.applied().credentials().values() {
            if config.engine.kind() == kind {
                self.say(Change::Credential(config.name.clone()));
            }
        }
    }

    fn certifier(&self, kind: EngineKind) -> Result<&dyn Certifier, Refusal> {
        let found = self.certifiers().find(|(found, _)| *found == kind);
        found.map(|(_, certifier)| certifier).ok_or_else(|| {
            let message = format!("the engine {kind} has no authority: expected x509 or ssh");
            Refusal::because(Code::NotFound, message)
        })
    }

    fn certifiers(&self) -> impl Iterator<Item = (EngineKind, &dyn Certifier)> {
        let others = self.engines.others.iter();
        others.filter_map(|(kind, engine)| engine.certifier().map(|one| (*kind, one)))
    }
}
