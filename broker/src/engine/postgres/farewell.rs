//! How a role is taken out of the server.
//!
//! Whatever is in the way of dropping it, nobody logs in as it any more: that is committed first, or
//! together with the failed attempt. What a role owns is never given to the broker's account, for a
//! function that runs with the rights of its owner would then run with the broker's.

use super::session::Session;
use super::sql;
use crate::engine::pool::Failure;
use std::time::Duration;
use tokio::time::Instant;

/// How often it is looked whether sessions that were ended are gone: at first, and at last.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// How long that is waited for. Some libraries in the server (`xpath`) do not let themselves be
/// interrupted: a session in one has been told to end and commits nothing any more, but with a statement
/// made for it this can take hours, in which a removal that waits would pass for a server that is down.
const ENDING: Duration = Duration::from_secs(2);

/// Drops a role, if it is there; what it owns goes to `heir`, a role that it is a member of.
///
/// # Errors
/// It is locked out, and what keeps it is said.
pub(super) async fn drop_role(
    session: &Session,
    name: &str,
    heir: Option<&str>,
) -> Result<(), Failure> {
    let after = sql::count_roles(name) + ";" + &sql::sessions();
    let inside = sql::drop_or_lock(name);
    let said = session.transaction_then(&inside, &after).await?;
    let [.., roles, sessions] = said[..] else {
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
    } else if sessions == 0 {
        return Ok(());
    }
    until_none(session, &sql::sessions()).await
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
    until_none(session, &sql::sessions()).await
}

/// Asks again until no session is left, or those that are left take their time.
pub(super) async fn until_none(session: &Session, sql: &str) -> Result<(), Failure> {
    let (mut wait, longest) = LOOK;
    let began = Instant::now();
    loop {
        let sessions = session.number(sql).await?;
        if sessions > 0 && began.elapsed() < ENDING {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(longest);
            continue;
        }
        if sessions > 0 {
            tracing::warn!(
                sessions,
                "sessions that were ended still run what cannot be interrupted"
            );
        }
        return Ok(());
    }
}
