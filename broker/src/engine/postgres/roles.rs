//! A role's life in the server.

use super::connect::Login;
use super::{Postgres, settings, sql, understand, understand_revoke};
use crate::engine::pool::{Failure, Lent, Pool, limited};
use crate::engine::statements::{self, Values};
use crate::engine::{EngineError, other_engine};
use crate::store::{Lease, Source};
use mayfly_wire::ConnectionName;
use mayfly_wire::admin::CredentialConfig;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use zeroize::Zeroizing;

/// Beyond the end of a lease, a role lasts this part of it in the server, and at least this long: the
/// broker ends it, and the server only if there is no broker.
const SLACK: (u32, Duration) = (10, Duration::from_secs(5));
/// A client that logs in while its role is dropped can come through. It is ended after this time.
const LATE: Duration = Duration::from_secs(1);

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
        let Source::Account {
            connection,
            account,
            sealed,
        } = &lease.source
        else {
            return Err(other_engine(lease));
        };
        let statements = understand(settings(credential)?).map_err(EngineError::Unfit)?;
        let kept = self.open(lease, sealed)?;
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
            session.transaction(&text).await
        });
        let outcome = outcome.await;
        lent.done(outcome)
    }

    pub(super) async fn extend_role(
        &self,
        credential: &CredentialConfig,
        lease: &Lease,
    ) -> Result<(), EngineError> {
        let Source::Account {
            connection,
            account,
            ..
        } = &lease.source
        else {
            return Err(other_engine(lease));
        };
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
            session.transaction(&text).await
        });
        let outcome = outcome.await;
        lent.done(outcome)
    }

    pub(super) async fn revoke_role(&self, lease: &Lease) -> Result<(), EngineError> {
        let Source::Account {
            connection,
            account,
            sealed,
        } = &lease.source
        else {
            // Nothing exists for this lease alone.
            return Ok(());
        };
        let kept = self.open(lease, sealed)?;
        let revoke = understand_revoke(&kept.revoke).map_err(EngineError::Unfit)?;
        let values = Values {
            name: account,
            password: "",
            expiration: "",
        };
        let text = if revoke.is_empty() {
            Zeroizing::new(sql::drop_role(account))
        } else {
            let text = statements::join(&revoke, &values).map_err(EngineError::Unfit)?;
            Zeroizing::new(sql::end_sessions(account) + &text)
        };
        let mut lent = self.lend(connection).await?;
        let session = lent.connection()?;
        let outcome = limited(async {
            let mut left = match session.transaction_then(&text, sql::ORPHANS).await {
                Ok(left) => left,
                // The operator's own statements may not bear that nothing is there.
                Err(Failure::Refused(cause)) => {
                    if session.number(&sql::count_roles(account)).await? > 0 {
                        return Err(Failure::Refused(cause));
                    }
                    session.number(sql::ORPHANS).await?
                }
                Err(broken) => return Err(broken),
            };
            while left > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
                left = session.number(sql::ORPHANS).await?;
            }
            Ok(())
        });
        let outcome = outcome.await;
        lent.done(outcome)?;
        self.look_again(connection);
        Ok(())
    }

    /// Once more ends sessions whose role is gone, a little later.
    fn look_again(&self, connection: &ConnectionName) {
        let late = Arc::clone(&self.late);
        let mut waiting = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.insert(connection.clone()) {
            return;
        }
        drop(waiting);
        let (pool, connection) = (Arc::clone(&self.pool), connection.clone());
        tokio::spawn(async move {
            tokio::time::sleep(LATE).await;
            late.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&connection);
            let ended = async {
                let mut lent = lend(&pool, &connection).await?;
                let session = lent.connection()?;
                let outcome = limited(session.number(sql::ORPHANS)).await;
                lent.done(outcome)
            };
            match ended.await {
                Ok(0) => {}
                Ok(ended) => {
                    tracing::info!(%connection, ended, "sessions of dropped roles ended late")
                }
                Err(error) => {
                    tracing::debug!(%connection, %error, "late sessions were not looked for")
                }
            }
        });
    }
}

/// A session of which what was given up before is ended.
pub(super) async fn lend(
    pool: &Pool<Login>,
    connection: &ConnectionName,
) -> Result<Lent<Login>, EngineError> {
    let mut lent = pool.lend(connection).await?;
    let session = lent.connection()?;
    let ended = limited(pool.connector().end_lost(connection, session)).await;
    match ended {
        Ok(()) => Ok(lent),
        Err(failure) => Err(match lent.done::<()>(Err(failure)) {
            Ok(()) => EngineError::Unavailable("unknown".to_owned()),
            Err(error) => error,
        }),
    }
}
