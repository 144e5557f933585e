//! The proxy's paths. Pure.
//!
//! A repository is `kiln-SECRET/INDEX`: whoever does not know the attempt's secret is told nothing.

use kiln_common::Digest;

/// What a request of the engine is about.
#[derive(Debug, PartialEq, Eq)]
pub enum Route<'a> {
    Ping,
    Manifest { repository: usize, reference: Reference<'a> },
    Blob { repository: usize, digest: &'a str },
    StartUpload { repository: usize },
    Upload { repository: usize, id: &'a str },
}

#[derive(Debug, PartialEq, Eq)]
pub enum Reference<'a> {
    Tag(&'a str),
    Digest(&'a str),
}

/// `None` for what the proxy does not serve.
#[must_use]
pub fn parse<'a>(path: &'a str, folder: &str) -> Option<Route<'a>> {
    if path == "/v2/" || path == "/v2" {
        return Some(Route::Ping);
    }
    let rest = path.strip_prefix("/v2/")?.strip_prefix(folder)?.strip_prefix('/')?;
    let (index, rest) = rest.split_once('/')?;
    let repository = index.parse().ok()?;
    if let Some(reference) = rest.strip_prefix("manifests/") {
        let is_digest = reference.parse::<Digest>().is_ok();
        let reference = if is_digest { Reference::Digest(reference) } else { Reference::Tag(reference) };
        return Some(Route::Manifest { repository, reference });
    }
    match rest.strip_prefix("blobs/")? {
        "uploads/" | "uploads" => Some(Route::StartUpload { repository }),
        blob => match blob.strip_prefix("uploads/") {
            Some(id) => Some(Route::Upload { repository, id }),
            None => blob.parse::<Digest>().is_ok().then_some(Route::Blob { repository, digest: blob }),
        },
    }
}

/// The digest and the index of the repository to mount from (distribution-spec, "Mounting a blob from another
/// repository").
#[must_use]
pub fn mount(query: &str, folder: &str) -> Option<(String, usize)> {
    let (mut digest, mut from) = (None, None);
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let value = percent_encoding::percent_decode_str(value).decode_utf8().ok()?.into_owned();
        match key {
            "mount" => digest = value.parse::<Digest>().ok(),
            "from" => from = value.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')?.parse().ok()),
            _ => {}
        }
    }
    Some((digest?.to_string(), from?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_attempt_s_own_folder_is_served() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let folder = "kiln-s3cret";
        assert_eq!(parse("/v2/", folder), Some(Route::Ping));
        let tag = Route::Manifest { repository: 1, reference: Reference::Tag("x") };
        assert_eq!(parse("/v2/kiln-s3cret/1/manifests/x", folder), Some(tag));
        assert_eq!(
            parse(&format!("/v2/kiln-s3cret/0/blobs/{digest}"), folder),
            Some(Route::Blob { repository: 0, digest: &digest })
        );
        assert_eq!(parse("/v2/kiln-s3cret/0/blobs/uploads/", folder), Some(Route::StartUpload { repository: 0 }));
        assert_eq!(
            parse("/v2/kiln-s3cret/0/blobs/uploads/ab", folder),
            Some(Route::Upload { repository: 0, id: "ab" })
        );
        for path in ["/v2/kiln-other/0/manifests/x", "/v2/kiln-s3cretx/0/manifests/x", "/v2/kiln-s3cret/0/blobs/x", "/"]
        {
            assert_eq!(parse(path, folder), None, "{path}");
        }
    }

    #[test]
    fn a_mount_is_known_between_the_attempt_s_repositories_alone() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let query = |from: &str| format!("mount={}&from={from}", digest.replace(':', "%3A"));
        assert_eq!(mount(&query("kiln-s%2F2"), "kiln-s"), Some((digest.clone(), 2)));
        assert_eq!(mount(&query("library%2Falpine"), "kiln-s"), None);
        assert_eq!(mount("", "kiln-s"), None);
    }
}
