//! What the node's tests run inside containers: clients of the workload socket, most of them ill-behaved.
//!
//! - `session SOCKET [deaf|mute]` opens a session and prints each message; `mute` answers no ping, and
//!   `deaf` reads nothing.
//! - `sessions SOCKET COUNT` opens so many, one after another, closes each, and prints how many
//!   microseconds the median one took.
//! - `hold SOCKET COUNT` opens so many sessions, and keeps them.
//! - `flood SOCKET COUNT` opens so many connections, begins a request on each, and keeps them.
//! - `storm SOCKET COUNT` opens so many connections, closes each at once, and prints `stormed`.
//! - `descriptor SOCKET` passes a descriptor along with a request.
//! - `hand-over SOCKET MEETING` connects, and passes its connection to whoever connects to MEETING.
//! - `take-over MEETING` sends a request on a connection that it is passed, and prints the answer.
//! - `outlive SOCKET once|session GO` has a process of its own ask for a credential, or open a session,
//!   and die when the file GO exists; another prints what still comes on that connection.
//! - `nonce SOCKET PATH` asks for PATH, and repeats the request with the nonce that it is told.

use std::io::{BufRead as _, BufReader, IoSlice, IoSliceMut, Read as _, Write as _, stdout};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mayfly_wire::sealed::{self, Opener, PrivateKey};
use mayfly_wire::session::{
    ClientMessage, Hello, NONCE_HEADER, PROTOCOL, SESSION_PATH, ServerMessage, UPGRADE, WHOAMI_PATH,
};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, send, sendmsg,
};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["session", socket] => session(socket, ""),
        ["session", socket, manner] => session(socket, manner),
        ["sessions", socket, count] => sessions(socket, count.parse()?),
        ["hold", socket, count] => hold(socket, count.parse()?),
        ["flood", socket, count] => flood(socket, count.parse()?),
        ["storm", socket, count] => storm(socket, count.parse()?),
        ["descriptor", socket] => descriptor(socket),
        ["hand-over", socket, meeting] => hand_over(socket, meeting),
        ["take-over", meeting] => take_over(meeting),
        ["outlive", socket, manner, go] => outlive(socket, manner, go),
        ["outlived", socket, manner, go] => outlived(socket, manner, Path::new(go)),
        ["nonce", socket, path] => nonce(socket, path),
        _ => bail!("see the head of hostile_client.rs"),
    }
}

fn say(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

fn stay() -> ! {
    loop {
        std::thread::park();
    }
}

/// The answer's status, and the lines that follow its head.
fn open(socket: &str) -> Result<(u16, BufReader<UnixStream>, PrivateKey)> {
    let (key, public_key) = sealed::generate();
    let hello = serde_json::to_string(&Hello {
        protocol: PROTOCOL,
        public_key,
        want: None,
    })?;
    let mut stream = UnixStream::connect(socket).context("connecting")?;
    let request = format!(
        "POST {SESSION_PATH} HTTP/1.1\r\nHost: mayfly\r\nConnection: upgrade\r\nUpgrade: {UPGRADE}\r\n\
         Content-Length: {}\r\n\r\n{hello}",
        hello.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut lines = BufReader::new(stream);
    let head = head(&mut lines)?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, lines, key))
}

fn head(lines: &mut impl std::io::BufRead) -> Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if lines.read_line(&mut head)? == 0 {
            bail!("the answer ended within its head: {head:?}");
        }
    }
    Ok(head)
}

fn session(socket: &str, manner: &str) -> Result<()> {
    let (status, mut lines, key) = open(socket)?;
    say(&format!("status {status}"))?;
    if manner == "deaf" {
        stay();
    }
    let mut workload = None;
    loop {
        let mut line = String::new();
        // A reset is an end too.
        if lines.read_line(&mut line).unwrap_or(0) == 0 {
            say("end")?;
            stay();
        }
        let answer = match serde_json::from_str(&line)? {
            ServerMessage::Hello { workload: own, .. } => {
                say(&format!("hello {}", own.id()))?;
                workload = Some(own);
                continue;
            }
            ServerMessage::Bundle(bundle) => {
                let workload = workload.as_ref().context("a bundle before the hello")?;
                let generation = bundle.generation;
                let mut opener = Opener::new(&key, &bundle.encapsulated, workload, generation)?;
                for credential in &bundle.credentials {
                    for field in &credential.fields {
                        let value = opener.open(&credential.lease, &field.name, &field.sealed)?;
                        let value = String::from_utf8_lossy(value.expose()).into_owned();
                        let value = value.get(..40).unwrap_or(&value);
                        say(&format!(
                            "bundle {generation} {}/{}={value}",
                            credential.name, field.name
                        ))?;
                    }
                }
                ClientMessage::Ack { generation }
            }
            ServerMessage::Ping {} if manner == "mute" => continue,
            ServerMessage::Ping {} => ClientMessage::Pong {},
            ServerMessage::Withdraw { .. } => continue,
            ServerMessage::Refused(refusal) => {
                say(&format!("refused {:?}", refusal.code))?;
                continue;
            }
        };
        let answer = format!("{}\n", serde_json::to_string(&answer)?);
        // What the node said before it closed is still to be read.
        let _ = lines.get_mut().write_all(answer.as_bytes());
    }
}

fn sessions(socket: &str, count: usize) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        let (status, mut lines, _) = open(socket)?;
        if status != 101 {
            bail!("status {status}");
        }
        // Hello and the first bundle.
        for _ in 0..2 {
            lines.read_line(&mut String::new())?;
        }
        times.push(start.elapsed());
    }
    times.sort();
    let at = |part: usize| times.get(times.len() * part / 100).map(Duration::as_micros);
    say(&format!("median {:?} p99 {:?}", at(50), at(99)))?;
    stay()
}

fn hold(socket: &str, count: usize) -> Result<()> {
    let mut held = Vec::new();
    for _ in 0..count {
        let (status, mut lines, _) = open(socket)?;
        if status != 101 {
            bail!("status {status}");
        }
        for _ in 0..2 {
            lines.read_line(&mut String::new())?;
        }
        held.push(lines);
    }
    say("held")?;
    stay()
}

fn flood(socket: &str, count: usize) -> Result<()> {
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..count {
        let mut stream = UnixStream::connect(socket)?;
        // It may have been closed already.
        let _ = stream.write_all(b"GET /v1/credentials HTTP/1.1\r\nHost: ");
        held.push(stream);
    }
    say("flooding")?;
    // Most are refused, as soon as the node comes to them; those that it let in hear nothing yet.
    let (mut heard, start) = (vec![false; count], Instant::now());
    while refused * 20 < count * 19 && start.elapsed() < Duration::from_secs(20) {
        for (stream, heard) in held
            .iter_mut()
            .zip(&mut heard)
            .filter(|(_, heard)| !**heard)
        {
            stream.set_read_timeout(Some(Duration::from_millis(1)))?;
            let mut answer = [0; 12];
            *heard = stream.read_exact(&mut answer).is_ok();
            refused += usize::from(*heard && answer.ends_with(b" 429"));
        }
    }
    say(&format!("refused {refused}"))?;
    stay()
}

fn storm(socket: &str, count: usize) -> Result<()> {
    for _ in 0..count {
        UnixStream::connect(socket)?;
    }
    say("stormed")?;
    stay()
}

fn get(path: &str, header: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: mayfly\r\n{header}\r\n")
}

fn descriptor(socket: &str) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    let null = std::fs::File::open("/dev/null")?;
    let request = get(WHOAMI_PATH, "");
    pass(&stream, request.as_bytes(), &null)?;
    let mut answer = String::new();
    // A reset is an end too.
    let _ = stream.read_to_string(&mut answer);
    say(&format!("answer {answer:?}"))
}

fn pass(stream: &UnixStream, bytes: &[u8], descriptor: &impl AsRawFd) -> Result<()> {
    let rights = [ControlMessage::ScmRights(&[descriptor.as_raw_fd()])];
    let bytes = [IoSlice::new(bytes)];
    sendmsg::<()>(stream.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None)?;
    Ok(())
}

fn hand_over(socket: &str, meeting: &str) -> Result<()> {
    let stream = UnixStream::connect(socket)?;
    let listener = UnixListener::bind(meeting)?;
    say("waiting")?;
    let (other, _) = listener.accept()?;
    pass(&other, b"x", &stream)?;
    say("passed")?;
    stay()
}

fn take_over(meeting: &str) -> Result<()> {
    let other = UnixStream::connect(meeting)?;
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let message = recvmsg::<()>(
        other.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    let mut taken = None;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part {
            taken = descriptors.first().copied();
        }
    }
    let taken = taken.context("no descriptor came")?;
    // By its number, which nix takes for these.
    let sent = send(
        taken,
        get(WHOAMI_PATH, "").as_bytes(),
        MsgFlags::MSG_NOSIGNAL,
    );
    let mut answer = vec![0; 4096];
    let length = recv(taken, &mut answer, MsgFlags::empty()).unwrap_or(0);
    answer.truncate(length);
    let answer = String::from_utf8_lossy(&answer);
    say(&format!("sent {sent:?} answer {answer:?}"))
}

fn outlive(socket: &str, manner: &str, go: &str) -> Result<()> {
    let mut asks = Command::new(std::env::current_exe()?);
    asks.args(["outlived", socket, manner, go]).status()?;
    say("dead")?;
    stay()
}

fn outlived(socket: &str, manner: &str, go: &Path) -> Result<()> {
    let stream = if manner == "once" {
        let mut stream = UnixStream::connect(socket)?;
        stream.write_all(get("/v1/credentials/orders-db/value", "").as_bytes())?;
        stream
    } else {
        let (_, mut lines, _) = open(socket)?;
        // Hello and the first bundle.
        for _ in 0..2 {
            lines.read_line(&mut String::new())?;
        }
        lines.into_inner()
    };
    Command::new("cat").stdin(OwnedFd::from(stream)).spawn()?;
    say("asked")?;
    while !go.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn nonce(socket: &str, path: &str) -> Result<()> {
    let mut lines = BufReader::new(UnixStream::connect(socket)?);
    let mut ask = |header: &str| -> Result<(String, String)> {
        lines.get_mut().write_all(get(path, header).as_bytes())?;
        let head = head(&mut lines)?;
        let length = field(&head, "content-length").context("no length")?;
        let mut body = vec![0; length.parse()?];
        lines.read_exact(&mut body)?;
        Ok((head, String::from_utf8_lossy(&body).into_owned()))
    };
    let (first, _) = ask("")?;
    let told = field(&first, NONCE_HEADER).context("no nonce in the answer")?;
    say(&format!("first {}", &first[9..12]))?;
    for (what, value) in [("wrong", &"0".repeat(32)), ("right", &told)] {
        let (head, body) = ask(&format!("{NONCE_HEADER}: {value}\r\n"))?;
        say(&format!("{what} {} {body}", &head[9..12]))?;
    }
    Ok(())
}

fn field(head: &str, wanted: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case(wanted).then(|| value.to_owned())
    })
}
