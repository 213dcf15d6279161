//! Finds the first process of a pid namespace.

use mayfly_kernel::ns::{Kind, Namespace};
use mayfly_kernel::probe::Facility;

use super::error::{AttestError, PEER_EXITED};
use super::host::Host;
use super::process::Process;

/// The process that has pid 1 in a pid namespace. While a peer in the namespace lives, it lives.
pub(crate) fn init_of(host: &Host, namespace: &Namespace) -> Result<Process, AttestError> {
    if host.facilities.has(Facility::PidTranslation) {
        by_kernel(host, namespace)
    } else {
        by_search(host, namespace)
    }
}

fn by_kernel(host: &Host, namespace: &Namespace) -> Result<Process, AttestError> {
    let ask = || {
        let pid = namespace.pid_from(1);
        pid.map_err(|error| AttestError::reading("its pid namespace's init", &error))
    };
    let pid = ask()?;
    let process = Process::open(host, pid)?;
    // The same answer while the handle's process lives: the pid was its own at that moment.
    if ask()? == pid && process.alive() {
        Ok(process)
    } else {
        Err(exited())
    }
}

/// Looks at every process for one that is in the namespace and has pid 1 in it.
fn by_search(host: &Host, namespace: &Namespace) -> Result<Process, AttestError> {
    let failed = |error| AttestError::reading("the processes of /proc", &error);
    let wanted = namespace.inode().map_err(failed)?;
    let link = format!("pid:[{}]", wanted.1);
    for entry in std::fs::read_dir("/proc")
        .map_err(failed)?
        .filter_map(Result::ok)
    {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // By path, and so of whoever has the pid now: only to pass over the others quickly.
        let found = std::fs::read_link(entry.path().join("ns/pid"));
        if found.map_or(true, |found| found.as_os_str() != link.as_str()) {
            continue;
        }
        let Ok(process) = Process::open(host, pid) else {
            continue;
        };
        let inside = process
            .namespace(host, Kind::Pid)
            .and_then(|found| found.inode());
        let first = process.pidfd.pids().map(|pids| pids.last() == Some(&1));
        if inside.is_ok_and(|inside| inside == wanted) && first.unwrap_or(false) {
            return Ok(process);
        }
    }
    Err(exited())
}

fn exited() -> AttestError {
    AttestError::new(
        PEER_EXITED,
        "the first process of its pid namespace has exited",
    )
}
