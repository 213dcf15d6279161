//! What is left of a secret where nobody looks: docs/memory.md says where nothing is, and this shows it.
//!
//! | file | searched |
//! |---|---|
//! | `accounts` | as `publishing`, for passwords and keys that the broker makes, and its own password |
//! | `publishing` | memory, arguments, environment, logs, state: after publishing, rotation, reading back |
//! | `exits` | each process's whole memory in its last moment, before the kernel takes it back |
//! | `cores` | core dumps, as a file and as a program gets them; and one of a broker laid open by root |
//! | `root_keys` | the broker's memory for its root keys, and where they stand |
//! | `pages` | the pages of the tmpfs, held from outside while the files on them go |
//! | `engine` | the container's writable layer, the engine's logs and all else that it wrote |
//! | `locked` | not a search: what is kept from swap, and what happens where little may be |
//! | `endurance` | nor this: a day's rotations, and what a minute without any costs |

mod accounts;
mod cores;
mod endurance;
mod engine;
mod exits;
mod locked;
mod pages;
mod publishing;
mod root_keys;
mod search;
