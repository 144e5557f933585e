//! Where the farm is and who this worker is to it: the addresses in the order to try, and the current identity.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_common::runtime::{
    Dialer,
    dial::InvalidAddress,
    tls::{self, TlsError},
};

use crate::enroll::Identity;

/// Shared by the session, which dials, and the renewal, which replaces the identity.
#[derive(Debug, Clone)]
pub struct Farm {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// `HOST:PORT`, the one to try first in front.
    addresses: Vec<String>,
    identity: Arc<Identity>,
}

/// The farm cannot be dialled at all.
#[derive(Debug, thiserror::Error)]
pub enum FarmError {
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Farm {
    #[must_use]
    pub fn new(addresses: Vec<String>, identity: Identity) -> Self {
        Self { state: Arc::new(Mutex::new(State { addresses, identity: Arc::new(identity) })) }
    }

    /// A dialer for one session, with the identity of this moment.
    pub fn dialer(&self) -> Result<Dialer, FarmError> {
        let state = self.state();
        let config = tls::client_config(state.identity.trust()?, Some(state.identity.tls()?))?;
        Ok(Dialer::new(&state.addresses, config)?)
    }

    /// Tries another coordinator first next time.
    pub fn rotate(&self) {
        self.state().addresses.rotate_left(1);
    }

    /// Tries the leader first next time, also one that was not listed.
    pub fn lead_by(&self, leader: &str) {
        /// A list that follows every hint would grow with every election.
        const MOST: usize = 16;
        let mut state = self.state();
        state.addresses.retain(|address| address != leader);
        state.addresses.insert(0, leader.to_owned());
        state.addresses.truncate(MOST);
    }

    #[must_use]
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.state().identity)
    }

    /// Sessions that stand go on; the next connection uses this one.
    pub fn replace_identity(&self, identity: Identity) {
        self.state().identity = Arc::new(identity);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
