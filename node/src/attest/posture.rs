//! Judges the posture of a process from what was read. Pure: what could not be established, or could
//! have been forged, is unknown.

use mayfly_kernel::mountinfo::{Mount, mounts};
use mayfly_kernel::ns::Kind;
use mayfly_wire::Posture;
use mayfly_wire::posture::UNLIMITED;

use super::capabilities::{self, SYS_ADMIN};
use super::container::Container;
use super::facts::Facts;
use super::sockets::Exposed;

/// What a process's container was like when it was first seen, as far as posture depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Began {
    /// Id of its user namespace.
    pub user: u64,
    /// Id of its mount namespace.
    pub mount: u64,
    /// See [`super::container::Container::user_is_outermost`].
    pub user_is_outermost: bool,
}

impl Began {
    pub(crate) fn of(container: &Container) -> Self {
        Self {
            user: container.user.id,
            mount: container.mount.id,
            user_is_outermost: container.user_is_outermost,
        }
    }
}

/// The limits as the kernel writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LimitTexts {
    /// `memory.max`, or v1's `memory.limit_in_bytes`.
    pub memory: Option<String>,
    /// `pids.max`.
    pub pids: Option<String>,
}

impl LimitTexts {
    pub(crate) fn of(container: &Container) -> Self {
        Self {
            memory: container.limits.memory(),
            pids: container.limits.pids(),
        }
    }
}

/// Whether a process is in the user and mount namespaces that its container began with.
pub(crate) fn in_own_namespaces(facts: &Facts, began: Began) -> bool {
    facts.user == began.user && facts.mount == began.mount
}

/// The posture of a process, whose container began so; unknown for one whose container is not known.
/// `sockets` are the engines' on this host; without them nobody knows whether one is inside.
pub(crate) fn posture(
    facts: &Facts,
    began: Option<Began>,
    limits: &LimitTexts,
    sockets: Option<&[Exposed]>,
) -> Posture {
    let status = Status::of(&facts.status);
    let in_host = |kind| {
        facts
            .host
            .iter()
            .find(|(of, _)| *of == kind)
            .map(|(_, host)| *host)
    };
    let bounding = status.hexadecimal("CapBnd:");
    let found = Posture {
        uid: status.id("Uid:"),
        gid: status.id("Gid:"),
        host_user_namespace: in_host(Kind::User),
        host_pid_namespace: in_host(Kind::Pid),
        host_network_namespace: in_host(Kind::Network),
        host_ipc_namespace: in_host(Kind::Ipc),
        host_mount_namespace: in_host(Kind::Mount),
        host_uts_namespace: in_host(Kind::Uts),
        host_cgroup_namespace: in_host(Kind::Cgroup),
        effective_capabilities: status.hexadecimal("CapEff:").map(capabilities::names),
        permitted_capabilities: status.hexadecimal("CapPrm:").map(capabilities::names),
        bounding_capabilities: bounding.map(capabilities::names),
        no_new_privs: status.number("NoNewPrivs:").map(|value| value != 0),
        seccomp_mode: status
            .number("Seccomp:")
            .and_then(|mode| u8::try_from(mode).ok()),
        seccomp_filters: status.number("Seccomp_filters:"),
        lsm_label: facts.label.as_deref().and_then(label),
        memory_limit: limits.memory.as_deref().and_then(limit),
        pids_limit: limits.pids.as_deref().and_then(limit),
        ..Posture::default()
    };
    let could_mount = bounding.is_none_or(|set| set >> SYS_ADMIN & 1 == 1);
    let stayed =
        began.is_some_and(|began| began.user_is_outermost && in_own_namespaces(facts, began));
    let honest = !could_mount && stayed && facts.at_root == Some(true);
    let mounts = facts.mountinfo.as_deref().filter(|_| honest);
    let shows_all = |mounts: &Vec<Mount<'_>>| {
        let root = mounts.iter().rfind(|mount| *mount.point == *b"/");
        root.is_some_and(|root| Some(root.id) == facts.root_mount)
    };
    match mounts.and_then(mounts_of).filter(shows_all) {
        Some(mounts) => with_mounts(found, &mounts, sockets),
        None => found,
    }
}

fn mounts_of(text: &[u8]) -> Option<Vec<Mount<'_>>> {
    mounts(text).collect::<Result<_, _>>().ok()
}

/// Adds what the mounts tell.
fn with_mounts(found: Posture, mounts: &[Mount<'_>], sockets: Option<&[Exposed]>) -> Posture {
    let at = |path: &[u8]| mounts.iter().rfind(|mount| *mount.point == *path);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let read_only = |mount: &Mount<'_>| mount.mount_read_only || mount.filesystem_read_only;
    let exposed = |sockets| {
        let exposed = mounts.iter();
        let mut exposed: Vec<String> = exposed
            .filter_map(|mount| Exposed::by(mount, mounts, sockets))
            .collect();
        exposed.sort();
        exposed.dedup();
        exposed
    };
    Posture {
        read_only_root: at(b"/").map(read_only),
        secrets_filesystem: at(b"/run/secrets").map(|mount| text(mount.filesystem)),
        engine_sockets: sockets.map(exposed),
        ..found
    }
}

/// A label is one line, or ends with a zero.
fn label(text: &[u8]) -> Option<String> {
    let text = str::from_utf8(text).ok()?.trim_end_matches(['\0', '\n']);
    (!text.is_empty()).then(|| text.to_owned())
}

/// v1 writes "no limit" as the most pages that it can count, in bytes.
fn limit(text: &str) -> Option<u64> {
    const MOST_V1: u64 = 0x7FFF_FFFF_FFFF_F000;
    match text {
        "max" => Some(UNLIMITED),
        number => match number.parse().ok()? {
            unlimited if unlimited >= MOST_V1 => Some(UNLIMITED),
            limit => Some(limit),
        },
    }
}

/// The fields of `/proc/PID/status` (proc_pid_status(5)). The program's name comes first, and the
/// kernel escapes newlines in it, so that it cannot make lines of its own.
struct Status<'a>(Option<&'a str>);

impl<'a> Status<'a> {
    fn of(text: &'a [u8]) -> Self {
        // The name may be any bytes; the rest is ASCII.
        let rest = text
            .iter()
            .position(|byte| *byte == b'\n')
            .map(|end| &text[end + 1..]);
        Self(rest.and_then(|rest| str::from_utf8(rest).ok()))
    }

    fn field(&self, name: &str) -> Option<&'a str> {
        let mut lines = self.0?.lines();
        lines
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    }

    fn number(&self, name: &str) -> Option<u32> {
        self.field(name)?.parse().ok()
    }

    fn hexadecimal(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.field(name)?, 16).ok()
    }

    /// The second of four: real, effective, saved, filesystem.
    fn id(&self, name: &str) -> Option<u32> {
        self.field(name)?
            .split_ascii_whitespace()
            .nth(1)?
            .parse()
            .ok()
    }
}

#[cfg(test)]
mod tests;
