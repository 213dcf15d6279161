//! One connection, for one operation.

use super::{Connector, Failure, Server};
use crate::engine::EngineError;
use crate::engine::connections::Target;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// A connection for one operation. Dropped before the operation is [`done`](Self::done), it is cut off.
pub struct Lent<C: Connector> {
    server: Arc<Server<C>>,
    connection: Option<C::Connection>,
    in_use: bool,
    _permit: OwnedSemaphorePermit,
}

impl<C: Connector> Lent<C> {
    pub(super) fn new(
        server: Arc<Server<C>>,
        connection: C::Connection,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            server,
            connection: Some(connection),
            in_use: false,
            _permit: permit,
        }
    }

    /// The target that it is open to.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.server.target
    }

    /// The connection. From now on something may be under way on it.
    ///
    /// # Errors
    /// Never before [`done`](Self::done), which takes it away.
    pub fn connection(&mut self) -> Result<&mut C::Connection, EngineError> {
        self.in_use = true;
        let gone = || self.server.unavailable("the connection is gone");
        self.connection.as_mut().ok_or_else(gone)
    }

    /// The operation ended like this: the connection is kept for others, or cut off.
    ///
    /// # Errors
    /// The operation's: [`EngineError::Unfit`] if the server said no, else
    /// [`EngineError::Unavailable`].
    pub fn done<T>(mut self, outcome: Result<T, Failure>) -> Result<T, EngineError> {
        match outcome {
            Ok(answer) => {
                self.in_use = false;
                Ok(answer)
            }
            Err(Failure::Refused(cause)) => {
                self.in_use = false;
                Err(EngineError::Unfit(self.server.at_target(&cause)))
            }
            Err(Failure::Broken(cause)) => Err(self.server.unavailable(&cause)),
        }
    }
}

impl<C: Connector> Drop for Lent<C> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        if self.in_use {
            self.server.connector.cut_off(&self.server.name, connection);
        } else {
            self.server.give_back(connection);
        }
    }
}
