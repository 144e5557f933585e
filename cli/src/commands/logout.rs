//! `kiln logout`: forgets a connection and its token.

use clap::Args;

use crate::{connection::store::Connections, failure::Failure, output};

#[derive(Debug, Args)]
pub struct Logout {
    /// The connection to forget [default: the current one]
    name: Option<String>,
}

pub fn run(logout: &Logout) -> Result<(), Failure> {
    let path = Connections::path()?;
    let mut connections = Connections::load(&path)?;
    let Some((name, _)) = connections.select(logout.name.as_deref())? else {
        return Err(Failure::usage("not logged in to any farm").remedy("log in with `kiln login ENDPOINT`"));
    };
    let name = name.to_owned();
    connections.connections.remove(&name);
    if connections.current.as_ref() == Some(&name) {
        connections.current = connections.connections.keys().next().cloned();
    }
    connections.save(&path)?;
    let now = match &connections.current {
        Some(current) => format!("; `{current}` is the current connection now"),
        None => String::new(),
    };
    output::write(&format!("forgot the connection `{name}`{now}\n"))
}
