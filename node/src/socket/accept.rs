//! Takes connections from the listener. All containers share its one queue, so whoever fills that with
//! connections keeps the others out: what takes them from it is a thread that does nothing else, and
//! it turns away who comes too often before it has opened anything on them.

use super::admission::Admission;
use super::answer;
use super::pace::Pace;
use super::recent::Recent;
use super::service::{Connection, Shared};
use super::stream::{Caller, CheckedStream};
use super::{Server, converse};
use crate::attest::{Glimpse, Origin};
use crate::config::Limits;
use mayfly_kernel::socket::peer_credentials;
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
/// How long a process that came too often is turned away by its pid alone, which costs a tenth of a
/// look at its cgroup. Before another process gets the pid, all others were given.
const BY_PID: Duration = Duration::from_millis(100);

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
        let mut turned_away = Recent::default();
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
                    Ok((stream, _)) => self.receive(stream, &mut turned_away),
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
    fn receive(&self, stream: UnixStream, turned_away: &mut Recent<u32, Origin>) {
        let (server, now) = (&self.server, Instant::now());
        let credentials = peer_credentials(&stream).ok();
        // 0 is every process that is not seen from here.
        let pid = credentials.map_or(0, |credentials| credentials.pid);
        if let Some((origin, _)) = turned_away.of(&pid, now) {
            self.turn_away(&stream, &Glimpse::of(origin, credentials));
            return;
        }
        let glimpse = server.attestor.glimpse(&stream, credentials);
        if self.pace.take(&glimpse.origin, now).is_err() {
            if pid != 0 {
                turned_away.note(pid, glimpse.origin, now + BY_PID);
            }
            self.turn_away(&stream, &glimpse);
            return;
        }
        let peer = match server.attestor.connected(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                server.refusals.report(Some(glimpse.origin), error.into());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::stand_in;
    use std::io::Read as _;

    #[tokio::test]
    async fn who_came_too_often_is_turned_away_by_its_pid_for_a_moment() {
        let path = std::env::temp_dir().join(format!("mayfly-door-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let (server, shared) = stand_in::server();
        let door = Door::new(listener, server, shared);
        let is_turned_away = |turned_away: &mut Recent<u32, Origin>| {
            let mut client = UnixStream::connect(&path).unwrap();
            let (stream, _) = door.listener.accept().unwrap();
            door.receive(stream, turned_away);
            client.set_nonblocking(true).unwrap();
            let mut answer = [0; 12];
            let answered = client.read_exact(&mut answer).is_ok();
            assert!(!answered || answer == *b"HTTP/1.1 429");
            answered
        };
        let (own, far) = (std::process::id(), Instant::now() + Duration::from_secs(60));

        let mut turned_away = Recent::default();
        turned_away.note(own + 1, Origin::Gone, far);
        assert!(!is_turned_away(&mut turned_away), "another's pid");
        turned_away.note(own, Origin::Gone, far);
        assert!(is_turned_away(&mut turned_away));

        let mut turned_away = Recent::default();
        let client = UnixStream::connect(&path).unwrap();
        let own_credentials = peer_credentials(&client).ok();
        let glimpse = door.server.attestor.glimpse(&client, own_credentials);
        let origin = glimpse.origin;
        drop((client, door.listener.accept()));
        // Taken in advance, so that nothing is left for a while.
        while door.pace.take(&origin, far).is_ok() {}
        let before = Instant::now();
        assert!(is_turned_away(&mut turned_away), "its pace");
        let noted = turned_away.of(&own, before);
        let (from, until) = noted.unwrap();
        assert_eq!(from, origin);
        assert!(turned_away.of(&own, until).is_none());
        std::fs::remove_file(&path).unwrap();
    }
}
