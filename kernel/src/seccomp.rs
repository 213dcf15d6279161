//! The filter that takes the keyring calls away.
//!
//! Written by hand because it is nine instructions, and because refusing every x32 number needs a
//! "greater or equal" on the call's number, which the filter builders lack.

#![expect(unsafe_code, reason = "nix has no seccomp(2)")]

use std::io;

use libc::{BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};
use nix::errno::Errno;

/// A system call that the filter answers with ENOSYS.
pub struct Refusal {
    /// The call's name, as in its manual page.
    pub name: &'static str,
    /// The call's number on the architecture that this was built for.
    pub number: i64,
    /// Why nobody under the filter may make the call.
    pub reason: &'static str,
}

/// What nobody in a container may call: keyrings are shared by all containers of one uid, and
/// outlive them (keyrings(7), persistent-keyring(7)).
///
/// Refused with ENOSYS and not EPERM, so that libraries which try keyrings first (Kerberos, for
/// one) take their way for a kernel without them.
pub const KEYRINGS: [Refusal; 3] = [
    Refusal {
        name: "add_key",
        number: libc::SYS_add_key,
        reason: "puts a secret where every container of the same uid finds it",
    },
    Refusal {
        name: "request_key",
        number: libc::SYS_request_key,
        reason: "finds and links a key that another container of the same uid left",
    },
    Refusal {
        name: "keyctl",
        number: libc::SYS_keyctl,
        reason: "links the keyring of the uid to one's own session, which makes its keys readable",
    },
];

/// linux/audit.h, which libc does not carry.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
/// linux/audit.h, which libc does not carry.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// From here on, x86_64 numbers mean the same calls under the x32 ABI (`__X32_SYSCALL_BIT`):
/// refused as one, or each rule would have a second door. No other architecture has such numbers.
const FIRST_X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// Builds the program: another architecture's call kills the process (its numbers mean other
/// calls), an x32 number and every refused call get ENOSYS, the rest is allowed.
fn program(refusals: &[Refusal]) -> Vec<sock_filter> {
    let load = |offset| instruction(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0);
    let answer = |action| instruction(BPF_RET | BPF_K, action, 0, 0);
    let mut program = vec![
        load(ARCH),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ];
    // Each test jumps over the tests after it and over "allow", to the refusal at the end.
    let mut left = refusals.len() as u8 + 1;
    program.push(instruction(BPF_JMP | BPF_JGE | BPF_K, FIRST_X32, left, 0));
    for refusal in refusals {
        left -= 1;
        program.push(instruction(
            BPF_JMP | BPF_JEQ | BPF_K,
            refusal.number as u32,
            left,
            0,
        ));
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program.push(answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32));
    program
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

/// Takes the calls of [`KEYRINGS`] away from every thread of this process and all that they start.
/// It cannot be undone.
///
/// # Errors
///
/// EACCES without no_new_privs (or CAP_SYS_ADMIN), EINVAL or ENOSYS on a kernel without seccomp
/// filters, ESRCH if another thread has a filter of its own that this one does not extend. See
/// seccomp(2).
pub fn refuse_keyrings() -> io::Result<()> {
    let program = program(&KEYRINGS);
    let header = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program, which outlives the call, and writes nothing. nix and
    // std have no seccomp call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const header,
        )
    };
    match Errno::result(answer)? {
        0 => Ok(()),
        // With TSYNC, the id of the thread that could not follow.
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_child::in_child;

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

    /// What the program answers, by the rules of classic BPF.
    fn judge(arch: u32, number: u32) -> u32 {
        let program = program(&KEYRINGS);
        let (mut at, mut loaded) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            let jump = match u32::from(step.code) {
                code if code == BPF_LD | BPF_W | BPF_ABS => {
                    loaded = if step.k == ARCH { arch } else { number };
                    continue;
                }
                code if code == BPF_RET | BPF_K => return step.k,
                code if code == BPF_JMP | BPF_JEQ | BPF_K => loaded == step.k,
                code if code == BPF_JMP | BPF_JGE | BPF_K => loaded >= step.k,
                code => panic!("unknown instruction {code:#x}"),
            };
            at += usize::from(if jump { step.jt } else { step.jf });
        }
    }

    #[test]
    fn the_keyring_calls_alone_are_refused() {
        for number in 0..600 {
            let refused = KEYRINGS
                .iter()
                .any(|refusal| refusal.number == i64::from(number));
            assert_eq!(
                judge(ARCHITECTURE, number),
                if refused { REFUSE } else { ALLOW }
            );
        }
    }

    #[test]
    fn every_x32_number_is_refused() {
        for number in [0, 1, 248, 249, 250, 519, 0x3FFF_FFFF, 0xBFFF_FFFF] {
            assert_eq!(judge(ARCHITECTURE, FIRST_X32 + number), REFUSE);
        }
        assert_eq!(judge(ARCHITECTURE, FIRST_X32 - 1), ALLOW);
    }

    #[test]
    fn another_architecture_is_killed() {
        // i386, arm, and this one with its byte order flag off.
        for arch in [0x4000_0003, 0x4000_0028, ARCHITECTURE & !0x4000_0000] {
            assert_eq!(judge(arch, 0), KILL);
            assert_eq!(judge(arch, 250), KILL);
        }
    }

    #[test]
    fn the_kernel_takes_it_and_it_holds() {
        let seen = in_child(|| {
            nix::sys::prctl::set_no_new_privs().unwrap();
            refuse_keyrings().unwrap();
            // SAFETY: the arguments are plain numbers; the calls touch no memory of ours.
            let results = unsafe {
                KEYRINGS.map(|refusal| {
                    let plain = libc::syscall(refusal.number, 0, 0, 0, 0, 0);
                    let plain = (plain, Errno::last_raw());
                    let x32 = libc::syscall(refusal.number + i64::from(FIRST_X32), 0, 0, 0, 0, 0);
                    [plain, (x32, Errno::last_raw())]
                })
            };
            let refused = (-1, libc::ENOSYS);
            results.iter().flatten().all(|result| *result == refused)
        });
        assert!(seen);
    }

    #[test]
    fn it_needs_no_new_privs_from_those_without_capabilities() {
        let refused = in_child(|| {
            nix::unistd::setuid(nix::unistd::Uid::from_raw(65_534)).unwrap();
            refuse_keyrings().unwrap_err().raw_os_error() == Some(libc::EACCES)
        });
        assert!(refused);
    }
}
