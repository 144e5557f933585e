//! Reads a `.dockerignore` as moby's `ignorefile` does.

use super::pattern::clean_path;
use crate::limits;

/// The bytes cannot be an ignore file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIgnoreFile {
    #[error("it has more than {} bytes", limits::IGNORE_BYTES)]
    TooLong,
    #[error("it has more than {} patterns", limits::IGNORE_RULES)]
    TooMany,
    #[error("line {line} is not UTF-8")]
    NotText { line: usize },
}

/// The patterns in order: comments and blank lines left out, paths cleaned, a leading slash dropped, `!` kept.
///
/// # Errors
/// When it is too long or not UTF-8.
pub fn parse_ignore_file(bytes: &[u8]) -> Result<Vec<String>, InvalidIgnoreFile> {
    if bytes.len() > limits::IGNORE_BYTES {
        return Err(InvalidIgnoreFile::TooLong);
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut patterns = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = std::str::from_utf8(line).map_err(|_| InvalidIgnoreFile::NotText { line: index + 1 })?;
        patterns.extend(parse_line(line));
        if patterns.len() > limits::IGNORE_RULES {
            return Err(InvalidIgnoreFile::TooMany);
        }
    }
    Ok(patterns)
}

fn parse_line(line: &str) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let line = line.trim();
    let (exception, pattern) = match line.strip_prefix('!') {
        Some(rest) => ("!", rest.trim()),
        None if line.is_empty() => return None,
        None => ("", line),
    };
    if pattern.is_empty() {
        return Some(exception.into());
    }
    let cleaned = clean_path(pattern);
    let relative = if cleaned.len() > 1 { cleaned.strip_prefix('/').unwrap_or(&cleaned) } else { &cleaned };
    Some(format!("{exception}{relative}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_patterns_as_moby_has_it() {
        let text = "\u{feff}test1\n/test2\r\n/a/file/here\n\nlastfile\n# this is a comment\n  # no comment\n! /inverted/abs/path\n!\n! ";
        let expected = ["test1", "test2", "a/file/here", "lastfile", "# no comment", "!inverted/abs/path", "!", "!"];
        assert_eq!(parse_ignore_file(text.as_bytes()).expect("valid"), expected);
    }

    #[test]
    fn a_file_that_is_no_text_or_too_long_is_refused() {
        assert_eq!(parse_ignore_file(b"a\n\xff\n"), Err(InvalidIgnoreFile::NotText { line: 2 }));
        assert_eq!(parse_ignore_file(&vec![b'a'; limits::IGNORE_BYTES + 1]), Err(InvalidIgnoreFile::TooLong));
        assert_eq!(parse_ignore_file(&b"a\n".repeat(limits::IGNORE_RULES + 1)), Err(InvalidIgnoreFile::TooMany));
    }
}
