//! The broker's own authority: it certifies the broker's servers and its nodes, and nothing else.
//!
//! ECDSA P-256. The private key is sealed in the store. A node's certificate names it in a URI,
//! `spiffe://mayfly/node/NAME`, and can only be used by a client; a server's can only be used by a server.

use crate::clock::Clock;
use crate::seal::{RecordId, RootKeys, SealError};
use crate::store::{Op, Store, StoreError};
use mayfly_wire::Secret;
use mayfly_wire::admin::{NodeCertificate, SecretText};
use mayfly_wire::audit::hex;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

const META: &str = "authority";
const KEY: RecordId<'static> = RecordId {
    kind: "meta",
    path: META,
};
const NODE: &str = "spiffe://mayfly/node/";
/// Clocks differ: certificates are good from a little before they are made.
const BEFORE: Duration = Duration::minutes(5);
const AUTHORITY_LIVES: Duration = Duration::days(3650);
/// A node's and a server's.
const CERTIFICATE_LIVES: Duration = Duration::days(90);
/// A running server takes a new certificate after this many milliseconds.
const RENEW_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A certificate cannot be made.
    #[error("a certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS does not take what it was given.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A node's name that cannot stand in a certificate.
    #[error(
        "node name {0:?}: expected 1 to 63 of a-z, A-Z, 0-9, '-', '_' and '.', beginning with a \
         letter or a digit"
    )]
    NodeName(String),
    /// Not a certificate of one of our nodes.
    #[error("the client's certificate does not name one node: {0}")]
    NotANode(String),
    /// A configured certificate or key.
    #[error("{path}: {problem}")]
    File {
        /// Which.
        path: PathBuf,
        /// What was expected and found.
        problem: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The seal.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// The authority.
pub struct Pki {
    clock: Arc<dyn Clock>,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl Pki {
    /// Loads the authority from the store, or makes it.
    ///
    /// # Errors
    /// [`PkiError`].
    pub async fn open(
        store: &dyn Store,
        keys: &RootKeys,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, PkiError> {
        if let Some(sealed) = store.meta(META.to_owned()).await? {
            let stored = keys.open(&KEY, 1, &sealed)?;
            return Self::read(&stored, clock);
        }
        let pair = KeyPair::generate()?;
        let params = authority(&pair, clock.as_ref());
        let certificate = params.self_signed(&pair)?.der().clone();
        let stored = pack(&certificate, pair.serialized_der());
        let sealed = keys.seal(&KEY, 1, &stored)?;
        store
            .commit(vec![Op::MetaPut(META.to_owned(), sealed)])
            .await?;
        Self::read(&stored, clock)
    }

    fn read(stored: &Secret, clock: Arc<dyn Clock>) -> Result<Self, PkiError> {
        let damaged = || StoreError::Damaged("the stored authority is not valid".to_owned());
        let (certificate, key) = unpack(stored.expose()).ok_or_else(damaged)?;
        let pair = KeyPair::try_from(key)?;
        let certificate = CertificateDer::from(certificate.to_vec());
        // Of what this holds, only the name and the key go into what it signs.
        let issuer = Issuer::new(authority(&pair, clock.as_ref()), pair);
        Ok(Self {
            clock,
            issuer,
            pem: pem(&certificate),
            certificate,
        })
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.pem
    }

    /// Writes `ca.pem` into `dir`, for those who verify tokens or run nodes.
    ///
    /// # Errors
    /// That of the file.
    pub fn export_ca(&self, dir: &Path) -> io::Result<PathBuf> {
        let (path, new) = (dir.join("ca.pem"), dir.join("ca.pem.new"));
        let mut file = std::fs::File::create(&new)?;
        file.write_all(self.pem.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        Ok(path)
    }

    /// A certificate and key for a node, good for 90 days. The key is kept nowhere.
    ///
    /// # Errors
    /// [`PkiError::NodeName`].
    pub fn node_certificate(&self, name: &str) -> Result<NodeCertificate, PkiError> {
        if !is_node_name(name) {
            return Err(PkiError::NodeName(name.to_owned()));
        }
        let mut params = self.params(name, ExtendedKeyUsagePurpose::ClientAuth);
        let uri = format!("{NODE}{name}").try_into()?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        let pair = KeyPair::generate()?;
        let certificate = params.signed_by(&pair, &self.issuer)?;
        Ok(NodeCertificate {
            certificate: certificate.pem(),
            key: SecretText::encode(&Secret::from(pair.serialize_pem())),
            ca: self.pem.clone(),
        })
    }

    /// A server that proves to be one of `names` (DNS names or addresses) with a certificate of ours,
    /// and asks for no client certificate.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] for a name that is none.
    pub fn oidc_server_config(
        self: &Arc<Self>,
        names: Vec<String>,
    ) -> Result<Arc<ServerConfig>, PkiError> {
        let mut config = builder(rustls::DEFAULT_VERSIONS)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Renewing::new(self.clone(), names)?));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// The server that nodes speak to: TLS 1.3, and every client must have a certificate of ours.
    ///
    /// # Errors
    /// [`PkiError::Certificate`] for a name that is none.
    pub fn node_link_server_config(
        self: &Arc<Self>,
        names: Vec<String>,
    ) -> Result<Arc<ServerConfig>, PkiError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = builder(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Renewing::new(self.clone(), names)?));
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Each connection shows its certificate anew, so that one that expired is refused.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    fn params(&self, common_name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
        let mut params = CertificateParams::default();
        lives(&mut params, self.clock.as_ref(), CERTIFICATE_LIVES);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        params
    }

    fn server_key(&self, names: &[String]) -> Result<CertifiedKey, PkiError> {
        let common_name = names.first().map_or("mayfly-broker", String::as_str);
        let mut params = self.params(common_name, ExtendedKeyUsagePurpose::ServerAuth);
        params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        let pair = KeyPair::generate()?;
        let certificate = params.signed_by(&pair, &self.issuer)?.der().clone();
        let key = Zeroizing::new(pair.serialize_der());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.as_slice()));
        let key = aws_lc_rs::sign::any_ecdsa_type(&key)?;
        Ok(CertifiedKey::new(vec![certificate], key))
    }
}

/// A server with a certificate and key from files, PEM.
///
/// # Errors
/// [`PkiError::File`], [`PkiError::Tls`].
pub fn server_config_from_files(
    certificate: &Path,
    key: &Path,
) -> Result<Arc<ServerConfig>, PkiError> {
    use rustls::pki_types::pem::PemObject as _;
    let problem = |path: &Path, problem: String| PkiError::File {
        path: path.to_owned(),
        problem,
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| problem(certificate, error.to_string()))?;
    if chain.is_empty() {
        let expected = "expected a certificate chain in PEM, found no certificate";
        return Err(problem(certificate, expected.to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| problem(key, format!("expected one private key in PEM: {error}")))?;
    let mut config = builder(rustls::DEFAULT_VERSIONS)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| problem(key, format!("does not go with the certificate: {error}")))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The node that a client certificate names. The certificate must have been verified already, as a
/// server of [`Pki::node_link_server_config`] does in the handshake.
///
/// # Errors
/// [`PkiError::NotANode`].
pub fn node_name(certificate: &CertificateDer<'_>) -> Result<String, PkiError> {
    let parsed = webpki::EndEntityCert::try_from(certificate)
        .map_err(|error| PkiError::NotANode(format!("{error:?}")))?;
    let mut names = parsed.valid_uri_names();
    let (name, more) = (names.next(), names.next());
    name.filter(|_| more.is_none())
        .and_then(|uri| uri.strip_prefix(NODE))
        .filter(|name| is_node_name(name))
        .map(str::to_owned)
        .ok_or_else(|| PkiError::NotANode(format!("expected one URI {NODE}NAME")))
}

/// A server's certificate that is made anew before it expires.
struct Renewing {
    pki: Arc<Pki>,
    names: Vec<String>,
    current: Mutex<(u64, Arc<CertifiedKey>)>,
}

impl Renewing {
    fn new(pki: Arc<Pki>, names: Vec<String>) -> Result<Self, PkiError> {
        let key = Arc::new(pki.server_key(&names)?);
        let current = Mutex::new((pki.clock.now_ms(), key));
        Ok(Self {
            pki,
            names,
            current,
        })
    }
}

impl fmt::Debug for Renewing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewing")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Renewing {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let now = self.pki.clock.now_ms();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(current.0) > RENEW_MS {
            match self.pki.server_key(&self.names) {
                Ok(key) => *current = (now, Arc::new(key)),
                Err(error) => tracing::error!(%error, "the server keeps its old certificate"),
            }
        }
        Some(current.1.clone())
    }
}

fn builder(
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider).with_protocol_versions(versions)
}

fn authority(pair: &KeyPair, clock: &dyn Clock) -> CertificateParams {
    let mut params = CertificateParams::default();
    lives(&mut params, clock, AUTHORITY_LIVES);
    // A name of its own for each authority, so that two are not mistaken for each other.
    let digest = hex(&Sha256::digest(pair.public_key_raw()));
    let name = format!("Mayfly broker {}", &digest[..8]);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn lives(params: &mut CertificateParams, clock: &dyn Clock, lives: Duration) {
    let now = i64::try_from(clock.now_ms() / 1000).unwrap_or(i64::MAX);
    let now = OffsetDateTime::from_unix_timestamp(now).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    params.not_before = now.checked_sub(BEFORE).unwrap_or(now);
    params.not_after = now.checked_add(lives).unwrap_or(now);
}

fn is_node_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Length of the certificate (4 bytes), certificate, key.
fn pack(certificate: &[u8], key: &[u8]) -> Secret {
    let mut bytes = Vec::with_capacity(4 + certificate.len() + key.len());
    let length = u32::try_from(certificate.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(certificate);
    bytes.extend_from_slice(key);
    Secret::from(bytes)
}

fn unpack(stored: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = stored.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

fn pem(certificate: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem + "-----END CERTIFICATE-----\n"
}
