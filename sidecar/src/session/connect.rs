//! Asking over HTTP/1.1: for a session, which is an upgrade, or that a report is taken. And the nonce of
//! a kernel without SO_PEERPIDFD.

use super::Failure;
use super::lines::Lines;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mayfly_wire::sealed::PublicKey;
use mayfly_wire::session::{self, Hello, PROTOCOL};
use mayfly_wire::{Code, CredentialName, PublishFailure, Refusal};
use std::io::ErrorKind;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::sleep;

/// Most bytes of a refusal.
const MAX_REFUSAL: usize = 16 * 1024;

/// What one connection is made for.
struct Asking {
    path: &'static str,
    /// Whether it is to become a session.
    upgrade: bool,
    /// The answer that is hoped for.
    hoped: StatusCode,
}

/// Connects, asks for a session, and returns its stream.
pub async fn open(
    socket: &Path,
    public_key: PublicKey,
    want: Option<Vec<CredentialName>>,
) -> Result<Lines, Failure> {
    let hello = Hello {
        protocol: PROTOCOL,
        public_key,
        want,
    };
    let asking = Asking {
        path: session::SESSION_PATH,
        upgrade: true,
        hoped: StatusCode::SWITCHING_PROTOCOLS,
    };
    let hello = serde_json::to_vec(&hello).map_err(std::io::Error::from)?;
    let upgrade = async |response| Ok(hyper::upgrade::on(response).await?);
    let upgraded: Upgraded = ask(socket, &asking, hello, upgrade).await?;
    let parts = upgraded
        .downcast::<TokioIo<UnixStream>>()
        .map_err(|_| Failure::protocol("the stream that was upgraded", "another one"))?;
    Ok(Lines::new(parts.io.into_inner(), &parts.read_buf))
}

/// Reports on a connection of its own that nothing can be published; it is on record when this returns.
pub async fn report(socket: &Path, failure: &PublishFailure) -> Result<(), Failure> {
    let asking = Asking {
        path: session::PUBLISH_FAILURES_PATH,
        upgrade: false,
        hoped: StatusCode::NO_CONTENT,
    };
    let body = serde_json::to_vec(failure).map_err(std::io::Error::from)?;
    ask(socket, &asking, body, async |_| Ok(())).await
}

/// Connects and asks; `finish` takes the answer that was hoped for.
async fn ask<T>(
    socket: &Path,
    asking: &Asking,
    body: Vec<u8>,
    finish: impl AsyncFnOnce(Response<Incoming>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let stream = connect(socket).await?;
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(32 * 1024)
        .handshake(TokioIo::new(stream))
        .await?;
    // The connection moves the bytes of the exchange, and ends when it is upgraded.
    let mut connection = pin!(connection.with_upgrades());
    let mut exchange = pin!(async {
        let response = exchange(sender, asking, Bytes::from(body)).await?;
        finish(response).await
    });
    tokio::select! {
        finished = &mut exchange => finished,
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}

/// Connects. A queue that is full for the moment is no failure: it is tried again soon, for as long as
/// the caller waits.
async fn connect(socket: &Path) -> Result<UnixStream, Failure> {
    loop {
        match UnixStream::connect(socket).await {
            // So unix(7) says it on a socket that does not block.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let random = u64::from(getrandom::u32().unwrap_or(0)) % 16;
                sleep(Duration::from_millis(5 + random)).await;
            }
            Err(error) => {
                return Err(Failure::Unreachable {
                    path: socket.display().to_string(),
                    error,
                });
            }
            Ok(stream) => return Ok(stream),
        }
    }
}

async fn exchange(
    mut sender: SendRequest<Full<Bytes>>,
    asking: &Asking,
    body: Bytes,
) -> Result<Response<Incoming>, Failure> {
    let mut nonce = None;
    loop {
        sender.ready().await?;
        let request = request(asking, body.clone(), nonce.as_ref())?;
        let response = sender.send_request(request).await?;
        if response.status() == asking.hoped {
            return Ok(response);
        }
        let challenge = response.headers().get(session::NONCE_HEADER).cloned();
        let code = refusal(response).await?;
        // Once: a node that asks again does not accept the answer.
        if code == Code::NonceRequired && nonce.is_none() && challenge.is_some() {
            nonce = challenge;
        } else {
            return Err(Failure::Refused(code));
        }
    }
}

fn request(
    asking: &Asking,
    body: Bytes,
    nonce: Option<&HeaderValue>,
) -> Result<Request<Full<Bytes>>, Failure> {
    let mut request = Request::post(asking.path)
        .header(HOST, "mayfly")
        .header(CONTENT_TYPE, "application/json");
    if asking.upgrade {
        request = request
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, session::UPGRADE);
    }
    if let Some(nonce) = nonce {
        request = request.header(session::NONCE_HEADER, nonce);
    }
    request
        .body(Full::new(body))
        .map_err(|error| Failure::Broken(std::io::Error::other(error)))
}

async fn refusal(response: Response<Incoming>) -> Result<Code, Failure> {
    let status = response.status();
    let not_ours = || {
        Failure::protocol(
            "what was asked for or a refusal",
            format!("HTTP status {status}"),
        )
    };
    let body = Limited::new(response.into_body(), MAX_REFUSAL);
    let body = body.collect().await.map_err(|_| not_ours())?.to_bytes();
    let refusal: Refusal = serde_json::from_slice(&body).map_err(|_| not_ours())?;
    Ok(refusal.code)
}
