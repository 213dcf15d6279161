//! A first look at who connected, by the fewest system calls: only to hold floods off.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;

use mayfly_kernel::pidfd::Pidfd;
use mayfly_kernel::probe::Facility;
use mayfly_kernel::socket::Credentials;

use super::Attestor;
use super::line::ROOT;
use super::peer::Origin;

/// What is seen at once of who connected. Nothing is attested by it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Glimpse {
    /// Where it comes from: its cgroup, or its pid namespace where that is not told.
    pub origin: Origin,
    /// Its pid.
    pub pid: Option<u32>,
    /// Its user id.
    pub uid: Option<u32>,
}

impl Glimpse {
    /// Of one who comes from there.
    pub(crate) fn of(origin: Origin, credentials: Option<Credentials>) -> Self {
        Self {
            origin,
            pid: credentials.map(|credentials| credentials.pid),
            uid: credentials.map(|credentials| credentials.uid),
        }
    }
}

impl Attestor {
    /// Looks at who connected, with these credentials. Those that are gone by now count as one.
    pub(crate) fn glimpse(&self, stream: impl AsFd, credentials: Option<Credentials>) -> Glimpse {
        let pid = credentials.map(|credentials| credentials.pid);
        let has = |facility| self.host.facilities.has(facility);
        let by_cgroup = has(Facility::PeerPidfd) && has(Facility::PidfdInfo);
        let origin = match by_cgroup.then(|| cgroup(stream)) {
            Some(None) => None,
            Some(Some(cgroup)) if cgroup != ROOT => Some(Origin::Cgroup(cgroup)),
            _ => pid.and_then(pid_namespace),
        };
        Glimpse::of(origin.unwrap_or(Origin::Gone), credentials)
    }
}

fn cgroup(stream: impl AsFd) -> Option<u64> {
    Some(Pidfd::peer(stream).ok()?.info().ok()?.cgroup_id)
}

/// By its pid, which another process may have by now: it would be counted for that one.
fn pid_namespace(pid: u32) -> Option<Origin> {
    let namespace = fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?;
    Some(Origin::PidNamespace(namespace.ino()))
}
