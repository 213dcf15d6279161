//! Who has a volume mounted, by the kernel: no container tells, none has to have asked for anything,
//! and a node that was started anew knows it at once.

use super::mount::Volume;
use crate::attest::{Attestor, Holder};
use mayfly_kernel::mountinfo::{MOST_BYTES, mounts};
use mayfly_kernel::pidfd::Pidfd;
use mayfly_kernel::procdir::ProcDir;
use nix::sys::stat::{major, minor};
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

/// A process that has a volume.
pub(crate) struct Having {
    pid: u32,
    /// Tells when it is dead.
    handle: Arc<Pidfd>,
}

impl Having {
    pub(crate) fn alive(&self) -> bool {
        self.handle.alive().unwrap_or(false)
    }
}

/// For each volume, one process of each mount namespace that has it elsewhere than where the node put
/// it: a service of the host's with mounts of its own has it there too.
pub(crate) fn processes(volumes: &[&Volume]) -> std::io::Result<Vec<Vec<Having>>> {
    let mut found: Vec<Vec<Having>> = volumes.iter().map(|_| Vec::new()).collect();
    // The node's own mount namespace is no container's.
    let mut seen: HashSet<_> = std::fs::read_link("/proc/self/ns/mnt")
        .into_iter()
        .collect();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A zombie, or one that is gone by now, has no mounts.
        let Ok(namespace) = std::fs::read_link(entry.path().join("ns/mnt")) else {
            continue;
        };
        if seen.contains(&namespace) {
            continue;
        }
        let Ok(directory) = ProcDir::open(pid) else {
            continue;
        };
        let having = having(&directory, volumes);
        if having.is_empty() {
            // Another process of the namespace may have another root, and see more.
            continue;
        }
        // One that has died meanwhile has nothing any more. If the pid is another's by now, the handle
        // only tells of a death too many.
        let Ok(handle) = Pidfd::open(pid).map(Arc::new) else {
            continue;
        };
        seen.insert(namespace);
        for at in having {
            if let Some(all) = found.get_mut(at) {
                let handle = Arc::clone(&handle);
                all.push(Having { pid, handle });
            }
        }
    }
    Ok(found)
}

/// Which of the volumes a process sees.
fn having(directory: &ProcDir, volumes: &[&Volume]) -> Vec<usize> {
    let Ok(text) = directory.read("mountinfo", MOST_BYTES) else {
        return Vec::new();
    };
    let mut having = Vec::new();
    for mount in mounts(&text).flatten() {
        for (at, volume) in volumes.iter().enumerate() {
            let device = volume.area.device();
            let device = format!("{}:{}", major(device), minor(device));
            if mount.device == device.as_bytes()
                && *mount.point != *volume.point.as_os_str().as_bytes()
                && !having.contains(&at)
            {
                having.push(at);
            }
        }
    }
    having
}

/// The workloads of these processes. What is no attested container has none.
pub(crate) async fn workloads(
    attestor: &Attestor,
    volume: &Volume,
    processes: &[Having],
) -> Vec<Holder> {
    let mut holders: Vec<Holder> = Vec::new();
    for Having { pid, .. } in processes {
        // The pid may be another's by now: what counts is what the process has that was attested.
        let has = |directory: &ProcDir| !having(directory, &[volume]).is_empty();
        let Some(holder) = attestor.holder(*pid, has).await else {
            continue;
        };
        if !holders
            .iter()
            .any(|known| known.workload == holder.workload)
        {
            holders.push(holder);
        }
    }
    holders
}
