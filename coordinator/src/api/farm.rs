//! `FarmService`: workers and what this coordinator is. Tokens are in `tokens`.

use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream::BoxStream};
use kiln_common::{Reason, WorkerId, limits, spec::Violation};
use kiln_proto::{convert::worker_platform_to_wire, status::Refused, v1, v1::farm_service_server::FarmService};
use kiln_scheduler::{Event, event::WorkerUpdate, query::WorkerState};
use tonic::{Request, Response, Status};

use super::{Api, stopped, store_failed, view, watch_failed};
use crate::{
    audit::{Action, Object, Who},
    driver::WorkerWatch,
};

impl Api {
    async fn show_worker(&self, id: WorkerId) -> Result<v1::Worker, Refused> {
        let shown = self.driver.query(move |scheduler, _| scheduler.worker(id).as_ref().map(view::worker));
        let unknown = || Refused::new(Reason::NotFound, format!("there is no worker `{id}`"));
        shown.await.map_err(stopped)?.ok_or_else(unknown)
    }

    async fn all_workers(&self) -> Result<Vec<v1::Worker>, Refused> {
        let all =
            self.driver.query(|scheduler, _| scheduler.workers().map(|view| view::worker(&view)).collect::<Vec<_>>());
        let mut workers = all.await.map_err(stopped)?;
        workers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(workers)
    }

    async fn change_worker(
        &self,
        who: &Who,
        action: Action,
        text: &str,
        update: WorkerUpdate,
    ) -> Result<v1::Worker, Refused> {
        let detail = describe(&update);
        let changed = async {
            let worker = self.worker_id(text).await?;
            self.driver.send(Event::WorkerUpdated { worker, update }).await.map_err(stopped)?;
            Ok(worker)
        };
        let tell = |worker: &WorkerId| (Object::Worker(*worker), detail);
        let worker = self.audited(who, action, text, changed.await, tell).await?;
        self.show_worker(worker).await
    }

    async fn update(&self, who: &Who, request: v1::UpdateWorkerRequest) -> Result<v1::Worker, Refused> {
        let mut violations = Vec::new();
        if request.slots > limits::WORKER_SLOTS {
            violations.push(Violation::new(
                "slots",
                format!("{}; at most {} are allowed", request.slots, limits::WORKER_SLOTS),
            ));
        }
        if request.set_labels.len() > limits::WORKER_LABELS {
            violations.push(Violation::new("set_labels", format!("at most {} are allowed", limits::WORKER_LABELS)));
        }
        for (key, value) in &request.set_labels {
            if key.is_empty() || key.len().max(value.len()) > limits::KEY_BYTES {
                violations.push(Violation::new(
                    "set_labels",
                    format!("keys and values take 1 to {} bytes", limits::KEY_BYTES),
                ));
            }
        }
        if !violations.is_empty() {
            return Err(Refused::invalid(violations));
        }
        if request.slots > 0 {
            let update = WorkerUpdate::Slots(request.slots);
            let changed = self.change_worker(who, Action::WorkerUpdate, &request.id, update).await?;
            if request.set_labels.is_empty() && request.remove_labels.is_empty() {
                return Ok(changed);
            }
        }
        let set = request.set_labels.into_iter().collect();
        let update = WorkerUpdate::Labels { set, remove: request.remove_labels };
        self.change_worker(who, Action::WorkerUpdate, &request.id, update).await
    }

    async fn remove(&self, who: &Who, text: &str) -> Result<(), Refused> {
        let removed = async {
            let worker = self.worker_id(text).await?;
            let name = self.show_worker(worker).await?.name;
            self.revocations
                .revoke(self.driver.store().as_ref(), worker)
                .await
                .map_err(|error| store_failed(&error))?;
            self.driver.send(Event::WorkerRemoved { worker }).await.map_err(stopped)?;
            Ok((worker, name))
        };
        let tell = |(worker, name): &(WorkerId, String)| (Object::Worker(*worker), format!("it was `{name}`"));
        self.audited(who, Action::WorkerRemove, text, removed.await, tell).await.map(drop)
    }

    async fn info(&self) -> Result<v1::FarmInfo, Refused> {
        let dashboard_url = self.dashboard_url.to_string();
        let info = self.driver.query(|scheduler, _| v1::FarmInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            dashboard_url,
            open_builds: u32::try_from(scheduler.open_builds()).unwrap_or(u32::MAX),
            online_workers: u32::try_from(
                scheduler.workers().filter(|view| view.state != WorkerState::Offline).count(),
            )
            .unwrap_or(u32::MAX),
            platforms: scheduler
                .platforms()
                .iter()
                .map(|(platform, grade)| worker_platform_to_wire(platform, *grade))
                .collect(),
        });
        info.await.map_err(stopped)
    }
}

/// All workers, then each one that changed, shown as it is when its turn comes.
fn changes(api: Api, all: Vec<v1::Worker>, watch: WorkerWatch) -> impl Stream<Item = Result<v1::Worker, Status>> {
    let later = watch.then(move |changed| {
        let api = api.clone();
        async move {
            let mut shown = Vec::new();
            for id in changed.map_err(watch_failed)? {
                // One that was removed meanwhile is not shown any more.
                shown.extend(api.show_worker(id).await.ok());
            }
            Ok::<_, Status>(futures_util::stream::iter(shown.into_iter().map(Ok)))
        }
    });
    futures_util::stream::iter(all.into_iter().map(Ok)).chain(later.try_flatten())
}

/// What an operator changed, for the audit trail.
fn describe(update: &WorkerUpdate) -> String {
    match update {
        WorkerUpdate::Labels { set, remove } => {
            let set = set.iter().map(|(key, value)| format!("{key}={value}"));
            set.chain(remove.iter().map(|key| format!("{key}-"))).collect::<Vec<_>>().join(" ")
        }
        WorkerUpdate::Slots(slots) => format!("slots={slots}"),
        WorkerUpdate::Cordon { reason } | WorkerUpdate::Drain { reason } => reason.clone(),
        WorkerUpdate::Uncordon => String::new(),
    }
}

fn reason(text: String, default: &str) -> String {
    match text.trim() {
        "" => default.to_owned(),
        text => text.chars().filter(|c| !c.is_control()).take(1000).collect(),
    }
}

#[tonic::async_trait]
impl FarmService for Api {
    async fn list_workers(
        &self,
        _request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        Ok(Response::new(v1::ListWorkersResponse { workers: self.all_workers().await? }))
    }

    async fn get_worker(&self, request: Request<v1::GetWorkerRequest>) -> Result<Response<v1::Worker>, Status> {
        let id = self.worker_id(&request.into_inner().id).await?;
        Ok(Response::new(self.show_worker(id).await?))
    }

    type WatchWorkersStream = BoxStream<'static, Result<v1::Worker, Status>>;

    async fn watch_workers(
        &self,
        _request: Request<v1::WatchWorkersRequest>,
    ) -> Result<Response<Self::WatchWorkersStream>, Status> {
        let watch = self.driver.watch_workers().await.map_err(stopped)?;
        let all = self.all_workers().await?;
        Ok(Response::new(changes(self.clone(), all, watch).boxed()))
    }

    async fn update_worker(&self, request: Request<v1::UpdateWorkerRequest>) -> Result<Response<v1::Worker>, Status> {
        let who = Who::of(&request);
        Ok(Response::new(self.update(&who, request.into_inner()).await?))
    }

    async fn cordon(&self, request: Request<v1::CordonRequest>) -> Result<Response<v1::Worker>, Status> {
        let who = Who::of(&request);
        let request = request.into_inner();
        let (action, update) = if request.cordoned {
            let reason = reason(request.reason, "cordoned by an administrator");
            (Action::WorkerCordon, WorkerUpdate::Cordon { reason })
        } else {
            (Action::WorkerUncordon, WorkerUpdate::Uncordon)
        };
        Ok(Response::new(self.change_worker(&who, action, &request.id, update).await?))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::Worker>, Status> {
        let who = Who::of(&request);
        let request = request.into_inner();
        let update = WorkerUpdate::Drain { reason: reason(request.reason, "drained by an administrator") };
        Ok(Response::new(self.change_worker(&who, Action::WorkerDrain, &request.id, update).await?))
    }

    async fn remove_worker(
        &self,
        request: Request<v1::RemoveWorkerRequest>,
    ) -> Result<Response<v1::RemoveWorkerResponse>, Status> {
        let who = Who::of(&request);
        self.remove(&who, &request.into_inner().id).await?;
        Ok(Response::new(v1::RemoveWorkerResponse {}))
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let who = Who::of(&request);
        Ok(Response::new(self.make_join_token(&who, request.into_inner()).await?))
    }

    async fn list_join_tokens(
        &self,
        _request: Request<v1::ListJoinTokensRequest>,
    ) -> Result<Response<v1::ListJoinTokensResponse>, Status> {
        Ok(Response::new(self.list_join().await?))
    }

    async fn revoke_join_token(
        &self,
        request: Request<v1::RevokeJoinTokenRequest>,
    ) -> Result<Response<v1::RevokeJoinTokenResponse>, Status> {
        let who = Who::of(&request);
        self.revoke_join(&who, &request.into_inner().id).await?;
        Ok(Response::new(v1::RevokeJoinTokenResponse {}))
    }

    async fn create_api_token(
        &self,
        request: Request<v1::CreateApiTokenRequest>,
    ) -> Result<Response<v1::CreateApiTokenResponse>, Status> {
        let who = Who::of(&request);
        Ok(Response::new(self.make_api_token(&who, request.into_inner()).await?))
    }

    async fn list_api_tokens(
        &self,
        _request: Request<v1::ListApiTokensRequest>,
    ) -> Result<Response<v1::ListApiTokensResponse>, Status> {
        Ok(Response::new(self.list_tokens()))
    }

    async fn revoke_api_token(
        &self,
        request: Request<v1::RevokeApiTokenRequest>,
    ) -> Result<Response<v1::RevokeApiTokenResponse>, Status> {
        let who = Who::of(&request);
        self.revoke_token(&who, &request.into_inner().id).await?;
        Ok(Response::new(v1::RevokeApiTokenResponse {}))
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        Ok(Response::new(self.list_audit_entries(request.into_inner()).await?))
    }

    async fn get_info(&self, _request: Request<v1::GetInfoRequest>) -> Result<Response<v1::FarmInfo>, Status> {
        Ok(Response::new(self.info().await?))
    }
}
