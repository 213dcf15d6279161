//! The lines of a streaming body, each within its limit.

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use mayfly_wire::{Code, Refusal};
use std::collections::VecDeque;

/// Lines as they come.
pub struct Lines {
    body: Incoming,
    waiting: VecDeque<Bytes>,
    partial: Vec<u8>,
}

impl Lines {
    /// Of this body.
    pub fn new(body: Incoming) -> Self {
        Self {
            body,
            waiting: VecDeque::new(),
            partial: Vec::new(),
        }
    }

    /// The next line without its line feed; nothing at the end. Can be cancelled: what was read stays.
    ///
    /// # Errors
    /// [`Code::BadRequest`] for a line of more than `most` bytes, or a body that breaks off.
    pub async fn next(&mut self, most: usize) -> Result<Option<Vec<u8>>, Refusal> {
        loop {
            while let Some(mut chunk) = self.waiting.pop_front() {
                let end = chunk.iter().position(|&byte| byte == b'\n');
                let take = end.unwrap_or(chunk.len());
                if self.partial.len() + take > most {
                    return Err(Code::BadRequest.into());
                }
                self.partial.extend_from_slice(&chunk.split_to(take));
                if end.is_some() {
                    let rest = chunk.split_off(1);
                    if !rest.is_empty() {
                        self.waiting.push_front(rest);
                    }
                    return Ok(Some(std::mem::take(&mut self.partial)));
                }
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.waiting.push_back(data);
                    }
                }
                Some(Err(_)) => return Err(Code::BadRequest.into()),
                None => return Ok(None),
            }
        }
    }
}
