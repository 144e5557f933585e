//! A submit: decode, store an inline Dockerfile as the tree it is, check that every tree is complete, hand it over.

use bytes::Bytes;
use kiln_common::{
    BuildId, BuildSpec, Reason, Timestamp,
    context::{ChunkId, ContextDigest, single_file_tree},
    limits,
    spec::Violation,
};
use kiln_proto::{
    convert::spec,
    status::{MISSING_CHUNKS, Refused},
    v1,
};
use kiln_scheduler::effect::Refusal;
use tracing::error;

use super::{Api, RETRY_AFTER, stopped};
use crate::{
    audit::Who,
    contexts::{Completeness, ContextsError},
    credentials::BuildSecrets,
    driver::{Stopped, Submission, SubmitError, Submitted},
};

impl Api {
    pub(super) async fn submit_build(&self, who: &Who, request: v1::SubmitRequest) -> Result<Submitted, Refused> {
        if request.request_id.len() > limits::REQUEST_ID_BYTES {
            let problem = format!("longer than {} bytes", limits::REQUEST_ID_BYTES);
            return Err(Refused::invalid(vec![Violation::new("request_id", problem)]));
        }
        let wire = request.spec.ok_or_else(|| Refused::invalid(vec![Violation::new("spec", "missing")]))?;
        let secret_ids: Vec<String> = request.secrets.keys().cloned().collect();
        let mut inline = Vec::new();
        let decoded = spec::decode(wire, secret_ids, |text| {
            // An empty Dockerfile has no chunk; the decoder has refused it by now.
            let Some((root, chunks)) = single_file_tree(spec::INLINE_DOCKERFILE, text) else {
                return ContextDigest(ChunkId::of(&[]));
            };
            inline = chunks.into_iter().map(|(id, bytes)| (id, Bytes::from(bytes))).collect();
            root
        });
        let secrets = BuildSecrets::from_wire(request.secrets, request.credentials);
        let (build_spec, secrets) = match (decoded, secrets) {
            (Ok(build_spec), Ok(secrets)) => (build_spec, secrets),
            (decoded, secrets) => {
                let mut violations = decoded.err().unwrap_or_default();
                violations.extend(secrets.err().unwrap_or_default());
                return Err(Refused::invalid(violations));
            }
        };
        if build_spec.sign == Some(true) && !self.publisher.signs() {
            let problem = "this farm has no signing key; its operator gives it one with --signing-key";
            return Err(Refused::invalid(vec![Violation::new("spec.sign", problem)]));
        }
        // The same Dockerfile comes again and again.
        if !inline.is_empty() && !self.contexts.was_complete_lately(build_spec.dockerfile.tree, Timestamp::now()) {
            self.store_chunks(inline).await?;
        }
        self.check_trees(&build_spec).await?;
        let build_spec = self.with_expected_tags(build_spec, &secrets).await?;
        let request_id = Some(request.request_id).filter(|id| !id.is_empty());
        let submission =
            Submission { build: BuildId::generate(), request_id, spec: build_spec, secrets, who: who.clone() };
        self.driver.submit(submission).await.map_err(refused)
    }

    /// With `--if-unchanged`: what the tags name now, as far as the caller did not say.
    async fn with_expected_tags(&self, spec: BuildSpec, secrets: &BuildSecrets) -> Result<BuildSpec, Refused> {
        if !spec.if_unchanged {
            return Ok(spec);
        }
        let named = self.publisher.tags(&spec.tags, secrets.credentials.clone());
        let named = tokio::time::timeout(limits::REGISTRY_CALL_TIMEOUT, named).await;
        let unread = |why: String| {
            Refused::invalid(vec![Violation::new("spec.if_unchanged", format!("the tags cannot be read: {why}"))])
        };
        let mut expected =
            named.map_err(|_| unread("the registry does not answer in time".to_owned()))?.map_err(unread)?;
        expected.extend(spec.expected_tags);
        Ok(BuildSpec { expected_tags: expected, ..spec })
    }

    async fn store_chunks(&self, chunks: Vec<(kiln_common::context::ChunkId, Bytes)>) -> Result<(), Refused> {
        let mut upload = self.contexts.upload();
        upload.push(chunks).await.map_err(contexts_failed)?;
        upload.finish().await.map_err(contexts_failed)?;
        Ok(())
    }

    async fn check_trees(&self, build_spec: &BuildSpec) -> Result<(), Refused> {
        let trees: Vec<ContextDigest> = build_spec.trees().copied().collect();
        for root in trees {
            match self.contexts.is_complete(root, Timestamp::now()).await.map_err(contexts_failed)? {
                Completeness::Complete => {}
                Completeness::Missing(chunks) => return Err(incomplete(root, chunks)),
            }
        }
        Ok(())
    }
}

fn incomplete(root: ContextDigest, missing: u64) -> Refused {
    let message = format!("the context {root} lacks {missing} chunks; upload them and submit again");
    Refused::new(Reason::ContextIncomplete, message).with_metadata(MISSING_CHUNKS, missing.to_string())
}

fn contexts_failed(error: ContextsError) -> Refused {
    error!(%error, "the context store failed a submit");
    Refused::from(error)
}

/// The one map from what the driver refuses to reasons.
pub(super) fn refused(error: SubmitError) -> Refused {
    match error {
        SubmitError::Stopped => stopped(Stopped),
        SubmitError::Overloaded => Refused::new(Reason::Overloaded, error.to_string()).with_retry_after(RETRY_AFTER),
        SubmitError::Refused(refusal) => from_refusal(refusal),
    }
}

fn from_refusal(refusal: Refusal) -> Refused {
    let message = refusal.to_string();
    match refusal {
        Refusal::NoWorkerForPlatform { .. } | Refusal::OnlyEmulated { .. } => {
            Refused::new(Reason::NoWorkerForPlatform, message)
        }
        Refusal::UnknownBuild { .. } => Refused::new(Reason::NotFound, message),
        Refusal::WrongState { .. } => Refused::new(Reason::WrongState, message),
        Refusal::NoWorkerWithFeature { .. } => Refused::new(Reason::NoWorkerWithFeature, message),
        Refusal::NoWorkerWithLabels { .. } => Refused::new(Reason::NoWorkerWithLabels, message),
        Refusal::Overloaded { .. } => Refused::new(Reason::Overloaded, message).with_retry_after(RETRY_AFTER),
        Refusal::Invalid { violations } => Refused::invalid(violations),
    }
}
