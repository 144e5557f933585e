//! Which paths a request for some paths reaches through symbolic links, as BuildKit's fsutil (`followlinks.go`) finds them.

use std::collections::BTreeSet;

use super::{Entry, EntryKind, Manifest, pattern::clean_path, pattern::matches_name};

/// The paths themselves and all that their links lead to, sorted, without what another one holds.
/// `None` when one of them is the root: then nothing is filtered.
#[must_use]
pub fn follow_links<S: AsRef<str>>(manifest: &Manifest, paths: &[S]) -> Option<Vec<String>> {
    let mut resolved = BTreeSet::new();
    let mut waiting: Vec<String> = paths.iter().rev().map(|path| path.as_ref().to_owned()).collect();
    while let Some(path) = waiting.pop() {
        resolve(manifest, &join_root(&path), &mut resolved, &mut waiting);
    }
    let sorted: Vec<String> = resolved.into_iter().collect();
    without_nested(sorted)
}

/// Leaves out a path below the one before it; `None` if one is the root. The list is taken as sorted.
#[must_use]
pub fn without_nested(paths: Vec<String>) -> Option<Vec<String>> {
    let mut kept: Vec<String> = Vec::with_capacity(paths.len());
    for path in paths {
        if path == "." {
            return None;
        }
        let last = kept.last().map_or("", String::as_str);
        let nested = path.strip_prefix(last).is_some_and(|rest| rest.starts_with('/'));
        if !nested {
            kept.push(path);
        }
    }
    Some(kept)
}

/// Go's `filepath.Join(".", path)` for a path that must not leave the root.
fn join_root(path: &str) -> String {
    let cleaned = clean_path(&format!("/{path}"));
    match cleaned.strip_prefix('/') {
        Some("") | None => ".".into(),
        Some(relative) => relative.into(),
    }
}

/// Goes down `path` to the first link, or to its end.
fn resolve(manifest: &Manifest, path: &str, resolved: &mut BTreeSet<String>, waiting: &mut Vec<String>) {
    let mut end = 0;
    loop {
        end = path[end..].find('/').map_or(path.len(), |length| end + length);
        let current = &path[..end];
        let rest = path.get(end + 1..).unwrap_or_default();
        let targets = link_targets(manifest, current);
        if (rest.is_empty() || !targets.is_empty()) && resolved.contains(current) {
            return;
        }
        if !targets.is_empty() {
            resolved.insert(current.to_owned());
            waiting.extend(targets.iter().rev().map(|target| format!("{target}/{rest}")));
            return;
        }
        if rest.is_empty() {
            resolved.insert(current.to_owned());
            return;
        }
        end += 1;
    }
}

/// Where the link, or the links that a pattern in the last component names, lead to.
fn link_targets(manifest: &Manifest, path: &str) -> Vec<String> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    if has_wildcard(name) {
        let Some(children) = manifest.children(directory) else { return Vec::new() };
        let matching = children.filter(|entry| {
            let child = entry.path.rsplit_once('/').map_or(&*entry.path, |(_, child)| child);
            matches_name(name, child)
        });
        return matching.filter_map(target).collect();
    }
    manifest.get(path).and_then(target).into_iter().collect()
}

fn target(entry: &Entry) -> Option<String> {
    let EntryKind::Symlink(target) = &entry.kind else { return None };
    if target.starts_with('/') {
        return Some(clean_path(target));
    }
    let directory = entry.path.rsplit_once('/').map_or("", |(directory, _)| directory);
    Some(clean_path(&format!("/{directory}/{target}")))
}

fn has_wildcard(name: &str) -> bool {
    let mut chars = name.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => {
                chars.next();
            }
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(entries: &[(&str, &str)]) -> Manifest {
        let entries = entries.iter().map(|(path, what)| {
            let kind = match *what {
                "dir" => EntryKind::Directory,
                "file" => EntryKind::File(Box::new([])),
                target => EntryKind::Symlink(target.into()),
            };
            Entry { path: (*path).into(), kind, mode: 0o755, mtime_ns: 0 }
        });
        Manifest::new(entries.collect()).expect("valid")
    }

    fn follow(entries: &[(&str, &str)], paths: &[&str]) -> Option<Vec<String>> {
        follow_links(&manifest(entries), paths)
    }

    #[test]
    fn links_are_followed_to_what_they_mean() {
        let tree = [
            ("bar", "file"),
            ("baz", "file"),
            ("dir", "dir"),
            ("dir/foo", "file"),
            ("dir/l1", "foo"),
            ("l2", "dir/l1"),
        ];
        assert_eq!(follow(&tree, &["l2", "bar"]).expect("some"), ["bar", "dir/foo", "dir/l1", "l2"]);
    }

    #[test]
    fn loops_end() {
        let tree = [("l1", "l1"), ("l2", "l3"), ("l3", "l2"), ("l4", "l4/x")];
        assert_eq!(follow(&tree, &["l1", "l3", "l4"]).expect("some"), ["l1", "l2", "l3", "l4"]);
    }

    #[test]
    fn absolute_and_climbing_targets_stay_within_the_root() {
        let tree = [("dir", "dir"), ("dir/l1", "/foo/bar/baz"), ("dir/l2", "../../../etc/passwd"), ("foo", "dir")];
        assert_eq!(follow(&tree, &["dir/l1"]).expect("some"), ["dir/l1", "foo/bar/baz"]);
        assert_eq!(follow(&tree, &["dir/l2"]).expect("some"), ["dir/l2", "etc/passwd"]);
    }

    #[test]
    fn a_wildcard_follows_every_link_that_it_names() {
        let tree = [("a1", "x"), ("a2", "y/z"), ("b", "q"), ("x", "file"), ("y", "dir"), ("y/z", "file")];
        assert_eq!(follow(&tree, &["a*"]).expect("some"), ["a*", "x", "y/z"]);
        assert_eq!(follow(&tree, &["c*"]).expect("some"), ["c*"]);
    }

    #[test]
    fn what_another_path_holds_is_left_out_and_the_root_means_everything() {
        assert_eq!(follow(&[("a", "dir")], &["a", "a/b", "ab"]).expect("some"), ["a", "ab"]);
        assert_eq!(follow(&[("l", "/")], &["l"]), None);
        assert_eq!(follow(&[], &["."]), None);
        assert_eq!(follow(&[], &["missing/file"]).expect("some"), ["missing/file"]);
    }
}
