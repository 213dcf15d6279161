//! What the suites stand on: container engines of our own, bare containers, images made without a
//! registry, the processes under test, and readers for what they must not leak.
//!
//! Everything started here ends when its value is dropped, and also when the test process dies by
//! whatever means: see [`Guard`]. Logs of all that ran stay in `target/<host>/e2e-logs/`.

mod bins;
mod broker;
mod cgroup;
mod compose;
mod container;
mod cores;
mod cost;
mod docker;
mod guard;
mod holder;
mod http;
mod image;
mod logins;
mod memory;
mod namespaces;
mod obey;
mod postgres;
mod raw;
mod reader;
mod realm;
mod root_key;
mod servers;
mod session;
mod small;
mod temp;
mod trace;
mod wait;

pub use bins::{binary, example, log_path};
pub use broker::{Broker, BrokerOptions};
pub use cgroup::{Cgroup, cgroup_of};
pub use compose::Compose;
pub use container::Container;
pub use cores::{CoreKind, Cores};
pub use cost::{IdleCost, idle_cost, open_files, resident, rotate};
pub use docker::Docker;
pub use guard::Guard;
pub use holder::{ask_often, enter, hold_leases};
pub use http::{Http, Reply, Stream};
pub use image::Image;
pub use logins::logins;
pub use memory::{Hit, Needle, Scan, scan_bytes, scan_memory};
pub use namespaces::{Bare, BareOptions};
pub use obey::{Agent, obey};
pub use postgres::PostgresServer;
pub use raw::Raw;
pub use reader::read_sets;
pub use realm::Realm;
pub use root_key::root_keys;
pub use servers::{Kind, Server};
pub use session::{Opened, Session, Value};
pub use small::Small;
pub use temp::TempDir;
pub use trace::Traced;
pub use wait::{free_port, output, output_with_input, random_text, wait_until};
