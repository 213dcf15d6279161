//! What an attacker tries with another process of its uid, for tests that run it in containers.
//!
//! `isolation_attack at PID` tries every way into one process. `isolation_attack all` tries them on
//! every process that it sees but itself. `isolation_attack sockets` connects to every abstract socket
//! of its network namespace, and takes what it is passed there.
//!
//! Prints one line of JSON for each process: `{"pid":1,"program":"x",…}`, each way with `"in"` or the
//! error's number. For sockets, `{"name":"…","received":"…"}`. Exit status 0 means that it tried.

#![expect(unsafe_code, reason = "attacks are system calls that nobody wraps")]
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::ffi::c_void;
use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::ExitCode;
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// A way into a process, and what it gives to one who comes in.
type Way = (&'static str, fn(i32) -> io::Result<()>);

const WAYS: [Way; 18] = [
    ("ptrace_attach", |pid| trace(libc::PTRACE_ATTACH, pid)),
    ("ptrace_seize", |pid| trace(libc::PTRACE_SEIZE, pid)),
    ("process_vm_readv", read_memory),
    ("process_vm_writev", write_memory),
    ("mem", |pid| {
        let at = readable(pid)?;
        File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut [0], at)
    }),
    ("maps", |pid| read(pid, "maps")),
    ("smaps", |pid| read(pid, "smaps")),
    ("pagemap", |pid| read(pid, "pagemap")),
    ("environ", |pid| read(pid, "environ")),
    ("auxv", |pid| read(pid, "auxv")),
    ("syscall", |pid| read(pid, "syscall")),
    ("root", |pid| list(pid, "root/run")),
    ("cwd", |pid| list(pid, "cwd")),
    ("exe", |pid| {
        fs::read_link(format!("/proc/{pid}/exe")).map(drop)
    }),
    ("fd", open_descriptor),
    ("fdinfo", |pid| list(pid, "fdinfo")),
    ("pidfd_getfd", take_descriptor),
    ("namespace", |pid| {
        File::open(format!("/proc/{pid}/ns/mnt")).map(drop)
    }),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["at", pid] => match pid.parse() {
            Ok(pid) => println!("{}", attack(pid)),
            Err(_) => return ExitCode::from(64),
        },
        ["all"] => {
            for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
                let name = entry.file_name().into_string().unwrap_or_default();
                if let Ok(pid) = name.parse()
                    && pid != std::process::id().cast_signed()
                {
                    println!("{}", attack(pid));
                }
            }
        }
        ["sockets"] => sockets(),
        _ => {
            eprintln!("usage: isolation_attack at PID | all | sockets");
            return ExitCode::from(64);
        }
    }
    ExitCode::SUCCESS
}

fn attack(pid: i32) -> String {
    // Everybody may read this one.
    let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let mut report = format!("{{\"pid\":{pid},\"program\":\"{}\"", program.trim_end());
    for (name, way) in WAYS {
        let result = match way(pid) {
            Ok(()) => "\"in\"".to_owned(),
            Err(error) => error.raw_os_error().unwrap_or(0).to_string(),
        };
        report.push_str(&format!(",\"{name}\":{result}"));
    }
    report + "}"
}

/// Attaches and lets go.
fn trace(request: u32, pid: i32) -> io::Result<()> {
    // SAFETY: plain numbers; the kernel touches no memory of ours.
    unsafe {
        Errno::result(libc::ptrace(request, pid, 0, 0))?;
        if request == libc::PTRACE_SEIZE {
            libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0);
        }
        libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL);
        libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0);
    }
    Ok(())
}

/// An address in the process that can be read and written, as far as one is allowed to know; else some.
fn readable(pid: i32) -> io::Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps.lines().find(|line| line.contains(" rw-p "));
    let start = line.and_then(|line| line.split_once('-'));
    start
        .and_then(|(start, _)| u64::from_str_radix(start, 16).ok())
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn read_memory(pid: i32) -> io::Result<()> {
    let mut byte = [0_u8];
    copy(pid, &mut byte, libc::process_vm_readv)
}

/// Writes back the byte that it reads, if it is let: an attack that breaks nothing.
fn write_memory(pid: i32) -> io::Result<()> {
    let mut byte = [0_u8];
    let _ = copy(pid, &mut byte, libc::process_vm_readv);
    copy(pid, &mut byte, libc::process_vm_writev)
}

type Copy = unsafe extern "C" fn(
    libc::pid_t,
    *const libc::iovec,
    libc::c_ulong,
    *const libc::iovec,
    libc::c_ulong,
    libc::c_ulong,
) -> isize;

fn copy(pid: i32, byte: &mut [u8; 1], how: Copy) -> io::Result<()> {
    let there = readable(pid).unwrap_or(0x1000);
    let local = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let remote = libc::iovec {
        iov_base: there as *mut c_void,
        iov_len: 1,
    };
    // SAFETY: one byte of ours, which we own, is read or written.
    match Errno::result(unsafe { how(pid, &raw const local, 1, &raw const remote, 1, 0) }) {
        // It was let in, and nothing is there.
        Err(Errno::EFAULT) | Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn read(pid: i32, name: &str) -> io::Result<()> {
    let mut file = File::open(format!("/proc/{pid}/{name}"))?;
    match file.read(&mut [0; 64])? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

fn list(pid: i32, name: &str) -> io::Result<()> {
    fs::read_dir(format!("/proc/{pid}/{name}"))?.count();
    Ok(())
}

fn open_descriptor(pid: i32) -> io::Result<()> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        fs::read_link(entry?.path())?;
    }
    Ok(())
}

/// Takes the first of its descriptors that can be had.
fn take_descriptor(pid: i32) -> io::Result<()> {
    // SAFETY: plain numbers; each new descriptor is owned from then on.
    unsafe {
        let opened = Errno::result(libc::syscall(libc::SYS_pidfd_open, pid, 0))?;
        let process = OwnedFd::from_raw_fd(opened as i32);
        let mut last = Errno::EBADF;
        for number in 0..64 {
            let taken = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0);
            match Errno::result(taken) {
                Ok(taken) => {
                    drop(OwnedFd::from_raw_fd(taken as i32));
                    return Ok(());
                }
                Err(Errno::EBADF) => {}
                Err(other) => last = other,
            }
        }
        Err(last.into())
    }
}

fn sockets() {
    let table = fs::read_to_string("/proc/self/net/unix").unwrap_or_default();
    for name in table.lines().filter_map(|line| line.split_once(" @")) {
        let name = name.1;
        let received = match connect(name) {
            Ok(text) => format!("\"{}\"", text.escape_default()),
            Err(error) => error.raw_os_error().unwrap_or(0).to_string(),
        };
        println!(
            "{{\"name\":\"{}\",\"received\":{received}}}",
            name.escape_default()
        );
    }
}

/// What is said, and what stands in the file that is passed along.
fn connect(name: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /v1/credentials HTTP/1.1\r\nHost: mayfly\r\n\r\n")?;
    let mut bytes = [0; 4096];
    let mut space = cmsg_space!([i32; 8]);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
    let mut text = String::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(passed) = control {
            for number in passed {
                // SAFETY: the kernel has just made it for us alone.
                let mut file = File::from(unsafe { OwnedFd::from_raw_fd(number) });
                file.read_to_string(&mut text)?;
            }
        }
    }
    let length = message.bytes;
    Ok(text + &String::from_utf8_lossy(&bytes[..length]))
}
