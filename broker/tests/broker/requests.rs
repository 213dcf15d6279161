//! Certificates for keys that workloads keep, through the door.

use crate::harness::*;
use crate::issuing::{config, told};
use mayfly_wire::admin::{CredentialConfig, EngineConfig, X509Key, X509Settings, X509Usage};
use mayfly_wire::audit::Event;
use mayfly_wire::sealed::generate;
use mayfly_wire::session::Bundle;
use mayfly_wire::{Code, Evidence};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

const NAME: &str = "orders.shop.internal";

fn credential(key: X509Key) -> CredentialConfig {
    let settings = X509Settings {
        spiffe_id: None,
        dns_names: vec!["{compose.service}.shop.internal".into()],
        common_name: None,
        usage: vec![X509Usage::Server],
        key,
    };
    config(600, EngineConfig::X509(settings))
}

/// A request by OpenSSL, for another's name and an authority.
fn request_for(kind: &[&str], dir: &Path) -> String {
    let mut openssl = Command::new("openssl");
    openssl
        .args(["req", "-new", "-nodes", "-newkey"])
        .args(kind);
    openssl.args(["-subj", "/CN=web.shop.internal"]);
    openssl.args(["-addext", "subjectAltName=DNS:web.shop.internal"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:TRUE"]);
    told(openssl.arg("-keyout").arg(dir.join("tls.key")))
}

/// As `POST /v1/credentials/orders-id` would.
async fn post(world: &World, evidence: &Evidence, csr: &str) -> Result<Opened, Code> {
    let (private, public_key) = generate();
    let want = Some(vec!["orders-id".parse().unwrap()]);
    let mut asked = request(evidence, want, true, public_key);
    asked.csr = Some(csr.to_owned());
    let session = world.broker.nodes.session(NODE, asked).await;
    let session = session.map_err(|refusal| refusal.code)?;
    let mut client = Client::of(session, private, evidence.workload.clone());
    let bundle = client.bundle().await;
    match bundle.missing.first() {
        Some(missing) => Err(missing.refusal.code),
        None => Ok(Opened {
            lease: bundle.credentials[0].lease.to_string(),
            fields: client.open(&bundle),
        }),
    }
}

#[derive(Debug)]
struct Opened {
    lease: String,
    fields: BTreeMap<String, String>,
}

fn verified(dir: &Path, opened: &Opened) -> Command {
    let write = |field: &str| {
        let path = dir.join(field);
        std::fs::write(&path, &opened.fields[&format!("orders-id/{field}")]).unwrap();
        path
    };
    let (certificate, roots) = (write("tls.crt"), write("ca.crt"));
    let mut openssl = Command::new("openssl");
    openssl.args(["verify", "-x509_strict", "-purpose", "sslserver"]);
    openssl.args(["-verify_hostname", NAME, "-CAfile"]);
    openssl.arg(roots).arg("-untrusted").arg(&certificate);
    openssl.arg(certificate);
    openssl
}

fn public_key(of: &[&str], file: &Path) -> String {
    told(Command::new("openssl").args(of).arg("-in").arg(file))
}

#[tokio::test]
async fn a_workload_has_its_own_key_certified_under_the_configured_names() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    let permits = [permit("orders-id", "orders"), permit("orders-db", "orders")];
    let all = vec![credential(X509Key::Workload), kv("orders-db", "a", 600)];
    world.put("a", "sesame").await;
    world.apply(desired(all, &permits)).await;
    let orders = evidence("orders", 1);

    // A session gets what is made by itself.
    let mut session = world.connect(&orders).await.unwrap();
    let has = |bundle: &Bundle| {
        bundle
            .credentials
            .iter()
            .any(|one| one.name.as_str() == "orders-id")
    };
    let bundle = session.bundle().await;
    assert!(!has(&bundle) && bundle.missing.is_empty());

    let mut last = String::new();
    for kind in [
        &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"][..],
        &["ed25519"],
    ] {
        let csr = request_for(kind, &dir.0);
        let opened = post(&world, &orders, &csr).await.unwrap();
        let names: Vec<&str> = opened.fields.keys().map(String::as_str).collect();
        assert_eq!(names, ["orders-id/ca.crt", "orders-id/tls.crt"]);
        assert!(told(&mut verified(&dir.0, &opened)).contains("OK"));
        let shown = public_key(&["x509", "-noout", "-text"], &dir.0.join("tls.crt"));
        assert!(
            !shown.contains("web.shop") && shown.contains("CA:FALSE"),
            "{shown}"
        );
        assert_eq!(
            public_key(&["x509", "-noout", "-pubkey"], &dir.0.join("tls.crt")),
            public_key(&["pkey", "-pubout"], &dir.0.join("tls.key"))
        );
        // Each takes the place of the one before.
        if !last.is_empty() {
            let ended = world.until(
                |event| matches!(event, Event::Ended { lease, .. } if lease.as_str() == last),
            );
            let Event::Ended { reason, .. } = ended.await else {
                unreachable!()
            };
            assert_eq!(reason, "replaced");
        }
        last = opened.lease;
    }

    // What is no request changes nothing.
    for bad in ["", "no", &request_for(&["rsa:2048"], &dir.0)] {
        let refused = post(&world, &orders, bad).await.unwrap_err();
        assert_eq!(refused, Code::BadRequest, "{bad}");
    }
    let want = Some(vec!["orders-id".parse().unwrap()]);
    let mut again = world.connect_for(&orders, want, true).await.unwrap();
    let bundle = again.bundle().await;
    assert_eq!(bundle.credentials[0].lease.as_str(), last);
    let other = post(&world, &evidence("web", 2), "").await.unwrap_err();
    assert_eq!(other, Code::Denied);
}

#[tokio::test]
async fn a_request_for_what_is_made_here_and_none_for_what_is_not_are_refused() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    let permits = [permit("orders-id", "orders")];
    let orders = evidence("orders", 1);
    let csr = request_for(&["ed25519"], &dir.0);
    for (key, csr) in [(X509Key::EcdsaP256, Some(csr)), (X509Key::Workload, None)] {
        world.apply(desired(vec![credential(key)], &permits)).await;
        let code = match csr {
            Some(csr) => post(&world, &orders, &csr).await.unwrap_err(),
            None => {
                let want = Some(vec!["orders-id".parse().unwrap()]);
                let mut client = world.connect_for(&orders, want, true).await.unwrap();
                client.bundle().await.missing[0].refusal.code
            }
        };
        assert_eq!(code, Code::BadRequest);
    }
    world.put("a", "sesame").await;
    let mut value = kv("orders-id", "a", 600);
    value.name = "orders-id".parse().unwrap();
    world.apply(desired(vec![value], &permits)).await;
    assert_eq!(
        post(&world, &orders, "x").await.unwrap_err(),
        Code::BadRequest
    );

    // With a session there is no one credential that a request could be for.
    let (_, public_key) = generate();
    let mut asked = request(&orders, None, true, public_key);
    asked.csr = Some("x".to_owned());
    assert_eq!(
        code(world.broker.nodes.session(NODE, asked).await),
        Code::BadRequest
    );
}
