//! Takes records out of the engine's build cache; the same calls work on all shapes of engines.
//!
//! `Engine::prune` is this. BuildKit itself passes over what a running build holds (`cache/manager.go`, `prune`).

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{DiskUsageRequest, PruneRequest, control_client::ControlClient};
use tokio::time::timeout;
use tonic::transport::Channel;

use super::{EngineError, transport::Dialer};

/// A large cache on a slow card takes a while to be counted, and longer to be deleted.
const CALL_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// The list of a cache's records.
const MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Frees about `bytes`; says how large the removed records were.
pub async fn prune(dialer: &Dialer, bytes: u64) -> Result<u64, EngineError> {
    let silent = |_| EngineError::Silent { address: dialer.address().to_string() };
    timeout(CALL_TIMEOUT, prune_unbounded(dialer, bytes)).await.map_err(silent)?
}

async fn prune_unbounded(dialer: &Dialer, bytes: u64) -> Result<u64, EngineError> {
    let mut control = ControlClient::new(dialer.channel().await?).max_decoding_message_size(MESSAGE_BYTES);
    let keep = usage(&mut control).await?.saturating_sub(bytes);
    let freed = remove(&mut control, keep, false).await?;
    if freed >= bytes {
        return Ok(freed);
    }
    // Then also what frontends and the engine's image store share with builds.
    Ok(freed + remove(&mut control, keep, true).await?)
}

/// Bytes of the records that a prune counts.
async fn usage(control: &mut ControlClient<Channel>) -> Result<u64, EngineError> {
    let usage = control.disk_usage(DiskUsageRequest::default()).await.map_err(EngineError::call)?.into_inner();
    Ok(usage.record.iter().filter(|record| !record.shared).map(|record| bytes_of(record.size)).sum())
}

/// Removes until no more than `keep` bytes are left, or until the rest is in use.
async fn remove(control: &mut ControlClient<Channel>, keep: u64, all: bool) -> Result<u64, EngineError> {
    // 0 is no bound: all that is not in use would go.
    let reserved_space = i64::try_from(keep.max(1)).unwrap_or(i64::MAX);
    let request = PruneRequest { all, reserved_space, ..PruneRequest::default() };
    let mut removed = control.prune(request).await.map_err(EngineError::call)?.into_inner();
    let mut freed = 0;
    while let Some(record) = removed.message().await.map_err(EngineError::call)? {
        freed += bytes_of(record.size);
    }
    Ok(freed)
}

/// A record that was never measured has a negative size.
fn bytes_of(size: i64) -> u64 {
    u64::try_from(size).unwrap_or(0)
}
