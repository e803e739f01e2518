//! The command line of the boundary's process.

use std::path::PathBuf;

use clap::Args;

/// The arguments of `pinseal hsm` and `pinseal-hsm`.
#[derive(Args)]
pub struct HsmArguments {
    /// The engine's configuration: its [boundary], [vault] or [token], and [pin_policy]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Open the vault in this directory, without a configuration
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub(super) data_directory: Option<PathBuf>,
    /// How many connections the engine passes over standard input; an engine sets this itself
    #[arg(long, value_name = "COUNT", hide = true)]
    pub(super) connections: Option<usize>,
    /// Create a missing vault; an engine sets this itself, at its first start
    #[arg(long, hide = true, requires = "connections")]
    pub(super) create_vault: bool,
    /// Listen on this Unix socket, for an engine that a service manager runs
    #[arg(long, value_name = "PATH", conflicts_with = "connections")]
    #[arg(required_unless_present_any = ["connections", "try_escape"])]
    pub(super) listen: Option<PathBuf>,
    /// Do not serve: open the keys, drop all privileges, then try each forbidden action, reading and writing FILE among
    /// them; fail if the kernel allows one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["connections", "listen"])]
    pub(super) try_escape: Option<PathBuf>,
}
