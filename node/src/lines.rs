//! JSON messages, one a line, as sessions speak them.

use serde::Serialize;

/// One message as a line.
pub(crate) fn line<T: Serialize>(message: &T) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Cuts a stream of bytes into lines of a bounded length.
pub(crate) struct Lines {
    most: usize,
    partial: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            partial: Vec::new(),
        }
    }

    /// Takes the next line off `input`, without its end; `None` when `input` is used up.
    pub(crate) fn take(&mut self, input: &mut &[u8]) -> Option<Result<Vec<u8>, &'static str>> {
        let end = input.iter().position(|&byte| byte == b'\n');
        let part = &input[..end.unwrap_or(input.len())];
        if self.partial.len() + part.len() > self.most {
            return Some(Err("a line is longer than the protocol allows"));
        }
        self.partial.extend_from_slice(part);
        match end {
            Some(end) => {
                *input = &input[end + 1..];
                Some(Ok(std::mem::take(&mut self.partial)))
            }
            None => {
                *input = &[];
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let mut lines = Lines::new(8);
        let mut found = Vec::new();
        for piece in ["a", "b\nc", "d\n\n", "12345678\n"] {
            let mut input = piece.as_bytes();
            while let Some(line) = lines.take(&mut input) {
                found.push(String::from_utf8(line.unwrap()).unwrap());
            }
        }
        assert_eq!(found, ["ab", "cd", "", "12345678"]);
    }

    #[test]
    fn a_line_without_an_end_is_cut_off() {
        let mut lines = Lines::new(8);
        assert!(lines.take(&mut &b"12345"[..]).is_none());
        assert!(lines.take(&mut &b"6789"[..]).unwrap().is_err());
    }
}
