//! Leases of roles at a real PostgreSQL server, through deaths, kills, faults, hangs and clocks that
//! jump: what is there is what is leased, and what is leased is on record.

/// Says something to whoever runs the suites with `--nocapture`.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($words)*);
    }};
}

mod authorities;
mod clocks;
mod deaths;
mod hangs;
mod kills;
mod record;
mod scene;
mod server;
mod steps;
