//! Other people's tools read what Kiln published, each in its own way.

use std::{
    fs,
    process::{Command, Output},
};

use harness::{Bed, bed::EngineKind, farm::text};
use serde_json::Value;

use crate::setting::{Context, docker28, repository};

const PLATFORMS: [(&str, &str); 3] = [("linux/amd64", "amd64"), ("linux/arm64", "arm64"), ("linux/arm/v6", "arm")];

/// An index with attestations, as a user publishes it.
struct Published {
    tag: String,
    /// What the tools take for their home.
    home: tempfile::TempDir,
}

impl Published {
    fn new(name: &str) -> Self {
        let farm = docker28();
        let tag = format!("{}:1", repository(name));
        let platforms = PLATFORMS.map(|(platform, _)| platform).join(",");
        let context = Context::new("FROM busybox\nCOPY Dockerfile /\nRUN echo content > /file\n");
        let flags = ["--platform", &platforms, "--provenance", "mode=max", "--annotation", "index:who=kiln"];
        farm.run(&[&["build", "-t", &tag][..], &flags, &["--progress", "plain", &context.path()]].concat());
        let home = tempfile::tempdir().expect("a folder");
        fs::create_dir(home.path().join("docker")).expect("a folder");
        // podman wants the file to be there.
        fs::write(home.path().join("docker/config.json"), "{}").expect("a configuration");
        Self { tag, home }
    }

    /// Runs a tool of the bed, which must end well.
    fn run(&self, variable: &str, arguments: &[&str]) -> String {
        let program = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set"));
        self.run_program(&program, arguments)
    }

    fn run_program(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.output(program, arguments);
        assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn output(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        let home = self.home.path();
        command.args(arguments).env("HOME", home).env("DOCKER_CONFIG", home.join("docker"));
        command.env_remove("XDG_RUNTIME_DIR").output().unwrap_or_else(|error| panic!("{program}: {error}"))
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn skopeo_copies_all_of_it_and_finds_every_digest_as_it_was() {
    let published = Published::new("skopeo");
    let (from, to) = (format!("docker://{}", published.tag), format!("oci:{}/copy", published.home.path().display()));
    published.run_program("skopeo", &["copy", "--all", "--preserve-digests", "--src-tls-verify=false", &from, &to]);
    let index = json(&published.run_program("skopeo", &["inspect", "--raw", "--tls-verify=false", &from]));
    assert_eq!(index["annotations"]["who"], "kiln");
    assert_eq!(json(&published.run_program("skopeo", &["inspect", "--raw", &to])), index);
}

#[test]
fn crane_validates_every_layer_and_names_the_child_of_a_platform() {
    let published = Published::new("crane");
    for (platform, architecture) in PLATFORMS {
        let config = published.run("KILN_BED_CRANE", &["config", "--insecure", "--platform", platform, &published.tag]);
        assert_eq!(json(&config)["architecture"], architecture);
        let digest = ["digest", "--insecure", "--platform", platform, &published.tag];
        let digest = published.run("KILN_BED_CRANE", &digest);
        let repository = published.tag.rsplit_once(':').expect("a tag").0;
        let image = format!("{repository}@{}", digest.trim());
        // Every layer is fetched, unpacked and hashed.
        published.run("KILN_BED_CRANE", &["validate", "--insecure", "--remote", &image]);
    }
}

#[test]
fn oras_fetches_the_manifest_of_a_platform_and_copies_the_whole() {
    let published = Published::new("oras");
    for (platform, architecture) in PLATFORMS {
        let fetch = ["manifest", "fetch-config", "--plain-http", "--platform", platform, &published.tag];
        assert_eq!(json(&published.run("KILN_BED_ORAS", &fetch))["architecture"], architecture);
    }
    let layout = format!("{}/layout:1", published.home.path().display());
    published.run("KILN_BED_ORAS", &["copy", "--from-plain-http", "--to-oci-layout", &published.tag, &layout]);
}

#[test]
fn buildx_imagetools_lists_the_platforms_with_their_attestations() {
    let published = Published::new("imagetools");
    let raw = published.run("KILN_BED_BUILDX", &["imagetools", "inspect", "--raw", &published.tag]);
    assert_eq!(json(&raw)["manifests"].as_array().map(Vec::len), Some(PLATFORMS.len() * 2));
    let shown = published.run("KILN_BED_BUILDX", &["imagetools", "inspect", &published.tag]);
    for (platform, _) in PLATFORMS {
        assert!(shown.contains(platform), "{shown}");
    }
    assert!(shown.contains("attestation-manifest"), "{shown}");
}

#[test]
fn docker_of_both_generations_pulls_the_platform_that_it_is_asked_for() {
    let published = Published::new("docker-pull");
    let docker = Bed.docker_cli();
    for kind in [EngineKind::Docker20, EngineKind::Docker28, EngineKind::Docker28Classic] {
        let Some(engine) = Bed.engine(kind) else { continue };
        for (platform, architecture) in PLATFORMS {
            let on = |arguments: &[&str]| published.run_program(&docker, &[&["--host", &engine], arguments].concat());
            on(&["pull", "--quiet", "--platform", platform, &published.tag]);
            let run = ["run", "--rm", "--network", "none", "--platform", platform, &published.tag, "cat", "/file"];
            assert_eq!(on(&run).trim(), "content", "{} {platform}", kind.name());
            if kind != EngineKind::Docker28 {
                let shown = on(&["image", "inspect", "--format", "{{.Architecture}}", &published.tag]);
                assert_eq!(shown.trim(), architecture, "{} {platform}", kind.name());
            }
            on(&["image", "rm", "--force", &published.tag]);
        }
    }
}

#[test]
fn podman_pulls_the_architecture_that_it_is_asked_for() {
    let published = Published::new("podman");
    let home = published.home.path();
    fs::create_dir_all(home.join(".config/containers")).expect("a folder");
    let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
    fs::write(home.join(".config/containers/policy.json"), policy).expect("a policy");
    let (root, run_root) = (home.join("root").display().to_string(), home.join("run").display().to_string());
    let on = ["--root", &root, "--runroot", &run_root, "--storage-driver", "vfs"];
    for (architecture, variant, named) in [("amd64", "", "amd64"), ("arm64", "", "arm64"), ("arm", "v6", "arm")] {
        let pull =
            ["pull", "--quiet", "--tls-verify=false", "--arch", architecture, "--variant", variant, &published.tag];
        published.run("KILN_BED_PODMAN", &[&on[..], &pull].concat());
        let inspect = ["image", "inspect", "--format", "{{.Architecture}}", &published.tag];
        assert_eq!(published.run("KILN_BED_PODMAN", &[&on[..], &inspect].concat()).trim(), named);
    }
}
