//! Who has a volume mounted, by the kernel: no container tells, none has to have asked for anything,
//! and a node that was started anew knows it at once.

use super::mount::Volume;
use crate::attest::{Attestor, Holder};
use mayfly_kernel::mountinfo::{MOST_BYTES, Mount, mounts};
use mayfly_kernel::pidfd::Pidfd;
use mayfly_kernel::procdir::ProcDir;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Most processes of one volume that are kept track of. A container can make as many mount namespaces
/// as it likes, and for each there is a descriptor.
const MOST_HAVING: usize = 64;
/// How long it may take to find whose those processes are. An engine can be slow.
const ASKING: Duration = Duration::from_secs(5);

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

/// A directory that something is mounted on, by its filesystem and its path in it: the same in every
/// mount namespace.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ground {
    device: Vec<u8>,
    path: Vec<u8>,
}

impl Ground {
    /// What a mount stands on; `None` if that is not shown.
    pub(crate) fn of(mount: &Mount<'_>, all: &[Mount<'_>]) -> Option<Self> {
        let below = all.iter().find(|below| below.id == mount.parent)?;
        let rest = mount.point.strip_prefix(without_slash(&below.point))?;
        Some(Self {
            device: below.device.to_vec(),
            path: [without_slash(&below.root), rest].concat(),
        })
    }
}

fn without_slash(path: &[u8]) -> &[u8] {
    path.strip_suffix(b"/").unwrap_or(path)
}

/// For each volume, processes that have it, of each mount namespace one.
pub(crate) fn processes(volumes: &[&Volume]) -> std::io::Result<Vec<Vec<Having>>> {
    let mut found: Vec<Vec<Having>> = volumes.iter().map(|_| Vec::new()).collect();
    // The node's own mount namespace is no container's.
    let mut done: HashSet<_> = std::fs::read_link("/proc/self/ns/mnt")
        .into_iter()
        .collect();
    let mut seen = HashSet::new();
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
        if done.contains(&namespace) {
            continue;
        }
        let Ok(directory) = ProcDir::open(pid) else {
            continue;
        };
        // Another process of the namespace sees the same mounts, unless it has another root.
        if let Ok(root) = directory.root()
            && !seen.insert((namespace.clone(), root))
        {
            continue;
        }
        let mut having = having(&directory, volumes);
        having.retain(|at| found.get(*at).is_some_and(|all| all.len() < MOST_HAVING));
        if having.is_empty() {
            continue;
        }
        // One that has died meanwhile has nothing any more. If the pid is another's by now, the handle
        // only tells of a death too many.
        let Ok(handle) = Pidfd::open(pid).map(Arc::new) else {
            continue;
        };
        done.insert(namespace);
        for at in having {
            if let Some(all) = found.get_mut(at) {
                let handle = Arc::clone(&handle);
                all.push(Having { pid, handle });
            }
        }
    }
    Ok(found)
}

/// Which of the volumes a process has.
fn having(directory: &ProcDir, volumes: &[&Volume]) -> Vec<usize> {
    let Ok(text) = directory.read("mountinfo", MOST_BYTES) else {
        return Vec::new();
    };
    let all: Vec<_> = mounts(&text).flatten().collect();
    let has = |volume: &Volume| {
        all.iter().any(|mount| {
            mount.device == volume.device.as_bytes() && is_use(mount, &all, volume.ground.as_ref())
        })
    };
    (0..volumes.len())
        .filter(|at| volumes.get(*at).is_some_and(|volume| has(volume)))
        .collect()
}

/// Whether who sees a volume so was given it. Where it stands on the very directory that the node has
/// mounted it on, it came with the host's tree: to a service of the host's with mounts of its own, and
/// to a container that has the host's root inside to watch it. Those share it with nobody, and must
/// not be ended by what stands in its record.
fn is_use(mount: &Mount<'_>, all: &[Mount<'_>], ground: Option<&Ground>) -> bool {
    ground.is_none() || Ground::of(mount, all).as_ref() != ground
}

/// The workloads of these processes. What is no attested container has none.
pub(crate) async fn workloads(
    attestor: &Attestor,
    volume: &Volume,
    processes: &[Having],
) -> Vec<Holder> {
    let mut holders: Vec<Holder> = Vec::new();
    // Other volumes wait meanwhile.
    let until = Instant::now() + ASKING;
    for Having { pid, .. } in processes {
        // The pid may be another's by now: what counts is what the process has that was attested.
        let has = |directory: &ProcDir| !having(directory, &[volume]).is_empty();
        let Ok(Some(holder)) = timeout_at(until, attestor.holder(*pid, has)).await else {
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

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "\
        21 1 254:1 / / rw - ext4 /dev/vda1 rw\n\
        24 21 0:23 / /run rw shared:5 - tmpfs tmpfs rw\n\
        90 24 0:77 / /run/mayfly/volumes/a rw shared:9 - tmpfs mayfly rw\n";

    /// Whether the mounts of 0:77 that are seen here are one's own, in their order.
    fn uses(text: &str) -> Vec<bool> {
        let host: Vec<_> = mounts(HOST.as_bytes()).flatten().collect();
        let ground = Ground::of(&host[2], &host).unwrap();
        assert_eq!(ground.path, b"/mayfly/volumes/a");
        let all: Vec<_> = mounts(text.as_bytes()).map(Result::unwrap).collect();
        let volume = all.iter().filter(|mount| mount.device == b"0:77");
        volume
            .map(|mount| is_use(mount, &all, Some(&ground)))
            .collect()
    }

    #[test]
    fn whoever_was_given_a_volume_has_it() {
        let container = "\
            400 300 0:90 / / ro - overlay overlay rw\n\
            401 400 0:77 / /run/secrets rw - tmpfs mayfly rw\n\
            402 400 0:77 /sub /run/mayfly/volumes/a rw - tmpfs mayfly rw\n";
        assert_eq!(uses(container), [true, true], "at the host's place, too");
        // With another mount's root as its own, what it stands on is not shown.
        assert_eq!(uses("401 400 0:77 / / rw - tmpfs mayfly rw\n"), [true]);
        // A tmpfs of its own that looks the same.
        let same = "\
            400 300 0:91 / / rw - tmpfs tmpfs rw\n\
            401 400 0:77 / /mayfly/volumes/a rw - tmpfs mayfly rw\n";
        assert_eq!(uses(same), [true]);
    }

    #[test]
    fn whoever_sees_the_hosts_tree_has_not() {
        assert_eq!(uses(HOST), [false], "a service with mounts of its own");
        let watching = "\
            400 300 0:90 / / ro - overlay overlay rw\n\
            410 400 254:1 / /host ro - ext4 /dev/vda1 rw\n\
            411 410 0:23 / /host/run ro - tmpfs tmpfs rw\n\
            412 411 0:77 / /host/run/mayfly/volumes/a ro - tmpfs mayfly rw\n";
        assert_eq!(uses(watching), [false]);
        let part = "\
            400 300 0:90 / / ro - overlay overlay rw\n\
            411 400 0:23 /mayfly /mf rw - tmpfs tmpfs rw\n\
            412 411 0:77 / /mf/volumes/a rw - tmpfs mayfly rw\n";
        assert_eq!(uses(part), [false]);
        let both = format!("{watching}420 400 0:77 / /run/secrets rw - tmpfs mayfly rw\n");
        assert_eq!(uses(&both), [false, true]);
    }
}
