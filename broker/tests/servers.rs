//! The engines against real servers, which each suite starts for itself. Root must run it: the servers
//! run as users of their own.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "servers/mysql.rs"]
mod mysql;
#[path = "servers/rabbitmq.rs"]
mod rabbitmq;
#[path = "servers/redis.rs"]
mod redis;
#[path = "../../tests/src/harness/servers.rs"]
mod server;
#[path = "servers/support.rs"]
mod support;
