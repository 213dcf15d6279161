//! Attests the containers of one host, serves their workload socket, and watches for their deaths.

pub mod attest;
pub mod death;
pub mod upstream;
