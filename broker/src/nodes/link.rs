//! The node link: HTTP/2 over mutual TLS (the table of [`mayfly_wire::link`]). A connection speaks for
//! the node that its client certificate names.

use super::Nodes;
use super::lines::Lines;
use crate::http::{self, Answer};
use crate::pki;
use crate::places::Places;
use crate::run::stopped;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mayfly_node::upstream::Session;
use mayfly_wire::link::{
    EVENT_PATH, GRANTED_PATH, HEARTBEAT_PATH, Heartbeat, NodeEvent, SESSION_PATH, SessionRequest,
};
use mayfly_wire::{Code, Evidence, Refusal};
use rustls::ServerConfig;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// Most connections at once: nodes need one or two each. Anybody may connect, so each address has its
/// share.
const CONNECTIONS: usize = 4096;
/// Sessions of one node that are given up before they are looked at.
const RESETS: usize = 1024;
/// Most requests at once on one connection: its sessions, and a few more.
const STREAMS: u32 = 16 * 1024;
/// What a node may still send for sessions that are over, as some always comes too late. It is counted
/// for the whole life of a connection that all its workloads share, which is made anew then.
const LATE: usize = 64 * 1024;
/// For the TLS handshake, and for the first line of a session.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a node may take to read one message.
const WRITE_TIME: Duration = Duration::from_secs(20);
/// Most bytes of a message that carries evidence.
const MAX_MESSAGE: usize = 1024 * 1024;
/// Messages on their way down one session.
const UNREAD: usize = 4;

/// Serves until `stop`. A connection that fails harms no other.
pub async fn serve(
    nodes: Arc<Nodes>,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    mut stop: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Places::new(CONNECTIONS);
    loop {
        let (stream, address) = tokio::select! {
            () = stopped(&mut stop) => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the node link cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let Some(place) = places.take(address.ip()) else {
            continue;
        };
        let (nodes, acceptor, mut stop) = (Arc::clone(&nodes), acceptor.clone(), stop.clone());
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                ended = connection(nodes, acceptor, stream) => {
                    if let Err(error) = ended {
                        // Anybody who reaches the port can make these as fast as they like.
                        tracing::debug!(error, "a connection to the node link ended");
                    }
                }
                () = stopped(&mut stop) => {}
            }
        });
    }
}

async fn connection(
    nodes: Arc<Nodes>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let stream = timeout(PATIENCE, acceptor.accept(stream)).await??;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificate = certificates
        .first()
        .ok_or("the client has no certificate")?;
    let node: Arc<str> = pki::node_name(certificate)?.into();
    let service = service_fn(move |request: Request<Incoming>| {
        let (nodes, node) = (Arc::clone(&nodes), Arc::clone(&node));
        async move {
            let answered = answer(&nodes, &node, request).await;
            Ok::<_, Infallible>(answered.unwrap_or_else(|refusal| http::refused(&refusal)))
        }
    });
    http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(16 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .keep_alive_interval(Some(PATIENCE))
        .keep_alive_timeout(PATIENCE)
        .max_local_error_reset_streams(Some(LATE))
        .max_pending_accept_reset_streams(RESETS)
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

async fn answer(
    nodes: &Arc<Nodes>,
    node: &str,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Refusal> {
    if request.method() != Method::POST {
        return Err(Code::NotFound.into());
    }
    let (head, body) = request.into_parts();
    match head.uri.path() {
        SESSION_PATH => session(nodes, node, body).await,
        GRANTED_PATH => {
            let evidence: Evidence = http::read(body, MAX_MESSAGE).await?;
            http::json(&nodes.granted(node, &evidence).await?)
        }
        HEARTBEAT_PATH => {
            let heartbeat: Heartbeat = http::read(body, MAX_MESSAGE).await?;
            http::json(&nodes.heartbeat(node, heartbeat).await?)
        }
        EVENT_PATH => {
            let event: NodeEvent = http::read(body, MAX_MESSAGE).await?;
            nodes.event(node, event).await?;
            http::json(&())
        }
        _ => Err(Code::NotFound.into()),
    }
}

async fn session(
    nodes: &Arc<Nodes>,
    node: &str,
    body: Incoming,
) -> Result<Response<Answer>, Refusal> {
    let mut lines = Lines::new(body);
    let first = timeout(PATIENCE, lines.next(MAX_MESSAGE)).await;
    let first = first.map_err(|_| Refusal::from(Code::TooSlow))??;
    let first = first.ok_or_else(|| Refusal::from(Code::BadRequest))?;
    let request: SessionRequest =
        serde_json::from_slice(&first).map_err(|_| Refusal::from(Code::BadRequest))?;
    let session = nodes.session(node, request).await?;
    let (down, receiver) = mpsc::channel(UNREAD);
    tokio::spawn(Box::pin(async move {
        if let Err(refusal) = relay(session, lines, down).await {
            tracing::debug!(%refusal, "a session over the node link ended");
        }
    }));
    Ok(http::lines(receiver))
}

/// Passes messages on until either side ends.
async fn relay(
    mut session: Session,
    mut lines: Lines,
    down: mpsc::Sender<Bytes>,
) -> Result<(), Refusal> {
    let mut up_open = true;
    loop {
        tokio::select! {
            message = session.down.recv() => {
                let Some(message) = message else {
                    return Ok(());
                };
                let mut line = serde_json::to_vec(&message).map_err(|_| Refusal::from(Code::Internal))?;
                line.push(b'\n');
                let sent = timeout(WRITE_TIME, down.send(line.into())).await;
                if !matches!(sent, Ok(Ok(()))) {
                    return Err(Code::TooSlow.into());
                }
            }
            line = lines.next(MAX_MESSAGE), if up_open => match line? {
                Some(line) => {
                    let message = serde_json::from_slice(&line);
                    let message = message.map_err(|_| Refusal::from(Code::BadRequest))?;
                    // A session that takes no more is about to end, and says so downward.
                    up_open = session.up.send(message).await.is_ok();
                }
                None => return Ok(()),
            },
            () = down.closed() => return Ok(()),
        }
    }
}
