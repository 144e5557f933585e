//! Which layers were found good before, so that a layer is read once and not with every build that has it.
//!
//! Kept in memory and in one file of fixed-size keys, to which each new one is appended. Losing it, or a part of it, costs
//! time and nothing else: what is not known is read again.

use std::{
    collections::{HashSet, VecDeque},
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use kiln_common::{Digest, Platform, limits};

use super::layer::Verdict;

/// To be counted up when the checks get stricter: what was good enough for older ones is read again.
const POLICY: &str = "kiln layer verdict 1";
const KEY_BYTES: usize = 16;

type Key = [u8; KEY_BYTES];

#[derive(Debug, Default)]
pub struct Verdicts {
    path: Option<PathBuf>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    keys: HashSet<Key>,
    /// Oldest first.
    order: VecDeque<Key>,
    file: Option<File>,
}

impl Verdicts {
    /// With the file at `path`, which is made with the first verdict.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        let mut known = Known::default();
        match read(&path) {
            Ok(keys) => keys.into_iter().for_each(|key| known.insert(key)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "layers are verified anew: their verdicts do not read")
            }
        }
        Self { path: Some(path), known: Mutex::new(known) }
    }

    /// Whether the layer is known to be good on the platform, with these files allowed.
    pub fn contains(&self, layer: &Digest, platform: &Platform, allowed: &[String]) -> bool {
        let known = self.lock();
        known.keys.contains(&key(layer, None, &[]))
            || known.keys.contains(&key(layer, Some(platform), &[]))
            || (!allowed.is_empty() && known.keys.contains(&key(layer, Some(platform), allowed)))
    }

    pub fn add(&self, layer: &Digest, platform: &Platform, allowed: &[String], verdict: Verdict) {
        let key = match verdict {
            Verdict::NoPrograms => key(layer, None, &[]),
            Verdict::Fits => key(layer, Some(platform), allowed),
        };
        let mut known = self.lock();
        if known.keys.contains(&key) {
            return;
        }
        known.insert(key);
        if let Some(path) = &self.path
            && let Err(error) = known.append(path, &key)
        {
            tracing::warn!(%error, path = %path.display(), "a layer's verdict is not kept");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn insert(&mut self, key: Key) {
        if self.keys.insert(key) {
            self.order.push_back(key);
        }
        if self.order.len() > limits::LAYER_VERDICTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }

    fn append(&mut self, path: &PathBuf, key: &Key) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(self::open(path, &self.order)?),
        };
        file.write_all(key)
    }
}

/// The newest keys of the file; a torn last one does not count.
fn read(path: &PathBuf) -> io::Result<Vec<Key>> {
    let mut file = File::open(path)?;
    let keys = file.metadata()?.len() / KEY_BYTES as u64;
    let skipped = keys.saturating_sub(limits::LAYER_VERDICTS as u64);
    file.seek(SeekFrom::Start(skipped * KEY_BYTES as u64))?;
    let mut bytes = Vec::new();
    file.take((keys - skipped) * KEY_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(bytes.as_chunks().0.to_vec())
}

/// For appending, written anew first: without what is forgotten and without a torn end. All but the newest key, which
/// the caller appends.
fn open(path: &PathBuf, order: &VecDeque<Key>) -> io::Result<File> {
    let fresh = path.with_extension("new");
    let all: Vec<u8> = order.iter().take(order.len().saturating_sub(1)).flatten().copied().collect();
    std::fs::write(&fresh, all)?;
    std::fs::rename(&fresh, path)?;
    OpenOptions::new().append(true).open(path)
}

fn key(layer: &Digest, platform: Option<&Platform>, allowed: &[String]) -> Key {
    let mut hasher = blake3::Hasher::new();
    let platform = platform.map(ToString::to_string).unwrap_or_default();
    for part in [POLICY, &layer.to_string(), &platform].into_iter().chain(allowed.iter().map(String::as_str)) {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    let mut key = [0; KEY_BYTES];
    key.copy_from_slice(&hasher.finalize().as_bytes()[..KEY_BYTES]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(fill: &str) -> Digest {
        format!("sha256:{}", fill.repeat(64)).parse().expect("a digest")
    }

    #[test]
    fn a_verdict_holds_for_its_platform_and_what_was_allowed_and_survives_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("verdicts");
        let (arm, amd): (Platform, Platform) =
            ("linux/arm/v7".parse().expect("valid"), "linux/amd64".parse().expect("valid"));
        let allowed = ["opt/**".to_owned()];
        let verdicts = Verdicts::at(path.clone());
        verdicts.add(&digest("1"), &arm, &[], Verdict::Fits);
        verdicts.add(&digest("2"), &arm, &allowed, Verdict::Fits);
        verdicts.add(&digest("3"), &arm, &allowed, Verdict::NoPrograms);
        drop(verdicts);
        // A crash in the middle of a write.
        let mut file = OpenOptions::new().append(true).open(&path).expect("opened");
        file.write_all(b"torn").expect("written");
        for _ in 0..2 {
            let verdicts = Verdicts::at(path.clone());
            assert!(verdicts.contains(&digest("1"), &arm, &[]) && verdicts.contains(&digest("1"), &arm, &allowed));
            assert!(!verdicts.contains(&digest("1"), &amd, &[]));
            assert!(verdicts.contains(&digest("2"), &arm, &allowed) && !verdicts.contains(&digest("2"), &arm, &[]));
            assert!(verdicts.contains(&digest("3"), &amd, &[]));
            verdicts.add(&digest("4"), &arm, &[], Verdict::Fits);
        }
        assert_eq!(std::fs::metadata(&path).expect("a file").len(), 4 * KEY_BYTES as u64);
    }

    #[test]
    fn an_unwritable_place_costs_the_memory_of_it_alone() {
        let verdicts = Verdicts::at("/nonexistent/verdicts".into());
        let platform = "linux/amd64".parse().expect("valid");
        verdicts.add(&digest("1"), &platform, &[], Verdict::Fits);
        assert!(verdicts.contains(&digest("1"), &platform, &[]));
    }
}
