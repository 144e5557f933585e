//! The one table: what each gRPC method needs. A test walks the descriptors and fails for a method without a row.

use super::Role;

/// What a method asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: the method checks what it needs itself, or shows nothing that is secret.
    Open,
    /// An API token with at least this role.
    Role(Role),
    /// A worker's certificate.
    Worker,
}

const VIEWER: Need = Need::Role(Role::Viewer);
const SUBMITTER: Need = Need::Role(Role::Submitter);
const ADMIN: Need = Need::Role(Role::Admin);

const TABLE: &[(&str, Need)] = &[
    ("/kiln.v1.BuildService/Submit", SUBMITTER),
    ("/kiln.v1.BuildService/Get", VIEWER),
    ("/kiln.v1.BuildService/List", VIEWER),
    ("/kiln.v1.BuildService/Watch", VIEWER),
    ("/kiln.v1.BuildService/Logs", VIEWER),
    ("/kiln.v1.BuildService/Cancel", SUBMITTER),
    ("/kiln.v1.BuildService/Retry", SUBMITTER),
    ("/kiln.v1.BuildService/Backfill", SUBMITTER),
    ("/kiln.v1.BuildService/Explain", VIEWER),
    ("/kiln.v1.BuildService/ListImages", VIEWER),
    ("/kiln.v1.BuildService/DiffImages", VIEWER),
    ("/kiln.v1.BuildService/RemoveImage", SUBMITTER),
    ("/kiln.v1.BuildService/ForwardAgent", SUBMITTER),
    ("/kiln.v1.ContextService/FindMissing", SUBMITTER),
    ("/kiln.v1.ContextService/Upload", SUBMITTER),
    ("/kiln.v1.FarmService/ListWorkers", VIEWER),
    ("/kiln.v1.FarmService/GetWorker", VIEWER),
    ("/kiln.v1.FarmService/WatchWorkers", VIEWER),
    ("/kiln.v1.FarmService/GetInfo", VIEWER),
    ("/kiln.v1.FarmService/UpdateWorker", ADMIN),
    ("/kiln.v1.FarmService/Cordon", ADMIN),
    ("/kiln.v1.FarmService/Drain", ADMIN),
    ("/kiln.v1.FarmService/RemoveWorker", ADMIN),
    ("/kiln.v1.FarmService/CreateJoinToken", ADMIN),
    ("/kiln.v1.FarmService/ListJoinTokens", ADMIN),
    ("/kiln.v1.FarmService/RevokeJoinToken", ADMIN),
    ("/kiln.v1.FarmService/CreateApiToken", ADMIN),
    ("/kiln.v1.FarmService/ListApiTokens", ADMIN),
    ("/kiln.v1.FarmService/RevokeApiToken", ADMIN),
    ("/kiln.v1.FarmService/ListAudit", ADMIN),
    // Takes a join token, or renews for a certificate.
    ("/kiln.v1.WorkerService/Enroll", Need::Open),
    ("/kiln.v1.WorkerService/Session", Need::Worker),
    ("/kiln.v1.WorkerService/FetchContext", Need::Worker),
    ("/kiln.v1.WorkerService/Logs", Need::Worker),
    ("/kiln.v1.WorkerService/ForwardAgent", Need::Worker),
    // The schema is public, and so is whether the farm serves.
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Need::Open),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Need::Open),
    ("/grpc.health.v1.Health/Check", Need::Open),
    ("/grpc.health.v1.Health/Watch", Need::Open),
    ("/grpc.health.v1.Health/List", Need::Open),
];

/// What the method with this path needs; `None` when there is no such method.
#[must_use]
pub fn need(path: &str) -> Option<Need> {
    TABLE.iter().find(|(method, _)| *method == path).map(|(_, need)| *need)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;

    use super::*;

    /// Every method of Kiln's own services.
    fn methods() -> BTreeSet<String> {
        let set = prost_types::FileDescriptorSet::decode(kiln_proto::FILE_DESCRIPTOR_SET).expect("descriptors");
        let services = set.file.iter().flat_map(|file| file.service.iter().map(|service| (file.package(), service)));
        services
            .flat_map(|(package, service)| {
                let prefix = format!("/{package}.{}/", service.name());
                service.method.iter().map(move |method| format!("{prefix}{}", method.name()))
            })
            .collect()
    }

    #[test]
    fn every_method_has_exactly_one_row_and_every_row_a_method() {
        let rows: Vec<&str> = TABLE.iter().map(|(method, _)| *method).collect();
        let own: BTreeSet<String> =
            rows.iter().filter(|row| row.starts_with("/kiln.")).map(|row| (*row).to_owned()).collect();
        assert_eq!(own, methods());
        assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), rows.len());
    }

    #[test]
    fn an_unknown_method_has_no_row() {
        assert_eq!(need("/kiln.v1.BuildService/submit"), None);
        assert_eq!(need(""), None);
    }

    #[test]
    fn no_worker_may_submit_and_no_token_is_a_worker() {
        assert_eq!(need("/kiln.v1.BuildService/Submit"), Some(Need::Role(Role::Submitter)));
        assert_eq!(need("/kiln.v1.WorkerService/Session"), Some(Need::Worker));
    }
}
