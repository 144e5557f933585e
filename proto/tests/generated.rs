//! The checked-in code in `src/gen` is what `kiln/v1/*.proto` gives. `KILN_REGENERATE=1 cargo test -p kiln-proto
//! --test generated` writes it anew. The compiler is `protox`, so nobody needs a `protoc`.

use std::{fs, path::Path};

use prost_types as _;

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<String> = fs::read_dir(root.join("kiln/v1"))
        .expect("proto folder")
        .map(|entry| format!("kiln/v1/{}", entry.expect("entry").file_name().to_string_lossy()))
        .collect();
    files.sort();

    let mut compiler = protox::Compiler::new([root]).expect("compiler");
    compiler.include_imports(true).include_source_info(true).open_files(&files).expect("protos compile");
    let out = tempfile::tempdir().expect("temporary folder");
    let descriptors = compiler.file_descriptor_set();
    assert_fields_are_documented(&descriptors);
    tonic_prost_build::configure()
        .out_dir(out.path())
        .codec_path("crate::codec::Codec")
        .bytes(".kiln.v1.Chunk.data")
        .compile_fds(descriptors)
        .expect("code generates");
    let code = fs::read(out.path().join("kiln.v1.rs")).expect("generated file");
    let mut bare = compiler.file_descriptor_set();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    let descriptor = prost::Message::encode_to_vec(&bare);

    for (name, fresh) in [("kiln.v1.rs", code), ("descriptor.bin", descriptor)] {
        let path = root.join("src/gen").join(name);
        if std::env::var_os("KILN_REGENERATE").is_some() {
            fs::write(&path, &fresh).expect("write generated file");
        }
        let checked_in = fs::read(&path).unwrap_or_default();
        assert!(
            checked_in == fresh,
            "{} is stale; run KILN_REGENERATE=1 cargo test -p kiln-proto --test generated",
            path.display()
        );
    }
}

/// Every message, field, enum, value, service and method of Kiln's own files carries a comment.
fn assert_fields_are_documented(descriptors: &prost_types::FileDescriptorSet) {
    for file in descriptors.file.iter().filter(|file| file.package() == "kiln.v1") {
        let documented: std::collections::BTreeSet<Vec<i32>> = file
            .source_code_info
            .iter()
            .flat_map(|info| &info.location)
            .filter(|location| location.leading_comments.as_ref().is_some_and(|text| !text.trim().is_empty()))
            .map(|location| location.path.clone())
            .collect();
        let mut missing = Vec::new();
        let mut want = |path: Vec<i32>, name: String| {
            if !documented.contains(&path) {
                missing.push(name);
            }
        };
        for (m, message) in file.message_type.iter().enumerate() {
            want(vec![4, i32::try_from(m).expect("small")], message.name().to_owned());
            for (f, field) in message.field.iter().enumerate() {
                let path = vec![4, i32::try_from(m).expect("small"), 2, i32::try_from(f).expect("small")];
                want(path, format!("{}.{}", message.name(), field.name()));
            }
        }
        for (e, enumeration) in file.enum_type.iter().enumerate() {
            want(vec![5, i32::try_from(e).expect("small")], enumeration.name().to_owned());
            for (v, value) in enumeration.value.iter().enumerate() {
                let path = vec![5, i32::try_from(e).expect("small"), 2, i32::try_from(v).expect("small")];
                want(path, value.name().to_owned());
            }
        }
        for (s, service) in file.service.iter().enumerate() {
            want(vec![6, i32::try_from(s).expect("small")], service.name().to_owned());
            for (m, method) in service.method.iter().enumerate() {
                let path = vec![6, i32::try_from(s).expect("small"), 2, i32::try_from(m).expect("small")];
                want(path, format!("{}.{}", service.name(), method.name()));
            }
        }
        assert!(missing.is_empty(), "{}: without a comment: {missing:?}", file.name());
    }
}
