//! Mayfly.
fn main() {}
