//! Policy, engines, leases, store, seal and audit, behind one door.

pub mod audit;
pub mod clock;
pub mod engine;
pub mod oidc;
pub mod pki;
pub mod policy;
pub mod seal;
pub mod store;
#[cfg(test)]
mod testing;
pub mod unseal;
