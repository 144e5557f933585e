//! One signal drains, a second one stops. Every long-lived task of a program holds a clone.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// `drain`: take nothing new and finish what runs. `stop`: end now. `stop` implies `drain`.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    pub drain: CancellationToken,
    pub stop: CancellationToken,
}

impl Shutdown {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens for SIGTERM and SIGINT from now on.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let listener = shutdown.clone();
        tokio::spawn(async move {
            let name = either(&mut terminate, &mut interrupt).await;
            info!(signal = name, "draining; a second signal stops at once");
            listener.drain();
            let name = either(&mut terminate, &mut interrupt).await;
            info!(signal = name, "stopping");
            listener.stop();
        });
        Ok(shutdown)
    }

    pub fn drain(&self) {
        self.drain.cancel();
    }

    pub fn stop(&self) {
        self.drain.cancel();
        self.stop.cancel();
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopping_also_drains() {
        let shutdown = Shutdown::new();
        let clone = shutdown.clone();
        clone.drain();
        assert!(shutdown.drain.is_cancelled() && !shutdown.stop.is_cancelled());
        clone.stop();
        assert!(shutdown.stop.is_cancelled());
    }
}
