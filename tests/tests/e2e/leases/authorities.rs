//! An operator has the authorities of `x509` and `ssh` rotated: nobody who verifies with what is published
//! notices, and in the end the next one signs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, BrokerOptions, TempDir, output, wait_until};

use crate::e2e::resilience::app::App;
use crate::e2e::resilience::certificates::{login, snapshot, sshd, start, talk, while_good};

/// By then everybody has certificates of the next authority: those that it must wait for live for
/// twelve seconds, and are renewed after two thirds of that.
const CHANGED: Duration = Duration::from_secs(60);
/// Longer than a push takes, and shorter than a renewal may.
const PUSHED: Duration = Duration::from_secs(7);

const SCHEDULES: &str = "[x509]\npublish_ahead_seconds = 1\n[ssh]\npublish_ahead_seconds = 1\n";

/// A directory with a verifier's own copies of what is published.
struct Verifier<'a> {
    broker: &'a Broker,
    dir: TempDir,
}

impl Verifier<'_> {
    /// Fetches all of it.
    fn fetch(&self) -> Result<()> {
        for (name, args) in [
            ("ca.crt", &["x509"][..]),
            ("ca.pub", &["ssh"]),
            ("known_hosts", &["ssh", "--file", "known_hosts"]),
        ] {
            let text = self.broker.cli(&[&["authority", "show"], args].concat())?;
            std::fs::write(self.dir.join(name), text + "\n")?;
        }
        Ok(())
    }

    fn count(&self, name: &str, what: &str) -> Result<usize> {
        Ok(std::fs::read_to_string(self.dir.join(name))?
            .matches(what)
            .count())
    }

    /// Has OpenSSL judge a certificate.
    fn verify(&self, files: &Path) -> Result<String> {
        let mut openssl = Command::new("openssl");
        openssl
            .arg("verify")
            .arg("-CAfile")
            .arg(self.dir.join("ca.crt"));
        openssl.arg("-untrusted").arg(files.join("tls.crt"));
        output(openssl.arg(files.join("tls.crt")))
    }

    /// Writes what an engine revoked, as the admin program prints it.
    fn fetch_list(&self, engine: &str) -> Result<PathBuf> {
        let to = self.dir.join(format!("{engine}.crl"));
        let mut mayfly = self.broker.mayfly()?;
        mayfly.args(["authority", "show", engine, "--file", "crl"]);
        let told = mayfly.stdout(File::create(&to)?).status()?;
        ensure!(told.success(), "no list of {engine}");
        Ok(to)
    }

    /// What a holder has now, once OpenSSL and OpenSSH take it by lists that were made before.
    fn lists_let_pass(&self, app: &App, files: &Path) -> Result<(PathBuf, PathBuf)> {
        wait_until(PUSHED, "lists without what is in use", || {
            let (crl, krl) = (self.fetch_list("x509")?, self.fetch_list("ssh")?);
            let (id, login) = (
                snapshot(app, "app-id", files)?,
                snapshot(app, "login", files)?,
            );
            let passes = self.by_list(&id, &crl).is_ok() && asked(&krl, &login).is_ok();
            Ok(passes.then_some((id, login)))
        })
    }

    /// Has OpenSSL judge a certificate by a list, whatever time it is.
    fn by_list(&self, files: &Path, crl: &Path) -> Result<String> {
        let mut openssl = Command::new("openssl");
        openssl.args(["verify", "-no_check_time", "-crl_check_all", "-CRLfile"]);
        openssl.arg(crl).arg("-CAfile").arg(self.dir.join("ca.crt"));
        openssl.arg("-untrusted").arg(files.join("tls.crt"));
        output(openssl.arg(files.join("tls.crt")))
    }

    /// Has a client and a server that trust these copies alone talk with the certificates of a holder.
    fn trusts(&self, app: &App, files: &Path) -> Result<()> {
        while_good(|| self.trusts_now(app, files))
    }

    fn trusts_now(&self, app: &App, files: &Path) -> Result<()> {
        let (id, user) = (
            snapshot(app, "app-id", files)?,
            snapshot(app, "login", files)?,
        );
        let host = snapshot(app, "host-id", files)?;
        for (to, name) in [(&id, "ca.crt"), (&host, "ca.pub"), (&user, "known_hosts")] {
            std::fs::remove_file(to.join(name))?;
            std::fs::copy(self.dir.join(name), to.join(name))?;
        }
        talk(&id, &id).context("TLS")?;
        let (_sshd, port) = sshd(&host)?;
        let said = login(port, &user).context("ssh")?;
        ensure!(said == "hello", "{said}");
        Ok(())
    }
}

/// Asks OpenSSH whether a certificate is on no list.
fn asked(krl: &Path, files: &Path) -> Result<String> {
    let mut keygen = Command::new("ssh-keygen");
    keygen.arg("-Q").arg("-f").arg(krl);
    output(keygen.arg(files.join("id_ed25519-cert.pub")))
}

/// Who signed a holder's ssh certificate, as `ssh-keygen` tells it.
fn signed_by(files: &Path) -> Result<String> {
    let mut keygen = Command::new("ssh-keygen");
    let shown = output(keygen.arg("-Lf").arg(files.join("id_ed25519-cert.pub")))?;
    let line = shown.lines().find(|line| line.contains("Signing CA"));
    let line = line.context("nobody signed it")?;
    let word = line.split(' ').find(|word| word.starts_with("SHA256:"));
    Ok(word.context("no fingerprint")?.to_owned())
}

#[test]
fn authorities_are_rotated_and_nobody_who_verifies_notices() -> Result<()> {
    let options = BrokerOptions {
        broker: SCHEDULES.to_owned(),
        ..BrokerOptions::default()
    };
    let (broker, app) = start(options)?;
    let files = TempDir::new()?;
    let verifier = Verifier {
        broker: &broker,
        dir: TempDir::new()?,
    };
    let before = Verifier {
        broker: &broker,
        dir: TempDir::new()?,
    };
    verifier.fetch()?;
    before.fetch()?;
    ensure!(verifier.count("ca.crt", "BEGIN")? == 1);
    verifier.trusts(&app, files.path())?;

    for engine in ["x509", "ssh"] {
        let told = broker.cli(&["authority", "rotate", engine])?;
        ensure!(told.contains("is published, and signs in"), "{told}");
        // Once more makes no third.
        broker.cli(&["authority", "rotate", engine])?;
    }
    let begun = Instant::now();
    wait_until(PUSHED, "both roots in the files of a holder", || {
        let roots = app.secret("app-id/ca.crt")?;
        let lines = app.secret("host-id/ca.pub")?;
        let roots = String::from_utf8(roots)?.matches("BEGIN").count();
        Ok((roots == 2 && String::from_utf8(lines)?.lines().count() == 2).then_some(()))
    })?;
    say!("pushed after {:?}", begun.elapsed());
    verifier.fetch()?;
    for (name, what, count) in [
        ("ca.crt", "BEGIN", 2),
        ("ca.pub", "ssh-ed25519", 2),
        ("known_hosts", "@cert-authority", 2),
    ] {
        ensure!(verifier.count(name, what)? == count, "{name}");
    }
    let all = broker.cli_json(&["authority", "list"])?;
    let next = |engine: &str| -> Result<String> {
        let all = all.as_array().context("no list")?;
        let info = all.iter().find(|info| info["engine"] == engine);
        let published = &info.context("no such engine")?["published"];
        ensure!(
            published[0]["state"] == "signing" && published[1]["state"] == "next",
            "{published}"
        );
        let print = published[1]["fingerprints"][0]
            .as_str()
            .context("no fingerprint")?;
        Ok(print.split(' ').next().unwrap_or_default().to_owned())
    };
    let (next_key, next_root) = (next("ssh")?, next("x509")?);
    let mut told = Command::new("openssl");
    let roots = std::fs::read_to_string(verifier.dir.join("ca.crt"))?;
    let last = roots.rfind("-----BEGIN").context("no root")?;
    std::fs::write(files.join("last.crt"), &roots[last..])?;
    told.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]);
    let told = output(told.arg(files.join("last.crt")))?;
    ensure!(told.ends_with(&next_root), "{told} is not {next_root}");

    // All the while, who trusts what is published gets through.
    let (mut rounds, mut changed) = (0, (false, false));
    while changed != (true, true) {
        ensure!(
            begun.elapsed() < CHANGED,
            "{changed:?} after {rounds} rounds"
        );
        verifier
            .trusts(&app, files.path())
            .with_context(|| format!("round {rounds}"))?;
        let id = while_good(|| {
            let id = snapshot(&app, "app-id", files.path())?;
            verifier.verify(&id)?;
            Ok(id)
        })?;
        changed.0 = before.verify(&id).is_err();
        changed.1 = signed_by(&snapshot(&app, "login", files.path())?)? == next_key;
        rounds += 1;
    }
    verifier.trusts(&app, files.path())?;
    say!("{rounds} rounds, {:?}", begun.elapsed());
    ensure!(rounds > 1, "only {rounds} rounds");

    // What an operator takes back is on the lists before it expires.
    verifier.fetch()?;
    let (id, login) = verifier.lists_let_pass(&app, files.path())?;
    for credential in ["app-id", "login"] {
        broker.cli(&["revoke", "--credential", credential])?;
    }
    let told = verifier.by_list(&id, &verifier.fetch_list("x509")?);
    ensure!(
        format!("{told:?}").contains("certificate revoked"),
        "{told:?}"
    );
    let told = asked(&verifier.fetch_list("ssh")?, &login);
    ensure!(told.is_err(), "{told:?}");

    let record = broker.cli(&["audit", "tail", "-n", "1000"])?;
    ensure!(record.contains("authority.rotate"), "{record}");
    let refused = broker.cli(&["authority", "rotate", "kv"]);
    ensure!(refused.is_err(), "kv has no authority");
    broker.cli(&["audit", "verify"]).map(drop)
}
