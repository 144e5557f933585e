//! `kiln man DIR`: one page for each command.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};

use crate::{args::Cli, failure::Failure, output};

#[derive(Debug, Args)]
pub struct Man {
    /// Where to write the pages; created where it is missing
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub fn run(man: &Man) -> Result<(), Failure> {
    let dir = &man.directory;
    let failed =
        |error: std::io::Error| Failure::local(format!("cannot write man pages into `{}`", dir.display()), error);
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?;
    let count = std::fs::read_dir(dir).map_err(failed)?.count();
    output::write(&format!("{count} man pages in {}\n", dir.display()))
}
