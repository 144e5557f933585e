//! What builds of one context share on every engine of the bed: its transfer, and nothing that ends with one of them.

use kiln_common::BuildSpec;
use kiln_worker::engine::BuildError;
use tokio_util::sync::CancellationToken;

use crate::bed::{Job, Seen, built, engines, eventually, fresh_repository, job, registry, spec};

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
