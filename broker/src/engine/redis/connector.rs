//! Opens connections to Redis, and sees to it that what was given up on one has no effect afterwards.

use super::super::connections::{Connections, Target};
use super::super::pool::{Connector, Failure, Opening};
use super::super::root::Roots;
use super::super::stream;
use super::resp::{Answer, Client};
use mayfly_wire::{ConnectionConfig, ConnectionName, Secret};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const PORT: u16 = 6379;

/// An open connection.
pub(super) struct Link {
    pub(super) client: Client,
    /// Its id at the server.
    id: String,
}

/// Opens them. A command that was sent and not answered may still wait in its connection for a server
/// that is stopped or slow. It never takes effect once the server has closed that connection, which it
/// is told to before an account is removed:
/// - what this process gave up is known by the connection's id;
/// - what an earlier process left is all that the broker's user has open when this one comes first. No
///   list of connections is asked for: whoever is logged in can give its own a name of any length, and
///   such a list would have no limit.
pub(super) struct Redis {
    connections: Arc<Connections>,
    roots: Arc<Roots>,
    cut: Mutex<HashMap<ConnectionName, HashSet<String>>>,
    /// Whether nothing of an earlier process is left at a target; held by the first that comes there.
    met: Mutex<HashMap<ConnectionName, Arc<tokio::sync::Mutex<bool>>>>,
}

impl Redis {
    pub(super) fn new(connections: Arc<Connections>, roots: Arc<Roots>) -> Self {
        Self {
            connections,
            roots,
            cut: Mutex::default(),
            met: Mutex::default(),
        }
    }

    fn cut(&self) -> MutexGuard<'_, HashMap<ConnectionName, HashSet<String>>> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the server close every connection on which something was given up.
    pub(super) async fn settle(
        &self,
        name: &ConnectionName,
        username: &str,
        link: &mut Link,
    ) -> Result<(), Failure> {
        let ids: Vec<String> = {
            let cut = self.cut();
            cut.get(name).into_iter().flatten().cloned().collect()
        };
        kill(&mut link.client, &ids, username).await?;
        if let Some(cut) = self.cut().get_mut(name) {
            for id in &ids {
                cut.remove(id);
            }
        }
        Ok(())
    }

    /// A connection that is logged in. After a rotation of the broker's own password that was
    /// interrupted, either password may be the good one.
    async fn log_in(&self, name: &ConnectionName, target: &Target) -> Result<Client, String> {
        let known = self.connections.password(name).await;
        let known = known.map_err(|error| error.to_string())?;
        let denied = match authenticated(&target.config, &known).await {
            Err(Denied::Password(cause)) => cause,
            other => return other.map_err(Denied::cause),
        };
        let pending = self.roots.pending(name).await;
        let Some(pending) = pending.map_err(|error| error.to_string())? else {
            return Err(denied);
        };
        let client = authenticated(&target.config, &pending).await;
        let client = client.map_err(Denied::cause)?;
        let promoted = self.roots.promote(name, &pending).await;
        promoted.map_err(|error| error.to_string())?;
        Ok(client)
    }

    async fn open(&self, name: &ConnectionName, target: &Target) -> Result<Link, String> {
        let met = {
            let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(met.entry(name.clone()).or_default())
        };
        // The first comes alone, and closes none of the others'.
        let mut met = met.lock().await;
        let mut client = if *met {
            drop(met);
            self.log_in(name, target).await?
        } else {
            let mut client = self.log_in(name, target).await?;
            end_earlier(&mut client, &target.config.username).await?;
            *met = true;
            client
        };
        match told(client.ask(&[b"CLIENT", b"ID"]).await)? {
            Answer::Number(id) => Ok(Link {
                client,
                id: id.to_string(),
            }),
            Answer::No(cause) => Err(format!("CLIENT ID: {cause}")),
            _ => Err("expected a number from CLIENT ID".to_owned()),
        }
    }
}

/// Closes every other connection of the broker's user.
async fn end_earlier(client: &mut Client, username: &str) -> Result<(), String> {
    let others: &[&[u8]] = &[
        b"CLIENT",
        b"KILL",
        b"TYPE",
        b"normal",
        b"USER",
        username.as_bytes(),
        b"SKIPME",
        b"yes",
    ];
    match told(client.ask(others).await)? {
        Answer::Number(_) => Ok(()),
        Answer::No(cause) => Err(format!("CLIENT KILL: {cause}")),
        _ => Err("expected a number from CLIENT KILL".to_owned()),
    }
}

/// Why somebody does not get in.
enum Denied {
    Password(String),
    Other(String),
}

impl Denied {
    fn cause(self) -> String {
        match self {
            Self::Password(cause) | Self::Other(cause) => cause,
        }
    }
}

async fn authenticated(config: &ConnectionConfig, password: &Secret) -> Result<Client, Denied> {
    let stream = stream::open(config, PORT).await.map_err(Denied::Other)?;
    let mut client = Client::new(stream);
    let command: &[&[u8]] = &[b"AUTH", config.username.as_bytes(), password.expose()];
    match told(client.ask(command).await).map_err(Denied::Other)? {
        Answer::Text(_) => Ok(client),
        // The rest of the line might repeat what it was asked.
        Answer::No(cause) => {
            let code = cause.split(' ').next().unwrap_or_default();
            let cause = format!(
                "the server does not let {} in ({code}): expected a user of that name with the \
                 password from `mayfly connection set`",
                config.username
            );
            match code {
                "WRONGPASS" => Err(Denied::Password(cause)),
                _ => Err(Denied::Other(cause)),
            }
        }
        _ => Err(Denied::Other(
            "expected OK from AUTH, found another answer".to_owned(),
        )),
    }
}

/// Only those of the broker's own user: ids are used again by a server that was started anew.
async fn kill(client: &mut Client, ids: &[String], username: &str) -> Result<(), Failure> {
    let user = username.as_bytes();
    let commands: Vec<[&[u8]; 6]> = ids
        .iter()
        .map(|id| [&b"CLIENT"[..], b"KILL", b"ID", id.as_bytes(), b"USER", user])
        .collect();
    let commands: Vec<&[&[u8]]> = commands.iter().map(<[_; 6]>::as_slice).collect();
    for answer in client.ask_all(&commands).await? {
        if let Answer::No(cause) = answer {
            return Err(Failure::Refused(format!("CLIENT KILL: {cause}")));
        }
    }
    Ok(())
}

fn told<T>(outcome: Result<T, Failure>) -> Result<T, String> {
    outcome.map_err(|failure| match failure {
        Failure::Refused(cause) | Failure::Broken(cause) => cause,
    })
}

impl Connector for Redis {
    type Connection = Link;

    fn connect<'a>(&'a self, name: &'a ConnectionName, target: &'a Target) -> Opening<'a, Link> {
        Box::pin(self.open(name, target))
    }

    fn is_closed(&self, link: &Link) -> bool {
        link.client.is_closed()
    }

    fn cut_off(&self, name: &ConnectionName, link: Link) {
        let mut cut = self.cut();
        cut.entry(name.clone()).or_default().insert(link.id);
    }
}
