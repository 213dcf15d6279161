//! The `postgres` engine against a real server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "postgres/hostile.rs"]
mod hostile;
#[path = "postgres/place.rs"]
mod place;
#[path = "postgres/proxy.rs"]
mod proxy;
#[path = "postgres/roles.rs"]
mod roles;
#[path = "postgres/rotation.rs"]
mod rotation;
#[path = "../../tests/src/harness/postgres.rs"]
#[allow(dead_code, missing_docs)]
mod server;
#[path = "postgres/troubles.rs"]
mod troubles;
