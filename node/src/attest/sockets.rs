//! Whether a mount shows a container engine's socket: whoever can write to one owns the host.

use std::io;
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
    ///
    /// # Errors
    ///
    /// What could not be read, or not understood. Then nobody knows where a socket is, and that must
    /// not pass for there being none.
    pub(crate) fn find(engines: &[PathBuf]) -> io::Result<Vec<Self>> {
        let text = std::fs::read("/proc/self/mountinfo")?;
        let paths = USUAL
            .iter()
            .map(Path::new)
            .chain(engines.iter().map(PathBuf::as_path));
        Self::among(&text, paths)
    }

    fn among<'a>(mountinfo: &[u8], paths: impl Iterator<Item = &'a Path>) -> io::Result<Vec<Self>> {
        let odd = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let all = mounts(mountinfo).collect::<Result<Vec<Mount<'_>>, _>>();
        let all = all.map_err(|_| odd("mountinfo is not understood"))?;
        let mut found = Vec::new();
        for path in paths {
            match path.canonicalize() {
                Ok(real) => {
                    let at = Self::at(real.as_os_str().as_encoded_bytes(), &all);
                    found.push(at.ok_or_else(|| odd("a socket is on no mount"))?);
                }
                // Nothing is there, or not below a directory.
                Err(error) if absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
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

fn absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n";

    fn among(mountinfo: &str, paths: &[&str]) -> io::Result<Vec<Exposed>> {
        Exposed::among(mountinfo.as_bytes(), paths.iter().map(Path::new))
    }

    #[test]
    fn where_a_socket_is_or_that_it_is_not_there() {
        // Any file does.
        let found = among(ROOT, &["/proc/1/none", "/etc/passwd", "/etc/passwd/none"]).unwrap();
        let expected = Exposed {
            device: b"254:1".to_vec(),
            path: b"/etc/passwd".to_vec(),
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn what_cannot_be_told_is_not_none() {
        assert!(among("not mountinfo\n", &[]).is_err());
        assert!(among(&format!("{ROOT}21 1 254:1 /\n"), &[]).is_err());
        // Nothing is mounted where it is.
        assert!(among("", &["/etc/passwd"]).is_err());
        // It is there, and cannot be looked for: too long a name.
        let long = format!("/{}", "x".repeat(300));
        assert!(among(ROOT, &[&long]).is_err());
    }
}
