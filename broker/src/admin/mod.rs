//! The admin socket: HTTP/1.1 over a unix socket that root and the broker's own user may connect to.

mod lists;
mod routes;
mod socket;

pub use socket::{SocketError, listen};

use crate::door::{Door, Operator};
use crate::http;
use crate::nodes::Nodes;
use crate::pki::Pki;
use crate::run::stopped;
use crate::sessions::Hub;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mayfly_wire::Code;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

/// Most connections at once.
const CONNECTIONS: usize = 128;
/// How long the header of a request may take.
const HEADER_TIME: Duration = Duration::from_secs(10);

/// What the admin API speaks of.
pub struct Admin {
    /// The door.
    pub door: Arc<Door>,
    /// The sessions.
    pub hub: Arc<Hub>,
    /// The nodes.
    pub nodes: Arc<Nodes>,
    /// What certifies nodes.
    pub pki: Arc<Pki>,
    /// What does not change while the broker runs.
    pub about: About,
}

/// What does not change while the broker runs.
pub struct About {
    /// When it started.
    pub started: Instant,
    /// Where its state is.
    pub state_dir: String,
    /// The name of its embedded node, if it has one.
    pub embedded_node: Option<String>,
    /// The workload socket of that node.
    pub workload_socket: Option<String>,
    /// Base of its OpenID discovery document.
    pub issuer: String,
}

impl Admin {
    /// Serves until `stop`.
    pub async fn serve(self: Arc<Self>, listener: UnixListener, mut stop: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let stream = tokio::select! {
                () = stopped(&mut stop) => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::error!(%error, "the admin socket does not accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let Some(operator) = operator_of(&stream) else {
                continue;
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                continue;
            };
            let (admin, mut stop) = (Arc::clone(&self), stop.clone());
            tokio::spawn(async move {
                let _place = place;
                let service = service_fn(move |request| {
                    let admin = Arc::clone(&admin);
                    // In a task of its own: an operator who hangs up must not stop an act halfway,
                    // such as a configuration that is stored and does not stand yet.
                    let act = tokio::spawn(Box::pin(async move {
                        routes::answer(&admin, &operator, request).await
                    }));
                    async move {
                        let answer = act.await.unwrap_or_else(|error| {
                            tracing::error!(%error, "an operator's request ended halfway");
                            Err(Code::Internal.into())
                        });
                        Ok::<_, std::convert::Infallible>(
                            answer.unwrap_or_else(|refusal| http::refused(&refusal)),
                        )
                    }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIME)
                    .max_buf_size(64 * 1024)
                    .serve_connection(TokioIo::new(stream), service);
                // An operator's half-written request ends with the broker.
                tokio::select! {
                    _ = connection => {}
                    () = stopped(&mut stop) => {}
                }
            });
        }
    }
}

/// Who connected, by SO_PEERCRED (unix(7)); nobody but root and the broker's own user.
fn operator_of(stream: &UnixStream) -> Option<Operator> {
    let own = nix::unistd::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own => Some(Operator {
            uid: peer.uid(),
            owner: true,
        }),
        Ok(peer) => {
            tracing::warn!(
                uid = peer.uid(),
                "someone else is at the admin socket: turned away"
            );
            None
        }
        Err(error) => {
            tracing::warn!(%error, "someone without credentials is at the admin socket");
            None
        }
    }
}
