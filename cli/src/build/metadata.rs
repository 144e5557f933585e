//! `--metadata-file` and `--iidfile`, as buildx writes them (`commands/build.go`), with Kiln's build id beside.

use std::{io::Write as _, path::Path};

use kiln_proto::v1;
use serde_json::json;

use crate::failure::Failure;

/// The metadata file: what the tags name and who made it.
///
/// # Errors
/// The file cannot be written.
pub fn write_metadata(path: &Path, build: &v1::Build) -> Result<(), Failure> {
    let mut metadata = serde_json::Map::new();
    if !build.digest.is_empty() {
        let descriptor = json!({"mediaType": build.media_type, "digest": build.digest, "size": build.size_bytes});
        metadata.insert("containerimage.descriptor".to_owned(), descriptor);
        metadata.insert("containerimage.digest".to_owned(), json!(build.digest));
    }
    let tags = build.spec.as_ref().map(|spec| spec.tags.join(",")).unwrap_or_default();
    metadata.insert("image.name".to_owned(), json!(tags));
    metadata.insert("kiln.build.id".to_owned(), json!(build.id));
    let text = serde_json::to_string_pretty(&metadata)
        .map_err(|error| Failure::local(format!("cannot write `{}`", path.display()), error))?;
    write(path, &(text + "\n"))
}

/// The digest alone, without a line end.
///
/// # Errors
/// The file cannot be written.
pub fn write_iid(path: &Path, build: &v1::Build) -> Result<(), Failure> {
    write(path, &build.digest)
}

/// Whether the file can be written later, found out before anything is built.
///
/// # Errors
/// Its directory does not exist.
pub fn check(flag: &str, path: &Path) -> Result<(), Failure> {
    if directory(path).is_dir() {
        return Ok(());
    }
    Err(Failure::usage(format!("{flag}: the directory of `{}` does not exist", path.display()))
        .remedy("create it, or name another file"))
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::local(format!("cannot write `{}`", path.display()), error);
    // What is not a plain file (`/dev/stdout`, a pipe) cannot be replaced, only written to.
    if path.exists() && !path.is_file() {
        return std::fs::write(path, text).map_err(failed);
    }
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory(path))
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.persist(path).map(drop).map_err(|error| failed(error.error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_read_as_buildx_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        let build = v1::Build {
            id: "b".into(),
            digest: "sha256:1".into(),
            media_type: "application/vnd.oci.image.index.v1+json".into(),
            size_bytes: 7,
            spec: Some(v1::BuildSpec { tags: vec!["r/a:1".into(), "r/b:1".into()], ..v1::BuildSpec::default() }),
            ..v1::Build::default()
        };
        let (metadata, iid) = (dir.path().join("m.json"), dir.path().join("iid"));
        write_metadata(&metadata, &build).unwrap();
        write_iid(&iid, &build).unwrap();
        assert_eq!(std::fs::read_to_string(iid).unwrap(), "sha256:1");
        let value: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(metadata).unwrap()).unwrap();
        assert_eq!(value["containerimage.descriptor"]["size"], 7);
        assert_eq!((&value["image.name"], &value["kiln.build.id"]), (&json!("r/a:1,r/b:1"), &json!("b")));
        assert!(check("--iidfile", &dir.path().join("no/file")).is_err());
    }
}
