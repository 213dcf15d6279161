//! What is kept of a workload between its attestation and its death, and how it is found again by a
//! node that was started anew.

use std::sync::Arc;

use mayfly_kernel::ns::{Kind, first_inode};
use mayfly_kernel::pidfd::Pidfd;
use mayfly_kernel::procdir::ProcDir;
use mayfly_wire::WorkloadKey;
use mayfly_wire::link::Watched;

use super::Attestor;
use super::container::Container;
use super::judge::Seat;
use super::line::CgroupId;
use super::locate::Registry;
use super::process::Process;
use crate::death::DeathTarget;

/// What is remembered of a container as long as it lives.
#[derive(Debug)]
pub(crate) struct Held {
    pub(super) registry: Arc<Registry>,
    pub(super) container: Arc<Container>,
}

impl Held {
    /// Lets go of it.
    pub(crate) fn let_go(&self) {
        self.registry.forget(&self.container);
    }
}

impl Attestor {
    /// The file that tells when a container's cgroup has no process any more: for one in the host's
    /// pid namespace, whose first process does not take the others with it.
    pub(super) fn events_of(&self, seat: &Seat) -> Option<std::fs::File> {
        if seat.pid_namespace.is_some() {
            return None;
        }
        let directory = self.host.cgroups.open(seat.cgroup).ok()?;
        mayfly_kernel::cgroup::open_in(directory, "cgroup.events").ok()
    }

    /// Finds a workload's first process again after this program was started anew: by its pid, and
    /// only if everything else fits too.
    pub(crate) fn find_again(&self, watched: &Watched) -> Option<DeathTarget> {
        let host = &self.host;
        let key = &watched.workload;
        if key.boot_id != host.boot_id {
            return None;
        }
        let init = Process::open(host, watched.init_pid).ok()?;
        let cgroup = CgroupId::from_number(key.cgroup_id);
        let line = host.cgroups.line_in(host, &init, cgroup.tree).ok()??;
        let namespace = init.pid_namespaces(host).ok()?.pop();
        let id = namespace
            .as_ref()
            .map(|namespace| host.namespace_id(namespace));
        let pid_namespace = id.transpose().ok()?;
        let same = init.start_time().ok()? == watched.init_start_time
            && line.is_within(cgroup)
            && pid_namespace.unwrap_or(host.own_pid_namespace) == key.pidns_id;
        if !same || !init.alive() {
            return None;
        }
        let events = self.events_of(&Seat {
            cgroup,
            pid_namespace,
        });
        Some(DeathTarget::new(key.clone(), init.pidfd, events, None))
    }
}

/// A workload, found by one of its processes and not by a connection of it.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) workload: WorkloadKey,
    /// Its first process.
    pub(crate) first: Pidfd,
    /// When that was started, in clock ticks since boot.
    pub(crate) started: u64,
}

impl Attestor {
    /// The workload of the process that has this pid now, if the process is as it `must` be.
    pub(crate) async fn holder(
        &self,
        pid: u32,
        must: impl FnOnce(&ProcDir) -> bool,
    ) -> Option<Holder> {
        let process = Process::open(&self.host, pid).ok()?;
        let must = must(&process.directory);
        let container = self.locate(&process).await.ok()?.workload;
        // Alive after all was read, so that all of it was this process's.
        if !must || !process.alive() {
            return None;
        }
        Some(Holder {
            workload: self.key_of(&container),
            first: container.init.pidfd.try_clone().ok()?,
            started: container.init_start_time,
        })
    }

    /// Whether this node sees every process of the host.
    pub(crate) fn sees_all(&self) -> bool {
        let own = ProcDir::open(std::process::id());
        let own = own.and_then(|own| own.namespace_inode(Kind::Pid));
        own.is_ok_and(|(_, inode)| inode == first_inode(Kind::Pid))
    }
}
