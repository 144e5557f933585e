//! API messages as JSON and YAML: protobuf's own JSON mapping with the fields' proto names, so that what `-o json`
//! prints reads like the API's documentation. Fields at their default are printed too; 64-bit numbers are numbers.

use std::sync::OnceLock;

use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use crate::failure::{Exit, Failure};

/// A message of package `kiln.v1`.
pub trait Document: prost::Message {
    /// Its name within the package.
    const NAME: &'static str;
}

macro_rules! documents {
    ($($name:ident)+) => {$(
        impl Document for kiln_proto::v1::$name {
            const NAME: &'static str = stringify!($name);
        }
    )+};
}

documents! {
    Build ListBuildsResponse ExplainBuildResponse LogsResponse ListImagesResponse DiffImagesResponse RemoveImageResponse
    Worker ListWorkersResponse CreateJoinTokenResponse
    CreateApiTokenResponse ListApiTokensResponse FarmInfo
    ListJoinTokensResponse ListAuditResponse AuditEntry
}

/// Indented JSON without a line end.
pub fn json(message: &impl Document) -> Result<String, Failure> {
    serde_json::to_string_pretty(&value(message)?).map_err(|error| defect(&error))
}

/// One JSON object on a line for each message.
pub fn lines(messages: &[impl Document]) -> Result<String, Failure> {
    messages.iter().map(|message| Ok(format!("{}\n", value(message)?))).collect()
}

/// A YAML document.
pub fn yaml(message: &impl Document) -> Result<String, Failure> {
    serde_yaml_ng::to_string(&value(message)?).map_err(|error| defect(&error))
}

fn value<M: Document>(message: &M) -> Result<serde_json::Value, Failure> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    let descriptor = POOL
        .get_or_init(|| DescriptorPool::decode(kiln_proto::FILE_DESCRIPTOR_SET).ok())
        .as_ref()
        .and_then(|pool| pool.get_message_by_name(&format!("kiln.v1.{}", M::NAME)))
        .ok_or_else(|| defect(&format!("the descriptor of {} is missing", M::NAME)))?;
    let dynamic =
        DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).map_err(|error| defect(&error))?;
    let options =
        SerializeOptions::new().stringify_64_bit_integers(false).use_proto_field_name(true).skip_default_fields(false);
    dynamic.serialize_with_options(serde_json::value::Serializer, &options).map_err(|error| defect(&error))
}

fn defect(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::BuildFailed, format!("cannot print the answer: {error}"))
        .remedy("this is a defect of kiln; please report it")
}

#[cfg(test)]
mod tests {
    use kiln_proto::v1;

    use super::*;

    #[test]
    fn a_message_prints_with_its_proto_names_and_plain_numbers() {
        let build = v1::Build {
            id: "0198f3c4-5d6e-7f80-9a1b-2c3d4e5f6071".into(),
            state: v1::BuildState::Succeeded.into(),
            size_bytes: 1609,
            created_at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            ..v1::Build::default()
        };
        let value: serde_json::Value = serde_json::from_str(&json(&build).unwrap()).unwrap();
        assert_eq!(value["id"], build.id);
        assert_eq!(value["state"], "BUILD_STATE_SUCCEEDED");
        assert_eq!(value["size_bytes"], 1609);
        assert_eq!(value["created_at"], "2023-11-14T22:13:20Z");
        assert_eq!(value["tasks"], serde_json::json!([]));
        assert!(yaml(&build).unwrap().contains("state: BUILD_STATE_SUCCEEDED"));
    }
}
