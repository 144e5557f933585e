//! The command line: every command and its flags. What they do is in `commands/`.

use clap::{Parser, Subcommand, builder::styling};

use crate::{build::flags::BuildFlags, commands};

const STYLES: styling::Styles = styling::Styles::styled()
    .header(styling::AnsiColor::Cyan.on_default().bold())
    .usage(styling::AnsiColor::Cyan.on_default().bold())
    .literal(styling::AnsiColor::Green.on_default())
    .placeholder(styling::AnsiColor::Yellow.on_default());

const EXIT_CODES: &str = "Exit codes: 0 success, 1 the build failed, 2 usage, 3 farm unreachable, 4 not allowed, \
                          130 interrupted";

/// Builds container images for many architectures on your own machines, and publishes one tag
#[derive(Debug, Parser)]
#[command(name = "kiln", version, styles = STYLES, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, clap::Args)]
pub struct Global {
    /// What to log on standard error: error, warn, info, debug, trace, or a filter per module
    #[arg(
        long,
        global = true,
        env = "KILN_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "warn",
        hide_default_value = true
    )]
    pub log_level: String,

    /// Use this connection instead of the current one
    #[arg(long, global = true, env = "KILN_CONNECTION", value_name = "NAME")]
    pub connection: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a farm of one on this machine: coordinator and worker in one process
    #[cfg(feature = "up")]
    Up(Box<commands::up::Up>),
    /// Build an image for one or more platforms and push it
    #[command(alias = "b")]
    Build(Box<BuildFlags>),
    /// Look after builds: list, follow, cancel, retry
    #[command(alias = "build-records")]
    Builds(commands::builds::Builds),
    /// Look after workers and the tokens they join with
    #[command(alias = "worker")]
    Workers(commands::workers::Workers),
    /// Show the versions of an image repository that the farm published
    Images(commands::images::Images),
    /// Make and revoke API tokens
    #[command(alias = "tokens")]
    Token(commands::token::Token),
    /// Show who did what to the farm, and who was refused
    Audit(commands::audit::Audit),
    /// Log in to a farm and remember it
    Login(commands::login::Login),
    /// Forget a farm
    Logout(commands::logout::Logout),
    /// Check the way to the farm, step by step
    Doctor(commands::doctor::Doctor),
    /// Show the versions of the client and the farm
    Version(commands::version::Version),
    /// Print the completion script of a shell
    Completions(commands::completions::Completions),
    /// Write the man pages into a directory
    Man(commands::man::Man),
}

impl Command {
    /// Whether the command sets up logging by its own flags.
    #[must_use]
    pub const fn has_telemetry_of_its_own(&self) -> bool {
        #[cfg(feature = "up")]
        if let Self::Up(_) = self {
            return true;
        }
        false
    }
}
