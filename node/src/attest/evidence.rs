//! Puts together what was established about a peer and its workload.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use mayfly_wire::evidence::Companion;
use mayfly_wire::{Assurance, Evidence, Facility, Posture, WorkloadKey};

use super::Attestor;
use super::container::Container;
use super::error::AttestError;
use super::facts::Facts;
use super::line::{CgroupId, Tree};
use super::located::Located;
use super::peer::Peer;
use super::posture::{self, Began, LimitTexts};
use super::sockets::Exposed;

/// How long the list of engines' sockets is taken as it was.
const SOCKETS_AGE: Duration = Duration::from_secs(1);

impl Attestor {
    pub(super) fn evidence(
        &self,
        peer: &Peer,
        located: &Located,
        workload: WorkloadKey,
    ) -> Result<Evidence, AttestError> {
        let container = &located.workload;
        // What the peer itself stands in; unknown for a companion that no engine knows.
        let home = match &located.companion {
            None => Some(container),
            Some(guest) => guest.container.as_ref(),
        };
        let home = home.map(|home| &**home);
        let facts = Facts::read(&self.host, peer.process(), home, None)?;
        let own_namespaces = home.map(|home| posture::in_own_namespaces(&facts, Began::of(home)));
        let peer_posture = self.judge(&facts, home);
        let init = if located.companion.is_none() && peer.pid() == container.init.pid {
            peer_posture.clone()
        } else {
            let read = Facts::read(&self.host, &container.init, Some(container), Some(&facts));
            self.judge(&read?, Some(container))
        };
        Ok(Evidence {
            workload,
            node: self.config.node.clone(),
            assurance: match container.metadata {
                Some(_) => Assurance::Inspected,
                None => Assurance::Kernel,
            },
            lacking: self.lacking(container),
            cgroup_path: Some(container.cgroup_path.clone()),
            container: container.metadata.clone(),
            companion: located.companion.as_ref().map(|guest| Companion {
                cgroup_id: guest.cgroup.map_or(1, CgroupId::number),
                container: guest
                    .container
                    .as_ref()
                    .and_then(|found| found.metadata.clone()),
            }),
            own_namespaces,
            peer: peer_posture,
            init,
            init_pid: container.init.pid,
            init_start_time: container.init_start_time,
        })
    }

    fn judge(&self, facts: &Facts, home: Option<&Container>) -> Posture {
        let limits = home.map(LimitTexts::of).unwrap_or_default();
        let sockets = self.engines_sockets();
        posture::posture(facts, home.map(Began::of), &limits, sockets.as_deref())
    }

    /// What the node's kernel lacks, and whether this container's cgroup is not one of v2.
    fn lacking(&self, container: &Container) -> BTreeSet<Facility> {
        let mut lacking = self.host.lacking.clone();
        if container.cgroup.tree != Tree::V2 {
            lacking.insert(Facility::CgroupV2);
        }
        lacking
    }

    /// The engines' sockets on this host; `None` if they cannot be told.
    fn engines_sockets(&self) -> Option<Arc<[Exposed]>> {
        let mut known = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, sockets)) = &*known
            && at.elapsed() < SOCKETS_AGE
        {
            return sockets.clone();
        }
        let found = Exposed::find(&self.config.engine_sockets);
        let sockets = found
            .inspect_err(|error| {
                tracing::warn!(%error, "cannot tell where container engines' sockets are: whether a container has one inside is unknown");
            })
            .ok()
            .map(Arc::from);
        *known = Some((Instant::now(), sockets.clone()));
        sockets
    }
}
