//! The workload socket: it is bind-mounted into every container, so whatever arrives on it is hostile
//! until its sender is attested, and nothing but the workload API answers.

mod accept;
mod admission;
mod answer;
mod once;
mod pace;
mod place;
mod recent;
mod relay;
mod service;
#[cfg(test)]
pub(crate) mod stand_in;
mod stream;

pub use place::PlaceError;
pub(crate) use place::{Spot, listen};

use crate::attest::Attestor;
use crate::config::Limits;
use crate::refusals::Refusals;
use crate::served::Served;
use crate::upstream::Upstream;
use accept::Door;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mayfly_kernel::priority::put_this_thread_first;
use pace::Pace;
use service::{Connection, Shared};
use std::convert::Infallible;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stream::CheckedStream;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

/// Most bytes of a request's head, and of what is read ahead.
const MAX_HEAD: usize = 16 * 1024;
/// Most header fields of a request.
const MAX_HEADERS: usize = 32;
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
    /// When the thread that takes connections cannot be started, or died.
    pub(crate) async fn serve(
        self,
        listener: std::os::unix::net::UnixListener,
        mut stopping: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let (open, mut all_ended) = mpsc::channel(1);
        let shared = self.shared(stopping.clone(), open);
        let door = Door::new(listener, self, shared);
        let (until, close) = io::pipe()?;
        let (closing, mut closed) = oneshot::channel();
        let runtime = Handle::current();
        std::thread::Builder::new()
            .name("mayfly-accept".to_owned())
            .spawn(move || {
                let _runtime = runtime.enter();
                // Who floods the socket has processes that all want to run, too.
                if let Err(error) = put_this_thread_first() {
                    tracing::info!(%error, "cannot prefer the thread that takes connections");
                }
                door.run(&until);
                let _ = closing.send(());
            })?;
        tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => {}
            _ = &mut closed => {
                return Err(io::Error::other("the thread that takes connections has died"));
            }
        }
        drop(close);
        let _ = closed.await;
        // Nothing is ever sent: it ends when every sender is gone.
        let _ = timeout(DRAIN, all_ended.recv()).await;
        Ok(())
    }
}

impl Server {
    fn shared(&self, stopping: watch::Receiver<bool>, open: mpsc::Sender<()>) -> Arc<Shared> {
        let limits = self.limits;
        Arc::new(Shared {
            upstream: Arc::clone(&self.upstream),
            served: Arc::clone(&self.served),
            pace: Pace::new(
                limits.requests_per_second_per_container,
                limits.request_burst_per_container,
            ),
            too_fast: Mutex::default(),
            limits,
            stopping,
            open,
        })
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
