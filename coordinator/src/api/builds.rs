//! `BuildService`: the calls around one build.

use futures_util::{Stream, StreamExt as _, stream::BoxStream};
use kiln_common::{BuildId, Reason};
use kiln_proto::{status::Refused, v1, v1::build_service_server::BuildService};
use kiln_scheduler::{Event, TaskRecord, TaskState};
use tonic::{Request, Response, Status, Streaming};

use super::{Api, stopped, submit, view, watch_failed};
use crate::{
    audit::{Action, Object, Who},
    credentials::BuildSecrets,
    driver::{Accepted, SubmitError, Submitted},
    store::records::BuildView,
};

type Answers<T> = BoxStream<'static, Result<T, Status>>;

impl Api {
    async fn show(&self, id: BuildId) -> Result<v1::Build, Refused> {
        let records = self.records(id).await?;
        self.show_records(records).await
    }

    async fn show_accepted(&self, accepted: Accepted) -> Result<v1::Build, Refused> {
        match accepted.snapshot {
            Some(records) => self.show_records(records).await,
            None => self.show(accepted.build).await,
        }
    }

    /// The build on the wire, with the reasons of the tasks that wait.
    pub(super) async fn show_records(&self, records: BuildView) -> Result<v1::Build, Refused> {
        let waits = |task: &TaskRecord| matches!(task.state, TaskState::Waiting { .. } | TaskState::Backoff { .. });
        if !records.tasks.iter().any(waits) {
            return Ok(view::build(&records.build, &records.tasks, |_| None));
        }
        let shown = self.driver.query(move |scheduler, _| {
            view::build(&records.build, &records.tasks, |task: &TaskRecord| scheduler.waiting_reason(task))
        });
        shown.await.map_err(stopped)
    }

    /// Cancels the build and gives it with the reason that stands in its record.
    async fn cancel_build(&self, request: v1::CancelBuildRequest) -> Result<(BuildId, String), Refused> {
        let id = self.build_id(&request.id).await?;
        let build = self.records(id).await?.build;
        if build.state.is_final() {
            let message = format!("build {id} is {} already", build.state.name());
            return Err(Refused::new(Reason::WrongState, message));
        }
        let reason = match request.reason.trim() {
            "" => "cancelled by a user".to_owned(),
            reason => reason.chars().filter(|c| !c.is_control()).take(1000).collect(),
        };
        self.driver.send(Event::Cancel { build: id, reason: reason.clone() }).await.map_err(stopped)?;
        Ok((id, reason))
    }

    /// Has `begin` run a final build again.
    async fn run_again(
        &self,
        who: &Who,
        action: Action,
        text: &str,
        begin: impl AsyncFnOnce(BuildId) -> Result<Accepted, SubmitError>,
    ) -> Result<v1::Build, Refused> {
        let again = async {
            let id = self.build_id(text).await?;
            begin(id).await.map_err(submit::refused)
        };
        let accepted = self.or_refused(who, action, text, again.await)?;
        self.show_accepted(accepted).await
    }

    async fn explain_build(&self, request: v1::ExplainBuildRequest) -> Result<v1::ExplainBuildResponse, Refused> {
        let id = self.build_id(&request.id).await?;
        let explained = self.driver.query(move |scheduler, now| {
            scheduler.build(id)?;
            Some(view::explanations(scheduler, id, now))
        });
        match explained.await.map_err(stopped)? {
            Some(explanations) => Ok(explanations),
            // Final builds leave memory; nothing of them waits.
            None => self.records(id).await.map(|_| v1::ExplainBuildResponse::default()),
        }
    }

    async fn watch(&self, text: &str) -> Result<impl Stream<Item = Result<v1::Build, Status>> + use<>, Refused> {
        let id = self.build_id(text).await?;
        let watch = self.driver.watch_build(id).await.map_err(watch_failed)?;
        let api = self.clone();
        Ok(watch.then(move |change| {
            let api = api.clone();
            async move {
                let records = change.map_err(watch_failed)?;
                Ok(api.show_records(BuildView::clone(&records)).await?)
            }
        }))
    }
}

#[tonic::async_trait]
impl BuildService for Api {
    async fn submit(&self, request: Request<v1::SubmitRequest>) -> Result<Response<v1::SubmitResponse>, Status> {
        let who = Who::of(&request);
        let submitted = self.submit_build(&who, request.into_inner()).await;
        let Submitted { accepted, existed } = self.or_refused(&who, Action::BuildSubmit, "", submitted)?;
        let build = Some(self.show_accepted(accepted).await?);
        Ok(Response::new(v1::SubmitResponse { build, existed }))
    }

    async fn get(&self, request: Request<v1::GetBuildRequest>) -> Result<Response<v1::Build>, Status> {
        let id = self.build_id(&request.into_inner().id).await?;
        Ok(Response::new(self.show(id).await?))
    }

    async fn list(&self, request: Request<v1::ListBuildsRequest>) -> Result<Response<v1::ListBuildsResponse>, Status> {
        Ok(Response::new(self.list_builds(request.into_inner()).await?))
    }

    type WatchStream = Answers<v1::Build>;

    async fn watch(&self, request: Request<v1::WatchBuildRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let changes = Self::watch(self, &request.into_inner().id).await?;
        Ok(Response::new(changes.boxed()))
    }

    type LogsStream = Answers<v1::LogsResponse>;

    async fn logs(&self, request: Request<v1::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let entries = self.stream_logs(request.into_inner()).await?;
        Ok(Response::new(entries.boxed()))
    }

    async fn cancel(&self, request: Request<v1::CancelBuildRequest>) -> Result<Response<v1::Build>, Status> {
        let who = Who::of(&request);
        let request = request.into_inner();
        let named = request.id.clone();
        let cancelled = self.cancel_build(request).await;
        let tell = |(id, reason): &(BuildId, String)| (Object::Build(*id), reason.clone());
        let (id, _) = self.audited(&who, Action::BuildCancel, &named, cancelled, tell).await?;
        Ok(Response::new(self.show(id).await?))
    }

    async fn retry(&self, request: Request<v1::RetryBuildRequest>) -> Result<Response<v1::Build>, Status> {
        let who = Who::of(&request);
        let v1::RetryBuildRequest { id, credentials } = request.into_inner();
        let secrets = BuildSecrets::from_wire([], credentials).map_err(Refused::invalid)?;
        let begin = async |build| self.driver.retry(who.clone(), build, &secrets).await;
        Ok(Response::new(self.run_again(&who, Action::BuildRetry, &id, begin).await?))
    }

    async fn backfill(&self, request: Request<v1::BackfillBuildRequest>) -> Result<Response<v1::Build>, Status> {
        let who = Who::of(&request);
        let v1::BackfillBuildRequest { id, credentials } = request.into_inner();
        let secrets = BuildSecrets::from_wire([], credentials).map_err(Refused::invalid)?;
        let begin = async |build| self.driver.backfill(who.clone(), build, &secrets).await;
        Ok(Response::new(self.run_again(&who, Action::BuildBackfill, &id, begin).await?))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainBuildRequest>,
    ) -> Result<Response<v1::ExplainBuildResponse>, Status> {
        Ok(Response::new(self.explain_build(request.into_inner()).await?))
    }

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        Ok(Response::new(self.list_image_versions(request.into_inner()).await?))
    }

    async fn diff_images(
        &self,
        request: Request<v1::DiffImagesRequest>,
    ) -> Result<Response<v1::DiffImagesResponse>, Status> {
        Ok(Response::new(self.compare_images(request.into_inner()).await?))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let (who, request) = (Who::of(&request), request.into_inner());
        let named = request.reference.clone();
        let (is_trial, removed) = (request.dry_run, self.remove_version(request).await);
        if is_trial {
            return Ok(Response::new(removed?));
        }
        let tell = |answer: &v1::RemoveImageResponse| {
            (
                Object::Tag(named.clone()),
                format!("{} manifests deleted, {} kept", answer.deleted.len(), answer.kept.len()),
            )
        };
        Ok(Response::new(self.audited(&who, Action::TagRemove, &named, removed, tell).await?))
    }

    type ForwardAgentStream = Answers<v1::AgentFrame>;

    async fn forward_agent(
        &self,
        request: Request<Streaming<v1::AgentFrame>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let frames = self.agents.serve_client(request.into_inner()).await?;
        Ok(Response::new(frames.boxed()))
    }
}
