//! What the sidecar shows of itself, and what it says of the application.

use super::Runner;
use super::acknowledge::Word;
use crate::log::{Level, Log};
use crate::notify::Told;
use crate::publish::{Publisher, tmpfs};
use crate::status::{self, Board};
use mayfly_wire::PublishFault;

impl Runner<'_> {
    /// Shows how things stand.
    pub(super) fn show(&mut self) {
        let stale = self.publisher.stale();
        let items = self.publisher.held().map(|(item, end)| status::Published {
            path: item.to_string(),
            expires_at_ms: self.publisher.wall(end.expires_at),
            stale: stale.contains(item),
        });
        self.status.items = items.collect();
        let ends = self.status.items.iter().filter(|item| !item.stale);
        self.status.next_expiry_ms = ends.map(|item| item.expires_at_ms).min();
        self.status.next_renewal_ms = self
            .renews_at
            .filter(|_| !self.status.items.is_empty())
            .map(|at| self.publisher.wall(at));
        self.status.generation = self.publisher.current().map(str::to_owned);
        self.status.acknowledging = self.word.is_some();
        self.status.unacknowledged = self.word == Some(Word::Late);
        self.status.missing.clone_from(&self.missing);
        self.status.error.clone_from(&self.complaint);
        self.status.not_followed = self.follow.trouble().map(str::to_owned);
        let notify = self.notifier.standing().map(|standing| status::Told {
            what: standing.what,
            state: standing.state.to_owned(),
            error: standing.error,
        });
        self.status.notify = notify.collect();
        self.board.show(self.publisher.dir(), &self.status);
    }

    /// Looks again at what the directory stands on: swap can come into use, a mount can be changed.
    pub(super) fn look_at_place(&mut self) {
        let unfit = match tmpfs::gather(self.publisher.dir()) {
            Ok(facts) => tmpfs::judge(&facts, self.options.allow_swap)
                .err()
                .map(|unfit| unfit.fault().phrase().to_owned()),
            Err(error) => Some(format!("cannot find out what the directory is: {error}")),
        };
        if let Some(why) = unfit.as_ref().filter(|_| unfit != self.status.unfit) {
            let fields = [("why", why.as_str().into())];
            self.log.event(Level::Error, "directory", &fields);
        }
        self.status.unfit = unfit;
    }

    /// Says how telling the application went.
    pub(super) fn told(&self, told: &Told) {
        let mut fields = vec![("how", told.what.as_str().into())];
        let Some(error) = &told.error else {
            self.log.event(Level::Info, "told the application", &fields);
            return;
        };
        fields.push(("why", error.as_str().into()));
        let (level, event) = match told.last {
            true => (Level::Error, "gave up telling the application"),
            false => (Level::Warn, "could not tell the application"),
        };
        self.log.event(level, event, &fields);
        if told.last {
            let why = format!("{}: {error}", told.what);
            self.owed.add(self.generation, PublishFault::NotTold, &why);
        }
    }
}

/// The board of a publishing directory. Without one there is still everything else.
pub fn board(publisher: &Publisher, log: Log) -> Board {
    match Board::open(publisher.dir()) {
        Ok((board, false)) => board,
        Ok((board, true)) => {
            let why = "another sidecar that lives publishes here too; give each a directory";
            log.event(Level::Error, "directory", &[("why", why.into())]);
            board
        }
        Err(error) => {
            let why = format!("there will be no status: {error}");
            log.event(Level::Warn, "directory", &[("why", why.into())]);
            Board::none()
        }
    }
}
