//! Bad input, as people give it: one clear error that names the thing and the remedy, the exit code of the contract,
//! and nothing half-published.

use std::fs;

use harness::{Bed, Farm, bed::EngineKind, registry};

fn farm() -> Farm {
    Farm::start(&Bed.engine(EngineKind::Docker28).expect("docker 28"))
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect("file");
    }
    folder
}

fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is missing in:\n{message}");
    }
}

#[test]
fn bad_requests_are_refused_before_anything_is_built() {
    let farm = farm();
    let good = folder(&[("Dockerfile", "FROM busybox\n")]);
    let good = good.path().display().to_string();
    let empty = folder(&[]);
    let empty = empty.path().display().to_string();
    let tag = format!("{}/e2e/bad:1", Bed.registry());

    says(&farm.fail(2, &["build", "-t", &tag, &empty]), &["Dockerfile"]);
    says(&farm.fail(2, &["build", "-t", &tag, "/no/such/folder"]), &["/no/such/folder"]);
    says(&farm.fail(2, &["build", "-t", &tag, "-f", "/no/such/Dockerfile", &good]), &["/no/such/Dockerfile"]);
    says(&farm.fail(2, &["build", "--no-such-flag", &good]), &["--no-such-flag"]);
    says(&farm.fail(2, &["build", "-t", "UPPER/case", &good]), &["UPPER/case", "lower case"]);
    says(&farm.fail(2, &["build", "-t", &tag, "--platform", "linux", &good]), &["linux", "linux/arm/v7"]);
    says(&farm.fail(2, &["build", &good]), &["-t"]);
    says(
        &farm.fail(2, &["build", "-t", &tag, "--platform", "windows/amd64", &good]),
        &["windows/amd64", "linux/amd64"],
    );
    let arguments: Vec<String> = (0..300).map(|i| format!("--build-arg=A{i}=x")).collect();
    let mut many = vec!["build", "-t", tag.as_str()];
    many.extend(arguments.iter().map(String::as_str));
    many.push(&good);
    says(&farm.fail(2, &many), &["--build-arg", "300", "256"]);
    assert!(!registry::exists(&tag), "nothing may be published");
}

#[test]
fn a_failing_build_names_the_step_and_publishes_nothing() {
    let farm = farm();
    let context = folder(&[("Dockerfile", "FROM busybox\nRUN echo marker-line && false\n")]);
    let tag = format!("{}/e2e/failing:1", Bed.registry());
    let context = context.path().display().to_string();
    says(
        &farm.fail(1, &["build", "-t", &tag, "--platform", "linux/amd64", &context]),
        &["false", "marker-line", "linux/amd64"],
    );
    assert!(!registry::exists(&tag));

    let outside = folder(&[("Dockerfile", "FROM busybox\nCOPY ../secret /\n")]);
    let outside = outside.path().display().to_string();
    says(&farm.fail(1, &["build", "-t", &tag, "--platform", "linux/amd64", &outside]), &["secret"]);

    let syntax = folder(&[("Dockerfile", "FROM busybox\nRUNN x\n")]);
    let syntax = syntax.path().display().to_string();
    says(&farm.fail(1, &["build", "-t", &tag, "--platform", "linux/amd64", &syntax]), &["RUNN"]);
}

#[test]
fn a_registry_that_refuses_or_does_not_answer_is_named() {
    let farm = farm();
    let context = folder(&[("Dockerfile", "FROM busybox\n")]);
    let context = context.path().display().to_string();
    let (host, _, _) = Bed.registry_with_login();
    let denied = format!("{host}/e2e/denied:1");
    says(&farm.fail(1, &["build", "-t", &denied, "--platform", "linux/amd64", &context]), &[&host, "login"]);
    let silent = "127.0.0.1:9/e2e/silent:1";
    says(&farm.fail(1, &["build", "-t", silent, "--platform", "linux/amd64", &context]), &["127.0.0.1:9"]);
}

#[test]
fn a_login_from_the_docker_config_pushes_to_a_registry_that_wants_one() {
    let farm = farm();
    let (host, user, password) = Bed.registry_with_login();
    let config = farm.directory().join("docker");
    fs::create_dir_all(&config).expect("folder");
    let login = format!("{user}:{password}");
    let encoded = std::process::Command::new("sh")
        .arg("-c")
        .arg(format!("printf %s '{login}' | base64"))
        .output()
        .expect("base64");
    let encoded = String::from_utf8_lossy(&encoded.stdout).trim().to_owned();
    fs::write(config.join("config.json"), format!(r#"{{"auths":{{"{host}":{{"auth":"{encoded}"}}}}}}"#))
        .expect("config");
    let context = folder(&[("Dockerfile", "FROM busybox\n")]);
    let context = context.path().display().to_string();
    let tag = format!("{host}/e2e/allowed:1");
    farm.run(&["build", "-t", &tag, "--platform", "linux/amd64,linux/arm64", "--progress", "quiet", &context]);
    let credentials = format!("{user}:{password}");
    let output = std::process::Command::new("skopeo")
        .args(["inspect", "--raw", "--tls-verify=false", "--creds", &credentials, &format!("docker://{tag}")])
        .output()
        .expect("skopeo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_wrong_token_and_an_unreachable_farm_have_exit_codes_of_their_own() {
    let farm = farm();
    let wrong = farm.directory().join("wrong.token");
    fs::write(&wrong, "kiln_0000000000000000000000000000000000000000000").expect("token");
    let output = farm.kiln().env("KILN_TOKEN_FILE", &wrong).args(["builds", "ls"]).output().expect("kiln runs");
    assert_eq!(output.status.code(), Some(4), "{}", harness::farm::text(&output));
    let output = farm.kiln().env("KILN_ENDPOINT", "127.0.0.1:9").args(["builds", "ls"]).output().expect("kiln runs");
    assert_eq!(output.status.code(), Some(3), "{}", harness::farm::text(&output));
    says(&harness::farm::text(&output), &["127.0.0.1:9"]);
}
