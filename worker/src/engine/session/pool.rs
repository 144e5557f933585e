//! Sessions by what they serve. `build` takes a lease of one for each solve.
//!
//! BuildKit keys what it took from a client's directories by the session's id and the patterns it asked with
//! (`source/local/source.go`, `CacheKey`). So a session is named by what it serves, lives on for a while after its last
//! build, and serves all builds that give out the very same: legs of a build that run at once have their context taken by
//! the engine once, and a build of an unchanged context is not asked for the name of a single file.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::OnceCell;

use super::{
    Session,
    served::{Builds, Identity, Served},
};
use crate::engine::{EngineError, transport::Dialer};

/// How long a session waits for its next build.
const IDLE: Duration = Duration::from_secs(120);
/// How many do: a few builds', each with the parts of its context.
const IDLE_SESSIONS: usize = 24;

/// The sessions with one engine.
pub struct Sessions {
    dialer: Dialer,
    salt: [u8; 16],
    slots: Mutex<BTreeMap<Identity, Arc<Slot>>>,
}

/// A session, open or being opened.
#[derive(Default)]
struct Slot {
    builds: Arc<Builds>,
    session: OnceCell<Arc<Session>>,
}

impl Sessions {
    pub fn new(dialer: Dialer) -> Self {
        Self { dialer, salt: rand::random(), slots: Mutex::default() }
    }

    pub const fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// A session that serves this build, and maybe others like it, until the lease is dropped.
    ///
    /// # Errors
    /// When the engine cannot be reached or refuses the session.
    pub async fn lease(self: &Arc<Self>, served: Served) -> Result<Lease, EngineError> {
        let identity = served.identity(&self.salt);
        let served = Arc::new(served);
        let slot = identity.map(|identity| self.slot(identity)).unwrap_or_default();
        let part = Part::take(self, slot, served);
        let session = part.slot.session.get_or_try_init(|| self.open(identity, &part)).await?.clone();
        Ok(Lease { session, _part: part })
    }

    fn slot(&self, identity: Identity) -> Arc<Slot> {
        let mut slots = self.slots();
        let slot = slots.entry(identity).or_default();
        if slot.session.get().is_some_and(|session| session.is_closed()) {
            *slot = Arc::default();
        }
        slot.clone()
    }

    async fn open(&self, identity: Option<Identity>, part: &Part) -> Result<Arc<Session>, EngineError> {
        let (builds, key) = (&part.slot.builds, &part.served.shared_key);
        if let Some(identity) = identity {
            match Session::open(&self.dialer, identity.session_id(), key, builds.clone()).await {
                Ok(session) => return Ok(Arc::new(session)),
                // An engine may not have noticed yet that an earlier session of this name is gone.
                Err(error) => tracing::debug!(%error, "a session gets a name of its own"),
            }
        }
        let id = format!("{:032x}", rand::random::<u128>());
        Session::open(&self.dialer, id, key, builds.clone()).await.map(Arc::new)
    }

    /// Closes what nobody has used for long, and the longest unused of what is too many.
    fn sweep(&self) {
        let mut slots = self.slots();
        slots.retain(|_, slot| slot.builds.idle_since().is_none_or(|since| since.elapsed() < IDLE));
        let mut idle: Vec<_> =
            slots.iter().filter_map(|(name, slot)| Some((slot.builds.idle_since()?, *name))).collect();
        idle.sort_unstable();
        let surplus = idle.len().saturating_sub(IDLE_SESSIONS);
        for (_, name) in idle.into_iter().take(surplus) {
            slots.remove(&name);
        }
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<Identity, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A build's session, until this is dropped.
pub struct Lease {
    session: Arc<Session>,
    _part: Part,
}

impl Lease {
    pub fn session(&self) -> &Session {
        &self.session
    }
}

/// A build among those that a session serves.
struct Part {
    pool: Weak<Sessions>,
    served: Arc<Served>,
    slot: Arc<Slot>,
}

impl Part {
    fn take(pool: &Arc<Sessions>, slot: Arc<Slot>, served: Arc<Served>) -> Self {
        slot.builds.add(served.clone());
        Self { pool: Arc::downgrade(pool), served, slot }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.slot.builds.remove(&self.served);
        let Some(pool) = self.pool.upgrade() else { return };
        pool.sweep();
        if self.slot.builds.idle_since().is_none() {
            return;
        }
        // Nobody may come by again to close it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let pool = self.pool.clone();
            runtime.spawn(async move {
                tokio::time::sleep(IDLE).await;
                if let Some(pool) = pool.upgrade() {
                    pool.sweep();
                }
            });
        }
    }
}
