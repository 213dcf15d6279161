//! Which cgroup a process is in, and what that is inside of, by ids that the kernel never uses again.

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
use super::process::Process;

/// Id of the root of every hierarchy.
const ROOT: u64 = 1;
/// Most levels of cgroups within each other that are looked at.
const MOST_LEVELS: usize = 64;
/// Most bytes of `/proc/PID/cgroup`: some twenty hierarchies of paths of at most 4 KiB.
const MOST_CGROUP_FILE: usize = 128 * 1024;
/// Most lines of descent that are remembered.
const MOST_REMEMBERED: usize = 16 * 1024;

/// A hierarchy that container runtimes make a cgroup in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Tree {
    /// The v2 hierarchy.
    V2,
    /// The v1 hierarchy of the pids controller.
    Pids,
    /// The v1 hierarchy of the memory controller.
    Memory,
}

/// A cgroup. Hierarchies number their cgroups each by themselves, so an id alone is not enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CgroupId {
    /// The hierarchy.
    pub tree: Tree,
    /// The id in it: the inode of its directory.
    pub inode: u64,
}

/// One cgroup on the way from the root to a process's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ancestor {
    /// Its id.
    pub id: u64,
    /// Its name: anyone who may make cgroups chooses it.
    pub name: String,
}

/// The way from the root, which is left out, to one cgroup: outermost first, never empty. A cgroup
/// cannot be moved, so that an id has one line for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The hierarchy.
    pub tree: Tree,
    /// The cgroups.
    pub ancestors: Vec<Ancestor>,
}

impl CgroupId {
    /// The number that stands for it in a workload's key: the inode, and for the v1 hierarchies a bit
    /// that no inode reaches within a boot, because each hierarchy counts from 1.
    pub(crate) fn number(self) -> u64 {
        match self.tree {
            Tree::V2 => self.inode,
            Tree::Pids => self.inode | 1 << 51,
            Tree::Memory => self.inode | 1 << 52,
        }
    }

    /// The cgroup that [`CgroupId::number`] gave.
    pub(crate) fn from_number(number: u64) -> Self {
        let tree = match (number >> 51 & 1, number >> 52 & 1) {
            (1, _) => Tree::Pids,
            (_, 1) => Tree::Memory,
            _ => Tree::V2,
        };
        let inode = number & !(3 << 51);
        Self { tree, inode }
    }
}

impl Line {
    /// The cgroup's path from the root of its hierarchy.
    pub(crate) fn path(&self) -> String {
        self.path_to(self.ancestors.len())
    }

    /// The path of one of its ancestors, by how many levels below the root it is.
    pub(crate) fn path_to(&self, levels: usize) -> String {
        let names = self.ancestors.iter().take(levels);
        names.fold(String::new(), |path, ancestor| path + "/" + &ancestor.name)
    }

    /// The cgroup itself.
    pub(crate) fn own(&self) -> CgroupId {
        self.id_of(self.ancestors.len().saturating_sub(1))
    }

    /// The ids, outermost first.
    pub(crate) fn ids(&self) -> impl DoubleEndedIterator<Item = CgroupId> {
        (0..self.ancestors.len()).map(|at| self.id_of(at))
    }

    /// Whether it is this cgroup or below it.
    pub(crate) fn is_within(&self, outer: CgroupId) -> bool {
        self.ids().any(|id| id == outer)
    }

    fn id_of(&self, at: usize) -> CgroupId {
        CgroupId {
            tree: self.tree,
            inode: self.ancestors.get(at).map_or(ROOT, |ancestor| ancestor.id),
        }
    }
}

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

    #[test]
    fn numbers_of_hierarchies_do_not_meet() {
        for tree in [Tree::V2, Tree::Pids, Tree::Memory] {
            let id = CgroupId { tree, inode: 57 };
            assert_eq!(CgroupId::from_number(id.number()), id);
        }
        let number = |tree| CgroupId { tree, inode: 57 }.number();
        assert_eq!(number(Tree::V2), 57);
        assert_ne!(number(Tree::Pids), number(Tree::Memory));
    }

    #[test]
    fn within_is_by_id_not_by_name() {
        let line = |pairs: &[(u64, &str)]| Line {
            tree: Tree::V2,
            ancestors: pairs
                .iter()
                .map(|(id, name)| Ancestor {
                    id: *id,
                    name: (*name).to_owned(),
                })
                .collect(),
        };
        let attacker = line(&[(2, "docker"), (10, "attacker"), (30, "victim")]);
        let id = |inode| CgroupId {
            tree: Tree::V2,
            inode,
        };
        assert!(attacker.is_within(id(10)) && attacker.is_within(id(30)));
        assert!(!attacker.is_within(id(20)));
        let other = CgroupId {
            tree: Tree::Pids,
            inode: 10,
        };
        assert!(!attacker.is_within(other));
        assert_eq!(attacker.own(), id(30));
        assert_eq!(attacker.path_to(2), "/docker/attacker");
    }
}
