use super::*;

/// moby/patternmatcher's own table, written anew: pattern, path, whether the path or a parent matches.
const MOBY: &[(&str, &str, bool)] = &[
    ("**", "file", true),
    ("**", "file/", true),
    ("**/", "file", true),
    ("**/", "file/", true),
    ("**", "/", true),
    ("**/", "/", true),
    ("**", "dir/file", true),
    ("**/", "dir/file", true),
    ("**", "dir/file/", true),
    ("**/", "dir/file/", true),
    ("**/**", "dir/file", true),
    ("**/**", "dir/file/", true),
    ("dir/**", "dir/file", true),
    ("dir/**", "dir/file/", true),
    ("dir/**", "dir/dir2/file", true),
    ("dir/**", "dir/dir2/file/", true),
    ("**/dir", "dir", true),
    ("**/dir", "dir/file", true),
    ("**/dir2/*", "dir/dir2/file", true),
    ("**/dir2/*", "dir/dir2/file/", true),
    ("**/dir2/**", "dir/dir2/dir3/file", true),
    ("**/dir2/**", "dir/dir2/dir3/file/", true),
    ("**file", "file", true),
    ("**file", "dir/file", true),
    ("**/file", "dir/file", true),
    ("**file", "dir/dir/file", true),
    ("**/file", "dir/dir/file", true),
    ("**/file*", "dir/dir/file", true),
    ("**/file*", "dir/dir/file.txt", true),
    ("**/file*txt", "dir/dir/file.txt", true),
    ("**/file*.txt", "dir/dir/file.txt", true),
    ("**/file*.txt*", "dir/dir/file.txt", true),
    ("**/**/*.txt", "dir/dir/file.txt", true),
    ("**/**/*.txt2", "dir/dir/file.txt", false),
    ("**/*.txt", "file.txt", true),
    ("**/**/*.txt", "file.txt", true),
    ("a**/*.txt", "a/file.txt", true),
    ("a**/*.txt", "a/dir/file.txt", true),
    ("a**/*.txt", "a/dir/dir/file.txt", true),
    ("a/*.txt", "a/dir/file.txt", false),
    ("a/*.txt", "a/file.txt", true),
    ("a/*.txt**", "a/file.txt", true),
    ("a[b-d]e", "ae", false),
    ("a[b-d]e", "ace", true),
    ("a[b-d]e", "aae", false),
    ("a[^b-d]e", "aze", true),
    (".*", ".foo", true),
    (".*", "foo", false),
    ("abc.def", "abcdef", false),
    ("abc.def", "abc.def", true),
    ("abc.def", "abcZdef", false),
    ("abc?def", "abcZdef", true),
    ("abc?def", "abcdef", false),
    (r"a\\", r"a\", true),
    ("**/foo/bar", "foo/bar", true),
    ("**/foo/bar", "dir/foo/bar", true),
    ("**/foo/bar", "dir/dir2/foo/bar", true),
    ("abc/**", "abc", false),
    ("abc/**", "abc/def", true),
    ("abc/**", "abc/def/ghi", true),
    ("**/.foo", ".foo", true),
    ("**/.foo", "bar.foo", false),
    ("a(b)c/def", "a(b)c/def", true),
    ("a(b)c/def", "a(b)c/xyz", false),
    ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
    ("dist/tool-2.4.0rc3.dev36+g08acad9.whl", "dist/tool-2.4.0rc3.dev36+g08acad9.whl", true),
    ("dist/*.whl", "dist/tool-2.4.0rc3.dev36+g08acad9.whl", true),
    (r"a\*b", "a*b", true),
    (r"a\*b", "ab", false),
    ("*", "abc", true),
    ("*c", "abc", true),
    ("a*", "ab/c", true),
    ("a*/b", "abc/b", true),
    ("a*/b", "a/c/b", false),
    ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
    ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
    ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
    ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
    ("a*b?c*x", "abxbbxdbxebxczzx", true),
    ("a*b?c*x", "abxbbxdbxebxczzy", false),
    ("ab[c]", "abc", true),
    ("ab[e-g]", "abc", false),
    ("ab[^c]", "abc", false),
    ("ab[^e-g]", "abc", true),
    ("a?b", "a☺b", true),
    ("a[^a]b", "a☺b", true),
    ("a???b", "a☺b", false),
    ("a[^a][^a][^a]b", "a☺b", false),
    ("[a-ζ]*", "α", true),
    ("*[a-ζ]", "A", false),
    ("a?b", "a/b", false),
    ("a*b", "a/b", false),
    (r"[\]a]", "]", true),
    (r"[\-]", "-", true),
    (r"[x\-]", "x", true),
    (r"[x\-]", "-", true),
    (r"[x\-]", "z", false),
    (r"[\-x]", "x", true),
    (r"[\-x]", "-", true),
    (r"[\-x]", "a", false),
    ("*x", "xxx", true),
];

const MALFORMED: &[&str] =
    &["[]a]", "[-]", "[x-]", "[-x]", r"\", "[a-b-c]", "[", "[^", "[^bc", "a[", "a[b", "!", "a/[x", "x[z-a]"];

fn with_parents(matcher: &PatternMatcher, path: &str) -> bool {
    let mut parent = MatchInfo::default();
    let mut info = MatchInfo::default();
    for (end, _) in path.match_indices('/').filter(|(end, _)| *end > 0) {
        matcher.matches(&path[..end], &parent, &mut info);
        std::mem::swap(&mut parent, &mut info);
    }
    matcher.matches(path, &parent, &mut info)
}

#[test]
fn single_patterns_match_as_mobys_do() {
    for (pattern, path, expected) in MOBY {
        let matcher = PatternMatcher::new(&[pattern]).expect(pattern);
        assert_eq!(matcher.matches_or_parent_matches(path), *expected, "{pattern} {path}");
        assert_eq!(with_parents(&matcher, path), *expected, "{pattern} {path}, parent by parent");
    }
}

#[test]
fn the_last_pattern_that_matches_decides() {
    let cases: &[(&[&str], &str, bool)] = &[
        (&["**", "!util/docker/web"], "util/docker/web/foo", false),
        (&["**", "!util/docker/web", "util/docker/web/foo"], "util/docker/web/foo", true),
        (&["**", "!dist/tool-2.4+g0.whl"], "dist/tool-2.4+g0.whl", false),
        (&["**", "!dist/*.whl"], "dist/tool-2.4+g0.whl", false),
        (&["!fileutils.go", "*.go"], "fileutils.go", true),
        (&["*.go", "!fileutils.go"], "fileutils.go", false),
        (&["docs", "!docs/README.md"], "docs/README.md", false),
        (&["docs/", "!docs/README.md"], "docs/README.md", false),
        (&["docs/*", "!docs/README.md"], "docs/README.md", false),
        (&["docs", "  !docs/README.md  "], "docs/README.md", false),
        (&["docs", "!docs/README.md"], "docs/other.md", true),
        (&[], "any/path", false),
        (&["", "  "], "any/path", false),
    ];
    for (patterns, path, expected) in cases {
        let matcher = PatternMatcher::new(patterns).expect("valid");
        assert_eq!(matcher.matches_or_parent_matches(path), *expected, "{patterns:?} {path}");
        assert_eq!(with_parents(&matcher, path), *expected, "{patterns:?} {path}, parent by parent");
    }
}

#[test]
fn malformed_patterns_are_refused_by_name() {
    for pattern in MALFORMED {
        assert!(PatternMatcher::new(&[pattern]).is_err(), "{pattern}");
    }
    let error = PatternMatcher::new(&["a["]).expect_err("malformed");
    assert_eq!(error.to_string(), "the pattern `a[` is malformed; check its brackets and backslashes");
    assert!(PatternMatcher::new(&vec!["a"; limits::IGNORE_RULES + 1]).is_err());
}

#[test]
fn paths_are_cleaned_as_go_cleans_them() {
    for (path, expected) in [
        ("", "."),
        (".", "."),
        ("a/", "a"),
        ("./a", "a"),
        ("a//b/../c", "a/c"),
        ("../a", "../a"),
        ("../../a/..", "../.."),
        ("/", "/"),
        ("/../a", "/a"),
        ("!./a", "!./a"),
    ] {
        assert_eq!(clean_path(path), expected, "{path}");
    }
}

#[test]
fn hostile_patterns_cost_no_more_than_their_length() {
    let pattern = format!("{}x", "*a".repeat(1000));
    let matcher = PatternMatcher::new(&[pattern]).expect("valid");
    assert!(!matcher.matches_or_parent_matches(&"a".repeat(2000)));
}

proptest::proptest! {
    #[test]
    fn no_pattern_panics(pattern in r"[a-b*?\[\]\\^!/.-]{0,12}", path in "[a-b/.]{1,12}") {
        if let Ok(matcher) = PatternMatcher::new(&[pattern]) {
            let _ = matcher.matches_or_parent_matches(&path);
        }
    }
}
