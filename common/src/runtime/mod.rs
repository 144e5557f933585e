//! What the programs share at run time: configuration, TLS, telemetry, backoff, shutdown.
