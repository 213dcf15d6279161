//! A container, as it was when it was first seen. What it changes about itself later is compared with
//! this.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use mayfly_kernel::cgroup::open_in;
use mayfly_kernel::ns::{Kind, Namespace};
use mayfly_kernel::probe::Facility;
use mayfly_kernel::procdir::{Place, place_of_root};
use mayfly_wire::evidence;

use super::error::AttestError;
use super::host::Host;
use super::judge::Seat;
use super::line::{CgroupId, Line, Tree};
use super::process::Process;

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its cgroup.
    pub cgroup: CgroupId,
    /// The cgroup's path.
    pub cgroup_path: String,
    /// Its first process. For one in the host's pid namespace, the one that the engine started.
    pub init: Process,
    /// Whether that has pid 1 in the container's pid namespace. It has not where the container shares
    /// another's.
    pub init_is_first: bool,
    /// When that was started, in clock ticks since boot.
    pub init_start_time: u64,
    /// Its pid namespace, the outermost below the host's; `None` in the host's.
    pub pid_namespace: Option<Pinned>,
    /// The user namespace that its first process was in.
    pub user: Pinned,
    /// The mount namespace likewise.
    pub mount: Pinned,
    /// Whether a process in that user namespace, without CAP_SYS_ADMIN in its bounding set, never
    /// had the power to mount anything here.
    pub user_is_outermost: bool,
    /// The root of that mount namespace, which a process can leave by chroot(2); `None` if it could
    /// not be looked at.
    pub root: Option<Place>,
    /// Its limits.
    pub limits: Limits,
    /// What an engine says about it.
    pub metadata: Option<evidence::Container>,
}

/// A namespace that is remembered.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// Its id, or its inode.
    pub id: u64,
    /// What keeps its inode from being used again, where the inode is all there is.
    _held: Option<Namespace>,
}

impl Pinned {
    /// Remembers a namespace, and holds it open if it must be, or may be.
    fn new(host: &Host, namespace: Namespace, harmless: bool) -> std::io::Result<Self> {
        let id = host.namespace_id(&namespace)?;
        // A mount namespace that is held keeps its mounts, and so a stopped container's volumes: only
        // where nothing else tells it from its successors, and until its container's death is seen.
        let hold = harmless || !host.facilities.has(Facility::NamespaceId);
        Ok(Self {
            id,
            _held: hold.then_some(namespace),
        })
    }
}

impl Container {
    /// Remembers a container by its first process.
    pub(crate) fn first_seen(
        host: &Host,
        init: Process,
        cgroup: CgroupId,
        cgroup_path: String,
        metadata: Option<evidence::Container>,
    ) -> Result<Self, AttestError> {
        let failed = |error| AttestError::reading("the container's first process", &error);
        let pid_namespace = init.pid_namespaces(host)?.pop();
        let user = init.namespace(host, Kind::User).map_err(failed)?;
        let mount = init.namespace(host, Kind::Mount).map_err(failed)?;
        let user_inode = user.inode().map_err(failed)?;
        // Whoever made the pid namespace was in this user namespace, and the container cannot change
        // that.
        let user_is_outermost = host.owns(Kind::User, &user).map_err(failed)?
            || match &pid_namespace {
                Some(pids) => pids.owner().and_then(|o| o.inode()).map_err(failed)? == user_inode,
                None => false,
            };
        let root = place_of_root(&mount).ok();
        let limits = Limits::find(host, &init, cgroup, &cgroup_path)?;
        let pids = init.pidfd.pids().map_err(failed)?;
        let pin = |namespace, harmless| Pinned::new(host, namespace, harmless).map_err(failed);
        Ok(Self {
            cgroup,
            cgroup_path,
            // Its pids, from the node's namespace inward: 1 in the outermost below the host's.
            init_is_first: pids.get(1) == Some(&1),
            init_start_time: init.start_time()?,
            pid_namespace: pid_namespace
                .map(|namespace| pin(namespace, true))
                .transpose()?,
            user: pin(user, true)?,
            mount: pin(mount, false)?,
            user_is_outermost,
            root,
            limits,
            metadata,
            init,
        })
    }

    /// The id of its pid namespace; `None` for the host's.
    pub(crate) fn pid_namespace_id(&self) -> Option<u64> {
        self.pid_namespace.as_ref().map(|pinned| pinned.id)
    }

    /// Where it is.
    pub(crate) fn seat(&self) -> Seat {
        Seat {
            cgroup: self.cgroup,
            pid_namespace: self.pid_namespace_id(),
        }
    }

    /// Whether its first process is the one that this pid namespace began with.
    pub(crate) fn began_pid_namespace(&self, id: u64) -> bool {
        self.init_is_first && self.pid_namespace_id() == Some(id)
    }

    /// Whether it lives.
    pub(crate) fn alive(&self) -> bool {
        self.init.alive()
    }
}

/// The files that tell a container's limits, held open.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    memory: Option<File>,
    pids: Option<File>,
}

impl Limits {
    fn find(
        host: &Host,
        init: &Process,
        cgroup: CgroupId,
        cgroup_path: &str,
    ) -> Result<Self, AttestError> {
        let own = host.cgroups.open(cgroup).ok();
        let v1 = |tree| -> Result<Option<OwnedFd>, AttestError> {
            let Some(line) = host.cgroups.line_in(host, init, tree)? else {
                return Ok(None);
            };
            Ok(host.cgroups.open(same_level(&line, cgroup_path)).ok())
        };
        let open = |directory: &Option<OwnedFd>, name: &str| {
            directory
                .as_ref()
                .and_then(|directory| open_in(directory, name).ok())
        };
        let memory = match open(&own, "memory.max") {
            None => open(&v1(Tree::Memory)?, "memory.limit_in_bytes"),
            found => found,
        };
        let pids = match open(&own, "pids.max") {
            None => open(&v1(Tree::Pids)?, "pids.max"),
            found => found,
        };
        Ok(Self { memory, pids })
    }

    /// The memory limit as the kernel writes it.
    pub(crate) fn memory(&self) -> Option<String> {
        read_again(self.memory.as_ref()?)
    }

    /// The limit of processes as the kernel writes it.
    pub(crate) fn pids(&self) -> Option<String> {
        read_again(self.pids.as_ref()?)
    }
}

/// The cgroup of the same path in another hierarchy, if the process is within it: what the runtime
/// made, and not what the container made inside of it. Else the process's own.
fn same_level(line: &Line, path: &str) -> CgroupId {
    let ids = line.ids().enumerate();
    let mut same = ids.filter(|(at, _)| line.path_to(at + 1) == path);
    same.next().map_or_else(|| line.own(), |(_, id)| id)
}

/// Reads a file of one short line from its start.
fn read_again(file: &File) -> Option<String> {
    let mut text = [0; 32];
    let length = file.read_at(&mut text, 0).ok()?;
    Some(str::from_utf8(&text[..length]).ok()?.trim_end().to_owned())
}
