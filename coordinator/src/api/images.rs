//! Versions of an image repository: what builds of this farm published in it.

use kiln_common::{ImageReference, Repository, limits, spec::Violation};
use kiln_proto::{
    convert::{duration_to_wire, grade_to_wire, timestamp_to_wire},
    status::Refused,
    v1,
};
use kiln_scheduler::{BuildState, TaskState};

use super::{
    Api,
    listing::{page_key, page_size, token_of},
    store_failed, view,
};
use crate::store::{keys, records::BuildView};

impl Api {
    pub(super) async fn list_image_versions(
        &self,
        request: v1::ListImagesRequest,
    ) -> Result<v1::ListImagesResponse, Refused> {
        let repository: Repository =
            request.repository.parse().map_err(|error| Refused::invalid(vec![Violation::new("repository", error)]))?;
        let size = page_size(request.page_size)?.min(limits::PAGE_SIZE_MAX);
        let prefix = keys::images(&repository);
        let after = page_key(&prefix, &request.page_token)?;
        let page = self.driver.store().range(&prefix, after.as_deref(), size + 1).await;
        let mut page = page.map_err(|error| store_failed(&error))?;
        let more = page.len() > size;
        page.truncate(size);
        let mut versions = Vec::with_capacity(page.len());
        for id in page.iter().filter_map(|entry| keys::build_of(&entry.key)) {
            versions.extend(version(&repository, &self.records(id).await?));
        }
        let last = page.pop().filter(|_| more).map(|entry| entry.key);
        Ok(v1::ListImagesResponse { versions, next_page_token: token_of(last) })
    }
}

/// What the build published in this repository; `None` when no tag of it moved there.
pub(super) fn version(repository: &Repository, records: &BuildView) -> Option<v1::ImageVersion> {
    let published = records.build.published.as_ref()?;
    let in_repository = |text: &String| {
        let tag: ImageReference = text.parse().ok()?;
        (tag.repository() == repository).then(|| tag.tag().unwrap_or_default().to_owned())
    };
    let tags: Vec<String> = published.tags.iter().filter_map(in_repository).collect();
    if tags.is_empty() {
        return None;
    }
    let platforms = records.tasks.iter().filter_map(|task| {
        let TaskState::Succeeded { image } = &task.state else { return None };
        let grade = task.attempt.as_ref().map_or(v1::Grade::Unspecified, |attempt| grade_to_wire(attempt.grade));
        Some(v1::ImagePlatform {
            platform: task.platform.to_string(),
            digest: image.digest.to_string(),
            size_bytes: published.platform_sizes.get(&task.platform).copied().unwrap_or_default(),
            grade: grade.into(),
            duration: view::duration_of(task).map(duration_to_wire),
        })
    });
    Some(v1::ImageVersion {
        tags,
        digest: published.digest.to_string(),
        platforms: platforms.collect(),
        build_id: records.build.id.to_string(),
        published_at: Some(timestamp_to_wire(published.at)),
        complete: records.build.state != BuildState::Incomplete,
        source: records.build.spec.source.clone(),
    })
}
