//! Policy, engines, leases, store, seal and audit, behind one door.

pub mod admin;
pub mod audit;
pub mod clock;
pub mod config;
pub mod door;
pub mod engine;
pub mod http;
pub mod leases;
pub mod nodes;
pub mod oidc;
pub mod pki;
pub mod places;
pub mod policy;
pub mod run;
pub mod seal;
pub mod sessions;
pub mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tls_tests;
pub mod trial;
pub mod unseal;
