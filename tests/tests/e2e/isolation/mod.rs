//! What one process of a uid can do to another: everything, as the kernel has it, unless that one keeps
//! it off. Tried for real, from the application and from a second container, on the sidecar and the shim. Once where all
//! of a container are one user, and once where the sidecar has a user of its own.
//!
//! | tried | on | here |
//! |---|---|---|
//! | ptrace, process_vm_readv and writev, `/proc/PID/mem`, `root`, `fd`, pidfd_getfd and what else leads in | sidecar, shim, application | `ways` |
//! | abstract sockets, descriptors passed over them | everything of ours that runs | `sockets` |
//! | keyrings | the application's and its sidecar's; containers of one uid | `ways`, `attacks/keyrings` |
//! | descriptors of the workload socket, passed between containers and siblings | the node | `attacks/descriptors` |

mod scene;
mod sockets;
mod ways;

use anyhow::Result;

use scene::{Scene, Users};

#[test]
fn where_all_are_one_user_nobody_gets_into_sidecar_or_shim() -> Result<()> {
    tried(Users::One)
}

#[test]
fn where_the_sidecar_has_a_user_of_its_own_nobody_gets_into_it_or_the_shim() -> Result<()> {
    tried(Users::Two)
}

fn tried(users: Users) -> Result<()> {
    let scene = Scene::new(users)?;
    sockets::are_of_no_use(&scene)?;
    ways::of_a_second_container(&scene)?;
    ways::of_the_application(&scene)
}
