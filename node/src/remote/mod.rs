//! The broker at the other end of the node link: HTTP/2 over mutual TLS, as
//! [`mayfly_wire::link`] says.

mod body;
mod connection;

use crate::lines::{Lines, line};
use crate::upstream::{Answer, Session, Upstream};
use body::{Body, Upward};
pub use connection::{BrokerConfig, RemoteError};
use connection::{Link, Requests};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response, StatusCode};
use mayfly_wire::link::{
    EVENT_PATH, GRANTED_PATH, HEARTBEAT_PATH, Heartbeat, NodeEvent, SESSION_PATH, SessionRequest,
    Watch,
};
use mayfly_wire::session::{Granted, MAX_SERVER_LINE, ServerMessage};
use mayfly_wire::{Code, Evidence, Refusal};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long a broker may take to begin its answer: to one question, or to a request for a session,
/// for which it may have to wait for an engine's target.
const ANSWER: Duration = Duration::from_secs(20);
/// Messages on the way in one session, each way.
const IN_FLIGHT: usize = 4;
/// Most bytes of an answer that is not a stream. 100,000 watched workloads are 15 MB.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// One of several brokers that share one store; whichever answers.
pub struct RemoteBroker {
    link: Link,
}

impl RemoteBroker {
    /// Reads certificates and key once, to find mistakes now; they are read again at every
    /// connection, so that renewed ones count without a restart. Does not connect yet.
    ///
    /// # Errors
    /// [`RemoteError`], which names the file.
    pub fn new(config: BrokerConfig) -> Result<Self, RemoteError> {
        let link = Link::new(config)?;
        Ok(Self { link })
    }

    /// One question, one answer.
    async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &'static str,
        question: &Q,
    ) -> Result<A, Refusal> {
        let body = serde_json::to_vec(question).map_err(|error| internal(&error))?;
        let body = Body::Whole(Full::new(Bytes::from(body)));
        let asked = async {
            let response = self.send(path, body).await?;
            let bytes = read_whole(response).await?;
            // An empty answer stands for "yes".
            let bytes: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
            serde_json::from_slice(bytes).map_err(|error| internal(&error))
        };
        timeout(ANSWER, asked)
            .await
            .unwrap_or_else(|_| Err(unavailable(&"no answer in time")))
    }

    /// Sends a request; a status other than 200 becomes the refusal in its body.
    async fn send(&self, path: &'static str, body: Body) -> Result<Response<Incoming>, Refusal> {
        let (mut requests, authority) = self.link.requests().await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://{authority}{path}"))
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| internal(&error))?;
        let response = send(&mut requests, request).await?;
        if response.status() == StatusCode::OK || response.status() == StatusCode::NO_CONTENT {
            return Ok(response);
        }
        let status = response.status();
        let bytes = read_whole(response).await?;
        Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            unavailable(&format_args!(
                "the broker answered {status} without a refusal"
            ))
        }))
    }

    async fn open(&self, request: SessionRequest) -> Result<Session, Refusal> {
        let first = line(&request).map_err(|error| internal(&error))?;
        let (up, messages) = mpsc::channel(IN_FLIGHT);
        let body = Body::Stream(Upward::new(first, messages));
        let response = timeout(ANSWER, self.send(SESSION_PATH, body))
            .await
            .unwrap_or_else(|_| Err(unavailable(&"no answer in time")))?;
        let (down, receiver) = mpsc::channel(IN_FLIGHT);
        tokio::spawn(receive(response.into_body(), down));
        Ok(Session { up, down: receiver })
    }
}

async fn send(
    requests: &mut Requests,
    request: Request<Body>,
) -> Result<Response<Incoming>, Refusal> {
    let sent = async {
        requests.ready().await?;
        requests.send_request(request).await
    };
    sent.await.map_err(|error| unavailable(&error))
}

async fn read_whole(response: Response<Incoming>) -> Result<Bytes, Refusal> {
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await;
    body.map(http_body_util::Collected::to_bytes)
        .map_err(|error| unavailable(&error))
}

/// Passes on the messages of one session until either side ends it. Dropping the body resets the
/// stream, which tells the broker.
async fn receive(mut body: Incoming, down: mpsc::Sender<ServerMessage>) {
    let mut lines = Lines::new(MAX_SERVER_LINE);
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = down.closed() => return,
        };
        let Some(Ok(frame)) = frame else { return };
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        let mut rest = &bytes[..];
        while let Some(line) = lines.take(&mut rest) {
            let message = line.and_then(|line| {
                serde_json::from_slice(&line).map_err(|_| "expected a message in JSON")
            });
            let message = match message {
                Ok(message) => message,
                Err(error) => {
                    tracing::warn!(error, "the broker sent what is not a message");
                    return;
                }
            };
            if down.send(message).await.is_err() {
                return;
            }
        }
    }
}

/// For the one who asked it is only "not available"; the cause goes to the log.
fn unavailable(cause: &dyn std::fmt::Display) -> Refusal {
    tracing::warn!(%cause, "the broker is not available");
    Code::Unavailable.into()
}

fn internal(cause: &dyn std::fmt::Display) -> Refusal {
    tracing::error!(%cause, "the broker's answer is not understood");
    Code::Internal.into()
}

impl Upstream for RemoteBroker {
    fn session(&self, request: SessionRequest) -> Answer<'_, Session> {
        Box::pin(self.open(request))
    }

    fn granted(&self, evidence: Evidence) -> Answer<'_, Granted> {
        Box::pin(async move { self.ask(GRANTED_PATH, &evidence).await })
    }

    fn heartbeat(&self, heartbeat: Heartbeat) -> Answer<'_, Watch> {
        Box::pin(async move { self.ask(HEARTBEAT_PATH, &heartbeat).await })
    }

    fn event(&self, event: NodeEvent) -> Answer<'_, ()> {
        Box::pin(async move { self.ask(EVENT_PATH, &event).await })
    }
}
