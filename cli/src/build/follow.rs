//! Follows a build to its end: its state and its log, over as many connections as it takes.
//!
//! Two tasks each hold one stream open and open it anew when it breaks; the model drops what was seen before, so a
//! coordinator may restart in the middle and no line is lost or doubled.

use std::{sync::Arc, time::Duration};

use kiln_proto::v1::{self, LogsRequest, WatchBuildRequest};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tonic::{Code, Status};

use super::interrupt::{Interrupts, Wish};
use crate::{
    connection::Farm,
    failure::{Exit, Failure},
    output::text,
    progress::{Input, Progress},
};

/// Messages under way from the streams to the view.
const QUEUE: usize = 64;
/// Ten pictures a second at most.
const TICK: Duration = Duration::from_millis(100);
/// How long a farm may be away before the client gives up; the build goes on without it.
const PATIENCE: Duration = Duration::from_secs(300);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// How long the log may lag behind the final state.
const LOG_GRACE: Duration = Duration::from_secs(15);

/// What one of the streams says.
enum News {
    Input(Input),
    /// The log is complete.
    LogEnded,
    Gone(Failure),
}

/// How following ended.
pub enum Outcome {
    /// The build is final.
    Final(Box<v1::Build>),
    /// The user cancelled the build.
    Cancelled(Box<v1::Build>),
    /// The user let go of it; it goes on.
    Detached,
}

/// Shows the build until it is final or the user has enough.
///
/// # Errors
/// The farm refuses, or stays away for five minutes.
pub async fn follow(
    farm: &Arc<Farm>,
    id: &str,
    progress: &mut Progress,
    interrupts: &mut Interrupts,
) -> Result<Outcome, Failure> {
    let (sender, mut news) = mpsc::channel(QUEUE);
    let mut streams = tokio::task::JoinSet::new();
    streams.spawn(watch(Arc::clone(farm), id.to_owned(), sender.clone()));
    streams.spawn(logs(Arc::clone(farm), id.to_owned(), sender));
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut log_ended, mut cancelled) = (false, false);
    let mut grace: Option<Instant> = None;
    loop {
        if let Some(build) = progress.model.build.as_ref().filter(|build| text::is_final(build.state())) {
            let over = *grace.get_or_insert_with(|| Instant::now() + LOG_GRACE);
            if log_ended || Instant::now() >= over {
                let build = Box::new(build.clone());
                return Ok(if cancelled { Outcome::Cancelled(build) } else { Outcome::Final(build) });
            }
        }
        tokio::select! {
            Some(said) = news.recv() => match said {
                News::Input(input) => progress.apply(input),
                News::LogEnded => log_ended = true,
                News::Gone(failure) => return Err(failure),
            },
            _ = tick.tick() => progress.tick(),
            () = interrupts.next() => {
                if cancelled {
                    return Ok(Outcome::Detached);
                }
                progress.suspend();
                match interrupts.ask(text::short_id(id)).await {
                    Wish::Cancel => {
                        cancel(farm, id).await?;
                        cancelled = true;
                        progress.apply(Input::Notice("cancelling the build".to_owned()));
                    }
                    Wish::Continue => {}
                    Wish::Detach => return Ok(Outcome::Detached),
                }
                progress.resume();
            }
        }
    }
}

/// Cancels; a build that became final meanwhile is as good as cancelled.
async fn cancel(farm: &Farm, id: &str) -> Result<(), Failure> {
    let request = v1::CancelBuildRequest { id: id.to_owned(), reason: "interrupted by the user".to_owned() };
    match farm.call_status(async |link| link.builds().cancel(request.clone()).await).await {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.is(kiln_common::Reason::WrongState) => Ok(()),
        Err(refusal) => Err(refusal.into_failure()),
    }
}

async fn watch(farm: Arc<Farm>, id: String, news: mpsc::Sender<News>) {
    let mut away = Away::default();
    loop {
        let mut is_final = false;
        let ended = async {
            let link = farm.link().await.map_err(|failure| Status::unavailable(failure.message))?;
            let request = WatchBuildRequest { id: id.clone() };
            let mut stream = link.builds().watch(request).await?.into_inner();
            while let Some(build) = stream.message().await? {
                if away.back() {
                    drop(news.send(News::Input(Input::Notice("connected to the farm again".to_owned()))).await);
                }
                is_final = text::is_final(build.state());
                if news.send(News::Input(Input::Build(Box::new(build)))).await.is_err() {
                    break;
                }
            }
            Ok::<_, Status>(())
        };
        let ended = ended.await;
        if is_final || news.is_closed() {
            return;
        }
        match away.after(&farm, ended, &id).await {
            Ok(Some(notice)) => drop(news.send(News::Input(Input::Notice(notice))).await),
            Ok(None) => {}
            Err(failure) => return drop(news.send(News::Gone(failure)).await),
        }
    }
}

async fn logs(farm: Arc<Farm>, id: String, news: mpsc::Sender<News>) {
    let mut away = Away::default();
    loop {
        let ended = async {
            let link = farm.link().await.map_err(|failure| Status::unavailable(failure.message))?;
            let request = LogsRequest { id: id.clone(), follow: true, ..LogsRequest::default() };
            let mut stream = link.builds().logs(request).await?.into_inner();
            while let Some(log) = stream.message().await? {
                away.back();
                if news.send(News::Input(Input::Log(log))).await.is_err() {
                    break;
                }
            }
            Ok::<_, Status>(())
        };
        match ended.await {
            // The farm ends the stream once the log is complete.
            Ok(()) => return drop(news.send(News::LogEnded).await),
            Err(status) => {
                if let Err(failure) = away.after(&farm, Err(status), &id).await {
                    return drop(news.send(News::Gone(failure)).await);
                }
            }
        }
    }
}

/// How long a stream has been without an answer.
#[derive(Default)]
struct Away {
    since: Option<Instant>,
    pause: Duration,
    told: bool,
}

impl Away {
    /// The stream speaks again; whether that is news.
    fn back(&mut self) -> bool {
        self.since = None;
        self.pause = Duration::ZERO;
        std::mem::take(&mut self.told)
    }

    /// Waits before the next try; the first wait comes with words for the user.
    async fn after(&mut self, farm: &Farm, ended: Result<(), Status>, id: &str) -> Result<Option<String>, Failure> {
        let status = ended.err().unwrap_or_else(|| Status::unavailable("the stream ended early"));
        let moved = farm.redirect(&status);
        let transient = match status.code() {
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Aborted | Code::Cancelled | Code::DataLoss => {
                true
            }
            Code::ResourceExhausted | Code::DeadlineExceeded => true,
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => false,
        };
        let endpoint = farm.target().endpoints[0].to_string();
        if !transient && !moved {
            return Err(Failure::from_status(&status, &endpoint));
        }
        if !moved {
            farm.forget();
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() > PATIENCE {
            return Err(Failure::new(
                Exit::Unreachable,
                format!("the farm at {endpoint} stays away: {}", status.message()),
            )
            .remedy(format!("the build may go on without you; come back with `kiln builds watch {id}`")));
        }
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        tokio::time::sleep(self.pause).await;
        let first = !std::mem::replace(&mut self.told, true);
        Ok((first && !moved).then(|| "lost the connection to the farm; the build goes on, connecting again".to_owned()))
    }
}
