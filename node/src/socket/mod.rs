//! The workload socket: it is bind-mounted into every container, so whatever arrives on it is hostile
//! until its sender is attested, and nothing but the workload API answers.

mod admission;
mod answer;
mod once;
mod pace;
mod place;
mod relay;
mod service;
mod stream;

pub use place::PlaceError;
pub(crate) use place::{Spot, listen};

use crate::attest::Attestor;
use crate::config::Limits;
use crate::refusals::Refusals;
use crate::served::Served;
use crate::upstream::Upstream;
use admission::Admission;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use pace::Pace;
use service::{Connection, Shared};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use stream::{Caller, CheckedStream};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// Most bytes of a request's head, and of what is read ahead.
const MAX_HEAD: usize = 16 * 1024;
/// Most header fields of a request.
const MAX_HEADERS: usize = 32;
/// How long to wait when no descriptor is left for a connection.
const NO_DESCRIPTORS: Duration = Duration::from_millis(20);
/// How long requests and sessions may take to end when the node stops.
const DRAIN: Duration = Duration::from_secs(5);

/// What answers on the socket.
pub(crate) struct Server {
    pub(crate) attestor: Arc<Attestor>,
    pub(crate) upstream: Arc<dyn Upstream>,
    pub(crate) served: Arc<Served>,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) limits: Limits,
}

impl Server {
    /// Answers until `stopping` becomes true, then lets what is open end.
    ///
    /// # Errors
    /// When the listener cannot be waited for.
    pub(crate) async fn serve(
        self,
        listener: std::os::unix::net::UnixListener,
        mut stopping: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let listener = UnixListener::from_std(listener)?;
        let admission = Admission::new(
            self.limits.connections,
            self.limits.connections_per_container,
        );
        let (open, mut all_ended) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            upstream: Arc::clone(&self.upstream),
            served: Arc::clone(&self.served),
            pace: Pace::new(
                self.limits.requests_per_second_per_container,
                self.limits.request_burst_per_container,
            ),
            limits: self.limits,
            stopping: stopping.clone(),
            open,
        });
        loop {
            let accepted = tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping) => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => self.admit(stream, &admission, &shared),
                Err(error) => {
                    // The listener itself does not fail; what does is this connection, or there is
                    // no descriptor or memory left, which passes.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(NO_DESCRIPTORS).await;
                }
            }
        }
        drop(listener);
        drop(shared);
        // Nothing is ever sent: it ends when every sender is gone.
        let _ = timeout(DRAIN, all_ended.recv()).await;
        Ok(())
    }

    /// Decides from what the kernel says about a connection, before anything is read from it.
    fn admit(&self, stream: UnixStream, admission: &Arc<Admission>, shared: &Arc<Shared>) {
        let peer = match self.attestor.connected(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                self.refusals.report(None, error.into());
                return;
            }
        };
        let origin = peer.origin_hint();
        let caller = Arc::new(Caller::new(
            Arc::clone(&self.attestor),
            peer,
            Arc::clone(&self.refusals),
        ));
        let Some(place) = admission.admit(origin) else {
            caller.refuse("too_many", "too many connections at once");
            // It fits into an empty socket buffer, and if not, the close says enough.
            let _ = stream.try_write(answer::TOO_MANY);
            return;
        };
        let stream = CheckedStream::new(stream, Arc::clone(&caller), place);
        let connection = Arc::new(Connection {
            shared: Arc::clone(shared),
            caller,
            requests: AtomicUsize::new(0),
        });
        tokio::spawn(converse(stream, connection));
    }
}

/// Serves one connection until it ends, becomes a session, or its time is up.
async fn converse(stream: CheckedStream, connection: Arc<Connection>) {
    let shared = Arc::clone(&connection.shared);
    let caller = Arc::clone(&connection.caller);
    let _open = shared.open.clone();
    let service = service_fn(|request| {
        let connection = Arc::clone(&connection);
        async move { Ok::<_, Infallible>(connection.answer(request).await) }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.header())
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(conversation);
    let mut stopping = shared.stopping.clone();
    let until_stopped = async {
        tokio::select! {
            ended = conversation.as_mut() => return ended,
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
        conversation.as_mut().graceful_shutdown();
        conversation.as_mut().await
    };
    match timeout(shared.limits.request(), until_stopped).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.is_timeout() => {
            // One that was answered before is only idle.
            if connection.requests.load(Ordering::Relaxed) == 0 {
                caller.refuse("too_slow", "a request's head took too long".to_owned());
            }
        }
        // A client that broke off, or that did not speak HTTP and was told so.
        Ok(Err(error)) => tracing::debug!(%error, "a connection ended"),
        Err(_) => tracing::debug!("a connection without a session lasted too long"),
    }
}
