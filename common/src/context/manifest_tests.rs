use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn encode(entries: &[Entry]) -> (Vec<ManifestChunk>, ManifestChunk) {
    let mut encoder = ManifestEncoder::default();
    let mut chunks: Vec<_> = entries.iter().filter_map(|entry| encoder.push(entry).expect("valid")).collect();
    let (last, root, digest) = encoder.finish().expect("small");
    assert_eq!(digest.0, root.id);
    chunks.extend(last);
    (chunks, root)
}

fn decode(chunks: &[ManifestChunk], root: &[u8]) -> Result<Vec<Entry>, InvalidManifest> {
    let mut decoder = ManifestDecoder::new(root)?;
    let mut entries = Vec::new();
    for chunk in chunks {
        decoder.push(&chunk.bytes, |entry| entries.push(entry))?;
    }
    decoder.finish()?;
    Ok(entries)
}

fn file(path: &str, content: &[u8]) -> Entry {
    let chunk = ChunkRef { id: ChunkId::of(content), len: content.len() as u32 };
    Entry { path: path.into(), kind: EntryKind::File(Box::new([chunk])), mode: 0o644, mtime_ns: 7 }
}

fn tree(count: usize) -> Vec<Entry> {
    (0..count).map(|index| file(&format!("file-{index:06}"), &index.to_le_bytes())).collect()
}

#[derive(Debug, Clone)]
enum Leaf {
    File(Vec<(u32, u8)>),
    Symlink(String),
    Directory,
}

fn leaves() -> impl Strategy<Value = Leaf> {
    prop_oneof![
        prop::collection::vec((1..=4_194_304_u32, any::<u8>()), 0..4).prop_map(Leaf::File),
        "[a-zA-Zé./ -]{1,40}".prop_map(Leaf::Symlink),
        Just(Leaf::Directory),
    ]
}

/// Any tree: paths of up to four components, their parents added as directories.
fn trees() -> impl Strategy<Value = Vec<Entry>> {
    let paths = prop::collection::vec("[a-c.é -]{1,3}", 1..5)
        .prop_filter("normal names", |names| names.iter().all(|name| name != "." && name != ".."));
    prop::collection::vec((paths, leaves(), 0..=0o7777_u16, any::<i64>()), 0..300).prop_map(|items| {
        let mut all: BTreeMap<Vec<String>, Entry> = BTreeMap::new();
        for (names, leaf, mode, mtime_ns) in items {
            let free = (1..names.len()).all(|end| all.get(&names[..end]).is_none_or(Entry::is_directory));
            if !free || all.contains_key(&names) {
                continue;
            }
            for end in 1..names.len() {
                let path: Box<str> = names[..end].join("/").into();
                all.entry(names[..end].to_vec()).or_insert(Entry { path, kind: EntryKind::Directory, mode, mtime_ns });
            }
            let kind = match leaf {
                Leaf::File(chunks) => EntryKind::File(
                    chunks
                        .iter()
                        .map(|(len, seed)| ChunkRef { id: ChunkId::from_bytes([*seed; 32]), len: *len })
                        .collect(),
                ),
                Leaf::Symlink(target) => EntryKind::Symlink(target.into()),
                Leaf::Directory => EntryKind::Directory,
            };
            all.insert(names.clone(), Entry { path: names.join("/").into(), kind, mode, mtime_ns });
        }
        all.into_values().collect()
    })
}

proptest! {
    #[test]
    fn any_tree_reads_back_as_it_was_written(entries in trees()) {
        let (chunks, root) = encode(&entries);
        prop_assert_eq!(decode(&chunks, &root.bytes).expect("decodes"), entries);
    }

    #[test]
    fn hostile_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let chunk = ManifestChunk::new(bytes.clone());
        let root = Root { entries: 1, bytes: 1, chunks: vec![ChunkRef { id: chunk.id, len: bytes.len() as u32 }] };
        let _ = decode(&[chunk], &root.encode());
        let _ = Root::decode(&bytes);
    }

    #[test]
    fn one_flipped_byte_never_yields_the_same_digest_and_never_panics(at in 0_usize..2000, flip in 1_u8..) {
        let (mut chunks, root) = encode(&tree(40));
        let place = at % chunks[0].bytes.len();
        chunks[0].bytes[place] ^= flip;
        prop_assert!(decode(&chunks, &root.bytes).is_err());
        let forged = ManifestChunk::new(chunks[0].bytes.clone());
        let chunk = ChunkRef { id: forged.id, len: forged.bytes.len() as u32 };
        let forged_root = Root { chunks: vec![chunk], ..Root::decode(&root.bytes).expect("root") };
        // Whatever else decodes is canonical: it encodes to the very bytes it came from.
        if let Ok(entries) = decode(std::slice::from_ref(&forged), &forged_root.encode()) {
            let (again, _) = encode(&entries);
            prop_assert_eq!(again.concat_bytes(), forged.bytes);
        }
    }
}

trait ConcatBytes {
    fn concat_bytes(&self) -> Vec<u8>;
}

impl ConcatBytes for Vec<ManifestChunk> {
    fn concat_bytes(&self) -> Vec<u8> {
        self.iter().flat_map(|chunk| chunk.bytes.clone()).collect()
    }
}

#[test]
fn one_changed_file_changes_one_manifest_chunk_and_the_root() {
    let mut entries = tree(20_000);
    let (before, old_root) = encode(&entries);
    entries[7_777] = file("file-007777", b"changed");
    let (after, root) = encode(&entries);
    let changed: Vec<_> = after.iter().filter(|chunk| !before.contains(chunk)).collect();
    assert_eq!(changed.len(), 1);
    assert!(changed[0].bytes.len() < 128 * 1024, "{}", changed[0].bytes.len());
    assert!(root != old_root && root.bytes.len() < 8 * 1024, "{}", root.bytes.len());
}

#[test]
fn one_added_file_changes_at_most_two_manifest_chunks() {
    let mut entries = tree(20_000);
    let (before, _) = encode(&entries);
    entries.insert(5_000, file("file-004999x", b"new"));
    let (after, _) = encode(&entries);
    assert!(after.iter().filter(|chunk| !before.contains(chunk)).count() <= 2);
}

#[test]
fn roots_that_promise_more_than_there_is_are_refused() {
    let (chunks, root) = encode(&tree(3));
    let good = Root::decode(&root.bytes).expect("root");
    for bad in [
        Root { entries: 4, ..good.clone() },
        Root { bytes: good.bytes + 1, ..good.clone() },
        Root { entries: limits::CONTEXT_FILES as u64 + 1, ..good.clone() },
        Root { bytes: limits::CONTEXT_BYTES + 1, ..good.clone() },
        Root { chunks: Vec::new(), ..good.clone() },
        Root { chunks: vec![ChunkRef { len: u32::MAX, ..good.chunks[0] }], ..good.clone() },
        Root { chunks: vec![good.chunks[0], good.chunks[0]], ..good.clone() },
    ] {
        assert!(decode(&chunks, &bad.encode()).is_err(), "{bad:?}");
    }
    let mut trailing = root.bytes.clone();
    trailing.push(0);
    assert!(decode(&chunks, &trailing).is_err());
}

#[test]
fn a_tree_cut_at_other_places_than_its_paths_ask_for_is_refused() {
    let entries = tree(2_000);
    let (chunks, root) = encode(&entries);
    assert!(chunks.len() > 2, "{}", chunks.len());
    let recut = |bytes: Vec<Vec<u8>>| {
        let forged: Vec<_> = bytes.into_iter().map(ManifestChunk::new).collect();
        let refs = forged.iter().map(|chunk| ChunkRef { id: chunk.id, len: chunk.bytes.len() as u32 }).collect();
        let root = Root { chunks: refs, ..Root::decode(&root.bytes).expect("root") };
        decode(&forged, &root.encode())
    };
    let whole: Vec<_> = chunks.iter().map(|chunk| chunk.bytes.clone()).collect();
    assert_eq!(recut(whole.clone()).expect("as it was"), entries);
    let encoded = |entries: &[Entry]| {
        let mut bytes = Vec::new();
        let mut previous = "";
        for entry in entries {
            super::put_entry(&mut bytes, previous, entry);
            previous = &entry.path;
        }
        bytes
    };
    assert!(
        matches!(recut(vec![encoded(&entries)]), Err(InvalidManifest::Cut { .. })),
        "one chunk where there were more"
    );
    let (head, tail) = entries.split_at(1);
    assert!(matches!(recut(vec![encoded(head), encoded(tail)]), Err(InvalidManifest::Cut { .. })), "cut too early");
}

#[test]
fn a_hard_link_to_anything_but_a_file_is_refused() {
    let link = Entry { path: "z".into(), kind: EntryKind::HardLink("a".into()), mode: 0o644, mtime_ns: 0 };
    let directory = Entry { path: "a".into(), kind: EntryKind::Directory, mode: 0o755, mtime_ns: 0 };
    assert!(Manifest::new(vec![file("a", b"x"), link.clone()]).is_ok());
    assert!(Manifest::new(vec![directory, link.clone()]).is_err());
    assert!(Manifest::new(vec![link]).is_err());
}

#[test]
fn children_are_what_is_directly_in_a_directory() {
    let directory = |path: &str| Entry { path: path.into(), kind: EntryKind::Directory, mode: 0o755, mtime_ns: 0 };
    let entries = vec![directory("a"), file("a/b", b"1"), directory("a/c"), file("a/c/d", b"2"), file("a-b", b"3")];
    let manifest = Manifest::new(entries).expect("valid");
    let names = |path| manifest.children(path).map(|all| all.map(|entry| entry.path.to_string()).collect::<Vec<_>>());
    assert_eq!(names(""), Some(vec!["a".into(), "a-b".into()]));
    assert_eq!(names("a"), Some(vec!["a/b".into(), "a/c".into()]));
    assert_eq!(names("a-b"), None);
    assert_eq!(names("nothing"), None);
}
