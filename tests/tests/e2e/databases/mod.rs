//! Accounts at real servers, which live as long as a container.

mod crashes;
mod postgres;
mod rotation;
mod servers;
