//! TLS to targets: which certificates are trusted.

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::Path;
use std::sync::Arc;

/// Where systems keep the certificates that they trust, in one file: Debian and Alpine, Fedora, SUSE.
const SYSTEM: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// A client's settings that trust `ca_pem`, or what the machine trusts.
///
/// # Errors
/// What was expected and what was found.
pub fn client(ca_pem: Option<&str>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match ca_pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let added = certificate
                    .map_err(|error| error.to_string())
                    .and_then(|one| roots.add(one).map_err(|error| error.to_string()));
                added.map_err(|error| format!("ca_pem: expected certificates in PEM: {error}"))?;
            }
        }
        None => {
            let file = system()?;
            let certificates =
                CertificateDer::pem_file_iter(file).map_err(|error| format!("{file}: {error}"))?;
            // One that cannot be read there is none that anybody can be checked with.
            roots.add_parsable_certificates(certificates.flatten());
        }
    }
    if roots.is_empty() {
        return Err("ca_pem: expected at least one certificate".to_owned());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn system() -> Result<&'static str, String> {
    let file = SYSTEM.iter().find(|file| Path::new(file).exists());
    file.copied().ok_or_else(|| {
        format!(
            "expected the machine's trusted certificates in one of {}; give the server's as ca_pem",
            SYSTEM.join(", ")
        )
    })
}

/// The name that a server's certificate must be for.
///
/// # Errors
/// It is neither a DNS name nor an address.
pub fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| format!("host: expected a DNS name or an address, found {host:?}"))
}
