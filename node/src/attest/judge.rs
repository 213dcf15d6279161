//! Judges which container a peer belongs to, from what was found about it. Pure.

use super::cgroups::{CgroupId, Line};
use super::error::{AMBIGUOUS, AttestError, NOT_A_CONTAINER};

/// Where a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    /// Its cgroup.
    pub cgroup: CgroupId,
    /// Its pid namespace, the outermost below the host's; `None` in the host's.
    pub pid_namespace: Option<u64>,
}

/// How a peer belongs to a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Belongs {
    /// It is in the workload's container.
    Own,
    /// It is in another container, or cgroup, and shares the workload's pid namespace.
    Joined,
}

/// Judges a peer in the host's pid namespace: only an engine can tell that it is in a container, and
/// that must be one that has the host's pid namespace itself.
pub(crate) fn in_host_pid_namespace(own: Option<Seat>) -> Result<(), AttestError> {
    match own {
        Some(Seat {
            pid_namespace: None,
            ..
        }) => Ok(()),
        Some(_) => Err(AttestError::new(
            AMBIGUOUS,
            "the peer is in a container's cgroup, but in the host's pid namespace, which that \
             container does not have",
        )),
        None => Err(AttestError::new(
            NOT_A_CONTAINER,
            "the peer is in the host's pid namespace, and no container engine knows its cgroup",
        )),
    }
}

/// Judges a peer in a pid namespace of its own.
///
/// - `peer` is its line of cgroups, `None` in the root.
/// - `own` is the container that an engine knows its cgroup as.
/// - `first` is the container that its pid namespace's first process is in, and which the workload is
///   therefore. The engine's word about it must fit: it must have that pid namespace, or be one with
///   the host's, whose processes may make pid namespaces within it.
pub(crate) fn in_pid_namespace(
    pid_namespace: u64,
    peer: Option<&Line>,
    own: Option<Seat>,
    first: Seat,
) -> Result<Belongs, AttestError> {
    if first.pid_namespace.is_some_and(|id| id != pid_namespace) {
        return Err(AttestError::new(
            AMBIGUOUS,
            "the first process of the peer's pid namespace is in the cgroup of a container that has \
             another pid namespace",
        ));
    }
    let within = peer.is_some_and(|line| line.is_within(first.cgroup));
    match own {
        Some(own) if own == first => Ok(Belongs::Own),
        None if within => Ok(Belongs::Own),
        // One with the host's pid namespace serves nobody by sharing it.
        _ if first.pid_namespace.is_none() => Err(AttestError::new(
            AMBIGUOUS,
            "the peer shares a pid namespace that was made within a container that has the host's",
        )),
        _ => Ok(Belongs::Joined),
    }
}
