//! What a registry may send to do harm: each gets a clear error, soon, and moves no tag.

use std::io::Write;

use bytes::Bytes;
use kiln_common::{Grade, limits, spec::ImageDescriptor};
use kiln_scheduler::effect::Leg;
use serde_json::{Value, json};

use super::{
    fake::Fake,
    manifest::{OCI_INDEX, OCI_MANIFEST},
    tests::{archive, failed, job, push_leg, push_leg_with, run, spec, succeeded},
};

/// Publishes a leg whose manifest is this, and says why that failed.
async fn refused(fake: &Fake, media_type: &str, bytes: impl Into<Bytes>) -> String {
    let digest = fake.put_manifest("a", media_type, bytes);
    let image = ImageDescriptor { media_type: media_type.into(), digest, size: 1, bases: Vec::new() };
    refused_leg(
        fake,
        Leg { platform: "linux/amd64".parse().expect("platform"), image: image.into(), grade: Grade::Native },
    )
    .await
}

async fn refused_leg(fake: &Fake, leg: Leg) -> String {
    let tags = [format!("{}/a:1", fake.host)];
    let (published, message) = failed(run(job(spec(&["linux/amd64"], &tags), vec![leg])).await);
    assert!(published.is_none() && fake.manifest("a", "1").is_none(), "{message}");
    assert!(message.starts_with("linux/amd64: ") && message.len() < 2000, "{message}");
    message
}

/// A sound leg's manifest, to be spoilt.
fn sound(fake: &Fake) -> (Leg, Value) {
    let leg = push_leg(fake, &["a"], "linux/amd64", OCI_MANIFEST);
    let (_, bytes) = fake.manifest("a", &leg.image.digest.to_string()).expect("there");
    (leg, serde_json::from_slice(&bytes).expect("JSON"))
}

#[tokio::test]
async fn manifests_that_are_none_are_named() {
    let fake = Fake::start().await;
    let deep = format!(r#"{{"config":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    for bytes in ["", "null", "[]", r#"{"schemaVersion":1,"fsLayers":[]}"#, &deep] {
        let message = refused(&fake, OCI_MANIFEST, bytes.to_owned()).await;
        assert!(message.contains("is not an image manifest"), "{message}");
    }
    let message = refused(&fake, OCI_INDEX, r#"{"manifests":7}"#).await;
    assert!(message.contains("is not an index"), "{message}");
}

#[tokio::test]
async fn sizes_that_are_lies_are_found_out() {
    let fake = Fake::start().await;
    let (_, mut manifest) = sound(&fake);
    manifest["config"]["size"] = json!(u64::MAX);
    assert!(refused(&fake, OCI_MANIFEST, manifest.to_string()).await.contains("its configuration has"));
    let (_, mut manifest) = sound(&fake);
    manifest["layers"][0]["size"] = json!(1);
    let message = refused(&fake, OCI_MANIFEST, manifest.to_string()).await;
    assert!(message.contains("is longer than the 1 bytes of its descriptor"), "{message}");
    let (_, mut manifest) = sound(&fake);
    manifest["layers"][0]["size"] = json!(-1);
    assert!(refused(&fake, OCI_MANIFEST, manifest.to_string()).await.contains("is not an image manifest"));
}

#[tokio::test]
async fn indexes_that_nest_or_have_too_many_entries_are_refused() {
    let fake = Fake::start().await;
    let (leg, _) = sound(&fake);
    let entry = |media_type: &str, digest: String| json!({ "mediaType": media_type, "digest": digest, "size": 2 });
    let index =
        |entries: Vec<Value>| json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries }).to_string();
    let image = entry(OCI_MANIFEST, leg.image.digest.to_string());
    let message = refused(&fake, OCI_INDEX, index(vec![image.clone(); limits::INDEX_ENTRIES + 1])).await;
    assert!(message.contains("has 257 entries"), "{message}");
    assert!(refused(&fake, OCI_INDEX, index(Vec::new())).await.contains("has no image"));
    let inner = fake.put_manifest("a", OCI_INDEX, index(vec![image]));
    let nested = index(vec![entry(OCI_INDEX, inner.to_string())]);
    let message = refused(&fake, OCI_INDEX, nested).await;
    assert!(message.contains("not an image manifest"), "{message}");
}

/// The limit itself is 64 GiB, more than a test should unpack: the bomb goes off against the limit on one header.
#[tokio::test]
async fn layers_that_blow_up_or_play_tricks_with_paths_are_refused() {
    let fake = Fake::start().await;
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::XHeader);
    header.set_size(1 << 40);
    header.set_cksum();
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(header.as_bytes()).expect("written");
    bomb.write_all(&vec![0; 16 << 20]).expect("written");
    let bomb = bomb.finish().expect("finished");
    assert!(bomb.len() < 64 << 10, "16 MiB in {} bytes", bomb.len());
    let message = refused_leg(&fake, push_leg_with(&fake, &["a"], "linux/amd64", OCI_MANIFEST, bomb)).await;
    assert!(message.contains("cannot be verified"), "{message}");

    // A program of another platform, under a path that means to hide it.
    let mut program = vec![0; 64];
    program[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    (program[16], program[18]) = (2, 183);
    let tricks = archive(&[("././/bin/a\u{1b}[2Jb", &program)]);
    let message = refused_leg(&fake, push_leg_with(&fake, &["a"], "linux/amd64", OCI_MANIFEST, tricks)).await;
    assert!(message.contains("bin/a\u{fffd}[2Jb") && !message.contains('\u{1b}'), "{message}");

    // Cut short in the middle of the header: nothing runs it, and nothing is taken for more than it says.
    let cut = archive(&[("bin/cut", &program[..30])]);
    let leg = push_leg_with(&fake, &["a"], "linux/amd64", OCI_MANIFEST, cut);
    let tags = [format!("{}/a:2", fake.host)];
    succeeded(run(job(spec(&["linux/amd64"], &tags), vec![leg])).await);
}
