//! From flags to a typed build spec, with buildx's reading of each flag. Nothing here touches the network.

use std::{collections::BTreeMap, time::Duration};

use kiln_common::{
    BuildSpec, EmulationPolicy, ImageReference, Platform,
    emulation::parse_duration,
    limits,
    size::parse_bytes,
    smoke::Smoke,
    spec::{
        Annotation, CacheOption, Compression, Dockerfile, MediaTypes, NamedContext, PlatformRequest, Verify, Violation,
        parse_annotation,
    },
};

use super::{csv, flags::BuildFlags};
use crate::failure::Failure;

/// BuildKit's own default generator, named because an empty attribute list cannot be told from none.
const SBOM_GENERATOR: &str = "generator=docker/buildkit-syft-scanner:stable-1";

/// Looks up environment variables; handed in for the tests.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The trees that the upload found.
#[derive(Debug, Clone)]
pub struct Trees {
    pub context: Option<kiln_common::context::ContextDigest>,
    pub dockerfile: Dockerfile,
    pub named_contexts: BTreeMap<String, NamedContext>,
    pub source: String,
}

/// Everything that flags alone decide.
#[derive(Debug, Clone)]
pub struct Options {
    pub platforms: Vec<PlatformRequest>,
    pub tags: Vec<ImageReference>,
    pub build_args: BTreeMap<String, String>,
    pub cache_from: Vec<CacheOption>,
    pub cache_to: Vec<CacheOption>,
    labels: BTreeMap<String, String>,
    annotations: Vec<Annotation>,
    network: kiln_common::spec::NetworkMode,
    add_hosts: Vec<kiln_common::spec::AddHost>,
    shm_size: Option<u64>,
    ulimits: Vec<kiln_common::spec::Ulimit>,
    provenance: Option<String>,
    sbom: Option<String>,
    media_types: MediaTypes,
    verify: Verify,
    compression: Compression,
    emulation: EmulationPolicy,
    required_labels: BTreeMap<String, String>,
    timeout: Duration,
    queue_timeout: Option<Duration>,
}

impl Options {
    /// # Errors
    /// The first flag whose value cannot be read, named with its value.
    pub fn read(flags: &BuildFlags, variables: Variables<'_>) -> Result<Self, Failure> {
        let attestations = attestations(flags)?;
        Ok(Self {
            platforms: platforms(flags, variables)?,
            tags: tags(flags)?,
            build_args: build_args(flags, variables),
            cache_from: each("--cache-from", &flags.cache_from, |text| text.parse())?,
            cache_to: each("--cache-to", &flags.cache_to, |text| text.parse())?,
            labels: key_values(&flags.label, |_| Some(String::new())),
            annotations: each("--annotation", &flags.annotation, parse_annotation)?.concat(),
            network: one("--network", &flags.network, |text| text.parse())?,
            add_hosts: each("--add-host", &flags.add_host, |text| text.parse())?,
            shm_size: flags.shm_size.as_deref().map(shm_size).transpose()?,
            ulimits: each("--ulimit", &flags.ulimit, |text| text.parse())?,
            provenance: attestations.provenance,
            sbom: attestations.sbom,
            media_types: media_types(&flags.media_types)?,
            compression: one("--compression", flags.compression.as_deref().unwrap_or_default(), |text| text.parse())?,
            verify: one("--verify", &flags.verify, |text| text.parse())?,
            emulation: one("--emulation", &flags.emulation, |text| text.parse())?,
            required_labels: required_labels(&flags.require)?,
            timeout: flags.timeout.as_deref().map_or(Ok(limits::BUILD_TIMEOUT_DEFAULT), timeout)?,
            queue_timeout: flags.queue_timeout.as_deref().filter(|text| *text != "0").map(timeout).transpose()?,
        })
    }

    /// The whole spec, checked against every limit before anything is sent.
    ///
    /// # Errors
    /// Every violation, told by its flag.
    pub fn spec(
        self,
        flags: &BuildFlags,
        trees: Trees,
        secret_ids: Vec<String>,
        ssh_ids: Vec<String>,
    ) -> Result<BuildSpec, Failure> {
        let project = match (&flags.project, self.tags.first()) {
            (Some(project), _) => project.clone(),
            (None, Some(tag)) => tag.repository().to_string(),
            (None, None) => String::new(),
        };
        let spec = BuildSpec {
            context: trees.context,
            dockerfile: trees.dockerfile,
            named_contexts: trees.named_contexts,
            platforms: self.platforms,
            tags: self.tags,
            build_args: self.build_args,
            target: flags.target.clone().filter(|target| !target.is_empty()),
            labels: self.labels,
            annotations: self.annotations,
            secret_ids,
            ssh_ids,
            no_cache: flags.no_cache,
            no_cache_stages: flags.no_cache_filter.clone(),
            pull: flags.pull,
            cache_from: self.cache_from,
            cache_to: self.cache_to,
            network: self.network,
            add_hosts: self.add_hosts,
            shm_size: self.shm_size,
            ulimits: self.ulimits,
            provenance: self.provenance,
            sbom: self.sbom,
            media_types: self.media_types,
            verify: self.verify,
            if_unchanged: flags.if_unchanged,
            expected_tags: BTreeMap::new(),
            compression: self.compression,
            rewrite_timestamp: flags.rewrite_timestamp,
            verify_allow: flags.verify_allow.clone(),
            smoke: flags.smoke.clone().map(|command| Smoke { command, expect: flags.expect.clone() }),
            sign: flags.sign,
            emulation: self.emulation,
            required_labels: self.required_labels,
            priority: flags.priority,
            timeout: self.timeout,
            queue_timeout: self.queue_timeout,
            project,
            source: trees.source,
        };
        spec.validate().map_err(|violations| refuse(&violations))?;
        Ok(spec)
    }
}

fn refuse(violations: &[Violation]) -> Failure {
    let tell = |violation: &Violation| match crate::failure::flag_of(&violation.field) {
        Some(flag) => format!("{flag}: {}", violation.description),
        None => format!("{}: {}", violation.field, violation.description),
    };
    let mut told = violations.iter().map(tell);
    let first = told.next().unwrap_or_default();
    Failure { details: told.collect(), ..Failure::usage(first) }
}

fn one<T, E: std::fmt::Display>(flag: &str, text: &str, parse: impl Fn(&str) -> Result<T, E>) -> Result<T, Failure> {
    parse(text).map_err(|error| Failure::usage(format!("{flag}: {error}")))
}

fn each<T, E: std::fmt::Display>(
    flag: &str,
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, Failure> {
    texts.iter().map(|text| one(flag, text, &parse)).collect()
}

/// `--platform` first, then `--optional-platform`; `local` and nothing at all stand for this machine.
fn platforms(flags: &BuildFlags, variables: Variables<'_>) -> Result<Vec<PlatformRequest>, Failure> {
    let parse = |flag: &str, text: &String, required| {
        let platform = match text.trim() {
            "local" => local_platform()?,
            text => one(flag, text, str::parse::<Platform>)?,
        };
        Ok(PlatformRequest { platform, required })
    };
    let mut all: Vec<PlatformRequest> = Vec::new();
    for text in &flags.platform {
        let request = parse("--platform", text, true)?;
        // buildx lets a platform be named twice.
        if !all.contains(&request) {
            all.push(request);
        }
    }
    for text in &flags.optional_platform {
        let request = parse("--optional-platform", text, false)?;
        if all.iter().any(|known| known.platform == request.platform && known.required) {
            return Err(Failure::usage(format!("{} is both required and optional", request.platform))
                .remedy("name it with --platform or with --optional-platform, not with both"));
        }
        if !all.contains(&request) {
            all.push(request);
        }
    }
    if all.is_empty() {
        let text = variables("DOCKER_DEFAULT_PLATFORM").filter(|text| !text.is_empty());
        all.push(parse("DOCKER_DEFAULT_PLATFORM", &text.unwrap_or_else(|| "local".to_owned()), true)?);
    }
    Ok(all)
}

/// `linux/` and this machine's architecture.
fn local_platform() -> Result<Platform, Failure> {
    let architecture = match std::env::consts::ARCH {
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    };
    Platform::new("linux", architecture, None).map_err(|error| Failure::usage(error).remedy("name it with --platform"))
}

fn tags(flags: &BuildFlags) -> Result<Vec<ImageReference>, Failure> {
    if flags.tags.is_empty() {
        return Err(Failure::usage("a farm pushes what it builds, so it needs a tag")
            .remedy("name one with -t, for example -t registry.example/team/app:1.0"));
    }
    let parse = |text: &str| text.parse::<ImageReference>().and_then(ImageReference::into_target);
    let mut all = Vec::new();
    for tag in each("--tag", &flags.tags, parse)? {
        if !all.contains(&tag) {
            all.push(tag);
        }
    }
    Ok(all)
}

/// With `SOURCE_DATE_EPOCH` from the environment, as buildx has it (`build/opt.go`).
fn build_args(flags: &BuildFlags, variables: Variables<'_>) -> BTreeMap<String, String> {
    const EPOCH: &str = "SOURCE_DATE_EPOCH";
    let mut all = key_values(&flags.build_arg, |key| variables(key));
    if let (false, Some(time)) = (all.contains_key(EPOCH), variables(EPOCH)) {
        all.insert(EPOCH.to_owned(), time);
    }
    all
}

/// `KEY=VALUE` or `KEY`, whose value `default` gives; `None` leaves the key out.
fn key_values(texts: &[String], default: impl Fn(&str) -> Option<String>) -> BTreeMap<String, String> {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) => Some((key.to_owned(), value.to_owned())),
        None => Some((text.clone(), default(text)?)),
    };
    texts.iter().filter_map(pair).collect()
}

fn required_labels(texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Failure::usage(format!("--require: `{text}` is not a label")).remedy("write LABEL=VALUE")),
    };
    texts.iter().map(pair).collect()
}

fn shm_size(text: &str) -> Result<u64, Failure> {
    parse_bytes(text).ok_or_else(|| {
        Failure::usage(format!("--shm-size: `{text}` is not a size"))
            .remedy("write bytes with b, k, m or g, for example 128m")
    })
}

/// One or several number-and-unit pairs: `90s`, `1h30m`.
pub fn timeout(text: &str) -> Result<Duration, Failure> {
    let invalid =
        || Failure::usage(format!("`{text}` is not a duration")).remedy("write for example 90s, 30m or 1h30m");
    let (mut total, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let unit = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let part = parse_duration(&rest[..digits + unit]).ok_or_else(invalid)?;
        total = total.checked_add(part).ok_or_else(invalid)?;
        rest = &rest[digits + unit..];
    }
    if total.is_zero() { Err(invalid()) } else { Ok(total) }
}

fn media_types(text: &str) -> Result<MediaTypes, Failure> {
    match text {
        "oci" => Ok(MediaTypes::Oci),
        "docker" => Ok(MediaTypes::Docker),
        _ => Err(Failure::usage(format!("--media-types: `{text}` is not oci or docker"))),
    }
}

#[derive(Default)]
struct Attestations {
    provenance: Option<String>,
    sbom: Option<String>,
}

/// `--attest` first, then the short forms, as buildx orders them (`build/build.go`, `ParseAttests`).
fn attestations(flags: &BuildFlags) -> Result<Attestations, Failure> {
    let mut found = Attestations::default();
    for text in &flags.attest {
        let pairs = csv::pairs(text)?;
        let rest: Vec<_> = pairs.iter().filter(|(key, _)| key != "type").map(|(k, v)| format!("{k}={v}")).collect();
        match pairs.iter().find(|(key, _)| key == "type").map(|(_, kind)| kind.as_str()) {
            Some("provenance") => found.provenance = attributes(&rest.join(","), "mode=min"),
            Some("sbom") => found.sbom = attributes(&rest.join(","), SBOM_GENERATOR),
            _ => {
                return Err(Failure::usage(format!("--attest: `{text}` has no known type"))
                    .remedy("write type=provenance or type=sbom"));
            }
        }
    }
    if let Some(text) = &flags.provenance {
        found.provenance = attributes(text, "mode=min");
    }
    if let Some(text) = &flags.sbom {
        found.sbom = attributes(text, SBOM_GENERATOR);
    }
    Ok(found)
}

/// The attributes of one attestation; a boolean stands for the defaults or for none.
fn attributes(text: &str, default: &str) -> Option<String> {
    match text.to_ascii_lowercase().as_str() {
        "false" | "0" | "f" | "disabled=true" => None,
        "true" | "1" | "t" | "" | "disabled=false" => Some(default.to_owned()),
        _ => Some(text.to_owned()),
    }
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
