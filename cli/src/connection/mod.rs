//! How the client finds a farm and talks to it.

mod endpoint;
mod farm;
mod link;
pub mod resolve;
pub mod store;

pub use endpoint::Endpoint;
pub use farm::Farm;
pub use link::Link;
pub use resolve::Target;
