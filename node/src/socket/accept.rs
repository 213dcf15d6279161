//! Takes connections from the listener. All containers share its one queue, so whoever fills that with
//! connections keeps the others out: what takes them from it is a thread that does nothing else, and
//! it turns away who comes too often before it has opened anything on them.

use super::admission::Admission;
use super::answer;
use super::pace::Pace;
use super::service::{Connection, Shared};
use super::stream::{Caller, CheckedStream};
use super::{Server, converse};
use crate::attest::{Glimpse, Origin};
use crate::config::Limits;
use mayfly_wire::link::NodeRefusal;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use std::io::{self, PipeReader};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
use tokio::time::Instant;

/// How long to wait when no descriptor is left for a connection.
const NO_DESCRIPTORS: Duration = Duration::from_millis(20);
/// How many connections are taken before it is asked again whether the node stops.
const BATCH: usize = 256;
/// How many connections one container may open for each request that it may make, and how many at
/// least: each takes a tenth of a millisecond until it is counted.
const FOR_EACH_REQUEST: u32 = 4;
const LEAST_A_SECOND: u32 = 80;
const LEAST_AT_ONCE: u32 = 400;

/// Where connections come in.
pub(super) struct Door {
    // It is closed first.
    listener: UnixListener,
    server: Server,
    pace: Pace<Origin>,
    admission: Arc<Admission>,
    shared: Arc<Shared>,
}

impl Door {
    pub(super) fn new(listener: UnixListener, server: Server, shared: Arc<Shared>) -> Self {
        let limits = server.limits;
        Self {
            listener,
            server,
            pace: pace(&limits),
            admission: Admission::new(limits.connections, limits.connections_per_container),
            shared,
        }
    }

    /// Lets connections in until the other end of the pipe is closed. Within a runtime, which serves
    /// them.
    pub(super) fn run(self, stopping: &PipeReader) {
        loop {
            let readable = |of| PollFd::new(of, PollFlags::POLLIN);
            let mut watched = [readable(self.listener.as_fd()), readable(stopping.as_fd())];
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "cannot wait for connections");
                    std::thread::sleep(NO_DESCRIPTORS);
                }
            }
            if watched[1].any() != Some(false) {
                return;
            }
            for _ in 0..BATCH {
                match self.listener.accept() {
                    Ok((stream, _)) => self.receive(stream),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        // The listener itself does not fail; what does is this connection, or there is
                        // no descriptor or memory left, which passes.
                        tracing::warn!(%error, "cannot accept a connection");
                        std::thread::sleep(NO_DESCRIPTORS);
                        break;
                    }
                }
            }
        }
    }

    /// Decides from what the kernel says about a connection, before anything is read from it.
    fn receive(&self, stream: UnixStream) {
        let server = &self.server;
        let glimpse = server.attestor.glimpse(&stream);
        if self.pace.take(&glimpse.origin, Instant::now()).is_err() {
            self.turn_away(&stream, &glimpse);
            return;
        }
        let peer = match server.attestor.connected(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                server.refusals.report(None, error.into());
                return;
            }
        };
        let Some(place) = self.admission.admit(peer.origin_hint()) else {
            self.turn_away(&stream, &glimpse);
            return;
        };
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(stream));
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot wait for a connection");
                return;
            }
        };
        let (attestor, refusals) = (Arc::clone(&server.attestor), Arc::clone(&server.refusals));
        let caller = Arc::new(Caller::new(attestor, peer, refusals));
        let stream = CheckedStream::new(stream, Arc::clone(&caller), place);
        let connection = Arc::new(Connection {
            shared: Arc::clone(&self.shared),
            caller,
            requests: AtomicUsize::new(0),
        });
        tokio::spawn(converse(stream, connection));
    }

    fn turn_away(&self, stream: &UnixStream, glimpse: &Glimpse) {
        // It fits into an empty socket buffer, and if not, the close says enough.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = send(stream.as_raw_fd(), answer::TOO_MANY, flags);
        let refusal = NodeRefusal {
            reason: "too_many".to_owned(),
            detail: "too many connections at once".to_owned(),
            pid: glimpse.pid,
            uid: glimpse.uid,
            cgroup_path: None,
            workload: None,
            count: 1,
        };
        self.server.refusals.report(Some(glimpse.origin), refusal);
    }
}

fn pace(limits: &Limits) -> Pace<Origin> {
    let each = |requests: u32| requests.saturating_mul(FOR_EACH_REQUEST);
    let held = u32::try_from(limits.connections_per_container).unwrap_or(u32::MAX);
    Pace::new(
        each(limits.requests_per_second_per_container).max(LEAST_A_SECOND),
        each(limits.request_burst_per_container)
            .max(held.saturating_mul(2))
            .max(LEAST_AT_ONCE),
    )
}
