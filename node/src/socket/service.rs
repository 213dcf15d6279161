//! The requests of the workload API, each from a caller that is attested anew.

use super::answer::{self, Answer};
use super::once;
use super::pace::Pace;
use super::recent::Recent;
use super::relay::Relay;
use super::stream::{Caller, CheckedStream};
use crate::attest::{Attested, Origin};
use crate::config::Limits;
use crate::death::DeathTarget;
use crate::served::{Served, Stay};
use crate::upstream::Upstream;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderMap, UPGRADE};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use mayfly_wire::link::{NodeEvent, SessionRequest, Unpublished};
use mayfly_wire::publish::{MAX_REPORT, PublishFailure};
use mayfly_wire::session::{
    CREDENTIALS_PATH, Hello, MAX_REQUEST, MAX_WANTED, NONCE_HEADER, PROTOCOL,
    PUBLISH_FAILURES_PATH, SESSION_PATH, UPGRADE as PROTOCOL_NAME, WHOAMI_PATH,
};
use mayfly_wire::{Assurance, Code, CredentialName, Evidence, FieldName, WorkloadKey};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

/// Most bytes of a request for a session: a [`Hello`] with [`MAX_WANTED`] names of the greatest length.
const MAX_BODY: usize = 32 * 1024;

/// What all connections share.
pub(super) struct Shared {
    pub(super) upstream: Arc<dyn Upstream>,
    pub(super) served: Arc<Served>,
    pub(super) pace: Pace<WorkloadKey>,
    /// The workloads that asked faster than that, by where their processes connect from, until they
    /// may ask again.
    pub(super) too_fast: Mutex<Recent<Origin, WorkloadKey>>,
    pub(super) limits: Limits,
    /// Becomes true when the node stops.
    pub(super) stopping: watch::Receiver<bool>,
    /// Each connection and session holds a clone; when all are gone, the node has drained.
    pub(super) open: mpsc::Sender<()>,
}

impl Shared {
    fn told_to_wait(&self, origin: Origin, workload: &WorkloadKey, wait: Duration) {
        // All processes of one pid namespace are one workload's; nothing else says as much.
        if matches!(origin, Origin::PidNamespace(_)) {
            let until = Instant::now() + wait;
            self.too_fast().note(origin, workload.clone(), until);
        }
    }

    fn too_fast(&self) -> MutexGuard<'_, Recent<Origin, WorkloadKey>> {
        let recent = self.too_fast.lock();
        recent.unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) caller: Arc<Caller>,
    pub(super) requests: AtomicUsize,
}

/// An answer that is not the one hoped for.
type Refused = Box<Answer>;

fn refused(refusal: impl Into<mayfly_wire::Refusal>) -> Refused {
    Box::new(answer::refusal(refusal.into()))
}

/// What a caller may know about itself.
#[derive(Serialize)]
struct WhoAmI {
    workload: WorkloadKey,
    id: String,
    name: String,
    assurance: Assurance,
}

impl Connection {
    /// Answers one request.
    pub(super) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        let count = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let answer = match self.route(request).await {
            Ok(answer) => answer,
            Err(refused) => *refused,
        };
        if count >= self.shared.limits.requests_per_connection {
            answer::closing(answer)
        } else {
            answer
        }
    }

    async fn route(self: &Arc<Self>, request: Request<Incoming>) -> Result<Answer, Refused> {
        let path = request.uri().path().to_owned();
        let is_get = request.method() == Method::GET;
        if path == SESSION_PATH {
            if request.method() != Method::POST {
                return Ok(answer::wrong_method("POST"));
            }
            return self.session(request).await;
        }
        if path == PUBLISH_FAILURES_PATH {
            if request.method() != Method::POST {
                return Ok(answer::wrong_method("POST"));
            }
            return self.publish_failure(request).await;
        }
        let credential = path.strip_prefix(CREDENTIALS_PATH);
        if path != WHOAMI_PATH
            && !credential.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        {
            return Err(refused(Code::NotFound));
        }
        let is_one = credential.is_some_and(|rest| rest.len() > 1);
        if is_one && request.method() == Method::POST {
            let (head, body) = request.into_parts();
            // As for a session.
            self.challenge(&head.headers)?;
            let csr = self.body(body, MAX_REQUEST).await?;
            let csr = String::from_utf8(csr.into()).map_err(|_| refused(Code::BadRequest))?;
            let rest = credential.unwrap_or_default();
            return self.credential(&head.headers, rest, Some(csr)).await;
        }
        if !is_get {
            return Ok(answer::wrong_method(if is_one {
                "GET, POST"
            } else {
                "GET"
            }));
        }
        let headers = request.headers();
        match credential {
            None => {
                let evidence = self.attest(headers).await?.0;
                Ok(answer::json(&WhoAmI {
                    id: evidence.workload.id(),
                    name: evidence.display_name(),
                    assurance: evidence.assurance,
                    workload: evidence.workload,
                }))
            }
            Some("") => {
                let evidence = self.attest(headers).await?.0;
                let granted = self.shared.upstream.granted(evidence).await;
                Ok(answer::json(&granted.map_err(refused)?))
            }
            Some(rest) => self.credential(headers, rest, None).await,
        }
    }

    /// Attests the caller, and holds its workload to its pace. The workload is not yet watched.
    async fn attest(&self, headers: &HeaderMap) -> Result<(Evidence, DeathTarget), Refused> {
        self.challenge(headers)?;
        self.check_pace()?;
        match self.caller.attestor.attest(&self.caller.peer).await {
            Ok(Attested { evidence, death }) => {
                let paced = self.shared.pace.take(&evidence.workload, Instant::now());
                paced.map_err(|wait| self.too_fast(&evidence.workload, wait))?;
                Ok((evidence, death))
            }
            Err(error) => {
                let code = error.code();
                self.caller.not_attested(error);
                Err(refused(code))
            }
        }
    }

    /// Refuses a caller whose workload has just been told to wait, without attesting it for that: who
    /// asks all the time would have it done all the time.
    fn check_pace(&self) -> Result<(), Refused> {
        let now = Instant::now();
        let origin = self.caller.peer.origin_hint();
        match self.shared.too_fast().of(&origin, now) {
            None => Ok(()),
            Some((workload, until)) => {
                self.caller.too_fast(&workload);
                Err(Box::new(answer::too_many(until - now)))
            }
        }
    }

    fn too_fast(&self, workload: &WorkloadKey, wait: Duration) -> Refused {
        let origin = self.caller.peer.origin_hint();
        self.shared.told_to_wait(origin, workload, wait);
        self.caller.too_fast(workload);
        Box::new(answer::too_many(wait))
    }

    /// Attests the caller, and watches its workload from before its first lease.
    async fn admit(&self, headers: &HeaderMap) -> Result<(Evidence, Stay), Refused> {
        let (evidence, death) = self.attest(headers).await?;
        let stay = self.shared.served.enter(evidence.workload.clone(), death);
        Ok((evidence, stay))
    }

    /// On a kernel without SO_PEERPIDFD the caller must repeat a nonce, once for each connection.
    fn challenge(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let peer = &self.caller.peer;
        let Some(nonce) = peer.nonce().filter(|_| !peer.is_proven()) else {
            return Ok(());
        };
        let given = headers
            .get(NONCE_HEADER)
            .and_then(|value| value.to_str().ok());
        let Some(given) = given else {
            return Err(Box::new(answer::nonce_required(nonce)));
        };
        self.caller.prove(given).map_err(|error| {
            self.caller.not_attested(error);
            refused(Code::NotAttested)
        })
    }

    /// Whether a credential may still be released to the caller.
    fn check_alive(&self, stay: &Stay) -> Result<(), Refused> {
        if self.caller.peer.alive() && !stay.is_dead() {
            return Ok(());
        }
        let detail = "the process that asked has exited".to_owned();
        self.caller.refuse("peer_exited", detail);
        Err(refused(Code::NotAttested))
    }

    /// `/NAME` or `/NAME/FIELD` behind the path of credentials.
    async fn credential(
        &self,
        headers: &HeaderMap,
        rest: &str,
        csr: Option<String>,
    ) -> Result<Answer, Refused> {
        let mut parts = rest.split('/').skip(1);
        let (name, field) = (parts.next().unwrap_or_default(), parts.next());
        let name: CredentialName = name.parse().map_err(|_| refused(Code::NotFound))?;
        let field: Option<FieldName> = match field.map(str::parse) {
            None => None,
            Some(Ok(field)) => Some(field),
            Some(Err(_)) => return Err(refused(Code::NotFound)),
        };
        if parts.next().is_some() {
            return Err(refused(Code::NotFound));
        }
        let (evidence, stay) = self.admit(headers).await?;
        let fetched = once::fetch(&*self.shared.upstream, evidence, name, csr);
        let (opened, _session) = tokio::select! {
            fetched = fetched => fetched.map_err(refused)?,
            () = stay.death() => {
                self.check_alive(&stay)?;
                return Err(refused(Code::NotAttested));
            }
        };
        let answer = match field {
            None => answer::secret("application/json", opened.into_json()),
            Some(field) => {
                let value = opened
                    .field(&field)
                    .ok_or_else(|| refused(Code::NotFound))?;
                answer::secret("application/octet-stream", value)
            }
        };
        self.check_alive(&stay)?;
        Ok(answer)
    }

    async fn session(self: &Arc<Self>, mut request: Request<Incoming>) -> Result<Answer, Refused> {
        if !asks_for_session(request.headers()) {
            return Err(refused(Code::BadRequest));
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let (head, body) = request.into_parts();
        // The proof by nonce stands in the head, so it is checked against the message that brought
        // that, before another one follows.
        self.challenge(&head.headers)?;
        let hello: Hello = self.read(body, MAX_BODY).await?;
        let wanted = hello.want.as_ref().map_or(0, Vec::len);
        if hello.protocol != PROTOCOL || wanted > MAX_WANTED {
            return Err(refused(Code::BadRequest));
        }
        let (evidence, stay) = self.admit(&head.headers).await?;
        let asked = self.shared.upstream.session(SessionRequest {
            evidence: evidence.clone(),
            hello,
            once: false,
            csr: None,
        });
        let session = tokio::select! {
            session = asked => session.map_err(refused)?,
            () = stay.death() => {
                self.check_alive(&stay)?;
                return Err(refused(Code::NotAttested));
            }
        };
        let connection = Arc::clone(self);
        tokio::spawn(async move {
            let shared = &connection.shared;
            let _open = shared.open.clone();
            // It fails when the connection ends before the 101 is written.
            let Ok(upgraded) = upgrade.await else { return };
            let Ok(parts) = upgraded.downcast::<TokioIo<CheckedStream>>() else {
                return;
            };
            let relay = Relay {
                stream: parts.io.into_inner(),
                caller: Arc::clone(&connection.caller),
                stay,
                session,
                evidence,
                limits: shared.limits,
                stopping: shared.stopping.clone(),
            };
            relay.run(&parts.read_buf).await;
        });
        Ok(answer::switching())
    }

    /// Passes on that the caller's sidecar cannot publish. Answered once it is on record.
    async fn publish_failure(&self, request: Request<Incoming>) -> Result<Answer, Refused> {
        let (head, body) = request.into_parts();
        // As for a session.
        self.challenge(&head.headers)?;
        let failure: PublishFailure = self.read(body, MAX_REPORT).await?;
        let (evidence, _) = self.attest(&head.headers).await?;
        let report = NodeEvent::PublishFailed(Box::new(Unpublished { evidence, failure }));
        let noted = self.shared.upstream.event(report).await;
        noted.map_err(refused)?;
        Ok(answer::noted())
    }

    /// Reads a message within its limits of size and time.
    async fn read<T: DeserializeOwned>(&self, body: Incoming, most: usize) -> Result<T, Refused> {
        let body = self.body(body, most).await?;
        serde_json::from_slice(&body).map_err(|_| refused(Code::BadRequest))
    }

    async fn body(&self, body: Incoming, most: usize) -> Result<Bytes, Refused> {
        let body = Limited::new(body, most).collect();
        match timeout(self.shared.limits.body(), body).await {
            Err(_) => {
                let detail = "the body took too long to arrive".to_owned();
                self.caller.refuse("too_slow", detail);
                Err(Box::new(answer::closing(answer::refusal(
                    Code::TooSlow.into(),
                ))))
            }
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                Err(Box::new(answer::too_large()))
            }
            Ok(Err(_)) => Err(refused(Code::BadRequest)),
            Ok(Ok(body)) => Ok(body.to_bytes()),
        }
    }
}

/// `Connection: upgrade` and `Upgrade: mayfly-session` (RFC 9110 section 7.8).
fn asks_for_session(headers: &HeaderMap) -> bool {
    let names = |name, wanted: &str| {
        headers.get_all(name).iter().any(|value| {
            let value = value.to_str().unwrap_or_default();
            value
                .split(',')
                .any(|part| part.trim().eq_ignore_ascii_case(wanted))
        })
    };
    names(CONNECTION, "upgrade") && names(UPGRADE, PROTOCOL_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::stand_in;
    use std::os::unix::net::UnixStream;

    /// Nobody attests the test itself, which is in no container. So whoever is told to wait was not
    /// looked at.
    #[tokio::test]
    async fn who_was_told_to_wait_is_not_attested_before_its_time() {
        let (server, shared) = stand_in::server();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = server.attestor.connected(&ours).unwrap();
        let origin = peer.origin_hint();
        let caller = Caller::new(server.attestor, peer, server.refusals);
        let connection = Connection {
            shared: Arc::clone(&shared),
            caller: Arc::new(caller),
            requests: AtomicUsize::new(0),
        };
        let status = async || {
            let refused = connection.attest(&HeaderMap::new()).await.err();
            refused.map(|refused| refused.status().as_u16())
        };
        assert_eq!(status().await, Some(Code::NotAttested.http_status()));
        let workload = WorkloadKey {
            boot_id: "b".into(),
            cgroup_id: 1,
            pidns_id: 2,
        };
        let minute = Duration::from_secs(60);
        let until = Instant::now() + minute;
        shared.too_fast().note(origin, workload.clone(), until);
        assert_eq!(status().await, Some(429));

        let namespace = Origin::PidNamespace(7);
        shared.told_to_wait(namespace, &workload, minute);
        shared.told_to_wait(Origin::Cgroup(7), &workload, minute);
        let now = Instant::now();
        assert!(shared.too_fast().of(&namespace, now).is_some());
        assert!(shared.too_fast().of(&Origin::Cgroup(7), now).is_none());
        let later = now + minute;
        assert!(shared.too_fast().of(&namespace, later).is_none());
    }
}
