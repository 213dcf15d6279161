//! Judges which container a peer belongs to, from what was found about it. Pure.

use super::error::{AMBIGUOUS, AttestError, NOT_A_CONTAINER};
use super::line::{CgroupId, Line};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::line::{Ancestor, Tree};

    fn line(ids: &[u64]) -> Line {
        let ancestors = ids.iter().map(|id| Ancestor {
            id: *id,
            name: format!("c{id}"),
        });
        Line {
            tree: Tree::V2,
            ancestors: ancestors.collect(),
        }
    }

    fn seat(inode: u64, pid_namespace: Option<u64>) -> Seat {
        Seat {
            cgroup: CgroupId {
                tree: Tree::V2,
                inode,
            },
            pid_namespace,
        }
    }

    fn reason(judged: Result<Belongs, AttestError>) -> &'static str {
        judged.unwrap_err().reason
    }

    #[test]
    fn in_the_hosts_pid_namespace_only_such_a_container_counts() {
        assert!(in_host_pid_namespace(Some(seat(10, None))).is_ok());
        let other = in_host_pid_namespace(Some(seat(10, Some(5))));
        assert_eq!(other.unwrap_err().reason, AMBIGUOUS);
        assert_eq!(
            in_host_pid_namespace(None).unwrap_err().reason,
            NOT_A_CONTAINER
        );
    }

    #[test]
    fn in_its_own_container() {
        let first = seat(10, Some(5));
        let peer = line(&[2, 10, 30]);
        assert_eq!(
            in_pid_namespace(5, Some(&peer), Some(first), first).unwrap(),
            Belongs::Own
        );
        // Without an engine, by the cgroup of the first process.
        assert_eq!(
            in_pid_namespace(5, Some(&peer), None, first).unwrap(),
            Belongs::Own
        );
    }

    #[test]
    fn in_another_container_or_cgroup_it_has_joined() {
        let first = seat(10, Some(5));
        let sidecar = line(&[2, 11]);
        let companion = Some(seat(11, Some(5)));
        assert_eq!(
            in_pid_namespace(5, Some(&sidecar), companion, first).unwrap(),
            Belongs::Joined
        );
        assert_eq!(
            in_pid_namespace(5, Some(&sidecar), None, first).unwrap(),
            Belongs::Joined
        );
        assert_eq!(
            in_pid_namespace(5, None, None, first).unwrap(),
            Belongs::Joined
        );
        // Its container has a pid namespace of its own, which it has left for the workload's.
        let other = Some(seat(11, Some(6)));
        assert_eq!(
            in_pid_namespace(5, Some(&sidecar), other, first).unwrap(),
            Belongs::Joined
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let peer = line(&[2, 10]);
        let other = seat(10, Some(6));
        assert_eq!(
            reason(in_pid_namespace(5, Some(&peer), Some(other), other)),
            AMBIGUOUS
        );
    }

    #[test]
    fn a_container_with_the_hosts_pid_namespace_is_joined_by_nobody() {
        let privileged = seat(10, None);
        let inside = line(&[2, 10]);
        let own = in_pid_namespace(5, Some(&inside), Some(privileged), privileged);
        assert_eq!(own.unwrap(), Belongs::Own);
        let outside = line(&[2, 11]);
        assert_eq!(
            reason(in_pid_namespace(5, Some(&outside), None, privileged)),
            AMBIGUOUS
        );
        let other = Some(seat(11, Some(5)));
        assert_eq!(
            reason(in_pid_namespace(5, Some(&outside), other, privileged)),
            AMBIGUOUS
        );
    }
}
