//! One connection to one of the brokers, made again when it is lost.

use super::body::Body;
use crate::backoff;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mayfly_wire::{Code, Refusal};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

/// How long name resolution, TCP, TLS and HTTP/2 may take together.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a silent connection is tried, and how long its answer may take.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The `[broker]` table of `mayfly-node`'s file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerConfig {
    /// `host:port` of each broker. Its certificate must carry the host.
    pub addresses: Vec<String>,
    /// PEM file with the certificates of the authority that signed the brokers' certificates.
    pub ca: PathBuf,
    /// PEM file with the node's certificate, its own first.
    pub certificate: PathBuf,
    /// PEM file with the key of that certificate.
    pub key: PathBuf,
}

/// Why brokers cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A file of the configuration is not what it should be.
    #[error("`broker.{key}`: expected {expected} in {path}: {cause}")]
    File {
        /// The key.
        key: &'static str,
        /// What the file should hold.
        expected: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// An address is not `host:port`.
    #[error("`broker.addresses`: expected at least one `host:port`, found {0:?}")]
    Address(String),
    /// Certificate and key do not belong together, or the like.
    #[error("the node's certificate cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// Sends requests; clones share the connection.
pub(super) type Requests = http2::SendRequest<Body>;

pub(super) struct Link {
    config: BrokerConfig,
    state: Mutex<State>,
}

struct State {
    open: Option<(Requests, String)>,
    /// Which address is next.
    next: usize,
    failures: u32,
    /// Nobody tries before this.
    not_before: Option<Instant>,
}

impl Link {
    pub(super) fn new(config: BrokerConfig) -> Result<Self, RemoteError> {
        if config.addresses.is_empty() {
            return Err(RemoteError::Address(String::new()));
        }
        for address in &config.addresses {
            host(address).ok_or_else(|| RemoteError::Address(address.clone()))?;
        }
        tls(&config)?;
        // Nodes spread over the brokers.
        let next = getrandom::u32().map_or(0, |random| random as usize);
        Ok(Self {
            config,
            state: Mutex::new(State {
                open: None,
                next,
                failures: 0,
                not_before: None,
            }),
        })
    }

    /// The connection, and the address it goes to. Between failed attempts everyone is refused at
    /// once, so that a lost broker does not pile up waiting requests.
    pub(super) async fn requests(&self) -> Result<(Requests, String), Refusal> {
        let mut state = self.state.lock().await;
        if let Some((requests, address)) = &state.open
            && !requests.is_closed()
        {
            return Ok((requests.clone(), address.clone()));
        }
        state.open = None;
        if state.not_before.is_some_and(|at| Instant::now() < at) {
            return Err(Code::Unavailable.into());
        }
        // Every broker once, then a wait.
        for _ in 0..self.config.addresses.len() {
            let next = state.next % self.config.addresses.len();
            let Some(address) = self.config.addresses.get(next) else {
                break;
            };
            match connect(&self.config, address).await {
                Ok(requests) => {
                    tracing::info!(address, "connected to the broker");
                    state.failures = 0;
                    state.not_before = None;
                    state.open = Some((requests.clone(), address.clone()));
                    return Ok((requests, address.clone()));
                }
                Err(error) => {
                    tracing::warn!(address, %error, "cannot connect to the broker");
                    state.next = next + 1;
                }
            }
        }
        state.failures = state.failures.saturating_add(1);
        state.not_before = Some(Instant::now() + backoff::delay(state.failures));
        Err(Code::Unavailable.into())
    }
}

async fn connect(config: &BrokerConfig, address: &str) -> io::Result<Requests> {
    let tls = TlsConnector::from(Arc::new(tls(config).map_err(io::Error::other)?));
    let host = host(address).ok_or(io::ErrorKind::InvalidInput)?;
    let opening = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let stream = tls.connect(host, stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other("expected HTTP/2 (ALPN h2) of the broker"));
        }
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .max_header_list_size(16 * 1024)
            // What still comes for a session that was dropped counts as an error of the stream, over
            // the whole life of the connection: at 1,024 of them every session would be cut off.
            .max_local_error_reset_streams(None)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::warn!(%error, "the connection to the broker is lost");
            }
        });
        Ok(requests)
    };
    timeout(CONNECT, opening)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn host(address: &str) -> Option<ServerName<'static>> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned()).ok()
}

fn tls(config: &BrokerConfig) -> Result<ClientConfig, RemoteError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca", &config.ca)? {
        roots.add(certificate)?;
    }
    let chain = certificates("certificate", &config.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&config.key)
        .map_err(|error| file("key", "a private key in PEM", &config.key, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tls)
}

fn certificates(
    key: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, RemoteError> {
    let expected = "certificates in PEM";
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| file(key, expected, path, &error))?;
    if found.is_empty() {
        return Err(file(key, expected, path, &"there is none in it"));
    }
    Ok(found)
}

fn file(
    key: &'static str,
    expected: &'static str,
    path: &Path,
    cause: &dyn std::fmt::Display,
) -> RemoteError {
    RemoteError::File {
        key,
        expected,
        path: path.to_owned(),
        cause: cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        for good in ["broker:7443", "10.0.0.1:7443", "[::1]:7443", "a.b.c:1"] {
            assert!(host(good).is_some(), "{good}");
        }
        for bad in ["", "broker", "broker:", "broker:x", ":7443", "a b:1"] {
            assert!(host(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_missing_file_is_named_with_its_key() {
        let nowhere = PathBuf::from("/nonexistent/ca.pem");
        let config = BrokerConfig {
            addresses: vec!["broker:7443".into()],
            ca: nowhere.clone(),
            certificate: nowhere.clone(),
            key: nowhere,
        };
        let error = Link::new(config).err().unwrap().to_string();
        assert!(error.contains("broker.ca") && error.contains("/nonexistent/ca.pem"));
    }
}
