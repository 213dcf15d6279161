//! Abstract sockets, which need no path to be reached: containers that share a network namespace, as all
//! with the host's do, share them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{IoSlice, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{TempDir, random_text};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::scene::Scene;

/// One line of `/proc/PID/net/unix`.
struct Socket {
    inode: u64,
    listens: bool,
    name: String,
}

/// The unix sockets of a process's network namespace that it has open itself.
fn sockets(pid: i32) -> Result<Vec<Socket>> {
    let mut inodes: BTreeSet<u64> = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let target = std::fs::read_link(entry?.path())?.display().to_string();
        let inode = target.strip_prefix("socket:[");
        inodes.extend(inode.and_then(|inode| inode.trim_end_matches(']').parse::<u64>().ok()));
    }
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/unix"))?;
    let mut found = Vec::new();
    for line in table.lines().skip(1) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, _, _, flags, _, _, inode, name @ ..] = &words[..] else {
            continue;
        };
        found.push(Socket {
            inode: inode.parse().with_context(|| line.to_string())?,
            // __SO_ACCEPTCON
            listens: u32::from_str_radix(flags, 16)? & 0x10000 != 0,
            name: name.join(" "),
        });
    }
    found.retain(|socket| inodes.contains(&socket.inode));
    Ok(found)
}

pub fn are_of_no_use(scene: &Scene) -> Result<()> {
    // The attack works where somebody listens so, and passes a descriptor of what is not to be read.
    let dir = TempDir::new()?;
    let passed = random_text(40)?;
    std::fs::write(dir.join("passed"), &passed)?;
    let name = format!("mayfly-test-{}", random_text(8)?);
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    let file = File::open(dir.join("passed"))?;
    let pass = std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        // Whoever closes with something unread breaks the connection.
        ensure!(stream.read(&mut [0; 512])? > 0, "nothing was asked");
        let descriptors = [file.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&descriptors)];
        let text = [IoSlice::new(b"here")];
        sendmsg::<()>(stream.as_raw_fd(), &text, &message, MsgFlags::empty(), None)?;
        Ok(())
    });
    let attack = ["isolation_attack", "sockets"];
    let seen = scene.attack_of_another(scene.users.sidecar(), &["--network=host"], &attack)?;
    pass.join()
        .map_err(|_| anyhow::anyhow!("the listener panicked"))??;
    let control = seen.iter().find(|socket| socket["name"] == name.as_str());
    let control = control.with_context(|| format!("{seen:#?}"))?;
    let received = control["received"].as_str();
    ensure!(
        received.is_some_and(|text| text.contains(&passed)),
        "the attack does not work here: {control}"
    );
    for socket in &seen {
        ensure!(!socket.to_string().contains(&scene.secret), "{socket}");
    }

    let broker = scene.broker.pid()?;
    let mut ours = vec![("mayfly-broker", broker)];
    for program in ["mayfly-sidecar", "mayfly-shim"] {
        ours.push((program, scene.pids(program)?[0]));
    }
    for (program, pid) in ours {
        let open = sockets(pid)?;
        for socket in &open {
            ensure!(
                !socket.name.starts_with('@'),
                "{program} has {}",
                socket.name
            );
            ensure!(
                !socket.listens || program == "mayfly-broker",
                "{program} listens: {}",
                socket.name
            );
        }
        let listens = open.iter().any(|socket| socket.listens);
        ensure!(
            listens == (program == "mayfly-broker"),
            "no socket of {program} is seen"
        );
    }
    Ok(())
}
