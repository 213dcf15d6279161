//! The contract between Mayfly's parts: every type that crosses a socket, the [`Secret`] type, and
//! the stable error codes. Nothing in here does I/O, so both ends of each socket share one source of
//! truth and cannot drift.
//!
//! | socket | who speaks | module |
//! |---|---|---|
//! | workload socket (unix, in every container) | sidecar or `curl` ↔ node | [`session`] |
//! | node link (HTTP/2, mutual TLS) | node ↔ broker | [`link`] |
//! | admin socket (unix, root only) | `mayfly` ↔ broker | [`admin`] |

pub mod admin;
pub mod audit;
pub mod bytes;
pub mod connection;
pub mod engine;
pub mod error;
pub mod evidence;
pub mod link;
pub mod name;
pub mod posture;
pub mod publish;
pub mod sealed;
pub mod secret;
pub mod session;
pub mod workload;

pub use connection::ConnectionConfig;
pub use engine::{EngineConfig, EngineKind};
pub use error::{Code, Refusal};
pub use evidence::{Assurance, Evidence, Facility};
pub use name::{ConnectionName, CredentialName, FieldName, KvPath};
pub use posture::Posture;
pub use publish::{Detail, PublishFailure, PublishFault};
pub use secret::Secret;
pub use workload::{LeaseId, WorkloadKey};
