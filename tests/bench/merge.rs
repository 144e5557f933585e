//! The merge alone: from the descriptors of four pushed legs to a tag that moved, beside the tools that make indexes.
//!
//! Every tool is a program that is started, does it once and ends, Kiln too: [`once`] is what the coordinator runs for a
//! build whose layers it has verified already (a layer is read when its leg is done, not by the merge). Kiln reads each leg's
//! manifest and configuration, pushes by digest, reads back, moves the tag and reads it back; the others read less and read
//! nothing back. All talk to the same registry in turn.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use harness::{Bed, registry};
use kiln_common::{
    BuildId, BuildSpec, Grade,
    context::{ChunkId, ContextDigest},
    spec::{Dockerfile, ImageDescriptor, MediaTypes, PlatformRequest},
};
use kiln_coordinator::{
    driver::{PublishOutcome, Publisher},
    publish::RegistryPublisher,
};
use kiln_scheduler::effect::{Leg, PublishJob};
use tokio_util::sync::CancellationToken;

use crate::report::Report;

/// The first argument of a run that is Kiln's side of the comparison.
pub const ONCE: &str = "merge-once";

/// Four legs in a repository, and who merges them.
struct Field {
    repository: String,
    /// `platform=media type=digest=size`.
    legs: Vec<String>,
    digests: Vec<String>,
    verdicts: PathBuf,
    home: PathBuf,
}

/// Runs Kiln beside each of the others.
///
/// # Errors
/// The first tool that fails.
pub fn compare(scratch: &Path, runs: usize, report: &mut Report) -> anyhow::Result<()> {
    let field = Field::prepare(scratch)?;
    let tag = |name: &str| format!("{}:{name}", field.repository);
    let (buildx, crane, oras) = (tag("buildx"), tag("crane"), tag("oras"));
    let refs: Vec<String> = field.digests.iter().map(|digest| format!("{}@{digest}", field.repository)).collect();
    let refs: Vec<&str> = refs.iter().map(String::as_str).collect();
    let digests: Vec<&str> = field.digests.iter().map(String::as_str).collect();
    let appended: Vec<&str> = refs.iter().flat_map(|one| ["-m", one]).collect();
    let peers: [(&str, &str, Vec<&str>); 3] = [
        (
            "docker buildx imagetools create",
            "KILN_BED_BUILDX",
            [&["imagetools", "create", "-t", &buildx], &refs[..]].concat(),
        ),
        ("crane index append", "KILN_BED_CRANE", [&["index", "append", "-t", &crane], &appended[..]].concat()),
        (
            "oras manifest index create",
            "KILN_BED_ORAS",
            [&["manifest", "index", "create", "--plain-http", &oras], &digests[..]].concat(),
        ),
    ];
    // The first merge verifies the layers.
    field.kiln()?;
    for (name, variable, arguments) in peers {
        let program = std::env::var(variable).with_context(|| format!("{variable} is not set"))?;
        let peer = || field.time(Command::new(&program).args(&arguments));
        peer()?;
        let pairs: anyhow::Result<Vec<_>> = (0..runs * 3).map(|_| Ok((field.kiln()?, peer()?))).collect();
        report.beside(name, "four descriptors to a tag", &pairs?, 1.0);
        let start = field.time(Command::new(&program).arg("version"))?;
        report.note(&format!("  of that, `{program} version` takes {:.3} s", start.as_secs_f64()));
    }
    for name in ["kiln", "buildx", "crane", "oras"] {
        let merged = registry::platforms(&registry::inspect_raw(&tag(name)));
        ensure!(merged.len() == 4, "{name} merged {merged:?}");
    }
    Ok(())
}

impl Field {
    fn prepare(scratch: &Path) -> anyhow::Result<Self> {
        let host = Bed.registry();
        let repository = format!("{host}/bench/merge");
        let copy = ["copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"];
        let names = [format!("docker://{host}/library/busybox"), format!("docker://{repository}:source")];
        let copied = Command::new("skopeo").args(copy).args(names).output()?;
        ensure!(copied.status.success(), "skopeo: {}", String::from_utf8_lossy(&copied.stderr));
        let index = registry::inspect_raw(&format!("{repository}:source"));
        let (mut legs, mut digests) = (Vec::new(), Vec::new());
        let entries = index["manifests"].as_array().context("an index")?;
        for (entry, platform) in entries.iter().zip(registry::platforms(&index)) {
            let (kind, digest) =
                (entry["mediaType"].as_str().context("a type")?, entry["digest"].as_str().context("a digest")?);
            legs.push(format!("{platform}={kind}={digest}={}", entry["size"]));
            digests.push(digest.to_owned());
        }
        ensure!(legs.len() == 4, "library/busybox has {} platforms", legs.len());
        let home = scratch.join("merge");
        fs::create_dir_all(&home)?;
        Ok(Self { repository, legs, digests, verdicts: home.join("verified-layers"), home })
    }

    fn kiln(&self) -> anyhow::Result<Duration> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ONCE).arg(&self.verdicts).arg(format!("{}:kiln", self.repository)).args(&self.legs);
        self.time(&mut command)
    }

    /// From before the start of the program to its end.
    fn time(&self, command: &mut Command) -> anyhow::Result<Duration> {
        command.env("HOME", &self.home).env("DOCKER_CONFIG", self.home.join("docker")).stdin(Stdio::null());
        let start = Instant::now();
        let output = command.output()?;
        let took = start.elapsed();
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(took)
    }
}

/// One merge: the file of verdicts, the tag, the legs.
///
/// # Errors
/// Why it failed.
pub fn once(arguments: &[String]) -> anyhow::Result<()> {
    let [verdicts, tag, legs @ ..] = arguments else { bail!("merge-once VERDICTS TAG LEG...") };
    let legs: Vec<Leg> = legs.iter().map(|text| leg(text)).collect::<anyhow::Result<_>>()?;
    let is_docker = legs.iter().any(|leg| leg.image.media_type.contains("vnd.docker"));
    let tree = ContextDigest(ChunkId::of(b""));
    let request = |leg: &Leg| PlatformRequest { platform: leg.platform.clone(), required: true };
    let spec = BuildSpec {
        platforms: legs.iter().map(request).collect(),
        tags: vec![tag.parse()?],
        media_types: if is_docker { MediaTypes::Docker } else { MediaTypes::Oci },
        project: "bench".to_owned(),
        ..BuildSpec::bare(Dockerfile { tree, filename: "Dockerfile".to_owned() })
    };
    let job = PublishJob { build: BuildId::generate(), publish: 1, spec: Arc::new(spec), legs, earlier: None };
    let publisher = RegistryPublisher::new([], Some(verdicts.into()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match runtime.block_on(publisher.publish(job, Vec::new(), CancellationToken::new())) {
        PublishOutcome::Succeeded(_) => Ok(()),
        PublishOutcome::Failed { message, .. } | PublishOutcome::LegsMissing { message, .. } => bail!(message),
    }
}

fn leg(text: &str) -> anyhow::Result<Leg> {
    let parts: Vec<&str> = text.split('=').collect();
    let [platform, media_type, digest, size] = parts.as_slice() else { bail!("`{text}` is no leg") };
    let image = ImageDescriptor {
        media_type: (*media_type).to_owned(),
        digest: digest.parse()?,
        size: size.parse()?,
        bases: Vec::new(),
    };
    Ok(Leg { platform: platform.parse()?, image: image.into(), grade: Grade::Native })
}
