//! What builds of one context share on every engine of the bed: its transfer, and nothing that ends with one of them.

use kiln_common::{BuildSpec, limits};
use kiln_worker::engine::BuildError;
use tokio_util::sync::CancellationToken;

use crate::bed::{Job, Seen, built, engines, eventually, failed, fresh_repository, job, pushed, registry, spec};

const DOCKERFILE: &str = "FROM busybox\nCOPY a /a\nARG WHO\nRUN echo $WHO has $(cat /a)\n";

async fn job_of(repository: &str, who: &str, text: &str) -> Job {
    let build_args = [("WHO".to_owned(), who.to_owned())].into();
    let shared_key = repository.to_owned();
    Job { shared_key, ..job(BuildSpec { build_args, ..spec(repository) }, DOCKERFILE, &[("a", text)]).await }
}

#[tokio::test]
async fn an_unchanged_context_is_taken_once_and_a_changed_one_again() {
    for (name, engine) in engines().await {
        let repository = fresh_repository(&registry());
        let (_, first) = built(name, &engine, job_of(&repository, "first", &repository).await).await;
        assert!(first.transferred(), "{name}");
        let (_, second) = built(name, &engine, job_of(&repository, "second", &repository).await).await;
        assert!(second.output().contains(&format!("second has {repository}")), "{name}: {}", second.output());
        assert!(!second.transferred(), "{name}: the engine has this context");
        let changed = format!("{repository} and more");
        let (_, third) = built(name, &engine, job_of(&repository, "third", &changed).await).await;
        assert!(third.output().contains(&format!("third has {changed}")), "{name}: {}", third.output());
        assert!(third.transferred(), "{name}");
        // Back to what it was: the session is still there, the engine's copy may have been changed since.
        let (_, fourth) = built(name, &engine, job_of(&repository, "fourth", &repository).await).await;
        let expected = format!("fourth has {repository}");
        assert!(fourth.output().lines().any(|line| line.trim() == expected), "{name}: {}", fourth.output());
    }
}

#[tokio::test]
async fn a_build_goes_on_when_one_that_shares_its_session_is_cancelled() {
    const SLOW: &str = "FROM busybox\nCOPY a /a\nARG WHO\nRUN echo $WHO began; sleep 2\nCOPY a /b\nRUN cat /b\n";
    for (name, engine) in engines().await {
        let repository = fresh_repository(&registry());
        let slow = async |who: &str| {
            let build_args = [("WHO".to_owned(), who.to_owned())].into();
            let asked = BuildSpec { build_args, ..spec(&repository) };
            Job { shared_key: repository.clone(), ..job(asked, SLOW, &[("a", &repository)]).await }
        };
        let (stays, goes) = (slow("one").await, slow("other").await);
        let (seen, cancel) = (Seen::default(), CancellationToken::new());
        let cancelled = engine.build(goes, seen.progress(), cancel.clone());
        let stop = async {
            eventually(|| seen.output().contains("other began")).await;
            cancel.cancel();
        };
        let (kept, cancelled, ()) = tokio::join!(built(name, &engine, stays), cancelled, stop);
        assert!(matches!(cancelled, Err(BuildError::Cancelled)), "{name}: {cancelled:?}");
        assert!(kept.1.output().contains(&repository), "{name}: {}", kept.1.output());
    }
}

/// A job with a context of many files, whose steps read parts of it.
async fn large_job(repository: &str, dockerfile: &str, changing: &str) -> Job {
    let assets: Vec<_> = (0..limits::CONTEXT_ENTRIES_TO_DIVIDE).map(|at| format!("assets/{at}")).collect();
    let mut files: Vec<_> = assets.iter().map(|path| (path.as_str(), repository)).collect();
    files.extend([("src/a", changing), ("src/b", repository)]);
    Job { shared_key: repository.to_owned(), ..job(spec(repository), dockerfile, &files).await }
}

#[tokio::test]
async fn of_a_large_context_only_the_part_that_changed_is_taken_again() {
    const PARTS: &str = "FROM busybox\nRUN --mount=type=bind,source=assets,target=/in cat /in/7; ls /in | wc -l\nCOPY src /src\n\
                         RUN cat /src/a /src/b; ls /\n";
    for (name, engine) in engines().await {
        let repository = fresh_repository(&registry());
        let (_, first) = built(name, &engine, large_job(&repository, PARTS, "one").await).await;
        assert!(first.output().contains(&limits::CONTEXT_ENTRIES_TO_DIVIDE.to_string()), "{name}: {}", first.output());
        assert!(first.output().contains(&format!("one{repository}")), "{name}: {}", first.output());
        assert_eq!(first.transfers_of("context"), 3, "{name}: two parts, and the ignore file");
        let (descriptor, second) = built(name, &engine, large_job(&repository, PARTS, "another").await).await;
        assert!(second.output().contains(&format!("another{repository}")), "{name}: {}", second.output());
        assert!(
            !second.output().contains(&limits::CONTEXT_ENTRIES_TO_DIVIDE.to_string()),
            "{name}: the mount is cached"
        );
        assert_eq!(second.transfers_of("context"), 2, "{name}: `src`, and the ignore file");
        let (_, config) = pushed(&repository, &descriptor);
        let history = config["history"].to_string();
        assert!(history.contains("COPY src /src"), "{name}: {history}");
        // The same once more, and back, where the engine's copy may have been changed since.
        let (again, third) = built(name, &engine, large_job(&repository, PARTS, "another").await).await;
        assert_eq!((again.digest, third.transfers_of("context")), (descriptor.digest, 0), "{name}");
        let (_, back) = built(name, &engine, large_job(&repository, PARTS, "one").await).await;
        assert!(back.transfers_of("context") <= 1, "{name}");
    }
}

#[tokio::test]
async fn what_fails_with_a_large_context_is_said_as_with_a_small_one() {
    for (name, engine) in engines().await {
        let repository = fresh_repository(&registry());
        for (dockerfile, said) in [
            ("FROM busybox\nCOPY assets /a\nCOPY nowhere /b\n", "nowhere"),
            ("FROM busybox\nCOPY assets /a\nCOPY src /b\nRUN exit 7\n", "exit code: 7"),
            ("FROM busybox\nRUNN x\n", "RUNN"),
        ] {
            let (message, _) = failed(name, &engine, large_job(&repository, dockerfile, "x").await).await;
            assert!(message.contains(said), "{name}: {dockerfile:?}: {message}");
        }
    }
}
