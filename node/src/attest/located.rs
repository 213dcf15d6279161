//! Finds the workload that a process speaks for, and the companion that it may be.

use std::sync::Arc;

use mayfly_kernel::ns::Namespace;
use mayfly_wire::WorkloadKey;

use super::Attestor;
use super::container::Container;
use super::error::{self, AttestError};
use super::judge::{self, Belongs};
use super::line::{CgroupId, Line};
use super::process::Process;

/// Whose a process is.
pub(super) struct Located {
    /// The workload's container.
    pub workload: Arc<Container>,
    /// The companion's, where one asks for the workload.
    pub companion: Option<Guest>,
}

/// A companion.
pub(super) struct Guest {
    /// Its cgroup; `None` for the root.
    pub cgroup: Option<CgroupId>,
    /// Its container, if an engine knows it.
    pub container: Option<Arc<Container>>,
}

impl Located {
    fn own(workload: Arc<Container>) -> Self {
        Self {
            workload,
            companion: None,
        }
    }
}

impl Attestor {
    /// Finds the workload that a process speaks for.
    pub(super) async fn locate(&self, process: &Process) -> Result<Located, AttestError> {
        let host = &self.host;
        let line = host.cgroups.line(host, process)?;
        let own = self.inspected(line.as_deref()).await?;
        let seat = own.as_deref().map(Container::seat);
        let Some(namespace) = process.pid_namespaces(host)?.pop() else {
            judge::in_host_pid_namespace(seat)?;
            // Judged to be there.
            let workload = own.ok_or_else(|| AttestError::new(error::NOT_A_CONTAINER, ""))?;
            return Ok(Located::own(workload));
        };
        let id = host.namespace_id(&namespace);
        let id = id.map_err(|error| AttestError::reading("its pid namespace", &error))?;
        // The usual case needs no look at the first process: it is the one that the container was
        // found by.
        if let Some(container) = &own
            && container.began_pid_namespace(id)
        {
            return Ok(Located::own(Arc::clone(container)));
        }
        let first = self.container_of_first(&namespace, id).await?;
        let belongs = judge::in_pid_namespace(id, line.as_deref(), seat, first.seat())?;
        let companion = (belongs == Belongs::Joined).then(|| Guest {
            cgroup: seat
                .map(|seat| seat.cgroup)
                .or(line.as_deref().map(Line::own)),
            container: own,
        });
        Ok(Located {
            workload: first,
            companion,
        })
    }

    async fn inspected(&self, line: Option<&Line>) -> Result<Option<Arc<Container>>, AttestError> {
        match line {
            Some(line) => self.registry.inspected(&self.host, line).await,
            None => Ok(None),
        }
    }

    /// The container that a pid namespace's first process is in.
    async fn container_of_first(
        &self,
        namespace: &Namespace,
        id: u64,
    ) -> Result<Arc<Container>, AttestError> {
        let host = &self.host;
        let bare = self.registry.bare(host, namespace, id)?;
        let line = host.cgroups.line(host, &bare.init)?;
        match self.inspected(line.as_deref()).await? {
            // One and the same first process, or an engine's container with the host's pid
            // namespace, in which the namespace was made.
            Some(found) if found.pid_namespace.is_none() || found.init.pid == bare.init.pid => {
                Ok(found)
            }
            Some(_) => Err(AttestError::new(
                error::AMBIGUOUS,
                "the first process of its pid namespace is in an engine's container, but is not the \
                 one that the engine started",
            )),
            None => Ok(bare),
        }
    }

    pub(super) fn key_of(&self, container: &Container) -> WorkloadKey {
        let host = &self.host;
        WorkloadKey {
            boot_id: host.boot_id.clone(),
            cgroup_id: container.cgroup.number(),
            pidns_id: container
                .pid_namespace_id()
                .unwrap_or(host.own_pid_namespace),
        }
    }
}
