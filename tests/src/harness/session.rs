//! A sidecar's side of a session, without a sidecar: for tests of what the node and broker say, and
//! for attackers that do with the connection what no sidecar would.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use mayfly_wire::sealed::{Opener, PrivateKey, generate};
use mayfly_wire::session::{
    Bundle, ClientMessage, Hello, NONCE_HEADER, PROTOCOL, SESSION_PATH, ServerMessage, UPGRADE,
};
use mayfly_wire::workload::{LeaseId, WorkloadKey};
use mayfly_wire::{Code, CredentialName, FieldName, Refusal};

/// One value that a bundle brought.
#[derive(Clone, PartialEq, Eq)]
pub struct Value {
    /// The credential.
    pub name: CredentialName,
    /// Its lease.
    pub lease: LeaseId,
    /// The field.
    pub field: FieldName,
    /// The opened bytes.
    pub bytes: Vec<u8>,
}

/// An open session, one line a message, over a blocking socket.
pub struct Session {
    lines: BufReader<UnixStream>,
    key: PrivateKey,
    workload: WorkloadKey,
}

/// How an attempt to open a session ended.
pub enum Opened {
    /// It stands.
    Session(Box<Session>),
    /// The node said no, before or after the upgrade.
    Refused(Refusal),
}

impl Session {
    /// Connects and opens a session; `want` names credentials, none of them means all.
    ///
    /// # Errors
    /// When it is refused, or does not stand within `limit`.
    pub fn open(socket: &Path, want: &[&str], limit: Duration) -> Result<Self> {
        match Self::attempt(UnixStream::connect(socket)?, want, limit)? {
            Opened::Session(session) => Ok(*session),
            Opened::Refused(refusal) => bail!("refused: {refusal:?}"),
        }
    }

    /// Asks for a session on a connection that somebody made; answers a demand for a nonce.
    ///
    /// # Errors
    /// When there is no answer that this protocol has within `limit`.
    pub fn attempt(stream: UnixStream, want: &[&str], limit: Duration) -> Result<Opened> {
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let (key, public_key) = generate();
        let want: Vec<CredentialName> = want
            .iter()
            .map(|name| name.parse())
            .collect::<Result<_, _>>()?;
        let want = (!want.is_empty()).then_some(want);
        let hello = serde_json::to_string(&Hello {
            protocol: PROTOCOL,
            public_key,
            want,
        })?;
        let mut lines = BufReader::new(stream);
        let mut nonce = String::new();
        for _ in 0..2 {
            let request = format!(
                "POST {SESSION_PATH} HTTP/1.1\r\nHost: mayfly\r\nConnection: upgrade\r\n\
                 Upgrade: {UPGRADE}\r\nContent-Type: application/json\r\n{nonce}\
                 Content-Length: {}\r\n\r\n{hello}",
                hello.len()
            );
            lines
                .get_mut()
                .write_all(request.as_bytes())
                .context("asking for a session")?;
            let head = Head::read(&mut lines)?;
            if head.status == 101 {
                return Self::greeted(lines, key);
            }
            let mut body = vec![0; head.length];
            lines.read_exact(&mut body).context("reading a refusal")?;
            let refusal: Refusal = serde_json::from_slice(&body).with_context(|| {
                format!(
                    "status {}: {:?}",
                    head.status,
                    String::from_utf8_lossy(&body)
                )
            })?;
            match head.nonce {
                Some(value) if refusal.code == Code::NonceRequired && nonce.is_empty() => {
                    nonce = format!("{NONCE_HEADER}: {value}\r\n");
                }
                _ => return Ok(Opened::Refused(refusal)),
            }
        }
        bail!("a nonce was demanded twice")
    }

    fn greeted(mut lines: BufReader<UnixStream>, key: PrivateKey) -> Result<Opened> {
        match message(&mut lines)?.context("the session ended before it began")? {
            ServerMessage::Hello {
                protocol: PROTOCOL,
                workload,
            } => Ok(Opened::Session(Box::new(Self {
                lines,
                key,
                workload,
            }))),
            ServerMessage::Refused(refusal) => Ok(Opened::Refused(refusal)),
            other => Err(anyhow!("expected a hello, found {other:?}")),
        }
    }

    /// Who the node says that we are.
    pub fn workload(&self) -> &WorkloadKey {
        &self.workload
    }

    /// The connection itself.
    pub fn stream(&self) -> &UnixStream {
        self.lines.get_ref()
    }

    /// The next message that is no ping (those are answered); `None` when the server has closed.
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub fn next(&mut self, limit: Duration) -> Result<Option<ServerMessage>> {
        let start = Instant::now();
        loop {
            let left = limit
                .saturating_sub(start.elapsed())
                .max(Duration::from_millis(1));
            self.stream().set_read_timeout(Some(left))?;
            match message(&mut self.lines)? {
                Some(ServerMessage::Ping {}) => self.send(&ClientMessage::Pong {})?,
                other => return Ok(other),
            }
        }
    }

    /// The values of the next bundle, which is acknowledged. Withdrawals on the way are passed over.
    ///
    /// # Errors
    /// When none comes within `limit`, or it does not open.
    pub fn bundle(&mut self, limit: Duration) -> Result<Vec<Value>> {
        let start = Instant::now();
        loop {
            match self.next(limit.saturating_sub(start.elapsed()))? {
                Some(ServerMessage::Bundle(bundle)) => {
                    let values = self.open_bundle(&bundle)?;
                    self.send(&ClientMessage::Ack {
                        generation: bundle.generation,
                    })?;
                    return Ok(values);
                }
                Some(ServerMessage::Withdraw { .. }) => {}
                other => bail!("expected a bundle, found {other:?}"),
            }
        }
    }

    /// Opens what a bundle holds.
    ///
    /// # Errors
    /// When a value does not open.
    pub fn open_bundle(&self, bundle: &Bundle) -> Result<Vec<Value>> {
        let generation = bundle.generation;
        let mut opener = Opener::new(&self.key, &bundle.encapsulated, &self.workload, generation)?;
        let mut values = Vec::new();
        for credential in &bundle.credentials {
            for field in &credential.fields {
                let opened = opener.open(&credential.lease, &field.name, &field.sealed)?;
                values.push(Value {
                    name: credential.name.clone(),
                    lease: credential.lease.clone(),
                    field: field.name.clone(),
                    bytes: opened.expose().to_vec(),
                });
            }
        }
        Ok(values)
    }

    /// Says something.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, message: &ClientMessage) -> Result<()> {
        let line = format!("{}\n", serde_json::to_string(message)?);
        self.lines
            .get_mut()
            .write_all(line.as_bytes())
            .context("sending on a session")
    }
}

fn message(lines: &mut BufReader<UnixStream>) -> Result<Option<ServerMessage>> {
    let mut line = String::new();
    lines
        .read_line(&mut line)
        .context("waiting for a message on a session")?;
    if line.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&line)
        .map(Some)
        .with_context(|| format!("not a message: {line:?}"))
}

/// What matters of an answer's head.
struct Head {
    status: u16,
    length: usize,
    nonce: Option<String>,
}

impl Head {
    fn read(lines: &mut BufReader<UnixStream>) -> Result<Self> {
        let mut first = String::new();
        lines
            .read_line(&mut first)
            .context("waiting for an answer")?;
        let status = first
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("not an HTTP answer: {first:?}"))?;
        let mut head = Self {
            status,
            length: 0,
            nonce: None,
        };
        loop {
            let mut line = String::new();
            lines
                .read_line(&mut line)
                .context("reading the head of an answer")?;
            let line = line.trim_end();
            let Some((name, value)) = line.split_once(':') else {
                return Ok(head);
            };
            if name.eq_ignore_ascii_case("content-length") {
                head.length = value.trim().parse().context("reading a content-length")?;
            } else if name.eq_ignore_ascii_case(NONCE_HEADER) {
                head.nonce = Some(value.trim().to_string());
            }
        }
    }
}
