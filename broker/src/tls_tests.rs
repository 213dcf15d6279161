//! The broker's TLS servers against real clients.

use crate::clock::{Fixed, SystemClock};
use crate::engine::jwt::{Jwt, Schedule};
use crate::oidc;
use crate::pki::{self, Pki};
use crate::store::{SqliteStore, Store};
use crate::testing::TempDir;
use crate::unseal::KeyFile;
use mayfly_wire::admin::NodeCertificate;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

struct Place {
    store: Arc<SqliteStore>,
    pki: Arc<Pki>,
    dir: TempDir,
}

async fn place() -> Place {
    let dir = TempDir::new();
    let key = KeyFile::new(dir.path().join("root.key"));
    let store = Arc::new(SqliteStore::open(&dir.path().join("state"), &key).unwrap());
    let keys = store.keys();
    let pki = Pki::open(store.as_ref(), &keys, Arc::new(SystemClock));
    let pki = Arc::new(pki.await.unwrap());
    Place { store, pki, dir }
}

fn names() -> Vec<String> {
    vec!["localhost".to_owned(), "127.0.0.1".to_owned()]
}

fn client(ca: &str, certificate: Option<(&str, &[u8])>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key).unwrap(),
            )
            .unwrap(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// One handshake with the node link: what the server learns of the client.
async fn knock(server: Arc<ServerConfig>, client: ClientConfig) -> Result<String, String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let knocking = tokio::spawn(async move {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(client))
            .connect(name, stream)
            .await?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.map(|_| ())
    });
    let (stream, _) = listener.accept().await.unwrap();
    let stream = TlsAcceptor::from(server).accept(stream).await;
    let name = stream
        .map_err(|error| error.to_string())
        .and_then(|stream| {
            let (_, session) = stream.get_ref();
            assert_eq!(
                session.protocol_version(),
                Some(rustls::ProtocolVersion::TLSv1_3)
            );
            let certificate = &session.peer_certificates().unwrap()[0];
            pki::node_name(certificate).map_err(|error| error.to_string())
        });
    let _ = knocking.await.unwrap();
    name
}

fn key_of(node: &NodeCertificate) -> Vec<u8> {
    node.key.decode().unwrap().expose().to_vec()
}

#[tokio::test]
async fn the_node_link_knows_its_nodes() {
    let place = place().await;
    let server = place.pki.node_link_server_config(names()).unwrap();
    let node = place.pki.node_certificate("node-1.example").unwrap();
    let key = key_of(&node);
    let with = |certificate: &str, key: &[u8]| client(place.pki.ca_pem(), Some((certificate, key)));
    let name = knock(server.clone(), with(&node.certificate, &key)).await;
    assert_eq!(name.unwrap(), "node-1.example");

    let none = knock(server.clone(), client(place.pki.ca_pem(), None)).await;
    assert!(none.is_err());
    // Another authority's node of the same name.
    let other = self::place().await;
    let forged = other.pki.node_certificate("node-1.example").unwrap();
    let key = key_of(&forged);
    assert!(
        knock(server.clone(), with(&forged.certificate, &key))
            .await
            .is_err()
    );
    // One of ours, long expired.
    let old = Arc::new(Fixed(1_000_000_000_000.into()));
    let old = Pki::open(place.store.as_ref(), &place.store.keys(), old)
        .await
        .unwrap();
    assert_eq!(old.ca_pem(), place.pki.ca_pem());
    let expired = old.node_certificate("node-1.example").unwrap();
    let key = key_of(&expired);
    assert!(
        knock(server, with(&expired.certificate, &key))
            .await
            .is_err()
    );
    for name in ["", "a/b", "-a", "ä", &"n".repeat(64)] {
        assert!(place.pki.node_certificate(name).is_err(), "{name}");
    }
    let ca = CertificateDer::from_pem_slice(place.pki.ca_pem().as_bytes()).unwrap();
    assert!(pki::node_name(&ca).is_err());
}

#[tokio::test]
async fn a_node_cannot_pass_for_a_server() {
    let place = place().await;
    let node = place.pki.node_certificate("localhost").unwrap();
    let (certificate, key) = (place.dir.path().join("crt"), place.dir.path().join("key"));
    std::fs::write(&certificate, &node.certificate).unwrap();
    std::fs::write(&key, key_of(&node)).unwrap();
    let server = pki::server_config_from_files(&certificate, &key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let _ = TlsAcceptor::from(server).accept(stream).await;
    });
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(client(place.pki.ca_pem(), None)));
    let name = ServerName::try_from("localhost").unwrap();
    assert!(connector.connect(name, stream).await.is_err());
    std::fs::write(&key, "no key").unwrap();
    let error = pki::server_config_from_files(&certificate, &key).unwrap_err();
    assert!(error.to_string().contains("expected one private key"));
    assert!(pki::server_config_from_files(&key, &key).is_err());
}

async fn ask(address: std::net::SocketAddr, ca: &str, request: &str) -> String {
    let mut config = client(ca, None);
    config.alpn_protocols.clear();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, stream).await.unwrap();
    let head = format!("{request} HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn the_openid_server_answers_and_stands_garbage() {
    let place = place().await;
    let keys = place.store.keys();
    let store: Arc<dyn Store> = place.store.clone();
    let issuer = "https://broker.example".to_owned();
    let jwt = Jwt::open(store, keys, issuer, Schedule::default(), 1_000);
    let jwt = Arc::new(jwt.await.unwrap());
    let tls = place.pki.oidc_server_config(names()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(oidc::serve(listener, tls, jwt.clone()));

    let ca = place.pki.export_ca(place.dir.path()).unwrap();
    let ca = std::fs::read_to_string(ca).unwrap();
    // Half-open and garbage connections stay meanwhile.
    let mut others = Vec::new();
    for _ in 0..50 {
        let mut garbage = TcpStream::connect(address).await.unwrap();
        garbage
            .write_all(&[0x16, 3, 1, 0xff, 0xff, 7, 7])
            .await
            .unwrap();
        others.push(garbage);
        others.push(TcpStream::connect(address).await.unwrap());
    }
    for path in ["/.well-known/jwks.json", "/jwks.json"] {
        let answer = ask(address, &ca, &format!("GET {path}")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("max-age=3600") && answer.ends_with(&jwt.key_set()));
    }
    let answer = ask(address, &ca, "GET /.well-known/openid-configuration").await;
    assert!(answer.ends_with(&jwt.discovery()));
    for (request, status) in [
        ("GET /", "404"),
        ("POST /jwks.json", "405"),
        ("GET /../jwks.json", "404"),
    ] {
        let answer = ask(address, &ca, request).await;
        assert_eq!(answer.get(9..12), Some(status), "{request}");
    }
    let long = format!("GET /{}", "a".repeat(100_000));
    assert!(!ask(address, &ca, &long).await.starts_with("HTTP/1.1 200"));
    server.abort();
}
