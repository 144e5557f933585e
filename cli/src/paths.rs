//! Where the client keeps its files, as the XDG base directory specification says.

use std::path::PathBuf;

/// `~/.config/kiln`, or under XDG_CONFIG_HOME.
#[must_use]
pub fn config_dir() -> Option<PathBuf> {
    under("XDG_CONFIG_HOME", ".config")
}

/// `~/.local/share/kiln`, or under XDG_DATA_HOME: where `kiln up` keeps its farm.
#[must_use]
pub fn data_dir() -> Option<PathBuf> {
    under("XDG_DATA_HOME", ".local/share")
}

fn under(variable: &str, fallback: &str) -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(fallback)))?;
    Some(base.join("kiln"))
}
