//! Certificates of the `x509` engine, judged by OpenSSL.

use crate::issuing::*;
use mayfly_broker::engine::Engine as _;
use mayfly_wire::admin::{CredentialConfig, EngineConfig, X509Key, X509Settings, X509Usage};
use std::path::Path;
use std::process::Command;

const NAME: &str = "orders.shop.internal";
const ID: &str = "spiffe://shop.internal/apps/orders";

const TALK: &str = include_str!("talk.py");

fn settings(change: impl FnOnce(&mut X509Settings)) -> EngineConfig {
    let mut settings = X509Settings {
        spiffe_id: Some("spiffe://shop.internal/apps/{compose.service}".into()),
        dns_names: vec!["{compose.service}.shop.internal".into()],
        common_name: None,
        usage: vec![X509Usage::Client, X509Usage::Server],
        key: X509Key::EcdsaP256,
    };
    change(&mut settings);
    EngineConfig::X509(settings)
}

fn plain(ttl_seconds: u64) -> CredentialConfig {
    config(ttl_seconds, settings(|_| ()))
}

fn verify(files: &Path, roots: &Path) -> Command {
    verify_with(files, roots, &[])
}

fn verify_with(files: &Path, roots: &Path, more: &[&str]) -> Command {
    let mut openssl = Command::new("openssl");
    openssl.args(["verify", "-x509_strict"]).args(more);
    openssl.arg("-CAfile");
    openssl.arg(roots.join("ca.crt")).arg("-untrusted");
    openssl.arg(files.join("tls.crt"));
    openssl.arg(files.join("tls.crt"));
    openssl
}

pub fn talk(server: &Path, client: &Path, name: &str) -> Command {
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", TALK]).arg(server).arg(client).arg(name);
    python
}

fn shown(certificate: &Path) -> String {
    let mut openssl = Command::new("openssl");
    told(
        openssl
            .args(["x509", "-noout", "-text", "-in"])
            .arg(certificate),
    )
}

#[tokio::test]
async fn openssl_takes_what_is_issued_for_what_it_is() {
    let place = Place::new();
    let x509 = place.x509().await;
    for (name, key) in [("ec", X509Key::EcdsaP256), ("ed", X509Key::Ed25519)] {
        let credential = config(300, settings(|settings| settings.key = key));
        x509.check(&credential).unwrap();
        let issued = issue(&x509, &credential, now()).await.unwrap();
        let files = place.publish(name, &issued);
        for more in [
            ["-purpose", "sslclient"],
            ["-purpose", "sslserver"],
            ["-verify_hostname", NAME],
        ] {
            assert!(told(&mut verify_with(&files, &files, &more)).contains(": OK"));
        }
        for more in [
            ["-verify_hostname", "web.shop.internal"],
            ["-verify_hostname", "shop.internal"],
            ["-purpose", "smimesign"],
        ] {
            refused(&mut verify_with(&files, &files, &more));
        }
        let mut openssl = Command::new("openssl");
        told(
            openssl
                .args(["pkey", "-noout", "-check", "-in"])
                .arg(files.join("tls.key")),
        );

        told(&mut talk(&files, &files, NAME));

        let shown = shown(&files.join("tls.crt"));
        for expected in [
            "CA:FALSE",
            "URI:spiffe://shop.internal/apps/orders",
            "DNS:orders.shop.internal",
            "TLS Web Client Authentication, TLS Web Server Authentication",
            "X509v3 Key Usage: critical\n                Digital Signature\n",
            "Subject: serialNumber = lease-05050505050505050505050505050505",
        ] {
            assert!(shown.contains(expected), "{expected}: {shown}");
        }
        let chain = text(&files.join("tls.crt"));
        assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);
        assert_eq!(text(&files.join("ca.crt")), published(&x509, "ca.crt"));
        assert_eq!(
            published(&x509, "ca.crt")
                .matches("BEGIN CERTIFICATE")
                .count(),
            1
        );
    }
}

#[tokio::test]
async fn both_sides_of_tls_know_each_other_until_one_expires() {
    let place = Place::new();
    let x509 = place.x509().await;
    let good = place.publish("good", &issue(&x509, &plain(300), now()).await.unwrap());
    let both = told(&mut talk(&good, &good, NAME));
    let expected = format!("server: {NAME} {ID}\nclient: {NAME} {ID}\n");
    assert_eq!(both, expected);
    refused(&mut talk(&good, &good, "web.shop.internal"));

    // What only a client may show is no server's, and the other way around.
    let side = |usage| config(300, settings(|settings| settings.usage = vec![usage]));
    let client = issue(&x509, &side(X509Usage::Client), now()).await.unwrap();
    let client = place.publish("client", &client);
    let server = issue(&x509, &side(X509Usage::Server), now()).await.unwrap();
    let server = place.publish("server", &server);
    told(&mut talk(&server, &client, NAME));
    let wrong = refused(&mut talk(&client, &server, NAME));
    assert!(wrong.to_lowercase().contains("purpose"), "{wrong}");

    let old = issue(&x509, &plain(300), now() - 301_000).await.unwrap();
    let old = place.publish("old", &old);
    for (server, client) in [(&old, &good), (&good, &old)] {
        let late = refused(&mut talk(server, client, NAME));
        assert!(late.contains("expired"), "{late}");
    }
    assert!(refused(&mut verify(&old, &old)).contains("expired"));

    let other = Place::new();
    let stranger = issue(&other.x509().await, &plain(300), now())
        .await
        .unwrap();
    let stranger = other.publish("stranger", &stranger);
    for (server, client) in [(&stranger, &good), (&good, &stranger)] {
        let unknown = refused(&mut talk(server, client, NAME));
        assert!(
            unknown.contains("self-signed") || unknown.contains("issuer"),
            "{unknown}"
        );
    }
    refused(&mut verify(&stranger, &good));
}

#[tokio::test]
async fn it_ends_with_its_lease_to_the_second() {
    let place = Place::new();
    let x509 = place.x509().await;
    let start = now() / 1000 * 1000 + 500;
    let issued = issue(&x509, &plain(60), start).await.unwrap();
    assert_eq!(issued.expires_at, start + 60_000);
    let files = place.publish("it", &issued);
    let at = |seconds: u64| verify_with(&files, &files, &["-attime", &seconds.to_string()]);
    let seconds = start / 1000;
    // A minute for clocks that differ.
    told(&mut at(seconds - 60));
    refused(&mut at(seconds - 61));
    // OpenSSL takes the last second for the end.
    told(&mut at(seconds + 58));
    refused(&mut at(seconds + 60));
}

#[tokio::test]
async fn roots_change_with_an_overlap_in_which_all_verify() {
    let place = Place::new();
    let x509 = place.x509().await;
    let begin = now() - 700_000;
    let first = place.publish("first", &issue(&x509, &plain(600), begin).await.unwrap());
    // The next root signs when everybody who holds a certificate has been given it.
    let signs = certifier(&x509).rotate(begin + 1).await.unwrap();
    assert_eq!(signs, begin + 1 + 600_000);
    assert_eq!(certifier(&x509).rotate(begin + 2).await.unwrap(), signs);
    let old = place.publish("old", &issue(&x509, &plain(600), signs - 1).await.unwrap());
    drop(x509);

    let place = place.again();
    let x509 = place.x509().await;
    let new = place.publish("new", &issue(&x509, &plain(600), signs).await.unwrap());
    let roots = |files: &Path| text(&files.join("ca.crt")).matches("BEGIN").count();
    assert_eq!((roots(&first), roots(&old), roots(&new)), (1, 2, 2));
    let issuer = |files: &Path| text(&files.join("tls.crt")).matches("BEGIN").count();
    assert_eq!(issuer(&new), 2);
    for (files, with) in [(&old, &old), (&old, &new), (&new, &old), (&new, &new)] {
        told(&mut verify(files, with));
        told(&mut talk(files, with, NAME));
    }
    told(&mut verify(&old, &first));
    // Nobody who still lives has only the first.
    refused(&mut verify(&new, &first));

    assert!(!certifier(&x509).maintain(signs + 599_999).await.unwrap());
    assert!(certifier(&x509).maintain(signs + 600_000).await.unwrap());
    assert_eq!(published(&x509, "ca.crt").matches("BEGIN").count(), 1);
    std::fs::remove_file(new.join("ca.crt")).unwrap();
    std::fs::write(new.join("ca.crt"), published(&x509, "ca.crt")).unwrap();
    told(&mut verify(&new, &new));
    refused(&mut verify(&old, &new));
}

#[tokio::test]
async fn intermediates_change_under_one_root() {
    let place = Place::new();
    let x509 = place.x509().await;
    const DAY: u64 = 24 * 60 * 60 * 1000;
    let begin = now() - 100 * DAY;
    issue(&x509, &plain(30 * 86_400), begin).await.unwrap();
    let root = published(&x509, "ca.crt");
    for day in 1..=100 {
        let changed = certifier(&x509).maintain(begin + day * DAY).await.unwrap();
        assert_eq!(changed, day % 30 == 0, "day {day}");
    }
    let issued = issue(&x509, &plain(30 * 86_400), now()).await.unwrap();
    let files = place.publish("it", &issued);
    let last = (issued.expires_at / 1000 - 2).to_string();
    told(&mut verify_with(&files, &files, &["-attime", &last]));
    assert_eq!(published(&x509, "ca.crt"), root);
}

#[tokio::test]
async fn what_no_certificate_can_be_is_refused() {
    let place = Place::new();
    let x509 = place.x509().await;
    let bare = settings(|settings| {
        settings.spiffe_id = None;
        settings.dns_names.clear();
    });
    for (engine, found) in [
        (bare, "found none"),
        (settings(|s| s.usage.clear()), "usage"),
        (
            settings(|s| s.dns_names = vec!["*.internal".into()]),
            "DNS name",
        ),
        (
            settings(|s| s.dns_names = vec!["a.internal".into(); 33]),
            "found 33",
        ),
        (
            settings(|s| s.spiffe_id = Some("spiffe://{node}/a".into())),
            "trust domain",
        ),
        (
            settings(|s| s.common_name = Some("a=b".into())),
            "common name",
        ),
    ] {
        let problem = x509.check(&config(300, engine.clone())).unwrap_err();
        assert!(problem.contains(found), "{problem}");
        let issued = issue(&x509, &config(300, engine), now()).await;
        assert!(issued.is_err());
    }
    // Right in itself, but not for this workload.
    let engine = settings(|s| s.dns_names = vec!["{label.none}.internal".into()]);
    x509.check(&config(300, engine.clone())).unwrap();
    assert!(issue(&x509, &config(300, engine), now()).await.is_err());
    assert_eq!(
        published(&x509, "ca.crt"),
        "",
        "an authority is made for the first certificate"
    );
}
