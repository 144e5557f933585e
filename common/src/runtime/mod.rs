//! What the programs share at run time: configuration, TLS, telemetry, backoff, shutdown, files that only their owner
//! reads, and the join token. The worker carries all of it onto small boards: keep it light.

pub mod backoff;
pub mod config;
pub mod dial;
pub mod files;
pub mod join_token;
pub mod shutdown;
pub mod telemetry;
pub mod tls;

pub use backoff::{Backoff, BackoffPolicy};
pub use config::CommonArgs;
pub use dial::Dialer;
pub use join_token::JoinToken;
pub use shutdown::Shutdown;
