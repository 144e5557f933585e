//! The build spec on the wire: texts, because people write it with grpcurl too.

use std::{collections::BTreeMap, fmt::Display, str::FromStr};

use kiln_common::{
    BuildSpec, Digest, ImageReference,
    context::ContextDigest,
    limits,
    smoke::Smoke,
    spec::{
        Annotation, AnnotationScope, CacheKind, CacheOption, Dockerfile, MediaTypes, NamedContext, NetworkMode,
        PlatformRequest, Verify, Violation, parse_annotation,
    },
};

use super::{duration_from_wire, duration_to_wire};
use crate::v1;

/// The name of a Dockerfile whose text came inline.
pub const INLINE_DOCKERFILE: &str = "Dockerfile";

/// Decodes and checks a spec. `secret_ids` are the names of the values that came beside it; `inline_tree` makes the
/// tree of an inline Dockerfile's text and says its id.
///
/// # Errors
/// Every violation at once, each with its field under `spec`.
pub fn decode(
    wire: v1::BuildSpec,
    secret_ids: Vec<String>,
    inline_tree: impl FnOnce(&str) -> ContextDigest,
) -> Result<BuildSpec, Vec<Violation>> {
    let mut violations = Violations::default();
    let tags: Vec<_> =
        violations.each("tags", &wire.tags, |text| text.parse::<ImageReference>().and_then(|tag| tag.into_target()));
    let project = match (wire.project.is_empty(), tags.first()) {
        (true, Some(tag)) => tag.repository().to_string(),
        (true, None) => "unknown".to_owned(),
        (false, _) => wire.project,
    };
    let dockerfile = decode_dockerfile(wire.dockerfile, inline_tree, &mut violations);
    let spec = BuildSpec {
        context: violations.optional("context", &wire.context),
        dockerfile,
        named_contexts: decode_named_contexts(wire.named_contexts, &mut violations),
        platforms: violations.each("platforms", &wire.platforms, |request| {
            let platform = request.platform.parse::<kiln_common::Platform>()?;
            Ok::<_, kiln_common::platform::InvalidPlatform>(PlatformRequest { platform, required: !request.optional })
        }),
        tags,
        build_args: wire.build_args.into_iter().collect(),
        target: some_text(wire.target),
        labels: wire.labels.into_iter().collect(),
        annotations: violations.each("annotations", &wire.annotations, |text| parse_annotation(text)).concat(),
        secret_ids,
        ssh_ids: wire.ssh_ids,
        no_cache: wire.no_cache,
        no_cache_stages: wire.no_cache_stages,
        pull: wire.pull,
        cache_from: violations.parse_each("cache_from", &wire.cache_from),
        cache_to: violations.parse_each("cache_to", &wire.cache_to),
        network: violations.one("network", &wire.network).unwrap_or_default(),
        add_hosts: violations.parse_each("add_hosts", &wire.add_hosts),
        shm_size: (wire.shm_size_bytes > 0).then_some(wire.shm_size_bytes),
        ulimits: violations.parse_each("ulimits", &wire.ulimits),
        provenance: wire.provenance,
        sbom: wire.sbom,
        media_types: match v1::MediaTypes::try_from(wire.media_types) {
            Ok(v1::MediaTypes::Unspecified | v1::MediaTypes::Oci) => MediaTypes::Oci,
            Ok(v1::MediaTypes::Docker) => MediaTypes::Docker,
            Err(error) => {
                violations.add("media_types", error);
                MediaTypes::Oci
            }
        },
        verify: violations.one("verify", &wire.verify).unwrap_or_default(),
        verify_allow: wire.verify_allow,
        compression: violations.one("compression", &wire.compression).unwrap_or_default(),
        rewrite_timestamp: wire.rewrite_timestamp,
        if_unchanged: wire.if_unchanged,
        expected_tags: decode_expected_tags(wire.expected_tags, &mut violations),
        smoke: wire.smoke.map(|smoke| Smoke { command: smoke.command, expect: some_text(smoke.expect) }),
        sign: wire.sign,
        emulation: violations.optional("emulation", &wire.emulation).unwrap_or_default(),
        required_labels: wire.required_labels.into_iter().collect(),
        priority: wire.priority,
        timeout: wire
            .timeout
            .map_or(Some(limits::BUILD_TIMEOUT_DEFAULT), |timeout| duration_from_wire(&timeout))
            .unwrap_or_default(),
        queue_timeout: wire
            .queue_timeout
            .map(|wait| duration_from_wire(&wait).unwrap_or(std::time::Duration::MAX))
            .filter(|wait| !wait.is_zero()),
        project,
        source: wire.source.chars().filter(|c| !c.is_control()).take(limits::PATH_BYTES).collect(),
    };
    if let Err(more) = spec.validate() {
        violations.add_new(more);
    }
    if violations.0.is_empty() { Ok(spec) } else { Err(violations.0) }
}

fn decode_dockerfile(
    wire: Option<v1::build_spec::Dockerfile>,
    inline_tree: impl FnOnce(&str) -> ContextDigest,
    violations: &mut Violations,
) -> Dockerfile {
    let nothing = || ContextDigest(kiln_common::context::ChunkId::from_bytes([0; 32]));
    match wire {
        None => {
            violations.add("dockerfile", "missing; give dockerfile_inline or dockerfile_in_tree");
            Dockerfile { tree: nothing(), filename: INLINE_DOCKERFILE.to_owned() }
        }
        Some(v1::build_spec::Dockerfile::DockerfileInline(text)) => {
            if text.trim().is_empty() {
                violations.add("dockerfile_inline", "the Dockerfile is empty");
            }
            if text.len() > limits::DOCKERFILE_BYTES {
                violations.add("dockerfile_inline", format!("longer than {} bytes", limits::DOCKERFILE_BYTES));
                return Dockerfile { tree: nothing(), filename: INLINE_DOCKERFILE.to_owned() };
            }
            Dockerfile { tree: inline_tree(&text), filename: INLINE_DOCKERFILE.to_owned() }
        }
        Some(v1::build_spec::Dockerfile::DockerfileInTree(file)) => Dockerfile {
            tree: violations.one("dockerfile_in_tree.tree", &file.tree).unwrap_or_else(nothing),
            filename: file.filename,
        },
    }
}

fn decode_named_contexts(
    wire: std::collections::HashMap<String, v1::NamedContext>,
    violations: &mut Violations,
) -> BTreeMap<String, NamedContext> {
    let mut contexts = BTreeMap::new();
    for (name, context) in wire {
        let source = match context.source {
            None => {
                violations.add(&format!("named_contexts[{name}]"), "missing; give tree or reference");
                continue;
            }
            Some(v1::named_context::Source::Tree(id)) => {
                let Some(tree) = violations.one(&format!("named_contexts[{name}]"), &id) else { continue };
                NamedContext::Tree(tree)
            }
            Some(v1::named_context::Source::Reference(reference)) => {
                let remote = ["docker-image://", "https://", "http://", "git://", "git@", "ssh://"];
                if reference.len() > limits::VALUE_BYTES || !remote.iter().any(|scheme| reference.starts_with(scheme)) {
                    let problem =
                        "its reference must start with docker-image://, https://, http://, git://, ssh:// or git@";
                    violations.add(&format!("named_contexts[{name}]"), problem);
                    continue;
                }
                NamedContext::Reference(reference)
            }
        };
        contexts.insert(name, source);
    }
    contexts
}

fn decode_expected_tags(
    wire: std::collections::HashMap<String, String>,
    violations: &mut Violations,
) -> BTreeMap<ImageReference, Option<Digest>> {
    let mut expected = BTreeMap::new();
    for (tag, digest) in wire {
        let field = format!("expected_tags[{tag}]");
        let named = if digest.is_empty() { Some(None) } else { violations.one(&field, &digest).map(Some) };
        let Some(reference) = violations.one::<ImageReference>(&field, &tag) else { continue };
        match (reference.into_target(), named) {
            (Ok(reference), Some(named)) => {
                expected.insert(reference, named);
            }
            (Err(error), _) => violations.add(&field, error),
            (Ok(_), None) => {}
        }
    }
    expected
}

fn some_text(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Collects what is wrong, field by field.
#[derive(Default)]
struct Violations(Vec<Violation>);

impl Violations {
    fn add(&mut self, field: &str, problem: impl Display) {
        self.0.push(Violation::new(format!("spec.{field}"), problem));
    }

    /// Those of `more` whose field has no violation yet: a field that did not decode also breaks later rules.
    fn add_new(&mut self, more: Vec<Violation>) {
        for violation in more {
            let prefix = |field: &str| field.split(['[', '.']).take(2).collect::<Vec<_>>().join(".");
            if !self.0.iter().any(|known| prefix(&known.field) == prefix(&violation.field)) {
                self.0.push(violation);
            }
        }
    }

    fn one<T: FromStr<Err: Display>>(&mut self, field: &str, text: &str) -> Option<T> {
        text.parse().map_err(|error| self.add(field, error)).ok()
    }

    fn optional<T: FromStr<Err: Display>>(&mut self, field: &str, text: &str) -> Option<T> {
        if text.is_empty() { None } else { self.one(field, text) }
    }

    fn each<W, T, E: Display>(&mut self, field: &str, items: &[W], decode: impl Fn(&W) -> Result<T, E>) -> Vec<T> {
        let mut decoded = Vec::with_capacity(items.len());
        for (at, item) in items.iter().enumerate() {
            match decode(item) {
                Ok(value) => decoded.push(value),
                Err(error) => self.add(&format!("{field}[{at}]"), error),
            }
        }
        decoded
    }

    fn parse_each<T: FromStr<Err: Display>>(&mut self, field: &str, texts: &[String]) -> Vec<T> {
        self.each(field, texts, |text| text.parse())
    }
}

/// The spec as the wire writes it; a worker decodes it again with [`decode`].
#[must_use]
pub fn encode(spec: &BuildSpec) -> v1::BuildSpec {
    v1::BuildSpec {
        context: spec.context.map(|digest| digest.to_string()).unwrap_or_default(),
        dockerfile: Some(v1::build_spec::Dockerfile::DockerfileInTree(v1::DockerfileInTree {
            tree: spec.dockerfile.tree.to_string(),
            filename: spec.dockerfile.filename.clone(),
        })),
        named_contexts: spec
            .named_contexts
            .iter()
            .map(|(name, context)| {
                let source = match context {
                    NamedContext::Tree(tree) => v1::named_context::Source::Tree(tree.to_string()),
                    NamedContext::Reference(reference) => v1::named_context::Source::Reference(reference.clone()),
                };
                (name.clone(), v1::NamedContext { source: Some(source) })
            })
            .collect(),
        platforms: spec
            .platforms
            .iter()
            .map(|request| v1::PlatformRequest { platform: request.platform.to_string(), optional: !request.required })
            .collect(),
        tags: texts(&spec.tags),
        build_args: spec.build_args.clone().into_iter().collect(),
        target: spec.target.clone().unwrap_or_default(),
        labels: spec.labels.clone().into_iter().collect(),
        annotations: spec.annotations.iter().map(annotation_text).collect(),
        ssh_ids: spec.ssh_ids.clone(),
        no_cache: spec.no_cache,
        no_cache_stages: spec.no_cache_stages.clone(),
        pull: spec.pull,
        cache_from: spec.cache_from.iter().map(cache_text).collect(),
        cache_to: spec.cache_to.iter().map(cache_text).collect(),
        network: match spec.network {
            NetworkMode::Default => String::new(),
            NetworkMode::None => "none".to_owned(),
            NetworkMode::Host => "host".to_owned(),
        },
        add_hosts: texts(&spec.add_hosts),
        shm_size_bytes: spec.shm_size.unwrap_or_default(),
        ulimits: texts(&spec.ulimits),
        provenance: spec.provenance.clone(),
        sbom: spec.sbom.clone(),
        media_types: match spec.media_types {
            MediaTypes::Oci => v1::MediaTypes::Oci,
            MediaTypes::Docker => v1::MediaTypes::Docker,
        }
        .into(),
        verify: match spec.verify {
            Verify::Programs => String::new(),
            Verify::Off => "off".to_owned(),
        },
        verify_allow: spec.verify_allow.clone(),
        compression: spec.compression.name().unwrap_or_default().to_owned(),
        rewrite_timestamp: spec.rewrite_timestamp,
        if_unchanged: spec.if_unchanged,
        expected_tags: spec
            .expected_tags
            .iter()
            .map(|(tag, digest)| (tag.to_string(), digest.as_ref().map(ToString::to_string).unwrap_or_default()))
            .collect(),
        smoke: spec.smoke.as_ref().map(|smoke| v1::SmokeRun {
            command: smoke.command.clone(),
            expect: smoke.expect.clone().unwrap_or_default(),
        }),
        sign: spec.sign,
        emulation: spec.emulation.to_string(),
        required_labels: spec.required_labels.clone().into_iter().collect(),
        priority: spec.priority,
        timeout: Some(duration_to_wire(spec.timeout)),
        queue_timeout: spec.queue_timeout.map(duration_to_wire),
        project: spec.project.clone(),
        source: spec.source.clone(),
        secret_ids: spec.secret_ids.clone(),
    }
}

fn texts<T: Display>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn annotation_text(annotation: &Annotation) -> String {
    let scoped = |name: &str, platform: &Option<kiln_common::Platform>| match platform {
        Some(platform) => format!("{name}[{platform}]"),
        None => name.to_owned(),
    };
    let scope = match &annotation.scope {
        AnnotationScope::Index => "index".to_owned(),
        AnnotationScope::Manifest(platform) => scoped("manifest", platform),
        AnnotationScope::ManifestDescriptor(platform) => scoped("manifest-descriptor", platform),
    };
    format!("{scope}:{}={}", annotation.key, annotation.value)
}

fn cache_text(option: &CacheOption) -> String {
    let kind = match option.kind {
        CacheKind::Registry => "registry",
        CacheKind::Inline => "inline",
    };
    option.attributes.iter().fold(format!("type={kind}"), |text, (key, value)| format!("{text},{key}={value}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_common::context::ChunkId;

    fn wire() -> v1::BuildSpec {
        v1::BuildSpec {
            dockerfile: Some(v1::build_spec::Dockerfile::DockerfileInline("FROM scratch\n".into())),
            platforms: vec![
                v1::PlatformRequest { platform: "linux/arm64/v8".into(), optional: false },
                v1::PlatformRequest { platform: "linux/arm".into(), optional: true },
            ],
            tags: vec!["r.example/app".into(), "r.example/other:2".into()],
            annotations: vec!["index:a=b".into(), "manifest[linux/arm64]:c=d=e".into()],
            cache_to: vec!["type=registry,ref=r.example/cache:x,mode=max".into()],
            add_hosts: vec!["db:10.0.0.1".into()],
            ulimits: vec!["nofile=1024:2048".into()],
            verify: "off".into(),
            verify_allow: vec!["opt/**".into()],
            compression: "zstd".into(),
            if_unchanged: true,
            expected_tags: [("r.example/other:2".to_owned(), String::new())].into(),
            smoke: Some(v1::SmokeRun { command: "hello".into(), expect: "Hello, {goarch}!".into() }),
            sign: Some(false),
            emulation: "wait=30s".into(),
            provenance: Some("mode=max".into()),
            ..v1::BuildSpec::default()
        }
    }

    fn decode_wire(wire: v1::BuildSpec) -> Result<BuildSpec, Vec<Violation>> {
        decode(wire, vec!["token".into()], |text| ContextDigest(ChunkId::of(text.as_bytes())))
    }

    #[test]
    fn a_spec_reads_back_from_the_wire_as_it_was_sent() {
        let spec = decode_wire(wire()).expect("sound");
        assert_eq!(spec.platforms[1].platform.to_string(), "linux/arm/v7");
        assert!(!spec.platforms[1].required);
        assert_eq!(spec.tags[0].tag(), Some("latest"));
        assert_eq!(spec.project, "r.example/app");
        let again = decode_wire(encode(&spec)).expect("sound");
        assert_eq!(again, spec);
    }

    #[test]
    fn every_malformed_field_is_named_once() {
        let broken = v1::BuildSpec {
            dockerfile: None,
            platforms: vec![v1::PlatformRequest { platform: "nonsense".into(), optional: false }],
            tags: vec!["UPPER".into()],
            ulimits: vec!["x".into()],
            network: "bridge".into(),
            emulation: "sometimes".into(),
            context: "zz".into(),
            expected_tags: Default::default(),
            ..wire()
        };
        let mut fields: Vec<_> = decode_wire(broken).expect_err("broken").into_iter().map(|v| v.field).collect();
        fields.sort();
        assert_eq!(
            fields,
            [
                "spec.context",
                "spec.dockerfile",
                "spec.emulation",
                "spec.network",
                "spec.platforms[0]",
                "spec.tags[0]",
                "spec.ulimits[0]"
            ]
        );
    }
}
