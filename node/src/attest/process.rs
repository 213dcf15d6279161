//! One process by handles that stay its own, and what is read through them.

use std::io;

use mayfly_kernel::ns::{Kind, Namespace};
use mayfly_kernel::pidfd::Pidfd;
use mayfly_kernel::probe::Facility;
use mayfly_kernel::procdir::ProcDir;

use super::error::{AttestError, PEER_EXITED};
use super::host::Host;
use super::line::ROOT;
use super::peer::{Origin, unseen};

/// Most pid namespaces within each other (MAX_PID_NS_LEVEL, linux/pid_namespace.h).
const MOST_PID_NAMESPACES: usize = 32;
/// Most bytes of `/proc/PID/stat`.
const MOST_STAT: usize = 4096;

/// A process, held by its pidfd and its directory in `/proc`.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its handle.
    pub pidfd: Pidfd,
    /// Where its facts are read.
    pub directory: ProcDir,
    /// Its pid in the node's pid namespace.
    pub pid: u32,
}

impl Process {
    /// Takes hold of the process that a pidfd stands for.
    pub(crate) fn new(host: &Host, pidfd: Pidfd) -> Result<Self, AttestError> {
        let exited = || AttestError::new(PEER_EXITED, "the process has exited");
        let pid = if host.facilities.has(Facility::PidfdInfo) {
            let info = pidfd.info();
            info.map_err(|error| AttestError::reading("its pid", &error))?
                .pid
        } else if pidfd.alive().unwrap_or(false) {
            // Alive and without a pid: it is outside.
            let pid = pidfd.pid();
            pid.map_err(|error| AttestError::reading("its pid", &error))?
                .unwrap_or(0)
        } else {
            return Err(exited());
        };
        if pid == 0 {
            return Err(unseen());
        }
        let directory = ProcDir::open(pid).map_err(|_| exited())?;
        // Alive now, so that it was its pid, and its directory, that was opened.
        let process = Self {
            pidfd,
            directory,
            pid,
        };
        if process.alive() {
            Ok(process)
        } else {
            Err(exited())
        }
    }

    /// Takes hold of the process that has this pid now.
    pub(crate) fn open(host: &Host, pid: u32) -> Result<Self, AttestError> {
        let pidfd = Pidfd::open(pid);
        let pidfd = pidfd.map_err(|error| AttestError::reading("its pidfd", &error))?;
        Self::new(host, pidfd)
    }

    /// Whether it lives. What cannot be told is no.
    pub(crate) fn alive(&self) -> bool {
        self.pidfd.alive().unwrap_or(false)
    }

    /// Opens a namespace of it.
    pub(crate) fn namespace(&self, host: &Host, kind: Kind) -> io::Result<Namespace> {
        if host.facilities.has(Facility::PidfdNamespace) {
            self.pidfd.namespace(kind)
        } else {
            self.directory.namespace(kind)
        }
    }

    /// Its pid namespaces, its own first, up to the one that was made in the host's. Empty for a
    /// process in the host's.
    pub(crate) fn pid_namespaces(&self, host: &Host) -> Result<Vec<Namespace>, AttestError> {
        let failed = |error: io::Error| AttestError::reading("its pid namespaces", &error);
        let mut found = Vec::new();
        let mut next = self.namespace(host, Kind::Pid).map_err(failed)?;
        while !host.owns(Kind::Pid, &next).map_err(failed)? {
            if found.len() == MOST_PID_NAMESPACES {
                return Err(unseen());
            }
            let parent = next.parent().map_err(failed)?.ok_or_else(unseen)?;
            found.push(next);
            next = parent;
        }
        Ok(found)
    }

    /// Where its connections come from.
    pub(crate) fn origin(&self, host: &Host, uid: u32) -> Result<Origin, AttestError> {
        let by_info = host.facilities.has(Facility::PidfdInfo);
        match self.pid_namespaces(host)?.last() {
            None => Ok(match self.pidfd.info() {
                Ok(info) if by_info && info.cgroup_id != ROOT => Origin::Cgroup(info.cgroup_id),
                _ => Origin::HostUser(uid),
            }),
            Some(namespace) => host
                .namespace_id(namespace)
                .map(Origin::PidNamespace)
                .map_err(|error| AttestError::reading("its pid namespace", &error)),
        }
    }

    /// When it was started, in clock ticks since boot (proc_pid_stat(5), field 22).
    pub(crate) fn start_time(&self) -> Result<u64, AttestError> {
        let text = self.directory.read("stat", MOST_STAT);
        let text = text.map_err(|error| AttestError::reading("its start time", &error))?;
        start_time(&text)
            .ok_or_else(|| AttestError::new(super::error::UNREADABLE, "its stat is not understood"))
    }
}

/// The second field is the program's name, in parentheses and with any bytes it likes: what counts
/// stands after the last parenthesis.
fn start_time(stat: &[u8]) -> Option<u64> {
    let after = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields = std::str::from_utf8(&stat[after..]).ok()?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_cannot_name_itself_into_another_start_time() {
        let honest = b"7 (cat) S 1 7 7 0 -1 4194560 99 0 0 0 0 0 0 0 20 0 1 0 4711 1 2 3\n";
        assert_eq!(start_time(honest), Some(4711));
        let hostile = b"7 (a) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 1 (b) S 1 7 7 0 -1 4194560 99 0 0 0 0 0 0 0 20 0 1 0 4711 1 2 3\n";
        assert_eq!(start_time(hostile), Some(4711));
        for short in [&b""[..], b"7 (cat", b"7 (cat)", b"7 (cat) S 1 2"] {
            assert_eq!(start_time(short), None);
        }
    }
}
