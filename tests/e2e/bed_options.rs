//! Every option of a build on every shape of engine: each one has its effect, or is refused at submit with the reason.
//!
//! One farm has a worker for each engine of the bed; `--require name=ENGINE` says which one is asked.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use harness::{
    Bed, Farm, OwnEngine, Worker,
    bed::EngineKind,
    process::{runs, until},
    registry,
};
use serde_json::Value;

/// A farm with one worker on each engine that this machine has.
struct Everything {
    farm: Farm,
    workers: Vec<(EngineKind, Worker)>,
    folder: tempfile::TempDir,
}

impl Everything {
    fn start() -> Self {
        // The farm's own worker is not asked for anything: the others carry the labels.
        let farm = Farm::start(&Bed.engine(EngineKind::Docker28).expect("docker 28"));
        let tls = format!("--engine-tls-dir={}", Bed.buildkit_tls_dir());
        let workers = EngineKind::ALL.into_iter().filter_map(|kind| {
            let more: &[&str] = if kind == EngineKind::BuildkitTcp { &[&tls] } else { &[] };
            Some((kind, Worker::join(&farm, kind.name(), &Bed.engine(kind)?, more)))
        });
        let workers = workers.collect();
        Self { farm, workers, folder: tempfile::tempdir().expect("temporary folder") }
    }

    /// Whether the engine has the feature, as the farm knows it.
    fn has(&self, kind: EngineKind, feature: &str) -> bool {
        let (_, worker) = self.workers.iter().find(|(known, _)| *known == kind).expect("a worker");
        let shown = worker.shown(&self.farm);
        shown["engine"]["features"].as_array().into_iter().flatten().any(|name| name == feature)
    }

    /// A context with these files.
    fn context(&self, files: &[(&str, &str)]) -> String {
        let folder = self.folder.path().join(unique());
        fs::create_dir_all(&folder).expect("folder");
        for (name, text) in files {
            fs::write(folder.join(name), text).expect("file");
        }
        folder.display().to_string()
    }

    fn build(&self, worker: &str, tag: &str, flags: &[&str], context: &str) -> std::process::Output {
        let require = format!("name={worker}");
        let mut command = self.farm.kiln();
        command.args(["build", "-t", tag, "--platform", "linux/amd64", "--progress", "plain", "--require", &require]);
        command.args(flags).arg(context).output().expect("kiln runs")
    }

    /// Builds what must succeed, and returns all that it printed.
    fn built(&self, kind: EngineKind, tag: &str, flags: &[&str], context: &str) -> String {
        self.built_on(kind.name(), tag, flags, context)
    }

    fn built_on(&self, worker: &str, tag: &str, flags: &[&str], context: &str) -> String {
        let output = self.build(worker, tag, flags, context);
        let said = harness::farm::text(&output);
        assert!(output.status.success(), "{worker} {flags:?}\n{said}\n{}", self.farm.log());
        let (repository, name) = tag.rsplit_once(':').expect("a tag");
        assert_eq!(registry::tags(repository), [name], "{worker} {flags:?}: no tag but the one asked for");
        said
    }
}

fn unique() -> String {
    kiln_common::AttemptId::generate().to_string().replace('-', "")
}

/// A tag in a repository of its own.
fn tag() -> String {
    format!("{}/options/{}:x", Bed.registry(), unique())
}

/// One option: its flags, the feature that it takes, a Dockerfile whose output shows the effect.
struct Row {
    flags: Vec<String>,
    feature: Option<&'static str>,
    /// `STAMP` stands for a text that is new each time, so that no cache answers.
    dockerfile: &'static str,
    shows: Vec<String>,
}

fn row(flags: &[&str], feature: Option<&'static str>, dockerfile: &'static str, shows: &[&str]) -> Row {
    let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    Row { flags: own(flags), feature, dockerfile, shows: own(shows) }
}

fn rows(host_interface: &str) -> Vec<Row> {
    vec![
        row(
            &["--build-arg", "WHO=a b=c,d"],
            None,
            "FROM busybox\nARG WHO\nRUN echo STAMP \"hello-$WHO\"\n",
            &["hello-a b=c,d"],
        ),
        row(
            &["--target", "one"],
            None,
            "FROM busybox AS one\nRUN echo STAMP in-stage-one\nFROM busybox AS two\nRUN false\n",
            &["in-stage-one"],
        ),
        row(
            &["--add-host", "db.example:10.1.2.3", "--add-host", "six.example=[fd00::7]"],
            None,
            "FROM busybox\nRUN echo STAMP && grep example /etc/hosts\n",
            &["10.1.2.3", "db.example", "fd00::7"],
        ),
        row(
            &["--add-host", "gw.example:host-gateway"],
            Some("host-gateway"),
            "FROM busybox\nRUN echo STAMP && sed -n 's/gw.example/gateway-is-known/p' /etc/hosts\n",
            &["gateway-is-known"],
        ),
        row(
            &["--network", "none"],
            None,
            "FROM busybox\nRUN echo STAMP && echo interfaces: $(ls /sys/class/net)!\n",
            &["interfaces: lo!"],
        ),
        row(
            &["--network", "host"],
            Some("host-network"),
            "FROM busybox\nRUN echo STAMP && ls /sys/class/net\n",
            &[host_interface],
        ),
        row(
            &["--shm-size", "33m"],
            Some("step-limits"),
            "FROM busybox\nRUN echo STAMP && df -k /dev/shm | tail -n 1\n",
            &["33792"],
        ),
        row(
            &["--ulimit", "nofile=123:456"],
            Some("step-limits"),
            "FROM busybox\nRUN echo STAMP && echo limits: $(ulimit -Sn) $(ulimit -Hn)!\n",
            &["limits: 123 456!"],
        ),
    ]
}

/// An interface of this machine that no container of its own network has.
fn host_interface() -> String {
    let names = fs::read_dir("/sys/class/net").expect("interfaces").flatten();
    let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.find(|name| name.starts_with("kiln")).expect("a bridge of the bed")
}

#[test]
fn options_of_steps_have_their_effect_or_are_refused_with_the_reason() {
    let all = Everything::start();
    for row in rows(&host_interface()) {
        let flags: Vec<&str> = row.flags.iter().map(String::as_str).collect();
        for (kind, _) in &all.workers {
            let tag = tag();
            let context = all.context(&[("Dockerfile", &row.dockerfile.replace("STAMP", &unique()))]);
            if row.feature.is_none_or(|feature| all.has(*kind, feature)) {
                let said = all.built(*kind, &tag, &flags, &context);
                for shows in &row.shows {
                    assert!(said.contains(shows), "{} {flags:?}: `{shows}` is missing in\n{said}", kind.name());
                }
            } else {
                refused(&all, *kind, &tag, &flags, &context, row.feature.expect("a feature"));
            }
        }
    }
}

/// Nothing that an engine cannot do is dropped silently.
fn refused(all: &Everything, kind: EngineKind, tag: &str, flags: &[&str], context: &str, feature: &str) {
    let output = all.build(kind.name(), tag, flags, context);
    let said = harness::farm::text(&output);
    assert_eq!(output.status.code(), Some(2), "{} {flags:?}\n{said}", kind.name());
    for part in [kind.name(), feature, flags[0]] {
        assert!(said.contains(part), "{} {flags:?}: `{part}` is missing in\n{said}", kind.name());
    }
    assert!(!registry::exists(tag), "{} {flags:?}", kind.name());
}

/// Each shape lacks what it is known to lack, so that no row above passes by being refused everywhere.
#[test]
fn engines_have_the_features_of_their_shape() {
    let all = Everything::start();
    for (kind, lacks) in [
        (
            EngineKind::Docker20,
            &[
                "named-contexts",
                "cache-export-registry",
                "attestations",
                "annotations",
                "layer-compression",
                "estargz",
                "rewrite-timestamp",
                "step-limits",
            ][..],
        ),
        (
            EngineKind::Docker28Classic,
            &[
                "cache-export-registry",
                "attestations",
                "annotations",
                "layer-compression",
                "estargz",
                "rewrite-timestamp",
            ],
        ),
        // The bed's is compiled with Go 1.27.
        (EngineKind::Docker28, &["estargz"]),
        (EngineKind::Buildkit, &["host-gateway", "host-network"]),
        (EngineKind::BuildkitTcp, &["host-gateway", "host-network"]),
    ] {
        if Bed.engine(kind).is_none() {
            continue;
        }
        for feature in kiln_common::Feature::ALL.map(kiln_common::Feature::name) {
            assert_eq!(all.has(kind, feature), !lacks.contains(&feature), "{} {feature}", kind.name());
        }
    }
}

#[test]
fn what_an_image_carries_is_what_was_asked_for() {
    let all = Everything::start();
    for (kind, _) in &all.workers {
        let context = all.context(&[("Other.Dockerfile", &format!("FROM busybox\nLABEL stamp={}\n", unique()))]);
        let file = format!("{context}/Other.Dockerfile");
        let plain = tag();
        let flags = ["-f", &file, "--label", "org.example.label=a=b,c"];
        all.built(*kind, &plain, &flags, &context);
        assert_eq!(registry::config(&plain)["config"]["Labels"]["org.example.label"], "a=b,c", "{}", kind.name());
        assert!(!registry::inspect_raw(&plain).to_string().contains("vnd.docker"), "{}", kind.name());

        let docker = tag();
        all.built(*kind, &docker, &["-f", &file, "--media-types", "docker"], &context);
        let manifest = registry::inspect_raw(&docker).to_string();
        assert!(manifest.contains("vnd.docker") && !manifest.contains("vnd.oci"), "{}: {manifest}", kind.name());

        let annotated = tag();
        let flags = ["--annotation", "manifest:org.example.note=here", "-f", &file];
        if all.has(*kind, "annotations") {
            all.built(*kind, &annotated, &flags, &context);
            let manifest = registry::inspect_raw(&annotated);
            assert_eq!(manifest["annotations"]["org.example.note"], "here", "{}: {manifest}", kind.name());
        } else {
            refused(&all, *kind, &annotated, &flags, &context, "annotations");
        }

        let attested = tag();
        let flags = ["--provenance", "mode=max", "-f", &file];
        if all.has(*kind, "attestations") {
            all.built(*kind, &attested, &flags, &context);
            let index = registry::inspect_raw(&attested).to_string();
            assert!(index.contains("attestation-manifest"), "{}: {index}", kind.name());
        } else {
            refused(&all, *kind, &attested, &flags, &context, "attestations");
        }
    }
}

#[test]
fn secrets_and_the_client_s_ssh_agent_reach_the_step_and_nothing_else() {
    // What an agent is asked for its keys (draft-miller-ssh-agent, section 4.4), without a line of ssh in the image.
    const ASK: &str = r#"package main
import ("encoding/binary"; "fmt"; "io"; "net"; "os")
func main() {
    agent, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
    if err != nil { panic(err) }
    agent.Write([]byte{0, 0, 0, 1, 11})
    var length uint32
    if err := binary.Read(agent, binary.BigEndian, &length); err != nil { panic(err) }
    answer := make([]byte, length)
    if _, err := io.ReadFull(agent, answer); err != nil { panic(err) }
    fmt.Printf("keys: %d, %q\n", binary.BigEndian.Uint32(answer[1:]), answer[5:])
}
"#;
    const DOCKERFILE: &str = "FROM golang:alpine\nCOPY ask.go .\nRUN CGO_ENABLED=0 go build -o /ask ask.go\n\
        RUN --mount=type=ssh,required=true /ask && echo STAMP\n\
        FROM busybox\nCOPY --from=0 /ask /ask\n\
        RUN --mount=type=secret,id=key sha256sum </run/secrets/key && echo STAMP && cat /run/secrets/key\n";
    let all = Everything::start();
    let agent = SshAgent::start();
    let ssh = format!("default={}", agent.socket.display());
    let secret = all.folder.path().join("secret");
    fs::write(&secret, "a-very-secret-value").expect("written");
    let secret = format!("id=key,src={}", secret.display());
    for (kind, _) in &all.workers {
        let dockerfile = DOCKERFILE.replace("STAMP", &unique());
        let context = all.context(&[("ask.go", ASK), ("Dockerfile", &dockerfile)]);
        let tag = tag();
        let said = all.built(*kind, &tag, &["--ssh", &ssh, "--secret", &secret], &context);
        assert!(said.contains("keys: 1, ") && said.contains("key-of-the-test"), "{}\n{said}", kind.name());
        assert!(said.contains("ebe1fd62a047dd09"), "{}: the secret's hash\n{said}", kind.name());
        assert!(!said.contains("a-very-secret-value"), "{}: masked\n{said}", kind.name());
        assert!(!registry::config(&tag).to_string().contains("a-very-secret-value"), "{}", kind.name());
        let output = all.build(kind.name(), &tag, &["--secret", &secret, "--no-cache"], &context);
        let said = harness::farm::text(&output);
        assert_eq!(output.status.code(), Some(1), "{}\n{said}", kind.name());
        assert!(said.contains("--ssh"), "{}: says what is missing\n{said}", kind.name());
    }
}

struct SshAgent {
    child: std::process::Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl SshAgent {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (socket, key) = (folder.path().join("agent"), folder.path().join("key"));
        let agent = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn();
        let child = agent.expect("ssh-agent runs");
        let kind = ["-q", "-t", "ed25519", "-N", "", "-C", "key-of-the-test", "-f"];
        let made = Command::new("ssh-keygen").args(kind).arg(&key).status();
        assert!(made.expect("ssh-keygen runs").success());
        until(Duration::from_secs(10), "ssh-agent listens", || socket.exists());
        let added = Command::new("ssh-add").arg("-q").arg(&key).env("SSH_AUTH_SOCK", &socket).status();
        assert!(added.expect("ssh-add runs").success());
        Self { child, socket, _folder: folder }
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn named_contexts_are_folders_and_images_or_refused() {
    const DOCKERFILE: &str = "FROM base\nCOPY --from=other note /note\nRUN cat /note\n";
    let all = Everything::start();
    for (kind, _) in &all.workers {
        let note = unique();
        let other = format!("other={}", all.context(&[("note", &note)]));
        let context = all.context(&[("Dockerfile", DOCKERFILE)]);
        let flags = ["--build-context", &other, "--build-context", "base=docker-image://busybox"];
        let tag = tag();
        if all.has(*kind, "named-contexts") {
            let said = all.built(*kind, &tag, &flags, &context);
            assert!(said.contains(&note), "{}\n{said}", kind.name());
        } else {
            refused(&all, *kind, &tag, &flags, &context, "named-contexts");
        }
    }
}

#[test]
fn no_cache_runs_all_steps_again_and_its_filter_those_of_a_stage() {
    const DOCKERFILE: &str = "FROM busybox AS one\nRUN echo first-STAMP | tee /a\nFROM busybox AS two\n\
        COPY --from=one /a /a\nRUN echo second-STAMP | tee /b\n";
    let all = Everything::start();
    for (kind, _) in &all.workers {
        let stamp = unique();
        let context = all.context(&[("Dockerfile", &DOCKERFILE.replace("STAMP", &stamp))]);
        // The names of steps hold the stamp, too: only a line of output ends with it.
        let ran = |said: &str, step: &str| said.lines().any(|line| line.ends_with(&format!(" {step}-{stamp}")));
        for (flags, first, second) in [
            (&[][..], true, true),
            (&[], false, false),
            (&["--no-cache-filter", "two"], false, true),
            (&["--no-cache"], true, true),
        ] {
            let said = all.built(*kind, &tag(), flags, &context);
            let found = (ran(&said, "first"), ran(&said, "second"));
            assert_eq!(found, (first, second), "{} {flags:?}\n{said}", kind.name());
        }
    }
}

#[test]
fn pull_takes_the_newest_base_image_over_the_engine_s_own() {
    let all = Everything::start();
    let base = format!("{}/options/{}:base", Bed.registry(), unique());
    let version = |text: &str| {
        let dockerfile = format!("FROM busybox\nRUN echo {text} >/version\n");
        let context = all.context(&[("Dockerfile", &dockerfile)]);
        all.built(EngineKind::Docker28, &base, &[], &context);
    };
    let docker = |address: &str, arguments: &[&str]| {
        let output =
            Command::new(Bed.docker_cli()).args(["-H", address]).args(arguments).output().expect("docker runs");
        assert!(output.status.success(), "{arguments:?}: {}", harness::farm::text(&output));
    };
    version("old");
    let dockerds = [EngineKind::Docker20, EngineKind::Docker28, EngineKind::Docker28Classic];
    let dockerds: Vec<_> = dockerds.into_iter().filter_map(|kind| Some((kind, Bed.engine(kind)?))).collect();
    dockerds.iter().for_each(|(_, address)| docker(address, &["pull", "-q", &base]));
    version("new");
    for (kind, _) in &all.workers {
        let dockerfile = format!("FROM {base}\nRUN echo {} && echo version-is-$(cat /version)\n", unique());
        let context = all.context(&[("Dockerfile", &dockerfile)]);
        let said = all.built(*kind, &tag(), &["--pull"], &context);
        assert!(said.contains("version-is-new"), "{}\n{said}", kind.name());
    }
    for (kind, address) in &dockerds {
        let dockerfile = format!("FROM {base}\nRUN echo {} && echo version-is-$(cat /version)\n", unique());
        let context = all.context(&[("Dockerfile", &dockerfile)]);
        let said = all.built(*kind, &tag(), &[], &context);
        let own = *kind != EngineKind::Docker28;
        assert_eq!(
            said.contains("version-is-old"),
            own,
            "{}: a classic store takes its own image\n{said}",
            kind.name()
        );
        docker(address, &["rmi", &base]);
    }
}

#[test]
fn caches_in_the_registry_and_in_images_are_written_and_read_by_another_engine() {
    let all = Everything::start();
    // Engines of other generations key their caches otherwise: the old one has a sibling of its own.
    let sibling = OwnEngine::start("docker20", None);
    let _sibling = Worker::join(&all.farm, "sibling", &sibling.address, &[]);
    for (kind, _) in &all.workers {
        let reader = match kind {
            EngineKind::Docker20 => "sibling",
            EngineKind::Docker28 if Bed.engine(EngineKind::Buildkit).is_some() => "buildkit",
            EngineKind::Docker28 => "docker28-classic",
            EngineKind::Docker28Classic | EngineKind::Buildkit | EngineKind::BuildkitTcp => "docker28",
        };
        for (option, feature) in [("registry", "cache-export-registry"), ("inline", "cache-export-inline")] {
            let (stamp, tag) = (unique(), tag());
            let dockerfile = format!("FROM busybox\nRUN echo ran-{stamp} | tee /a\n");
            let context = all.context(&[("Dockerfile", &dockerfile)]);
            let cache = format!("{}/options/{}", Bed.registry(), unique());
            let to = match option {
                "registry" => format!("type=registry,ref={cache}:cache,mode=max"),
                other => format!("type={other}"),
            };
            let flags = ["--cache-to", to.as_str()];
            if !all.has(*kind, feature) {
                refused(&all, *kind, &tag, &flags, &context, feature);
                continue;
            }
            let ran = |said: &str| said.lines().any(|line| line.ends_with(&format!(" ran-{stamp}")));
            assert!(ran(&all.built(*kind, &tag, &flags, &context)), "{} {option}", kind.name());
            let from = match option {
                "registry" => {
                    assert_eq!(registry::tags(&cache), ["cache-linux-amd64"], "{}", kind.name());
                    format!("type=registry,ref={cache}:cache")
                }
                _ => format!("type=registry,ref={tag}"),
            };
            let said = all.built_on(reader, &self::tag(), &["--cache-from", &from], &context);
            assert!(!ran(&said), "{reader} reads what {} wrote, {option}\n{said}", kind.name());
        }
    }
}

#[test]
fn a_cancel_ends_the_step_within_a_second_on_every_engine() {
    let all = Everything::start();
    for (number, (kind, _)) in all.workers.iter().enumerate() {
        let seconds = 30_000 + number;
        let sleep = format!("sleep {seconds}");
        let dockerfile = format!("FROM busybox\nRUN echo {} && {sleep}\n", unique());
        let context = all.context(&[("Dockerfile", &dockerfile)]);
        let (tag, require) = (tag(), format!("name={}", kind.name()));
        let flags =
            ["build", "-t", &tag, "--platform", "linux/amd64", "--require", &require, "-q", "--detach", &context];
        let id = all.farm.run(&flags).trim().to_owned();
        until(Duration::from_secs(60), "the step runs", || runs(&sleep));
        let told = Instant::now();
        all.farm.run(&["builds", "cancel", &id]);
        until(Duration::from_secs(10), "the step ends", || !runs(&sleep));
        let took = told.elapsed();
        assert!(took < Duration::from_secs(1), "{}: {took:?}", kind.name());
        let build: Value = serde_json::from_str(&all.farm.run(&["builds", "show", &id, "-o", "json"])).expect("JSON");
        assert_eq!(build["state"], "BUILD_STATE_CANCELLED", "{}", kind.name());
        assert!(!registry::exists(&tag), "{}", kind.name());
    }
}
