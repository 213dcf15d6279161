//! Asks the management API of RabbitMQ, HTTP/1.1 with JSON.

use super::super::connections::{Connections, Target};
use super::super::pool::{Connector, Failure, Opening};
use super::super::root::Roots;
use super::super::stream;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use mayfly_wire::connection::Tls;
use mayfly_wire::{ConnectionConfig, ConnectionName, Secret};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use zeroize::Zeroizing;

const PORT: u16 = 15672;
const TLS_PORT: u16 = 15671;
/// See [`Api::is_new`].
const NEW: Duration = Duration::from_secs(10);
/// Most bytes of one answer.
const MAX_ANSWER: usize = 256 * 1024;
/// Most characters of a server's own words in a message.
const MAX_WORDS: usize = 200;

/// An open connection.
pub(super) struct Link {
    sender: SendRequest<Full<Bytes>>,
    host: HeaderValue,
    authorization: HeaderValue,
}

impl Link {
    /// Asks. `None` says that there is no such thing.
    pub(super) async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Option<Bytes>, Failure> {
        let (status, answer) = self.exchange(method.clone(), path, body).await?;
        if status.is_success() {
            return Ok(Some(answer));
        }
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let words = String::from_utf8_lossy(&answer);
        let words: String = words.chars().take(MAX_WORDS).collect();
        let cause = format!("{method} {path}: {status}: {words}");
        if status.is_server_error() {
            // What it did before that, nobody knows.
            return Err(Failure::Broken(cause));
        }
        Err(Failure::Refused(cause))
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let broken = |error: &dyn std::fmt::Display| Failure::Broken(error.to_string());
        let body = body.map_or(Vec::new(), |body| body.to_string().into_bytes());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.host.clone())
            .header(AUTHORIZATION, self.authorization.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| broken(&error))?;
        self.sender.ready().await.map_err(|error| broken(&error))?;
        let answer = self.sender.send_request(request).await;
        let answer = answer.map_err(|error| broken(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        Ok((status, body.map_err(|error| broken(&error))?.to_bytes()))
    }
}

/// Opens connections.
pub(super) struct Api {
    connections: Arc<Connections>,
    roots: Arc<Roots>,
    /// When each server was reached for the first time.
    reached: Mutex<HashMap<ConnectionName, Instant>>,
}

impl Api {
    pub(super) fn new(connections: Arc<Connections>, roots: Arc<Roots>) -> Self {
        Self {
            connections,
            roots,
            reached: Mutex::default(),
        }
    }

    /// Whether the server was reached for the first time only a moment ago: what an earlier process
    /// asked it for may not be finished.
    pub(super) fn is_new(&self, name: &ConnectionName) -> bool {
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        reached.get(name).is_none_or(|since| since.elapsed() < NEW)
    }

    /// A connection that is let in. After a rotation of the broker's own password that was
    /// interrupted, either password may be the good one.
    async fn open(&self, name: &ConnectionName, target: &Target) -> Result<Link, String> {
        let known = self.connections.password(name).await;
        let known = known.map_err(|error| error.to_string())?;
        let mut link = link(&target.config, &known).await?;
        if !is_let_in(&mut link).await? {
            let denied = format!(
                "the server does not let {} in: expected a user of that name, with the tag \
                 administrator and the password from `mayfly connection set {name}`",
                target.config.username
            );
            let pending = self.roots.pending(name).await;
            let Some(pending) = pending.map_err(|error| error.to_string())? else {
                return Err(denied);
            };
            link = self::link(&target.config, &pending).await?;
            if !is_let_in(&mut link).await? {
                return Err(denied);
            }
            let promoted = self.roots.promote(name, &pending).await;
            promoted.map_err(|error| error.to_string())?;
        }
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        reached.entry(name.clone()).or_insert_with(Instant::now);
        Ok(link)
    }
}

async fn link(config: &ConnectionConfig, password: &Secret) -> Result<Link, String> {
    let pair = [config.username.as_bytes(), b":", password.expose()].concat();
    let pair = Zeroizing::new(pair);
    let basic = Zeroizing::new(format!("Basic {}", STANDARD.encode(&*pair)));
    let mut authorization = HeaderValue::from_str(&basic).map_err(|error| error.to_string())?;
    authorization.set_sensitive(true);
    let port = match config.tls {
        Tls::Verify => TLS_PORT,
        Tls::Off => PORT,
    };
    let host = if config.host.starts_with('/') {
        "localhost".to_owned()
    } else {
        format!("{}:{}", config.host, config.port.unwrap_or(port))
    };
    let host = HeaderValue::from_str(&host).map_err(|error| error.to_string())?;
    let stream = TokioIo::new(stream::open(config, port).await?);
    let (sender, connection) = handshake(stream).await.map_err(|error| error.to_string())?;
    // Ends when the sender is dropped or the server closes it; who waits for an answer is told how.
    tokio::spawn(async move { drop(connection.await) });
    Ok(Link {
        sender,
        host,
        authorization,
    })
}

async fn is_let_in(link: &mut Link) -> Result<bool, String> {
    match link.exchange(Method::GET, "/api/whoami", None).await {
        Ok((StatusCode::UNAUTHORIZED, _)) => Ok(false),
        Ok((status, _)) if status.is_success() => Ok(true),
        Ok((status, _)) => Err(format!(
            "expected the management API of RabbitMQ, found an answer with status {status} at /api/whoami"
        )),
        Err(Failure::Refused(cause) | Failure::Broken(cause)) => Err(cause),
    }
}

impl Connector for Api {
    type Connection = Link;

    fn connect<'a>(&'a self, name: &'a ConnectionName, target: &'a Target) -> Opening<'a, Link> {
        Box::pin(self.open(name, target))
    }

    fn is_closed(&self, link: &Link) -> bool {
        link.sender.is_closed()
    }
}

/// Text as one segment of a path.
pub(super) fn segment(text: &str) -> String {
    let mut segment = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_leaves_its_segment() {
        assert_eq!(segment("/"), "%2F");
        assert_eq!(segment("mf-a_b9"), "mf-a_b9");
        assert_eq!(
            segment("a/../b?c#d e\r\n%é"),
            "a%2F%2E%2E%2Fb%3Fc%23d%20e%0D%0A%25%C3%A9"
        );
        assert_eq!(segment(".."), "%2E%2E");
    }
}
