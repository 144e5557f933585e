//! `kiln images`: what the farm published in a repository, two versions side by side, and one taken out.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use kiln_common::{ImageReference, Repository, Timestamp, limits};
use kiln_proto::v1::{
    DiffImagesRequest, DiffImagesResponse, Grade, ImagePlatform, ImageVersion, ListImagesRequest, ListImagesResponse,
    PlatformDifference, RemoveImageRequest, RemoveImageResponse,
};

use crate::{
    connection::Farm,
    failure::Failure,
    output::{self, OutputFlag, Paint, Table, text},
    registry,
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Images {
    #[command(subcommand)]
    action: Option<Action>,
    /// For example registry.example/team/app
    #[arg(value_name = "REPOSITORY", required = true)]
    repository: Option<String>,
    /// At most this many versions
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    limit: u32,
    #[command(flatten)]
    output: OutputFlag,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Compare two versions, platform by platform
    Diff {
        /// A reference with a tag or a digest
        #[arg(value_name = "FROM")]
        from: String,
        /// Another one; `:TAG` and `@DIGEST` are of the same repository
        #[arg(value_name = "TO")]
        to: String,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// Remove a tag, and the manifests that nothing else in its repository needs
    Rm {
        /// A reference with a tag, or with a digest that no tag names
        #[arg(value_name = "REFERENCE")]
        reference: String,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        output: OutputFlag,
    },
}

/// # Errors
/// The farm does not answer, knows no such version, or may not do it.
pub async fn run(images: Images, farm: Farm) -> Result<(), Failure> {
    match (images.action, images.repository) {
        (Some(Action::Diff { from, to, output }), _) => diff(&farm, &from, &to, &output).await,
        (Some(Action::Rm { reference, dry_run, output }), _) => remove(&farm, &reference, dry_run, &output).await,
        (None, Some(repository)) => list(&farm, &repository, images.limit, &images.output).await,
        (None, None) => Err(Failure::usage("no repository is named")),
    }
}

async fn list(farm: &Farm, repository: &str, limit: u32, output: &OutputFlag) -> Result<(), Failure> {
    let repository: Repository = repository.parse().map_err(Failure::usage)?;
    let mut all = ListImagesResponse::default();
    let limit = limit.max(1) as usize;
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
    output::print(output.output, &all, |paint| table(&all.versions, paint))
}

fn table(versions: &[ImageVersion], paint: Paint) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(["TAGS", "DIGEST", "PLATFORMS", "SIZE", "AGE", "BUILD", "SOURCE"]);
    // Newest first: a tag names the first version that has it.
    let mut taken: BTreeSet<&String> = BTreeSet::new();
    for version in versions {
        let platforms: Vec<_> = version.platforms.iter().map(platform_name).collect();
        let missing = if version.complete { String::new() } else { paint.yellow(" incomplete") };
        let size: u64 = version.platforms.iter().map(|one| one.size_bytes).sum();
        let tags: Vec<_> = version.tags.iter().filter(|tag| taken.insert(*tag)).map(String::as_str).collect();
        table.row([
            if tags.is_empty() { "-".to_owned() } else { paint.bold(&tags.join(", ")) },
            text::short_digest(&version.digest).to_owned(),
            platforms.join(", ") + &missing,
            shown_size(size),
            text::age_of(version.published_at.as_ref(), now),
            text::short_id(&version.build_id).to_owned(),
            version.source.clone(),
        ]);
    }
    table.render(paint)
}

fn platform_name(one: &ImagePlatform) -> String {
    match one.grade() {
        Grade::Emulated => format!("{} (emulated)", one.platform),
        Grade::Unspecified | Grade::Native | Grade::Compat => one.platform.clone(),
    }
}

fn shown_size(bytes: u64) -> String {
    if bytes == 0 { "-".to_owned() } else { text::bytes(bytes) }
}

async fn diff(farm: &Farm, from: &str, to: &str, output: &OutputFlag) -> Result<(), Failure> {
    let from: ImageReference = from.parse().map_err(Failure::usage)?;
    let to = match to.starts_with([':', '@']) {
        true => format!("{}{to}", from.repository()),
        false => to.to_owned(),
    };
    let to: ImageReference = to.parse().map_err(Failure::usage)?;
    let request = DiffImagesRequest { from: from.to_string(), to: to.to_string() };
    let answer = farm.call(async |link| link.builds().diff_images(request.clone()).await).await?;
    output::print(output.output, &answer, |paint| differences(&answer, paint))
}

fn differences(answer: &DiffImagesResponse, paint: Paint) -> String {
    let mut platforms = Table::new(["PLATFORM", "FROM", "TO", "SIZE", "CHANGE"]);
    for one in &answer.platforms {
        let digest = |side: &Option<ImagePlatform>| {
            side.as_ref().map_or_else(|| "-".to_owned(), |found| text::short_digest(&found.digest).to_owned())
        };
        let size = |side: &Option<ImagePlatform>| side.as_ref().map_or(0, |found| found.size_bytes);
        platforms.row([
            one.platform.clone(),
            digest(&one.from),
            digest(&one.to),
            shown_size(size(&one.to).max(if one.to.is_none() { size(&one.from) } else { 0 })),
            change(one, paint),
        ]);
    }
    let mut all = platforms.render(paint);
    if !answer.build.is_empty() {
        let mut build = Table::new(["OPTION", "FROM", "TO"]);
        for one in &answer.build {
            build.row([one.option.clone(), one.from.clone(), one.to.clone()]);
        }
        all = format!("{all}\n{}", build.render(paint));
    }
    all
}

fn change(one: &PlatformDifference, paint: Paint) -> String {
    match (&one.from, &one.to) {
        (None, _) => paint.green("added"),
        (Some(_), None) => paint.yellow("removed"),
        (Some(from), Some(to)) if from.digest == to.digest => "the same".to_owned(),
        (Some(from), Some(to)) if to.size_bytes >= from.size_bytes => {
            format!("+{}", text::bytes(to.size_bytes - from.size_bytes))
        }
        (Some(from), Some(to)) => format!("-{}", text::bytes(from.size_bytes - to.size_bytes)),
    }
}

async fn remove(farm: &Farm, reference: &str, dry_run: bool, output: &OutputFlag) -> Result<(), Failure> {
    let reference: ImageReference = reference.parse().map_err(Failure::usage)?;
    let hosts = BTreeSet::from([reference.repository().host().to_owned()]);
    let credentials = registry::of_hosts(hosts).await?;
    let request = RemoveImageRequest { reference: reference.to_string(), credentials, dry_run };
    let answer = farm.call(async |link| link.builds().remove_image(request.clone()).await).await?;
    output::print(output.output, &answer, |paint| removal(&answer, paint))
}

fn removal(answer: &RemoveImageResponse, paint: Paint) -> String {
    let mut table = Table::new(["WHAT", "OUTCOME", "WHY"]);
    if !answer.untagged.is_empty() {
        table.row([answer.untagged.clone(), "untagged".to_owned(), String::new()]);
    }
    for digest in &answer.deleted {
        table.row([text::short_digest(digest).to_owned(), "deleted".to_owned(), String::new()]);
    }
    for kept in &answer.kept {
        table.row([text::short_digest(&kept.digest).to_owned(), "kept".to_owned(), kept.reason.clone()]);
    }
    table.render(paint)
}
