//! Builds on every engine of the bed: what goes in arrives, what comes out is pushed by digest and nothing is left.

mod bed;

use bed::{
    addresses, build, built, engines, failed, fresh_repository, job, pushed, registry, spec, stored_images, tags,
};
use kiln_common::{BuildSpec, spec::MediaTypes};
use kiln_worker::engine::{BuildError, Engine, RegistryCredential};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

#[tokio::test]
async fn an_image_is_pushed_by_digest_to_every_repository_and_nothing_is_left() {
    for (name, engine) in engines().await {
        let repositories = [fresh_repository(&registry()), fresh_repository(&registry())];
        let tag = |repository: &String| format!("{repository}:x").parse().unwrap();
        let asked = BuildSpec { tags: repositories.iter().map(tag).collect(), ..spec(&repositories[0]) };
        let job =
            job(asked, "FROM busybox\nCOPY a /a\nRUN cat /a && date > /b\n", &[("a", "from the context\n")]).await;
        let (descriptor, seen) = built(name, &engine, job).await;
        assert!(seen.output().contains("from the context"), "{name}: {}", seen.output());
        assert_eq!(descriptor.media_type, OCI_MANIFEST, "{name}");
        for repository in &repositories {
            let (manifest, config) = pushed(repository, &descriptor);
            assert!(!manifest.to_string().contains("vnd.docker"), "{name}: {manifest}");
            assert_eq!(config["architecture"], "amd64", "{name}");
            assert_eq!(tags(repository), Vec::<String>::new(), "{name}");
        }
    }
    for (name, address) in addresses().into_iter().filter(|(_, address)| address.starts_with("unix://")) {
        assert!(!stored_images(&address).contains("/kiln-"), "{name}: {}", stored_images(&address));
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
            build_args: [("WHO".to_owned(), format!("{name} = a,b"))].into(),
            labels: [("org.example.label".to_owned(), "a=b,c".to_owned())].into(),
            media_types: MediaTypes::Docker,
            ..spec(&repository)
        };
        let (descriptor, seen) = built(name, &engine, job(asked, DOCKERFILE, &[]).await).await;
        assert!(seen.output().contains(&format!("hello {name} = a,b")), "{}", seen.output());
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
            Err(BuildError::Infrastructure(message)) => assert!(message.contains("127.0.0.1:9"), "{name}: {message}"),
            outcome => panic!("{name}: {outcome:?}"),
        }
    }
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_named_with_a_remedy() {
    let error = Engine::connect("unix:///nowhere/docker.sock".parse().unwrap()).await.err().expect("no engine");
    assert!(error.to_string().contains("unix:///nowhere/docker.sock"), "{error}");
}
