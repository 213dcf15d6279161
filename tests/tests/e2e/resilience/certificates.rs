//! Others take our certificates: OpenSSL and OpenSSH, with the files that a container gets, through
//! renewals and to their end.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{
    Broker, BrokerOptions, Guard, Realm, TempDir, free_port, log_path, output, wait_until,
};
use nix::sys::signal::Signal;

use super::app::{self, App};

/// Takes the server's files, the client's, and the name that the client expects.
const TALK: &str = include_str!("../../../../broker/tests/broker/talk.py");
const TTL: Duration = Duration::from_secs(12);
/// For so long a certificate is good that was just copied: it is renewed after two thirds of its life.
const GOOD: Duration = Duration::from_secs(3);

const CERTIFICATES: &str = r#"
[credential.app-id]
engine = "x509"
spiffe_id = "spiffe://e2e.internal/{credential}"
dns_names = ["app.e2e.internal"]
ttl = "12s"
[credential.own-id]
engine = "x509"
dns_names = ["own.e2e.internal"]
key = "workload"
ttl = "1m"
[credential.host-id]
engine = "ssh"
kind = "host"
principals = ["ssh.e2e.internal"]
ttl = "12s"
[credential.login]
engine = "ssh"
kind = "user"
principals = ["root"]
extensions = ["permit-pty"]
ttl = "12s"
"#;

/// A broker that issues them, and a container that has them.
pub fn start(options: BrokerOptions) -> Result<(Broker, App)> {
    let broker = Broker::start(Realm::host(), options)?;
    broker.apply(&[("credentials.toml", CERTIFICATES), ("all.cedar", app::ALL)])?;
    let app = App::start(&broker.workload_dir(), "")?;
    Ok((broker, app))
}

/// The files of one credential, of one generation, copied to `to`.
pub fn snapshot(app: &App, name: &str, to: &Path) -> Result<PathBuf> {
    let to = to.join(format!("{name}-{}", mayfly_tests::harness::random_text(6)?));
    std::fs::create_dir(&to)?;
    // A generation may be replaced, and gone, while it is read.
    wait_until(app::SOON, "one whole generation", || {
        let secrets = app.path("run/secrets");
        let from = secrets.join(std::fs::read_link(secrets.join("..data"))?);
        for entry in std::fs::read_dir(from.join(name))? {
            let entry = entry?;
            let copy = to.join(entry.file_name());
            let _ = std::fs::remove_file(&copy);
            std::fs::copy(entry.path(), copy)?;
        }
        Ok(Some(to.clone()))
    })
}

/// Tries what takes certificates that are good, and what it copied of them: again if it was kept from running
/// for longer than they surely are.
pub fn while_good<T>(attempt: impl Fn() -> Result<T>) -> Result<T> {
    for _ in 0..5 {
        let begun = Instant::now();
        let done = attempt();
        if done.is_ok() || begun.elapsed() < GOOD {
            return done;
        }
    }
    attempt()
}

pub fn talk(server: &Path, client: &Path) -> Result<String> {
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", TALK]).arg(server).arg(client);
    output(python.arg("app.e2e.internal"))
}

#[test]
fn openssl_takes_certificates_through_renewals_and_not_after_they_expire() -> Result<()> {
    let (broker, mut app) = start(BrokerOptions::default())?;
    let inside = app.tell(
        "cd /run/secrets/app-id && openssl verify -CAfile ca.crt -untrusted tls.crt tls.crt && \
         openssl x509 -in tls.crt -noout -checkhost app.e2e.internal && stat -L -c %a tls.key",
    )?;
    ensure!(inside.contains("tls.crt: OK"), "{inside}");
    ensure!(inside.contains("does match certificate"), "{inside}");
    ensure!(inside.ends_with("400\n"), "{inside}");

    let files = TempDir::new()?;
    let first = snapshot(&app, "app-id", files.path())?;
    let begin = Instant::now();
    let (mut connections, mut seen) = (0, std::collections::BTreeSet::new());
    while begin.elapsed() < TTL + Duration::from_secs(2) {
        let copied = while_good(|| {
            let now = snapshot(&app, "app-id", files.path())?;
            Ok((talk(&now, &now)?, now))
        });
        let (told, now) = copied.with_context(|| format!("connection {connections}"))?;
        ensure!(
            told.matches("spiffe://e2e.internal/app-id").count() == 2,
            "{told}"
        );
        seen.insert(std::fs::read(now.join("tls.crt"))?);
        connections += 1;
    }
    ensure!(
        seen.len() >= 2 && connections > 5,
        "{connections}: {}",
        seen.len()
    );
    let now = snapshot(&app, "app-id", files.path())?;
    for (server, client) in [(&first, &now), (&now, &first)] {
        let late = talk(server, client)
            .err()
            .context("an expired one passes")?;
        ensure!(format!("{late:#}").contains("expired"), "{late:#}");
    }

    app.end()?;
    wait_until(app::SOON, "the leases to end", || {
        Ok(app::leases(&broker)?.is_empty().then_some(()))
    })?;
    broker.cli(&["audit", "verify"]).map(drop)
}

#[test]
fn a_container_has_its_own_key_certified() -> Result<()> {
    let (_broker, app) = start(BrokerOptions::default())?;
    // Its key never leaves it. It can write nowhere: here-strings are pipes.
    let told = app.tell(
        "key=$(openssl genpkey -algorithm ed25519); \
         csr=$(openssl req -new -subj /CN=evil -config /proc/self/fd/3 -key /proc/self/fd/4 \
         3<<<$'[req]\\ndistinguished_name=dn\\n[dn]' 4<<<\"$key\"); \
         get() { curl -sS -f --unix-socket /run/mayfly/workload.sock --data-binary \"$csr\" \
         http://mayfly/v1/credentials/own-id/$1; }; crt=$(get tls.crt); ca=$(get ca.crt); \
         openssl verify -verify_hostname own.e2e.internal -CAfile /proc/self/fd/3 \
         -untrusted /proc/self/fd/4 /proc/self/fd/5 3<<<\"$ca\" 4<<<\"$crt\" 5<<<\"$crt\"; \
         openssl pkey -pubout <<<\"$key\"; openssl x509 -noout -pubkey -subject <<<\"$crt\"; \
         ls /run/secrets",
    )?;
    ensure!(told.contains("/proc/self/fd/5: OK"), "{told}");
    let key = told.split("-----BEGIN PUBLIC KEY-----").collect::<Vec<_>>();
    let [_, own, certified] = key[..] else {
        anyhow::bail!("{told}")
    };
    ensure!(certified.starts_with(own), "{told}");
    ensure!(!told.contains("evil") && !told.contains("own-id"), "{told}");
    let refused = app.tell(
        "curl -sS -o /dev/null -w '%{http_code}' --unix-socket /run/mayfly/workload.sock \
         --data-binary @/etc/passwd http://mayfly/v1/credentials/own-id",
    )?;
    ensure!(refused == "400", "{refused}");
    Ok(())
}

/// A server with these files; gives its port.
pub fn sshd(files: &Path) -> Result<(Guard, u16)> {
    std::fs::create_dir_all("/run/sshd")?;
    let (port, here) = (free_port()?, files.display());
    let config = files.join("sshd.conf");
    std::fs::write(
        &config,
        format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {here}/id_ed25519\n\
             HostCertificate {here}/id_ed25519-cert.pub\nTrustedUserCAKeys {here}/ca.pub\n\
             AuthorizedKeysFile none\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n"
        ),
    )?;
    let mut command = Command::new("/usr/sbin/sshd");
    command.arg("-D").arg("-e").arg("-f").arg(config);
    let log = log_path(&format!("sshd-{port}"))?;
    let sshd = Guard::spawn(&command, &log, Signal::SIGTERM, 5)?;
    wait_until(app::SOON, "sshd to listen", || {
        Ok(sshd.log().contains("Server listening").then_some(()))
    })?;
    Ok((sshd, port))
}

pub fn login(port: u16, files: &Path) -> Result<String> {
    let mut ssh = Command::new("ssh");
    for option in [
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "StrictHostKeyChecking=yes",
        "GlobalKnownHostsFile=/dev/null",
        "HostKeyAlias=ssh.e2e.internal",
        &format!("UserKnownHostsFile={}/known_hosts", files.display()),
    ] {
        ssh.args(["-o", option]);
    }
    ssh.args(["-F", "none", "-p", &port.to_string(), "-i"]);
    ssh.arg(files.join("id_ed25519"));
    output(ssh.args(["root@127.0.0.1", "echo hello"]))
}

#[test]
fn openssh_takes_certificates_through_renewals_and_not_after_they_expire() -> Result<()> {
    let (_broker, app) = start(BrokerOptions::default())?;
    let shown = app.tell("ssh-keygen -L -f /run/secrets/login/id_ed25519-cert.pub")?;
    ensure!(shown.contains("user certificate"), "{shown}");
    ensure!(shown.contains("Key ID: \"mayfly login "), "{shown}");

    let files = TempDir::new()?;
    let take = |name: &str| snapshot(&app, name, files.path());
    let (first, (_sshd, port)) = while_good(|| {
        let (user, host) = (take("login")?, take("host-id")?);
        let (sshd, port) = sshd(&host)?;
        ensure!(login(port, &user)? == "hello");
        Ok((user, (sshd, port)))
    })?;

    let certificate = |files: &Path| std::fs::read(files.join("id_ed25519-cert.pub"));
    let before = certificate(&first)?;
    std::thread::sleep(TTL);
    let next = take("login")?;
    ensure!(certificate(&next)? != before, "it was not renewed");
    let late = login(port, &next).err().context("an expired host passes")?;
    ensure!(
        format!("{late:#}").contains("Host key verification failed"),
        "{late:#}"
    );
    while_good(|| {
        let (next, host) = (take("login")?, take("host-id")?);
        let (_sshd, port) = sshd(&host)?;
        ensure!(login(port, &next)? == "hello");
        let late = login(port, &first)
            .err()
            .context("an expired user passes")?;
        ensure!(
            format!("{late:#}").contains("Permission denied"),
            "{late:#}"
        );
        Ok(())
    })
}
