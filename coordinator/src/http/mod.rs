//! What the coordinator says over plain HTTP: so far its metrics.

pub mod metrics;
