//! What stands when things break: edits that show, kills at any moment, garbage.

pub mod app;
mod audit;
pub mod certificates;
pub mod crashes;
mod dev;
mod disk;
mod garbage;
pub mod node;
mod pace;
mod store;
mod tokens;
