//! Clients that ask again and again, and count what was not answered.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

/// How long any request may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How many failures are told.
const TOLD: usize = 10;

/// What came of it.
#[derive(Debug, Default)]
pub struct Told {
    /// How many requests were answered.
    pub answered: u64,
    /// How many were not.
    pub failed: u64,
    /// Why, of the first of them.
    pub causes: Vec<String>,
    /// The last answer.
    pub last: String,
    /// The longest that one took.
    pub longest: Duration,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    told: Mutex<Told>,
}

/// One load, until it is ended or dropped.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Begins to ask, in so many threads, each once in `pace`.
    pub fn start(
        threads: usize,
        pace: Duration,
        ask: impl Fn() -> Result<String> + Send + Sync + 'static,
    ) -> Self {
        let (shared, ask) = (Arc::<Shared>::default(), Arc::new(ask));
        let threads = (0..threads).map(|_| {
            let (shared, ask) = (Arc::clone(&shared), Arc::clone(&ask));
            std::thread::spawn(move || {
                while !shared.stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let answer = ask();
                    shared.note(begun.elapsed(), answer);
                    std::thread::sleep(pace.saturating_sub(begun.elapsed()));
                }
            })
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    fn told(&self) -> Result<MutexGuard<'_, Told>> {
        let told = self.shared.told.lock();
        told.map_err(|_| anyhow!("a client panicked"))
    }

    /// The last answer.
    pub fn last(&self) -> Result<String> {
        Ok(self.told()?.last.clone())
    }

    /// How many answers there were so far.
    pub fn answered(&self) -> Result<u64> {
        Ok(self.told()?.answered)
    }

    /// Ends it.
    pub fn end(mut self) -> Result<Told> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a client panicked"))?;
        }
        Ok(std::mem::take(&mut *self.told()?))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn note(&self, took: Duration, answer: Result<String>) {
        let Ok(mut told) = self.told.lock() else {
            return;
        };
        told.longest = told.longest.max(took);
        match answer {
            Ok(answer) => {
                told.answered += 1;
                told.last = answer;
            }
            Err(error) => {
                told.failed += 1;
                if told.causes.len() < TOLD {
                    told.causes.push(format!("after {took:?}: {error:#}"));
                }
            }
        }
    }
}

/// How a request went.
enum Went {
    Answered(String),
    /// Nobody took it: the connection was refused, or ended before the first byte of an answer.
    Untaken(std::io::Error),
}

fn try_get(port: u16) -> Result<Went> {
    let mut answer = Vec::new();
    let asked: std::io::Result<()> = (|| {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        stream.read_to_end(&mut answer)?;
        match answer.is_empty() {
            true => Err(ErrorKind::ConnectionReset.into()),
            false => Ok(()),
        }
    })();
    match asked {
        Ok(()) => body(&answer).map(Went::Answered),
        Err(error) if answer.is_empty() && is_untaken(error.kind()) => Ok(Went::Untaken(error)),
        Err(error) => Err(error).context("in the middle of a request"),
    }
}

fn is_untaken(kind: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset};
    matches!(kind, BrokenPipe | ConnectionRefused | ConnectionReset)
}

fn body(answer: &[u8]) -> Result<String> {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{head}");
    ensure!(!body.is_empty(), "an answer without a body: {head}");
    Ok(body.to_owned())
}

/// Asks `/` of a server, once.
pub fn get(port: u16) -> Result<String> {
    match try_get(port)? {
        Went::Answered(answer) => Ok(answer),
        Went::Untaken(error) => Err(error).context("nobody took it"),
    }
}

/// The same, of a server that is restarted now and then: what nobody took is asked again, for so long.
pub fn get_again(port: u16, patience: Duration) -> Result<String> {
    let until = Instant::now() + patience;
    loop {
        match try_get(port)? {
            Went::Answered(answer) => return Ok(answer),
            Went::Untaken(error) if Instant::now() > until => {
                return Err(error).with_context(|| format!("nobody took it for {patience:?}"));
            }
            Went::Untaken(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Asks servers over TLS that must prove a name.
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// With these authorities, in PEM.
    pub fn new(authorities: &[u8], name: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(authorities) {
            roots.add(authority?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        // Each request is a whole handshake with whatever certificate is served.
        let mut config = config.with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            name: ServerName::try_from(name.to_owned())?,
        })
    }

    /// Asks `/`, and gives the certificate that was served, in base64.
    pub fn get(&self, port: u16) -> Result<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).context("connecting")?;
        socket.set_read_timeout(Some(LIMIT))?;
        let mut session = ClientConnection::new(Arc::clone(&self.config), self.name.clone())?;
        let mut answer = Vec::new();
        let mut stream = Stream::new(&mut session, &mut socket);
        stream
            .write_all(b"GET / HTTP/1.0\r\n\r\n")
            .context("in the handshake")?;
        stream.read_to_end(&mut answer).context("reading")?;
        let said = body(&answer)?;
        ensure!(said == "served\n", "another answer: {said}");
        match session.peer_certificates() {
            Some([leaf, ..]) => Ok(STANDARD.encode(leaf)),
            _ => bail!("no certificate"),
        }
    }
}

/// The first certificate of a file, as [`Tls::get`] gives it.
pub fn first_certificate(pem: &[u8]) -> Result<String> {
    let first = CertificateDer::pem_slice_iter(pem).next();
    Ok(STANDARD.encode(first.context("no certificate")??))
}
