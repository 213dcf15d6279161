//! The one-shot form: for once the node itself opens what the broker sealed, because `curl` cannot.

use crate::upstream::{Session, Upstream};
use mayfly_wire::link::SessionRequest;
use mayfly_wire::sealed::{self, Opener, PrivateKey};
use mayfly_wire::session::{Bundle, Hello, PROTOCOL, ServerMessage};
use mayfly_wire::{
    Code, CredentialName, Evidence, FieldName, LeaseId, Refusal, Secret, WorkloadKey,
};
use std::time::Duration;
use tokio::time::timeout;

/// How long the broker may take from the session to its first bundle.
const BUNDLE: Duration = Duration::from_secs(20);

/// One credential in the clear.
pub(super) struct Opened {
    pub(super) name: CredentialName,
    pub(super) lease: LeaseId,
    pub(super) expires_at: u64,
    pub(super) fields: Vec<(FieldName, Secret)>,
}

/// Asks for one credential, if need be for a key that the caller keeps, with a key pair made for this alone. The session is still open when this
/// returns, and to be dropped when the answer is written.
pub(super) async fn fetch(
    upstream: &dyn Upstream,
    evidence: Evidence,
    name: CredentialName,
    csr: Option<String>,
) -> Result<(Opened, Session), Refusal> {
    let workload = evidence.workload.clone();
    let (key, public_key) = sealed::generate();
    let request = SessionRequest {
        evidence,
        hello: Hello {
            protocol: PROTOCOL,
            public_key,
            want: Some(vec![name.clone()]),
        },
        once: true,
        csr,
    };
    let mut session = upstream.session(request).await?;
    let bundle = timeout(BUNDLE, first_bundle(&mut session))
        .await
        .unwrap_or_else(|_| Err(Code::Unavailable.into()))?;
    let opened = open(&key, &workload, &name, bundle)?;
    Ok((opened, session))
}

async fn first_bundle(session: &mut Session) -> Result<Bundle, Refusal> {
    loop {
        match session.down.recv().await {
            Some(ServerMessage::Bundle(bundle)) => return Ok(bundle),
            Some(ServerMessage::Refused(refusal)) => return Err(refusal),
            Some(_) => {}
            None => return Err(Code::Unavailable.into()),
        }
    }
}

/// Opens the bundle's values in their order, and keeps those of `name`.
fn open(
    key: &PrivateKey,
    workload: &WorkloadKey,
    name: &CredentialName,
    bundle: Bundle,
) -> Result<Opened, Refusal> {
    let failed = |error| {
        tracing::error!(%error, "a bundle for the one-shot form does not open");
        Refusal::from(Code::Internal)
    };
    let mut opener =
        Opener::new(key, &bundle.encapsulated, workload, bundle.generation).map_err(failed)?;
    let mut found = None;
    for credential in bundle.credentials {
        let mut fields = Vec::new();
        for field in credential.fields {
            let value = opener
                .open(&credential.lease, &field.name, &field.sealed)
                .map_err(failed)?;
            fields.push((field.name, value));
        }
        if credential.name == *name {
            found = Some(Opened {
                name: credential.name,
                lease: credential.lease,
                expires_at: credential.expires_at,
                fields,
            });
        }
    }
    let missing = bundle
        .missing
        .into_iter()
        .find(|missing| missing.name == *name);
    found.ok_or_else(|| missing.map_or_else(|| Code::NotFound.into(), |missing| missing.refusal))
}

impl Opened {
    /// One field's bytes alone.
    pub(super) fn field(self, wanted: &FieldName) -> Option<Secret> {
        let mut fields = self.fields.into_iter();
        fields
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value)
    }

    /// `{"name", "lease", "expires_at", "fields": {NAME: base64}}`, in one buffer that never moves.
    /// Names and ids have no character that JSON escapes.
    pub(super) fn into_json(self) -> Secret {
        let field_size = |(name, value): &(FieldName, Secret)| {
            name.as_str().len() + value.len().div_ceil(3) * 4 + 8
        };
        let size = 256 + self.fields.iter().map(field_size).sum::<usize>();
        let mut json = String::with_capacity(size);
        let begin = format!(
            "{{\"name\":\"{}\",\"lease\":\"{}\",\"expires_at\":{},\"fields\":{{",
            self.name, self.lease, self.expires_at
        );
        json.push_str(&begin);
        for (index, (name, value)) in self.fields.iter().enumerate() {
            let value = Secret::from(mayfly_wire::bytes::encode(value.expose()));
            json.push_str(if index == 0 { "\"" } else { ",\"" });
            json.push_str(name.as_str());
            json.push_str("\":\"");
            json.push_str(std::str::from_utf8(value.expose()).unwrap_or_default());
            json.push('"');
        }
        json.push_str("}}");
        Secret::from(json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_wire::sealed::Sealer;
    use mayfly_wire::session::{Layout, Missing, SealedCredential, SealedField};

    fn workload() -> WorkloadKey {
        WorkloadKey {
            boot_id: "b".into(),
            cgroup_id: 1,
            pidns_id: 2,
        }
    }

    fn bundle(key: &sealed::PublicKey) -> Bundle {
        let (mut sealer, encapsulated) = Sealer::new(key, &workload(), 1).unwrap();
        let lease = LeaseId::from_random([1; 16]);
        let mut credential = |name: &str, fields: &[(&str, &str)]| SealedCredential {
            name: name.parse().unwrap(),
            lease: lease.clone(),
            expires_at: 7,
            renews_at: 0,
            layout: Layout::Fields,
            fields: fields
                .iter()
                .map(|(field, value)| {
                    let name: FieldName = field.parse().unwrap();
                    let value = Secret::from((*value).to_owned());
                    let sealed = sealer.seal(&lease, &name, &value).unwrap();
                    SealedField { name, sealed }
                })
                .collect(),
        };
        let credentials = vec![
            credential("a", &[("value", "first")]),
            credential("db", &[("password", "hunter2"), ("user", "u")]),
        ];
        Bundle {
            generation: 1,
            now: 1,
            encapsulated,
            credentials,
            missing: vec![Missing {
                name: "no".parse().unwrap(),
                refusal: Code::Denied.into(),
            }],
        }
    }

    #[test]
    fn the_wanted_credential_is_opened() {
        let (private, public) = sealed::generate();
        let open = |name: &str| {
            open(
                &private,
                &workload(),
                &name.parse().unwrap(),
                bundle(&public),
            )
        };
        let json = open("db").unwrap().into_json();
        let json: serde_json::Value = serde_json::from_slice(json.expose()).unwrap();
        assert_eq!(json["fields"]["password"], "aHVudGVyMg");
        assert_eq!(json["expires_at"], 7);
        let user = open("db").unwrap().field(&"user".parse().unwrap());
        assert_eq!(user.unwrap().expose(), b"u");
        assert!(open("db").unwrap().field(&"no".parse().unwrap()).is_none());
        assert_eq!(open("no").err().unwrap().code, Code::Denied);
        assert_eq!(open("other").err().unwrap().code, Code::NotFound);
    }

    #[test]
    fn what_was_sealed_for_another_does_not_open() {
        let (_, public) = sealed::generate();
        let (other, _) = sealed::generate();
        let opened = open(&other, &workload(), &"db".parse().unwrap(), bundle(&public));
        assert_eq!(opened.err().unwrap().code, Code::Internal);
    }
}
