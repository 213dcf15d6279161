//! Packets of the MySQL protocol: bytes under a length and a number, and what stands in them
//! (<https://dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html>).

use super::super::stream::Stream;
use std::io;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use zeroize::Zeroizing;

/// Most bytes of one packet, either way; beyond that the protocol would split it.
pub(super) const MAX: usize = 1024 * 1024;

pub(super) fn wrong(what: &str) -> io::Error {
    let text = format!("expected MariaDB or MySQL, found {what}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Reads one packet, and sets `number` to the one that comes next.
pub(super) async fn read(stream: &mut Stream, number: &mut u8) -> io::Result<Vec<u8>> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).await?;
    let [a, b, c, found] = header;
    let length = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
    if length > MAX {
        return Err(wrong("a packet beyond all limits"));
    }
    if found != *number {
        return Err(wrong("a packet out of order"));
    }
    *number = number.wrapping_add(1);
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Writes one packet, and sets `number` to the one that comes next.
pub(super) async fn write(stream: &mut Stream, number: &mut u8, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() > MAX {
        return Err(io::Error::other("a statement is longer than 1 MiB"));
    }
    let [a, b, c, ..] = bytes.len().to_le_bytes();
    let mut packet = Zeroizing::new(Vec::with_capacity(bytes.len() + 4));
    packet.extend_from_slice(&[a, b, c, *number]);
    packet.extend_from_slice(bytes);
    *number = number.wrapping_add(1);
    stream.write_all(&packet).await?;
    stream.flush().await
}

/// What is left to read of a packet.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let split = self.0.split_at_checked(length);
        let (taken, rest) = split.ok_or_else(|| wrong("a packet that is cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    /// A number of so many bytes, the lowest first.
    pub(super) fn number(&mut self, bytes: usize) -> io::Result<u64> {
        let taken = self.take(bytes)?;
        Ok(taken
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    /// Bytes up to a NUL, which need not be there at the end of the packet.
    pub(super) fn text(&mut self) -> &'a [u8] {
        let end = self.0.iter().position(|byte| *byte == 0);
        let (text, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest.get(1..).unwrap_or_default();
        text
    }

    /// A number in as many bytes as it needs; none is a NULL.
    pub(super) fn length(&mut self) -> io::Result<Option<u64>> {
        Ok(match self.byte()? {
            0xFB => None,
            0xFC => Some(self.number(2)?),
            0xFD => Some(self.number(3)?),
            0xFE => Some(self.number(8)?),
            0xFF => return Err(wrong("a length that is none")),
            small => Some(u64::from(small)),
        })
    }

    /// One field of a row.
    pub(super) fn field(&mut self) -> io::Result<Option<String>> {
        let Some(length) = self.length()? else {
            return Ok(None);
        };
        let length = usize::try_from(length).map_err(|_| wrong("a length beyond all limits"))?;
        Ok(Some(
            String::from_utf8_lossy(self.take(length)?).into_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_are_written_and_read_in_their_order() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let (mut ours, mut theirs): (Stream, Stream) = (Box::new(ours), Box::new(theirs));
        let mut sent = 0;
        write(&mut ours, &mut sent, b"abc").await.unwrap();
        write(&mut ours, &mut sent, &[7; 300]).await.unwrap();
        let mut next = 0;
        assert_eq!(read(&mut theirs, &mut next).await.unwrap(), b"abc");
        assert_eq!(read(&mut theirs, &mut next).await.unwrap(), [7; 300]);
        assert_eq!((sent, next), (2, 2));
        next = 5;
        write(&mut ours, &mut sent, b"x").await.unwrap();
        let found = read(&mut theirs, &mut next).await.unwrap_err().to_string();
        assert!(found.contains("out of order"));
        ours.write_all(&[0xFF, 0xFF, 0xFF, 0]).await.unwrap();
        let found = read(&mut theirs, &mut next).await.unwrap_err().to_string();
        assert!(found.contains("limits"), "{found}");
        assert!(
            write(&mut ours, &mut sent, &vec![0; MAX + 1])
                .await
                .is_err()
        );
    }

    #[test]
    fn numbers_and_fields_of_every_length_are_read() {
        let field = |bytes: &[u8]| Reader(bytes).field().map_err(|error| error.to_string());
        assert_eq!(field(b"\x03abcd"), Ok(Some("abc".to_owned())));
        assert_eq!(field(b"\xFB"), Ok(None));
        assert_eq!(field(b"\xFC\x01\0a"), Ok(Some("a".to_owned())));
        assert_eq!(field(b"\xFD\x01\0\0a"), Ok(Some("a".to_owned())));
        assert_eq!(field(b"\xFE\x01\0\0\0\0\0\0\0a"), Ok(Some("a".to_owned())));
        for bad in [
            &b""[..],
            b"\xFF",
            b"\x05abc",
            b"\xFC\x01",
            b"\xFE\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFFa",
        ] {
            assert!(field(bad).is_err(), "{bad:?}");
        }
        let mut reader = Reader(b"name\0rest");
        assert_eq!(
            (reader.text(), reader.text(), reader.text()),
            (&b"name"[..], &b"rest"[..], &b""[..])
        );
    }
}
