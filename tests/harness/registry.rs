//! A registry as skopeo sees it.

use std::process::Command;

use serde_json::Value;

/// The raw manifest or index of a reference, as `skopeo inspect --raw` prints it.
///
/// # Panics
/// When skopeo cannot read it.
#[must_use]
pub fn inspect_raw(reference: &str) -> Value {
    let text = skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")]);
    serde_json::from_str(&text).expect("a JSON manifest")
}

/// The image configuration of a reference.
#[must_use]
pub fn config(reference: &str) -> Value {
    let text = skopeo(&["inspect", "--config", "--tls-verify=false", &format!("docker://{reference}")]);
    serde_json::from_str(&text).expect("a JSON configuration")
}

/// The tags of a repository, sorted.
#[must_use]
pub fn tags(repository: &str) -> Vec<String> {
    let text = skopeo(&["list-tags", "--tls-verify=false", &format!("docker://{repository}")]);
    let listing: Value = serde_json::from_str(&text).expect("a JSON listing");
    let mut tags: Vec<String> =
        listing["Tags"].as_array().expect("Tags").iter().filter_map(|tag| tag.as_str().map(str::to_owned)).collect();
    tags.sort();
    tags
}

/// Whether the reference names anything.
#[must_use]
pub fn exists(reference: &str) -> bool {
    let target = format!("docker://{reference}");
    let output = Command::new("skopeo").args(["inspect", "--raw", "--tls-verify=false", &target]).output();
    output.expect("skopeo runs").status.success()
}

/// `os/architecture[/variant]` of each entry of an index, in its order.
#[must_use]
pub fn platforms(index: &Value) -> Vec<String> {
    let entries = index["manifests"].as_array().expect("an index");
    let part = |platform: &Value, key: &str| platform[key].as_str().unwrap_or_default().to_owned();
    entries
        .iter()
        .map(|entry| {
            let platform = &entry["platform"];
            let name = format!("{}/{}", part(platform, "os"), part(platform, "architecture"));
            match part(platform, "variant") {
                variant if variant.is_empty() => name,
                variant => format!("{name}/{variant}"),
            }
        })
        .collect()
}

fn skopeo(arguments: &[&str]) -> String {
    let output = Command::new("skopeo").args(arguments).output().expect("skopeo runs");
    assert!(output.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}
