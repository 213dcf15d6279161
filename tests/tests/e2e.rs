//! The end-to-end suites, one module each. They need root, what `tests/setup` installs and what
//! `make build` builds, and fail without.

mod e2e {
    mod apps;
    mod attacks;
    mod bare;
    mod databases;
    mod deadman;
    mod engines;
    mod guard;
    mod images;
    mod isolation;
    mod leases;
    mod memory;
    mod residue;
    mod resilience;
    mod rules;
    mod services;
    mod session;
    mod starts;
}
