//! Builds on every engine of the bed: what goes in arrives, what comes out is pushed by digest and nothing is left.

mod bed;
#[path = "bed/sessions.rs"]
mod sessions;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bed::{Job, Seen, addresses, build, built, engines, failed, fresh_repository, job, pushed, registry, spec, tags};
use kiln_common::{
    BuildSpec, Feature,
    context::{ChunkId, ContextDigest},
    spec::{MediaTypes, NamedContext, NetworkMode},
};
use kiln_worker::{
    context::FileSyncService,
    engine::{AgentDialer, BoxedIo, BuildError, Engine, RegistryCredential, job::named_dir},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

#[tokio::test]
async fn an_image_is_pushed_by_digest_to_every_repository_and_nothing_is_left() {
    for (name, engine) in engines().await {
        let repositories = [fresh_repository(&registry()), fresh_repository(&registry())];
        let tag = |repository: &String| format!("{repository}:x").parse().unwrap();
        let asked = BuildSpec { tags: repositories.iter().map(tag).collect(), ..spec(&repositories[0]) };
        let text = format!("from the context of {}\n", repositories[0]);
        let job = job(asked, "FROM busybox\nCOPY a /a\nRUN cat /a && date > /b\n", &[("a", &text)]).await;
        let (descriptor, seen) = built(name, &engine, job).await;
        assert!(seen.output().contains(text.trim()), "{name}: {}", seen.output());
        assert_eq!(descriptor.media_type, OCI_MANIFEST, "{name}");
        for repository in &repositories {
            let (manifest, config) = pushed(repository, &descriptor);
            assert!(!manifest.to_string().contains("vnd.docker"), "{name}: {manifest}");
            assert_eq!(config["architecture"], "amd64", "{name}");
            assert_eq!(tags(repository), Vec::<String>::new(), "{name}");
        }
    }
    for (_, address) in addresses().into_iter().filter(|(_, address)| address.starts_with("unix://")) {
        bed::eventually(|| bed::leftovers(&address).is_empty()).await;
    }
}

#[tokio::test]
async fn arguments_target_and_labels_arrive_and_docker_types_are_kept_apart() {
    const DOCKERFILE: &str =
        "FROM busybox AS one\nARG WHO\nRUN echo hello $WHO > /who && cat /who\nFROM busybox AS two\nRUN false\n";
    for (name, engine) in engines().await {
        let repository = fresh_repository(&registry());
        let asked = BuildSpec {
            target: Some("one".into()),
            build_args: [("WHO".to_owned(), format!("{repository} = a,b"))].into(),
            labels: [("org.example.label".to_owned(), "a=b,c".to_owned())].into(),
            media_types: MediaTypes::Docker,
            ..spec(&repository)
        };
        let (descriptor, seen) = built(name, &engine, job(asked, DOCKERFILE, &[]).await).await;
        assert!(seen.output().contains(&format!("hello {repository} = a,b")), "{}", seen.output());
        assert_eq!(descriptor.media_type, DOCKER_MANIFEST, "{name}");
        let (manifest, config) = pushed(&repository, &descriptor);
        assert!(!manifest.to_string().contains("vnd.oci"), "{name}: {manifest}");
        assert_eq!(config["config"]["Labels"]["org.example.label"], "a=b,c", "{name}");
    }
}

#[tokio::test]
async fn every_platform_s_configuration_names_its_variant() {
    for (name, engine) in engines().await {
        for (platform, architecture, variant) in
            [("linux/arm/v6", "arm", Some("v6")), ("linux/arm/v7", "arm", Some("v7")), ("linux/arm64", "arm64", None)]
        {
            let repository = fresh_repository(&registry());
            let mut asked = spec(&repository);
            asked.platforms[0].platform = platform.parse().unwrap();
            let (descriptor, _) = built(name, &engine, job(asked, "FROM busybox\nRUN uname -m\n", &[]).await).await;
            let (_, config) = pushed(&repository, &descriptor);
            assert_eq!(config["architecture"], architecture, "{name} {platform}");
            let found = config["variant"].as_str();
            assert!(found == variant || (variant.is_none() && found == Some("v8")), "{name} {platform}: {found:?}");
        }
    }
}

#[tokio::test]
async fn a_failing_step_is_the_user_s_and_named_by_its_line() {
    for (name, engine) in engines().await {
        let repository = fresh_repository(&registry());
        let dockerfile = "FROM busybox\n\nRUN echo about to fail && exit 7\n";
        let (message, seen) = failed(name, &engine, job(spec(&repository), dockerfile, &[]).await).await;
        assert!(message.contains("exit code: 7"), "{name}: {message}");
        // 20.10 knows the step and not its line.
        assert!(message.contains("Dockerfile:3") || message.starts_with("[2/2] RUN"), "{name}: {message}");
        assert!(seen.output().contains("about to fail"), "{name}: {}", seen.output());
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_dockerfile_is_the_user_s_and_said() {
    for (name, engine) in engines().await {
        let missing = format!("FROM {}/library/busybox:no-such-tag\n", registry());
        for (dockerfile, said) in [
            ("FROM busybox\nRUNN x\n", "RUNN"),
            ("FROM busybox\nCOPY nowhere /x\n", "nowhere"),
            (&missing, "no-such-tag"),
            ("", "empty"),
        ] {
            let job = job(spec(&fresh_repository(&registry())), dockerfile, &[]).await;
            let (message, _) = failed(name, &engine, job).await;
            assert!(message.contains(said), "{name}: {dockerfile:?}: {message}");
        }
        let mut asked = spec(&fresh_repository(&registry()));
        asked.target = Some("nothing".into());
        let (message, _) = failed(name, &engine, job(asked, "FROM busybox\n", &[]).await).await;
        assert!(message.contains("nothing"), "{name}: {message}");
    }
}

#[tokio::test]
async fn secrets_reach_the_step_and_neither_output_nor_image() {
    const DOCKERFILE: &str = "FROM busybox\nARG RUN_ID\n\
        RUN --mount=type=secret,id=key sha256sum < /run/secrets/key && ls -l /run/secrets\n";
    for (name, engine) in engines().await {
        let repository = fresh_repository(&registry());
        let asked = BuildSpec {
            secret_ids: vec!["key".into()],
            build_args: [("RUN_ID".to_owned(), repository.clone())].into(),
            ..spec(&repository)
        };
        let mut with = job(asked.clone(), DOCKERFILE, &[]).await;
        with.secrets.insert("key".into(), b"abc".to_vec().into());
        let (descriptor, seen) = built(name, &engine, with).await;
        assert!(seen.output().contains("ba7816bf8f01cfea"), "{name}: {}", seen.output());
        assert!(!pushed(&repository, &descriptor).1.to_string().contains("abc "), "{name}");
        let asked = BuildSpec { no_cache: true, ..asked };
        let required = DOCKERFILE.replace("id=key", "id=key,required=true");
        let (message, _) = failed(name, &engine, job(asked, &required, &[]).await).await;
        assert!(message.contains("key"), "{name}: {message}");
    }
}

/// An agent that answers every request with how long it was.
struct CountingAgent;

#[async_trait::async_trait]
impl AgentDialer for CountingAgent {
    async fn dial(&self, id: &str) -> std::io::Result<BoxedIo> {
        assert_eq!(id, "default");
        let (ours, mut theirs) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            let mut request = [0; 64];
            let length = theirs.read(&mut request).await.unwrap_or(0);
            let _ = theirs.write_all(format!("read {length} bytes\n").as_bytes()).await;
        });
        Ok(Box::new(ours))
    }
}

#[tokio::test]
async fn a_step_talks_to_the_client_s_ssh_agent() {
    const DOCKERFILE: &str = "FROM golang:alpine\nARG RUN_ID\nCOPY ask.go .\n\
        RUN --mount=type=ssh CGO_ENABLED=0 go run ask.go\n";
    const ASK: &str = r#"package main
        import ("fmt"; "io"; "net"; "os")
        func main() {
            agent, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
            if err != nil { panic(err) }
            agent.Write([]byte("hello"))
            answer, _ := io.ReadAll(agent)
            fmt.Print(string(answer))
        }"#;
    for (name, engine) in engines().await {
        let repository = fresh_repository(&registry());
        let asked = BuildSpec {
            ssh_ids: vec!["default".into()],
            build_args: [("RUN_ID".to_owned(), repository.clone())].into(),
            ..spec(&repository)
        };
        let mut job = job(asked, DOCKERFILE, &[("ask.go", ASK)]).await;
        job.agents = Arc::new(CountingAgent);
        let (_, seen) = built(name, &engine, job).await;
        assert!(seen.output().contains("read 5 bytes"), "{name}: {}", seen.output());
    }
}

#[tokio::test]
async fn named_contexts_are_read_where_the_engine_has_them() {
    const DOCKERFILE: &str = "FROM base\nCOPY --from=other x /x\nRUN cat /x\n";
    for (name, engine) in engines().await {
        if !engine.facts().features.contains(&Feature::NamedContexts) {
            continue;
        }
        let repository = fresh_repository(&registry());
        let tree_id = ContextDigest(ChunkId::of(b""));
        let asked = BuildSpec {
            named_contexts: [
                ("base".to_owned(), NamedContext::Reference("docker-image://busybox".into())),
                ("other".to_owned(), NamedContext::Tree(tree_id)),
            ]
            .into(),
            ..spec(&repository)
        };
        let trees = [
            ("context".to_owned(), bed::tree(&[]).await),
            ("dockerfile".to_owned(), bed::tree(&[("Dockerfile", DOCKERFILE)]).await),
            (named_dir("other"), bed::tree(&[("x", &repository)]).await),
        ];
        let job = Job { filesync: FileSyncService::new(trees.into()), ..job(asked, "", &[]).await };
        let (_, seen) = built(name, &engine, job).await;
        assert!(seen.output().contains(&repository), "{name}: {}", seen.output());
    }
}

#[tokio::test]
async fn a_step_runs_again_only_when_it_is_asked_to() {
    for (name, engine) in engines().await {
        let repository = fresh_repository(&registry());
        let dockerfile = "FROM busybox\nARG RUN_ID\nRUN echo running $RUN_ID\n";
        let build_args = [("RUN_ID".to_owned(), repository.clone())].into();
        let asked = BuildSpec { build_args, ..spec(&repository) };
        let expected = format!("running {repository}");
        let (first, seen) = built(name, &engine, job(asked.clone(), dockerfile, &[]).await).await;
        assert!(seen.output().contains(&expected), "{name}");
        let (second, seen) = built(name, &engine, job(asked.clone(), dockerfile, &[]).await).await;
        assert!(!seen.output().contains(&expected), "{name}: the step is cached");
        assert_eq!(first, second, "{name}: the same build gives the same image");
        let asked = BuildSpec { no_cache: true, ..asked };
        let (_, seen) = built(name, &engine, job(asked, dockerfile, &[]).await).await;
        assert!(seen.output().contains(&expected), "{name}");
    }
}

#[tokio::test]
async fn a_cache_in_the_registry_is_written_for_the_platform_and_read() {
    for (name, engine) in engines().await {
        if !engine.facts().features.contains(&Feature::CacheExportRegistry) {
            continue;
        }
        let repository = fresh_repository(&registry());
        let option = format!("type=registry,ref={repository}:cache,mode=max");
        let asked = BuildSpec {
            cache_to: vec![option.parse().unwrap()],
            cache_from: vec![option.parse().unwrap()],
            build_args: [("RUN_ID".to_owned(), repository.clone())].into(),
            ..spec(&repository)
        };
        let dockerfile = "FROM busybox\nARG RUN_ID\nRUN echo $RUN_ID > /x\n";
        built(name, &engine, job(asked.clone(), dockerfile, &[]).await).await;
        assert_eq!(tags(&repository), ["\"cache-linux-amd64\""], "{name}: the cache's tag alone");
        built(name, &engine, job(asked, dockerfile, &[]).await).await;
    }
}

#[tokio::test]
async fn limits_hosts_and_networks_of_steps_are_what_was_asked() {
    const DOCKERFILE: &str = "FROM busybox\nARG RUN_ID\nRUN ulimit -n; grep db.example /etc/hosts; \
        df -k /dev/shm | tail -1; ls /sys/class/net | tr '\\n' ' '; echo done\n";
    for (name, engine) in engines().await {
        let repository = fresh_repository(&registry());
        let has_limits = engine.facts().features.contains(&Feature::StepLimits);
        // Only dockerd knows its host's gateway.
        let gateway = (name != "buildkit").then_some("gw.example:host-gateway");
        let hosts: Vec<&str> = ["db.example:10.1.2.3"].into_iter().chain(gateway).collect();
        let asked = BuildSpec {
            ulimits: vec!["nofile=123:456".parse().unwrap()],
            shm_size: Some(32 * 1024 * 1024),
            add_hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            network: NetworkMode::None,
            build_args: [("RUN_ID".to_owned(), repository.clone())].into(),
            ..spec(&repository)
        };
        let (_, seen) = built(name, &engine, job(asked, DOCKERFILE, &[]).await).await;
        let output = seen.output();
        assert!(output.contains("lo done"), "{name}: {output}");
        assert!(output.contains("10.1.2.3"), "{name}: {output}");
        assert_eq!(output.contains("123\n") && output.contains("32768"), has_limits, "{name}: {output}");
    }
}

#[tokio::test]
async fn a_host_gateway_is_refused_where_the_engine_knows_none() {
    for (name, engine) in engines().await.into_iter().filter(|(name, _)| *name == "buildkit") {
        let add_hosts = vec!["gw.example:host-gateway".parse().unwrap()];
        let asked = BuildSpec { add_hosts, ..spec(&fresh_repository(&registry())) };
        let (message, _) = failed(name, &engine, job(asked, "FROM busybox\nRUN true\n", &[]).await).await;
        assert!(message.contains("gw.example") && message.contains("host gateway"), "{message}");
    }
}

#[tokio::test]
async fn attestations_make_the_leg_an_index_of_its_own() {
    for (name, engine) in engines().await {
        if !engine.facts().features.contains(&Feature::Attestations) {
            continue;
        }
        let repository = fresh_repository(&registry());
        let asked = BuildSpec { provenance: Some("mode=max".into()), ..spec(&repository) };
        let (descriptor, _) = built(name, &engine, job(asked, "FROM busybox\nRUN true\n", &[]).await).await;
        assert_eq!(descriptor.media_type, "application/vnd.oci.image.index.v1+json", "{name}");
        let index = pushed(&repository, &descriptor).0;
        assert!(index.to_string().contains("attestation-manifest"), "{name}: {index}");
    }
}

#[tokio::test]
async fn a_cancelled_build_leaves_no_process() {
    for (name, engine) in engines().await {
        let repository = fresh_repository(&registry());
        let seconds = 3000 + rand::random_range(1..6000);
        let dockerfile = format!("FROM busybox\nRUN echo begun && sleep {seconds}\n");
        let (cancel, seen) = (CancellationToken::new(), Seen::default());
        let job = job(BuildSpec { no_cache: true, ..spec(&repository) }, &dockerfile, &[]).await;
        let build = engine.build(job, seen.progress(), cancel.clone());
        let stop = async {
            bed::eventually(|| seen.output().contains("begun")).await;
            assert!(bed::runs(&format!("sleep {seconds}")), "{name}: the step runs");
            cancel.cancel();
            Instant::now()
        };
        let (outcome, cancelled) = tokio::join!(build, stop);
        let took = cancelled.elapsed();
        assert!(matches!(outcome, Err(BuildError::Cancelled)), "{name}: {outcome:?}");
        assert!(took < Duration::from_secs(1), "{name}: {took:?}");
        bed::eventually(|| !bed::runs(&format!("sleep {seconds}"))).await;
        assert!(
            cancelled.elapsed() < Duration::from_secs(1),
            "{name}: the step lives on for {:?}",
            cancelled.elapsed()
        );
    }
}

#[tokio::test]
async fn a_dropped_build_leaves_no_process() {
    for (name, engine) in engines().await {
        let seconds = 3000 + rand::random_range(1..6000);
        let dockerfile = format!("FROM busybox\nRUN echo begun && sleep {seconds}\n");
        let seen = Seen::default();
        let asked = BuildSpec { no_cache: true, ..spec(&fresh_repository(&registry())) };
        let build = engine.build(job(asked, &dockerfile, &[]).await, seen.progress(), CancellationToken::new());
        tokio::select! {
            outcome = build => panic!("{name}: {outcome:?}"),
            () = bed::eventually(|| seen.output().contains("begun")) => {}
        }
        bed::eventually(|| !bed::runs(&format!("sleep {seconds}"))).await;
    }
}

#[tokio::test]
async fn a_registry_with_logins_takes_the_right_one_and_refuses_another() {
    let host = bed::bed("KILN_BED_REGISTRY_AUTH");
    for (name, engine) in engines().await {
        let repository = fresh_repository(&host);
        for (password, is_right) in [(bed::bed("KILN_BED_REGISTRY_PASSWORD"), true), ("wrong".to_owned(), false)] {
            let mut job = job(spec(&repository), "FROM busybox\nRUN true\n", &[]).await;
            let username = bed::bed("KILN_BED_REGISTRY_USER");
            let credential = RegistryCredential::Password { username, password: password.into() };
            job.credentials.insert(host.clone(), credential);
            match (build(&engine, job).await.0, is_right) {
                (Ok(_), true) => {}
                (Err(BuildError::Build(message)), false) => assert!(message.contains("401"), "{name}: {message}"),
                (outcome, _) => panic!("{name}, right {is_right}: {outcome:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_not_the_user_s_failure() {
    for (name, engine) in engines().await {
        let job = job(spec("127.0.0.1:9/engine/none"), "FROM busybox\nRUN true\n", &[]).await;
        match build(&engine, job).await.0 {
            Err(BuildError::Registry(message)) => assert!(message.contains("127.0.0.1:9"), "{name}: {message}"),
            outcome => panic!("{name}: {outcome:?}"),
        }
    }
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_named_with_a_remedy() {
    let error = Engine::connect("unix:///nowhere/docker.sock".parse().unwrap()).await.err().expect("no engine");
    assert!(error.to_string().contains("unix:///nowhere/docker.sock"), "{error}");
}
