//! What is done with the role of one lease: it is made, extended, removed.

use super::{Postgres, farewell, settings, sql, understand, understand_revoke};
use crate::engine::EngineError;
use crate::engine::account::{Account, at};
use crate::engine::pool::{Failure, limited};
use crate::engine::statements::{self, Values};
use crate::store::Lease;
use mayfly_wire::admin::CredentialConfig;
use std::time::Duration;

/// Beyond the end of a lease, a role lasts this part of it in the server, and at least this long: the
/// broker ends it, and the server only if there is no broker.
const SLACK: (u32, Duration) = (10, Duration::from_secs(5));

impl Postgres {
    /// For how long a role must be good in the server.
    fn remaining(
        &self,
        credential: &CredentialConfig,
        lease: &Lease,
    ) -> Result<Duration, EngineError> {
        let left = lease.expires_at.saturating_sub(self.clock.now_ms());
        if left == 0 {
            return Err(EngineError::Conflict(format!(
                "{} has ended already",
                lease.id
            )));
        }
        // A clock that jumped must not make it last.
        let ttl = Duration::from_secs(credential.ttl_seconds);
        let left = Duration::from_millis(left).min(ttl);
        Ok(left + (ttl / SLACK.0).max(SLACK.1))
    }

    pub(super) async fn create_role(
        &self,
        credential: &CredentialConfig,
        lease: &Lease,
    ) -> Result<(), EngineError> {
        let (connection, account) = at(lease)?;
        let statements = understand(settings(credential)?).map_err(EngineError::Unfit)?;
        let kept = Account::of(&self.keys, lease)?;
        let verifier = self.verifier(connection, kept.password.as_bytes()).await?;
        let mut lent = self.lend(connection).await?;
        let until = self.remaining(credential, lease)?;
        let session = lent.connection()?;
        let outcome = limited(async {
            let expiration = session.time_in(until).await?;
            let values = Values {
                name: account,
                password: &verifier,
                expiration: &expiration,
            };
            let text = statements::join(&statements.create, &values).map_err(Failure::Refused)?;
            session.operators(&text).await
        });
        let outcome = outcome.await;
        lent.done(outcome)
    }

    pub(super) async fn extend_role(
        &self,
        credential: &CredentialConfig,
        lease: &Lease,
    ) -> Result<(), EngineError> {
        let (connection, account) = at(lease)?;
        let statements = understand(settings(credential)?).map_err(EngineError::Unfit)?;
        let mut lent = self.lend(connection).await?;
        let until = self.remaining(credential, lease)?;
        let session = lent.connection()?;
        let outcome = limited(async {
            let expiration = session.time_in(until).await?;
            if statements.renew.is_empty() {
                return session
                    .transaction(&sql::extend(account, &expiration))
                    .await;
            }
            let values = Values {
                name: account,
                password: "",
                expiration: &expiration,
            };
            let text = statements::join(&statements.renew, &values).map_err(Failure::Refused)?;
            session.operators(&text).await
        });
        let outcome = outcome.await;
        lent.done(outcome)
    }

    pub(super) async fn revoke_role(&self, lease: &Lease) -> Result<(), EngineError> {
        if !lease.source.has_target() {
            // Nothing exists for this lease alone.
            return Ok(());
        }
        let (connection, account) = at(lease)?;
        let kept = Account::of(&self.keys, lease)?;
        let revoke = understand_revoke(&kept.revoke).map_err(EngineError::Unfit)?;
        let values = Values {
            name: account,
            password: "",
            expiration: "",
        };
        let text = statements::join(&revoke, &values).map_err(EngineError::Unfit)?;
        if revoke.is_empty() && self.removals.remove(connection, account).await? {
            return Ok(());
        }
        let mut lent = self.lend(connection).await?;
        let session = lent.connection()?;
        let outcome = limited(async {
            if revoke.is_empty() {
                farewell::drop_role(session, account, kept.heir.as_deref()).await
            } else {
                farewell::drop_by(session, account, &text).await
            }
        });
        let outcome = outcome.await;
        lent.done(outcome)?;
        self.removals.look_again(connection);
        Ok(())
    }
}
