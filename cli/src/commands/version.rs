//! `kiln version`: of the client, and of the farm where one answers.

use clap::Args;
use kiln_proto::v1::GetInfoRequest;

use crate::{args::Global, failure::Failure, output};

#[derive(Debug, Args)]
pub struct Version {
    /// Only the client's version; asks no farm
    #[arg(long)]
    client: bool,
}

pub async fn run(version: Version, global: &Global) -> Result<(), Failure> {
    output::write(&format!("client  {}\n", env!("CARGO_PKG_VERSION")))?;
    if version.client {
        return Ok(());
    }
    // Without a farm the client's version is still an answer.
    let Ok(farm) = crate::farm(global) else { return output::write("farm    none is configured\n") };
    let info = farm.call(async |link| link.farm().get_info(GetInfoRequest {}).await).await?;
    output::write(&format!("farm    {} at {}\n", info.version, farm.target().endpoints[0]))
}
