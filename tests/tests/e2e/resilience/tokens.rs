//! Others verify our tokens: PyJWT, with the keys that it fetches over HTTPS.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use mayfly_tests::harness::{Broker, BrokerOptions, Realm, TempDir, output, wait_until};

use super::app::{self, App};

/// Takes CA file, issuer, token, and a file of keys seen before, which it adds to; prints the key's id, the
/// algorithm and the subject. With the keys of before, a token is judged by its age alone.
const VERIFY: &str = r#"
import os, ssl, sys, json, urllib.request, jwt
ca, issuer, token, seen = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
get = lambda url: json.load(urllib.request.urlopen(url, context=context, timeout=10))
found = get(issuer + "/.well-known/openid-configuration")
assert found["issuer"] == issuer, found
known = get(found["jwks_uri"])["keys"]
if os.path.exists(seen): known += json.load(open(seen))
json.dump(known, open(seen, "w"))
keys = jwt.PyJWKSet.from_dict({"keys": known})
kid = jwt.get_unverified_header(token)["kid"]
key = next(key for key in keys.keys if key.key_id == kid)
claims = jwt.decode(token, key.key, algorithms=["EdDSA", "ES256"], audience="https://api.example",
    issuer=issuer, options={"require": ["exp", "iat", "nbf", "sub", "jti"]})
print(kid, jwt.get_unverified_header(token)["alg"], claims["sub"])
"#;

/// Somebody who accepts tokens.
struct Verifier<'a> {
    broker: &'a Broker,
    dir: TempDir,
}

impl Verifier<'_> {
    fn verify(&self, token: &[u8]) -> Result<String> {
        let issuer = self.broker.oidc_address();
        let mut python = Command::new("/usr/bin/python3");
        python
            .args(["-c", VERIFY])
            .arg(self.broker.state_dir().join("ca.pem"))
            .arg(issuer.replace("127.0.0.1", "https://localhost"))
            .arg(std::str::from_utf8(token)?);
        output(python.arg(self.dir.join("seen")))
    }

    /// Why a token is refused.
    fn refuses(&self, token: &[u8]) -> Result<String> {
        let refused = self.verify(token).err().context("it is accepted")?;
        Ok(format!("{refused:#}"))
    }
}

#[test]
fn pyjwt_verifies_tokens_before_and_after_the_keys_rotate_and_not_after_they_expire() -> Result<()>
{
    let broker = Broker::start(
        Realm::host(),
        BrokerOptions {
            oidc: "rotate_seconds = 6\npublish_ahead_seconds = 3\n".to_owned(),
            ..BrokerOptions::default()
        },
    )?;
    let tokens = app::TOKENS.replace("10m", "12s");
    broker.apply(&[("credentials.toml", &tokens), ("all.cedar", app::ALL)])?;
    let app = App::start(&broker.workload_dir(), "")?;
    // Nearly all of it is waiting.
    std::thread::scope(|scope| {
        let other = scope.spawn(|| through(&broker, &app, "token-es", "ES256"));
        through(&broker, &app, "token-ed", "EdDSA")?;
        let other = other.join();
        other.map_err(|_| anyhow!("the other one panicked"))?
    })?;
    broker.cli(&["audit", "verify"]).map(drop)
}

fn through(broker: &Broker, app: &App, name: &str, algorithm: &str) -> Result<()> {
    let dir = TempDir::new()?;
    let verifier = Verifier { broker, dir };
    let first = app.secret(name)?;
    let told = verifier.verify(&first)?;
    ensure!(told.contains(algorithm), "{told}");
    let kid = told.split(' ').next().context("no key id")?.to_owned();

    // One bit of the signature, or of what is signed.
    for at in [first.len() - 8, first.len() / 2] {
        let mut bad = first.clone();
        bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
        let why = verifier.refuses(&bad)?;
        ensure!(why.contains("InvalidSignatureError"), "byte {at}: {why}");
    }
    // Renewed at two thirds of its life; by then another key signs.
    let renewed = wait_until(Duration::from_secs(40), "a token under another key", || {
        let token = app.secret(name)?;
        let told = verifier.verify(&token)?;
        Ok((!told.starts_with(&kid)).then_some(token))
    })?;
    ensure!(renewed != first);
    wait_until(
        Duration::from_secs(40),
        "an old token to be refused",
        || {
            let why = verifier.refuses(&first)?;
            ensure!(why.contains("ExpiredSignatureError"), "{why}");
            Ok(Some(()))
        },
    )?;
    // One that is about to be renewed may expire while it is looked at.
    wait_until(app::SOON, "a token that is good", || {
        let told = verifier.verify(&app.secret(name)?)?;
        Ok(told.contains(algorithm).then_some(()))
    })
}
