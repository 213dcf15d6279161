//! Who is at the other end of a unix socket: once for the connection, and once for each message.
//!
//! See unix(7). SO_PEERPIDFD and SCM_PIDFD are Linux 6.5.

#![expect(
    unsafe_code,
    reason = "nix drops descriptors on error paths and does not know SCM_PIDFD"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use crate::pidfd::Pidfd;

/// From linux/socket.h; libc does not carry it.
const SCM_PIDFD: libc::c_int = 4;
/// Most descriptors that one message carries (SCM_MAX_FD, unix(7)).
const MOST_DESCRIPTORS: usize = 253;
/// Room for a message's credentials, its sender's pidfd, and as many descriptors as it can carry, in
/// words, so that it is aligned.
const CONTROL_WORDS: usize = (MOST_DESCRIPTORS * size_of::<RawFd>() + 128) / size_of::<u64>();

/// Credentials that the kernel attests: of a connection's other end when it connected, or of a
/// message's sender. Ids as seen from the caller's namespaces; pid 0 is a process that is not seen
/// from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Thread group id.
    pub pid: u32,
    /// Effective user id at that time.
    pub uid: u32,
    /// Effective group id at that time.
    pub gid: u32,
}

impl From<libc::ucred> for Credentials {
    fn from(found: libc::ucred) -> Self {
        Self {
            pid: found.pid.unsigned_abs(),
            uid: found.uid,
            gid: found.gid,
        }
    }
}

/// Who connected (SO_PEERCRED). It stays that process's, whoever holds the descriptor now.
///
/// # Errors
///
/// Those of getsockopt(2).
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let mut found = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into a struct of that size. nix's type for it
    // loses nothing, but hides a pid of 0 behind a signed one.
    Errno::result(unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut length,
        )
    })?;
    Ok(found.into())
}

/// Makes each message carry its sender's credentials (SO_PASSCRED). On a listener, it holds for every
/// connection that it accepts, and for what was sent before the accept.
///
/// # Errors
///
/// Those of setsockopt(2).
pub fn pass_credentials(socket: impl AsFd) -> io::Result<()> {
    Ok(setsockopt(&socket.as_fd(), sockopt::PassCred, &true)?)
}

/// Makes each message carry its sender's pidfd (SO_PASSPIDFD), likewise.
///
/// # Errors
///
/// ENOPROTOOPT on a kernel without it.
pub fn pass_pidfd(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int. nix does not know this option.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PASSPIDFD,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// What one receive gave.
#[derive(Debug)]
pub struct Received {
    /// Bytes written to the buffer; 0 is the end of the stream.
    pub len: usize,
    /// Who sent them. The kernel never joins bytes of two senders in one receive. Someone with
    /// CAP_SYS_ADMIN over its pid namespace can put any process that it sees here.
    pub sender: Option<Credentials>,
    /// The sender's pidfd, where SO_PASSPIDFD is on. A kernel that makes none for a sender that is
    /// already dead gives an error number in its place, which is `None` here.
    pub sender_pidfd: Option<Pidfd>,
    /// How many other descriptors came along. They are closed already.
    pub descriptors: usize,
}

/// Receives from a unix socket without waiting, with whatever says who sent it.
///
/// # Errors
///
/// [`io::ErrorKind::WouldBlock`] when nothing is there; [`io::ErrorKind::InvalidData`] when control
/// data was cut off (nothing then can be said about the sender; the connection must end); else those
/// of recvmsg(2).
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = [0_u64; CONTROL_WORDS];
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all of its fields may be zero. Its padding differs between C libraries, so that no
    // literal can make it.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    // SAFETY: buffer and control outlive the call, and their lengths are true.
    let len = unsafe {
        libc::recvmsg(
            socket.as_fd().as_raw_fd(),
            &raw mut header,
            libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT,
        )
    };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    let (mut sender, mut sender_pidfd, mut descriptors) = (None, None, 0);
    // Everything is taken before anything is judged, so that no descriptor is left open.
    each_control(&header, |kind, data| match kind {
        libc::SCM_CREDENTIALS => sender = credentials(data),
        SCM_PIDFD => sender_pidfd = owned(data).next().map(Pidfd::from),
        libc::SCM_RIGHTS => descriptors += owned(data).count(),
        _ => {}
    });
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message's control data was cut off",
        ));
    }
    Ok(Received {
        len,
        sender,
        sender_pidfd,
        descriptors,
    })
}

/// Calls `with` for each control message of level SOL_SOCKET, with its type and its bytes.
fn each_control(header: &libc::msghdr, mut with: impl FnMut(libc::c_int, &[u8])) {
    // SAFETY: the macros walk the control buffer within the length that the kernel wrote to the
    // header. Each message's length counts its header, and the kernel wrote that many bytes.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(header);
        while !next.is_null() {
            let length = ((*next).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            if (*next).cmsg_level == libc::SOL_SOCKET {
                let data = std::slice::from_raw_parts(libc::CMSG_DATA(next), length);
                with((*next).cmsg_type, data);
            }
            next = libc::CMSG_NXTHDR(header, next);
        }
    }
}

/// Takes the descriptors of a control message. A negative one is an error number.
fn owned(data: &[u8]) -> impl Iterator<Item = OwnedFd> {
    data.chunks_exact(size_of::<RawFd>())
        .filter_map(|bytes| bytes.try_into().ok().map(RawFd::from_ne_bytes))
        .filter(|number| *number >= 0)
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        .map(|number| unsafe { OwnedFd::from_raw_fd(number) })
}

fn credentials(data: &[u8]) -> Option<Credentials> {
    // SAFETY: at least that many bytes are there, and any bytes are a ucred; they need not be
    // aligned.
    (data.len() >= size_of::<libc::ucred>())
        .then(|| unsafe { data.as_ptr().cast::<libc::ucred>().read_unaligned() }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::{IoSlice, Write as _};
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        pass_credentials(&ours).unwrap();
        (ours, theirs)
    }

    #[test]
    fn each_message_says_who_sent_it() {
        let (ours, mut theirs) = pair();
        pass_pidfd(&ours).unwrap();
        theirs.write_all(b"hello").unwrap();
        let mut buffer = [0; 16];
        let received = recv(&ours, &mut buffer).unwrap();
        assert_eq!(&buffer[..received.len], b"hello");
        assert_eq!(received.sender, Some(peer_credentials(&ours).unwrap()));
        assert_eq!(received.sender.unwrap().pid, std::process::id());
        let pidfd = received.sender_pidfd.unwrap();
        assert_eq!(pidfd.pid().unwrap(), Some(std::process::id()));
        assert_eq!(received.descriptors, 0);
        let empty = recv(&ours, &mut buffer).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn descriptors_that_come_along_are_counted_and_closed() {
        let (ours, theirs) = pair();
        let (probe, passed) = UnixStream::pair().unwrap();
        let numbers = [passed.as_raw_fd(); MOST_DESCRIPTORS];
        sendmsg::<()>(
            theirs.as_raw_fd(),
            &[IoSlice::new(b"x")],
            &[ControlMessage::ScmRights(&numbers)],
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        drop(passed);
        let received = recv(&ours, &mut [0; 8]).unwrap();
        assert_eq!((received.len, received.descriptors), (1, MOST_DESCRIPTORS));
        // The other end of what was passed sees the end of the stream: nobody holds it any more. A child
        // that another test just made may, for a while.
        let start = Instant::now();
        let ended = loop {
            match recv(&probe, &mut [0; 8]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                ended => break ended.unwrap(),
            }
            assert!(start.elapsed() < Duration::from_secs(30), "it is held");
            std::thread::sleep(Duration::from_millis(1));
        };
        assert_eq!(ended.len, 0);
    }
}
