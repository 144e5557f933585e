//! Which farm a command talks to: the environment first, then a named connection, then a local `kiln up`.

use std::{collections::BTreeMap, fs, path::Path};

use super::{Endpoint, store::Connections};
use crate::{failure::Failure, paths};

/// Longest token that is read from a file or a variable.
const TOKEN_BYTES: usize = 4096;

/// Everything that is needed to dial a farm.
#[derive(Clone)]
pub struct Target {
    /// Tried in turn.
    pub endpoints: Vec<Endpoint>,
    pub token: Option<String>,
    /// PEM; none: the system's roots.
    pub ca: Option<String>,
    /// Where this came from, for messages: ``connection `tower` ``, `KILN_ENDPOINT`.
    pub origin: String,
}

/// The environment, handed in so that tests need no process-wide state.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's own environment; an empty variable counts as unset.
#[must_use]
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Target {
    /// What the environment, the connection named on the command line, the current connection or `up.env` say, in
    /// this order. A variable overrides its part alone.
    ///
    /// # Errors
    /// Nothing is configured, or what is configured cannot be read.
    pub fn resolve(name: Option<&str>, variables: Variables<'_>) -> Result<Self, Failure> {
        let base = match (name, variables("KILN_ENDPOINT")) {
            (None, Some(list)) => {
                Self { endpoints: Endpoint::list(&list)?, token: None, ca: None, origin: "KILN_ENDPOINT".into() }
            }
            _ => Self::stored(name)?,
        };
        base.overridden(variables)
    }

    fn stored(name: Option<&str>) -> Result<Self, Failure> {
        let connections = Connections::load(&Connections::path()?)?;
        if let Some((name, saved)) = connections.select(name)? {
            return Ok(Self {
                endpoints: Endpoint::list(&saved.endpoints.join(","))?,
                token: saved.token.clone(),
                ca: saved.ca.clone(),
                origin: format!("connection `{name}`"),
            });
        }
        let local = paths::data_dir().map(|dir| dir.join("up.env")).filter(|file| file.exists());
        match local {
            Some(file) => Self::from_env_file(&file),
            None => Err(Failure::usage("no farm is configured")
                .remedy("log in with `kiln login ENDPOINT`, or start a farm of one with `kiln up`")),
        }
    }

    /// A farm of one that runs on this machine: the `up.env` that `kiln up` wrote.
    pub fn from_env_file(path: &Path) -> Result<Self, Failure> {
        let text = fs::read_to_string(path)
            .map_err(|error| Failure::local(format!("cannot read `{}`", path.display()), error))?;
        let values: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let lookup = |name: &str| values.get(name).map(|value| value.trim().to_owned());
        let endpoints = lookup("KILN_ENDPOINT").ok_or_else(|| {
            Failure::usage(format!("`{}` has no KILN_ENDPOINT", path.display())).remedy("start `kiln up` again")
        })?;
        let base = Self { endpoints: Endpoint::list(&endpoints)?, token: None, ca: None, origin: "kiln up".into() };
        base.overridden(&lookup)
    }

    fn overridden(mut self, variables: Variables<'_>) -> Result<Self, Failure> {
        if let Some(token) = variables("KILN_TOKEN") {
            self.token = Some(check_token(&token, "KILN_TOKEN")?);
        } else if let Some(file) = variables("KILN_TOKEN_FILE") {
            self.token = Some(read_token(Path::new(&file))?);
        }
        if let Some(file) = variables("KILN_CA") {
            self.ca = Some(read_ca(Path::new(&file))?);
        }
        Ok(self)
    }
}

/// The token in a file, without the space around it.
///
/// # Errors
/// The file cannot be read or holds something else.
pub fn read_token(path: &Path) -> Result<String, Failure> {
    let what = format!("token file `{}`", path.display());
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::local(format!("cannot read {what}"), error).remedy("name a file that holds the token and nothing else")
    })?;
    check_token(&text, &what)
}

/// One word of printable ASCII, as an HTTP header can carry it.
///
/// # Errors
/// It is empty, too long or has other characters; `what` says where it came from.
pub fn check_token(text: &str, what: &str) -> Result<String, Failure> {
    let token = text.trim();
    if token.is_empty() {
        return Err(Failure::usage(format!("{what} is empty")).remedy("make a token with `kiln token create`"));
    }
    if token.len() > TOKEN_BYTES || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::usage(format!("{what} does not hold a token"))
            .remedy("a token is one word of printable characters"));
    }
    Ok(token.to_owned())
}

/// The PEM of a CA.
///
/// # Errors
/// The file cannot be read or has no certificate.
pub fn read_ca(path: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::local(format!("cannot read the CA file `{}`", path.display()), error))?;
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        return Err(Failure::usage(format!("`{}` holds no certificate", path.display()))
            .remedy("the farm's CA is a PEM file; `kiln up` prints where it is"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_alone_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let (token, ca) = (dir.path().join("token"), dir.path().join("ca.pem"));
        fs::write(&token, "  t0ken\n").unwrap();
        fs::write(&ca, "-----BEGIN CERTIFICATE-----\n").unwrap();
        let variables = |name: &str| match name {
            "KILN_ENDPOINT" => Some("a:1,b:2".to_owned()),
            "KILN_TOKEN_FILE" => Some(token.display().to_string()),
            "KILN_CA" => Some(ca.display().to_string()),
            _ => None,
        };
        let target = Target::resolve(None, &variables).unwrap();
        assert_eq!(target.endpoints.len(), 2);
        assert_eq!(target.token.as_deref(), Some("t0ken"));
        assert!(target.ca.is_some());
    }

    #[test]
    fn the_file_of_a_local_farm_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        fs::write(&token, "t0ken\n").unwrap();
        let file = dir.path().join("up.env");
        fs::write(&file, format!("KILN_ENDPOINT=127.0.0.1:7070\nKILN_TOKEN_FILE={}\n", token.display())).unwrap();
        let target = Target::from_env_file(&file).unwrap();
        assert_eq!((target.token.as_deref(), target.origin.as_str()), (Some("t0ken"), "kiln up"));
    }

    #[test]
    fn tokens_that_a_header_cannot_carry_are_refused() {
        for text in ["", " \n", "two words", "tökén"] {
            assert!(check_token(text, "KILN_TOKEN").is_err(), "{text}");
        }
    }
}
