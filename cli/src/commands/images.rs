//! `kiln images REPOSITORY`: what the farm published there.

use clap::Args;
use kiln_common::{Repository, Timestamp, limits};
use kiln_proto::v1::{Grade, ImageVersion, ListImagesRequest, ListImagesResponse};

use crate::{
    connection::Farm,
    failure::Failure,
    output::{self, OutputFlag, Paint, Table, text},
};

#[derive(Debug, Args)]
pub struct Images {
    /// For example registry.example/team/app
    #[arg(value_name = "REPOSITORY")]
    repository: String,
    /// At most this many versions
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    limit: u32,
    #[command(flatten)]
    output: OutputFlag,
}

pub async fn run(images: Images, farm: &Farm) -> Result<(), Failure> {
    let repository: Repository = images.repository.parse().map_err(Failure::usage)?;
    let mut all = ListImagesResponse::default();
    let limit = images.limit.max(1) as usize;
    loop {
        let page_size = (limit - all.versions.len()).min(limits::PAGE_SIZE_MAX);
        let request = ListImagesRequest {
            repository: repository.to_string(),
            page_size: u32::try_from(page_size).unwrap_or(0),
            page_token: all.next_page_token.clone(),
        };
        let page = farm.call(async |link| link.builds().list_images(request.clone()).await).await?;
        all.versions.extend(page.versions);
        all.next_page_token = page.next_page_token;
        if all.next_page_token.is_empty() || all.versions.len() >= limit {
            break;
        }
    }
    output::print(images.output.output, &all, |paint| table(&all.versions, paint))
}

fn table(versions: &[ImageVersion], paint: Paint) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(["TAGS", "DIGEST", "PLATFORMS", "SIZE", "AGE", "BUILD"]);
    for version in versions {
        let platform = |one: &kiln_proto::v1::ImagePlatform| match one.grade() {
            Grade::Emulated => format!("{} (emulated)", one.platform),
            Grade::Unspecified | Grade::Native | Grade::Compat => one.platform.clone(),
        };
        let platforms: Vec<_> = version.platforms.iter().map(platform).collect();
        let missing = if version.complete { String::new() } else { paint.yellow(" incomplete") };
        let size: u64 = version.platforms.iter().map(|one| one.size_bytes).sum();
        table.row([
            paint.bold(&version.tags.join(", ")),
            text::short_digest(&version.digest).to_owned(),
            platforms.join(", ") + &missing,
            if size == 0 { "-".to_owned() } else { text::bytes(size) },
            text::age_of(version.published_at.as_ref(), now),
            text::short_id(&version.build_id).to_owned(),
        ]);
    }
    table.render(paint)
}
