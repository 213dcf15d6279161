//! Cgroups by ids that the kernel never uses again, and the way from the root to one.

/// Id of the root of every hierarchy.
pub(crate) const ROOT: u64 = 1;

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

#[cfg(test)]
mod tests {
    use super::*;

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
