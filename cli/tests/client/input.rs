//! Bad input: one clear error with the exit code, and nothing sent.

use crate::{
    fake::{Fake, TOKEN},
    kiln::Kiln,
};

#[tokio::test(flavor = "multi_thread")]
async fn usage_errors_are_exit_2_and_name_what_is_wrong() {
    let fake = Fake::start().await;
    let kiln = Kiln::of(&fake, TOKEN);
    let context = kiln.context("FROM scratch\n");
    let long = format!("r.example/a:{}", "x".repeat(129));
    let many: Vec<String> = (0..40).map(|n| format!("-tr.example/a:{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (flags, said) in [
        (&["--no-such-flag"][..], "--no-such-flag"),
        (&["-t", "UPPER/case"], "lower case"),
        (&["-t", "r.example/a:b:c"], "r.example/a:b:c"),
        (&["-t", &long], "longer than 128"),
        (&["-t", "r.example/a", "--platform", "linux"], "linux/arm/v7"),
        (&["-t", "r.example/a", "--load"], "docker pull"),
        (&["-t", "r.example/a", "--output", "type=local,dest=."], "--output"),
        (&["-t", "r.example/a", "--push=false"], "--push=false"),
        (&["-t", "r.example/a", "--secret", "src=x"], "id"),
        (&["-t", "r.example/a", "--secret", "id=x,env=NOT_SET"], "NOT_SET"),
        (&["-t", "r.example/a", "--ssh", "default"], "SSH_AUTH_SOCK"),
        (&["-t", "r.example/a", "--iidfile", "/nonexistent/iid"], "/nonexistent/iid"),
        (&["-t", "r.example/a", "--priority", "99"], "priority"),
        (&["-t", "r.example/a", "--detach", "--iidfile", "iid"], "--detach"),
        (&many, "--tag"),
        (&[], "-t"),
    ] {
        let mut arguments = vec!["build"];
        arguments.extend(flags);
        arguments.push(&context);
        kiln.run(&arguments).await.expect(2, &[said]);
    }
    kiln.run(&["build", "-t", "r.example/a"]).await.expect(2, &["PATH | URL | -"]);
    kiln.run(&["frobnicate"]).await.expect(2, &["frobnicate"]);
    kiln.run(&["images", "NOT A REPOSITORY"]).await.expect(2, &["NOT A REPOSITORY"]);
    assert!(fake.state().submitted.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn help_completions_and_man_pages_are_complete() {
    let kiln = Kiln::new();
    kiln.run(&["--help"]).await.expect(0, &["build", "builds", "workers", "Exit codes"]);
    kiln.run(&["build", "--help"]).await.expect(0, &["--platform", "--emulation", "--cache-to", "--optional-platform"]);
    for shell in ["bash", "zsh", "fish"] {
        kiln.run(&["completions", shell]).await.expect(0, &["kiln", "platform"]);
    }
    kiln.run(&["man", "pages"]).await.expect(0, &["man pages in pages"]);
    assert!(kiln.path().join("pages/kiln-build.1").exists() && kiln.path().join("pages/kiln-builds-logs.1").exists());
}
