//! Opening a session over HTTP/1.1: the upgrade, and the nonce of a kernel without SO_PEERPIDFD.

use super::Failure;
use super::lines::Lines;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mayfly_wire::sealed::PublicKey;
use mayfly_wire::session::{self, Hello, PROTOCOL};
use mayfly_wire::{Code, CredentialName, Refusal};
use std::path::Path;
use std::pin::pin;
use tokio::net::UnixStream;

/// Most bytes of a refusal.
const MAX_REFUSAL: usize = 16 * 1024;

/// Connects, asks for a session, and returns its stream.
pub async fn open(
    socket: &Path,
    public_key: PublicKey,
    want: Option<Vec<CredentialName>>,
) -> Result<Lines, Failure> {
    let connected = UnixStream::connect(socket).await;
    let stream = connected.map_err(|error| Failure::Unreachable {
        path: socket.display().to_string(),
        error,
    })?;
    let hello = Hello {
        protocol: PROTOCOL,
        public_key,
        want,
    };
    let hello = serde_json::to_vec(&hello).map_err(std::io::Error::from)?;
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(32 * 1024)
        .handshake(TokioIo::new(stream))
        .await?;
    // The connection moves the bytes of the exchange, and ends when it is upgraded.
    let mut connection = pin!(connection.with_upgrades());
    let mut exchange = pin!(exchange(sender, Bytes::from(hello)));
    let upgraded = tokio::select! {
        upgraded = &mut exchange => upgraded,
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }?;
    let parts = upgraded
        .downcast::<TokioIo<UnixStream>>()
        .map_err(|_| Failure::protocol("the stream that was upgraded", "another one"))?;
    Ok(Lines::new(parts.io.into_inner(), &parts.read_buf))
}

async fn exchange(
    mut sender: SendRequest<Full<Bytes>>,
    hello: Bytes,
) -> Result<hyper::upgrade::Upgraded, Failure> {
    let mut nonce = None;
    loop {
        sender.ready().await?;
        let response = sender
            .send_request(request(hello.clone(), nonce.as_ref())?)
            .await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(hyper::upgrade::on(response).await?);
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

fn request(hello: Bytes, nonce: Option<&HeaderValue>) -> Result<Request<Full<Bytes>>, Failure> {
    let mut request = Request::post(session::SESSION_PATH)
        .header(HOST, "mayfly")
        .header(CONTENT_TYPE, "application/json")
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, session::UPGRADE);
    if let Some(nonce) = nonce {
        request = request.header(session::NONCE_HEADER, nonce);
    }
    request
        .body(Full::new(hello))
        .map_err(|error| Failure::Broken(std::io::Error::other(error)))
}

async fn refusal(response: Response<Incoming>) -> Result<Code, Failure> {
    let status = response.status();
    let not_ours = || Failure::protocol("101 or a refusal", format!("HTTP status {status}"));
    let body = Limited::new(response.into_body(), MAX_REFUSAL);
    let body = body.collect().await.map_err(|_| not_ours())?.to_bytes();
    let refusal: Refusal = serde_json::from_slice(&body).map_err(|_| not_ours())?;
    Ok(refusal.code)
}
