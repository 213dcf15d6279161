//! Certificates of the `ssh` engine, judged by OpenSSH: a real `sshd` on a private port.

use crate::issuing::*;
use mayfly_broker::engine::Engine as _;
use mayfly_wire::admin::{CredentialConfig, EngineConfig, SshExtension, SshKind, SshSettings};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const HOST: &str = "orders.shop.internal";

fn settings(kind: SshKind, principal: &str) -> SshSettings {
    SshSettings {
        kind,
        principals: vec![principal.to_owned()],
        extensions: Vec::new(),
        force_command: None,
        source_address: Vec::new(),
    }
}

fn user(ttl_seconds: u64, change: impl FnOnce(&mut SshSettings)) -> CredentialConfig {
    let mut settings = settings(SshKind::User, "root");
    change(&mut settings);
    config(ttl_seconds, EngineConfig::Ssh(settings))
}

fn host(ttl_seconds: u64) -> CredentialConfig {
    let settings = settings(SshKind::Host, "{compose.service}.shop.internal");
    config(ttl_seconds, EngineConfig::Ssh(settings))
}

/// A server that knows nobody but the authority; it ends on drop.
pub struct Sshd {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Sshd {
    /// With the files of a host certificate, and the list of what is revoked that may be beside them.
    pub fn start(files: &Path) -> Self {
        // Where it gives up its privileges; Debian makes it when the service starts.
        std::fs::create_dir_all("/run/sshd").unwrap();
        let limit = Instant::now() + Duration::from_secs(60);
        loop {
            // It cannot be told to take any port that is free, and another may be faster.
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let mut sshd = Self::start_on(port, files);
            while sshd.child.try_wait().unwrap().is_none() {
                if text(&sshd.log).contains("Server listening") {
                    return sshd;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(Instant::now() < limit, "{}", text(&sshd.log));
        }
    }

    fn start_on(port: u16, files: &Path) -> Self {
        let dir = files.parent().unwrap();
        let (log, path) = (dir.join("sshd.log"), dir.join("sshd.conf"));
        std::fs::write(&log, "").unwrap();
        let files = files.display();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {files}/id_ed25519\n\
             HostCertificate {files}/id_ed25519-cert.pub\nTrustedUserCAKeys {files}/ca.pub\n\
             AuthorizedKeysFile none\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n\
             LogLevel VERBOSE\n"
        );
        let krl = dir.join("krl");
        let revoked = if krl.exists() {
            format!("RevokedKeys {}\n", krl.display())
        } else {
            String::new()
        };
        std::fs::write(&path, config + &revoked).unwrap();
        let mut command = Command::new("/usr/sbin/sshd");
        command.arg("-D").arg("-f").arg(path).arg("-E").arg(&log);
        let child = command.spawn().expect("sshd: tests/setup installs it");
        Self { child, port, log }
    }

    /// A client with the files of a user's certificate, that calls the server by that name.
    pub fn ssh(&self, files: &Path, name: &str) -> Command {
        let mut ssh = Command::new("ssh");
        let known = format!("UserKnownHostsFile={}/known_hosts", files.display());
        let alias = format!("HostKeyAlias={name}");
        for option in [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "StrictHostKeyChecking=yes",
            "GlobalKnownHostsFile=/dev/null",
            &known,
            &alias,
        ] {
            ssh.args(["-o", option]);
        }
        ssh.args(["-F", "none", "-p", &self.port.to_string(), "-i"]);
        ssh.arg(files.join("id_ed25519"));
        ssh.args(["root@127.0.0.1"]);
        ssh
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn ssh_keygen_reads_what_is_issued() {
    let place = Place::new();
    let ssh = place.ssh().await;
    let start = now();
    let credential = user(300, |settings| {
        settings.principals.push("svc-{compose.service}".into());
        settings.extensions = vec![SshExtension::Pty, SshExtension::AgentForwarding];
        settings.force_command = Some("echo \"a, b\"".into());
        settings.source_address = vec!["127.0.0.0/8".into(), "::1/128".into()];
    });
    ssh.check(&credential).unwrap();
    let files = place.publish("user", &issue(&ssh, &credential, start).await.unwrap());
    let mut keygen = Command::new("ssh-keygen");
    let shown = told(
        keygen
            .arg("-L")
            .arg("-f")
            .arg(files.join("id_ed25519-cert.pub")),
    );
    let workload = crate::harness::evidence("orders", 1).workload.id();
    for expected in [
        "Type: ssh-ed25519-cert-v01@openssh.com user certificate",
        &format!("Key ID: \"mayfly orders-id {workload} lease-05050505050505050505050505050505\""),
        "Principals: \n                root\n                svc-orders\n",
        "force-command echo \"a, b\"",
        "source-address 127.0.0.0/8,::1/128",
        "Extensions: \n                permit-agent-forwarding\n                permit-pty\n",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    // The private key is the certificate's and the public key's.
    let mut keygen = Command::new("ssh-keygen");
    let public = told(keygen.arg("-y").arg("-f").arg(files.join("id_ed25519")));
    assert_eq!(public, text(&files.join("id_ed25519.pub")));

    let files = place.publish("host", &issue(&ssh, &host(300), start).await.unwrap());
    let mut keygen = Command::new("ssh-keygen");
    let shown = told(
        keygen
            .arg("-L")
            .arg("-f")
            .arg(files.join("id_ed25519-cert.pub")),
    );
    assert!(
        shown.contains("host certificate") && shown.contains(HOST),
        "{shown}"
    );
    assert!(shown.contains("Critical Options: (none)"), "{shown}");
    assert_eq!(text(&files.join("ca.pub")), published(&ssh, "ca.pub"));
    assert_eq!(
        text(&files.join("known_hosts")),
        published(&ssh, "known_hosts")
    );
}

#[tokio::test]
async fn sshd_and_its_client_know_each_other_and_nobody_else() {
    let place = Place::new();
    let ssh = place.ssh().await;
    let server = place.publish("host", &issue(&ssh, &host(300), now()).await.unwrap());
    let sshd = Sshd::start(&server);
    let make = async |name: &str, start: u64, credential: CredentialConfig| {
        place.publish(name, &issue(&ssh, &credential, start).await.unwrap())
    };
    let good = make("good", now(), user(300, |_| ())).await;
    assert_eq!(told(sshd.ssh(&good, HOST).arg("echo hello")), "hello\n");

    let denied = |files: &Path| {
        let output = refused(sshd.ssh(files, HOST).arg("echo hello"));
        assert!(output.contains("Permission denied"), "{output}");
    };
    let other = make(
        "other",
        now(),
        user(300, |s| s.principals = vec!["deploy".into()]),
    )
    .await;
    denied(&other);
    denied(&make("old", now() - 301_000, user(300, |_| ())).await);
    let far = user(300, |s| s.source_address = vec!["203.0.113.0/24".into()]);
    denied(&make("far", now(), far).await);
    // A host's certificate is no user's, whatever its names.
    let mut as_user = settings(SshKind::Host, "root");
    as_user.principals.push("root.internal".into());
    denied(&make("as-user", now(), config(300, EngineConfig::Ssh(as_user))).await);
    let elsewhere = Place::new();
    let stranger = issue(&elsewhere.ssh().await, &user(300, |_| ()), now()).await;
    let stranger = elsewhere.publish("stranger", &stranger.unwrap());
    let unknown = refused(sshd.ssh(&stranger, HOST).arg("echo hello"));
    assert!(
        unknown.contains("Host key verification failed"),
        "{unknown}"
    );
    std::fs::remove_file(stranger.join("known_hosts")).unwrap();
    std::fs::copy(good.join("known_hosts"), stranger.join("known_hosts")).unwrap();
    denied(&stranger);

    let forced = make(
        "forced",
        now(),
        user(300, |s| s.force_command = Some("echo forced".into())),
    );
    assert_eq!(
        told(sshd.ssh(&forced.await, HOST).arg("echo hello")),
        "forced\n"
    );
    let tty = |files: &Path| {
        let mut ssh = sshd.ssh(files, HOST);
        run(ssh
            .args(["-tt", "test -t 0 && echo terminal"])
            .stdin(Stdio::null()))
    };
    assert!(!String::from_utf8_lossy(&tty(&good).stdout).contains("terminal"));
    let pty = make(
        "pty",
        now(),
        user(300, |s| s.extensions = vec![SshExtension::Pty]),
    )
    .await;
    assert!(String::from_utf8_lossy(&tty(&pty).stdout).contains("terminal"));

    // The client checks the host as well: its name, and its time.
    let wrong = refused(sshd.ssh(&good, "web.shop.internal").arg("echo hello"));
    assert!(wrong.contains("Host key verification failed"), "{wrong}");
    let expired = issue(&ssh, &host(300), now() - 301_000).await.unwrap();
    let elsewhere = Place::new();
    let late = Sshd::start(&elsewhere.publish("late", &expired));
    let late = refused(late.ssh(&good, HOST).arg("echo hello"));
    assert!(late.contains("expired"), "{late}");
    assert!(late.contains("Host key verification failed"), "{late}");

    let log = text(&sshd.log);
    let workload = crate::harness::evidence("orders", 1).workload.id();
    let expected = format!("ID mayfly orders-id {workload} lease-0505");
    assert!(log.contains(&expected), "{log}");
    assert!(log.contains("Certificate invalid: expired"), "{log}");
}

#[tokio::test]
async fn keys_change_with_an_overlap_in_which_all_are_let_in() {
    let place = Place::new();
    let ssh = place.ssh().await;
    let begin = now() - 700_000;
    issue(&ssh, &user(600, |_| ()), begin).await.unwrap();
    let signs = certifier(&ssh).rotate(begin + 1).await.unwrap();
    assert_eq!(signs, begin + 600_001);
    let old = issue(&ssh, &user(600, |_| ()), signs - 1).await.unwrap();
    let old_host = issue(&ssh, &host(600), signs - 1).await.unwrap();
    let (old, old_host) = (
        place.publish("old", &old),
        place.publish("old-host", &old_host),
    );
    drop(ssh);

    let place = place.again();
    let ssh = place.ssh().await;
    let new = issue(&ssh, &user(600, |_| ()), signs).await.unwrap();
    let new_host = issue(&ssh, &host(600), signs).await.unwrap();
    let (new, new_host) = (
        place.publish("new", &new),
        place.publish("new-host", &new_host),
    );
    assert_eq!(text(&old_host.join("ca.pub")).lines().count(), 2);
    for host in [&old_host, &new_host] {
        let sshd = Sshd::start(host);
        for user in [&old, &new] {
            assert_eq!(told(sshd.ssh(user, HOST).arg("echo hello")), "hello\n");
        }
    }
    assert!(certifier(&ssh).maintain(signs + 600_000).await.unwrap());
    assert_eq!(published(&ssh, "ca.pub").lines().count(), 1);
    let last = issue(&ssh, &host(600), now()).await.unwrap();
    let sshd = Sshd::start(&place.publish("last", &last));
    assert_eq!(told(sshd.ssh(&new, HOST).arg("echo hello")), "hello\n");
    refused(sshd.ssh(&old, HOST).arg("echo hello"));
}

#[tokio::test]
async fn what_no_certificate_can_be_is_refused() {
    let place = Place::new();
    let ssh = place.ssh().await;
    let host_with = |change: fn(&mut SshSettings)| {
        let mut settings = settings(SshKind::Host, "a.internal");
        change(&mut settings);
        config(300, EngineConfig::Ssh(settings))
    };
    for (credential, found) in [
        (user(300, |s| s.principals.clear()), "found 0"),
        (
            user(300, |s| s.principals = vec!["a,b".into()]),
            "principal",
        ),
        (user(300, |s| s.principals = vec!["*".into()]), "principal"),
        (
            user(300, |s| s.force_command = Some("a\nb".into())),
            "force_command",
        ),
        (
            user(300, |s| s.source_address = vec!["10.0.0.0/33".into()]),
            "/33",
        ),
        (
            user(300, |s| s.source_address = vec!["10.1.2.3/8".into()]),
            "no bit set beyond",
        ),
        (
            user(300, |s| s.source_address = vec!["2001:db8::1/32".into()]),
            "no bit set beyond",
        ),
        (
            user(300, |s| s.source_address = vec!["10.0.0.1,::".into()]),
            "source_address",
        ),
        (
            host_with(|s| s.principals = vec!["*.internal".into()]),
            "DNS name",
        ),
        (
            host_with(|s| s.extensions = vec![SshExtension::Pty]),
            "for a host",
        ),
    ] {
        let problem = ssh.check(&credential).unwrap_err();
        assert!(problem.contains(found), "{problem}");
        assert!(issue(&ssh, &credential, now()).await.is_err());
    }
    assert_eq!(published(&ssh, "ca.pub"), "");
}
