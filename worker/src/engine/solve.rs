//! One solve from its request to its end, with everything it reports on the way. `build` calls it.
//!
//! Dropping the call is what stops a build: the engine sees the reset of the stream and ends every step.

use std::{
    collections::HashMap,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bollard_buildkit_proto::moby::buildkit::v1::{SolveRequest, StatusRequest, Vertex, control_client::ControlClient};
use futures_util::FutureExt;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};

use super::{
    divided::{self, Dividable},
    job::Progress,
    progress::Reporter,
};

/// One message of the engine: a status with many long lines, a response with provenance, a definition with its Dockerfile.
pub const MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// A solve that reported something says its last words at once; one that failed before it began never will.
const LAST_WORDS: Duration = Duration::from_secs(3);
const FIRST_WORDS: Duration = Duration::from_millis(200);
/// When no line is held back, there is nothing to wake up for.
const IDLE: Duration = Duration::from_secs(3600);

/// How a solve ends other than well.
pub enum SolveEnd {
    Refused {
        status: Status,
        /// Name of the step that failed, where one did.
        step: Option<String>,
    },
    Cancelled,
}

/// Runs `request` and gives the exporters' answer.
pub async fn solve(
    channel: Channel,
    request: SolveRequest,
    dividable: Option<&Dividable>,
    progress: Progress,
    cancel: &CancellationToken,
) -> Result<HashMap<String, String>, SolveEnd> {
    let control = ControlClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
    let (heard, failed) = (AtomicBool::new(false), OnceLock::new());
    let mut reports =
        Box::pin(report(control.clone(), request.r#ref.clone(), Reporter::new(progress), &heard, &failed));
    let mut reports_ended = false;
    // In a block of its own: when it is left, the call is dropped.
    let answer = {
        let mut solve = match dividable {
            Some(dividable) => divided::solve(channel, request, dividable, |request| exports(control, request)).boxed(),
            None => exports(control, request).boxed(),
        };
        loop {
            tokio::select! {
                answer = &mut solve => break Some(answer),
                () = cancel.cancelled() => break None,
                () = &mut reports, if !reports_ended => reports_ended = true,
            }
        }
    };
    if !reports_ended {
        let never_began = matches!(answer, Some(Err(_))) && !heard.load(Ordering::Relaxed);
        let patience = if never_began { FIRST_WORDS } else { LAST_WORDS };
        // What is not said by then is not needed: the answer itself tells how the build ended.
        let _ = timeout(patience, reports).await;
    }
    match answer {
        Some(Ok(exported)) => Ok(exported),
        Some(Err(status)) => Err(SolveEnd::Refused { status, step: failed.get().cloned() }),
        None => Err(SolveEnd::Cancelled),
    }
}

/// Has the engine carry a request out.
async fn exports(
    mut control: ControlClient<Channel>,
    request: SolveRequest,
) -> Result<HashMap<String, String>, Status> {
    control.solve(request).await.map(|response| response.into_inner().exporter_response)
}

/// Hands every status on until the stream ends.
async fn report(
    mut control: ControlClient<Channel>,
    reference: String,
    mut reporter: Reporter,
    heard: &AtomicBool,
    failed: &OnceLock<String>,
) {
    let mut statuses = match control.status(StatusRequest { r#ref: reference }).await {
        Ok(statuses) => statuses.into_inner(),
        Err(status) => {
            tracing::debug!(%status, "the engine reports nothing of a build");
            return;
        }
    };
    loop {
        let deadline = reporter.deadline().unwrap_or_else(|| Instant::now() + IDLE);
        tokio::select! {
            status = statuses.message() => match status {
                Ok(Some(status)) => {
                    heard.store(true, Ordering::Relaxed);
                    if let Some(vertex) = status.vertexes.iter().find(|vertex| is_failure(vertex)) {
                        // The first one is the cause; the others were waiting for it.
                        let _ = failed.set(vertex.name.clone());
                    }
                    reporter.status(status, Instant::now());
                }
                Ok(None) | Err(_) => return,
            },
            () = sleep_until(deadline.into()) => reporter.flush(Instant::now()),
        }
    }
}

/// Caches that are not there yet fail too, and fail nothing.
fn is_failure(vertex: &Vertex) -> bool {
    !vertex.error.is_empty() && !vertex.name.starts_with("importing cache manifest")
}
