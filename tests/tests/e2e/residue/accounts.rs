//! What the broker makes by itself: passwords of accounts at a database, and private keys. And the password
//! of its own account there, with which it logs in.

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mayfly_tests::harness::{Broker, BrokerOptions, PostgresServer, Realm, wait_until};

use super::super::resilience::app::{ALL, App, SOON};
use super::search::Search;

/// Each file that holds a secret, and whether that is a private key.
const FILES: [(&str, bool); 4] = [
    ("role-of-its-own-db/password", false),
    ("users-in-turns-db/password", false),
    ("leaf-certificate/tls.key", true),
    ("login-certificate/id_ed25519", true),
];

fn config(server: &PostgresServer) -> String {
    format!(
        r#"
[connection.shop]
engine = "postgres"
host = "127.0.0.1"
port = {}
username = "postgres"
tls = "off"
[credential.role-of-its-own-db]
engine = "postgres"
connection = "shop"
ttl = "5m"
create = ["CREATE ROLE {{{{name}}}} LOGIN PASSWORD {{{{password}}}} VALID UNTIL {{{{expiration}}}}"]
[credential.users-in-turns-db]
engine = "postgres"
connection = "shop"
ttl = "5m"
static = ["turn_a", "turn_b"]
[credential.leaf-certificate]
engine = "x509"
dns_names = ["leaf.e2e.internal"]
ttl = "5m"
[credential.login-certificate]
engine = "ssh"
kind = "user"
principals = ["root"]
ttl = "5m"
"#,
        server.port()
    )
}

/// The 32 bytes of a private key that nobody else may have: the first octet string of that length in PKCS#8
/// (RFC 5958, RFC 5915), or the first half of what OpenSSH keeps (its PROTOCOL.key).
fn private_part(pem: &[u8]) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(pem)?;
    let lines = text.lines().filter(|line| !line.starts_with('-'));
    let bytes = STANDARD.decode(lines.collect::<String>())?;
    let before: &[u8] = match text.contains("OPENSSH") {
        true => &[0, 0, 0, 64],
        false => &[0x04, 0x20],
    };
    let at = bytes.windows(before.len()).position(|part| part == before);
    let from = at.context("no private key")? + before.len();
    let part = bytes.get(from..from + 32).context("it is cut")?;
    Ok(part.to_vec())
}

/// Adds what stands in an application's files now, and gives it.
fn add(search: &mut Search, app: &App) -> Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for (file, is_key) in FILES {
        let secret = app.secret(file)?;
        if is_key {
            let key = private_part(&secret)?;
            // Wherever it begins among groups of three, which become four letters.
            for from in 0..3 {
                search.add(file, &key[from..from + 30]);
            }
        } else {
            search.add(file, &secret);
        }
        found.push(secret);
    }
    Ok(found)
}

#[test]
fn no_password_and_no_key_that_the_broker_made_lingers() -> Result<()> {
    let server = PostgresServer::start(&["fsync=off", "log_statement=all"])?;
    server.psql("CREATE ROLE turn_a LOGIN; CREATE ROLE turn_b LOGIN")?;
    let broker = Broker::start(Realm::host(), BrokerOptions::default())?;
    broker.apply(&[("all.toml", &config(&server)), ("all.cedar", ALL)])?;
    broker.cli_with_input(&["connection", "set", "shop"], PostgresServer::PASSWORD)?;
    let app = App::start(&broker.workload_dir(), "")?;
    let mut search = Search::of(&[]);
    search.add("the root password", PostgresServer::PASSWORD.as_bytes());
    let everywhere = |search: &Search, step: &str| {
        let look = || -> Result<()> {
            search.process("broker", broker.pid()?, "role-of-its-own-db")?;
            search.process("sidecar", app.sidecar()?, "/run/mayfly/workload.sock")?;
            search.process("shim", app.bare().pid(), "/mf/mayfly-shim\0run")?;
            search.log("the server", &server.log()?)?;
            search.log("the container", &app.bare().logs())?;
            search.state(&broker)
        };
        // A sidecar shows a file before it lets go of what it wrote there.
        let clean = wait_until(SOON, "nothing to linger", || look().map(Some));
        clean.with_context(|| step.to_owned())
    };
    let first = wait_until(SOON, "the first of each", || {
        add(&mut search, &app).map(Some)
    })?;
    everywhere(&search, "after publishing")?;

    broker.cli(&["rotate", "--all"])?;
    for ((file, _), old) in FILES.iter().zip(&first) {
        wait_until(SOON, &format!("another {file}"), || {
            Ok((app.secret(file)? != *old).then_some(()))
        })?;
    }
    add(&mut search, &app)?;
    everywhere(&search, "after a rotation")?;

    // The search does find them in a process that holds them.
    app.tell("held=$(cat /run/secrets/*/password)")?;
    let shell = app.pids("bash")?.pop().context("no shell")?;
    let found = search
        .process("shell", shell, "while :; do read -r line")
        .err();
    let found = found.context("the search finds nothing")?.to_string();
    ensure!(found.contains("holds secrets"), "{found}");
    Ok(())
}
