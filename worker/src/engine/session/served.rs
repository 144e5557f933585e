//! What the builds of one session give out, and the name of all of it.
//!
//! A session answers for whichever of its builds is still running: they give out the same, or they would not share it.
//! Invariant: when none runs, nothing is given out, and nothing is held in memory.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use kiln_common::context::ChunkId;
use tonic::Status;
use zeroize::Zeroizing;

use crate::{
    context::FileSyncService,
    engine::job::{AgentDialer, NoAgents, RegistryCredential},
};

/// What one build gives out.
pub struct Served {
    pub filesync: FileSyncService,
    pub secrets: BTreeMap<String, Zeroizing<Vec<u8>>>,
    pub credentials: BTreeMap<String, RegistryCredential>,
    pub ssh_ids: Vec<String>,
    pub agents: Arc<dyn AgentDialer>,
    pub shared_key: String,
}

/// Names everything that a build gives out. The salt keeps secrets from being guessed by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity(ChunkId);

impl Served {
    /// Directories alone.
    pub fn directories(filesync: FileSyncService, shared_key: String) -> Self {
        Self {
            filesync,
            secrets: BTreeMap::new(),
            credentials: BTreeMap::new(),
            ssh_ids: Vec::new(),
            agents: Arc::new(NoAgents),
            shared_key,
        }
    }

    /// `None` where a build gives out what is its own: its client's ssh agents.
    pub fn identity(&self, salt: &[u8]) -> Option<Identity> {
        if !self.ssh_ids.is_empty() {
            return None;
        }
        let mut all = Text(Zeroizing::default());
        all.put(salt);
        all.put(self.shared_key.as_bytes());
        let trees = self.filesync.names();
        all.count(trees.len());
        for (name, holds) in &trees {
            all.put(name.as_bytes());
            all.put(holds.as_ref().map_or(&[][..], |holds| holds.as_bytes()));
        }
        all.count(self.secrets.len());
        for (id, value) in &self.secrets {
            all.put(id.as_bytes());
            all.put(value);
        }
        all.count(self.credentials.len());
        for (host, credential) in &self.credentials {
            all.put(host.as_bytes());
            match credential {
                RegistryCredential::Password { username, password } => {
                    all.put(b"password");
                    all.put(username.as_bytes());
                    all.put(password.as_bytes());
                }
                RegistryCredential::IdentityToken(token) => {
                    all.put(b"token");
                    all.put(token.as_bytes());
                }
            }
        }
        Some(Identity(ChunkId::of(&all.0)))
    }
}

impl Identity {
    /// As BuildKit takes a session's id.
    pub fn session_id(&self) -> String {
        let mut id = self.0.to_string();
        id.truncate(32);
        id
    }
}

/// Values one behind the other, each with its length before it.
struct Text(Zeroizing<Vec<u8>>);

impl Text {
    fn count(&mut self, count: usize) {
        self.0.extend_from_slice(&(count as u64).to_le_bytes());
    }

    fn put(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.extend_from_slice(bytes);
    }
}

/// The builds of a session that run now.
pub struct Builds(Mutex<Running>);

struct Running {
    builds: Vec<Arc<Served>>,
    /// When one came or went.
    changed: Instant,
}

impl Default for Builds {
    fn default() -> Self {
        Self(Mutex::new(Running { builds: Vec::new(), changed: Instant::now() }))
    }
}

impl Builds {
    /// What the services answer from.
    pub fn served(&self) -> Result<Arc<Served>, Status> {
        let last = self.running().builds.last().cloned();
        last.ok_or_else(|| Status::unavailable("the build that this session was of is over"))
    }

    pub fn add(&self, served: Arc<Served>) {
        let mut running = self.running();
        running.builds.push(served);
        running.changed = Instant::now();
    }

    pub fn remove(&self, served: &Arc<Served>) {
        let mut running = self.running();
        running.builds.retain(|other| !Arc::ptr_eq(other, served));
        running.changed = Instant::now();
    }

    /// Since when none runs; `None` while one does.
    pub fn idle_since(&self) -> Option<Instant> {
        let running = self.running();
        running.builds.is_empty().then_some(running.changed)
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{context::ContextTree, engine::NoAgents};

    fn served() -> Served {
        Served {
            filesync: FileSyncService::new([("context".to_owned(), ContextTree::empty())].into()),
            secrets: [("id".to_owned(), Zeroizing::new(b"value".to_vec()))].into(),
            credentials: [("r.example".to_owned(), RegistryCredential::IdentityToken("t".to_owned().into()))].into(),
            ssh_ids: Vec::new(),
            agents: Arc::new(NoAgents),
            shared_key: "project".to_owned(),
        }
    }

    #[test]
    fn builds_that_give_out_the_same_have_one_name_and_others_have_others() {
        let name = |served: &Served| served.identity(b"salt");
        let password = |password: &str| RegistryCredential::Password {
            username: "t".to_owned(),
            password: password.to_owned().into(),
        };
        let same = name(&served());
        assert_eq!(name(&served()), same);
        assert_ne!(served().identity(b"another salt"), same);
        let others = [
            Served { secrets: BTreeMap::new(), ..served() },
            Served { secrets: [("id".to_owned(), Zeroizing::new(b"other".to_vec()))].into(), ..served() },
            Served { secrets: [("i".to_owned(), Zeroizing::new(b"dvalue".to_vec()))].into(), ..served() },
            Served { credentials: BTreeMap::new(), ..served() },
            Served { credentials: [("r.example".to_owned(), password(""))].into(), ..served() },
            Served { shared_key: "other".to_owned(), ..served() },
            Served { filesync: FileSyncService::new(BTreeMap::new()), ..served() },
        ];
        for other in &others {
            assert_ne!(name(other), same);
        }
    }

    #[test]
    fn a_client_s_agents_are_never_shared() {
        assert_eq!(Served { ssh_ids: vec!["default".to_owned()], ..served() }.identity(b""), None);
    }

    #[test]
    fn a_build_that_ended_gives_out_nothing_and_the_other_goes_on() {
        let builds = Builds::default();
        let (first, second) = (Arc::new(served()), Arc::new(served()));
        builds.add(first.clone());
        builds.add(second.clone());
        builds.remove(&second);
        assert!(builds.served().is_ok_and(|served| Arc::ptr_eq(&served, &first)));
        builds.remove(&first);
        assert!(builds.idle_since().is_some() && builds.served().is_err());
    }
}
