//! The capabilities of this process, by system call: an empty image may have no `/proc`.

#![expect(unsafe_code, reason = "nix has no capability calls")]

use std::io;

use nix::errno::Errno;

/// The number of CAP_CHOWN: may give files away.
pub const CHOWN: u8 = 0;
/// The number of CAP_FOWNER: may change the mode of files of others.
pub const FOWNER: u8 = 3;
/// The number of CAP_KILL: may signal processes of others.
pub const KILL: u8 = 5;
/// The number of CAP_SETGID: may take any group.
pub const SETGID: u8 = 6;
/// The number of CAP_SETUID: may become any user.
pub const SETUID: u8 = 7;
/// The number of CAP_SETPCAP: may take capabilities out of the bounding set.
pub const SETPCAP: u8 = 8;
/// The number of CAP_IPC_LOCK: may lock memory beyond the limit.
pub const IPC_LOCK: u8 = 14;
/// The number of CAP_SYS_ADMIN.
pub const SYS_ADMIN: u8 = 21;

/// A set of capabilities, one bit each, numbered as in linux/capability.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapSet(pub u64);

impl CapSet {
    /// The set of these numbers.
    pub const fn of<const N: usize>(numbers: [u8; N]) -> Self {
        let (mut set, mut at) = (0, 0);
        while at < N {
            set |= 1 << numbers[at];
            at += 1;
        }
        Self(set)
    }

    /// Whether all of the other are in this one.
    pub fn holds(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the capability with this number is in the set.
    pub fn has(self, number: u8) -> bool {
        number < 64 && self.0 >> number & 1 == 1
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// All five sets of capabilities(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// What checks look at.
    pub effective: CapSet,
    /// What may be made effective.
    pub permitted: CapSet,
    /// What a program file with inheritable capabilities may keep over exec.
    pub inheritable: CapSet,
    /// What exec can give at most.
    pub bounding: CapSet,
    /// What any exec keeps.
    pub ambient: CapSet,
}

/// `struct __user_cap_header_struct`; version 3 has 64 bits, in two halves.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

impl Caps {
    /// Reads the sets of the calling thread.
    ///
    /// # Errors
    ///
    /// None that Linux documents for one's own thread; see capget(2).
    pub fn read() -> io::Result<Self> {
        let header = Header {
            version: VERSION_3,
            pid: 0,
        };
        let mut halves = [Half::default(); 2];
        // SAFETY: version 3 makes the kernel write two halves, which is what we pass.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_capget, &raw const header, halves.as_mut_ptr())
        })?;
        let [low, high] = halves;
        let join = |low: u32, high: u32| CapSet(u64::from(high) << 32 | u64::from(low));
        Ok(Self {
            effective: join(low.effective, high.effective),
            permitted: join(low.permitted, high.permitted),
            inheritable: join(low.inheritable, high.inheritable),
            bounding: gather(|number| control(libc::PR_CAPBSET_READ, number, 0)),
            ambient: gather(|number| {
                control(
                    libc::PR_CAP_AMBIENT,
                    libc::PR_CAP_AMBIENT_IS_SET as u64,
                    number,
                )
            }),
        })
    }
}

/// Empties the bounding set, so that no exec gives any capability. What the thread has now stays.
///
/// Without CAP_SETPCAP the set stays as it is: together with no_new_privs, exec still gives
/// nothing from it.
///
/// # Errors
///
/// None that Linux documents with that capability; see PR_CAPBSET_DROP(2const).
pub fn drop_bounding() -> io::Result<()> {
    let caps = Caps::read()?;
    if caps.effective.has(SETPCAP) {
        for number in (0..64).filter(|number| caps.bounding.has(*number)) {
            Errno::result(control(libc::PR_CAPBSET_DROP, number.into(), 0))?;
        }
    }
    Ok(())
}

/// Gives up every capability of the calling thread and all that it starts: ambient, bounding (see
/// [`drop_bounding`]), effective, permitted and inheritable.
///
/// # Errors
///
/// Only those of a kernel that refuses to take capabilities away; see capset(2).
pub fn drop_all() -> io::Result<()> {
    drop_bounding()?;
    keep_only(CapSet::default())
}

/// Gives up all but these, which become effective. A program that is executed by another user than root
/// gets none of them.
///
/// # Errors
///
/// EPERM if one of them is not permitted; see capset(2).
pub fn keep_only(set: CapSet) -> io::Result<()> {
    Errno::result(control(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL as u64,
        0,
    ))?;
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let half = |bits: u64| Half {
        effective: bits as u32,
        permitted: bits as u32,
        inheritable: 0,
    };
    let halves = [half(set.0), half(set.0 >> 32)];
    // SAFETY: version 3 makes the kernel read two halves, which is what we pass.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) })?;
    Ok(())
}

/// The set of the numbers for which the kernel answers 1; it answers -1 beyond its last one.
fn gather(ask: impl Fn(u64) -> i32) -> CapSet {
    CapSet(
        (0..64)
            .filter(|number| ask(*number) == 1)
            .fold(0, |set, number| set | 1 << number),
    )
}

fn control(option: i32, second: u64, third: u64) -> i32 {
    // SAFETY: the options used here take plain numbers; unused arguments must be 0.
    unsafe { libc::prctl(option, second, third, 0, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_child::in_child;

    #[test]
    fn the_sets_are_those_of_proc() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let set = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            CapSet(u64::from_str_radix(line[name.len()..].trim(), 16).unwrap())
        };
        let expected = Caps {
            effective: set("CapEff:"),
            permitted: set("CapPrm:"),
            inheritable: set("CapInh:"),
            bounding: set("CapBnd:"),
            ambient: set("CapAmb:"),
        };
        assert_eq!(Caps::read().unwrap(), expected);
        assert!(expected.effective.has(SYS_ADMIN), "these tests need root");
    }

    #[test]
    fn dropped_capabilities_are_gone() {
        let gone = in_child(|| {
            drop_all().unwrap();
            let caps = Caps::read().unwrap();
            let all = [
                caps.effective,
                caps.permitted,
                caps.inheritable,
                caps.bounding,
                caps.ambient,
            ];
            all.iter().all(|set| set.is_empty()) && drop_all().is_ok()
        });
        assert!(gone);
    }

    #[test]
    fn what_is_kept_outlives_a_change_of_user_and_no_exec() {
        let few = CapSet::of([KILL, SETGID, SETUID]);
        assert!(few.has(KILL) && !few.has(CHOWN) && few.holds(CapSet::of([KILL])));
        assert!(!CapSet::of([KILL]).holds(few));
        let kept = in_child(|| {
            nix::sys::prctl::set_keepcaps(true).unwrap();
            nix::unistd::setuid(nix::unistd::Uid::from_raw(65_534)).unwrap();
            keep_only(few).unwrap();
            let caps = Caps::read().unwrap();
            let mut grep = std::process::Command::new("/bin/grep");
            grep.args(["-q", "CapPrm:.0000000000000000", "/proc/self/status"]);
            (caps.effective, caps.permitted) == (few, few)
                && caps.inheritable.is_empty()
                && keep_only(CapSet::of([CHOWN])).is_err()
                && grep.status().unwrap().success()
        });
        assert!(kept);
    }

    #[test]
    fn without_setpcap_the_rest_is_dropped() {
        let gone = in_child(|| {
            nix::unistd::setuid(nix::unistd::Uid::from_raw(65_534)).unwrap();
            drop_all().unwrap();
            let caps = Caps::read().unwrap();
            caps.permitted.is_empty() && caps.ambient.is_empty() && !caps.bounding.is_empty()
        });
        assert!(gone);
    }
}
