//! What of a tree one request of the engine means: include and exclude patterns and paths to follow, as fsutil has them.

use std::collections::HashMap;

use kiln_common::context::{
    ChunkId, ChunkRef, Entry, EntryKind, Manifest, compare_paths,
    filter::{Filter, Verdict},
    follow_links,
    pattern::InvalidPattern,
    without_nested,
};

/// Which paths the engine wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selection {
    pub(super) include: Vec<String>,
    pub(super) exclude: Vec<String>,
    pub(super) follow: Vec<String>,
}

impl Selection {
    /// # Errors
    /// When a pattern is malformed.
    pub(super) fn of(&self, manifest: &Manifest) -> Result<Selected, InvalidPattern> {
        let mut include = self.include.clone();
        if !self.follow.is_empty()
            && let Some(targets) = follow_links(manifest, &self.follow)
        {
            include.extend(targets);
            include = without_nested(include).unwrap_or_default();
        }
        Ok(Selected::new(manifest, &Filter::new(&include, &self.exclude)?))
    }
}

/// The chosen entries in order, and how hard links stand when their target was not chosen.
#[derive(Debug)]
pub(super) struct Selected {
    /// Indices into the manifest's entries.
    pub(super) entries: Vec<u32>,
    /// Target of a hard link that was left out: the first link to it, which is sent as the file.
    promoted: HashMap<Box<str>, u32>,
}

impl Selected {
    fn new(manifest: &Manifest, filter: &Filter) -> Self {
        let mut walk = filter.walk();
        let mut selected = Self { entries: Vec::new(), promoted: HashMap::new() };
        let mut skipped: Option<&str> = None;
        for (index, entry) in (0_u32..).zip(manifest.entries()) {
            if skipped.is_some_and(|tree| is_below(&entry.path, tree)) {
                continue;
            }
            match walk.visit(&entry.path, entry.is_directory().then_some(move || index)) {
                Verdict::Emit(late) => {
                    selected.entries.extend(late);
                    selected.push(manifest, index, entry);
                }
                Verdict::Skip => {}
                Verdict::SkipTree if entry.is_directory() => skipped = Some(&entry.path),
                Verdict::SkipTree => {}
            }
        }
        selected
    }

    /// Names what was chosen: paths, kinds, modes, times and contents.
    pub(super) fn holds(&self, manifest: &Manifest) -> ChunkId {
        let mut text = Vec::new();
        for index in &self.entries {
            let entry = &manifest.entries()[*index as usize];
            entry.encode(&mut text);
            if let EntryKind::HardLink(_) = &entry.kind {
                // What it means may not have been chosen itself.
                let chunks = contents(manifest, entry).unwrap_or_default();
                text.extend_from_slice(&(chunks.len() as u64).to_le_bytes());
                chunks.iter().for_each(|chunk| text.extend_from_slice(chunk.id.as_bytes()));
            }
        }
        ChunkId::of(&text)
    }

    fn push(&mut self, manifest: &Manifest, index: u32, entry: &Entry) {
        self.entries.push(index);
        if let EntryKind::HardLink(target) = &entry.kind
            && !self.contains(manifest, target)
        {
            self.promoted.entry(target.clone()).or_insert(index);
        }
    }

    fn contains(&self, manifest: &Manifest, path: &str) -> bool {
        let compare = |index: &u32| compare_paths(&manifest.entries()[*index as usize].path, path);
        self.entries.binary_search_by(compare).is_ok()
    }

    /// What a hard link is sent as: a link to the path given, or, with `None`, the file itself.
    pub(super) fn link_target<'a>(&self, manifest: &'a Manifest, index: u32, target: &'a str) -> Option<&'a str> {
        match self.promoted.get(target) {
            Some(first) if *first == index => None,
            Some(first) => Some(&manifest.entries()[*first as usize].path),
            None => Some(target),
        }
    }
}

fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// The contents of a file, or of what a hard link means; `None` for all else.
pub(super) fn contents<'a>(manifest: &'a Manifest, entry: &'a Entry) -> Option<&'a [ChunkRef]> {
    match &entry.kind {
        EntryKind::File(chunks) => Some(chunks),
        EntryKind::HardLink(target) => match &manifest.get(target)?.kind {
            EntryKind::File(chunks) => Some(chunks),
            EntryKind::Directory | EntryKind::Symlink(_) | EntryKind::HardLink(_) => None,
        },
        EntryKind::Directory | EntryKind::Symlink(_) => None,
    }
}
