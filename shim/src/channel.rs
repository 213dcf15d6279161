//! What the sidecar asks of us: one line on a socket, and one line back. See docs/sidecar.md, "With
//! the shim".

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Longer than any request.
const MAX_LINE: usize = 32;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Send this signal to the application.
    Signal(i32),
    /// Stop the application and start it again.
    Restart,
    /// Stop the application, and end with it.
    Stop,
}

/// Our end. One request is carried out at a time; the next one waits in the socket.
pub struct Channel {
    stream: UnixStream,
    line: [u8; MAX_LINE],
    length: usize,
    busy: bool,
    broken: bool,
}

impl Channel {
    /// A new one, and the sidecar's end of it.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (stream, theirs) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        let channel = Self {
            stream,
            line: [0; MAX_LINE],
            length: 0,
            busy: false,
            broken: false,
        };
        Ok((channel, theirs.into()))
    }

    /// What to wait for; `None` while nothing is to be read.
    pub fn watched(&self) -> Option<BorrowedFd<'_>> {
        (!self.busy && !self.broken).then(|| self.stream.as_fd())
    }

    /// The next request, which must be answered. What is not understood is answered here.
    pub fn next(&mut self) -> Option<Request> {
        while self.watched().is_some() {
            self.fill();
            let end = self.end_of_line()?;
            let request = parse(&self.line[..end]);
            self.line.copy_within(end + 1..self.length, 0);
            self.length -= end + 1;
            self.busy = true;
            if request.is_some() {
                return request;
            }
            self.answer("expected `signal N`, `restart` or `stop`");
        }
        None
    }

    /// Answers the request, if one is being carried out. If there is another by now, whoever made the
    /// first one has given it up, and would take the answer for that to the next.
    pub fn answer(&mut self, answer: &str) {
        if !std::mem::take(&mut self.busy) {
            return;
        }
        self.fill();
        if self.end_of_line().is_none() {
            self.broken |= self.stream.write_all(answer.as_bytes()).is_err();
            self.broken |= self.stream.write_all(b"\n").is_err();
        }
    }

    fn end_of_line(&self) -> Option<usize> {
        self.line[..self.length].iter().position(|b| *b == b'\n')
    }

    fn fill(&mut self) {
        if self.length == MAX_LINE {
            // Full, and not of requests: who writes so is not understood.
            self.broken |= self.end_of_line().is_none();
            return;
        }
        match self.stream.read(&mut self.line[self.length..]) {
            Ok(0) => self.broken = true,
            Ok(read) => self.length += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.broken = true,
        }
    }
}

fn parse(line: &[u8]) -> Option<Request> {
    match line {
        b"restart" => Some(Request::Restart),
        b"stop" => Some(Request::Stop),
        _ => {
            let number = std::str::from_utf8(line.strip_prefix(b"signal ")?).ok()?;
            let number = number.parse().ok().filter(|n| (1..=64).contains(n))?;
            Some(Request::Signal(number))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Channel, UnixStream) {
        let (channel, theirs) = Channel::pair().unwrap();
        let theirs = UnixStream::from(theirs);
        theirs.set_nonblocking(true).unwrap();
        (channel, theirs)
    }

    fn heard(theirs: &mut UnixStream) -> String {
        let mut text = [0; 256];
        let read = theirs.read(&mut text).unwrap_or(0);
        String::from_utf8_lossy(&text[..read]).into_owned()
    }

    #[test]
    fn requests_are_lines() {
        for (line, request) in [
            ("restart", Some(Request::Restart)),
            ("stop", Some(Request::Stop)),
            ("signal 1", Some(Request::Signal(1))),
            ("signal 64", Some(Request::Signal(64))),
            ("signal 0", None),
            ("signal 65", None),
            ("signal -1", None),
            ("signal HUP", None),
            ("restart now", None),
            ("", None),
            ("signal \u{fc}", None),
        ] {
            assert_eq!(parse(line.as_bytes()), request, "{line}");
            let (mut channel, mut theirs) = pair();
            theirs.write_all(format!("{line}\n").as_bytes()).unwrap();
            assert_eq!(channel.next(), request);
            assert_eq!(heard(&mut theirs).is_empty(), request.is_some());
        }
    }

    #[test]
    fn one_at_a_time_and_in_pieces() {
        let (mut channel, mut theirs) = pair();
        assert_eq!(channel.next(), None);
        theirs.write_all(b"rest").unwrap();
        assert_eq!(channel.next(), None);
        theirs.write_all(b"art\n").unwrap();
        assert_eq!(channel.next(), Some(Request::Restart));
        assert!(channel.watched().is_none() && channel.next().is_none());
        channel.answer("ok");
        assert_eq!(heard(&mut theirs), "ok\n");
        channel.answer("ok");
        assert_eq!(heard(&mut theirs), "", "nobody asked");
    }

    /// The sidecar's time was over, and it asks anew.
    #[test]
    fn who_gave_up_is_not_answered() {
        let (mut channel, mut theirs) = pair();
        theirs.write_all(b"restart\n").unwrap();
        assert_eq!(channel.next(), Some(Request::Restart));
        theirs.write_all(b"signal 1\n").unwrap();
        channel.answer("too late");
        assert_eq!(channel.next(), Some(Request::Signal(1)));
        channel.answer("ok");
        assert_eq!(heard(&mut theirs), "ok\n");
    }

    #[test]
    fn what_is_no_line_ends_it() {
        let (mut channel, mut theirs) = pair();
        theirs.write_all(&[b'x'; 4096]).unwrap();
        assert_eq!((channel.next(), channel.next()), (None, None));
        assert!(channel.watched().is_none());
        let (mut channel, theirs) = pair();
        drop(theirs);
        assert!(channel.next().is_none() && channel.watched().is_none());
    }
}
