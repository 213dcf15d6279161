//! Gathers what is to be judged about one process: reads, and draws no conclusions.

use mayfly_kernel::mountinfo::MOST_BYTES;
use mayfly_kernel::ns::Kind;

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
    pub mountinfo: Option<Vec<u8>>,
    /// `/proc/PID/attr/current`; absent without an LSM that labels.
    pub label: Option<Vec<u8>>,
    /// Which of its namespaces are the host's.
    pub host: Vec<(Kind, bool)>,
    /// Id of its user namespace.
    pub user: u64,
    /// Id of its mount namespace.
    pub mount: u64,
    /// Whether its root directory is its container's mount namespace's root, so that its mountinfo
    /// shows all there is; `None` if that could not be told.
    pub at_root: Option<bool>,
}

impl Facts {
    /// Reads about a process of a container, if that is known.
    pub(crate) fn read(
        host: &Host,
        process: &Process,
        container: Option<&Container>,
    ) -> Result<Self, AttestError> {
        let failed = |what| move |error: std::io::Error| AttestError::reading(what, &error);
        let directory = &process.directory;
        let status = directory
            .read("status", MOST_STATUS)
            .map_err(failed("its status"))?;
        let mountinfo = directory.read("mountinfo", MOST_BYTES).ok();
        let root = directory.root().ok();
        let label = directory.read("attr/current", MOST_LABEL).ok();
        // The namespaces last: whoever leaves its user namespace cannot come back to it, so that what
        // was read above was read while it was still where it is now, or is told by where it is now.
        let mut facts = Self {
            status,
            mountinfo,
            label,
            at_root: root
                .zip(container.and_then(|container| container.root))
                .map(|(own, first)| own == first),
            ..Self::default()
        };
        for kind in Kind::ALL {
            let namespace = process
                .namespace(host, kind)
                .map_err(failed("its namespaces"))?;
            let id = || {
                host.namespace_id(&namespace)
                    .map_err(failed("its namespaces"))
            };
            match kind {
                Kind::User => facts.user = id()?,
                Kind::Mount => facts.mount = id()?,
                _ => {}
            }
            let owns = host
                .owns(kind, &namespace)
                .map_err(failed("its namespaces"))?;
            facts.host.push((kind, owns));
        }
        Ok(facts)
    }
}
