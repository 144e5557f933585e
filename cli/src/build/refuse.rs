//! Refuses what docker buildx can do and a farm cannot, with the reason and the way to go instead.

use super::flags::BuildFlags;
use crate::failure::Failure;

/// # Errors
/// The first flag that makes no sense on a farm.
pub fn refuse_foreign(flags: &BuildFlags) -> Result<(), Failure> {
    let foreign = &flags.foreign;
    let given = [
        ("--push=false", flags.push == Some(false), "a farm's result is what it pushes", "leave the flag out"),
        (
            "--load",
            foreign.load == Some(true),
            "the image is built on the farm's workers and pushed to a registry",
            "push it with -t and fetch it with `docker pull`",
        ),
        (
            "--output",
            !foreign.output.is_empty(),
            "a farm pushes images and exports nothing else",
            "name a registry with -t; `skopeo copy` or `docker save` make files of what was pushed",
        ),
        (
            "--builder",
            foreign.builder.is_some(),
            "the farm places each leg itself",
            "choose workers with --require LABEL=VALUE",
        ),
        ("--allow", !foreign.allow.is_empty(), "entitlements are up to each worker's engine", "leave the flag out"),
        ("--cgroup-parent", foreign.cgroup_parent.is_some(), "cgroups are up to each worker", "leave the flag out"),
        ("--call", foreign.call.is_some(), "a farm only builds", "use `docker buildx build --call` for it"),
        ("--check", foreign.check, "a farm only builds", "use `docker buildx build --check` for it"),
        ("--squash", foreign.squash, "BuildKit does not squash", "use a multi-stage build with COPY --from"),
        ("--policy", !foreign.policy.is_empty(), "a farm has no source policies", "leave the flag out"),
        ("--debug", foreign.debug, "a farm has no interactive debugger", "read the log with `kiln builds logs`"),
        ("--isolation", foreign.isolation.is_some(), "isolation is for Windows containers", "leave the flag out"),
        ("--memory", foreign.memory.is_some(), "BuildKit does not limit memory", "set limits on the workers' engines"),
        (
            "--cpu-quota",
            foreign.cpu_quota.is_some(),
            "BuildKit does not limit CPUs",
            "set limits on the workers' engines",
        ),
    ];
    match given.into_iter().find(|(_, given, _, _)| *given) {
        Some((flag, _, why, instead)) => {
            Err(Failure::usage(format!("{flag} makes no sense on a farm: {why}")).remedy(instead))
        }
        None => Ok(()),
    }
}
