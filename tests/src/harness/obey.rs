//! A process inside a container that does what a test tells it, a line at a time: the attacker.
//!
//! [`obey`] is the inside, which `mayfly-probe obey` runs; [`Agent`] is the outside.

use std::fs;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use mayfly_kernel::{caps, seccomp};
use mayfly_wire::session::{NONCE_HEADER, SOCKET};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, sendmsg};
use nix::unistd::{setresgid, setresuid};

use super::container::Container;
use super::session::{Opened, Session};
use super::wait::{random_text, wait_until};

/// How long the inside waits for any answer.
const SOON: Duration = Duration::from_secs(30);
/// The user and the group of someone without power.
const ORDINARY: u32 = 1000;

/// What the process inside holds.
#[derive(Default)]
struct Inside {
    /// By its number: a descriptor that came in a message has no owner that safe code could make.
    connection: Option<RawFd>,
    listener: Option<UnixListener>,
    mounts: Option<String>,
    session: Option<Session>,
}

/// Does what standard input says until it ends. Each order is answered by any number of lines, and
/// then `done`, or `failed` with the reason.
///
/// # Errors
/// When standard input or output cannot be used.
pub fn obey() -> Result<()> {
    let mut out = std::io::stdout();
    let mut inside = Inside::default();
    writeln!(out, "ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match inside.act(&words) {
            Ok(said) if said.is_empty() => writeln!(out, "done")?,
            Ok(said) => writeln!(out, "{}\ndone", said.replace('\n', " "))?,
            Err(error) => writeln!(out, "failed {}", format!("{error:#}").replace('\n', " "))?,
        }
        out.flush()?;
    }
    Ok(())
}

impl Inside {
    fn act(&mut self, words: &[&str]) -> Result<String> {
        let nothing = String::new();
        match *words {
            ["connect", path] => {
                let stream = UnixStream::connect(path).context("connecting")?;
                stream.set_read_timeout(Some(SOON))?;
                self.connection = Some(stream.into_raw_fd());
            }
            ["get", path] => return self.get(path, &[]),
            // The same, and a descriptor goes along.
            ["get-with-descriptor", path] => return self.get(path, &[0]),
            ["session", name] => {
                let stream = UnixStream::connect(SOCKET).context("connecting")?;
                self.connection = Some(stream.try_clone()?.into_raw_fd());
                let Opened::Session(mut session) = Session::attempt(stream, &[name], SOON)? else {
                    bail!("no session");
                };
                session.bundle(SOON)?;
                self.session = Some(*session);
            }
            // What comes on the connection until it ends, or nothing comes for a while.
            ["drain"] => return drain(self.connection()?),
            ["listen", path] => self.listener = Some(UnixListener::bind(path)?),
            ["give", path] => {
                let numbers = [self.connection()?];
                let to = UnixStream::connect(path).context("connecting to the taker")?;
                let rights = [ControlMessage::ScmRights(&numbers)];
                let bytes = [IoSlice::new(b"x")];
                sendmsg::<()>(to.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None)?;
            }
            ["take"] => self.connection = Some(self.take()?),
            ["unshare", ref kinds @ ..] => {
                for kind in kinds {
                    unshare(match *kind {
                        "user" => CloneFlags::CLONE_NEWUSER,
                        "mount" => CloneFlags::CLONE_NEWNS,
                        "pid" => CloneFlags::CLONE_NEWPID,
                        other => bail!("cannot unshare {other}"),
                    })
                    .with_context(|| format!("unshare {kind}"))?;
                }
            }
            ["harden"] => harden()?,
            // The kernel makes each mount namespace with the number of one that has just gone.
            ["recycle", count] => return self.recycle(count.parse()?),
            ["mkdir", path] => fs::create_dir(path).with_context(|| format!("making {path}"))?,
            ["write", path, text] => {
                fs::write(path, text).with_context(|| format!("writing {path}"))?;
            }
            ["read", path] => return fs::read_to_string(path).context("reading"),
            ["symlink", target, path] => symlink(target, path)?,
            ["remove", path] => fs::remove_file(path)?,
            ["mount", kind, options, path] => {
                mount(
                    Some("none"),
                    path,
                    Some(kind),
                    MsFlags::empty(),
                    Some(options),
                )
                .with_context(|| format!("mounting {kind}"))?;
            }
            _ => bail!("not an order: {words:?}"),
        }
        Ok(nothing)
    }

    fn connection(&self) -> Result<RawFd> {
        self.connection.context("no connection")
    }

    /// One request on the connection; what a kernel without SO_PEERPIDFD demands is given. The answer
    /// is the status and the body, or `closed`.
    fn get(&self, path: &str, descriptors: &[i32]) -> Result<String> {
        let stream = self.connection()?;
        let mut nonce = String::new();
        loop {
            let request = format!("GET {path} HTTP/1.1\r\nHost: mayfly\r\n{nonce}\r\n");
            let rights = [ControlMessage::ScmRights(descriptors)];
            let rights = if descriptors.is_empty() {
                &rights[..0]
            } else {
                &rights
            };
            let bytes = [IoSlice::new(request.as_bytes())];
            let sent = sendmsg::<()>(stream, &bytes, rights, MsgFlags::MSG_NOSIGNAL, None);
            if sent.is_err() {
                return Ok("closed".to_string());
            }
            let Some((status, demanded, body)) = answer(stream)? else {
                return Ok("closed".to_string());
            };
            match demanded {
                Some(value) if nonce.is_empty() => nonce = format!("{NONCE_HEADER}: {value}\r\n"),
                _ => return Ok(format!("{status} {body}")),
            }
        }
    }

    fn take(&self) -> Result<RawFd> {
        let listener = self.listener.as_ref().context("not listening")?;
        let (from, _) = listener.accept()?;
        let mut byte = [0];
        let mut parts = [IoSliceMut::new(&mut byte)];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let received = recvmsg::<()>(
            from.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::empty(),
        )?;
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = message
                && let Some(number) = numbers.first()
            {
                return Ok(*number);
            }
        }
        bail!("no descriptor came")
    }

    fn recycle(&mut self, count: u32) -> Result<String> {
        let current = || {
            Ok::<_, anyhow::Error>(
                fs::read_link("/proc/thread-self/ns/mnt")?
                    .display()
                    .to_string(),
            )
        };
        let first = match &self.mounts {
            Some(first) => first.clone(),
            None => self.mounts.insert(current()?).clone(),
        };
        for _ in 0..count {
            unshare(CloneFlags::CLONE_NEWNS)?;
            if current()? == first {
                return Ok("forged".to_string());
            }
        }
        Ok("not forged".to_string())
    }
}

/// Gives up all that the kernel shows of a process's power.
fn harden() -> Result<()> {
    caps::drop_bounding()?;
    setresgid(ORDINARY.into(), ORDINARY.into(), ORDINARY.into())?;
    setresuid(ORDINARY.into(), ORDINARY.into(), ORDINARY.into())?;
    caps::drop_all()?;
    set_no_new_privs()?;
    Ok(seccomp::refuse_keyrings()?)
}

fn drain(stream: RawFd) -> Result<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match recv(stream, &mut buffer, MsgFlags::empty()) {
            Ok(0) | Err(Errno::ECONNRESET | Errno::EAGAIN) => {
                return Ok(String::from_utf8_lossy(&bytes).into());
            }
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(error) => return Err(error).context("waiting for the end"),
        }
    }
}

/// Reads one answer: its status, the nonce that it demands, its body. `None` if the connection ended.
fn answer(stream: RawFd) -> Result<Option<(String, Option<String>, String)>> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let field = |name: &str| {
                let mut lines = head.lines().filter_map(|line| line.split_once(": "));
                let found = lines.find(|(found, _)| found.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.trim().to_string())
            };
            let length: usize = field("content-length")
                .unwrap_or_default()
                .parse()
                .unwrap_or(0);
            if body.len() >= length {
                let status = head.split(' ').nth(1).context("no status")?.to_string();
                return Ok(Some((status, field(NONCE_HEADER), body.to_string())));
            }
        }
        let mut buffer = [0; 4096];
        match recv(stream, &mut buffer, MsgFlags::empty()) {
            Ok(0) => return Ok(None),
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(Errno::ECONNRESET | Errno::EPIPE) => return Ok(None),
            Err(error) => return Err(error).context("waiting for an answer"),
        }
    }
}

/// The outside of [`obey`]: a process that a test runs in a container.
pub struct Agent {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    token: String,
    secrets: Vec<String>,
}

impl Agent {
    /// Starts one in a container, as `docker exec` does, with further options of that.
    ///
    /// # Errors
    /// When it does not start.
    pub fn exec(container: &Container<'_>, options: &[&str]) -> Result<Self> {
        let mut command = container.docker().client();
        command.args(["exec", "--interactive"]).args(options);
        command.arg(container.id());
        Self::spawn(command)
    }

    /// Starts one by a command to which `mayfly-probe` and its arguments are added.
    ///
    /// # Errors
    /// When it does not start.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let token = random_text(16)?;
        command.args(["/bin/mayfly-probe", "obey", &token]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting an agent")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut agent = Self {
            child,
            input,
            output,
            token,
            secrets: Vec::new(),
        };
        ensure!(agent.line()? == "ready", "the agent is not ready");
        Ok(agent)
    }

    /// What it must never get to know: an answer with one of these in it is an error.
    pub fn must_not_learn(mut self, secrets: &[&str]) -> Self {
        self.secrets = secrets.iter().map(|secret| (*secret).to_string()).collect();
        self
    }

    /// Gives an order, and returns what it said.
    ///
    /// # Errors
    /// When it failed, or said what it must not know.
    pub fn tell(&mut self, order: &str) -> Result<String> {
        let input = self.input.as_mut().context("the agent has been let go")?;
        writeln!(input, "{order}").context("telling the agent")?;
        let mut said = Vec::new();
        loop {
            let line = self.line()?;
            if let Some(secret) = self.secrets.iter().find(|secret| line.contains(*secret)) {
                bail!("the agent learned what it must not, by {order:?}: {secret}");
            }
            match line.strip_prefix("failed ") {
                Some(reason) => bail!("{order:?}: {reason}"),
                None if line == "done" => return Ok(said.join("\n")),
                None => said.push(line),
            }
        }
    }

    /// Connects to the workload socket.
    ///
    /// # Errors
    /// When it cannot.
    pub fn connect(&mut self) -> Result<()> {
        self.tell(&format!("connect {}", SOCKET)).map(drop)
    }

    /// Asks who it is on its connection, which stays open after that.
    ///
    /// # Errors
    /// When it is not told.
    pub fn whoami(&mut self) -> Result<String> {
        let answer = self.tell("get /v1/whoami")?;
        ensure!(answer.starts_with("200 "), "{answer}");
        Ok(answer)
    }

    /// Asks for a credential's only value on its connection, which ends with the value: the status and the body.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn get(&mut self, credential: &str) -> Result<String> {
        self.tell(&format!("get /v1/credentials/{credential}/value"))
    }

    /// Connects, and asks for a credential; again, when it is told to come again, as everybody is while the
    /// container engine is slow.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn ask(&mut self, credential: &str) -> Result<String> {
        let begun = Instant::now();
        loop {
            self.connect()?;
            let answer = self.get(credential)?;
            if !answer.starts_with("503 ") || begun.elapsed() > SOON {
                return Ok(answer);
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Its pid, in the host's pid namespace.
    ///
    /// # Errors
    /// When it is not found.
    pub fn pid(&self) -> Result<i32> {
        let wanted = format!("/bin/mayfly-probe\0obey\0{}\0", self.token);
        wait_until(SOON, "the agent's pid", || {
            for entry in fs::read_dir("/proc")? {
                let name = entry?.file_name();
                let Ok(pid) = name.to_string_lossy().parse() else {
                    continue;
                };
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                if command == wanted.as_bytes() {
                    return Ok(Some(pid));
                }
            }
            Ok(None)
        })
    }

    /// Ends it, and waits until its pid is free.
    ///
    /// # Errors
    /// When it does not end.
    pub fn exit(&mut self) -> Result<()> {
        let process = format!("/proc/{}", self.pid()?);
        drop(self.input.take());
        wait_until(SOON, "the end of the agent", || {
            Ok((!fs::exists(&process)?).then_some(()))
        })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let length = self.output.read_line(&mut line)?;
        ensure!(length > 0, anyhow!("the agent has ended"));
        Ok(line.trim_end().to_string())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.input.take());
        let ended = wait_until(Duration::from_secs(5), "its end", || {
            Ok(self.child.try_wait()?)
        });
        if ended.is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
