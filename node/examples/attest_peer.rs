//! What the attestation tests run inside of their containers: does what its standard input says, a
//! line at a time, and answers each with a line.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "the other half of a test"
)]

use std::io::{BufRead as _, IoSlice, IoSliceMut, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

fn main() {
    println!("ready");
    let mut connection: Option<UnixStream> = None;
    let mut listener: Option<UnixListener> = None;
    let mut children: Vec<Child> = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let mut words = line.splitn(2, ' ');
        let (verb, rest) = (words.next().unwrap(), words.next().unwrap_or_default());
        match verb {
            "connect" => connection = Some(UnixStream::connect(rest).unwrap()),
            "send" => connection
                .as_mut()
                .unwrap()
                .write_all(rest.as_bytes())
                .unwrap(),
            // A descriptor goes along: our standard input.
            "pass" => {
                let numbers = [0];
                let number = connection.as_ref().unwrap().as_raw_fd();
                let rights = [ControlMessage::ScmRights(&numbers)];
                let bytes = [IoSlice::new(rest.as_bytes())];
                sendmsg::<()>(number, &bytes, &rights, MsgFlags::empty(), None).unwrap();
            }
            // Another process, which has our connection as its output, runs a command.
            "spawn" => {
                let output = OwnedFd::from(connection.as_ref().unwrap().try_clone().unwrap());
                let mut command = Command::new("/bin/sh");
                command
                    .args(["-c", rest])
                    .stdin(Stdio::null())
                    .stdout(output);
                children.push(command.spawn().unwrap());
            }
            "unshare" => {
                for kind in rest.split(' ') {
                    unshare(match kind {
                        "user" => CloneFlags::CLONE_NEWUSER,
                        "mount" => CloneFlags::CLONE_NEWNS,
                        other => panic!("cannot unshare {other}"),
                    })
                    .unwrap();
                }
            }
            // The kernel makes each with the inode of the one before.
            "recycle" => {
                for _ in 0..rest.parse().unwrap() {
                    unshare(CloneFlags::CLONE_NEWNS).unwrap();
                }
            }
            "chroot" => nix::unistd::chroot(rest).unwrap(),
            "inode" => {
                let link = std::fs::read_link(format!("/proc/thread-self/ns/{rest}")).unwrap();
                println!("{}", link.display());
            }
            // Moves itself into a cgroup, by the path of its directory.
            "move" => std::fs::write(format!("{rest}/cgroup.procs"), "0").unwrap(),
            // Passes its connection to whoever listens there.
            "give" => {
                let numbers = [connection.as_ref().unwrap().as_raw_fd()];
                let other = UnixStream::connect(rest).unwrap();
                let rights = [ControlMessage::ScmRights(&numbers)];
                let bytes = [IoSlice::new(b"x")];
                sendmsg::<()>(other.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
            }
            "listen" => listener = Some(UnixListener::bind(rest).unwrap()),
            // Takes the connection that someone gave, and says its number.
            "take" => {
                let (other, _) = listener.as_ref().unwrap().accept().unwrap();
                println!("{}", taken(&other));
            }
            "run" => {
                let status = Command::new("/bin/sh").args(["-c", rest]).status().unwrap();
                assert!(status.success(), "{rest}");
            }
            other => panic!("cannot {other}"),
        }
        println!("done");
    }
}

/// Receives a descriptor, which children then inherit by its number.
fn taken(other: &UnixStream) -> i32 {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let flags = MsgFlags::empty();
    let message = recvmsg::<()>(other.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
    let numbers = message.cmsgs().unwrap().find_map(|found| match found {
        ControlMessageOwned::ScmRights(numbers) => Some(numbers),
        _ => None,
    });
    numbers.unwrap()[0]
}
