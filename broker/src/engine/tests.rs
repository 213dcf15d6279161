//! The engines over a real store.

use super::jwt::{Jwt, Schedule};
use super::kv::{Kv, MAX_FIELDS};
use super::*;
use crate::clock::Fixed;
use crate::store::{LeaseState, Op, SqliteStore, Store};
use crate::testing::{TempDir, evidence};
use crate::unseal::KeyFile;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{DecodingKey, TokenData, Validation};
use mayfly_wire::admin::JwtAlgorithm;
use mayfly_wire::session::MAX_VALUE;
use mayfly_wire::{CredentialName, KvPath};
use serde_json::Value;

const NOW: u64 = 1_800_000_000_000;
const DAY: u64 = 24 * 60 * 60 * 1000;

struct Place {
    store: Arc<SqliteStore>,
    clock: Arc<Fixed>,
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self::over(TempDir::new())
    }

    fn over(dir: TempDir) -> Self {
        let key = KeyFile::new(dir.path().join("root.key"));
        let store = SqliteStore::open(&dir.path().join("state"), &key).unwrap();
        Self {
            store: Arc::new(store),
            clock: Arc::new(Fixed(NOW.into())),
            dir,
        }
    }

    fn again(self) -> Self {
        let dir = self.dir;
        drop(self.store);
        Self::over(dir)
    }

    fn kv(&self) -> Arc<Kv> {
        let keys = self.store.keys();
        Arc::new(Kv::new(self.store.clone(), keys, self.clock.clone()))
    }

    async fn jwt(&self, now: u64) -> Jwt {
        let issuer = "https://broker.example:8443".to_owned();
        let keys = self.store.keys();
        let jwt = Jwt::open(self.store.clone(), keys, issuer, Schedule::default(), now);
        jwt.await.unwrap()
    }
}

fn path() -> KvPath {
    "orders/db".parse().unwrap()
}

fn fields(pairs: &[(&str, &str)]) -> BTreeMap<FieldName, Secret> {
    let field =
        |(name, value): &(&str, &str)| (name.parse().unwrap(), Secret::from((*value).to_owned()));
    pairs.iter().map(field).collect()
}

fn shown(fields: &BTreeMap<FieldName, Secret>) -> Vec<(String, String)> {
    let field = |(name, value): (&FieldName, &Secret)| {
        let value = String::from_utf8(value.expose().to_vec()).unwrap();
        (name.to_string(), value)
    };
    fields.iter().map(field).collect()
}

fn config(engine: EngineConfig) -> CredentialConfig {
    CredentialConfig {
        name: "orders-db".parse().unwrap(),
        ttl_seconds: 300,
        max_ttl_seconds: None,
        grace_seconds: None,
        engine,
    }
}

fn jwt_config(algorithm: JwtAlgorithm) -> CredentialConfig {
    config(EngineConfig::Jwt {
        algorithm,
        audience: vec!["https://db.example".to_owned()],
        subject: "{compose.project}/{compose.service}".to_owned(),
        claims: BTreeMap::from([("team".to_owned(), "{label.team}".to_owned())]),
    })
}

fn lease_for(credential: &CredentialConfig, issued: &Issued) -> Lease {
    let evidence = evidence(1);
    Lease {
        id: LeaseId::from_random([5; 16]),
        workload: evidence.workload.clone(),
        credential: credential.name.clone(),
        engine: credential.engine.kind(),
        node: evidence.node.clone(),
        name: evidence.display_name(),
        state: LeaseState::Active,
        issued_at: NOW,
        expires_at: issued.expires_at,
        due_at: issued.expires_at,
        reason: String::new(),
        attempts: 0,
        problem: String::new(),
        source: issued.source.clone(),
    }
}

async fn issue(
    engine: &dyn Engine,
    credential: &CredentialConfig,
    now: u64,
) -> Result<Issued, EngineError> {
    let (evidence, lease) = (evidence(1), LeaseId::from_random([5; 16]));
    let request = IssueRequest {
        credential,
        evidence: &evidence,
        lease: &lease,
        now,
    };
    engine.issue(request).await
}

#[tokio::test]
async fn values_have_versions_and_deletion_marks() {
    let place = Place::new();
    let kv = place.kv();
    let mut changes = kv.changes();
    assert!(matches!(
        kv.get(&path(), None).await,
        Err(EngineError::NotFound(_))
    ));
    assert!(matches!(
        kv.delete(&path()).await,
        Err(EngineError::NotFound(_))
    ));
    let one = fields(&[("username", "app"), ("password", "one")]);
    let made = kv.put(&path(), one, Some(0)).await.unwrap();
    assert_eq!(
        (made.version, made.deleted, made.created_at),
        (1, false, NOW)
    );
    assert_eq!(made.fields.len(), 2);
    let two = || fields(&[("value", "two\0\n")]);
    for wrong in [0, 2] {
        let refused = kv.put(&path(), two(), Some(wrong)).await.err().unwrap();
        assert_eq!(refused.code(), Code::Conflict);
    }
    kv.put(&path(), two(), Some(1)).await.unwrap();
    assert_eq!(kv.delete(&path()).await.unwrap().version, 3);
    assert!(matches!(
        kv.delete(&path()).await,
        Err(EngineError::NotFound(_))
    ));
    assert!(kv.get(&path(), None).await.is_err());
    assert!(kv.get(&path(), Some(3)).await.is_err());
    let old = kv.get(&path(), Some(1)).await.unwrap();
    let expected = [("password", "one"), ("username", "app")];
    assert_eq!(
        shown(&old.fields),
        expected.map(|(n, v)| (n.into(), v.into()))
    );
    // After a deletion mark there is none, as for a new path.
    kv.put(&path(), two(), Some(0)).await.unwrap();
    let current = kv.get(&path(), None).await.unwrap();
    assert_eq!(current.version, 4);
    assert_eq!(shown(&current.fields), [("value".into(), "two\0\n".into())]);
    let history = kv.history(&path()).await.unwrap();
    let seen: Vec<_> = history.iter().map(|v| (v.version, v.deleted)).collect();
    assert_eq!(seen, [(1, false), (2, false), (3, true), (4, false)]);
    assert_eq!(kv.list().await.unwrap()[0].version, 4);
    for version in 1..=4 {
        let change = changes.recv().await.unwrap();
        assert_eq!((change.version, change.deleted), (version, version == 3));
    }
    drop(kv);
    let again = place.again();
    assert_eq!(again.kv().get(&path(), None).await.unwrap().version, 4);
}

#[tokio::test]
async fn values_beyond_a_limit_are_refused() {
    let place = Place::new();
    let kv = place.kv();
    let big = "x".repeat(MAX_VALUE);
    let bigger = format!("{big}x");
    let names: Vec<String> = (0..=MAX_FIELDS).map(|n| format!("f{n}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    let all: Vec<_> = names[..9]
        .iter()
        .map(|name| (name.as_str(), big.as_str()))
        .collect();
    for refused in [
        fields(&[]),
        fields(&many),
        fields(&[("a", &bigger)]),
        fields(&all),
    ] {
        let refused = kv.put(&path(), refused, None).await.err().unwrap();
        assert_eq!(refused.code(), Code::BadRequest);
    }
    kv.put(&path(), fields(&[("a", &big)]), None).await.unwrap();
    assert_eq!(
        kv.get(&path(), None).await.unwrap().fields[&"a".parse().unwrap()].len(),
        MAX_VALUE
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_at_the_same_time_each_make_a_version() {
    let place = Place::new();
    let kv = place.kv();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let kv = kv.clone();
            tokio::spawn(async move { kv.put(&path(), fields(&[("value", "x")]), None).await })
        })
        .collect();
    let mut versions = Vec::new();
    for task in tasks {
        versions.push(task.await.unwrap().unwrap().version);
    }
    versions.sort_unstable();
    assert_eq!(versions, (1..=8).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_kv_credential_is_the_current_version() {
    let place = Place::new();
    let kv = place.kv();
    let credential = config(EngineConfig::Kv { path: path() });
    kv.check(&credential).unwrap();
    let none = issue(kv.as_ref(), &credential, NOW).await.err().unwrap();
    assert_eq!(none.code(), Code::NotFound);
    kv.put(&path(), fields(&[("value", "v1")]), None)
        .await
        .unwrap();
    let issued = issue(kv.as_ref(), &credential, NOW).await.unwrap();
    assert_eq!(issued.layout, Layout::Value);
    assert_eq!(issued.expires_at, NOW + 300_000);
    let lease = lease_for(&credential, &issued);
    kv.put(&path(), fields(&[("value", "v2"), ("user", "u")]), None)
        .await
        .unwrap();
    let again = kv.reissue(&credential, &lease).await.unwrap();
    assert_eq!(again.layout, Layout::Fields);
    assert_eq!(again.expires_at, lease.expires_at);
    assert_eq!(
        again.source,
        Source::Kv {
            path: path(),
            version: 2
        }
    );
    kv.revoke(&lease).await.unwrap();
    kv.delete(&path()).await.unwrap();
    assert!(kv.reissue(&credential, &lease).await.is_err());
    // One field of another name is a directory.
    kv.put(&path(), fields(&[("password", "v")]), None)
        .await
        .unwrap();
    let issued = issue(kv.as_ref(), &credential, NOW).await.unwrap();
    assert_eq!(issued.layout, Layout::Fields);
}

fn token_of(issued: &Issued) -> String {
    let value = &issued.fields[&"value".parse().unwrap()];
    String::from_utf8(value.expose().to_vec()).unwrap()
}

/// As somebody who has nothing but the key set.
fn verify(key_set: &str, token: &str) -> Result<TokenData<Value>, String> {
    let keys: JwkSet = serde_json::from_str(key_set).unwrap();
    let header = jsonwebtoken::decode_header(token).unwrap();
    let jwk = keys.find(header.kid.as_deref().unwrap());
    let jwk = jwk.ok_or("no such key")?;
    let thumbprint = jwk
        .thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256)
        .unwrap();
    assert_eq!(Some(&thumbprint), jwk.common.key_id.as_ref());
    let mut validation = Validation::new(header.alg);
    validation.set_audience(&["https://db.example"]);
    validation.set_issuer(&["https://broker.example:8443"]);
    // The clock of these tests stands still.
    validation.validate_exp = false;
    let key = DecodingKey::from_jwk(jwk).unwrap();
    jsonwebtoken::decode(token, &key, &validation).map_err(|error| error.to_string())
}

#[tokio::test]
async fn tokens_verify_against_the_key_set() {
    let place = Place::new();
    let jwt = place.jwt(NOW).await;
    for algorithm in [JwtAlgorithm::EdDsa, JwtAlgorithm::Es256] {
        let credential = jwt_config(algorithm);
        jwt.check(&credential).unwrap();
        let issued = issue(&jwt, &credential, NOW).await.unwrap();
        assert_eq!(issued.layout, Layout::Value);
        let token = token_of(&issued);
        let claims = verify(&jwt.key_set(), &token).unwrap().claims;
        let seconds = NOW / 1000;
        assert_eq!(
            claims,
            serde_json::json!({
                "iss": "https://broker.example:8443", "sub": "shop/orders",
                "aud": "https://db.example", "iat": seconds, "nbf": seconds,
                "exp": seconds + 300, "jti": LeaseId::from_random([5; 16]), "team": "payments",
            })
        );
        let (head, signature) = token.rsplit_once('.').unwrap();
        let other = if signature.starts_with('A') { "B" } else { "A" };
        let forged = format!("{head}.{other}{}", &signature[1..]);
        assert!(verify(&jwt.key_set(), &forged).is_err());

        // The lease holds the token sealed, and gives the very same again.
        let lease = lease_for(&credential, &issued);
        assert_eq!(
            token_of(&jwt.reissue(&credential, &lease).await.unwrap()),
            token
        );
        let mut extended = lease.clone();
        extended.expires_at += 1;
        assert!(jwt.reissue(&credential, &extended).await.is_err());
        let Source::Sealed(sealed) = &lease.source else {
            panic!("a token is held by its lease")
        };
        let needle = signature.as_bytes();
        assert!(!sealed.windows(needle.len()).any(|window| window == needle));
    }
    let discovery: Value = serde_json::from_str(&jwt.discovery()).unwrap();
    assert_eq!(discovery["issuer"], "https://broker.example:8443");
    assert_eq!(
        discovery["jwks_uri"],
        "https://broker.example:8443/.well-known/jwks.json"
    );
}

#[tokio::test]
async fn signing_keys_rotate_with_overlap_and_survive_a_restart() {
    let place = Place::new();
    let jwt = place.jwt(NOW).await;
    let credential = jwt_config(JwtAlgorithm::EdDsa);
    let first = token_of(&issue(&jwt, &credential, NOW).await.unwrap());
    let kid = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
    let before = jwt.key_set();
    assert!(!jwt.maintain(NOW + DAY).await.unwrap());
    drop(jwt);

    let place = place.again();
    let jwt = place.jwt(NOW + DAY).await;
    assert_eq!(jwt.key_set(), before);
    // Published for a day before it signs.
    assert!(jwt.maintain(NOW + 6 * DAY).await.unwrap());
    let published = jwt.key_set();
    let still = token_of(&issue(&jwt, &credential, NOW + 7 * DAY - 1).await.unwrap());
    assert_eq!(kid(&still), kid(&first));
    let new = token_of(&issue(&jwt, &credential, NOW + 7 * DAY).await.unwrap());
    assert_ne!(kid(&new), kid(&first));
    assert!(published.contains(&kid(&new)));
    // The old one stays until its last token has expired, 300 seconds later.
    assert!(!jwt.maintain(NOW + 7 * DAY + 299_999).await.unwrap());
    verify(&jwt.key_set(), &still).unwrap();
    assert!(jwt.maintain(NOW + 7 * DAY + 300_000).await.unwrap());
    assert!(verify(&jwt.key_set(), &still).is_err());
    verify(&jwt.key_set(), &new).unwrap();
}

#[tokio::test]
async fn settings_that_cannot_be_right_are_refused() {
    let place = Place::new();
    let jwt = place.jwt(NOW).await;
    let change = |change: fn(&mut Vec<String>, &mut String, &mut BTreeMap<String, String>)| {
        let mut credential = jwt_config(JwtAlgorithm::Es256);
        if let EngineConfig::Jwt {
            audience,
            subject,
            claims,
            ..
        } = &mut credential.engine
        {
            change(audience, subject, claims);
        }
        credential
    };
    for (credential, found) in [
        (change(|audience, _, _| audience.clear()), "audience"),
        (change(|_, subject, _| *subject = "{nme}".into()), "{nme}"),
        (
            change(|_, _, claims| drop(claims.insert("exp".into(), "x".into()))),
            "exp",
        ),
        (
            change(|_, _, claims| drop(claims.insert("a".into(), "{".into()))),
            "claim a",
        ),
        (config(EngineConfig::Kv { path: path() }), "not a jwt"),
    ] {
        let refused = jwt.check(&credential).unwrap_err();
        assert!(refused.contains(found), "{refused}");
        assert!(issue(&jwt, &credential, NOW).await.is_err());
    }
    // Right in itself, but not for this workload.
    let credential = change(|_, subject, _| *subject = "{label.other}".into());
    jwt.check(&credential).unwrap();
    let refused = issue(&jwt, &credential, NOW).await.err().unwrap();
    assert_eq!(refused.code(), Code::BadRequest);
}

#[tokio::test]
async fn a_lease_of_another_engine_is_refused() {
    let place = Place::new();
    let engines = Engines {
        kv: place.kv(),
        others: BTreeMap::from([(
            EngineKind::Jwt,
            Arc::new(place.jwt(NOW).await) as Arc<dyn Engine>,
        )]),
    };
    let jwt = jwt_config(JwtAlgorithm::EdDsa);
    let issued = issue(engines.of(EngineKind::Jwt).unwrap(), &jwt, NOW)
        .await
        .unwrap();
    let lease = lease_for(&jwt, &issued);
    place
        .store
        .commit(vec![Op::LeaseInsert(lease.clone())])
        .await
        .unwrap();
    let kv = config(EngineConfig::Kv { path: path() });
    let refused = engines
        .of(EngineKind::Kv)
        .unwrap()
        .reissue(&kv, &lease)
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::Conflict);
    engines
        .of(lease.engine)
        .unwrap()
        .reissue(&jwt, &lease)
        .await
        .unwrap();
    let name: CredentialName = jwt.name.clone();
    let found = place.store.lease_of(lease.workload.clone(), name);
    assert_eq!(found.await.unwrap(), Some(lease));
}

/// Who adds an engine reads there what it is to answer.
#[test]
fn the_documentation_shows_every_method_of_an_engine() {
    let (_, contract) = include_str!("mod.rs")
        .split_once("pub trait Engine")
        .unwrap();
    let (contract, _) = contract.split_once("\n}\n").unwrap();
    let docs = include_str!("../../../docs/engines.md");
    let (_, table) = docs.split_once("| method |").unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let starts = contract
        .lines()
        .filter_map(|line| line.strip_prefix("    fn "));
    let methods: Vec<&str> = starts
        .filter_map(|rest| rest.split(['<', '(']).next())
        .collect();
    assert!(methods.len() > 5, "{methods:?}");
    for method in methods {
        assert!(table.contains(&format!("`{method}`")), "{method}");
    }
}
