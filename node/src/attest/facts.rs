//! Gathers what is to be judged about one process: reads, and draws no conclusions.

use std::io;
use std::sync::Arc;

use mayfly_kernel::mountinfo::MOST_BYTES;
use mayfly_kernel::ns::Kind;
use mayfly_kernel::procdir::Place;

use super::container::Container;
use super::error::AttestError;
use super::host::Host;
use super::process::Process;

/// Most bytes of `/proc/PID/status`.
const MOST_STATUS: usize = 64 * 1024;
/// Most bytes of a label.
const MOST_LABEL: usize = 4096;

/// What was read about one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `/proc/PID/status`.
    pub status: Vec<u8>,
    /// `/proc/PID/mountinfo`; absent if it is too large.
    pub mountinfo: Option<Arc<[u8]>>,
    /// `/proc/PID/attr/current`; absent without an LSM that labels.
    pub label: Option<Vec<u8>>,
    /// Which of its namespaces are the host's.
    pub host: Vec<(Kind, bool)>,
    /// Id of its user namespace.
    pub user: u64,
    /// Id of its mount namespace.
    pub mount: u64,
    /// Where its root directory is.
    pub root: Option<Place>,
    /// Whether that is its container's mount namespace's root, so that its mountinfo shows all there
    /// is; `None` if that could not be told.
    pub at_root: Option<bool>,
    /// The id of the mount that is its container's root: mountinfo that was read of a process in
    /// another root has no such one at `/`, whatever the process did meanwhile.
    pub root_mount: Option<u64>,
}

impl Facts {
    /// Reads about a process of a container, if that is known. Another process of the same mount
    /// namespace and root has the same mounts, and they are not read twice.
    pub(crate) fn read(
        host: &Host,
        process: &Process,
        container: Option<&Container>,
        other: Option<&Self>,
    ) -> Result<Self, AttestError> {
        let failed = |what| move |error: io::Error| AttestError::reading(what, &error);
        let directory = &process.directory;
        let status = directory
            .read("status", MOST_STATUS)
            .map_err(failed("its status"))?;
        let label = directory.read("attr/current", MOST_LABEL).ok();
        let root = directory.root().ok();
        let id = |kind| {
            process
                .namespace(host, kind)
                .and_then(|found| host.namespace_id(&found))
        };
        let shared = match other {
            Some(other) if root.is_some() && root == other.root => {
                let mount = id(Kind::Mount).map_err(failed("its mount namespace"))?;
                other.mountinfo.clone().filter(|_| mount == other.mount)
            }
            _ => None,
        };
        let mountinfo =
            shared.or_else(|| directory.read("mountinfo", MOST_BYTES).ok().map(Arc::from));
        // The namespaces last: whoever leaves its user namespace cannot come back to it, so that what
        // was read above was read while it was still where it is now, or is told by where it is now.
        let host_owns = |kind| {
            let inode = directory
                .namespace_inode(kind)
                .map_err(failed("its namespaces"))?;
            Ok((kind, host.owns_inode(kind, inode)))
        };
        let first_root = container.and_then(|found| found.root);
        Ok(Self {
            status,
            mountinfo,
            label,
            host: Kind::ALL
                .into_iter()
                .map(host_owns)
                .collect::<Result<_, _>>()?,
            user: id(Kind::User).map_err(failed("its user namespace"))?,
            mount: id(Kind::Mount).map_err(failed("its mount namespace"))?,
            root,
            at_root: root.zip(first_root).map(|(own, first)| own == first),
            root_mount: first_root.map(|root| root.mount()),
        })
    }
}
