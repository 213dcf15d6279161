//! Accounts at real servers, which live as long as a container.

mod postgres;
mod rotation;
mod servers;
