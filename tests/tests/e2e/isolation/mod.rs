//! What one process of a uid can do to another: everything, as the kernel has it, unless that one keeps
//! it off. Tried for real, from the application and from a second container, on the sidecar and the shim.
//!
//! | tried | on | here |
//! |---|---|---|
//! | ptrace, process_vm_readv and writev, `/proc/PID/mem`, `root`, `fd`, pidfd_getfd and what else leads in | sidecar, shim, application | `ways` |
//! | abstract sockets, descriptors passed over them | everything of ours that runs | `sockets` |
//! | keyrings | containers of one uid | `attacks/keyrings` |
//! | descriptors of the workload socket, passed between containers and siblings | the node | `attacks/descriptors` |

mod scene;
mod sockets;
mod ways;
