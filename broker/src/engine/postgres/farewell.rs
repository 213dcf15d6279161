//! How a role is taken out of the server.
//!
//! Whatever is in the way of dropping it, nobody logs in as it any more: that is committed first, or
//! together with the failed attempt. What a role owns is never given to the broker's account, for a
//! function that runs with the rights of its owner would then run with the broker's.

use super::session::Session;
use super::sql;
use crate::engine::pool::Failure;
use std::time::Duration;

/// How often it is looked whether sessions that were ended are gone.
const LOOK: Duration = Duration::from_millis(2);

/// Drops a role, if it is there; what it owns goes to `heir`, a role that it is a member of.
///
/// # Errors
/// It is locked out, and what keeps it is said.
pub(super) async fn drop_role(
    session: &Session,
    name: &str,
    heir: Option<&str>,
) -> Result<(), Failure> {
    let after = sql::count_roles(name) + ";" + sql::ORPHANS;
    let inside = sql::drop_or_lock(name);
    let said = session.transaction_then(&inside, &after).await?;
    let [.., roles, orphans] = said[..] else {
        return Err(Failure::Broken("an answer is missing".to_owned()));
    };
    if roles > 0 {
        // Who came in before it was locked out.
        until_none(session, &sql::end_sessions(name)).await?;
        let dropped = session.transaction(&sql::hand_over(name, heir)).await;
        dropped.map_err(|failure| match failure {
            Failure::Refused(cause) => Failure::Refused(format!(
                "{name} cannot log in any more, but is not dropped: {cause}"
            )),
            broken => broken,
        })?;
    } else if orphans == 0 {
        return Ok(());
    }
    until_none(session, sql::ORPHANS).await
}

/// Locks a role out, and then does what an operator wrote.
pub(super) async fn drop_by(session: &Session, name: &str, text: &str) -> Result<(), Failure> {
    session.transaction(&sql::lock_out(name)).await?;
    until_none(session, &sql::end_sessions(name)).await?;
    match session.operators(text).await {
        // They may not bear that nothing is there.
        Err(Failure::Refused(cause)) => {
            if session.number(&sql::count_roles(name)).await? > 0 {
                return Err(Failure::Refused(cause));
            }
        }
        outcome => outcome?,
    }
    until_none(session, sql::ORPHANS).await
}

/// Asks again until the answer is 0.
pub(super) async fn until_none(session: &Session, sql: &str) -> Result<(), Failure> {
    while session.number(sql).await? > 0 {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
