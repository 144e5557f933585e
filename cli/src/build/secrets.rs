//! `--secret`: values from files and variables, read once and sent with the submit.

use std::{
    collections::HashMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use kiln_common::limits;

use super::{csv, options::Variables};
use crate::failure::Failure;

enum Origin {
    File(PathBuf),
    Variable(String),
}

/// Every secret by its id.
///
/// # Errors
/// A malformed flag, a file or variable that is not there, or a value above the limit.
pub fn read(flags: &[String], variables: Variables<'_>) -> Result<HashMap<String, Vec<u8>>, Failure> {
    let mut secrets = HashMap::new();
    for flag in flags {
        let (id, origin) = parse(flag, variables)?;
        let value = match &origin {
            Origin::Variable(name) => variables(name).map(String::into_bytes).ok_or_else(|| {
                Failure::usage(format!("--secret {id}: the variable `{name}` is not set"))
                    .remedy(format!("set it, or name a file with id={id},src=FILE"))
            })?,
            Origin::File(path) => read_file(&id, path)?,
        };
        if value.len() > limits::SECRET_BYTES {
            return Err(Failure::usage(format!(
                "--secret {id}: its value has more than {} bytes, the most that BuildKit takes",
                limits::SECRET_BYTES
            )));
        }
        if secrets.insert(id.clone(), value).is_some() {
            return Err(Failure::usage(format!("--secret {id} is given twice")));
        }
    }
    Ok(secrets)
}

/// buildx's form (`util/buildflags/secrets.go`): without `src` and `env` the id names a variable, else a file.
fn parse(flag: &str, variables: Variables<'_>) -> Result<(String, Origin), Failure> {
    let invalid = |problem: String| {
        Failure::usage(format!("--secret `{flag}`: {problem}")).remedy("write id=ID,src=FILE or id=ID,env=VARIABLE")
    };
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, String::new());
    for (key, value) in csv::pairs(flag)? {
        match key.as_str() {
            "id" => id = Some(value),
            "src" | "source" => file = Some(value),
            "env" => variable = Some(value),
            "type" if value == "file" || value == "env" => kind = value,
            "type" => return Err(invalid(format!("`{value}` is not a type of secret"))),
            other => return Err(invalid(format!("it has no field `{other}`"))),
        }
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| invalid("the id is missing".to_owned()))?;
    let origin = match (file, variable, kind.as_str()) {
        (Some(name), None, "env") | (None, Some(name), _) => Origin::Variable(name),
        (Some(path), None, _) => Origin::File(path.into()),
        (Some(_), Some(_), _) => return Err(invalid("it names both a file and a variable".to_owned())),
        (None, None, "env") => Origin::Variable(id.clone()),
        (None, None, "") if variables(&id).is_some() => Origin::Variable(id.clone()),
        (None, None, _) => Origin::File(PathBuf::from(&id)),
    };
    Ok((id, origin))
}

fn read_file(id: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error| Failure::local(format!("--secret {id}: cannot read `{}`", path.display()), error);
    let mut value = Vec::new();
    let most = limits::SECRET_BYTES as u64 + 1;
    File::open(path).map_err(failed)?.take(most).read_to_end(&mut value).map_err(failed)?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_from_files_variables_and_their_own_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a,b");
        std::fs::write(&file, "from file\n").unwrap();
        let variables = |name: &str| (name == "TOKEN").then(|| "from env".to_owned());
        let quoted = format!("id=f,\"src={}\"", file.display());
        let flags = [quoted.as_str(), "id=e,env=TOKEN", "id=TOKEN", "id=t,type=env,src=TOKEN"].map(str::to_owned);
        let secrets = read(&flags, &variables).unwrap();
        assert_eq!(secrets["f"], b"from file\n");
        assert!(["e", "TOKEN", "t"].iter().all(|id| secrets[*id] == b"from env"));
    }

    #[test]
    fn bad_secrets_name_themselves() {
        let dir = tempfile::tempdir().unwrap();
        let large = dir.path().join("large");
        std::fs::write(&large, vec![0; limits::SECRET_BYTES + 1]).unwrap();
        let large = format!("id=l,src={}", large.display());
        for (flag, named) in [
            ("src=x", "id is missing"),
            ("id=x,colour=red", "colour"),
            ("id=x,type=vault", "vault"),
            ("id=x,src=a,env=b", "both"),
            ("id=x,src=/nonexistent", "/nonexistent"),
            ("id=x,env=NONE", "`NONE` is not set"),
            (large.as_str(), "bytes"),
        ] {
            let failure = read(&[flag.to_owned()], &|_| None).unwrap_err().to_string();
            assert!(failure.contains(named), "{flag}: {failure}");
        }
    }
}
