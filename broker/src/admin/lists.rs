//! Lists that may be long, as they are read: a JSON array with each element on a line of its own. One that
//! cannot be read to its end lacks the end of the array.

use super::Admin;
use crate::door::{LeasePages, WorkloadPages};
use crate::http::{self, Answer};
use hyper::Response;
use hyper::body::Bytes;
use mayfly_wire::Refusal;
use mayfly_wire::admin::WorkloadInfo;
use serde::Serialize;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Pages that may wait for a slow reader.
const UNREAD: usize = 2;

/// All leases of these pages.
pub fn leases(mut pages: LeasePages) -> Response<Answer> {
    let (mut rows, receiver) = Rows::new();
    tokio::spawn(async move {
        loop {
            let page = pages.next().await;
            if !rows.page(page).await {
                return;
            }
        }
    });
    http::list(receiver)
}

/// All workloads of these pages, with their sessions.
pub fn workloads(admin: Arc<Admin>, mut pages: WorkloadPages) -> Response<Answer> {
    let (mut rows, receiver) = Rows::new();
    tokio::spawn(async move {
        loop {
            let page = pages.next().await;
            let page = page.map(|page| {
                let infos = page?.into_iter().map(|known| {
                    let evidence = known.evidence;
                    let (sessions, acknowledged) = admin.hub.of(&evidence.workload);
                    WorkloadInfo {
                        id: evidence.workload.id(),
                        name: evidence.display_name(),
                        evidence: (*evidence).clone(),
                        sessions,
                        leases: known.leases,
                        acknowledged,
                        publish_failure: known.failure,
                    }
                });
                Some(infos.collect::<Vec<_>>())
            });
            if !rows.page(page).await {
                return;
            }
        }
    });
    http::list(receiver)
}

/// An array on its way.
struct Rows {
    sender: mpsc::Sender<Bytes>,
    is_begun: bool,
}

impl Rows {
    fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (sender, receiver) = mpsc::channel(UNREAD);
        let rows = Self {
            sender,
            is_begun: false,
        };
        (rows, receiver)
    }

    /// Sends a page, or the end. Says whether there is more to come.
    async fn page<T: Serialize>(&mut self, page: Result<Option<Vec<T>>, Refusal>) -> bool {
        let mut text = Vec::new();
        let page = match page {
            Ok(page) => page,
            Err(refusal) => {
                tracing::error!(%refusal, "a list is not told to its end");
                return false;
            }
        };
        if !self.is_begun && page.is_none() {
            text.push(b'[');
        }
        let is_end = page.is_none();
        for row in page.unwrap_or_default() {
            text.push(if self.is_begun { b',' } else { b'[' });
            text.push(b'\n');
            self.is_begun = true;
            if let Err(error) = serde_json::to_writer(&mut text, &row) {
                tracing::error!(%error, "a list is not told to its end");
                return false;
            }
        }
        if is_end {
            text.extend_from_slice(b"\n]\n");
        }
        let sent = self.sender.send(text.into()).await;
        sent.is_ok() && !is_end
    }
}
