//! What the coordinator says over plain HTTP: is it alive, is it ready, its metrics, and a page about the farm.
//!
//! Nobody is logged in here, so nothing names an image, a source or a person. Invariant: a slow or greedy client costs
//! one bounded connection and nothing else; no request has a body that is read.

pub mod metrics;
mod page;
mod server;
mod snapshot;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use kiln_common::limits;
use metrics_exporter_prometheus::PrometheusHandle;

pub use server::serve;
use snapshot::Snapshot;

use crate::{driver::Handle, store::keys};

/// No script, nothing from elsewhere, no frame.
const CONTENT_SECURITY_POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(Clone)]
struct Http {
    driver: Handle,
    metrics: Arc<PrometheusHandle>,
}

/// The routes; hand them to [`serve`].
pub fn router(driver: Handle, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/", get(farm))
        .route("/style.css", get(page::style))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(show_metrics))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is no such page\n") })
        .layer(middleware::from_fn(harden))
        .with_state(Http { driver, metrics: Arc::new(metrics) })
}

/// Every answer carries the same guards.
async fn harden(request: Request, next: Next) -> Response {
    let mut response = tokio::time::timeout(limits::HTTP_TIMEOUT, next.run(request))
        .await
        .unwrap_or_else(|_| (StatusCode::SERVICE_UNAVAILABLE, "the farm does not answer in time\n").into_response());
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn farm(State(http): State<Http>) -> Response {
    match Snapshot::take(&http.driver).await {
        Ok(snapshot) => page::render(snapshot),
        Err(_) => unavailable("the coordinator is stopping"),
    }
}

/// The driver answers and the store reads.
async fn ready(State(http): State<Http>) -> Response {
    if http.driver.query(|_, _| ()).await.is_err() {
        return unavailable("the driver has stopped");
    }
    match http.driver.store().get(keys::SCHEMA).await {
        Ok(_) => "ready\n".into_response(),
        Err(error) => unavailable(&error.to_string()),
    }
}

async fn show_metrics(State(http): State<Http>) -> Response {
    match Snapshot::take(&http.driver).await {
        Ok(snapshot) => snapshot.record(),
        Err(_) => return unavailable("the driver has stopped"),
    }
    http.metrics.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], http.metrics.render()).into_response()
}

fn unavailable(problem: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn every_answer_forbids_scripts_and_frames() {
        let router: Router = Router::new().route("/", get(|| async { "x" })).layer(middleware::from_fn(harden));
        let request = Request::builder().uri("/").body(axum::body::Body::empty()).expect("request");
        let response = router.oneshot(request).await.expect("infallible");
        assert_eq!(response.headers()["content-security-policy"], CONTENT_SECURITY_POLICY);
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        assert_eq!(response.into_body().collect().await.expect("body").to_bytes(), "x");
    }
}
