//! Which step reads what of the context, and a definition in which each reads a source of its own. Pure.
//!
//! A frontend makes one source of a whole context, `local://context` with the paths that any step reads, so a change
//! to one of them makes it another source for all. Paths here are relative to the context, in sorted sets.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kiln_common::limits;
use prost::Message;
use sha2::{Digest as _, Sha256};

use super::llb::{Definition, Op, SourceMap};

/// BuildKit's `solver/pb/attr.go`.
const SESSION: &str = "local.session";
const FOLLOW_PATHS: &str = "local.followpaths";
const SHARED_KEY_HINT: &str = "local.sharedkeyhint";

/// What one or several steps read.
pub type Paths = BTreeSet<String>;

/// A definition whose context can be divided.
#[derive(Debug)]
pub struct Division {
    source: String,
    op: Op,
    /// The steps that read the context, by their digest.
    readers: BTreeMap<String, Paths>,
}

impl Division {
    /// `None` where dividing gains nothing or is not certain to be the same: a single part, a step that reads all, paths with
    /// wildcards or within each other, an operation that is not known here whole.
    pub fn of(definition: &Definition, directory: &str) -> Option<Self> {
        let identifier = format!("local://{directory}");
        let mut found: Option<(String, Op)> = None;
        let mut readers = BTreeMap::new();
        for bytes in &definition.def {
            let op = Op::decode(bytes.as_slice()).ok()?;
            if op.source.as_ref().is_some_and(|source| source.identifier == identifier) {
                // A second one means that somebody divided already. What is decoded must be all that there was.
                if found.is_some() || op.encoded_len() != bytes.len() {
                    return None;
                }
                found = Some((digest(bytes), op));
            } else if let Some((source, _)) = &found
                && let Some(input) = op.inputs.iter().position(|input| input.digest == *source)
            {
                if op.inputs[input + 1..].iter().any(|input| input.digest == *source) {
                    return None;
                }
                readers.insert(digest(bytes), paths_read(&op, i64::try_from(input).ok()?)?);
            }
        }
        let (source, op) = found?;
        let division = Self { source, op, readers };
        division.is_certain().then_some(division)
    }

    /// The parts, each once.
    pub fn parts(&self) -> BTreeSet<&Paths> {
        self.readers.values().collect()
    }

    /// The definition with a source for each part, which `sessions` give out.
    pub fn apply(&self, definition: Definition, sessions: &BTreeMap<&Paths, String>) -> Option<Definition> {
        let Definition { def, mut metadata, mut source } = definition;
        let mut renamed: HashMap<String, String> = HashMap::new();
        let mut divided = Vec::with_capacity(def.len() + sessions.len());
        let mut parts = HashMap::new();
        for bytes in def {
            let name = digest(&bytes);
            if name == self.source {
                for (paths, session) in sessions {
                    let part = self.part(paths, session)?.encode_to_vec();
                    let of = digest(&part);
                    keep_description(&mut metadata, &mut source, &name, &of);
                    parts.insert(*paths, of);
                    divided.push(part);
                }
                continue;
            }
            let mut op = bytes;
            if let Some(paths) = self.readers.get(&name) {
                replace(&mut op, &self.source, parts.get(paths)?);
            }
            for input in Op::decode(op.as_slice()).ok()?.inputs {
                if let Some(now) = renamed.get(&input.digest) {
                    replace(&mut op, &input.digest, now);
                }
            }
            let now = digest(&op);
            if now != name {
                keep_description(&mut metadata, &mut source, &name, &now);
                renamed.insert(name, now);
            }
            divided.push(op);
        }
        Some(Definition { def: divided, metadata, source })
    }

    fn is_certain(&self) -> bool {
        let parts = self.parts();
        let all: Vec<&String> = parts.iter().flat_map(|part| part.iter()).collect();
        let nested = |one: &str, other: &str| other.strip_prefix(one).is_some_and(|rest| rest.starts_with('/'));
        let apart = all.iter().enumerate().all(|(at, one)| {
            all[at + 1..].iter().all(|other| one != other && !nested(one, other) && !nested(other, one))
        });
        apart && (2..=limits::CONTEXT_PARTS).contains(&parts.len())
    }

    fn part(&self, paths: &Paths, session: &str) -> Option<Op> {
        let mut op = self.op.clone();
        let attrs = &mut op.source.as_mut()?.attrs;
        attrs.insert(SESSION.to_owned(), session.to_owned());
        attrs.insert(FOLLOW_PATHS.to_owned(), serde_json::to_string(paths).ok()?);
        // Where the engine keeps what it has of this part: not in the place of another one.
        let hint = attrs.entry(SHARED_KEY_HINT.to_owned()).or_default();
        for path in paths {
            hint.push(':');
            hint.push_str(path);
        }
        Some(op)
    }
}

/// What a step reads of its input with this index; `None` when that is all of it, or cannot be told.
fn paths_read(step: &Op, input: i64) -> Option<Paths> {
    let mounts = step.exec.iter().flat_map(|exec| &exec.mounts).filter(|mount| mount.input == input);
    let mounted = mounts.map(|mount| if mount.readonly { plain_path(&mount.selector) } else { None });
    let actions = step.file.iter().flat_map(|file| &file.actions);
    let actions = actions.filter(|action| action.input == input || action.secondary_input == input);
    let copied = actions.map(|action| {
        let copy = action.copy.as_ref().filter(|_| action.input != input)?;
        let is_plain = copy.include_patterns.is_empty() && copy.exclude_patterns.is_empty();
        if is_plain { plain_path(&copy.src) } else { None }
    });
    let paths: Option<Paths> = mounted.chain(copied).collect();
    paths.filter(|paths| !paths.is_empty())
}

/// A path relative to the context; `None` for the context itself and for what may mean several.
fn plain_path(path: &str) -> Option<String> {
    let path = path.trim_matches('/');
    let plain = path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains(['*', '?', '[', '\\']);
    plain.then(|| path.to_owned())
}

/// An operation's name in a definition: the digest of its bytes.
fn digest(op: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(op)))
}

/// Digests have one length, so an operation stays what it is, with fields that are not known here.
fn replace(op: &mut [u8], old: &str, new: &str) {
    debug_assert_eq!(old.len(), new.len());
    let places: Vec<_> = memchr::memmem::find_iter(op, old.as_bytes()).collect();
    for place in places {
        op[place..place + old.len()].copy_from_slice(new.as_bytes());
    }
}

fn keep_description(metadata: &mut HashMap<String, Vec<u8>>, source: &mut Option<SourceMap>, old: &str, new: &str) {
    if let Some(description) = metadata.get(old).cloned() {
        metadata.insert(new.to_owned(), description);
    }
    if let Some(source) = source
        && let Some(locations) = source.locations.get(old).cloned()
    {
        source.locations.insert(new.to_owned(), locations);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::llb::{ExecOp, FileAction, FileActionCopy, FileOp, Input, Mount, SourceOp},
        *,
    };

    /// A definition made from its operations in order.
    #[derive(Default)]
    struct Steps(Vec<Vec<u8>>);

    impl Steps {
        fn add(&mut self, op: Op, inputs: &[&str]) -> String {
            let inputs = inputs.iter().map(|input| Input { digest: (*input).to_owned(), index: 0 }).collect();
            let bytes = Op { inputs, ..op }.encode_to_vec();
            let name = digest(&bytes);
            self.0.push(bytes);
            name
        }

        fn source(&mut self, identifier: &str) -> String {
            let attrs = [(SHARED_KEY_HINT.to_owned(), "context".to_owned()), (SESSION.to_owned(), "whole".to_owned())];
            let source = Some(SourceOp { identifier: identifier.to_owned(), attrs: attrs.into() });
            self.add(Op { source, ..Op::default() }, &[])
        }

        fn copy(&mut self, base: &str, context: &str, paths: &[&str]) -> String {
            let actions = paths.iter().map(|path| FileAction {
                input: 0,
                secondary_input: 1,
                copy: Some(FileActionCopy { src: (*path).to_owned(), ..Default::default() }),
            });
            self.add(Op { file: Some(FileOp { actions: actions.collect() }), ..Op::default() }, &[base, context])
        }

        fn run(&mut self, base: &str, context: &str, path: &str) -> String {
            let mounts = vec![
                Mount { input: 0, ..Mount::default() },
                Mount { input: 1, selector: path.to_owned(), readonly: true },
            ];
            self.add(Op { exec: Some(ExecOp { mounts }), ..Op::default() }, &[base, context])
        }

        fn definition(mut self, last: &str) -> Definition {
            self.add(Op::default(), &[last]);
            Definition { def: self.0, ..Definition::default() }
        }
    }

    fn two_steps(first: &[&str], second: &[&str]) -> Definition {
        let mut steps = Steps::default();
        let (base, context) = (steps.source("docker-image://x"), steps.source("local://context"));
        let one = steps.copy(&base, &context, first);
        let two = steps.copy(&one, &context, second);
        steps.definition(&two)
    }

    fn paths(names: &[&str]) -> Paths {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn ops(definition: &Definition) -> Vec<(String, Op)> {
        definition.def.iter().map(|bytes| (digest(bytes), Op::decode(bytes.as_slice()).expect("an op"))).collect()
    }

    #[test]
    fn each_step_gets_a_source_of_its_own_and_everything_else_stays() {
        let mut steps = Steps::default();
        let (base, context) = (steps.source("docker-image://x"), steps.source("local://context"));
        let mounted = steps.run(&base, &context, "/assets");
        let copied = steps.copy(&mounted, &context, &["/src", "/go.mod"]);
        let mut definition = steps.definition(&copied);
        definition.metadata.insert(copied.clone(), b"said".to_vec());

        let division = Division::of(&definition, "context").expect("two parts");
        let (assets, src) = (paths(&["assets"]), paths(&["go.mod", "src"]));
        assert_eq!(division.parts(), [&assets, &src].into());
        let sessions = [(&assets, "one".to_owned()), (&src, "two".to_owned())].into();
        let divided = division.apply(definition.clone(), &sessions).expect("known parts");

        let ops = ops(&divided);
        assert_eq!(ops.len(), definition.def.len() + 1);
        let known: BTreeSet<&String> = ops.iter().map(|(name, _)| name).collect();
        let mut local = BTreeMap::new();
        for (name, op) in &ops {
            assert!(op.inputs.iter().all(|input| known.contains(&input.digest)), "a step lost its input");
            if let Some(source) = op.source.as_ref().filter(|source| source.identifier == "local://context") {
                local.insert(source.attrs[SESSION].as_str(), (name, source));
            }
        }
        assert_eq!(local["one"].1.attrs[FOLLOW_PATHS], r#"["assets"]"#);
        assert_eq!(local["two"].1.attrs[FOLLOW_PATHS], r#"["go.mod","src"]"#);
        assert_eq!(local["two"].1.attrs[SHARED_KEY_HINT], "context:go.mod:src");
        let step = |at: usize| &ops[ops.len() - at];
        assert_eq!(step(3).1.inputs[1].digest, *local["one"].0);
        assert_eq!(step(2).1.inputs[1].digest, *local["two"].0);
        assert_eq!(divided.metadata[&step(2).0], b"said", "what is said of a step goes with it");
        assert_eq!(step(1).1.inputs[0].digest, step(2).0, "the last one is the result");
    }

    #[test]
    fn what_is_not_certain_stays_whole() {
        let whole: [(&[&str], &[&str]); 8] = [
            (&["/src"], &["/"]),
            (&["/src"], &["."]),
            (&["/src"], &["/src/main"]),
            (&["/src/main"], &["/src"]),
            (&["/src"], &["/*.txt"]),
            (&["/src"], &["/a/../b"]),
            (&["/a", "/b"], &["/b"]),
            (&["/same"], &["/same"]),
        ];
        for (first, second) in whole {
            assert!(Division::of(&two_steps(first, second), "context").is_none(), "{first:?} {second:?}");
        }
        assert!(Division::of(&two_steps(&["/src"], &["/src2"]), "context").is_some());
        assert!(Division::of(&two_steps(&["/a"], &["/b"]), "other").is_none());
    }

    #[test]
    fn a_source_with_fields_of_a_newer_engine_stays_whole() {
        let mut definition = two_steps(&["/a"], &["/b"]);
        // Field 99, a varint.
        definition.def[1].extend_from_slice(&[0x98, 0x06, 0x01]);
        let (old, new) = (digest(&two_steps(&["/a"], &["/b"]).def[1]), digest(&definition.def[1]));
        definition.def.iter_mut().for_each(|op| replace(op, &old, &new));
        assert!(Division::of(&definition, "context").is_none());
    }

    #[test]
    fn a_step_keeps_the_fields_of_a_newer_engine() {
        let mut definition = two_steps(&["/a"], &["/b"]);
        let last = definition.def.len() - 2;
        let before = digest(&definition.def[last]);
        definition.def[last].extend_from_slice(&[0x98, 0x06, 0x01]);
        let after = digest(&definition.def[last]);
        definition.def.iter_mut().for_each(|op| replace(op, &before, &after));
        let division = Division::of(&definition, "context").expect("two parts");
        let (a, b) = (paths(&["a"]), paths(&["b"]));
        let divided = division.apply(definition, &[(&a, "1".to_owned()), (&b, "2".to_owned())].into()).expect("known");
        assert!(divided.def[divided.def.len() - 2].ends_with(&[0x98, 0x06, 0x01]));
    }
}
