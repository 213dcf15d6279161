//! Names of capabilities, as policies and records have them: without `CAP_`, lower case.

/// The number of CAP_SYS_ADMIN.
pub(crate) const SYS_ADMIN: u32 = 21;

/// The capabilities by number, as in linux/capability.h.
pub(crate) const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// The names of the capabilities in a set, sorted. One that is newer than this program is told by its
/// number.
pub(crate) fn names(set: u64) -> Vec<String> {
    let held = (0..64_usize).filter(|number| set >> number & 1 == 1);
    let mut names: Vec<String> = held
        .map(|number| match NAMES.get(number) {
            Some(name) => (*name).to_owned(),
            None => format!("cap_{number}"),
        })
        .collect();
    names.sort();
    names
}
