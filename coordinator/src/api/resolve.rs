//! From what people write to what is meant: builds by id or by the beginning of one, workers by id or by name.

use kiln_common::{BuildId, Reason, WorkerId};
use kiln_proto::status::Refused;

use super::{Api, stopped, store_failed};
use crate::store::{keys, records, records::BuildView};

/// Fewer characters of an id name too many builds.
const SHORTEST_PREFIX: usize = 8;

impl Api {
    /// The build that `text` names: its id, or a beginning of at least eight characters that no other build has.
    pub(super) async fn build_id(&self, text: &str) -> Result<BuildId, Refused> {
        let unknown = || Refused::new(Reason::NotFound, format!("there is no build `{}`", shorten(text)));
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let is_prefix = text.len() >= SHORTEST_PREFIX && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        if !is_prefix {
            let hint =
                format!("`{}` is not a build's id; give it whole or its first 8 or more characters", shorten(text));
            return Err(Refused::new(Reason::InvalidArgument, hint));
        }
        let prefix = format!("{}{}", keys::BUILDS, text.to_ascii_lowercase());
        let found = self.driver.store().range(&prefix, None, 2).await.map_err(|error| store_failed(&error))?;
        match found.as_slice() {
            [] => Err(unknown()),
            [one] => keys::build_of(&one.key).ok_or_else(unknown),
            [_, ..] => {
                let hint = format!("several builds begin with `{}`; give more characters", shorten(text));
                Err(Refused::new(Reason::InvalidArgument, hint))
            }
        }
    }

    /// The build's records: from memory while it is there, from the store afterwards.
    pub(super) async fn records(&self, id: BuildId) -> Result<BuildView, Refused> {
        let in_memory = self.driver.query(move |scheduler, _| {
            let build = scheduler.build(id)?.clone();
            Some(BuildView { build, tasks: scheduler.tasks_of(id).cloned().collect() })
        });
        if let Some(view) = in_memory.await.map_err(stopped)? {
            return Ok(view);
        }
        let stored = records::build(self.driver.store().as_ref(), id).await.map_err(|error| store_failed(&error))?;
        stored.ok_or_else(|| Refused::new(Reason::NotFound, format!("there is no build `{id}`")))
    }

    /// The worker that `text` names.
    pub(super) async fn worker_id(&self, text: &str) -> Result<WorkerId, Refused> {
        let name = text.to_owned();
        let found = self.driver.query(move |scheduler, _| {
            let id = name.parse::<WorkerId>().ok().filter(|id| scheduler.worker(*id).is_some());
            id.or_else(|| scheduler.workers().find(|view| *view.record.name == *name).map(|view| view.record.id))
        });
        let unknown = || Refused::new(Reason::NotFound, format!("there is no worker `{}`", shorten(text)));
        found.await.map_err(stopped)?.ok_or_else(unknown)
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}
