//! The dependency arrows of the workspace, read from `cargo metadata`:
//! `common <- scheduler <- coordinator -> proto -> common`, `worker -> proto, common`, `cli -> proto, common` (and
//! `coordinator`, `worker` for `kiln up` alone).

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .other_options(["--locked".to_owned()])
        .exec()
        .expect("cargo metadata")
}

fn package<'a>(metadata: &'a Metadata, name: &str) -> &'a Package {
    metadata
        .workspace_packages()
        .into_iter()
        .find(|package| package.name.as_str() == name)
        .expect("a workspace package")
}

fn workspace_dependencies(package: &Package) -> BTreeSet<&str> {
    let own = |name: &&str| name.starts_with("kiln-");
    let normal = package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
    normal.map(|dependency| dependency.name.as_str()).filter(own).collect()
}

/// Every package that `root` reaches through normal dependencies that are not optional.
fn closure(metadata: &Metadata, root: &str) -> BTreeSet<String> {
    let nodes: BTreeMap<&PackageId, _> =
        metadata.resolve.as_ref().expect("resolve").nodes.iter().map(|node| (&node.id, node)).collect();
    let mut reached = BTreeSet::new();
    let mut open = vec![&package(metadata, root).id];
    while let Some(id) = open.pop() {
        if !reached.insert(id) {
            continue;
        }
        let normal = nodes[id].deps.iter().filter(|dep| dep.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal));
        open.extend(normal.map(|dep| &dep.pkg));
    }
    reached.into_iter().map(|id| metadata[id].name.to_string()).collect()
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let metadata = metadata();
    let allowed = BTreeMap::from([
        ("kiln-common", BTreeSet::new()),
        ("kiln-proto", BTreeSet::from(["kiln-common"])),
        ("kiln-scheduler", BTreeSet::from(["kiln-common"])),
        ("kiln-coordinator", BTreeSet::from(["kiln-common", "kiln-proto", "kiln-scheduler"])),
        ("kiln-worker", BTreeSet::from(["kiln-common", "kiln-proto"])),
        ("kiln-cli", BTreeSet::from(["kiln-common", "kiln-coordinator", "kiln-proto", "kiln-worker"])),
    ]);
    for (name, expected) in &allowed {
        assert_eq!(&workspace_dependencies(package(&metadata, name)), expected, "{name}");
    }
    let others = metadata.workspace_packages().into_iter().map(|package| package.name.as_str());
    let unknown: Vec<_> = others.filter(|name| !allowed.contains_key(name) && *name != "kiln-tests").collect();
    assert!(unknown.is_empty(), "give {unknown:?} their arrows here");
}

#[test]
fn coordinator_and_worker_are_in_the_client_for_kiln_up_alone() {
    let metadata = metadata();
    let client = package(&metadata, "kiln-cli");
    for name in ["kiln-coordinator", "kiln-worker"] {
        let dependency = client.dependencies.iter().find(|dependency| dependency.name == name).expect(name);
        assert!(dependency.optional, "{name} belongs behind the feature `up`");
    }
}

#[test]
fn the_scheduler_knows_no_runtime_no_wire_and_no_randomness() {
    let metadata = metadata();
    let scheduler = package(&metadata, "kiln-scheduler");
    for dependency in scheduler.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal) {
        let pure = ["kiln-common", "serde", "thiserror"];
        assert!(pure.contains(&dependency.name.as_str()), "the scheduler must not depend on {}", dependency.name);
        assert!(!dependency.features.iter().any(|feature| feature == "runtime"), "common's runtime is not pure");
    }
}

#[test]
fn a_board_s_worker_carries_no_store_and_no_web_server_s_objects() {
    let reached = closure(&metadata(), "kiln-worker");
    for heavy in ["object_store", "etcd-client", "redb", "oci-client", "askama", "openssl-sys", "aws-lc-rs"] {
        assert!(!reached.contains(heavy), "the worker reaches {heavy}");
    }
}

#[test]
fn one_tls_back_end_serves_all() {
    let metadata = metadata();
    for package in &metadata.packages {
        let name = package.name.as_str();
        assert!(
            !["aws-lc-rs", "openssl", "openssl-sys", "native-tls"].contains(&name),
            "{name} is a second TLS back end"
        );
    }
}
