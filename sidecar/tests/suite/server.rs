//! The broker's side of the workload socket, as far as a sidecar can see it.

use mayfly_wire::bytes::Base64;
use mayfly_wire::sealed::Sealer;
use mayfly_wire::session::{
    Bundle, ClientMessage, Hello, Layout, Missing, SealedCredential, SealedField, ServerMessage,
};
use mayfly_wire::{Code, LeaseId, PublishFailure, Refusal, Secret, WorkloadKey};
use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub struct Server {
    listener: UnixListener,
    /// Reports that came while a session was awaited, answered with 204.
    early: Mutex<VecDeque<PublishFailure>>,
}

impl Server {
    pub fn bind(socket: &Path) -> Self {
        Self::bind_with(socket, 128)
    }

    /// So many connections can wait, and one more.
    pub fn bind_with(socket: &Path, backlog: i32) -> Self {
        use nix::sys::socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen,
        };
        let _ = std::fs::remove_file(socket);
        let flags = SockFlag::SOCK_CLOEXEC;
        let listener =
            nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(
            std::os::fd::AsRawFd::as_raw_fd(&listener),
            &UnixAddr::new(socket).unwrap(),
        )
        .unwrap();
        listen(&listener, Backlog::new(backlog).unwrap()).unwrap();
        let listener = UnixListener::from(listener);
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(socket, open).unwrap();
        Self {
            listener,
            early: Mutex::default(),
        }
    }

    /// The next session's connection and request. A sidecar may report something first: which of the
    /// two comes first after an interruption is chance.
    pub fn request(&self) -> Request {
        self.try_request().unwrap()
    }

    /// The same, of a sidecar that may die meanwhile.
    pub fn try_request(&self) -> std::io::Result<Request> {
        loop {
            let mut stream = self.next()?;
            let (head, body) = read(&mut stream)?;
            if !head.starts_with(REPORT) {
                return Request::parse(stream, head, &body);
            }
            answer(&mut stream, "204 No Content")?;
            let report = serde_json::from_slice(&body)?;
            self.early.lock().unwrap().push_back(report);
        }
    }

    fn next(&self) -> std::io::Result<BufReader<UnixStream>> {
        assert!(self.connects_within(20_000), "nobody connected");
        let (stream, _) = self.listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(BufReader::new(stream))
    }

    /// Whether somebody connects within so many milliseconds.
    pub fn connects_within(&self, milliseconds: u16) -> bool {
        use nix::poll::{PollFd, PollFlags, poll};
        use std::os::fd::AsFd as _;
        let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, milliseconds).unwrap() == 1
    }

    /// The report that nothing could be published, which is answered: it has come already, or it is
    /// what the next connection must bring.
    pub fn report(&self, status: &str) -> PublishFailure {
        if let Some(report) = self.early.lock().unwrap().pop_front() {
            assert_eq!(status, "204 No Content", "it was answered already");
            return report;
        }
        let mut stream = self.next().unwrap();
        let (head, body) = read(&mut stream).unwrap();
        assert!(head.starts_with(REPORT), "{head}");
        answer(&mut stream, status).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    /// The next connection is dropped, whatever it brings.
    pub fn drop_one(&self) {
        drop(self.listener.accept().unwrap());
    }

    /// The next session, opened.
    pub fn session(&self) -> Peer {
        self.request().accept().unwrap()
    }
}

const REPORT: &str = "post /v1/publish-failures http/1.1\r\n";

fn answer(stream: &mut BufReader<UnixStream>, status: &str) -> std::io::Result<()> {
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
    stream.get_mut().write_all(answer.as_bytes())
}

/// Head, in lower case, and body of a request.
fn read(stream: &mut BufReader<UnixStream>) -> std::io::Result<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let head = head.to_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap();
    let length = length.split("\r\n").next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((head, body))
}

pub struct Request {
    stream: BufReader<UnixStream>,
    pub head: String,
    pub hello: Hello,
}

impl Request {
    fn read(mut stream: BufReader<UnixStream>) -> std::io::Result<Self> {
        let (head, body) = read(&mut stream)?;
        Self::parse(stream, head, &body)
    }

    fn parse(stream: BufReader<UnixStream>, head: String, body: &[u8]) -> std::io::Result<Self> {
        let hello = serde_json::from_slice(body)?;
        Ok(Self {
            stream,
            head,
            hello,
        })
    }

    pub fn accept(self) -> std::io::Result<Peer> {
        let mut peer = Peer {
            stream: self.stream,
            sealing: Sealing {
                hello: self.hello,
                workload: WorkloadKey {
                    boot_id: "boot".into(),
                    cgroup_id: 7,
                    pidns_id: 8,
                },
                generation: 0,
                behind: 0,
            },
        };
        peer.send_bytes(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: mayfly-session\r\n\r\n",
        )?;
        peer.send(&ServerMessage::Hello {
            protocol: 1,
            workload: peer.sealing.workload.clone(),
        })?;
        Ok(peer)
    }

    pub fn refuse(mut self, code: Code) {
        self.answer(code, "connection: close\r\n");
    }

    /// Challenges, and returns the request that comes on the same connection.
    pub fn challenge(mut self, nonce: &str) -> Self {
        self.answer(Code::NonceRequired, &format!("Mayfly-Nonce: {nonce}\r\n"));
        Self::read(self.stream).unwrap()
    }

    fn answer(&mut self, code: Code, headers: &str) {
        let body = serde_json::to_string(&Refusal::from(code)).unwrap();
        let head = format!(
            "HTTP/1.1 {} X\r\n{headers}content-length: {}\r\n\r\n",
            code.http_status(),
            body.len()
        );
        let stream = self.stream.get_mut();
        stream.write_all((head + &body).as_bytes()).unwrap();
    }
}

/// One credential of a bundle, in the clear.
#[derive(Clone)]
pub struct Given {
    pub name: &'static str,
    pub layout: Layout,
    pub fields: Vec<(&'static str, Vec<u8>)>,
    pub expires_at: u64,
}

/// A credential of one value, good for an hour.
pub fn value(name: &'static str, value: impl AsRef<[u8]>) -> Given {
    Given {
        layout: Layout::Value,
        ..fields(name, &[("value", value.as_ref())])
    }
}

/// A credential of several fields, good for an hour.
pub fn fields(name: &'static str, fields: &[(&'static str, &[u8])]) -> Given {
    let fields = fields.iter().map(|(name, value)| (*name, value.to_vec()));
    Given {
        name,
        layout: Layout::Fields,
        fields: fields.collect(),
        expires_at: in_milliseconds(3_600_000),
    }
}

/// A time from now, as bundles have it.
pub fn in_milliseconds(from_now: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap() + from_now
}

/// Whether such a time is still to come, for a sidecar as well, which counts in whole milliseconds.
pub fn is_to_come(time: u64) -> bool {
    in_milliseconds(10) < time
}

/// Of these names, with one end.
pub fn ending<const N: usize>(expires_at: u64, names: [&'static str; N]) -> [Given; N] {
    names.map(|name| Given {
        expires_at,
        ..value(name, "secret")
    })
}

/// What values are sealed for.
#[derive(Clone)]
pub struct Sealing {
    pub hello: Hello,
    pub workload: WorkloadKey,
    pub generation: u64,
    /// How far the broker's clock is behind ours, in milliseconds.
    pub behind: u64,
}

pub struct Peer {
    stream: BufReader<UnixStream>,
    pub sealing: Sealing,
}

impl Sealing {
    /// Seals the next bundle to the session's key.
    pub fn seal(&mut self, credentials: &[Given]) -> Bundle {
        self.generation += 1;
        let key = &self.hello.public_key;
        let (mut sealer, encapsulated) = Sealer::new(key, &self.workload, self.generation).unwrap();
        let lease = LeaseId::from_random([3; 16]);
        let credentials = credentials.iter().map(|given| SealedCredential {
            name: given.name.parse().unwrap(),
            lease: lease.clone(),
            expires_at: given.expires_at,
            renews_at: given.expires_at.saturating_sub(1_200_000),
            layout: given.layout,
            fields: given
                .fields
                .iter()
                .map(|(name, value)| {
                    let name = name.parse().unwrap();
                    let sealed = sealer.seal(&lease, &name, &Secret::from(value.clone()));
                    SealedField {
                        name,
                        sealed: sealed.unwrap(),
                    }
                })
                .collect(),
        });
        Bundle {
            generation: self.generation,
            now: in_milliseconds(0) - self.behind,
            encapsulated,
            credentials: credentials.collect(),
            missing: vec![],
        }
    }
}

impl Peer {
    pub fn send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    pub fn send(&mut self, message: &ServerMessage) -> std::io::Result<()> {
        let line = serde_json::to_string(message).unwrap() + "\n";
        self.send_bytes(line.as_bytes())
    }

    /// Sends a bundle.
    pub fn bundle(&mut self, credentials: &[Given]) {
        let bundle = self.sealing.seal(credentials);
        self.send(&ServerMessage::Bundle(bundle)).unwrap();
    }

    /// Sends a bundle that lacks something.
    pub fn bundle_without(&mut self, credentials: &[Given], missing: &str, code: Code) {
        let mut bundle = self.sealing.seal(credentials);
        bundle.missing = vec![Missing {
            name: missing.parse().unwrap(),
            refusal: code.into(),
        }];
        self.send(&ServerMessage::Bundle(bundle)).unwrap();
    }

    /// Sends a bundle and waits until it is published.
    pub fn publish(&mut self, credentials: &[Given]) {
        self.bundle(credentials);
        self.acknowledged();
    }

    /// The next message from the sidecar.
    pub fn hear(&mut self) -> std::io::Result<ClientMessage> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line).unwrap())
    }

    pub fn acknowledged(&mut self) {
        let expected = ClientMessage::Ack {
            generation: self.sealing.generation,
        };
        assert_eq!(self.hear().unwrap(), expected);
    }

    /// Whether nothing comes from the sidecar for so long.
    pub fn is_silent(&mut self, time: Duration) -> bool {
        let stream = self.stream.get_ref();
        let usual = stream.read_timeout().unwrap();
        stream.set_read_timeout(Some(time)).unwrap();
        let heard = self.hear();
        self.stream.get_ref().set_read_timeout(usual).unwrap();
        matches!(heard, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    pub fn withdraw(&mut self, name: &str) {
        let names = vec![name.parse().unwrap()];
        self.send(&ServerMessage::Withdraw { names }).unwrap();
    }

    /// Everything said before has been dealt with.
    pub fn ping(&mut self) {
        self.send(&ServerMessage::Ping {}).unwrap();
        assert_eq!(self.hear().unwrap(), ClientMessage::Pong {});
    }

    /// The sidecar has hung up, without another word.
    pub fn hung_up(&mut self) {
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
        assert_eq!(String::from_utf8(rest).unwrap(), "");
    }
}

/// Base64 that is valid and means nothing.
pub fn noise(length: usize) -> Base64 {
    Base64((0..length).map(|n| (n * 7 + 13) as u8).collect())
}
