//! Asks an engine on another machine whether its CPU runs a program, by running it there in an empty container.
//!
//! `Engine::runs` is this. Written as two of BuildKit's own instructions (`solver/pb/ops.proto`), because no frontend is
//! needed: a file in an empty root, and its execution. Nothing is exported.

use std::{collections::HashMap, time::Duration};

use bollard_buildkit_proto::{
    moby::buildkit::v1::{SolveRequest, control_client::ControlClient},
    pb,
};
use kiln_common::Platform;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use tonic::Code;

use super::{EngineError, transport::Dialer};

/// A container takes a moment on a slow board.
const PATIENCE: Duration = Duration::from_secs(60);
const PATH: &str = "/probe";

/// Whether the program starts and ends well. `own` is the engine's platform: by it BuildKit leaves its emulators out.
pub async fn runs(dialer: &Dialer, own: &Platform, program: &[u8]) -> Result<bool, EngineError> {
    let request = SolveRequest {
        r#ref: format!("kiln-trial-{:016x}", rand::random::<u64>()),
        definition: Some(definition(own, program)),
        internal: true,
        ..Default::default()
    };
    let mut control = ControlClient::new(dialer.channel().await?);
    let silent = |_| EngineError::Silent { address: dialer.address().to_string() };
    match timeout(PATIENCE, control.solve(request)).await.map_err(silent)? {
        Ok(_) => Ok(true),
        Err(status) if matches!(status.code(), Code::Unavailable | Code::Cancelled) => Err(EngineError::call(status)),
        // The program could not be started, or it ended by an instruction that the CPU lacks.
        Err(_) => Ok(false),
    }
}

fn definition(own: &Platform, program: &[u8]) -> pb::Definition {
    let write = pb::FileActionMkFile {
        path: PATH.to_owned(),
        mode: 0o755,
        data: program.to_vec(),
        timestamp: -1,
        ..Default::default()
    };
    let write = pb::FileAction {
        input: -1,
        secondary_input: -1,
        output: 0,
        action: Some(pb::file_action::Action::Mkfile(write)),
    };
    let file = op(own, Vec::new(), pb::op::Op::File(pb::FileOp { actions: vec![write] }));
    let execute = pb::ExecOp {
        meta: Some(pb::Meta { args: vec![PATH.to_owned()], cwd: "/".to_owned(), ..Default::default() }),
        mounts: vec![pb::Mount { input: 0, dest: "/".to_owned(), output: 0, ..Default::default() }],
        network: pb::NetMode::None.into(),
        ..Default::default()
    };
    let execute = op(own, vec![result_of(&file)], pb::op::Op::Exec(execute));
    let last = pb::Op { inputs: vec![result_of(&execute)], ..Default::default() };
    // A second trial asks the CPU again and not the cache: the board may have another kernel by then.
    let metadata =
        [&file, &execute].map(|op| (digest(op), pb::OpMetadata { ignore_cache: true, ..Default::default() }));
    pb::Definition {
        def: [&file, &execute, &last].map(Message::encode_to_vec).into(),
        metadata: HashMap::from(metadata),
        source: None,
    }
}

fn op(own: &Platform, inputs: Vec<pb::Input>, op: pb::op::Op) -> pb::Op {
    let platform = pb::Platform {
        os: own.os().to_owned(),
        architecture: own.architecture().to_owned(),
        variant: own.variant().unwrap_or_default().to_owned(),
        ..Default::default()
    };
    pb::Op { inputs, platform: Some(platform), op: Some(op), ..Default::default() }
}

fn result_of(op: &pb::Op) -> pb::Input {
    pb::Input { digest: digest(op), index: 0 }
}

/// Instructions name each other by the digest of their encoding.
fn digest(op: &pb::Op) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(op.encode_to_vec())))
}
