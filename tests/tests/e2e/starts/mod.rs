//! How applications start and end under the shim, beside their sidecar: on real containers.

/// Says something to whoever runs the suites with `--nocapture`.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($words)*);
    }};
}

mod confined;
mod endings;
mod place;
mod restarts;
mod thousand;
mod users;
