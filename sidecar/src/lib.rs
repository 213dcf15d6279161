//! The sidecar: one small process for each container, which turns bundles into files on a tmpfs.
//!
//! | module | what it does |
//! |---|---|
//! | [`options`] | the command line |
//! | [`session`] | the stream on which bundles arrive |
//! | [`publish`] | files, generations, and their end |
//! | [`clock`] | what time it is, by clocks that do not agree |
//! | [`run`] | ties the two together, with time and signals |
//!
//! It holds no secret after publishing. What has changed is found by comparing with the files that
//! are there, which also survives a restart and repairs what somebody else wrote into them.

pub mod backoff;
pub mod clock;
pub mod config;
pub mod ending;
pub mod log;
pub mod notify;
pub mod options;
pub mod publish;
pub mod render;
pub mod run;
pub mod session;
pub mod status;
