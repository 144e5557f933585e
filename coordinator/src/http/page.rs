//! The farm's page: plain HTML from one template, one style sheet, no script.

use askama::Template;
use axum::{
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use tracing::error;

use super::snapshot::Snapshot;

#[derive(Template)]
#[template(path = "farm.html")]
struct FarmPage {
    snapshot: Snapshot,
    online: usize,
    /// Slots in use, in percent.
    load: u32,
    version: &'static str,
}

pub(super) fn render(snapshot: Snapshot) -> Response {
    let used = u32::try_from(snapshot.slots_used).unwrap_or(u32::MAX);
    let load = used.saturating_mul(100).checked_div(snapshot.slots).unwrap_or(0).min(100);
    let page = FarmPage { online: snapshot.online(), load, version: env!("CARGO_PKG_VERSION"), snapshot };
    match page.render() {
        Ok(html) => Html(html).into_response(),
        Err(error) => {
            error!(%error, "the farm's page does not render");
            (StatusCode::INTERNAL_SERVER_ERROR, "the page does not render\n").into_response()
        }
    }
}

pub(super) async fn style() -> Response {
    let sheet = include_str!("../../templates/style.css");
    std::future::ready(([(header::CONTENT_TYPE, "text/css; charset=utf-8")], sheet).into_response()).await
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::{super::snapshot::PlatformRow, *};

    async fn html(snapshot: Snapshot) -> String {
        let body = render(snapshot).into_body().collect().await.expect("body").to_bytes();
        String::from_utf8(body.to_vec()).expect("UTF-8")
    }

    #[tokio::test]
    async fn an_empty_farm_says_how_a_worker_joins() {
        assert!(html(Snapshot::default()).await.contains("kiln workers token"));
    }

    #[tokio::test]
    async fn platforms_show_with_their_workers() {
        let platform = "linux/arm/v7".parse().expect("platform");
        let row = PlatformRow { platform, native: 2, compat: 1, emulated: 0 };
        let page = html(Snapshot { platforms: vec![row], slots: 4, slots_used: 1, ..Snapshot::default() }).await;
        assert!(page.contains("linux/arm/v7") && page.contains("1 of 4"));
        assert!(!page.contains("<script") && !page.contains("style="));
    }
}
