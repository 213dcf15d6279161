//! What the node needs to know about its own host, found once at start.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use mayfly_kernel::ns::{Kind, Namespace, first_inode};
use mayfly_kernel::pidfd::Pidfd;
use mayfly_kernel::probe::{self, Facilities};
use mayfly_wire::Facility;

use super::cgroups::Cgroups;
use super::error::AttestSetupError;

/// The host, as the node sees it.
#[derive(Debug)]
pub(crate) struct Host {
    /// What the kernel has and may be used.
    pub facilities: Facilities,
    /// What it lacks, or what may not be used.
    pub lacking: BTreeSet<Facility>,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Id of the pid namespace that counts as the host's: the node's own.
    pub own_pid_namespace: u64,
    /// The cgroup hierarchies.
    pub cgroups: Cgroups,
    /// Inodes of the namespaces that count as the host's, beside the first of each kind: the node's
    /// own, and those of pid 1.
    namespaces: Vec<(Kind, u64)>,
    /// Device number of nsfs.
    nsfs: u64,
}

impl Host {
    pub(crate) fn find(forbidden: &[Facility]) -> Result<Self, AttestSetupError> {
        let lacking = |what, remedy| {
            move |cause| AttestSetupError::Lacking {
                what,
                cause,
                remedy,
            }
        };
        Pidfd::open(std::process::id()).map_err(lacking(
            "pidfd_open",
            "run on Linux 5.3 or later, with a seccomp profile that allows it",
        ))?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(lacking("/proc", "mount proc on /proc"))?;
        let facilities =
            Facilities::probe().without(forbidden.iter().filter_map(|f| in_kernel(*f)));
        let (namespaces, nsfs) =
            host_namespaces().map_err(lacking("/proc/self/ns", "mount proc on /proc"))?;
        let own = |kind| {
            let inode = namespaces.iter().find(|(of, _)| *of == kind);
            inode.is_some_and(|(_, inode)| *inode == first_inode(kind))
        };
        // Elsewhere, paths and user ids mean something else, and cgroups of containers are not seen.
        // Another pid namespace hides processes, but what is seen from it is true.
        for (kind, remedy) in [
            (
                Kind::Cgroup,
                "in a container, run it with `--cgroupns=host`",
            ),
            (
                Kind::User,
                "in a container, run it with `--userns=host`; it cannot run rootless",
            ),
        ] {
            if !own(kind) {
                let kind = kind.name();
                return Err(AttestSetupError::NotOnHost { kind, remedy });
            }
        }
        let cgroups = Cgroups::find(!forbidden.contains(&Facility::CgroupV2))?;
        let lacking = Facility::ALL
            .into_iter()
            .filter(|facility| match in_kernel(*facility) {
                Some(facility) => !facilities.has(facility),
                None => !cgroups.has_v2(),
            });
        let mut host = Self {
            lacking: lacking.collect(),
            facilities,
            boot_id: boot_id.trim_end().to_owned(),
            own_pid_namespace: 0,
            cgroups,
            namespaces,
            nsfs,
        };
        let own = File::open("/proc/self/ns/pid")
            .and_then(|file| host.namespace_id(&Namespace::from(OwnedFd::from(file))));
        host.own_pid_namespace = own.map_err(|cause| AttestSetupError::Lacking {
            what: "/proc/self/ns/pid",
            cause,
            remedy: "mount proc on /proc",
        })?;
        Ok(host)
    }

    /// Whether a namespace is one of the host's.
    pub(crate) fn owns(&self, kind: Kind, namespace: &Namespace) -> io::Result<bool> {
        Ok(self.owns_inode(kind, namespace.inode()?))
    }

    /// Whether the namespace with this device and inode is one of the host's. Those are never gone, so
    /// that inodes tell.
    pub(crate) fn owns_inode(&self, kind: Kind, (device, inode): (u64, u64)) -> bool {
        device == self.nsfs
            && (inode == first_inode(kind) || self.namespaces.contains(&(kind, inode)))
    }

    /// What names a namespace: its id, or on a kernel without, its inode. The latter tells it from
    /// another only as long as both are held.
    pub(crate) fn namespace_id(&self, namespace: &Namespace) -> io::Result<u64> {
        if self.facilities.has(probe::Facility::NamespaceId) {
            namespace.id()
        } else {
            Ok(namespace.inode()?.1)
        }
    }
}

fn in_kernel(facility: Facility) -> Option<probe::Facility> {
    match facility {
        Facility::SoPeerpidfd => Some(probe::Facility::PeerPidfd),
        Facility::ScmPidfd => Some(probe::Facility::SenderPidfd),
        Facility::PidfdGetInfo => Some(probe::Facility::PidfdInfo),
        Facility::PidfdGetNamespace => Some(probe::Facility::PidfdNamespace),
        Facility::NsGetId => Some(probe::Facility::NamespaceId),
        Facility::CgroupV2 => None,
    }
}

/// The node's own namespaces first, then those of pid 1 where they may be read: a node in a container
/// with the host's pid namespace sees there which network the host has.
fn host_namespaces() -> io::Result<(Vec<(Kind, u64)>, u64)> {
    let open = |process: &str, kind: Kind| {
        let file = File::open(format!("/proc/{process}/ns/{}", kind.name()))?;
        Namespace::from(OwnedFd::from(file)).inode()
    };
    let mut found = Vec::new();
    let mut nsfs = 0;
    for kind in Kind::ALL {
        let (device, inode) = open("self", kind)?;
        nsfs = device;
        found.push((kind, inode));
    }
    let first = Kind::ALL
        .into_iter()
        .filter_map(|kind| Some((kind, open("1", kind).ok()?.1)));
    found.extend(first);
    Ok((found, nsfs))
}
