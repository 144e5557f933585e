//! Finding a farm and getting in.

use std::os::unix::fs::PermissionsExt as _;

use crate::{
    fake::{Fake, TOKEN},
    kiln::Kiln,
};

#[tokio::test(flavor = "multi_thread")]
async fn without_a_farm_the_way_to_one_is_said() {
    Kiln::new().run(&["builds", "ls"]).await.expect(2, &["no farm is configured", "kiln login", "kiln up"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_farm_is_exit_3_with_its_address() {
    let mut kiln = Kiln::new();
    kiln.set("KILN_ENDPOINT", "127.0.0.1:1,127.0.0.1:2");
    kiln.set("KILN_TOKEN", "x");
    for command in [&["builds", "ls"][..], &["workers"], &["images", "r.example/a"], &["token", "ls"]] {
        kiln.run(command).await.expect(3, &["127.0.0.1:1", "127.0.0.1:2", "refused", "kiln doctor"]);
    }
    kiln.run(&["doctor"]).await.expect(3, &["✗ connection", "127.0.0.1:1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_exit_4_and_a_wrong_ca_says_so() {
    let fake = Fake::start().await;
    let kiln = Kiln::of(&fake, "wrong");
    kiln.run(&["builds", "ls"]).await.expect(4, &["refused the token", &fake.endpoint, "kiln login"]);
    let mut kiln = Kiln::of(&fake, TOKEN);
    let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap().cert.pem();
    let file = kiln.path().join("other.pem");
    std::fs::write(&file, other).unwrap();
    kiln.set("KILN_CA", &file.display().to_string());
    kiln.run(&["builds", "ls"]).await.expect(3, &["certificate", "--ca FILE"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn login_remembers_a_farm_and_logout_forgets_it() {
    let fake = Fake::start().await;
    let kiln = Kiln::new();
    let (token, ca) = (kiln.path().join("token"), kiln.path().join("ca.pem"));
    std::fs::write(&token, TOKEN).unwrap();
    std::fs::write(&ca, &fake.ca).unwrap();
    let login = [
        "login",
        &fake.endpoint,
        "--token-file",
        token.to_str().unwrap(),
        "--ca",
        ca.to_str().unwrap(),
        "--name",
        "home",
    ];
    kiln.run(&login).await.expect(0, &["`home`", "kiln 9.9.9", "2 workers"]);
    let file = kiln.path().join(".config/kiln/connections.toml");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // The files are not needed any more.
    std::fs::remove_file(token).unwrap();
    std::fs::remove_file(ca).unwrap();
    kiln.run(&["version"]).await.expect(0, &["farm    9.9.9"]);
    kiln.run(&["--connection", "work", "version"]).await.expect(0, &["none is configured"]);
    kiln.run(&["--connection", "work", "builds"]).await.expect(2, &["no connection `work`", "home"]);
    kiln.run(&["logout"]).await.expect(0, &["forgot the connection `home`"]);
    kiln.run(&["builds", "ls"]).await.expect(2, &["no farm is configured"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_login_remembers_nothing() {
    let fake = Fake::start().await;
    let mut kiln = Kiln::of(&fake, "wrong");
    let endpoint = fake.endpoint.clone();
    kiln.run(&["login", &endpoint]).await.expect(4, &["refused the token"]);
    kiln.set("KILN_TOKEN", "two words");
    kiln.run(&["login", &endpoint]).await.expect(2, &["KILN_TOKEN does not hold a token"]);
    assert!(!kiln.path().join(".config/kiln/connections.toml").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_farm_of_one_is_found_by_its_file() {
    let fake = Fake::start().await;
    let kiln = Kiln::new();
    let dir = kiln.path().join(".local/share/kiln");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("ca.pem"), &fake.ca).unwrap();
    std::fs::write(dir.join("token"), TOKEN).unwrap();
    let lines = format!(
        "KILN_ENDPOINT={}\nKILN_TOKEN_FILE={}\nKILN_CA={}\n",
        fake.endpoint,
        dir.join("token").display(),
        dir.join("ca.pem").display()
    );
    std::fs::write(dir.join("up.env"), lines).unwrap();
    kiln.run(&["doctor"]).await.expect(0, &["✔ token", "client 0.1.0, farm 9.9.9", "from kiln up", "linux/amd64"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_endpoint_serves_when_the_first_is_down() {
    let fake = Fake::start().await;
    let mut kiln = Kiln::of(&fake, TOKEN);
    kiln.set("KILN_ENDPOINT", &format!("127.0.0.1:1,{}", fake.endpoint));
    kiln.run(&["builds", "ls"]).await.expect(0, &["no build yet"]);
}
