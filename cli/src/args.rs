//! The command line.

use crate::command::{audit, authority, connection, kv, leases, node, plan, view};
use crate::dev;
use crate::failure::EXIT_STATUSES;
use crate::output::Format;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Secrets that live as long as one container.
///
/// Speaks to a broker over its admin socket, which only root may connect to.
#[derive(Parser)]
#[command(name = "mayfly", version, after_help = EXIT_STATUSES, propagate_version = true)]
pub struct Args {
    /// The broker's admin socket [default: $MAYFLY_ADMIN_SOCKET, or /run/mayfly/admin.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// For people, or for programs
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value = "table"
    )]
    pub output: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// How the broker is
    #[command(after_help = "Example:\n  mayfly status --output json")]
    Status,
    /// Show what `apply` would change
    #[command(after_help = "Example:\n  mayfly plan -f deploy/demo/config")]
    Plan(plan::PlanArgs),
    /// Make the configuration what a directory says
    #[command(after_help = plan::APPLY_HELP)]
    Apply(plan::ApplyArgs),
    /// Stored values: put, get, list, history, delete
    #[command(after_help = "Example:\n  mayfly kv list")]
    Kv {
        /// What to do with them.
        #[command(subcommand)]
        command: kv::Command,
    },
    /// Policies
    #[command(after_help = "Example:\n  mayfly policy check config/")]
    Policy {
        /// What to do with them.
        #[command(subcommand)]
        command: plan::PolicyCommand,
    },
    /// The containers that the broker knows
    #[command(after_help = "Example:\n  mayfly workloads")]
    Workloads,
    /// Why a workload gets a credential, or does not
    #[command(after_help = "Example:\n  mayfly explain orders billing-key")]
    Explain(view::ExplainArgs),
    /// Who holds what, and until when
    #[command(after_help = "Examples:\n  mayfly leases --workload orders\n  mayfly leases --stuck")]
    Leases(leases::LeasesArgs),
    /// End leases: what they hold is worthless at once
    #[command(after_help = "\
Examples:
  mayfly revoke --workload orders
  mayfly revoke --credential orders-db
  mayfly revoke --stuck --forget       # the server is gone for good
  mayfly revoke --all")]
    Revoke(leases::RevokeArgs),
    /// Make credentials anew; who holds them gets the new ones
    #[command(after_help = "Examples:\n  mayfly rotate orders-db\n  mayfly rotate --all")]
    Rotate(leases::RotateArgs),
    /// Servers at which engines make accounts: list, set, rotate
    #[command(after_help = "Example:\n  mayfly connection set shop")]
    Connection {
        /// What to do with them.
        #[command(subcommand)]
        command: connection::Command,
    },
    /// What certifies for the engines x509 and ssh: list, show, rotate
    #[command(after_help = "Example:\n  mayfly authority show x509 > ca.crt")]
    Authority {
        /// What to do with it.
        #[command(subcommand)]
        command: authority::Command,
    },
    /// The audit log: tail, verify
    #[command(after_help = "Example:\n  mayfly audit tail --follow")]
    Audit {
        /// What to do with it.
        #[command(subcommand)]
        command: audit::Command,
    },
    /// Hosts that run `mayfly-node`
    #[command(after_help = "Example:\n  mayfly node add worker-1 --out worker-1/")]
    Node {
        /// What to do with them.
        #[command(subcommand)]
        command: node::Command,
    },
    /// A throwaway broker, and containers to try it with, on this machine
    #[command(after_help = dev::HELP)]
    Dev(dev::DevArgs),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_help_has_an_example_that_stays_as_it_is_written() {
        fn look(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string);
            let (help, name) = (help.unwrap_or_default(), command.get_name());
            assert!(help.contains("Example"), "{name}");
            // Where a line is wrapped, what is copied from it is something else.
            let wide = help.lines().find(|line| line.chars().count() > WIDTH);
            assert_eq!(wide, None, "{name}");
            let subs = command.get_subcommands();
            subs.filter(|sub| !sub.is_hide_set()).for_each(look);
        }
        // What clap wraps at without a terminal.
        const WIDTH: usize = 100;
        look(&Args::command());
    }
}
