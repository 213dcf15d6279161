//! What the engine does on one connection, in the engine's own statements. Names in them are plain.

use super::super::pool::Failure;
use super::super::statements::is_plain;
use super::link::Link;
use super::verifier::Plugin;
use std::time::Duration;
use tokio::time::Instant;

/// How long a lock is waited for before its holder is ended, and after that, in seconds.
const PATIENCE: (u32, u32) = (1, 5);
/// How long a connection takes to end that was told to, before it is looked for again: at first, and at
/// last.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// How long that is waited for. One that takes back a large transaction can need hours: it does nothing
/// else any more, and who waits for it would take the server for one that is down.
const ENDING: Duration = Duration::from_secs(2);

/// Takes the lock under which a user is made, changed and removed; for as long as `link` is open, or
/// until [`unlock`].
///
/// What somebody else has begun with that user and given up is over then, and nothing of it can come
/// later: nothing is sent before the lock is held, and the server takes the lock of a connection back
/// only when all that was sent on it is done or dropped.
///
/// Anybody who is logged in may take any lock, so `name` must be one that nobody can guess.
pub(super) async fn lock(link: &mut Link, name: &str) -> Result<(), Failure> {
    if try_lock(link, name, PATIENCE.0).await? {
        return Ok(());
    }
    let holder = format!("SELECT IS_USED_LOCK('{name}')");
    for holder in first(link, &holder).await? {
        kill(link, &holder).await?;
    }
    if try_lock(link, name, PATIENCE.1).await? {
        return Ok(());
    }
    let cause = "what was begun before with the same user is not over yet";
    Err(Failure::Refused(cause.to_owned()))
}

async fn try_lock(link: &mut Link, name: &str, seconds: u32) -> Result<bool, Failure> {
    let taken = first(link, &format!("SELECT GET_LOCK('{name}', {seconds})")).await?;
    Ok(taken == ["1"])
}

/// The first column of each row, but for those that are NULL.
async fn first(link: &mut Link, sql: &str) -> Result<Vec<String>, Failure> {
    let rows = link.rows(sql).await?;
    Ok(rows
        .into_iter()
        .filter_map(|row| row.into_iter().next()?)
        .collect())
}

/// Gives the lock back after `outcome`, unless the connection is of no use any more.
pub(super) async fn unlock<T>(
    link: &mut Link,
    name: &str,
    outcome: Result<T, Failure>,
) -> Result<T, Failure> {
    if !matches!(outcome, Err(Failure::Broken(_))) {
        link.run(&format!("DO RELEASE_LOCK('{name}')")).await?;
    }
    outcome
}

/// The hosts from which a user of that name may come, each with what it proves itself by.
pub(super) async fn hosts(link: &mut Link, name: &str) -> Result<Vec<(String, String)>, Failure> {
    let sql = format!("SELECT Host, plugin FROM mysql.user WHERE User = '{name}'");
    let pair = |row: Vec<Option<String>>| match &row[..] {
        [host, plugin] => (
            host.clone().unwrap_or_default(),
            plugin.clone().unwrap_or_default(),
        ),
        _ => (String::new(), String::new()),
    };
    let found: Vec<(String, String)> = link.rows(&sql).await?.into_iter().map(pair).collect();
    if found.iter().all(|(host, _)| host.bytes().all(is_plain)) {
        return Ok(found);
    }
    Err(Failure::Refused(format!(
        "the user {name} is of a host with quotes in its name"
    )))
}

/// Nobody logs in as a user any more, wherever from, and its connections are ended. It comes before all
/// that others can hold up.
pub(super) async fn lock_out(link: &mut Link, name: &str) -> Result<(), Failure> {
    for (host, _) in hosts(link, name).await? {
        let locked = format!("ALTER USER IF EXISTS '{name}'@'{host}' ACCOUNT LOCK");
        match link.run(&locked).await {
            // MariaDB before 10.4 cannot; then the user has until it is dropped.
            Err(Failure::Refused(cause)) => {
                tracing::debug!(user = name, %cause, "a user is not locked out before it is dropped");
            }
            outcome => outcome?,
        }
    }
    end_connections(link, name).await
}

/// Removes a user, wherever it may come from.
pub(super) async fn drop_user(link: &mut Link, name: &str) -> Result<(), Failure> {
    for (host, _) in hosts(link, name).await? {
        link.run(&format!("DROP USER IF EXISTS '{name}'@'{host}'"))
            .await?;
    }
    Ok(())
}

/// Ends every connection of a user.
pub(super) async fn end_connections(link: &mut Link, name: &str) -> Result<(), Failure> {
    let of = format!("USER = '{name}'");
    end(link, &of).await
}

/// Ends every connection of a user of ours that is no more: one that came in while it was removed.
pub(super) async fn end_orphans(link: &mut Link) -> Result<(), Failure> {
    let of = "USER LIKE 'mf\\_%' AND USER NOT IN (SELECT User FROM mysql.user)";
    end(link, of).await
}

async fn end(link: &mut Link, of: &str) -> Result<(), Failure> {
    let sql = format!("SELECT ID FROM information_schema.PROCESSLIST WHERE {of}");
    let (mut wait, longest) = LOOK;
    let began = Instant::now();
    loop {
        let ids = first(link, &sql).await?;
        if ids.is_empty() {
            return Ok(());
        }
        for id in &ids {
            kill(link, id).await?;
        }
        if began.elapsed() > ENDING {
            tracing::warn!(
                connections = ids.len(),
                "connections that were ended still take back what they did"
            );
            return Ok(());
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(longest);
    }
}

/// `id` is what the server said.
async fn kill(link: &mut Link, id: &str) -> Result<(), Failure> {
    let id: u64 = id
        .parse()
        .map_err(|_| Failure::Broken("expected the number of a connection".to_owned()))?;
    match link.run(&format!("KILL {id}")).await {
        // ER_NO_SUCH_THREAD: it ended by itself.
        Err(Failure::Refused(cause)) if cause.ends_with("(1094)") => Ok(()),
        other => other,
    }
}

/// What the server's clock says in `seconds`, in the time zone of its events.
pub(super) async fn time_in(link: &mut Link, seconds: u64) -> Result<String, Failure> {
    let sql = format!("SELECT CAST(NOW() + INTERVAL {seconds} SECOND AS CHAR)");
    first(link, &sql)
        .await?
        .pop()
        .ok_or_else(|| Failure::Refused("the server does not tell the time".to_owned()))
}

/// Gives a user that is there another password. `user` is `name`, or `name@host` where there are
/// several; `own` says that it is the one that this connection is logged in as.
pub(super) async fn set_password(
    link: &mut Link,
    user: &str,
    own: bool,
    verifier: &(dyn Fn(Plugin) -> String + Sync),
) -> Result<(), Failure> {
    let whole = if own {
        first(link, "SELECT CURRENT_USER()")
            .await?
            .pop()
            .unwrap_or_default()
    } else {
        user.to_owned()
    };
    let (name, host) = match whole.rsplit_once('@') {
        Some((name, host)) => (name, Some(host)),
        None => (whole.as_str(), None),
    };
    let mut found = hosts(link, name).await?;
    found.retain(|(at, _)| host.is_none_or(|host| host == at));
    let [(host, plugin)] = &found[..] else {
        return Err(Failure::Refused(format!(
            "expected one user {user}, found {}; where there are several, write NAME@HOST",
            found.len()
        )));
    };
    let plugin = match plugin.as_str() {
        "" => Some(Plugin::Native),
        plugin => Plugin::named(plugin),
    };
    let plugin = plugin.ok_or_else(|| {
        let names = Plugin::ALL.map(Plugin::as_str).join(", ");
        Failure::Refused(format!("expected {user} to prove itself by one of {names}"))
    })?;
    let (with, using) = if link.mariadb {
        ("VIA", "USING")
    } else {
        ("WITH", "AS")
    };
    let (plugin, verifier) = (plugin.as_str(), verifier(plugin));
    link.run(&format!(
        "ALTER USER '{name}'@'{host}' IDENTIFIED {with} {plugin} {using} '{verifier}'"
    ))
    .await
}
