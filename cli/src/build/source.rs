//! Where the build's input comes from: read once, uploaded before each submit.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Instant};

use kiln_common::spec::NamedContext;
use tokio::sync::mpsc;

use super::{flags::BuildFlags, options::Trees};
use crate::{
    connection::Farm,
    context::{Context, ContextError, ContextRequest, Progress, Source, Trust, default_cache_dir},
    failure::Failure,
    progress::{Upload, summary},
};

/// Sources of named contexts that the engine resolves itself.
const REMOTE: [&str; 6] = ["docker-image://", "http://", "https://", "git://", "ssh://", "git@"];

/// The input as it stands on this machine.
pub struct Input {
    context: Context,
    /// Named contexts that are not directories.
    references: BTreeMap<String, NamedContext>,
}

/// What the farm holds now, and the Dockerfile as it was read.
pub struct Prepared {
    pub trees: Trees,
    pub dockerfile: summary::Source,
}

impl Input {
    /// Scans the context, or fetches or unpacks it first.
    ///
    /// # Errors
    /// Usage: what cannot be read, and what to give instead.
    pub async fn read(flags: &BuildFlags) -> Result<Self, Failure> {
        let (mut named, mut references) = (BTreeMap::new(), BTreeMap::new());
        for text in &flags.build_context {
            let (name, source) =
                text.split_once('=')
                    .filter(|(name, source)| !name.is_empty() && !source.is_empty())
                    .ok_or_else(|| Failure::usage(format!("--build-context `{text}` is not NAME=SOURCE")))?;
            if REMOTE.iter().any(|scheme| source.starts_with(scheme)) {
                references.insert(name.to_owned(), NamedContext::Reference(source.to_owned()));
            } else {
                named.insert(name.to_owned(), PathBuf::from(source));
            }
        }
        let request = ContextRequest {
            source: Source::parse(&flags.context).map_err(Failure::usage)?,
            dockerfile: flags.file.clone(),
            named,
            cache_dir: default_cache_dir(),
        };
        let context = Context::prepare(request).await.map_err(Failure::usage)?;
        Ok(Self { context, references })
    }

    /// Sends what the farm lacks; `uploads` hears how it gets on.
    ///
    /// # Errors
    /// A file that cannot be read any more, or the farm's refusal.
    pub async fn upload(&self, farm: &Farm, trust: Trust, uploads: mpsc::Sender<Upload>) -> Result<Prepared, Failure> {
        let link = farm.link().await?;
        let began = Instant::now();
        let news = uploads.clone();
        let tell = move |progress: Progress| {
            // A full queue loses a step of the display, never a byte of the context.
            let _ = news.try_send(shown(progress, began, false));
        };
        let farm_name = farm.target().endpoints.first().map(ToString::to_string).unwrap_or_default();
        let sent = self.context.upload(Arc::new(link.contexts()), &farm_name, trust, tell).await;
        let sent = sent.map_err(|error| failure(&error, &link.endpoint().to_string()))?;
        let whole = Progress { files: sent.files, bytes: sent.bytes, missing: sent.bytes_sent, sent: sent.bytes_sent };
        let _ = uploads.send(shown(whole, began, true)).await;
        let named = sent.named.into_iter().map(|(name, tree)| (name, NamedContext::Tree(tree)));
        let trees = Trees {
            context: sent.context,
            dockerfile: sent.dockerfile,
            named_contexts: named.chain(self.references.clone()).collect(),
            source: self.context.origin().to_owned(),
        };
        let filename = self.context.dockerfile_name().to_owned();
        Ok(Prepared {
            trees,
            dockerfile: summary::Source { filename, text: self.context.dockerfile_text().to_owned() },
        })
    }
}

fn failure(error: &ContextError, endpoint: &str) -> Failure {
    match error.status() {
        Some(status) => Failure::from_status(status, endpoint),
        None => Failure::usage(error),
    }
}

fn shown(progress: Progress, began: Instant, done: bool) -> Upload {
    let Progress { files, bytes, missing, sent } = progress;
    Upload { files, bytes, missing, sent, done, elapsed: began.elapsed() }
}
