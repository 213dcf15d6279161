//! Which cgroup a process is in, and what that is inside of.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use mayfly_kernel::cgroup::{id, open_by_id, parent};
use mayfly_kernel::mountinfo::{self, Mount, mounts};
use mayfly_kernel::probe::Facility;
use mayfly_kernel::procdir::{path_of, read_limited};

use super::error::{AttestError, AttestSetupError, UNREADABLE};
use super::host::Host;
use super::line::{Ancestor, CgroupId, Line, ROOT, Tree};
use super::process::Process;

/// Most levels of cgroups within each other that are looked at.
const MOST_LEVELS: usize = 64;
/// Most bytes of `/proc/PID/cgroup`: some twenty hierarchies of paths of at most 4 KiB.
const MOST_CGROUP_FILE: usize = 128 * 1024;
/// Most lines of descent that are remembered.
const MOST_REMEMBERED: usize = 16 * 1024;

/// The hierarchies of this host that are in use.
#[derive(Debug)]
pub(crate) struct Cgroups {
    trees: Vec<Root>,
    lines: Mutex<HashMap<CgroupId, Arc<Line>>>,
}

/// The root of one hierarchy.
#[derive(Debug)]
struct Root {
    tree: Tree,
    directory: OwnedFd,
    path: PathBuf,
}

impl Cgroups {
    /// Finds the hierarchies that are mounted whole, in the order of preference.
    pub(crate) fn find(use_v2: bool) -> Result<Self, AttestSetupError> {
        let failed = |what, remedy| {
            move |cause| AttestSetupError::Lacking {
                what,
                cause,
                remedy,
            }
        };
        let text = File::open("/proc/self/mountinfo")
            .and_then(|file| read_limited(file, mountinfo::MOST_BYTES))
            .map_err(failed("/proc/self/mountinfo", "mount proc on /proc"))?;
        let mut trees: Vec<Root> = Vec::new();
        for mount in mounts(&text).filter_map(Result::ok) {
            let Some(tree) = tree_of(&mount) else {
                continue;
            };
            if trees.iter().any(|root| root.tree == tree) || (tree == Tree::V2 && !use_v2) {
                continue;
            }
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(&mount.point));
            // Something else may be mounted over it.
            let Ok(directory) = File::open(&path).map(OwnedFd::from) else {
                continue;
            };
            if id(&directory).is_ok_and(|id| id == ROOT) {
                trees.push(Root {
                    tree,
                    directory,
                    path,
                });
            }
        }
        trees.sort_by_key(|root| root.tree);
        let first = trees.first().ok_or(AttestSetupError::NoCgroups)?;
        open_by_id(&first.directory, ROOT).map_err(failed(
            "open_by_handle_at on cgroups",
            "give the node CAP_DAC_READ_SEARCH, and a seccomp profile that allows it",
        ))?;
        Ok(Self {
            trees,
            lines: Mutex::default(),
        })
    }

    /// Whether v2 is in use.
    pub(crate) fn has_v2(&self) -> bool {
        self.trees.iter().any(|root| root.tree == Tree::V2)
    }

    /// Where a process is: in the first hierarchy that its runtime uses, which is the first where it
    /// is not in the root. `None` if it is in the root of all.
    pub(crate) fn line(
        &self,
        host: &Host,
        process: &Process,
    ) -> Result<Option<Arc<Line>>, AttestError> {
        for root in &self.trees {
            if let Some(line) = self.line_below(host, process, root)? {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }

    /// Where a process is in one hierarchy; `None` for the root of it.
    pub(crate) fn line_in(
        &self,
        host: &Host,
        process: &Process,
        tree: Tree,
    ) -> Result<Option<Arc<Line>>, AttestError> {
        match self.trees.iter().find(|root| root.tree == tree) {
            Some(root) => self.line_below(host, process, root),
            None => Ok(None),
        }
    }

    /// Opens a cgroup.
    ///
    /// ESTALE if it is gone.
    pub(crate) fn open(&self, id: CgroupId) -> io::Result<OwnedFd> {
        let root = self.trees.iter().find(|root| root.tree == id.tree);
        let root = root.ok_or(nix::errno::Errno::ESTALE)?;
        open_by_id(&root.directory, id.inode)
    }

    fn line_below(
        &self,
        host: &Host,
        process: &Process,
        root: &Root,
    ) -> Result<Option<Arc<Line>>, AttestError> {
        let failed = |error: io::Error| AttestError::reading("its cgroup", &error);
        let by_info = root.tree == Tree::V2 && host.facilities.has(Facility::PidfdInfo);
        let (inode, directory) = if by_info {
            (process.pidfd.info().map_err(failed)?.cgroup_id, None)
        } else {
            match open_by_path(process, root).map_err(failed)? {
                Some(directory) => (id(&directory).map_err(failed)?, Some(directory)),
                None => return Ok(None),
            }
        };
        if inode == ROOT {
            return Ok(None);
        }
        let key = CgroupId {
            tree: root.tree,
            inode,
        };
        if let Some(line) = self.remembered().get(&key) {
            return Ok(Some(Arc::clone(line)));
        }
        let directory = match directory {
            Some(directory) => directory,
            None => open_by_id(&root.directory, inode).map_err(failed)?,
        };
        let line = Arc::new(trace(root, &directory)?);
        let mut remembered = self.remembered();
        if remembered.len() >= MOST_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(key, Arc::clone(&line));
        Ok(Some(line))
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<CgroupId, Arc<Line>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which hierarchy a mount shows whole.
fn tree_of(mount: &Mount<'_>) -> Option<Tree> {
    let controls = |wanted: &[u8]| {
        let mut options = mount.filesystem_options.split(|byte| *byte == b',');
        options.any(|option| option == wanted)
    };
    match mount.filesystem {
        _ if *mount.root != *b"/" => None,
        b"cgroup2" => Some(Tree::V2),
        b"cgroup" if controls(b"pids") => Some(Tree::Pids),
        b"cgroup" if controls(b"memory") => Some(Tree::Memory),
        _ => None,
    }
}

/// Opens a process's cgroup by the path that `/proc` gives, which is true in the host's cgroup
/// namespace; `None` for the root. The path is read again afterwards, so that a cgroup that was
/// removed and made anew meanwhile is not taken for the process's.
fn open_by_path(process: &Process, root: &Root) -> io::Result<Option<OwnedFd>> {
    let read = || {
        let text = process.directory.read("cgroup", MOST_CGROUP_FILE)?;
        let text = String::from_utf8(text);
        let text = text.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok::<_, io::Error>(path_in(&text, root.tree).map(str::to_owned))
    };
    let Some(path) = read()?.filter(|path| path != "/") else {
        return Ok(None);
    };
    if path.split('/').any(|part| part == "..") {
        return Err(io::Error::other(
            "it is outside of the node's cgroup namespace",
        ));
    }
    let directory = File::open(root.path.join(path.trim_start_matches('/')))?;
    if read()?.as_deref() != Some(&path) {
        return Err(io::Error::other("it was moved meanwhile"));
    }
    Ok(Some(directory.into()))
}

/// The path in one hierarchy, from the text of `/proc/PID/cgroup` (cgroups(7)).
fn path_in(text: &str, tree: Tree) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let controls = |wanted| {
            controllers
                .split(',')
                .any(|controller| controller == wanted)
        };
        let found = match tree {
            Tree::V2 => number == "0" && controllers.is_empty(),
            Tree::Pids => controls("pids"),
            Tree::Memory => controls("memory"),
        };
        (found && path.starts_with('/')).then_some(path)
    })
}

/// Walks from a cgroup up to the root. Each step is by the directory's own parent, so that no name
/// decides anything.
fn trace(root: &Root, directory: &OwnedFd) -> Result<Line, AttestError> {
    let failed = |error: io::Error| AttestError::reading("its cgroup's ancestors", &error);
    let odd = |detail: &str| AttestError::new(UNREADABLE, detail);
    let path = path_of(directory.as_fd()).map_err(failed)?;
    let path = Path::new(&path).strip_prefix(&root.path);
    let path = path.map_err(|_| odd("its cgroup is not below its hierarchy's root"))?;
    let mut names = path.iter().rev();
    let mut ancestors = Vec::new();
    let mut level = directory.try_clone().map_err(failed)?;
    loop {
        let inode = id(&level).map_err(failed)?;
        if inode == ROOT {
            break;
        }
        if ancestors.len() == MOST_LEVELS {
            return Err(odd("its cgroup is too many levels below the root"));
        }
        // A v1 cgroup may be renamed meanwhile: names are hints, and only their count has to fit.
        let name = names
            .next()
            .ok_or_else(|| odd("its cgroup's path does not fit"))?;
        ancestors.push(Ancestor {
            id: inode,
            name: name.to_string_lossy().into_owned(),
        });
        level = parent(&level).map_err(failed)?;
    }
    ancestors.reverse();
    Ok(Line {
        tree: root.tree,
        ancestors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_that_of_the_right_hierarchy() {
        let text = "11:memory:/m\n9:cpu,pids:/p/q:r\n1:name=pids:/wrong\n0::/v2\n";
        assert_eq!(path_in(text, Tree::V2), Some("/v2"));
        assert_eq!(path_in(text, Tree::Pids), Some("/p/q:r"));
        assert_eq!(path_in(text, Tree::Memory), Some("/m"));
        assert_eq!(path_in("0::relative\n", Tree::V2), None);
        assert_eq!(path_in("00::/x\n1:name=a:/b\nx\n", Tree::V2), None);
    }
}
