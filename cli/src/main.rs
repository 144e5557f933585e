//! `kiln`: the client of a farm, and a farm of one.

// They panic once nobody reads: `output` has what does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod build;
mod commands;
mod connection;
mod context;
mod dockerfile;
mod failure;
mod output;
mod paths;
mod progress;
mod registry;

use std::{io::Write as _, process::ExitCode};

use kiln_common::runtime::{
    config,
    telemetry::{self, LogFormat},
};

use crate::{
    args::{Cli, Command, Global},
    connection::{Farm, Target, resolve},
    failure::Failure,
    output::Paint,
};

fn main() -> ExitCode {
    let cli: Cli = config::load();
    let result = start(cli);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure);
            ExitCode::from(failure.exit.code())
        }
    }
}

fn start(cli: Cli) -> Result<(), Failure> {
    if !cli.command.has_telemetry_of_its_own() {
        telemetry::init(&cli.global.log_level, LogFormat::default()).map_err(Failure::usage)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local("cannot start", error))?;
    let result = runtime.block_on(run(cli));
    // A thread that waits for the terminal must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let global = &cli.global;
    match cli.command {
        #[cfg(feature = "up")]
        Command::Up(up) => commands::up::run(*up).await,
        Command::Build(flags) => build::run(*flags, farm(global)?).await,
        Command::Builds(builds) => commands::builds::run(builds, farm(global)?).await,
        Command::Workers(workers) => commands::workers::run(workers, &farm(global)?).await,
        Command::Images(images) => commands::images::run(images, farm(global)?).await,
        Command::Token(token) => commands::token::run(token, &farm(global)?).await,
        Command::Audit(audit) => commands::audit::run(audit, &farm(global)?).await,
        Command::Login(login) => commands::login::run(login).await,
        Command::Logout(logout) => commands::logout::run(&logout),
        Command::Doctor(doctor) => commands::doctor::run(doctor, global).await,
        Command::Version(version) => commands::version::run(version, global).await,
        Command::Completions(completions) => commands::completions::run(&completions),
        Command::Man(man) => commands::man::run(&man),
    }
}

/// The farm that flags, environment and configuration name.
fn farm(global: &Global) -> Result<Farm, Failure> {
    Target::resolve(global.connection.as_deref(), &resolve::environment).map(Farm::new)
}

fn report(failure: &Failure) {
    if failure.message.is_empty() {
        return;
    }
    let paint = Paint::for_stderr();
    let mut text = format!("{} {}\n", paint.red("error:"), failure.message);
    for detail in &failure.details {
        text += &format!("  {detail}\n");
    }
    if let Some(remedy) = &failure.remedy {
        text += &format!("  {} {remedy}\n", paint.cyan("hint:"));
    }
    // There is nowhere left to say that standard error is gone.
    drop(std::io::stderr().write_all(text.as_bytes()));
}
