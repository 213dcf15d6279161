//! What the attestation tests run inside of their containers: does what its standard input says, a
//! line at a time, and answers each with a line.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "the other half of a test"
)]

use std::io::{BufRead as _, IoSlice, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

fn main() {
    println!("ready");
    let mut connection: Option<UnixStream> = None;
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
            "mount" => println!(
                "{}",
                std::fs::read_link("/proc/thread-self/ns/mnt")
                    .unwrap()
                    .display()
            ),
            other => panic!("cannot {other}"),
        }
        println!("done");
    }
}
