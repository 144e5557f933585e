//! An assignment, decoded once. Its secrets are wiped from memory when it goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kiln_common::{AttemptId, BuildSpec, Grade, Platform, limits};
use kiln_proto::{
    convert::{duration_from_wire, grade_from_wire, spec},
    v1,
};
use zeroize::Zeroizing;

use crate::{engine::RegistryCredential, logs::Mask};

/// What is to be built, and with what.
pub struct Assignment {
    pub attempt: AttemptId,
    pub platform: Platform,
    pub grade: Grade,
    pub spec: Arc<BuildSpec>,
    pub secrets: BTreeMap<String, Zeroizing<Vec<u8>>>,
    pub credentials: BTreeMap<String, RegistryCredential>,
    pub insecure_registries: BTreeSet<String>,
    pub timeout: Duration,
    /// Names this attempt in the image's provenance.
    pub builder_id: String,
}

impl Assignment {
    /// # Errors
    /// What is wrong with it; the coordinator has checked it before, so that is a difference of versions or a defect.
    pub fn decode(attempt: AttemptId, wire: v1::Assignment) -> Result<Self, String> {
        let grade = grade_from_wire(wire.grade()).ok_or("the assignment has no grade")?;
        let secrets: BTreeMap<_, _> = wire.secrets.into_iter().map(|(id, value)| (id, Zeroizing::new(value))).collect();
        let credentials = wire.credentials.into_iter().map(credential).collect();
        let platform = wire.platform.parse::<Platform>().map_err(|error| error.to_string())?;
        let spec = wire.spec.ok_or("the assignment has no spec")?;
        let spec = spec::decode(spec, secrets.keys().cloned().collect(), |text| {
            // Specs that reach a worker name a tree; the coordinator stored inline text as one.
            kiln_common::context::ContextDigest(kiln_common::context::ChunkId::of(text.as_bytes()))
        });
        let spec = spec.map_err(|violations| {
            let first = violations.first().map(|first| format!("{}: {}", first.field, first.description));
            format!("this worker does not understand the build's spec: {}", first.unwrap_or_default())
        })?;
        let timeout = wire.timeout.as_ref().and_then(duration_from_wire).unwrap_or(limits::BUILD_TIMEOUT_DEFAULT);
        Ok(Self {
            attempt,
            platform,
            grade,
            spec: Arc::new(spec),
            secrets,
            credentials,
            insecure_registries: wire.insecure_registries.into_iter().collect(),
            timeout: timeout.min(limits::BUILD_TIMEOUT_MAX),
            builder_id: wire.builder_id,
        })
    }

    /// Hides every secret and every password in the log.
    #[must_use]
    pub fn mask(&self) -> Mask {
        let secrets = self.secrets.values().map(|value| value.as_slice());
        let credentials = self.credentials.values().map(|credential| match credential {
            RegistryCredential::Password { password, .. } => password.as_bytes(),
            RegistryCredential::IdentityToken(token) => token.as_bytes(),
        });
        Mask::new(secrets.chain(credentials))
    }

    /// Emulation is never silent.
    #[must_use]
    pub fn emulation_warning(&self) -> Option<v1::BuildWarning> {
        self.grade.is_emulated().then(|| v1::BuildWarning {
            vertex: "kiln:context".to_owned(),
            short: format!(
                "{} is emulated here: this worker runs it through QEMU, many times slower than natively",
                self.platform
            ),
            detail: vec!["add a worker of that architecture, or use --emulation never to wait for one".to_owned()],
            url: String::new(),
        })
    }
}

fn credential(wire: v1::RegistryCredential) -> (String, RegistryCredential) {
    let credential = if wire.identity_token.is_empty() {
        RegistryCredential::Password { username: wire.username, password: Zeroizing::new(wire.password) }
    } else {
        RegistryCredential::IdentityToken(Zeroizing::new(wire.identity_token))
    };
    (wire.host, credential)
}
