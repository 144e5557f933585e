//! What the engine asks for: in the metadata of the call, as BuildKit's `filesync.go` encodes it.

use percent_encoding::percent_decode_str;
use tonic::{Status, metadata::MetadataMap};

use super::selection::Selection;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) directory: String,
    pub(super) selection: Selection,
}

impl Asked {
    pub(super) fn from_metadata(metadata: &MetadataMap) -> Result<Self, Status> {
        Ok(Self {
            directory: values(metadata, "dir-name")?.into_iter().next().unwrap_or_default(),
            selection: Selection {
                include: values(metadata, "include-patterns")?,
                exclude: values(metadata, "exclude-patterns")?,
                follow: values(metadata, "followpaths")?,
            },
        })
    }
}

/// All values of a key; with `KEY-encoded: 1` they are query-escaped.
fn values(metadata: &MetadataMap, key: &str) -> Result<Vec<String>, Status> {
    let malformed = || Status::invalid_argument(format!("the metadata `{key}` is not text"));
    let flag = metadata.get(format!("{key}-encoded"));
    let encoded = flag.is_some_and(|flag| matches!(flag.as_bytes(), b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True"));
    let decode = |value: &str| {
        if !encoded {
            return Ok(value.to_owned());
        }
        let spaced = value.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8().map(Into::into).map_err(|_| malformed())
    };
    metadata.get_all(key).iter().map(|value| decode(value.to_str().map_err(|_| malformed())?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_escaped_values_are_read() {
        let mut metadata = MetadataMap::new();
        metadata.insert("dir-name", "context".parse().expect("ascii"));
        metadata.append("exclude-patterns", "a+b%20c".parse().expect("ascii"));
        metadata.append("exclude-patterns", "!d".parse().expect("ascii"));
        metadata.append("followpaths", "caf%C3%A9+x".parse().expect("ascii"));
        metadata.insert("followpaths-encoded", "1".parse().expect("ascii"));
        let asked = Asked::from_metadata(&metadata).expect("valid");
        assert_eq!(asked.directory, "context");
        assert_eq!(asked.selection.exclude, ["a+b%20c", "!d"]);
        assert_eq!(asked.selection.follow, ["café x"]);
        assert!(asked.selection.include.is_empty());
    }
}
