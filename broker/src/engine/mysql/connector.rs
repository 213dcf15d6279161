//! Opens connections to MariaDB and MySQL.

use super::super::connections::{Connections, Target};
use super::super::pool::{Connector, Opening};
use super::super::root::Roots;
use super::link::{Denied, Link};
use mayfly_wire::ConnectionName;
use std::sync::Arc;

/// Opens them.
pub(super) struct Login {
    connections: Arc<Connections>,
    roots: Arc<Roots>,
}

impl Login {
    pub(super) fn new(connections: Arc<Connections>, roots: Arc<Roots>) -> Self {
        Self { connections, roots }
    }

    /// A connection that is logged in. After a rotation of the broker's own password that was
    /// interrupted, either password may be the good one.
    async fn open(&self, name: &ConnectionName, target: &Target) -> Result<Link, String> {
        let known = self.connections.password(name).await;
        let known = known.map_err(|error| error.to_string())?;
        let denied = match Link::open(&target.config, &known).await {
            Err(Denied::Password(cause)) => cause,
            other => return other.map_err(Denied::cause),
        };
        let pending = self.roots.pending(name).await;
        let Some(pending) = pending.map_err(|error| error.to_string())? else {
            return Err(denied);
        };
        let link = Link::open(&target.config, &pending).await;
        let link = link.map_err(Denied::cause)?;
        let promoted = self.roots.promote(name, &pending).await;
        promoted.map_err(|error| error.to_string())?;
        Ok(link)
    }
}

impl Connector for Login {
    type Connection = Link;

    fn connect<'a>(&'a self, name: &'a ConnectionName, target: &'a Target) -> Opening<'a, Link> {
        Box::pin(self.open(name, target))
    }

    fn is_closed(&self, link: &Link) -> bool {
        link.is_closed()
    }
}
