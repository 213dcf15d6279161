//! Others verify our tokens: PyJWT, with the keys that it fetches over HTTPS.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::harness::{Broker, BrokerOptions, Realm, output, wait_until};

use super::app::{self, App};

/// Takes CA file, issuer and token; prints the key's id, the algorithm and the subject.
const VERIFY: &str = r#"
import ssl, sys, json, urllib.request, jwt
ca, issuer, token = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
get = lambda url: json.load(urllib.request.urlopen(url, context=context, timeout=10))
found = get(issuer + "/.well-known/openid-configuration")
assert found["issuer"] == issuer, found
keys = jwt.PyJWKSet.from_dict(get(found["jwks_uri"]))
kid = jwt.get_unverified_header(token)["kid"]
key = next(key for key in keys.keys if key.key_id == kid)
claims = jwt.decode(token, key.key, algorithms=["EdDSA", "ES256"], audience="https://api.example",
    issuer=issuer, options={"require": ["exp", "iat", "nbf", "sub", "jti"]})
print(kid, jwt.get_unverified_header(token)["alg"], claims["sub"])
"#;

fn verify(broker: &Broker, token: &[u8]) -> Result<String> {
    let issuer = broker
        .oidc_address()
        .replace("127.0.0.1", "https://localhost");
    let mut python = Command::new("/usr/bin/python3");
    python
        .args(["-c", VERIFY])
        .arg(broker.state_dir().join("ca.pem"));
    output(python.arg(issuer).arg(std::str::from_utf8(token)?))
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
    for (name, algorithm) in [("token-ed", "EdDSA"), ("token-es", "ES256")] {
        let first = app.secret(name)?;
        let told = verify(&broker, &first)?;
        ensure!(told.contains(algorithm), "{told}");
        let kid = told.split(' ').next().context("no key id")?.to_owned();

        // One bit of the signature, or of what is signed.
        for at in [first.len() - 8, first.len() / 2] {
            let mut bad = first.clone();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            ensure!(
                verify(&broker, &bad).is_err(),
                "a forged {name} passes: byte {at}"
            );
        }
        // Renewed at two thirds of its life; by then another key signs.
        let renewed = wait_until(Duration::from_secs(40), "a token under another key", || {
            let token = app.secret(name)?;
            let told = verify(&broker, &token)?;
            Ok((!told.starts_with(&kid)).then_some(token))
        })?;
        ensure!(renewed != first);
        // Its key may be gone by now; that, or its age, is why it does not pass.
        wait_until(
            Duration::from_secs(14),
            "an old token to be refused",
            || Ok(verify(&broker, &first).is_err().then_some(())),
        )?;
        ensure!(verify(&broker, &app.secret(name)?)?.contains(algorithm));
    }
    broker.cli(&["audit", "verify"]).map(drop)
}
