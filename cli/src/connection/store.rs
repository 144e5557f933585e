//! Named connections in `~/.config/kiln/connections.toml`: written whole, atomically, readable by their owner alone.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{failure::Failure, paths};

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connections {
    /// The one in use where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    #[serde(default)]
    pub connections: BTreeMap<String, Saved>,
}

/// One farm and how to log in to it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Tried in turn.
    pub endpoints: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The farm's CA, PEM; none: the system's roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

impl std::fmt::Debug for Saved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saved").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

impl Connections {
    /// Where the user's connections are kept.
    ///
    /// # Errors
    /// Neither HOME nor XDG_CONFIG_HOME is set.
    pub fn path() -> Result<PathBuf, Failure> {
        let dir = paths::config_dir()
            .ok_or_else(|| Failure::usage("neither HOME nor XDG_CONFIG_HOME is set").remedy("set HOME"))?;
        Ok(dir.join("connections.toml"))
    }

    /// What is stored; nothing where there is no file.
    ///
    /// # Errors
    /// The file cannot be read or is malformed.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        match fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                Failure::local(format!("cannot read `{}`", path.display()), error.to_string().trim_end())
                    .remedy("mend the file, or remove it and log in again")
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Failure::local(format!("cannot read `{}`", path.display()), error)),
        }
    }

    /// Replaces the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::local(format!("cannot write `{}`", path.display()), error);
        let text = toml::to_string_pretty(self).map_err(|error| failed(&error))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| failed(&error))?;
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(|error| failed(&error))?;
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).map_err(|error| failed(&error))?;
        file.write_all(text.as_bytes()).map_err(|error| failed(&error))?;
        file.as_file().sync_all().map_err(|error| failed(&error))?;
        file.persist(path).map(drop).map_err(|error| failed(&error.error))
    }

    /// The named connection, or the current one; `None`: nothing is stored and none was named.
    ///
    /// # Errors
    /// The named connection does not exist.
    pub fn select(&self, name: Option<&str>) -> Result<Option<(&str, &Saved)>, Failure> {
        let Some(name) = name.or(self.current.as_deref()) else { return Ok(None) };
        match self.connections.get_key_value(name) {
            Some((name, saved)) => Ok(Some((name, saved))),
            None => {
                let known: Vec<_> = self.connections.keys().map(String::as_str).collect();
                let remedy = if known.is_empty() {
                    "log in with `kiln login ENDPOINT --name NAME`".to_owned()
                } else {
                    format!("the connections are: {}", known.join(", "))
                };
                Err(Failure::usage(format!("there is no connection `{name}`")).remedy(remedy))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Connections {
        let saved = |endpoint: &str| Saved {
            endpoints: vec![endpoint.to_owned()],
            token: Some("secret".into()),
            ca: Some("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n".into()),
        };
        Connections {
            current: Some("a".into()),
            connections: [("a".to_owned(), saved("a:1")), ("b".to_owned(), saved("b:1"))].into(),
        }
    }

    #[test]
    fn connections_read_back_and_only_their_owner_can_read_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln/connections.toml");
        two().save(&path).unwrap();
        assert_eq!(Connections::load(&path).unwrap(), two());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_missing_file_is_no_connection_and_a_broken_one_names_itself() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Connections::load(&dir.path().join("none")).unwrap(), Connections::default());
        let broken = dir.path().join("broken.toml");
        fs::write(&broken, "curent = 1\n").unwrap();
        let failure = Connections::load(&broken).unwrap_err().to_string();
        assert!(failure.contains("broken.toml") && failure.contains("curent"), "{failure}");
    }

    #[test]
    fn a_name_selects_and_an_unknown_one_lists_those_that_exist() {
        let all = two();
        assert_eq!(all.select(None).unwrap().unwrap().0, "a");
        assert_eq!(all.select(Some("b")).unwrap().unwrap().1.endpoints, ["b:1"]);
        assert!(all.select(Some("c")).unwrap_err().to_string().contains("a, b"));
        assert!(Connections::default().select(None).unwrap().is_none());
    }
}
