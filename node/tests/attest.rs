//! Attestation on a real kernel: containers of bare namespaces and cgroups, and what they try. Needs
//! root.

mod attest {
    pub mod bench;
    pub mod engine;
    pub mod forbidden;
    pub mod found;
    pub mod harness;
    pub mod senders;
    pub mod watched;
}
