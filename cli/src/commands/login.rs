//! `kiln login`: tries a farm, then remembers it.

use std::{
    io::{IsTerminal as _, Read as _},
    path::PathBuf,
};

use clap::Args;
use kiln_proto::v1::GetInfoRequest;

use crate::{
    connection::{
        Endpoint, Farm, Target,
        resolve::{check_token, environment, read_ca, read_token},
        store::{Connections, Saved},
    },
    failure::Failure,
    output,
};

#[derive(Debug, Args)]
pub struct Login {
    /// HOST:PORT of a coordinator; several separated by commas are tried in turn
    #[arg(value_name = "ENDPOINT")]
    endpoint: String,
    /// A file that holds the token; `-` reads it from standard input, which is the default
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The farm's CA certificate, PEM [default: the system's certificates]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// What to call the connection [default: the host's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

pub async fn run(login: Login) -> Result<(), Failure> {
    let endpoints = Endpoint::list(&login.endpoint)?;
    let name = login.name.clone().unwrap_or_else(|| endpoints[0].server_name().to_owned());
    let ca = match login.ca.clone().or_else(|| environment("KILN_CA").map(PathBuf::from)) {
        Some(file) => Some(read_ca(&file)?),
        None => None,
    };
    let token = token(&login)?;
    let origin = "kiln login".to_owned();
    let farm = Farm::new(Target { endpoints: endpoints.clone(), token: Some(token.clone()), ca: ca.clone(), origin });
    let info = farm.call(async |link| link.farm().get_info(GetInfoRequest {}).await).await?;

    let path = Connections::path()?;
    let mut connections = Connections::load(&path)?;
    let endpoints = endpoints.iter().map(ToString::to_string).collect();
    connections.connections.insert(name.clone(), Saved { endpoints, token: Some(token), ca });
    connections.current = Some(name.clone());
    connections.save(&path)?;
    let workers =
        if info.online_workers == 1 { "1 worker".to_owned() } else { format!("{} workers", info.online_workers) };
    output::write(&format!(
        "logged in to {} as connection `{name}`: kiln {}, {workers}\n",
        login.endpoint, info.version
    ))
}

/// From the file, the environment, or standard input, where a person types it unseen.
fn token(login: &Login) -> Result<String, Failure> {
    match &login.token_file {
        Some(file) if file.as_os_str() != "-" => return read_token(file),
        Some(_) => {}
        None => {
            if let Some(token) = environment("KILN_TOKEN") {
                return check_token(&token, "KILN_TOKEN");
            }
            if let Some(file) = environment("KILN_TOKEN_FILE") {
                return read_token(&PathBuf::from(file));
            }
        }
    }
    let failed = |error| Failure::local("cannot read the token from standard input", error);
    let text = if std::io::stdin().is_terminal() {
        output::aside("token: ");
        console::Term::stderr().read_secure_line().map_err(failed)?
    } else {
        let mut text = String::new();
        std::io::stdin().take(64 * 1024).read_to_string(&mut text).map_err(failed)?;
        text
    };
    check_token(&text, "the token")
}
