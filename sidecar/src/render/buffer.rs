//! Where an output is put together: zeroed wherever it has been, and of bounded size.

use mayfly_wire::Secret;
use std::{fmt, io};
use zeroize::Zeroizing;

/// Most bytes of one output.
pub const MAX_OUTPUT: usize = 1 << 20;

/// Bytes that grow without leaving a copy behind, whatever the allocator.
#[derive(Default)]
pub struct Buffer(Zeroizing<Vec<u8>>);

impl Buffer {
    /// Adds bytes; whether they fit.
    #[must_use]
    pub fn add(&mut self, bytes: &[u8]) -> bool {
        let needed = self.0.len().saturating_add(bytes.len());
        if needed > MAX_OUTPUT {
            return false;
        }
        if needed > self.0.capacity() {
            let mut larger = Vec::with_capacity(needed.saturating_mul(2).max(256));
            larger.extend_from_slice(&self.0);
            self.0 = Zeroizing::new(larger);
        }
        self.0.extend_from_slice(bytes);
        true
    }

    /// How much there is.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What it holds, moved and not copied.
    #[must_use]
    pub fn into_secret(mut self) -> Secret {
        Secret::from(std::mem::take(&mut *self.0))
    }
}

impl fmt::Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match self.add(text.as_bytes()) {
            true => Ok(()),
            false => Err(fmt::Error),
        }
    }
}

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.add(bytes) {
            true => Ok(bytes.len()),
            false => Err(io::ErrorKind::FileTooLarge.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_to_its_bound_and_not_beyond() {
        let mut buffer = Buffer::default();
        let part = vec![b'x'; 1000];
        let mut fitted = 0;
        while buffer.add(&part) {
            fitted += 1;
        }
        assert_eq!(fitted, MAX_OUTPUT / 1000);
        assert!(buffer.add(b"y"));
        let secret = buffer.into_secret();
        assert_eq!(secret.len(), fitted * 1000 + 1);
        assert_eq!(secret.expose().last(), Some(&b'y'));
    }
}
