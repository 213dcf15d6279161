//! Policy: Cedar (docs/policy.md). [`entity`] turns facts into entities, [`parse`] turns files into
//! policies, [`judge`] decides.

pub mod entity;
pub mod judge;
pub mod parse;
#[cfg(test)]
mod tests;

pub use judge::{Decision, Judge, Subject};
