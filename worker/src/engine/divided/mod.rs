//! A build whose steps read parts of a large context: each part is a source of its own, in a session that is named by what it
//! holds. When a file changes, the engine asks for the names of that file's part alone.
//!
//! `build` comes here for contexts of many files. The frontend runs through the engine's gateway, as under buildx; its
//! definition is [divided](division), where that is certain to be the same, and given back as the build's result.
//! Steps are told apart by contents, so what is cached stays cached.

mod division;
mod gateway;
mod llb;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bollard_buildkit_proto::moby::buildkit::v1::{CacheOptions, SolveRequest};
use futures_util::future::try_join_all;
use tonic::{Status, transport::Channel};

use self::{
    division::{Division, Paths},
    gateway::{Gateway, Outcome, Question, Reference, References},
};
use super::{
    EngineError,
    session::{Lease, Served, Sessions},
};
use crate::{
    context::{ContextTree, FileSyncService},
    engine::job::CONTEXT_DIR,
};

/// The context of a build, and where its parts' sessions come from.
pub struct Dividable {
    pub sessions: Arc<Sessions>,
    pub context: Arc<ContextTree>,
    pub shared_key: String,
}

/// What `exports` answers for the same request without a frontend, which runs here in the meantime.
pub async fn solve<A>(
    channel: Channel,
    request: SolveRequest,
    dividable: &Dividable,
    exports: impl FnOnce(SolveRequest) -> A,
) -> Result<HashMap<String, String>, Status>
where
    A: Future<Output = Result<HashMap<String, String>, Status>>,
{
    let mut gateway = Gateway::new(channel, &request.r#ref)?;
    let question = Question {
        frontend: request.frontend,
        frontend_opt: request.frontend_attrs,
        cache_imports: request.cache.as_ref().map(|CacheOptions { imports, .. }| imports.clone()).unwrap_or_default(),
        ..Question::default()
    };
    let request = SolveRequest { frontend: String::new(), frontend_attrs: HashMap::new(), ..request };
    let mut answer = Box::pin(exports(request));
    let steps = Box::pin(run_frontend(&mut gateway, question, dividable));
    let _leases = tokio::select! {
        biased;
        leases = steps => leases?,
        early = &mut answer => return early,
    };
    answer.await
}

/// Gives the engine the frontend's result; the parts' sessions must be held until the build is over.
async fn run_frontend(gateway: &mut Gateway, question: Question, dividable: &Dividable) -> Result<Vec<Lease>, Status> {
    let cache_imports = question.cache_imports.clone();
    let mut result = gateway.solve(question).await?;
    let mut leases = Vec::new();
    if let Some(References::One(Reference { definition: Some(definition), .. })) = &mut result.references
        && let Some(division) = Division::of(definition, CONTEXT_DIR)
    {
        let sessions: BTreeMap<_, _>;
        (leases, sessions) = dividable.lease(&division).await?;
        if let Some(divided) = division.apply(std::mem::take(definition), &sessions) {
            let question = Question { definition: Some(divided), cache_imports, ..Question::default() };
            result.references = gateway.solve(question).await?.references;
        }
    }
    gateway.give(Outcome { references: result.references.map(without_definitions), ..result }).await?;
    Ok(leases)
}

impl Dividable {
    async fn lease<'a>(&self, division: &'a Division) -> Result<(Vec<Lease>, BTreeMap<&'a Paths, String>), Status> {
        let parts = division.parts();
        let leases = parts.iter().map(|paths| self.lease_part(paths));
        let leases = try_join_all(leases).await?;
        let sessions = parts.into_iter().zip(leases.iter().map(|lease| lease.session().id.clone())).collect();
        Ok((leases, sessions))
    }

    async fn lease_part(&self, paths: &Paths) -> Result<Lease, Status> {
        let (tree, follow) = (self.context.clone(), paths.iter().cloned().collect());
        let filesync = tokio::task::spawn_blocking(move || FileSyncService::part(CONTEXT_DIR, tree, follow)).await;
        let filesync = filesync.map_err(|_| Status::internal("choosing files was interrupted"))?;
        let filesync = filesync.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let served = Served::directories(filesync, self.shared_key.clone());
        self.sessions.lease(served).await.map_err(|error: EngineError| Status::unavailable(error.to_string()))
    }
}

/// The engine knows its references by their ids.
fn without_definitions(references: References) -> References {
    match references {
        References::One(reference) => References::One(Reference { definition: None, ..reference }),
        References::Several(mut map) => {
            map.references.values_mut().for_each(|reference| reference.definition = None);
            References::Several(map)
        }
    }
}
