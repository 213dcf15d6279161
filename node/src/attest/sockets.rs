//! Whether a mount shows a container engine's socket: whoever can write to one owns the host.

use std::path::{Path, PathBuf};

use mayfly_kernel::mountinfo::{Mount, mounts};

/// Names of engines' sockets, wherever they are.
const NAMES: [&str; 7] = [
    "docker.sock",
    "podman.sock",
    "containerd.sock",
    "crio.sock",
    "buildkitd.sock",
    "cri-dockerd.sock",
    "k3s-containerd.sock",
];
/// Where engines listen unless told otherwise.
const USUAL: [&str; 6] = [
    "/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
    "/run/k3s/containerd/containerd.sock",
];

/// Where an engine's socket is, as mounts of other namespaces tell it: a filesystem, and a path in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exposed {
    /// The filesystem's device, as in mountinfo.
    pub device: Vec<u8>,
    /// The path from the filesystem's root.
    pub path: Vec<u8>,
}

impl Exposed {
    /// Finds the sockets that exist on this host now: the usual ones, and those of the engines that
    /// the node asks.
    pub(crate) fn find(engines: &[PathBuf]) -> Vec<Self> {
        let Ok(text) = std::fs::read("/proc/self/mountinfo") else {
            return Vec::new();
        };
        let all: Vec<Mount<'_>> = mounts(&text).filter_map(Result::ok).collect();
        let paths = USUAL
            .iter()
            .map(Path::new)
            .chain(engines.iter().map(PathBuf::as_path));
        let real = paths.filter_map(|path| path.canonicalize().ok());
        real.filter_map(|path| Self::at(path.as_os_str().as_encoded_bytes(), &all))
            .collect()
    }

    fn at(path: &[u8], all: &[Mount<'_>]) -> Option<Self> {
        let mount = covering(path, all)?;
        let rest = below(path, &mount.point)?;
        Some(Self {
            device: mount.device.to_vec(),
            path: [trimmed(&mount.root), rest].concat(),
        })
    }

    /// The socket that a mount shows, as a path in its filesystem: by its own name, because a socket
    /// itself is mounted, or because it is a directory with a known one in it.
    pub(crate) fn by(mount: &Mount<'_>, all: &[Mount<'_>], known: &[Self]) -> Option<String> {
        let name = mount
            .root
            .rsplit(|byte| *byte == b'/')
            .next()
            .unwrap_or_default();
        if NAMES.iter().any(|known| known.as_bytes() == name) {
            return Some(String::from_utf8_lossy(&mount.root).into_owned());
        }
        let shows = |socket: &&Self| {
            let Some(rest) =
                below(&socket.path, &mount.root).filter(|_| socket.device == mount.device)
            else {
                return false;
            };
            // Something else may be mounted over it.
            let inside = [trimmed(&mount.point), rest].concat();
            covering(&inside, all).is_some_and(|top| std::ptr::eq(top, mount))
        };
        let socket = known.iter().find(shows)?;
        Some(String::from_utf8_lossy(&socket.path).into_owned())
    }
}

/// The mount that a path is on: of those with the longest mount point, the last.
fn covering<'a, 'b>(path: &[u8], all: &'a [Mount<'b>]) -> Option<&'a Mount<'b>> {
    let candidates = all
        .iter()
        .filter(|mount| below(path, &mount.point).is_some());
    candidates.max_by_key(|mount| mount.point.len())
}

/// What a path has beyond a directory that it is in, or is: empty, or beginning with a slash.
fn below<'a>(path: &'a [u8], directory: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(trimmed(directory))?;
    (rest.is_empty() || rest.starts_with(b"/")).then_some(rest)
}

/// Without a slash at the end, so that the root is empty.
fn trimmed(path: &[u8]) -> &[u8] {
    path.strip_suffix(b"/").unwrap_or(path)
}
