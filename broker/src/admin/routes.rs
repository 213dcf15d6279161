//! Which request does what (the table of [`mayfly_wire::admin`]).

use super::Admin;
use crate::door::{Door, Operator};
use crate::http::{self, Answer};
use hyper::body::{Bytes, Incoming};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response};
use mayfly_wire::admin::{
    Apply, ConnectionSecret, Desired, KvPut, LeaseFilter, MAX_BODY, NodeInfo, PolicyFile, Progress,
    Revoke, Rotate, Status,
};
use mayfly_wire::{Code, KvPath, LeaseId, Refusal};
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc};

/// Lines of the audit log that may wait for a slow reader.
const UNREAD: usize = 256;
/// Audit lines that a request gives unless it says how many.
const LAST: usize = 100;

type Result<T> = std::result::Result<T, Refusal>;

/// Answers one request.
pub async fn answer(
    admin: &Arc<Admin>,
    operator: &Operator,
    request: Request<Incoming>,
) -> Result<Response<Answer>> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().strip_prefix("/v1/").unwrap_or_default();
    let query = Query(head.uri.query().unwrap_or_default());
    let door = &admin.door;
    let get = head.method == Method::GET;
    let (name, rest) = path
        .split_once('/')
        .map_or((path, None), |(name, rest)| (name, Some(rest)));
    match (&head.method, name, rest) {
        (_, "status", None) if get => http::json(&status(admin, operator).await?),
        (&Method::POST, "plan", None) => {
            let desired: Desired = http::read(body, MAX_BODY).await?;
            http::json(&door.plan(operator, desired).await?)
        }
        (&Method::POST, "apply", None) => {
            let apply: Apply = http::read(body, MAX_BODY).await?;
            let plan = door.apply(operator, apply).await?;
            if !plan.changes.is_empty() {
                look_again(admin);
            }
            http::json(&plan)
        }
        (&Method::POST, "policy", Some("check")) => {
            let files: Vec<PolicyFile> = http::read(body, MAX_BODY).await?;
            http::json(&door.policy_check(operator, &files).await?)
        }
        (_, "kv", None) if get => http::json(&door.kv_list(operator).await?),
        (&Method::PUT, "kv", Some(path)) => {
            let path = kv_path(path)?;
            let put: KvPut = http::read(body, MAX_BODY).await?;
            http::json(&door.kv_put(operator, &path, put).await?)
        }
        (_, "kv", Some(path)) if get => {
            let version = query.number("version")?;
            http::json(&door.kv_get(operator, &kv_path(path)?, version).await?)
        }
        (&Method::DELETE, "kv", Some(path)) => {
            http::json(&door.kv_delete(operator, &kv_path(path)?).await?)
        }
        (_, "kv-history", Some(path)) if get => {
            http::json(&door.kv_history(operator, &kv_path(path)?).await?)
        }
        (_, "workloads", None) if get => {
            let pages = door.workload_pages(operator).await?;
            Ok(super::lists::workloads(Arc::clone(admin), pages))
        }
        (_, "explain", None) if get => {
            let workload = query.needed("workload")?;
            let credential = query.needed("credential")?.parse().map_err(bad)?;
            http::json(&door.explain(operator, &workload, &credential).await?)
        }
        (_, "leases", None) if get => {
            let pages = door.lease_pages(operator, query.filter()?).await?;
            Ok(super::lists::leases(pages))
        }
        (&Method::POST, "revoke", None) => {
            let revoke: Revoke = http::read(body, MAX_BODY).await?;
            Ok(progress(door.revoke(operator, revoke).await?))
        }
        (&Method::POST, "rotate", None) => {
            let rotate: Rotate = http::read(body, MAX_BODY).await?;
            Ok(progress(door.rotate(operator, rotate).await?))
        }
        (_, "connections", None) if get => http::json(&door.connections(operator).await?),
        (&Method::PUT, "connections", Some(name)) => {
            let name = name.parse().map_err(bad)?;
            let secret: ConnectionSecret = http::read(body, MAX_BODY).await?;
            http::json(&door.connection_set(operator, &name, &secret).await?)
        }
        (&Method::POST, "connections", Some(rest)) => match rest.strip_suffix("/rotate") {
            Some(name) => {
                let name = name.parse().map_err(bad)?;
                http::json(&door.connection_rotate(operator, &name).await?)
            }
            None => Err(unknown(&head)),
        },
        (_, "authorities", None) if get => http::json(&door.authorities(operator).await?),
        (_, "authorities", Some(rest)) if get => match rest.strip_suffix("/crl") {
            Some(engine) => {
                let engine = engine.parse().map_err(bad)?;
                http::json(&door.authority_crl(operator, engine).await?)
            }
            None => Err(unknown(&head)),
        },
        (&Method::POST, "authorities", Some(rest)) => match rest.strip_suffix("/rotate") {
            Some(engine) => {
                let engine = engine.parse().map_err(bad)?;
                http::json(&door.authority_rotate(operator, engine).await?)
            }
            None => Err(unknown(&head)),
        },
        (_, "audit", None) if get => {
            let last = query
                .number("last")?
                .map_or(LAST, |last| usize::try_from(last).unwrap_or(LAST));
            let follow = query.get("follow").is_some_and(|follow| follow == "true");
            audit(door, operator, last, follow).await
        }
        (&Method::POST, "audit", Some("verify")) => http::json(&door.audit_verify(operator).await?),
        (&Method::POST, "nodes", Some(name)) => {
            door.allow_node(operator, name).await?;
            if admin.about.embedded_node.as_deref() == Some(name) {
                let message = format!("{name:?} is the broker's own node: expected another name");
                return Err(Refusal::because(Code::Conflict, message));
            }
            http::json(&admin.pki.node_certificate(name).map_err(bad)?)
        }
        _ => Err(unknown(&head)),
    }
}

fn unknown(head: &Parts) -> Refusal {
    let message = format!(
        "{} {} is no request of this API",
        head.method,
        head.uri.path()
    );
    Refusal::because(Code::NotFound, message)
}

fn bad(error: impl std::fmt::Display) -> Refusal {
    Refusal::because(Code::BadRequest, error.to_string())
}

fn kv_path(text: &str) -> Result<KvPath> {
    text.parse().map_err(bad)
}

/// The query of a request.
struct Query<'a>(&'a str);

impl Query<'_> {
    fn get(&self, name: &str) -> Option<String> {
        let pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        let mut values = pairs
            .filter(|(key, _)| *key == name)
            .map(|(_, value)| decode(value));
        values.next().flatten()
    }

    fn needed(&self, name: &str) -> Result<String> {
        let missing = || Refusal::because(Code::BadRequest, format!("expected ?{name}=…"));
        self.get(name).ok_or_else(missing)
    }

    fn filter(&self) -> Result<LeaseFilter> {
        let credential = self.get("credential").map(|name| name.parse());
        Ok(LeaseFilter {
            lease: self.get("lease").map(LeaseId::from),
            workload: self.get("workload"),
            credential: credential.transpose().map_err(bad)?,
            node: self.get("node"),
            stuck: self.get("stuck").is_some_and(|stuck| stuck == "true"),
        })
    }

    fn number(&self, name: &str) -> Result<Option<u64>> {
        let number = |text: String| {
            text.parse()
                .map_err(|_| bad(format!("{name}: expected a number, found {text:?}")))
        };
        self.get(name).map(number).transpose()
    }
}

/// Percent-decoding (RFC 3986, section 2.1).
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let (digits, after) = after.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after;
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// A new configuration stands: every session looks again, and so does everything that no session holds.
fn look_again(admin: &Arc<Admin>) {
    admin.hub.wake_all();
    admin.door.judge_anew();
}

async fn status(admin: &Admin, operator: &Operator) -> Result<Status> {
    let door = &admin.door;
    door.may_see_status(operator)?;
    let applied = door.applied();
    let counts = door.workloads_by_node().await?;
    let nodes = admin
        .nodes
        .all()
        .into_iter()
        .map(|(name, silent)| NodeInfo {
            last_heartbeat_seconds: silent.as_secs(),
            workloads: counts.get(&name).copied().unwrap_or(0),
            name,
        });
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: admin.about.started.elapsed().as_secs(),
        sealed: false,
        state_dir: admin.about.state_dir.clone(),
        workload_socket: admin.about.workload_socket.clone(),
        issuer: admin.about.issuer.clone(),
        nodes: nodes.collect(),
        credentials: applied.credentials().len() as u64,
        policies: applied.judge().given().len() as u64,
        leases: door.lease_count().await?,
        stuck: door.stuck_count().await?,
        sessions: admin.hub.count(),
        audit_seq: door.audit_seq(),
    })
}

/// A line for each step, as it comes.
fn progress(mut steps: mpsc::Receiver<Progress>) -> Response<Answer> {
    let (sender, receiver) = mpsc::channel(UNREAD);
    tokio::spawn(async move {
        while let Some(step) = steps.recv().await {
            let Ok(mut line) = serde_json::to_vec(&step) else {
                return;
            };
            line.push(b'\n');
            if sender.send(Bytes::from(line)).await.is_err() {
                return;
            }
        }
    });
    http::lines(receiver)
}

async fn audit(
    door: &Door,
    operator: &Operator,
    last: usize,
    follow: bool,
) -> Result<Response<Answer>> {
    let (last, mut new) = door.audit_tail(operator, last).await?;
    let (sender, receiver) = mpsc::channel(UNREAD);
    tokio::spawn(async move {
        let mut seen = 0;
        for line in last {
            seen = seen.max(seq(&line));
            if sender.send(Bytes::from(line + "\n")).await.is_err() {
                return;
            }
        }
        if !follow {
            return;
        }
        loop {
            let line = tokio::select! {
                line = new.recv() => line,
                () = sender.closed() => return,
            };
            match line {
                Ok(line) if seq(&line) <= seen => {}
                Ok(line) => {
                    if sender.send(Bytes::from(format!("{line}\n"))).await.is_err() {
                        return;
                    }
                }
                // The reader is too slow: it ends, rather than miss records without knowing.
                Err(
                    broadcast::error::RecvError::Lagged(_) | broadcast::error::RecvError::Closed,
                ) => {
                    return;
                }
            }
        }
    });
    Ok(http::lines(receiver))
}

/// The number of the record in a line: `{"seq":17,…`.
fn seq(line: &str) -> u64 {
    let digits = line
        .strip_prefix("{\"seq\":")
        .and_then(|rest| rest.split(',').next());
    digits
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let query = Query("workload=a%2Fb%20c&credential=x&last=5&bad=%zz&short=%2");
        assert_eq!(query.get("workload").as_deref(), Some("a/b c"));
        assert_eq!(query.number("last").unwrap(), Some(5));
        assert_eq!(query.number("none").unwrap(), None);
        assert!(query.number("credential").is_err());
        assert!(query.needed("none").is_err());
        assert_eq!(query.get("bad"), None);
        assert_eq!(query.get("short"), None);
    }

    #[test]
    fn sequence_numbers() {
        assert_eq!(seq("{\"seq\":17,\"time\":\"t\"}"), 17);
        assert_eq!(seq("what"), u64::MAX);
    }
}
