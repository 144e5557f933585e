//! `kiln-worker`: flags to [`kiln_worker::Config`], signals to a shutdown, errors to exit codes.

use std::process::ExitCode;

use kiln_common::runtime::{Shutdown, config, tls};
use kiln_worker::{Args, Config, config::ConfigError, doctor, enroll::EnrollError, session::SessionError};

/// Wrong flags, variables or file.
const USAGE: u8 = 2;
/// The farm does not accept this worker.
const NOT_ALLOWED: u8 = 4;

fn main() -> ExitCode {
    let args: Args = config::load();
    tls::install_provider();
    let (check, examine) = (args.common.config_check, args.doctor);
    let common = args.common.clone();
    let config = match args.config() {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    if check {
        println!("the configuration is sound");
        return ExitCode::SUCCESS;
    }
    if examine {
        return block_on(async {
            Ok(if doctor::examine(&config).await { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        });
    }
    if let Err(error) = common.init_telemetry() {
        return refuse(&error.into());
    }
    block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    kiln_worker::run(config, Shutdown::on_signals()?).await?;
    Ok(ExitCode::SUCCESS)
}

/// Two threads keep the session alive beside a job that is busy; more would only cost a small board memory.
fn block_on(program: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(16).enable_all().build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(program);
            // Reads of the disk that nobody waits for any more must not hold the program up.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(error.into()),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        if is_refusal(&error) { NOT_ALLOWED.into() } else { ExitCode::FAILURE }
    })
}

/// Whether starting again would give the same answer.
fn is_refusal(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(SessionError::Refused { .. }))
        || matches!(error.downcast_ref(), Some(EnrollError::TokenRefused { .. } | EnrollError::NoToken))
}

fn refuse(error: &ConfigError) -> ExitCode {
    eprintln!("error: {error}");
    USAGE.into()
}
