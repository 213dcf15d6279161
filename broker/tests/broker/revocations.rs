//! Certificates whose leases ended before they expire: on the lists that OpenSSL, TLS and OpenSSH read.

use crate::harness::*;
use crate::issuing::{Place, certifier, config, now, refused, told};
use crate::ssh::{HOST, Sshd};
use mayfly_broker::engine::{Engine, IssueRequest, Issued};
use mayfly_broker::store::{Lease, LeaseState, Op, Store as _};
use mayfly_wire::admin::{
    CredentialConfig, EngineConfig, LeaseFilter, Revoke, Rotate, SshKind, SshSettings, X509Key,
    X509Settings, X509Usage,
};
use mayfly_wire::link::NodeEvent;
use mayfly_wire::{EngineKind, LeaseId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const NAME: &str = "orders.shop.internal";
const DAY: u64 = 24 * 60 * 60 * 1000;

fn x509(ttl_seconds: u64) -> CredentialConfig {
    let settings = X509Settings {
        spiffe_id: None,
        dns_names: vec![NAME.into()],
        common_name: None,
        usage: vec![X509Usage::Client, X509Usage::Server],
        key: X509Key::EcdsaP256,
    };
    config(ttl_seconds, EngineConfig::X509(settings))
}

fn ssh(name: &str, kind: SshKind, principal: &str) -> CredentialConfig {
    let settings = SshSettings {
        kind,
        principals: vec![principal.to_owned()],
        extensions: Vec::new(),
        force_command: None,
        source_address: Vec::new(),
    };
    CredentialConfig {
        name: name.parse().unwrap(),
        ..config(600, EngineConfig::Ssh(settings))
    }
}

/// A container with a certificate, and its files.
struct Holder {
    client: Client,
    lease: LeaseId,
    files: PathBuf,
}

impl Holder {
    async fn new(world: &World, dir: &Path, number: u64) -> Self {
        let mut client = world.connect(&evidence("orders", number)).await.unwrap();
        let (lease, files) = publish(&mut client, dir, &number.to_string()).await;
        Self {
            client,
            lease,
            files,
        }
    }
}

/// Writes the next bundle, of one credential, into a directory of this name.
async fn publish(client: &mut Client, dir: &Path, name: &str) -> (LeaseId, PathBuf) {
    let bundle = client.bundle().await;
    let fields = client.open(&bundle);
    let fields = fields.into_iter();
    let files = fields.map(|(name, value)| (name.split_once('/').unwrap().1.to_owned(), value));
    let dir = written(&dir.join(name), &files.collect());
    (bundle.credentials[0].lease.clone(), dir)
}

fn written(dir: &Path, files: &BTreeMap<String, String>) -> PathBuf {
    std::fs::create_dir(dir).unwrap();
    for (name, value) in files {
        let path = dir.join(name);
        std::fs::write(&path, value).unwrap();
        // OpenSSH refuses a private key that others can read.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(path, mode).unwrap();
    }
    dir.to_owned()
}

async fn revoke(world: &World, lease: &LeaseId) {
    let revoke = Revoke {
        which: LeaseFilter {
            lease: Some(lease.clone()),
            ..ALL
        },
        all: false,
        forget: false,
    };
    let mut lines = world.broker.door.revoke(&ROOT, revoke).await.unwrap();
    while let Some(line) = lines.recv().await {
        assert_eq!(line.failed, 0, "{line:?}");
    }
}

async fn died(world: &World, number: u64) {
    let workload = evidence("orders", number).workload;
    let died = NodeEvent::Died { workload };
    world.broker.nodes.event(NODE, died).await.unwrap();
}

/// Writes the list as it is now, and gives how many are on it.
async fn fetch(world: &World, kind: EngineKind, to: &Path) -> u64 {
    let list = world.broker.door.authority_crl(&ROOT, kind).await.unwrap();
    let again = world.broker.door.authority_crl(&ROOT, kind).await.unwrap();
    assert_eq!(again.number, list.number + 1);
    std::fs::write(to, &again.file.0).unwrap();
    again.entries
}

fn verify(files: &Path, crl: &Path, more: &[&str]) -> Command {
    let mut openssl = Command::new("openssl");
    openssl.args(["verify", "-x509_strict", "-crl_check_all"]);
    openssl.args(more).arg("-CRLfile").arg(crl).arg("-CAfile");
    openssl.arg(files.join("ca.crt")).arg("-untrusted");
    openssl.arg(files.join("tls.crt"));
    openssl.arg(files.join("tls.crt"));
    openssl
}

/// TLS between two, who read the list.
fn talk(server: &Path, client: &Path, crl: &Path) -> Command {
    for files in [server, client] {
        std::fs::copy(crl, files.join("ca.crl")).unwrap();
    }
    crate::x509::talk(server, client, NAME)
}

#[tokio::test]
async fn tls_refuses_what_was_revoked_and_nothing_else() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    let door = &world.broker.door;
    let early = door.authority_crl(&ROOT, EngineKind::X509).await;
    assert_eq!(code(early), mayfly_wire::Code::NotFound);
    world
        .apply(desired(vec![x509(600)], &[permit("orders-id", "orders")]))
        .await;
    let one = Holder::new(&world, &dir.0, 1).await;
    let two = Holder::new(&world, &dir.0, 2).await;
    let mut three = Holder::new(&world, &dir.0, 3).await;
    let crl = dir.0.join("crl");
    assert_eq!(fetch(&world, EngineKind::X509, &crl).await, 0);
    for holder in [&one, &two, &three] {
        told(&mut verify(&holder.files, &crl, &[]));
        told(&mut talk(&holder.files, &three.files, &crl));
    }

    revoke(&world, &one.lease).await;
    died(&world, 2).await;
    assert_eq!(fetch(&world, EngineKind::X509, &crl).await, 2);
    let are_revoked = |revoked: &[&Path], good: &Path| {
        for files in revoked {
            assert!(refused(&mut verify(files, &crl, &[])).contains("revoked"));
            for (server, client) in [(*files, good), (good, *files)] {
                assert!(refused(&mut talk(server, client, &crl)).contains("revoked"));
            }
        }
        told(&mut verify(good, &crl, &[]));
        told(&mut talk(good, good, &crl));
    };
    are_revoked(&[&one.files, &two.files], &three.files);

    let rotate = Rotate {
        credentials: vec!["orders-id".parse().unwrap()],
        all: false,
    };
    let mut lines = world.broker.door.rotate(&ROOT, rotate).await.unwrap();
    while lines.recv().await.is_some() {}
    let (_, new) = publish(&mut three.client, &dir.0, "3-new").await;
    drop((one.client, two.client, three.client));
    world.stop().await;
    let world = World::open(&dir.0).await;
    // What was replaced is in use for a little longer.
    assert_eq!(fetch(&world, EngineKind::X509, &crl).await, 2);
    for good in [&three.files, &new] {
        are_revoked(&[&one.files, &two.files], good);
    }
    let shown = told(
        Command::new("openssl")
            .args(["crl", "-noout", "-crlnumber", "-in"])
            .arg(&crl),
    );
    assert_eq!(shown.trim(), "crlNumber=0x06");
    world.stop().await;
}

/// Exits with 0 unless it is revoked.
fn asked(krl: &Path, files: &Path) -> Command {
    let mut keygen = Command::new("ssh-keygen");
    keygen.arg("-Q").arg("-f").arg(krl);
    keygen.arg(files.join("id_ed25519-cert.pub"));
    keygen
}

#[tokio::test]
async fn ssh_refuses_what_was_revoked_and_nothing_else() {
    let dir = Dir::new();
    let world = World::open(&dir.0).await;
    let credentials = vec![
        ssh("login", SshKind::User, "root"),
        ssh("host-id", SshKind::Host, HOST),
    ];
    let permits = [permit("login", "orders"), permit("host-id", "web")];
    world.apply(desired(credentials, &permits)).await;
    let one = Holder::new(&world, &dir.0, 1).await;
    let two = Holder::new(&world, &dir.0, 2).await;
    let three = Holder::new(&world, &dir.0, 3).await;
    let mut server = world.connect(&evidence("web", 9)).await.unwrap();
    let (host, server_files) = publish(&mut server, &dir.0, "server").await;
    let krl = dir.0.join("krl");
    assert_eq!(fetch(&world, EngineKind::Ssh, &krl).await, 0);
    let sshd = Sshd::start(&server_files);
    let good = |files: &Path| {
        told(&mut asked(&krl, files));
        assert_eq!(told(sshd.ssh(files, HOST).arg("echo hello")), "hello\n");
    };
    for holder in [&one, &two, &three] {
        good(&holder.files);
    }

    revoke(&world, &one.lease).await;
    died(&world, 2).await;
    assert_eq!(fetch(&world, EngineKind::Ssh, &krl).await, 2);
    let are_revoked = || {
        for holder in [&one, &two] {
            assert!(refused(&mut asked(&krl, &holder.files)).contains("REVOKED"));
            let denied = refused(sshd.ssh(&holder.files, HOST).arg("echo hello"));
            assert!(denied.contains("Permission denied"), "{denied}");
        }
        good(&three.files);
    };
    are_revoked();
    world.stop().await;
    let world = World::open(&dir.0).await;
    assert_eq!(fetch(&world, EngineKind::Ssh, &krl).await, 2);
    are_revoked();

    // Hosts as well: a client that reads the list does not speak to one.
    revoke(&world, &host).await;
    assert_eq!(fetch(&world, EngineKind::Ssh, &krl).await, 3);
    let revoked = format!("RevokedHostKeys={}", krl.display());
    let mut careful = sshd.ssh(&three.files, HOST);
    let said = refused(careful.args(["-o", &revoked, "echo hello"]));
    assert!(said.contains("revoked"), "{said}");
    assert!(asked(&krl, &server_files).status().unwrap().code() == Some(1));
    world.stop().await;
}

/// Issues under a lease of this number.
async fn issue(
    place: &Place,
    engine: &dyn Engine,
    credential: &CredentialConfig,
    number: u8,
    at: u64,
) -> (Issued, Lease) {
    let (evidence, id) = (
        evidence("orders", number.into()),
        LeaseId::from_random([number; 16]),
    );
    let request = IssueRequest {
        credential,
        evidence: &evidence,
        lease: &id,
        now: at,
    };
    let issued = engine.issue(request).await.unwrap();
    let lease = Lease {
        id,
        workload: evidence.workload.clone(),
        credential: credential.name.clone(),
        engine: credential.engine.kind(),
        node: NODE.into(),
        name: "orders".into(),
        state: LeaseState::Active,
        issued_at: at,
        expires_at: issued.expires_at,
        due_at: issued.expires_at,
        reason: String::new(),
        attempts: 0,
        problem: String::new(),
        source: issued.source.clone(),
    };
    let insert = vec![Op::LeaseInsert(lease.clone())];
    place.store.commit(insert).await.unwrap();
    (issued, lease)
}

async fn listed(engine: &dyn Engine, at: u64, to: &Path) -> u64 {
    let list = certifier(engine).revocations(at).await.unwrap();
    std::fs::write(to, &list.file.0).unwrap();
    list.entries
}

#[tokio::test]
async fn an_intermediate_that_signs_no_more_and_a_root_that_is_past_have_their_lists() {
    let place = Place::new();
    let engine = place.x509().await;
    let (begin, long) = (now() - 40 * DAY, x509(30 * 86_400));
    issue(&place, &engine, &long, 1, begin).await;
    let (old, old_lease) = issue(&place, &engine, &long, 2, begin + 29 * DAY).await;
    let (other, _) = issue(&place, &engine, &long, 3, begin + 29 * DAY).await;
    assert!(certifier(&engine).maintain(begin + 30 * DAY).await.unwrap());
    let (new, new_lease) = issue(&place, &engine, &long, 4, begin + 31 * DAY).await;
    let signs = certifier(&engine).rotate(begin + 35 * DAY).await.unwrap();
    assert_eq!(signs, begin + 65 * DAY);
    drop(engine);
    let place = place.again();
    let engine = place.x509().await;
    let (newest, newest_lease) = issue(&place, &engine, &long, 5, signs).await;
    let publish = |name: &str, issued: &Issued| place.publish(name, issued);
    let (old, other) = (publish("old", &old), publish("other", &other));
    let (new, newest) = (publish("new", &new), publish("newest", &newest));
    let crl = place.dir.0.join("crl");
    let today = now();
    let check = |files: &Path, at: u64| {
        let at = (at / 1000).to_string();
        verify(files, &crl, &["-attime", &at])
    };
    assert_eq!(listed(&engine, today, &crl).await, 0);
    for files in [&old, &other, &new] {
        told(&mut check(files, today));
    }
    for lease in [&old_lease, &new_lease] {
        let end = vec![Op::LeaseEnd(lease.id.clone(), today)];
        place.store.commit(end).await.unwrap();
    }
    assert_eq!(listed(&engine, today, &crl).await, 2);
    for files in [&old, &new] {
        assert!(refused(&mut check(files, today)).contains("revoked"));
    }
    told(&mut check(&other, today));

    // What the next root signs is on its own list.
    let end = vec![Op::LeaseEnd(newest_lease.id, signs + 1)];
    told(&mut {
        listed(&engine, signs + 120_000, &crl).await;
        check(&newest, signs + 120_000)
    });
    place.store.commit(end).await.unwrap();
    assert_eq!(
        listed(&engine, signs + 120_000, &crl).await,
        1,
        "two expired"
    );
    assert!(refused(&mut check(&newest, signs + 120_000)).contains("revoked"));
}

#[tokio::test]
async fn what_expired_leaves_the_list() {
    let place = Place::new();
    let engine = place.ssh().await;
    let (start, login) = (now(), ssh("login", SshKind::User, "root"));
    let (_, lease) = issue(&place, &engine, &login, 1, start).await;
    let (_, late) = issue(&place, &engine, &login, 2, start).await;
    let krl = place.dir.0.join("krl");
    for (lease, at) in [(&lease, start + 1), (&late, late.expires_at)] {
        let end = vec![Op::LeaseEnd(lease.id.clone(), at)];
        place.store.commit(end).await.unwrap();
    }
    // One that ended when its certificate did was never on it.
    assert_eq!(listed(&engine, start + 1, &krl).await, 1);
    let over = lease.expires_at + 60_000;
    assert_eq!(listed(&engine, over - 1, &krl).await, 1, "clocks differ");
    assert_eq!(listed(&engine, over, &krl).await, 0);
    let kept = || place.store.revoked(EngineKind::Ssh, 0, 10);
    certifier(&engine).maintain(over - 1).await.unwrap();
    assert_eq!(kept().await.unwrap().len(), 1);
    certifier(&engine).maintain(over).await.unwrap();
    assert_eq!(kept().await.unwrap(), []);
    drop(engine);
    // The store is whole.
    place.again();
}
