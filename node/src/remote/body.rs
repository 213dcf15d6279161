//! Bodies of requests to the broker.

use crate::lines::line;
use http_body_util::Full;
use hyper::body::{Bytes, Frame, SizeHint};
use mayfly_wire::link::SessionUpdate;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// The body of a request to the broker.
pub(super) enum Body {
    Whole(Full<Bytes>),
    Stream(Upward),
}

/// The upward half of a session: its request, then its updates, until the sender is dropped.
pub(super) struct Upward {
    first: Option<Vec<u8>>,
    messages: mpsc::Receiver<SessionUpdate>,
}

impl Upward {
    pub(super) fn new(first: Vec<u8>, messages: mpsc::Receiver<SessionUpdate>) -> Self {
        Self {
            first: Some(first),
            messages,
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(context),
            Self::Stream(upward) => {
                if let Some(first) = upward.first.take() {
                    return Poll::Ready(Some(Ok(Frame::data(first.into()))));
                }
                let message = std::task::ready!(upward.messages.poll_recv(context));
                // A message that is not JSON cannot be: the type is ours. The stream would end.
                let line = message.and_then(|message| line(&message).ok());
                Poll::Ready(line.map(|line| Ok(Frame::data(line.into()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
