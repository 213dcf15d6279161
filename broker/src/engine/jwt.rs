//! The `jwt` engine: signed tokens (RFC 7519), EdDSA and ES256, and the key set that others verify them
//! with.

use super::ring::{Ring, RingError, SigningKey};
use super::template::Template;
use super::{Answer, Engine, EngineError, IssueRequest, Issued, lease_record, other_engine};
use crate::seal::{RecordId, RootKeys};
use crate::store::{Lease, Op, Source, Store, StoreError};
use jsonwebtoken::{Algorithm, Header};
use mayfly_wire::admin::{CredentialConfig, EngineConfig, JwtAlgorithm};
use mayfly_wire::session::{Layout, VALUE_FIELD};
use mayfly_wire::{FieldName, Secret};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Mutex;

pub use super::ring::Schedule;

/// The claims that the engine sets itself (RFC 7519, section 4.1).
const OWN: [&str; 7] = ["iss", "sub", "aud", "iat", "nbf", "exp", "jti"];
/// Most configured claims, and most audiences.
const MAX_CLAIMS: usize = 64;
const META: &str = "jwt-keys";
const KEYS: RecordId<'static> = RecordId {
    kind: "meta",
    path: META,
};

/// The engine.
pub struct Jwt {
    store: Arc<dyn Store>,
    keys: Arc<RootKeys>,
    issuer: String,
    schedule: Schedule,
    ring: RwLock<Arc<Ring>>,
    /// Number of the stored ring; held while a new one is stored.
    stored: Mutex<u64>,
}

impl Jwt {
    /// Loads the signing keys, or makes the first ones. `issuer` is the URL under which the discovery
    /// document is served, without a trailing slash.
    ///
    /// # Errors
    /// The store's and the seal's.
    pub async fn open(
        store: Arc<dyn Store>,
        keys: Arc<RootKeys>,
        issuer: String,
        schedule: Schedule,
        now: u64,
    ) -> Result<Self, EngineError> {
        let (number, ring) = match store.meta(META.to_owned()).await? {
            Some(bytes) => read(&keys, &bytes)?,
            None => (0, Ring::default()),
        };
        let engine = Self {
            store,
            keys,
            issuer,
            schedule,
            ring: RwLock::new(Arc::new(ring)),
            stored: Mutex::new(number),
        };
        engine.maintain(now).await?;
        Ok(engine)
    }

    /// Makes, publishes and removes signing keys as their time comes. To be called every minute or so;
    /// says whether anything changed.
    ///
    /// # Errors
    /// The store's and the seal's; the keys then stay as they are.
    pub async fn maintain(&self, now: u64) -> Result<bool, EngineError> {
        self.become_right(now, 0).await
    }

    /// The key set (RFC 7517), as JSON.
    #[must_use]
    pub fn key_set(&self) -> String {
        self.ring().key_set()
    }

    /// How long others may keep the key set: a new key is in it for twice as long before it signs.
    #[must_use]
    pub fn cacheable(&self) -> Duration {
        const HOUR: Duration = Duration::from_secs(60 * 60);
        Duration::from_millis(self.schedule.publish_ahead / 2).min(HOUR)
    }

    /// Base of the discovery document, and `iss` of every token.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The discovery document (OpenID Connect Discovery 1.0, section 3), as JSON.
    #[must_use]
    pub fn discovery(&self) -> String {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/.well-known/jwks.json", self.issuer),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["EdDSA", "ES256"],
            "claims_supported": OWN,
        })
        .to_string()
    }

    fn ring(&self) -> Arc<Ring> {
        self.ring
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn become_right(&self, now: u64, longest_ttl: u64) -> Result<bool, EngineError> {
        let mut stored = self.stored.lock().await;
        let Some(next) = self.ring().next(now, self.schedule, longest_ttl)? else {
            return Ok(false);
        };
        // On disk before anything is signed with it or published from it.
        let number = *stored + 1;
        let sealed = self.keys.seal(&KEYS, number, &next.export())?;
        let bytes = [number.to_be_bytes().as_slice(), &sealed].concat();
        self.store
            .commit(vec![Op::MetaPut(META.to_owned(), bytes)])
            .await?;
        *stored = number;
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        Ok(true)
    }

    async fn make(&self, request: IssueRequest<'_>) -> Result<Issued, EngineError> {
        let token = Token::read(request.credential).map_err(EngineError::Unfit)?;
        let claims = token.claims(&self.issuer, &request);
        let claims = claims.map_err(EngineError::Unfit)?;
        // A key stays published as long as its tokens live, so the longest is known before one lives.
        let ttl = request.expires_at().saturating_sub(request.now);
        if ttl > self.ring().longest_ttl {
            self.become_right(request.now, ttl).await?;
        }
        let ring = self.ring();
        let key = ring.signer(token.algorithm, request.now);
        let key = key.ok_or_else(|| EngineError::Unavailable("no signing key yet".to_owned()))?;
        let secret = Secret::from(sign(key, &claims)?);
        let expires_at = request.expires_at();
        let sealed = self
            .keys
            .seal(&lease_record(request.lease), expires_at, &secret)?;
        issued(secret, expires_at, sealed)
    }
}

fn read(keys: &RootKeys, bytes: &[u8]) -> Result<(u64, Ring), EngineError> {
    let (number, sealed) = bytes.split_first_chunk().ok_or(RingError::Stored)?;
    let number = u64::from_be_bytes(*number);
    let exported = keys.open(&KEYS, number, sealed)?;
    Ok((number, Ring::import(&exported)?))
}

fn sign(key: &SigningKey, claims: &Map<String, Value>) -> Result<String, EngineError> {
    let mut header = Header::new(match key.algorithm {
        JwtAlgorithm::EdDsa => Algorithm::EdDSA,
        JwtAlgorithm::Es256 => Algorithm::ES256,
    });
    header.kid = Some(key.kid.clone());
    jsonwebtoken::encode(&header, claims, &key.private)
        .map_err(|error| EngineError::Unavailable(format!("a token cannot be signed: {error}")))
}

fn issued(token: Secret, expires_at: u64, sealed: Vec<u8>) -> Result<Issued, EngineError> {
    let value: FieldName = VALUE_FIELD
        .parse()
        .map_err(|error| EngineError::Unfit(format!("{error}")))?;
    Ok(Issued {
        fields: BTreeMap::from([(value, token)]),
        layout: Layout::Value,
        expires_at,
        source: Source::Sealed(sealed),
    })
}

impl From<RingError> for EngineError {
    fn from(error: RingError) -> Self {
        match error {
            RingError::Seal(error) => Self::Seal(error),
            RingError::Stored => Self::Store(StoreError::Damaged(error.to_string())),
            RingError::Key(_) => Self::Unavailable(error.to_string()),
        }
    }
}

/// The settings of a token, understood.
struct Token<'a> {
    algorithm: JwtAlgorithm,
    audience: &'a [String],
    subject: Template,
    claims: Vec<(&'a str, Template)>,
}

impl<'a> Token<'a> {
    fn read(credential: &'a CredentialConfig) -> Result<Self, String> {
        let EngineConfig::Jwt {
            algorithm,
            audience,
            subject,
            claims,
        } = &credential.engine
        else {
            return Err(format!("{} is not a jwt credential", credential.name));
        };
        if audience.is_empty() || audience.iter().any(String::is_empty) {
            return Err("audience: expected at least one, none of them empty".to_owned());
        }
        if audience.len() > MAX_CLAIMS || claims.len() > MAX_CLAIMS {
            return Err(format!(
                "expected at most {MAX_CLAIMS} audiences and claims"
            ));
        }
        if let Some(name) = claims.keys().find(|name| OWN.contains(&name.as_str())) {
            return Err(format!(
                "claims: {name} is set by the engine itself; expected none of {}",
                OWN.join(", ")
            ));
        }
        let claims = claims.iter().map(|(name, text)| {
            let template = Template::parse(text).map_err(|error| format!("claim {name}: {error}"));
            Ok((name.as_str(), template?))
        });
        Ok(Self {
            algorithm: *algorithm,
            audience,
            subject: Template::parse(subject).map_err(|error| format!("subject: {error}"))?,
            claims: claims.collect::<Result<_, String>>()?,
        })
    }

    fn claims(
        &self,
        issuer: &str,
        request: &IssueRequest<'_>,
    ) -> Result<Map<String, Value>, String> {
        let name = &request.credential.name;
        let mut claims = Map::new();
        for (claim, template) in &self.claims {
            let value = template.render(name, request.evidence)?;
            claims.insert((*claim).to_owned(), value.into());
        }
        let audience = match self.audience {
            [one] => json!(one),
            several => json!(several),
        };
        // NumericDate: seconds. Rounded down, so no token outlives its lease.
        let (now, until) = (request.now / 1000, request.expires_at() / 1000);
        for (claim, value) in [
            ("iss", json!(issuer)),
            ("sub", json!(self.subject.render(name, request.evidence)?)),
            ("aud", audience),
            ("iat", json!(now)),
            ("nbf", json!(now)),
            ("exp", json!(until)),
            ("jti", json!(request.lease.as_str())),
        ] {
            claims.insert(claim.to_owned(), value);
        }
        Ok(claims)
    }
}

impl Engine for Jwt {
    fn check(&self, credential: &CredentialConfig) -> Result<(), String> {
        Token::read(credential).map(|_| ())
    }

    fn issue<'a>(&'a self, request: IssueRequest<'a>) -> Answer<'a, Issued> {
        Box::pin(self.make(request))
    }

    /// Gives the very token that the lease holds.
    fn reissue<'a>(
        &'a self,
        _credential: &'a CredentialConfig,
        lease: &'a Lease,
    ) -> Answer<'a, Issued> {
        Box::pin(async move {
            let Source::Sealed(sealed) = &lease.source else {
                return Err(other_engine(lease));
            };
            let record = lease_record(&lease.id);
            let token = self.keys.open(&record, lease.expires_at, sealed)?;
            issued(token, lease.expires_at, sealed.clone())
        })
    }

    /// A token that left is good until it expires: nothing can take it back. That is why it is short.
    fn revoke<'a>(&'a self, _lease: &'a Lease) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}
