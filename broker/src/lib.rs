//! Policy, engines, leases, store, seal and audit, behind one door.

pub mod policy;
